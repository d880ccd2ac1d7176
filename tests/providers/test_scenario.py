"""The provider `scenario`, which uses the official SDK, with the simulated Scenario over real sockets."""

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

from bench.worker_setup import ROOT
from comfy_client.client import Client
from comfy_client.job import Queued, Running, Sampling
from comfy_client.providers.interface import JobOptions, JobState
from comfy_client.providers.scenario_responses import STATES, read_job
from comfy_core.error_codes import ErrorCode
from comfy_core.errors import ConfigError, JobError, RequestError, Unauthorized
from comfy_core.images.ai_mark import marked
from comfy_core.images.codec import identify
from simulators.scenario import KEY, MODEL, SECRET, ScenarioSimulator
from simulators.waiting import until
from tests.providers.provider_fixtures import scenario_client

pytestmark = pytest.mark.slow
SMALL: dict[str, Any] = {"width": 128, "height": 128, "steps": 4}
KNIGHT = ROOT / "examples" / "knight.png"
GENERATE = f"POST /v1/generate/custom/{MODEL}"


def test_the_simulator_passes_the_sdk_s_validation(scenario: ScenarioSimulator) -> None:
    """The official SDK in strict mode accepts the simulator's uploads, jobs, cancellations, assets and lists."""
    encoded = base64.b64encode(KNIGHT.read_bytes()).decode()
    with scenario_sdk.Scenario(
        api_key=KEY, api_secret=SECRET, base_url=scenario.url, _strict_response_validation=True
    ) as sdk:
        uploaded = sdk.assets.upload(name="knight.png", image=encoded).asset
        scenario.faults.hold_job()
        job = sdk.generate.run_model(MODEL, body={"prompt": "x", "image": uploaded.id}).job
        assert until(scenario.held_jobs)
        assert sdk.jobs.trigger_action(job.job_id, action="cancel").job.status == "canceled"
        job = sdk.generate.run_model(MODEL, body={"prompt": "x", "width": 128, "height": 128}).job
        assert until(lambda: sdk.jobs.retrieve(job.job_id).job.status == "success")
        [asset_id] = sdk.jobs.retrieve(job.job_id).job.metadata.asset_ids or []
        assert sdk.assets.retrieve(asset_id).asset.metadata.width == 128
        assert job.job_id in [each.job_id for each in sdk.jobs.list(status="success")]


def test_a_request_is_converted_to_scenario_s_parameters(
    scenario: ScenarioSimulator, client_of_scenario: Client
) -> None:
    """Inputs are sent under Scenario's names, missing ones with our defaults, and LoRAs with Scenario's ids."""
    loras = [{"name": "knight.safetensors", "strength": 0.5}]
    job = client_of_scenario.submit(prompt="a knight", guidance=2.5, num_images=3, seed=7, loras=loras, **SMALL)

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
    plain = client_of_scenario.submit(prompt="a knight")
    body = scenario.jobs[plain.id].body
    assert (body["width"], body["height"], body["numInferenceSteps"], body["guidance"]) == (1024, 1024, 20, 3.5)
    assert 0 <= body["seed"] < 2**31


def test_an_image_is_uploaded_first(scenario: ScenarioSimulator, client_of_scenario: Client) -> None:
    """The image is uploaded as an asset; the job names the asset, and has the image's size."""
    job = client_of_scenario.submit("img2img", prompt="as an oil painting", image=KNIGHT, strength=0.3)
    body = scenario.jobs[job.id].body

    assert scenario.calls == ["POST /v1/assets", GENERATE]
    assert scenario.assets[body["image"]].data == KNIGHT.read_bytes()
    with Image.open(KNIGHT) as knight:
        size = knight.size
    assert (body["width"], body["height"], body["strength"]) == (*size, 0.3)
    assert job.wait().image.size == size


def test_an_asset_id_is_accepted_as_an_image(scenario: ScenarioSimulator, client_of_scenario: Client) -> None:
    """A result's asset id can be the input image: nothing is uploaded, and the job has the asset's size."""
    generated = client_of_scenario.txt2img("a knight", width=256, height=128, steps=4).image
    before = len(scenario.assets)
    job = client_of_scenario.submit("img2img", prompt="as an oil painting", image=generated.asset_id, strength=0.3)
    body = scenario.jobs[job.id].body

    assert body["image"] == generated.asset_id
    assert (body["width"], body["height"]) == (256, 128)
    assert len(scenario.assets) == before
    assert job.wait().image.size == (256, 128)


def test_an_unknown_asset_is_an_invalid_image(client_of_scenario: Client) -> None:
    """An asset id that Scenario does not know raises invalid_image."""
    with pytest.raises(JobError, match="asset_q9GpkRcHwTx7 of Scenario cannot be used") as info:
        client_of_scenario.img2img("asset_q9GpkRcHwTx7", "as an oil painting")

    assert info.value.code is ErrorCode.INVALID_IMAGE


def test_a_result_has_its_assets_and_seeds(scenario: ScenarioSimulator, client_of_scenario: Client) -> None:
    """Images have asset id, seed and, unless disabled, metadata; the result has provider, model and durations."""
    result = client_of_scenario.txt2img("a knight", seed=7, num_images=2, **SMALL)

    assert result.provider == "scenario"
    assert [image.asset_id for image in result.images] == scenario.jobs[result.job_id].asset_ids
    assert [image.seed for image in result.images] == [7, 8]
    assert "seed: 8" in result.images[1].pil().info["parameters"]
    assert result.versions == {"scenario_model": MODEL}
    assert result.delay_s is not None
    assert 0 < (result.execution_s or 0) < 30
    assert "parameters" not in client_of_scenario.txt2img("a knight", metadata=False, **SMALL).image.pil().info


def test_another_process_has_the_same_result(scenario: ScenarioSimulator, client_of_scenario: Client) -> None:
    """Another client that opens the job by its id gets the same image; the inputs come from Scenario's record."""
    first = client_of_scenario.img2img(KNIGHT, "a knight", seed=7, **SMALL)
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
        ({"webhook": {"url": "https://example.org/"}}, "webhook"),
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
def test_unsupported_inputs_are_rejected(
    scenario: ScenarioSimulator, client_of_scenario: Client, inputs: dict[str, Any], path: str
) -> None:
    """The error is invalid_input with the path of the input, and nothing is sent."""
    with pytest.raises(JobError) as info:
        client_of_scenario.run("txt2img", **{"prompt": "a knight", **inputs})

    assert info.value.code is ErrorCode.INVALID_INPUT
    assert path in [fault["path"] for fault in info.value.report.details["faults"]]
    assert not scenario.calls


def test_all_faults_are_reported_at_once(client_of_scenario: Client) -> None:
    """One error lists all three faults."""
    with pytest.raises(JobError, match="3 faults"):
        client_of_scenario.txt2img("a knight", width=64, steps=60, sampler="dpmpp_2m")


def test_the_size_of_an_input_image_is_checked(scenario: ScenarioSimulator, client_of_scenario: Client) -> None:
    """If neither width nor height is set, an input image that is too small is rejected before it is uploaded."""
    with pytest.raises(JobError, match="width: must be from 128"):
        client_of_scenario.img2img(Image.new("RGB", (64, 64)), "a knight")

    assert not scenario.calls


def test_progress_is_reported(scenario: ScenarioSimulator, client_of_scenario: Client) -> None:
    """A waiting job is Queued, then Running; its progress is reported as steps."""
    scenario.faults.wait_in_queue(0.6)
    scenario.faults.hold_job()
    job = client_of_scenario.submit(prompt="x", **{**SMALL, "steps": 10})
    events = job.events()
    reported = [next(events), next(events), next(events)]
    scenario.faults.release()

    assert reported == [Queued(job.id), Running(None), Sampling(1, 1, 4, 10, 40)]


@pytest.mark.parametrize("status", ["pending", "queued", "warming-up", "in-progress", "finalizing", "success"])
def test_every_status_of_scenario_has_a_state(status: str) -> None:
    """Each status of Scenario has a state without an error; an unknown status counts as running."""
    found = read_job({"job": {"jobId": "j", "status": status, "progress": 0.5}})
    with_unknown_status = read_job({"job": {"jobId": "j", "status": "dreaming", "progress": "half"}})

    assert found is not None
    assert found.state is STATES[status]
    assert found.error is None
    assert with_unknown_status is not None
    assert with_unknown_status.state is JobState.RUNNING
    assert read_job({"jobId": "unwrapped", "status": status}) is None


def test_an_image_that_is_not_png_is_not_converted(scenario: ScenarioSimulator, client_of_scenario: Client) -> None:
    """If Scenario's image is a JPEG, it is returned as a JPEG, only marked, with a warning, and not as a WebP."""
    job = client_of_scenario.submit(prompt="x", output_format="webp", **SMALL)
    assert until(lambda: scenario.jobs[job.id].is_final)
    [asset_id] = scenario.jobs[job.id].asset_ids
    encoded = io.BytesIO()
    Image.new("RGB", (128, 128)).save(encoded, "JPEG")
    scenario.assets[asset_id].data = encoded.getvalue()
    result = job.wait()

    assert result.image.bytes == marked(encoded.getvalue())
    assert result.image.mime_type == "image/jpeg"
    assert any("image/jpeg" in warning for warning in result.warnings)


def test_an_image_that_is_too_large_is_not_sent(scenario: ScenarioSimulator, client_of_scenario: Client) -> None:
    """The error has the image's size, the limit and the remedy; nothing is sent."""
    noise = Image.effect_noise((2048, 2048), 90).convert("RGB")
    with pytest.raises(RequestError, match="as JPEG or WebP") as info:
        client_of_scenario.img2img(noise, "x")

    assert info.value.code is ErrorCode.PAYLOAD_TOO_LARGE
    assert info.value.report.details["bytes"] > info.value.report.details["limit"]
    assert not scenario.calls


def test_cancelling_an_ended_job_has_no_effect(client_of_scenario: Client) -> None:
    """A job that has ended keeps its result. Cancelling an unknown job raises job_expired."""
    result = client_of_scenario.txt2img("x", **SMALL)
    client_of_scenario.job(result.job_id).cancel()

    assert client_of_scenario.job(result.job_id).wait().images
    for job_id in ("job_unknown", "no id/../at all"):
        with pytest.raises(JobError) as info:
            client_of_scenario.provider.cancel(job_id)
        assert info.value.code is ErrorCode.JOB_EXPIRED


def test_retry_and_purge_are_not_supported(client_of_scenario: Client) -> None:
    """purge_queue and retry raise RequestError, because Scenario has no call for them."""
    for call in (client_of_scenario.purge_queue, client_of_scenario.job("job_x").retry):
        with pytest.raises(RequestError, match=r"Scenario (has no|cannot)"):
            call()


def test_health_checks_keys_and_model(scenario: ScenarioSimulator, client_of_scenario: Client) -> None:
    """Health counts the running jobs. The errors for a wrong key and an unknown model name the variables."""
    scenario.faults.hold_job()
    client_of_scenario.submit(prompt="x", **SMALL)
    assert until(lambda: client_of_scenario.health().jobs["inProgress"] == 1)
    assert client_of_scenario.health().why == "busy"
    assert "not Scenario's own URL" in client_of_scenario.health().sentence

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
    scenario: ScenarioSimulator, client_of_scenario: Client, caplog: pytest.LogCaptureFixture
) -> None:
    """Errors, representations and logs of any level contain neither keys nor prompts nor images."""
    caplog.set_level("DEBUG")
    client_of_scenario.img2img(KNIGHT, "a very secret castle", **SMALL)
    scenario.faults.respond("generate", 500)
    with pytest.raises(RequestError) as info:
        client_of_scenario.submit(prompt="a very secret castle")

    basic = base64.b64encode(f"{KEY}:{SECRET}".encode()).decode()
    provider = client_of_scenario.provider
    shown = f"{caplog.text} {client_of_scenario!r} {provider!r} {vars(provider)!r} {info.value!r}"
    for secret in (KEY, SECRET, basic, "secret castle", "iVBOR"):
        assert secret not in shown


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"SCENARIO_SDK_API_KEY": ""}, "SCENARIO_SDK_API_KEY is not set"),
        ({"SCENARIO_SDK_API_SECRET": " "}, "SCENARIO_SDK_API_SECRET is not set"),
        ({"SCENARIO_SDK_API_KEY": "a:b"}, r"SCENARIO_SDK_API_KEY=\(not shown\): must be an API key"),
        ({"SCENARIO_SDK_API_SECRET": "ключ"}, r"SCENARIO_SDK_API_SECRET=\(not shown\): must be an API key"),
        ({"SCENARIO_BASE_URL": "api.cloud.scenario.com"}, "SCENARIO_BASE_URL="),
        ({"SCENARIO_MODEL_ID": "a/b"}, "SCENARIO_MODEL_ID="),
        ({"SCENARIO_LORAS": "[]"}, "SCENARIO_LORAS=.* must be a JSON object of non-empty strings"),
        ({"SCENARIO_LORAS": "{"}, "SCENARIO_LORAS=.* must be a JSON object of non-empty strings"),
    ],
)
def test_an_invalid_variable_is_named(scenario: ScenarioSimulator, changes: dict[str, str], expected: str) -> None:
    """An invalid variable is a ConfigError that names it and does not show a secret."""
    with pytest.raises(ConfigError, match=expected) as info:
        scenario_client(scenario, **changes)

    assert "ключ" not in str(info.value)


def test_the_process_s_environment_is_ignored(scenario: ScenarioSimulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment is an argument: variables of this process that the SDK reads have no effect."""
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
    """Without the SDK a client of RunPod can be made; for Scenario the error has the command that installs the SDK."""
    ended = subprocess.run(
        [sys.executable, "-c", WITHOUT_SDK], capture_output=True, text=True, cwd=ROOT, timeout=60, check=True
    )

    assert "pip install '.[scenario-sdk]'" in ended.stdout


def test_an_image_can_be_saved(client_of_scenario: Client, tmp_path: Path) -> None:
    """An image is saved in a folder under its own name, in the requested format."""
    image = client_of_scenario.txt2img("x", output_format="jpeg", **SMALL).image
    saved = image.save(tmp_path)
    found = identify(saved.read_bytes())

    assert saved.name == "scenario_00001_.jpg"
    assert found is not None
    assert (found.mime_type, found.width) == ("image/jpeg", 128)
