"""Unchanged callers of Scenario, the official SDK and curl, with the shim as a process and the real worker."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests
from PIL import Image
from scenario_sdk import (
    AuthenticationError,
    BadRequestError,
    NotFoundError,
    RateLimitError,
    Scenario,
)

from bench.shim_process import KEY, OTHER_KEY, OTHER_SECRET, SECRET, ShimProcess
from bench.worker_setup import ROOT, WorkerSetup, running_worker
from simulators.waiting import until
from tests.needs import require_programs

pytestmark = pytest.mark.slow
MODEL = "model_bfl-flux-1-dev"
SMALL: dict[str, Any] = {"prompt": "a knight", "width": 64, "height": 64, "numInferenceSteps": 4}
KNIGHT = (ROOT / "examples" / "knight.png").read_bytes()


@dataclass(frozen=True)
class ShimSetup:
    """The shim, and the worker with its platform."""

    shim: ShimProcess
    worker_setup: WorkerSetup

    def sdk(self, *, is_strict: bool = False, key: str = KEY, secret: str = SECRET, max_retries: int = 2) -> Scenario:
        """Return a client of the official SDK whose base URL is the shim's."""
        return Scenario(
            api_key=key,
            api_secret=secret,
            base_url=self.shim.base_url,
            max_retries=max_retries,
            _strict_response_validation=is_strict,
        )


@pytest.fixture(scope="module")
def setup() -> Iterator[ShimSetup]:
    """The shim and the worker, shared by all tests of this module."""
    with (
        tempfile.TemporaryDirectory() as folder,
        running_worker(step_s=0.02) as worker_setup,
        ShimProcess(worker_setup.platform.client_env(), Path(folder)) as shim,
    ):
        yield ShimSetup(shim, worker_setup)


@pytest.fixture(params=[False, True], ids=["lax", "strict"])
def sdk(request: pytest.FixtureRequest, setup: ShimSetup) -> Iterator[Scenario]:
    """A client of the SDK, with its default validation of responses and with its strict one."""
    with setup.sdk(is_strict=request.param) as sdk:
        yield sdk


def await_end(sdk: Scenario, job_id: str) -> Any:  # noqa: ANN401 - a type of the SDK
    """Return a job when it has ended."""
    seen: list[Any] = []

    def is_final() -> bool:
        seen.append(sdk.jobs.retrieve(job_id).job)
        return seen[-1].status in {"success", "failure", "canceled"}

    assert until(is_final, 60)
    return seen[-1]


def download_image(url: str) -> Image.Image:
    """Download the image at `url` without a key, and return it."""
    response = requests.get(url, timeout=60)
    assert response.status_code == 200
    return Image.open(io.BytesIO(response.content))


def test_txt2img(setup: ShimSetup, sdk: Scenario) -> None:
    """run_model starts one job at the endpoint, whose two assets have their seeds and can be downloaded."""
    before = setup.worker_setup.platform.submissions
    response = sdk.generate.run_model(MODEL, body={**SMALL, "numOutputs": 2, "seed": 7})
    job = await_end(sdk, response.job.job_id)
    assets = [sdk.assets.retrieve(each).asset for each in job.metadata.asset_ids]

    assert response.creative_units_cost is not None
    assert response.creative_units_cost > 0
    assert job.status == "success", job
    assert job.progress == 1
    assert [download_image(asset.url).size for asset in assets] == [(64, 64), (64, 64)]
    assert [asset.metadata.seed for asset in assets] == ["7", "8"]
    assert {entry.status for entry in job.status_history} >= {"queued", "success"}
    assert setup.worker_setup.platform.submissions == before + 1


def test_img2img(sdk: Scenario) -> None:
    """An image is uploaded as an asset, whose id is the input of a job; the result can be downloaded."""
    asset = sdk.assets.upload(name="knight.png", image=base64.b64encode(KNIGHT).decode()).asset
    response = sdk.generate.run_model(MODEL, body={**SMALL, "image": asset.id, "strength": 0.5, "seed": 3})
    job = await_end(sdk, response.job.job_id)

    assert hashlib.sha256(requests.get(asset.url, timeout=60).content).digest() == hashlib.sha256(KNIGHT).digest()
    assert job.status == "success", job
    assert download_image(sdk.assets.retrieve(job.metadata.asset_ids[0]).asset.url).size == (64, 64)
    assert dict(job.metadata.input)["image"] == asset.id


def test_a_multipart_upload(sdk: Scenario) -> None:
    """An upload is created, each part is put without a key, and it is completed: the asset is the image."""
    half = len(KNIGHT) // 2
    made = sdk.uploads.create(
        file_name="knight.png", content_type="image/png", kind="image", parts=2, file_size=len(KNIGHT)
    )
    assert made.upload.parts is not None
    for part, data in zip(made.upload.parts, (KNIGHT[:half], KNIGHT[half:]), strict=True):
        assert requests.put(part.url, data=data, timeout=60).status_code == 200
    sdk.uploads.trigger_action(made.upload.id, action="complete")
    upload = sdk.uploads.retrieve(made.upload.id).upload

    assert upload.status == "imported"
    assert upload.entity_id
    assert requests.get(sdk.assets.retrieve(upload.entity_id).asset.url, timeout=60).content == KNIGHT


def test_assets_are_listed_fetched_and_deleted(setup: ShimSetup) -> None:
    """Assets are listed in pages, by tag and in bulk, which omits unknown ids; a deleted asset does not exist."""
    with setup.sdk(is_strict=True, key=OTHER_KEY, secret=OTHER_SECRET) as sdk:
        image = base64.b64encode(KNIGHT).decode()
        ids = [sdk.assets.upload(name=f"{number}.png", image=image).asset.id for number in range(5)]

        assert [asset.id for asset in sdk.assets.list(page_size=2)] == ids[::-1]
        assert [asset.id for asset in sdk.assets.get_bulk(asset_ids=[ids[1], "asset_none"]).assets] == [ids[1]]
        sdk.assets.update_tags(ids[0], add=["hero"])
        assert [asset.id for asset in sdk.assets.list(tags="hero")] == [ids[0]]
        sdk.assets.delete_multiple(extra_body={"assetIds": ids[:2]}, asset_ids=ids[:2])
        assert {asset.id for asset in sdk.assets.list()} == set(ids[2:])
        with pytest.raises(NotFoundError):
            sdk.assets.retrieve(ids[0])


def test_a_job_is_cancelled(setup: ShimSetup, sdk: Scenario) -> None:
    """A cancelled job has the status `canceled`, and ComfyUI no longer runs it."""
    response = sdk.generate.run_model(MODEL, body={**SMALL, "numInferenceSteps": 100, "numOutputs": 4})
    job_id = response.job.job_id
    assert until(lambda: sdk.jobs.retrieve(job_id).job.status == "in-progress", 60)

    assert sdk.jobs.trigger_action(job_id, action="cancel").job.job_id == job_id
    assert await_end(sdk, job_id).status == "canceled"
    simulator = setup.worker_setup.simulator
    assert simulator is not None
    assert until(lambda: not requests.get(f"{simulator.url}/queue", timeout=60).json()["queue_running"])


def test_a_dry_run_costs_nothing(setup: ShimSetup) -> None:
    """`dryRun` returns status 269 with units and price; no job is created."""
    before = setup.worker_setup.platform.submissions
    with setup.sdk() as sdk:
        response = sdk.generate.run_model(MODEL, body={**SMALL, "numInferenceSteps": 28}, dry_run="true")
        raw = sdk.generate.with_raw_response.run_model(MODEL, body=SMALL, dry_run="true")

    assert response.creative_units_cost is not None
    assert response.creative_units_cost > 0
    assert "job" not in raw.http_response.json()
    assert raw.http_response.status_code == 269
    assert raw.http_response.json()["estimatedUsd"] > 0
    assert setup.worker_setup.platform.submissions == before


def test_errors_have_scenario_s_format(setup: ShimSetup) -> None:
    """The SDK raises its own error for 400, 401 and 404.

    The 400 lists every fault and must not be retried, the 401 has a reason, and the 404 names the models.
    """
    with setup.sdk() as sdk, setup.sdk(secret=OTHER_SECRET) as other_sdk:
        with pytest.raises(BadRequestError) as info:
            sdk.generate.run_model(MODEL, body={"prompt": "", "guidance": 99, "mask": "x"})
        with pytest.raises(AuthenticationError) as unauthorized:
            other_sdk.jobs.list()
        with pytest.raises(NotFoundError):
            sdk.jobs.retrieve("job_none")
        with pytest.raises(NotFoundError) as no_model:
            sdk.generate.run_model("model_sdxl", body=SMALL)

    for part in ("prompt", "guidance", "mask"):
        assert part in str(info.value.body)
    assert {"reason", "message", "trace_id"} <= set(unauthorized.value.body or ())  # type: ignore[call-overload] # a JSON object
    assert info.value.response.headers["x-should-retry"] == "false"
    assert MODEL in str(no_model.value.body)


def test_a_key_over_its_limit_gets_429(setup: ShimSetup, tmp_path: Path) -> None:
    """A key's fourth call of a minute gets 429 with Retry-After and remainingSeconds; another key is not affected."""
    limits = {**setup.worker_setup.platform.client_env(), "SCENARIO_SHIM_REQUESTS_PER_MINUTE": "3"}
    with ShimProcess(limits, tmp_path) as shim:
        limited = ShimSetup(shim, setup.worker_setup)
        with limited.sdk(max_retries=0) as sdk, limited.sdk(key=OTHER_KEY, secret=OTHER_SECRET) as other:
            for _ in range(3):
                sdk.jobs.list()
            with pytest.raises(RateLimitError) as refused:
                sdk.jobs.list()
            assert other.jobs.list() is not None

    assert int(refused.value.response.headers["retry-after"]) >= 1
    assert refused.value.response.json()["remainingSeconds"] >= 1


def test_a_key_only_sees_its_own_objects(setup: ShimSetup) -> None:
    """For another key the jobs, assets and uploads of this key do not exist, and cannot be deleted."""
    with setup.sdk() as sdk, setup.sdk(key=OTHER_KEY, secret=OTHER_SECRET) as other:
        job_id = sdk.generate.run_model(MODEL, body=SMALL).job.job_id
        asset_id = await_end(sdk, job_id).metadata.asset_ids[0]
        upload_id = sdk.uploads.create(file_name="a.png", content_type="image/png", kind="image", parts=1).upload.id
        calls: list[Callable[[], object]] = [
            lambda: other.jobs.retrieve(job_id),
            lambda: other.jobs.trigger_action(job_id, action="cancel"),
            lambda: other.assets.retrieve(asset_id),
            lambda: other.assets.download.request(asset_id),
            lambda: other.uploads.retrieve(upload_id),
            lambda: other.generate.run_model(MODEL, body={**SMALL, "image": asset_id}),
        ]
        for call in calls:
            with pytest.raises(NotFoundError):
                call()
        assert job_id not in {job.job_id for job in other.jobs.list()}
        assert asset_id not in {asset.id for asset in other.assets.list()}
        other.assets.delete_multiple(asset_ids=[asset_id])
        assert sdk.assets.retrieve(asset_id).asset.id == asset_id


def test_the_classic_and_the_oldest_route(setup: ShimSetup) -> None:
    """txt2img with `modelId` and inferences with `parameters` start jobs that succeed."""
    with setup.sdk() as sdk:
        classic: Any = sdk.post("/generate/txt2img", cast_to=object, body={**SMALL, "modelId": "flux.1-dev"})
        oldest: Any = sdk.post(
            "/models/flux.1-dev/inferences", cast_to=object, body={"parameters": {**SMALL, "type": "txt2img"}}
        )
        for response in (classic, oldest):
            assert await_end(sdk, response["job"]["jobId"]).status == "success"
        inference_id = oldest["inference"]["id"]
        shown: Any = sdk.get(f"/models/flux.1-dev/inferences/{inference_id}", cast_to=object)

    assert shown["inference"]["status"] == "succeeded"
    assert download_image(shown["inference"]["images"][0]["url"]).size == (64, 64)


def test_an_unsupported_route_has_the_remedy(setup: ShimSetup) -> None:
    """An unsupported route gets 501 with the remedy, with and without /v1; a wrong method gets 405."""
    auth = (KEY, SECRET)
    for prefix in ("", "/v1"):
        response = requests.post(f"{setup.shim.url}{prefix}/generate/remove-background", json={}, auth=auth, timeout=60)
        assert response.status_code == 501
        assert "is not supported" in response.json()["reason"]
        assert "upload the image there" in response.json()["reason"]
    rejected = requests.delete(f"{setup.shim.base_url}/jobs", auth=auth, timeout=60)
    assert rejected.status_code == 405
    assert rejected.json()["reason"]


def test_models_are_listed_by_privacy(setup: ShimSetup, tmp_path: Path) -> None:
    """Public models are Flux.1-dev's ids, and private ones the configured LoRAs.

    They are listed with the SDK, in pages and in bulk, and with plain requests.
    """
    loras = {"SCENARIO_SHIM_LORAS": '{"model_knight": "knight.safetensors"}'}
    with ShimProcess({**setup.worker_setup.platform.client_env(), **loras}, tmp_path) as shim:
        with ShimSetup(shim, setup.worker_setup).sdk(is_strict=True) as sdk:
            public = [model.id for model in sdk.models.list(privacy="public")]
            private = [model.id for model in sdk.models.list(privacy="private")]
            paged = [model.id for model in sdk.models.list(page_size=1)]
            bulk = [model.id for model in sdk.models.get_bulk(model_ids=["model_knight", "model_none"]).models]
        listed = requests.get(f"{shim.base_url}/models/public", auth=(KEY, SECRET), timeout=60).json()["models"]
        training = requests.get(f"{shim.base_url}/models?status=training", auth=(KEY, SECRET), timeout=60).json()[
            "models"
        ]
        rejected = requests.get(f"{shim.base_url}/models?pageSize=0", auth=(KEY, SECRET), timeout=60)

    assert public == ["model_bfl-flux-1-dev", "flux.1-dev", "model_flux-1-dev"]
    assert private == bulk == ["model_knight"]
    assert paged == public + private
    assert [model["id"] for model in listed] == public
    assert training == []
    assert rejected.status_code == 400


def test_a_model_s_jobs_are_listed_by_the_oldest_route(setup: ShimSetup) -> None:
    """GET /models/{id}/inferences lists the newest job of that model, and none for another key."""
    with setup.sdk() as sdk:
        job_id = sdk.generate.run_model("flux.1-dev", body=SMALL).job.job_id
    auth, url = (KEY, SECRET), f"{setup.shim.base_url}/models"
    listed = requests.get(f"{url}/flux.1-dev/inferences?pageSize=1", auth=auth, timeout=60).json()
    others = requests.get(f"{url}/flux.1-dev/inferences", auth=(OTHER_KEY, OTHER_SECRET), timeout=60).json()

    assert [inference["id"] for inference in listed["inferences"]] == [job_id]
    assert listed["inferences"][0]["modelId"] == "flux.1-dev"
    assert others["inferences"] == []


@pytest.mark.parametrize(
    "path", ["/assets/asset_q9GpkRcHwTx7bLJ2mVz3nFd8", "/assets/get-bulk", "/jobs/job_q9GpkRcHwTx7"]
)
def test_an_id_of_scenario_is_404_with_the_remedy(setup: ShimSetup, path: str) -> None:
    """An asset or job id of Scenario gets 404 with the remedy; get-bulk omits such an id."""
    auth = (KEY, SECRET)
    if path.endswith("get-bulk"):
        body = {"assetIds": ["asset_q9GpkRcHwTx7bLJ2mVz3nFd8"]}
        assert requests.post(setup.shim.base_url + path, json=body, auth=auth, timeout=60).json() == {"assets": []}
        return
    response = requests.get(setup.shim.base_url + path, auth=auth, timeout=60)
    reason = response.json()["reason"]

    assert response.status_code == 404
    assert "Scenario" in reason
    assert "SCENARIO_SHIM_UPSTREAM_API_KEY" in reason


def test_a_form_upload_is_an_asset(setup: ShimSetup) -> None:
    """POST /assets also takes multipart/form-data; without a file, the error says what to send."""

    def upload(files: object) -> requests.Response:
        return requests.post(f"{setup.shim.base_url}/assets", files=files, auth=(KEY, SECRET), timeout=60)  # type: ignore[arg-type]

    asset = upload({"file": ("knight.png", KNIGHT, "image/png")}).json()["asset"]
    named = upload({"image": ("x.png", KNIGHT, "image/png"), "name": (None, "Sir Knight")}).json()["asset"]
    refused = upload({"name": (None, "nothing")})

    assert asset["metadata"]["name"] == "knight.png"
    assert named["metadata"]["name"] == "Sir Knight"
    assert requests.get(asset["url"], timeout=60).content == KNIGHT
    assert refused.status_code == 400
    assert "has no file" in refused.json()["reason"]


def test_curl_works(setup: ShimSetup, tmp_path: Path) -> None:
    """With curl, as in Scenario's docs, a job is started and polled, and its asset is read and downloaded."""
    require_programs("curl")

    def curl(*arguments: str) -> bytes:
        return subprocess.run(["curl", "-sS", "--fail-with-body", *arguments], check=True, capture_output=True).stdout  # noqa: S607 - found on PATH

    body = json.dumps({**SMALL, "modelId": "flux.1-dev", "numSamples": 1})
    base, user = setup.shim.base_url, ["-u", f"{KEY}:{SECRET}"]
    job_id = json.loads(curl(*user, f"{base}/generate/txt2img", "-H", "Content-Type: application/json", "-d", body))[
        "job"
    ]["jobId"]
    job: dict[str, Any] = {}

    def is_done() -> bool:
        job.update(json.loads(curl(*user, f"{base}/jobs/{job_id}"))["job"])
        return bool(job["status"] == "success")

    assert until(is_done, 60)
    url = json.loads(curl(*user, f"{base}/assets/{job['metadata']['assetIds'][0]}"))["asset"]["url"]
    curl("-o", str(tmp_path / "knight.png"), url)
    assert Image.open(io.BytesIO((tmp_path / "knight.png").read_bytes())).size == (64, 64)


def test_an_image_url_is_signed(setup: ShimSetup) -> None:
    """An image's URL without its signature or with another expiry gets 401. Another format can be requested."""
    with setup.sdk() as sdk:
        url = sdk.assets.upload(name="a.png", image=base64.b64encode(KNIGHT).decode()).asset.url
        webp = sdk.assets.download.request(sdk.assets.list(page_size=1).assets[0].id, target_format="webp")

    assert requests.get(url, timeout=60).headers["content-type"] == "image/png"
    assert requests.get(url.replace("Expires=1", "Expires=2"), timeout=60).status_code == 401
    assert requests.get(url.partition("?")[0], timeout=60).status_code == 401
    assert Image.open(io.BytesIO(requests.get(webp.url, timeout=60).content)).format == "WEBP"


def test_nothing_secret_is_logged(setup: ShimSetup) -> None:
    """The shim's log of the tests above contains neither a key, nor a secret, nor a signature."""
    log = setup.shim.log

    assert "401" in log
    for secret in (SECRET, OTHER_SECRET, KEY, "Signature", setup.worker_setup.platform.api_key):
        assert secret not in log
