"""ScenarioShim: Scenario's calls as methods in this process, with a simulated RunPod."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from comfy_client.client import client_from_env
from comfy_client.gateway.scenario import ScenarioShim, ShimError
from comfy_client.gateway.scenario.page.search import JobSearch
from comfy_client.gateway.scenario.settings import ShimSettings
from simulators.runpod.queue_api import RunPodPlatform
from simulators.runpod.scripted_worker import Body, ScriptedWorker, image_result, png
from tests.fakes.s3 import ACCESS_KEY_ID, SECRET_ACCESS_KEY, S3Server


@pytest.fixture
def platform() -> Iterator[RunPodPlatform]:
    """An endpoint whose worker returns a small image for each job, which depends on the seed."""
    with RunPodPlatform(long_poll_s=0.5) as platform, ScriptedWorker(platform, image_result, threads=2):
        yield platform


@pytest.fixture
def shim(platform: RunPodPlatform, tmp_path: Path) -> Iterator[ScenarioShim]:
    """A shim in this process, with an empty folder."""
    with ScenarioShim(client_from_env(platform.client_env()), ShimSettings(tmp_path / "shim")) as shim:
        yield shim


def test_a_prompt_becomes_an_asset(shim: ScenarioShim, tmp_path: Path) -> None:
    """A call has a cost and starts a job, which ends with `success`; its asset can be downloaded and has the seed."""
    response = shim.generate_txt2img({"prompt": "a knight", "seed": "7"})
    job = shim.wait_for_job(response["job"]["jobId"], 20)
    [asset_id] = job["metadata"]["assetIds"]

    assert response["creativeUnitsCost"] > 0
    assert job["status"] == "success"
    assert shim.download_asset(asset_id, tmp_path / "knight.png") == png(8, 7) == (tmp_path / "knight.png").read_bytes()
    assert shim.get_asset(asset_id)["metadata"]["seed"] == "7"


def test_a_job_has_the_cost_of_its_result(tmp_path: Path) -> None:
    """`billing` has the result's cost, in US dollars and in units, and the owner's total is the sum of these costs."""

    def priced_result(job: Body) -> Body:
        result = image_result(job)
        return {"output": {**result["output"], "cost": 0.015 if job["input"]["seed"] else None}}

    with (
        RunPodPlatform(long_poll_s=0.5) as platform,
        ScriptedWorker(platform, priced_result, threads=2),
        ScenarioShim(client_from_env(platform.client_env()), ShimSettings(tmp_path / "shim")) as shim,
    ):
        calls = [shim.generate_txt2img({"prompt": "a knight", "seed": seed}) for seed in ("0", "1", "2")]
        billing = [shim.wait_for_job(call["job"]["jobId"], 20)["billing"] for call in calls]
    total = asyncio.run(JobSearch(tmp_path / "shim" / "shim.sqlite3").costs(None))

    assert billing[0] == {"cuCost": 0, "cuDiscount": 0, "usd": None}
    assert billing[1] == billing[2] == {"cuCost": 2, "cuDiscount": 0, "usd": 0.015}
    assert (total.own_jobs, total.usd) == (3, 0.03)


def test_an_uploaded_image_can_be_the_input(shim: ScenarioShim, platform: RunPodPlatform) -> None:
    """With an asset id as `image`, the request to the endpoint is img2img with an image."""
    asset = shim.upload_asset(png(64, 3), "knight.png")
    job = shim.generate_img2img({"prompt": "as an oil painting", "image": asset["id"], "strength": 0.5})["job"]

    assert shim.wait_for_job(job["jobId"], 20)["status"] == "success"
    [sent] = platform.jobs.values()
    assert isinstance(sent.input, dict)
    assert sent.input["workflow"] == "img2img"
    assert sent.input["strength"] == 0.5
    assert sent.input["image"]


def test_all_faults_are_reported_at_once(shim: ScenarioShim, platform: RunPodPlatform) -> None:
    """An invalid call is rejected with 400 and every fault, and nothing is sent."""
    with pytest.raises(ShimError, match=r"(?s)width.*numSamples") as info:
        shim.generate_txt2img({"prompt": "x", "width": 7, "numSamples": 90})

    assert info.value.status == 400
    assert not platform.submissions


def test_images_are_stored_in_the_bucket_that_the_environment_names(platform: RunPodPlatform, tmp_path: Path) -> None:
    """With SCENARIO_SHIM_BUCKET_PREFIX, images are stored under that prefix and not in the folder."""
    with S3Server() as s3:
        environment = {
            **platform.client_env(),
            "SCENARIO_SHIM_DATA_DIR": str(tmp_path),
            "SCENARIO_SHIM_BUCKET_PREFIX": "/shim/",
            "BUCKET_ENDPOINT_URL": s3.url,
            "BUCKET_NAME": "pictures",
            "BUCKET_ACCESS_KEY_ID": ACCESS_KEY_ID,
            "BUCKET_SECRET_ACCESS_KEY": SECRET_ACCESS_KEY,
        }
        with ScenarioShim.from_env(environment) as shim:
            asset = shim.upload_asset(png(8, 7), "knight.png")
            assert shim.download_asset(asset["id"]) == png(8, 7)
        stored = s3.stored()

    assert stored == [f"shim/{hashlib.sha256(png(8, 7)).hexdigest()}"]
    assert not (tmp_path / "pictures").exists()
