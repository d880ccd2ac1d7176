"""Mapping of OpenAI's image calls to requests: the parameters of the SDK, examples, and random bodies."""

from __future__ import annotations

import typing
from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai._streaming import SSEDecoder
from openai.types.image_edit_params import ImageEditParamsStreaming
from openai.types.image_generate_params import ImageGenerateParamsStreaming
from openai.types.image_model import ImageModel

from comfy_client.gateway.openai.api import PreviewFilter
from comfy_client.gateway.openai.errors import JOB_STATUS, error_body, job_error
from comfy_client.gateway.openai.fields import EDITS, GENERATIONS, PARAMETERS, QUALITY_STEPS, Operation
from comfy_client.gateway.openai.mapping import ImagesCall, map_call
from comfy_client.gateway.openai.responses import KEEP_ALIVE, error_event
from comfy_client.gateway.scenario.errors import ShimError
from comfy_client.gateway.scenario.models import ShimJob
from comfy_client.job import Event, Preview
from comfy_client.providers.scenario_responses import Status
from comfy_core.error_codes import ErrorCode
from comfy_core.progress import Sampling
from comfy_core.request.reading import read_request
from comfy_core.workflows import Workflow

IMAGE = "iVBORw0KGgo="


def generations(workflows: Mapping[str, Workflow], **body: object) -> ImagesCall:
    """Map a generations call."""
    return map_call(GENERATIONS, {"prompt": "a knight", **body}, workflows)


def edits(workflows: Mapping[str, Workflow], **body: object) -> ImagesCall:
    """Map an edits call with an image."""
    return map_call(EDITS, {"prompt": "a knight", "image": IMAGE, **body}, workflows)


def test_every_parameter_of_the_sdk_is_handled() -> None:
    """Each parameter of the SDK's two image calls is used, ignored or rejected by name."""
    known = {*ImageGenerateParamsStreaming.__annotations__, *ImageEditParamsStreaming.__annotations__}
    for each in (*ImageGenerateParamsStreaming.__mro__, *ImageEditParamsStreaming.__mro__):
        known |= set(getattr(each, "__annotations__", {}))

    assert known >= {"prompt", "mask", "stream", "partial_images"}
    assert known <= PARAMETERS.keys()


def test_every_model_of_the_sdk_is_a_workflow(workflows: Mapping[str, Workflow]) -> None:
    """OpenAI's model names mean the workflow that fits the call's images."""
    for model in typing.get_args(ImageModel):
        assert generations(workflows, model=model).mapped.input["workflow"] == "flux-dev-txt2img"
        assert edits(workflows, model=model).mapped.input["workflow"] == "flux-dev-img2img"
        assert edits(workflows, model=model, mask=IMAGE).mapped.input["workflow"] == "flux-dev-inpaint"


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({}, {"width": 1024, "height": 1024, "steps": 20, "num_images": 1}),
        ({"size": "1536x1024"}, {"width": 1536, "height": 1024}),
        ({"size": "auto", "width": 512, "height": 256}, {"width": 512, "height": 256}),
        ({"n": "2"}, {"num_images": 2}),
        ({"quality": "high"}, {"steps": QUALITY_STEPS["high"]}),
        ({"quality": "auto"}, {"steps": 20}),
        ({"quality": "low", "steps": 9}, {"steps": 9}),
        ({"output_format": "JPG", "output_compression": 0}, {"output_format": "jpeg", "output_quality": 1}),
        ({"seed": -1}, {}),
        ({"loras": ["a.safetensors:0.5"]}, {"loras": [{"name": "a.safetensors", "strength": 0.5}]}),
        ({"style": "vivid", "user": "player-1", "moderation": "low"}, {}),
        ({"timeout_s": 60}, {"timeout_s": 60}),
    ],
)
def test_parameters_become_inputs(
    workflows: Mapping[str, Workflow], body: dict[str, object], expected: dict[str, object]
) -> None:
    """Each parameter sets the inputs of docs/openai.md."""
    request = generations(workflows, **body).mapped.input

    assert expected.items() <= request.items()
    assert ("seed" in request) == (body.get("seed", -1) != -1)


def test_an_edit_has_the_size_of_its_image(workflows: Mapping[str, Workflow]) -> None:
    """Without a size, an edit leaves width and height to the workflow, which takes those of the image."""
    assert not {"width", "height"} & edits(workflows, size="auto").mapped.input.keys()
    assert edits(workflows, size="512x256").mapped.input["width"] == 512


def test_ignored_parameters_are_noted(workflows: Mapping[str, Workflow]) -> None:
    """A parameter that is ignored is a note of the job, with what to use instead. In strict mode, it is an error."""
    notes = generations(workflows, style="vivid").mapped.notes

    assert notes == ("style was ignored: describe the style in the prompt",)
    with pytest.raises(ShimError, match="style is not supported"):
        map_call(GENERATIONS, {"prompt": "a knight", "style": "vivid"}, workflows, is_strict=True)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"mask": IMAGE, "image": "https://example.org/a.png"}, "mask"),
        ({"mask": IMAGE, "image": "asset_1234567890abcdef12345678"}, "mask"),
        ({"image": []}, "image"),
        ({"image": [IMAGE, IMAGE]}, "image"),
        ({"image": 5}, "image"),
        ({"model": "flux-dev-upscale", "size": "512x512", "width": 512}, "size"),
        ({"workflow": "txt2img"}, "workflow"),
        ({"n": 0}, "n"),
        ({"output_compression": 101}, "output_compression"),
        ({"loras": [{"nam": "a"}]}, "loras"),
        ({"svg": {}}, "svg"),
        ({"partial_images": 4}, "partial_images"),
    ],
)
def test_a_fault_has_its_parameter(workflows: Mapping[str, Workflow], body: dict[str, object], param: str) -> None:
    """The error of a call names the first wrong parameter."""
    with pytest.raises(ShimError) as raised:
        edits(workflows, **body)

    assert raised.value.facts["param"] == param
    assert raised.value.status == 400


TEXTS = st.text(max_size=12) | st.sampled_from(["64x64", "low", "url"])
VALUES = st.none() | st.booleans() | st.integers(-2, 3000) | TEXTS
NAMES = st.sampled_from([*PARAMETERS, "steps", "seed", "loras", "strength", "width", "workflow", "sed"])
BODIES = st.dictionaries(NAMES, VALUES | st.lists(VALUES, max_size=2), max_size=8) | VALUES


@settings(deadline=None, max_examples=300)
@given(BODIES, st.sampled_from([GENERATIONS, EDITS]))
def test_any_body_becomes_a_valid_request_or_an_error(
    workflows: Mapping[str, Workflow], body: object, operation: Operation
) -> None:
    """A random body is either a request that the worker accepts, or an error with status 400 or 404."""
    try:
        call = map_call(operation, body, workflows)
    except ShimError as error:
        status = error.status
    else:
        status = 200
        image = {"image": IMAGE} if call.mapped.image is not None else {}
        read_request({**call.mapped.input, **image}, workflows)  # raises JobError for an invalid request

    assert status in {200, 400, 404}


@pytest.mark.parametrize(
    ("maximum", "percents", "sent"),
    [(0, [50, 100], []), (1, [10, 50, 90], [50]), (3, [20, 25, 30, 50, 75, 90], [25, 50, 75]), (3, [90, 95], [90, 95])],
)
def test_previews_are_spread_over_the_job(maximum: int, percents: list[int], sent: list[int]) -> None:
    """At most `partial_images` previews are sent, at equal distances of the job's progress if there are enough."""
    previews = PreviewFilter(maximum)
    events: list[Event] = []
    for percent in percents:
        events += [Sampling(percent=percent), Preview(str(percent).encode())]

    assert [int(jpeg) for event in events if (jpeg := previews.selected(event)) is not None] == sent


def test_the_sdk_ignores_comments_in_a_stream() -> None:
    """The comments that keep a stream open are no events for the SDK."""
    error = error_event(ShimError(503, "The server stops"))
    events = list(SSEDecoder().iter_bytes(iter([KEEP_ALIVE, KEEP_ALIVE, error])))

    assert [each.event for each in events] == ["error"]


@pytest.mark.parametrize("code", ErrorCode)
def test_every_failure_has_an_error(code: ErrorCode) -> None:
    """A failed job of any code is an error with that code, after which the SDK sends no other paid job."""
    job = ShimJob(
        id="job_1", owner="", route="openai/generations", job_type="custom", task="txt2img", model_id="", created_at=0,
        updated_at=0, scenario_request={}, worker_request={}, status=Status.FAILURE, error="It failed",
        error_code=code.value,
    )  # fmt: skip
    error = job_error(job)
    body = error_body(error)["error"]

    assert error.status == JOB_STATUS.get(code, 500)
    assert (body["code"], body["message"], body["job_id"]) == (code.value, "It failed", "job_1")
    assert body["type"] == ("server_error" if error.status >= 500 else "invalid_request_error")
    assert error.headers["x-should-retry"] == "false"
