"""The provider `scenario`: the official SDK against the stand-in of Scenario's API, over real sockets."""

from __future__ import annotations

import base64
import io
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import scenario_sdk
from PIL import Image

from comfy_client.client import Client, client_from_env
from comfy_client.contract import ErrorCode
from comfy_client.errors import ComfyClientError, ConfigError, JobError, RequestError, Unauthorized
from comfy_client.images import identify
from comfy_client.job import Queued, Running, Sampling, Unanswered
from comfy_client.providers.interface import JobOptions, JobState
from comfy_client.providers.scenario_answers import STATES, read_job
from tests.fakes.gate import Gate
from tests.fakes.scenario_api import KEY, MODEL, SECRET, ScenarioStandIn
from tests.stage import ROOT
from tests.waiting import until

SMALL: dict[str, Any] = {"width": 128, "height": 128, "steps": 4}
KNIGHT = ROOT / "examples" / "knight.png"
LORAS = {"SCENARIO_LORAS": '{"knight.safetensors": "model_knight"}'}
GENERATE = f"POST /v1/generate/custom/{MODEL}"


@pytest.fixture(scope="module")
def world() -> Iterator[ScenarioStandIn]:
    """One Scenario for all tests of this file."""
    with ScenarioStandIn(run_s=0.05) as scenario:
        yield scenario


@pytest.fixture
def scenario(world: ScenarioStandIn) -> Iterator[ScenarioStandIn]:
    """Scenario, well and with nothing under way."""
    yield world
    world.faults.clear()
    assert until(lambda: not world.under_way())
    world.calls.clear()


@pytest.fixture
def client(scenario: ScenarioStandIn) -> Iterator[Client]:
    """The client of it."""
    with made(scenario) as client:
        yield client


def made(scenario: ScenarioStandIn, **changes: str) -> Client:
    """Return a client of the stand-in, with other variables."""
    environment = {"IMAGE_GENERATION_PROVIDER": "scenario", **scenario.client_env(), **LORAS, **changes}
    return client_from_env(environment, timeout_s=30.0)


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


def test_a_request_is_sent_in_scenario_s_words(scenario: ScenarioStandIn, client: Client) -> None:
    """Every input has its name there, what was left open has our default, and LoRAs go by Scenario's ids."""
    loras = [{"name": "knight.safetensors", "strength": 0.5}]
    job = client.submit(prompt="a knight", guidance=2.5, num_images=3, seed=7, loras=loras, **SMALL)

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
    plain = client.submit(prompt="a knight")
    body = scenario.jobs[plain.id].body
    assert (body["width"], body["height"], body["numInferenceSteps"], body["guidance"]) == (1024, 1024, 20, 3.5)
    assert 0 <= body["seed"] < 2**31


def test_a_picture_is_uploaded_first(scenario: ScenarioStandIn, client: Client) -> None:
    """The job names the asset that the picture became, whose bytes are the caller's, and takes its size."""
    job = client.submit("img2img", prompt="as an oil painting", image=KNIGHT, strength=0.3)
    body = scenario.jobs[job.id].body

    assert scenario.calls == ["POST /v1/assets", GENERATE]
    assert scenario.assets[body["image"]].data == KNIGHT.read_bytes()
    with Image.open(KNIGHT) as knight:
        size = knight.size
    assert (body["width"], body["height"], body["strength"]) == (*size, 0.3)
    assert job.wait().image.size == size


def test_a_result_has_its_assets_and_seeds(scenario: ScenarioStandIn, client: Client) -> None:
    """Each picture has its asset's id and seed, its file tells the inputs, and the result who made it, and how long."""
    result = client.txt2img("a knight", seed=7, num_images=2, **SMALL)

    assert result.provider == "scenario"
    assert [image.asset_id for image in result.images] == scenario.jobs[result.job_id].asset_ids
    assert [image.seed for image in result.images] == [7, 8]
    assert "seed: 8" in result.images[1].pil().info["parameters"]
    assert result.versions == {"scenario_model": MODEL}
    assert result.delay_s is not None
    assert 0 < (result.execution_s or 0) < 30
    assert "parameters" not in client.txt2img("a knight", metadata=False, **SMALL).image.pil().info


def test_another_process_has_the_same_result(scenario: ScenarioStandIn, client: Client) -> None:
    """A job's id leads to its result where nobody remembers the request: Scenario's own record has the inputs."""
    first = client.img2img(KNIGHT, "a knight", seed=7, **SMALL)
    with made(scenario) as other:
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
    scenario: ScenarioStandIn, client: Client, inputs: dict[str, Any], path: str
) -> None:
    """It is invalid_input that names the path, before anything is sent."""
    with pytest.raises(JobError) as info:
        client.run("txt2img", **{"prompt": "a knight", **inputs})

    assert info.value.code is ErrorCode.INVALID_INPUT
    assert path in [fault["path"] for fault in info.value.report.details["faults"]]
    assert not scenario.calls


def test_all_faults_are_told_at_once(client: Client) -> None:
    """One error lists everything."""
    with pytest.raises(JobError, match="3 faults"):
        client.txt2img("a knight", width=64, steps=60, sampler="dpmpp_2m")


def test_a_size_that_a_picture_gives_is_checked_too(scenario: ScenarioStandIn, client: Client) -> None:
    """A small picture, and nothing said of the size: that is refused before it is uploaded."""
    with pytest.raises(JobError, match="width: must be from 128"):
        client.img2img(Image.new("RGB", (64, 64)), "a knight")

    assert not scenario.calls


STATUSES: dict[int, tuple[type[ComfyClientError], ErrorCode]] = {
    400: (JobError, ErrorCode.INVALID_INPUT),
    401: (Unauthorized, ErrorCode.AUTH_FAILED),
    402: (RequestError, ErrorCode.AUTH_FAILED),
    403: (Unauthorized, ErrorCode.AUTH_FAILED),
    404: (RequestError, ErrorCode.ENDPOINT_NOT_FOUND),
    408: (RequestError, ErrorCode.NETWORK),
    409: (RequestError, ErrorCode.NETWORK),
    413: (RequestError, ErrorCode.PAYLOAD_TOO_LARGE),
    418: (RequestError, ErrorCode.NETWORK),
    422: (JobError, ErrorCode.INVALID_INPUT),
    429: (RequestError, ErrorCode.RATE_LIMITED),
    500: (RequestError, ErrorCode.NETWORK),
    503: (RequestError, ErrorCode.NETWORK),
}
"""All that the SDK has an exception of its own for, and more."""


@pytest.mark.parametrize("status", STATUSES)
def test_a_submit_that_is_answered_badly_is_never_sent_again(
    scenario: ScenarioStandIn, client: Client, status: int
) -> None:
    """Whatever the status, there is one call, and an error of ours with Scenario's words and the trace in it."""
    scenario.faults.answer("generate", status)
    kind, code = STATUSES[status]
    with pytest.raises(kind, match=rf"{status} \(because of the moon; trace trace_") as info:
        client.submit(prompt="x")

    assert info.value.code is code
    assert scenario.calls == [GENERATE]
    if code is ErrorCode.NETWORK:
        assert info.value.report.details["may_run"] is (status >= 500)


@pytest.mark.parametrize("is_handled", [True, False])
def test_a_submit_without_an_answer_may_run(scenario: ScenarioStandIn, client: Client, *, is_handled: bool) -> None:
    """A connection that is lost leaves it open whether a job runs: it is said, and not sent again."""
    before = scenario.submissions
    scenario.faults.drop_connection("generate", after_handling=is_handled)
    with pytest.raises(RequestError, match="not sent again") as info:
        client.submit(prompt="x", **SMALL)

    assert info.value.report.details["may_run"] is True
    assert scenario.submissions - before == is_handled
    assert scenario.calls == [GENERATE]


def test_where_nobody_listens_nothing_may_run(scenario: ScenarioStandIn) -> None:
    """No connection was made: the job surely does not run."""
    with (
        Gate(scenario.url) as gate,
        made(scenario, SCENARIO_BASE_URL=gate.url) as client,
        pytest.raises(RequestError) as info,
    ):
        client.submit(prompt="x")

    assert info.value.is_unsent
    assert info.value.report.details["may_run"] is False


def test_an_answer_that_is_no_json_is_told(scenario: ScenarioStandIn, client: Client) -> None:
    """A page in place of an answer names the address; the submit may have arrived."""
    scenario.faults.answer("generate", 200, body="<html>hello</html>")
    with pytest.raises(RequestError, match="is http://127") as info:
        client.submit(prompt="x")

    assert info.value.report.details["may_run"] is True


def test_too_many_requests_say_how_long(scenario: ScenarioStandIn, client: Client) -> None:
    """`remainingSeconds` of a 429 is there for who sends again, at most half a minute."""
    waits = []
    for seconds in (12, 3600):
        scenario.faults.throttle(seconds)
        with pytest.raises(RequestError) as info:
            client.submit(prompt="x")
        waits.append(info.value.retry_after_s)

    assert waits == [12, 30]
    assert info.value.is_transient


def test_questions_are_asked_again(scenario: ScenarioStandIn, client: Client) -> None:
    """A job is followed past 503 and lost connections; its asset and its picture are fetched past them too."""
    job = client.submit(prompt="x", **SMALL)
    scenario.faults.answer("job", 503)
    scenario.faults.drop_connection("job")
    scenario.faults.answer("asset", 500)
    scenario.faults.answer("picture", 503)
    told = [type(event) for event in job.events()]

    assert told.count(Unanswered) >= 2
    assert scenario.calls.count(GENERATE) == 1
    assert job.result().images


def test_progress_is_told(scenario: ScenarioStandIn, client: Client) -> None:
    """A job that waits is queued whatever it is called, and one that runs tells its share as steps."""
    scenario.faults.wait_in_line(0.6)
    scenario.faults.hold_job()
    job = client.submit(prompt="x", **{**SMALL, "steps": 10})
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


def test_a_job_that_failed_says_why(scenario: ScenarioStandIn, client: Client) -> None:
    """Scenario's sentence and hint are the error's."""
    scenario.faults.fail_job("The prompt was moderated", "Change it")
    with pytest.raises(JobError, match=r"The prompt was moderated \(Change it\)") as info:
        client.txt2img("x", **SMALL)

    assert info.value.code is ErrorCode.EXECUTION_FAILED


def test_a_job_without_a_picture_is_no_output(scenario: ScenarioStandIn, client: Client) -> None:
    """It ended well and has nothing."""
    scenario.faults.lose_assets()
    with pytest.raises(JobError) as info:
        client.txt2img("x", **SMALL)

    assert info.value.code is ErrorCode.NO_OUTPUT


def test_a_damaged_picture_is_fetched_again(scenario: ScenarioStandIn, client: Client) -> None:
    """Half a picture is none: it is fetched once more, and then lost."""
    scenario.faults.cut_picture()
    assert client.txt2img("x", **SMALL).image.pil().size == (128, 128)
    scenario.faults.cut_picture(times=2)
    with pytest.raises(JobError, match="damaged") as info:
        client.txt2img("x", **SMALL)

    assert info.value.code is ErrorCode.RESULT_LOST


@pytest.mark.parametrize(("route", "status"), [("asset", 404), ("picture", 403)])
def test_a_picture_that_is_gone_is_lost(
    scenario: ScenarioStandIn,
    client: Client,
    route: Any,  # noqa: ANN401 - a Literal
    status: int,
) -> None:
    """An asset that was deleted, and an address that has expired, are result_lost."""
    scenario.faults.answer(route, status)
    with pytest.raises(JobError, match="is gone") as info:
        client.txt2img("x", **SMALL)

    assert info.value.code is ErrorCode.RESULT_LOST


def test_a_picture_of_another_kind_is_left_as_it_is(scenario: ScenarioStandIn, client: Client) -> None:
    """Only PNG is encoded anew; a JPEG stays one, and a warning says so."""
    job = client.submit(prompt="x", output_format="webp", **SMALL)
    assert until(lambda: scenario.jobs[job.id].is_final)
    [asset_id] = scenario.jobs[job.id].asset_ids
    encoded = io.BytesIO()
    Image.new("RGB", (128, 128)).save(encoded, "JPEG")
    scenario.assets[asset_id].data = encoded.getvalue()
    result = job.wait()

    assert result.image.bytes == encoded.getvalue()
    assert result.image.mime_type == "image/jpeg"
    assert any("image/jpeg" in warning for warning in result.warnings)


def test_a_picture_that_is_too_large_is_not_sent(scenario: ScenarioStandIn, client: Client) -> None:
    """It is told with its size and the limit, and what helps."""
    noise = Image.effect_noise((2048, 2048), 90).convert("RGB")
    with pytest.raises(RequestError, match="as JPEG or WebP") as info:
        client.img2img(noise, "x")

    assert info.value.code is ErrorCode.PAYLOAD_TOO_LARGE
    assert info.value.report.details["bytes"] > info.value.report.details["limit"]
    assert not scenario.calls


def test_a_job_that_has_ended_stays_as_it_is(client: Client) -> None:
    """Cancelling it changes nothing; cancelling a stranger is job_expired."""
    result = client.txt2img("x", **SMALL)
    client.job(result.job_id).cancel()

    assert client.job(result.job_id).wait().images
    for job_id in ("job_unknown", "no id/../at all"):
        with pytest.raises(JobError) as info:
            client.provider.cancel(job_id)
        assert info.value.code is ErrorCode.JOB_EXPIRED


def test_what_there_is_no_call_for_is_said(client: Client) -> None:
    """Scenario has neither retry nor purge."""
    for ask in (client.purge_queue, client.job("job_x").retry):
        with pytest.raises(RequestError, match="Scenario has no"):
            ask()


def test_health_proves_keys_and_model(scenario: ScenarioStandIn, client: Client) -> None:
    """It counts the project's jobs; a wrong key, and a model that is none, are told by the variable."""
    scenario.faults.hold_job()
    client.submit(prompt="x", **SMALL)
    assert until(lambda: client.health().jobs["inProgress"] == 1)
    assert client.health().why == "busy"
    assert "not Scenario's own address" in client.health().sentence

    with (
        made(scenario, SCENARIO_SDK_API_KEY="wrong") as other,
        pytest.raises(Unauthorized, match="SCENARIO_SDK_API_"),
    ):
        other.health()
    with (
        made(scenario, SCENARIO_MODEL_ID="model_other") as other,
        pytest.raises(RequestError, match="MODEL_ID") as info,
    ):
        other.health()
    assert info.value.code is ErrorCode.ENDPOINT_NOT_FOUND


def test_nothing_secret_is_shown(scenario: ScenarioStandIn, client: Client, caplog: pytest.LogCaptureFixture) -> None:
    """Neither keys nor prompts nor pictures are in errors, representations and logs, whatever is logged."""
    caplog.set_level("DEBUG")
    client.img2img(KNIGHT, "a very secret castle", **SMALL)
    scenario.faults.answer("generate", 500)
    with pytest.raises(RequestError) as info:
        client.submit(prompt="a very secret castle")

    basic = base64.b64encode(f"{KEY}:{SECRET}".encode()).decode()
    shown = f"{caplog.text} {client!r} {client.provider!r} {vars(client.provider)!r} {info.value!r}"
    for secret in (KEY, SECRET, basic, "secret castle", "iVBOR"):
        assert secret not in shown


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"SCENARIO_SDK_API_KEY": ""}, "SCENARIO_SDK_API_KEY is not set"),
        ({"SCENARIO_SDK_API_SECRET": " "}, "SCENARIO_SDK_API_SECRET is not set"),
        ({"SCENARIO_SDK_API_KEY": "a:b"}, "SCENARIO_SDK_API_KEY is none"),
        ({"SCENARIO_SDK_API_SECRET": "ключ"}, "SCENARIO_SDK_API_SECRET is none"),
        ({"SCENARIO_BASE_URL": "api.cloud.scenario.com"}, "SCENARIO_BASE_URL="),
        ({"SCENARIO_MODEL_ID": "a/b"}, "SCENARIO_MODEL_ID="),
        ({"SCENARIO_LORAS": "[]"}, "SCENARIO_LORAS is no JSON object"),
        ({"SCENARIO_LORAS": "{"}, "SCENARIO_LORAS is no JSON object"),
    ],
)
def test_a_wrong_variable_is_named(scenario: ScenarioStandIn, changes: dict[str, str], said: str) -> None:
    """What cannot be right is told before anything is sent, and no secret with it."""
    with pytest.raises(ConfigError, match=said) as info:
        made(scenario, **changes)

    assert "ключ" not in str(info.value)


def test_the_variables_of_the_process_do_not_count(scenario: ScenarioStandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment is an argument: the SDK's own variables of this process change nothing."""
    monkeypatch.setenv("SCENARIO_SDK_JWT", "another")
    monkeypatch.setenv("SCENARIO_SDK_API_KEY", "another")
    monkeypatch.setenv("SCENARIO_BASE_URL", "http://127.0.0.1:9/v1")
    with made(scenario) as client:
        assert client.health().why == "idle"


WITHOUT_SDK = """
import os, sys
from comfy_client.client import client_from_env
from comfy_client.errors import ConfigError
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

    assert "pip install 'comfy-client[scenario-sdk]'" in ended.stdout


def test_an_asset_can_be_saved(client: Client, tmp_path: Path) -> None:
    """A picture is saved under its own name, and is what it says."""
    image = client.txt2img("x", output_format="jpeg", **SMALL).image
    saved = image.save(tmp_path)
    found = identify(saved.read_bytes())

    assert saved.name == "scenario_00001_.jpg"
    assert found is not None
    assert (found.mime_type, found.width) == ("image/jpeg", 128)
