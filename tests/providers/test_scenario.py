"""The provider `scenario`: the official SDK against the stand-in of Scenario's API, over real sockets."""

from __future__ import annotations

import base64
import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import scenario_sdk
from PIL import Image

from bench.stage import ROOT
from comfy_client.client import Client
from comfy_client.job import Queued, Running, Sampling
from comfy_client.providers.interface import JobOptions, JobState
from comfy_client.providers.scenario_responses import STATES, read_job
from comfy_core.error_codes import ErrorCode
from comfy_core.errors import ConfigError, JobError, RequestError, Unauthorized
from comfy_core.images.codec import identify
from simulators.scenario import KEY, MODEL, SECRET, ScenarioStandIn
from simulators.waiting import until
from tests.providers.provider_fixtures import scenario_client

pytestmark = pytest.mark.slow
SMALL: dict[str, Any] = {"width": 128, "height": 128, "steps": 4}
KNIGHT = ROOT / "examples" / "knight.png"
GENERATE = f"POST /v1/generate/custom/{MODEL}"


def test_the_stand_in_speaks_as_scenario_does(scenario: ScenarioStandIn) -> None:
    """Its records pass the strict validation of the official SDK: job, asset, upload, list and cancel."""
    picture = base64.b64encode(KNIGHT.read_bytes()).decode()
    with scenario_sdk.Scenario(
        api_key=KEY, api_secret=SECRET, base_url=scenario.url, _strict_response_validation=True
    ) as sdk:
        uploaded = sdk.assets.upload(name="knight.png", image=picture).asset
        scenario.faults.hold_job()
        job = sdk.generate.run_model(MODEL, body={"prompt": "x", "image": uploaded.id}).job
        assert until(scenario.held)
        assert sdk.jobs.trigger_action(job.job_id, action="cancel").job.status == "canceled"
        job = sdk.generate.run_model(MODEL, body={"prompt": "x", "width": 128, "height": 128}).job
        assert until(lambda: sdk.jobs.retrieve(job.job_id).job.status == "success")
        [asset_id] = sdk.jobs.retrieve(job.job_id).job.metadata.asset_ids or []
        assert sdk.assets.retrieve(asset_id).asset.metadata.width == 128
        assert job.job_id in [each.job_id for each in sdk.jobs.list(status="success")]


def test_a_request_is_sent_in_scenario_s_words(scenario: ScenarioStandIn, at_scenario: Client) -> None:
    """Every input has its name there, what was left open has our default, and LoRAs go by Scenario's ids."""
    loras = [{"name": "knight.safetensors", "strength": 0.5}]
    job = at_scenario.submit(prompt="a knight", guidance=2.5, num_images=3, seed=7, loras=loras, **SMALL)

    assert scenario.jobs[job.id].body == {
        "prompt": "a knight",
        "numOutputs": 3,
        "numInferenceSteps": 4,
        "width": 128,
        "height": 128,
        "guidance": 2.5,
        "seed": 7,
        "loras": ["model_knight"],
        "lorasScale": [0.5],
    }
    plain = at_scenario.submit(prompt="a knight")
    body = scenario.jobs[plain.id].body
    assert (body["width"], body["height"], body["numInferenceSteps"], body["guidance"]) == (1024, 1024, 20, 3.5)
    assert 0 <= body["seed"] < 2**31


def test_a_picture_is_uploaded_first(scenario: ScenarioStandIn, at_scenario: Client) -> None:
    """The job names the asset that the picture became, whose bytes are the caller's, and takes its size."""
    job = at_scenario.submit("img2img", prompt="as an oil painting", image=KNIGHT, strength=0.3)
    body = scenario.jobs[job.id].body

    assert scenario.calls == ["POST /v1/assets", GENERATE]
    assert scenario.assets[body["image"]].data == KNIGHT.read_bytes()
    with Image.open(KNIGHT) as knight:
        size = knight.size
    assert (body["width"], body["height"], body["strength"]) == (*size, 0.3)
    assert job.wait().image.size == size


def test_an_asset_is_named_by_its_id(scenario: ScenarioStandIn, at_scenario: Client) -> None:
    """The id that a result returned is a picture to start from: nothing is uploaded, and the job has its size."""
    made = at_scenario.txt2img("a knight", width=256, height=128, steps=4).image
    before = len(scenario.assets)
    job = at_scenario.submit("img2img", prompt="as an oil painting", image=made.asset_id, strength=0.3)
    body = scenario.jobs[job.id].body

    assert body["image"] == made.asset_id
    assert (body["width"], body["height"]) == (256, 128)
    assert len(scenario.assets) == before
    assert job.wait().image.size == (256, 128)


def test_an_asset_that_scenario_does_not_have_is_said(at_scenario: Client) -> None:
    """An id of the shim, or of nobody, is refused as the image that it is not; no job begins."""
    with pytest.raises(JobError, match="asset_q9GpkRcHwTx7 of Scenario cannot be used") as refused:
        at_scenario.img2img("asset_q9GpkRcHwTx7", "as an oil painting")

    assert refused.value.code is ErrorCode.INVALID_IMAGE


def test_a_result_has_its_assets_and_seeds(scenario: ScenarioStandIn, at_scenario: Client) -> None:
    """Each picture has its asset's id and seed, its file tells the inputs, and the result who made it, and how long."""
    result = at_scenario.txt2img("a knight", seed=7, num_images=2, **SMALL)

    assert result.provider == "scenario"
    assert [image.asset_id for image in result.images] == scenario.jobs[result.job_id].asset_ids
    assert [image.seed for image in result.images] == [7, 8]
    assert "seed: 8" in result.images[1].pil().info["parameters"]
    assert result.versions == {"scenario_model": MODEL}
    assert result.delay_s is not None
    assert 0 < (result.execution_s or 0) < 30
    assert "parameters" not in at_scenario.txt2img("a knight", metadata=False, **SMALL).image.pil().info


def test_another_process_has_the_same_result(scenario: ScenarioStandIn, at_scenario: Client) -> None:
    """A job's id leads to its result where nobody remembers the request: Scenario's own record has the inputs."""
    first = at_scenario.img2img(KNIGHT, "a knight", seed=7, **SMALL)
    with scenario_client(scenario) as other:
        again = other.job(first.job_id).wait()

    assert (again.image.seed, again.image.asset_id) == (7, first.image.asset_id)
    assert (again.workflow, again.seed) == ("flux-dev-img2img", 7)
    assert again.inputs.items() <= first.inputs.items()
    assert again.image.pil().tobytes() == first.image.pil().tobytes()


@pytest.mark.parametrize(
    ("inputs", "path"),
    [
        ({"overrides": {"KSampler.seed": 1}}, "overrides"),
        ({"delivery": "s3"}, "delivery"),
        ({"timeout_s": 30}, "timeout_s"),
        ({"sampler": "dpmpp_2m"}, "sampler"),
        ({"scheduler": "karras"}, "scheduler"),
        ({"negative_prompt": "rust", "negative_strength": 1}, "negative_prompt"),
        ({"prompt": "x" * 2049}, "prompt"),
        ({"width": 64}, "width"),
        ({"steps": 51}, "steps"),
        ({"guidance": 11}, "guidance"),
        ({"num_images": 5}, "num_images"),
        ({"seed": 2**31}, "seed"),
        ({"loras": [{"name": "other.safetensors"}]}, "loras[0].name"),
        ({"loras": [{"name": "knight.safetensors", "strength": -1}]}, "loras[0].strength"),
        ({"loras": [{"name": "knight.safetensors"}] * 7}, "loras"),
        ({"options": JobOptions(low_priority=True)}, "options.low_priority"),
        ({"options": JobOptions(webhook="https://example.org/")}, "options.webhook"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_scenario_cannot_do_is_refused(
    scenario: ScenarioStandIn, at_scenario: Client, inputs: dict[str, Any], path: str
) -> None:
    """It is invalid_input that names the path, before anything is sent."""
    with pytest.raises(JobError) as info:
        at_scenario.run("txt2img", **{"prompt": "a knight", **inputs})

    assert info.value.code is ErrorCode.INVALID_INPUT
    assert path in [fault["path"] for fault in info.value.report.details["faults"]]
    assert not scenario.calls


def test_all_faults_are_told_at_once(at_scenario: Client) -> None:
    """One error lists everything."""
    with pytest.raises(JobError, match="3 faults"):
        at_scenario.txt2img("a knight", width=64, steps=60, sampler="dpmpp_2m")


def test_a_size_that_a_picture_gives_is_checked_too(scenario: ScenarioStandIn, at_scenario: Client) -> None:
    """A small picture, and nothing said of the size: that is refused before it is uploaded."""
    with pytest.raises(JobError, match="width: must be from 128"):
        at_scenario.img2img(Image.new("RGB", (64, 64)), "a knight")

    assert not scenario.calls


def test_progress_is_told(scenario: ScenarioStandIn, at_scenario: Client) -> None:
    """A job that waits is queued whatever it is called, and one that runs tells its share as steps."""
    scenario.faults.wait_in_queue(0.6)
    scenario.faults.hold_job()
    job = at_scenario.submit(prompt="x", **{**SMALL, "steps": 10})
    events = job.events()
    told = [next(events), next(events), next(events)]
    scenario.faults.go_on()

    assert told == [Queued(job.id), Running(None), Sampling(1, 1, 4, 10, 40)]


@pytest.mark.parametrize("status", ["pending", "queued", "warming-up", "in-progress", "finalizing", "success"])
def test_the_statuses_of_scenario_are_ours(status: str) -> None:
    """Each has its state; an unknown one counts as running."""
    found = read_job({"job": {"jobId": "j", "status": status, "progress": 0.5}})
    strange = read_job({"job": {"jobId": "j", "status": "dreaming", "progress": "half"}})

    assert found is not None
    assert found.state is STATES[status]
    assert found.error is None
    assert strange is not None
    assert strange.state is JobState.RUNNING
    assert read_job({"jobId": "unwrapped", "status": status}) is None


def test_a_picture_of_another_kind_is_left_as_it_is(scenario: ScenarioStandIn, at_scenario: Client) -> None:
    """Only PNG is encoded anew; a JPEG stays one, and a warning says so."""
    job = at_scenario.submit(prompt="x", output_format="webp", **SMALL)
    assert until(lambda: scenario.jobs[job.id].is_final)
    [asset_id] = scenario.jobs[job.id].asset_ids
    encoded = io.BytesIO()
    Image.new("RGB", (128, 128)).save(encoded, "JPEG")
    scenario.assets[asset_id].data = encoded.getvalue()
    result = job.wait()

    assert result.image.bytes == encoded.getvalue()
    assert result.image.mime_type == "image/jpeg"
    assert any("image/jpeg" in warning for warning in result.warnings)


def test_a_picture_that_is_too_large_is_not_sent(scenario: ScenarioStandIn, at_scenario: Client) -> None:
    """It is told with its size and the limit, and what helps."""
    noise = Image.effect_noise((2048, 2048), 90).convert("RGB")
    with pytest.raises(RequestError, match="as JPEG or WebP") as info:
        at_scenario.img2img(noise, "x")

    assert info.value.code is ErrorCode.PAYLOAD_TOO_LARGE
    assert info.value.report.details["bytes"] > info.value.report.details["limit"]
    assert not scenario.calls


def test_a_job_that_has_ended_stays_as_it_is(at_scenario: Client) -> None:
    """Cancelling it changes nothing; cancelling a stranger is job_expired."""
    result = at_scenario.txt2img("x", **SMALL)
    at_scenario.job(result.job_id).cancel()

    assert at_scenario.job(result.job_id).wait().images
    for job_id in ("job_unknown", "no id/../at all"):
        with pytest.raises(JobError) as info:
            at_scenario.provider.cancel(job_id)
        assert info.value.code is ErrorCode.JOB_EXPIRED


def test_what_there_is_no_call_for_is_said(at_scenario: Client) -> None:
    """Scenario has neither retry nor purge."""
    for ask in (at_scenario.purge_queue, at_scenario.job("job_x").retry):
        with pytest.raises(RequestError, match=r"Scenario (has no|cannot)"):
            ask()


def test_health_proves_keys_and_model(scenario: ScenarioStandIn, at_scenario: Client) -> None:
    """It counts the project's jobs; a wrong key, and a model that is none, are told by the variable."""
    scenario.faults.hold_job()
    at_scenario.submit(prompt="x", **SMALL)
    assert until(lambda: at_scenario.health().jobs["inProgress"] == 1)
    assert at_scenario.health().why == "busy"
    assert "not Scenario's own URL" in at_scenario.health().sentence

    with (
        scenario_client(scenario, SCENARIO_SDK_API_KEY="wrong") as other,
        pytest.raises(Unauthorized, match="SCENARIO_SDK_API_"),
    ):
        other.health()
    with (
        scenario_client(scenario, SCENARIO_MODEL_ID="model_other") as other,
        pytest.raises(RequestError, match="MODEL_ID") as info,
    ):
        other.health()
    assert info.value.code is ErrorCode.ENDPOINT_NOT_FOUND


def test_nothing_secret_is_shown(
    scenario: ScenarioStandIn, at_scenario: Client, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither keys nor prompts nor pictures are in errors, representations and logs, whatever is logged."""
    caplog.set_level("DEBUG")
    at_scenario.img2img(KNIGHT, "a very secret castle", **SMALL)
    scenario.faults.respond("generate", 500)
    with pytest.raises(RequestError) as info:
        at_scenario.submit(prompt="a very secret castle")

    basic = base64.b64encode(f"{KEY}:{SECRET}".encode()).decode()
    shown = f"{caplog.text} {at_scenario!r} {at_scenario.provider!r} {vars(at_scenario.provider)!r} {info.value!r}"
    for secret in (KEY, SECRET, basic, "secret castle", "iVBOR"):
        assert secret not in shown


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"SCENARIO_SDK_API_KEY": ""}, "SCENARIO_SDK_API_KEY is not set"),
        ({"SCENARIO_SDK_API_SECRET": " "}, "SCENARIO_SDK_API_SECRET is not set"),
        ({"SCENARIO_SDK_API_KEY": "a:b"}, "SCENARIO_SDK_API_KEY is not"),
        ({"SCENARIO_SDK_API_SECRET": "ключ"}, "SCENARIO_SDK_API_SECRET is not"),
        ({"SCENARIO_BASE_URL": "api.cloud.scenario.com"}, "SCENARIO_BASE_URL="),
        ({"SCENARIO_MODEL_ID": "a/b"}, "SCENARIO_MODEL_ID="),
        ({"SCENARIO_LORAS": "[]"}, "SCENARIO_LORAS=.* must be a JSON object of non-empty strings"),
        ({"SCENARIO_LORAS": "{"}, "SCENARIO_LORAS=.* must be a JSON object of non-empty strings"),
    ],
)
def test_a_wrong_variable_is_named(scenario: ScenarioStandIn, changes: dict[str, str], said: str) -> None:
    """What cannot be right is told before anything is sent, and no secret with it."""
    with pytest.raises(ConfigError, match=said) as info:
        scenario_client(scenario, **changes)

    assert "ключ" not in str(info.value)


def test_the_variables_of_the_process_do_not_count(scenario: ScenarioStandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment is an argument: the SDK's own variables of this process change nothing."""
    monkeypatch.setenv("SCENARIO_SDK_JWT", "another")
    monkeypatch.setenv("SCENARIO_SDK_API_KEY", "another")
    monkeypatch.setenv("SCENARIO_BASE_URL", "http://127.0.0.1:9/v1")
    with scenario_client(scenario) as client:
        assert client.health().why == "idle"


WITHOUT_SDK = """
import os, sys
from comfy_client.client import client_from_env
from comfy_core.errors import ConfigError
os.environ.clear()
sys.modules["scenario_sdk"] = sys.modules["httpx"] = None
runpod = {"RUNPOD_API_KEY": "k", "RUNPOD_ENDPOINT_ID": "e"}
client_from_env(runpod).close()
try:
    scenario = {"SCENARIO_SDK_API_KEY": "k", "SCENARIO_SDK_API_SECRET": "s"}
    client_from_env({**runpod, **scenario, "IMAGE_GENERATION_PROVIDER": "scenario"})
except ConfigError as error:
    print(error)
"""


def test_the_sdk_is_an_extra() -> None:
    """Without it the other providers work, and this one names the command that installs it."""
    ended = subprocess.run(
        [sys.executable, "-c", WITHOUT_SDK], capture_output=True, text=True, cwd=ROOT, timeout=60, check=True
    )

    assert "pip install '.[scenario-sdk]'" in ended.stdout


def test_an_asset_can_be_saved(at_scenario: Client, tmp_path: Path) -> None:
    """A picture is saved under its own name, and is what it says."""
    image = at_scenario.txt2img("x", output_format="jpeg", **SMALL).image
    saved = image.save(tmp_path)
    found = identify(saved.read_bytes())

    assert saved.name == "scenario_00001_.jpg"
    assert found is not None
    assert (found.mime_type, found.width) == ("image/jpeg", 128)
