"""Recorded responses of a real ComfyUI, parsed by our protocol modules, have the recorded outcome.

tests/recordings/README.md describes the recordings.
"""

from __future__ import annotations

import json

import pytest

from comfy_core.comfyui.events import (
    AttributedEvent,
    Cached,
    Executing,
    Finished,
    Image,
    Started,
    StepProgress,
    parse_frame,
)
from comfy_core.comfyui.graph_checks import check_structure, with_defaults
from comfy_core.comfyui.refusals import combo_choices, read_refusal
from comfy_core.comfyui.responses import (
    Failed,
    Interrupted,
    OutputFile,
    Succeeded,
    read_history,
)
from comfy_core.error_codes import ErrorCode
from comfy_core.errors import JobError
from tools.recorded_graphs import CYCLE, RUNS_OF_NEWER_NODES, TXT2IMG, node

from .recorded import VERSIONS, Recorded

RUNS = (
    "txt2img_cold",
    "txt2img_warm",
    "txt2img_cached_same_seed",
    "txt2img_batch2",
    "txt2img_ws_save",
    "txt2img_ws_save_again",
    "txt2img_with_previews",
    "img2img",
)
FAILURES = ("err_corrupt_image", "err_runtime_shape", "interrupted", "cancel_jobs")
REFUSALS = (
    "err_bad_values",
    "err_cycle",
    "err_empty_graph",
    "err_load_missing_image",
    "err_missing_link",
    "err_missing_model",
    "err_nested_inputs",
    "err_no_outputs",
    "err_unknown_node",
    "err_unknown_node_with_title",
)
OLDEST = "0.3.64"
"""The only recorded version whose refusals lack the class of a missing node and the nodes of a cycle."""


@pytest.fixture(params=VERSIONS)
def recorded(request: pytest.FixtureRequest) -> Recorded:
    """The recordings of one version of ComfyUI."""
    return Recorded(request.param)


@pytest.mark.parametrize("name", RUNS)
def test_a_run_ends_with_its_last_frame_and_is_a_success_in_history(recorded: Recorded, name: str) -> None:
    """Each recorded run starts once, its last frame is the end, and its history is a success."""
    prompt_id, outcome = recorded.history(name)
    events = recorded.events(name)

    assert [each.event for each in events if isinstance(each.event, Started)] == [Started(prompt_id)]
    assert events[-1].event == Finished(prompt_id)
    assert {each.prompt_id for each in events} == {prompt_id}
    assert isinstance(outcome, Succeeded)


@pytest.mark.parametrize("name", FAILURES)
def test_a_failed_run_is_not_a_success_in_history(recorded: Recorded, name: str) -> None:
    """The end of a failed or interrupted run is reported at most once, and its history is not a success."""
    prompt_id, outcome = recorded.history(name)
    ends = [each.event for each in recorded.events(name) if isinstance(each.event, Finished)]

    assert ends == [Finished(prompt_id)] or ends == []  # the recordings err_* end with the error's frame
    assert not isinstance(outcome, Succeeded)


def test_recorded_files_are_the_outputs(recorded: Recorded) -> None:
    """A run's history names the files that the run saved. For a cached run these are the files of the earlier run."""
    _, warm = recorded.history("txt2img_warm")
    _, cached = recorded.history("txt2img_cached_same_seed")
    _, batch = recorded.history("txt2img_batch2")

    assert warm == cached == Succeeded((recorded.saved_by("txt2img_warm"),), ())
    assert isinstance(batch, Succeeded)
    assert len(batch.files) == 2


def test_a_cached_run_reports_its_cached_nodes(recorded: Recorded) -> None:
    """If the same graph runs again, every node is cached and none is executed."""
    events = [each.event for each in recorded.events("txt2img_cached_same_seed")]

    [cached] = [event for event in events if isinstance(event, Cached)]
    assert cached.nodes[-1] == "out"
    assert not any(isinstance(event, Executing | StepProgress) for event in events)


@pytest.mark.parametrize("name", ["txt2img_ws_save", "txt2img_ws_save_again"])
def test_a_websocket_image_is_attributed_to_its_node(recorded: Recorded, name: str) -> None:
    """The binary frame of SaveImageWebsocket is a PNG of the node that the previous frame named."""
    images = [each for each in recorded.events(name) if isinstance(each.event, Image)]

    [image] = images
    assert isinstance(image.event, Image)
    assert image.node == "out"
    assert image.event.is_png
    assert image.event.data.startswith(b"\x89PNG")
    assert recorded.history(name)[1] == Succeeded((), ())


def test_previews_are_jpeg_and_of_the_sampler(recorded: Recorded) -> None:
    """Preview frames are JPEG, and belong to the sampler node."""
    previews = [each for each in recorded.events("txt2img_with_previews") if isinstance(each.event, Image)]

    assert len(previews) == 3
    assert {each.node for each in previews} == {"ks"}
    assert not any(each.event.is_png for each in previews if isinstance(each.event, Image))


def test_steps_are_counted(recorded: Recorded) -> None:
    """The progress frames count the sampler's steps."""
    steps = [each.event for each in recorded.events("img2img") if isinstance(each.event, StepProgress)]

    assert [(step.value, step.maximum) for step in steps] == [(1, 5), (2, 5), (3, 5), (4, 5), (5, 5)]


def test_a_corrupt_image_names_node_and_exception_without_paths(recorded: Recorded) -> None:
    """The outcome has the node's id and class, and the exception's type and message without a folder."""
    _, outcome = recorded.history("err_corrupt_image")

    assert outcome == Failed("img", "LoadImage", "PIL.UnidentifiedImageError", "cannot identify image file 'bad.png'")
    error = outcome.error()
    assert error.code is ErrorCode.EXECUTION_FAILED
    assert error.report.details == {
        "node_id": "img",
        "node_type": "LoadImage",
        "exception_type": "PIL.UnidentifiedImageError",
    }


def test_a_runtime_error_names_its_node(recorded: Recorded) -> None:
    """A failure inside the sampler is attributed to the sampler node. ComfyUI's tip follows in the same line."""
    _, outcome = recorded.history("err_runtime_shape")

    assert isinstance(outcome, Failed)
    assert (outcome.node_id, outcome.exception_type) == ("ks", "RuntimeError")
    tip = "" if recorded.version == OLDEST else " TIPS: If you have any"
    assert outcome.message.startswith(f"mat1 and mat2 shapes cannot be multiplied (77x2048 and 4096x3072){tip}")
    assert "\n" not in outcome.message


def test_an_interruption_is_not_a_failure(recorded: Recorded) -> None:
    """An interrupted run is distinguished from a failed one, and is retryable."""
    _, outcome = recorded.history("interrupted")

    assert outcome == Interrupted("ks", "KSampler")
    assert outcome.error().report.retryable


def test_after_a_reconnect_the_end_is_not_reported(recorded: Recorded) -> None:
    """After a reconnect the frame with the running node has no prompt id, but the next progress frame has it.

    No frame reports the end; the history has the success.
    """
    events = recorded.events("reconnect")
    prompt_id, outcome = recorded.history("reconnect")

    first = next(number for number, each in enumerate(events) if each.prompt_id is None)
    assert events[first].event == Executing(None, "ks")
    assert events[first + 1] == AttributedEvent(prompt_id, "ks", StepProgress(prompt_id, "ks", 3, 6))
    assert not any(isinstance(each.event, Finished) for each in events)
    assert isinstance(outcome, Succeeded)


def test_an_interrupted_prompt_has_a_history_and_a_deleted_one_has_none(recorded: Recorded) -> None:
    """The history has the interrupted prompt as interrupted and the third as succeeded, but not the deleted one."""
    history_entries = [
        entry for entry in recorded.entries("queue_delete_interrupt") if "/history/" in str(entry.get("request"))
    ]
    bodies = [(entry["request"]["path"].rpartition("/")[2], entry["body"]) for entry in history_entries]

    assert [read_history(body, prompt_id) for prompt_id, body in bodies] == [
        None,
        Interrupted("ks", "KSampler"),
        None,
        Succeeded((recorded.saved_by("queue_delete_interrupt"),), ()),
    ]
    ended = [each.prompt_id for each in recorded.events("queue_delete_interrupt") if isinstance(each.event, Finished)]
    assert ended == [bodies[1][0], bodies[3][0]]


@pytest.mark.parametrize("name", REFUSALS)
def test_a_recorded_400_is_a_refusal(recorded: Recorded, name: str) -> None:
    """Each recorded 400 is parsed as a refusal, with a message that contains the reason."""
    [entry] = recorded.entries(name)
    refusal = read_refusal(entry["body"])

    assert entry["status"] == 400
    assert refusal is not None
    error = refusal.error({}, {problem.input: problem.choices for problem in refusal.missing({})})
    assert error.code in {ErrorCode.WORKFLOW_REJECTED, ErrorCode.MODEL_MISSING}
    assert len(error.report.message) > len("ComfyUI rejected the graph: .")


def test_an_accepted_prompt_is_not_a_refusal(recorded: Recorded) -> None:
    """The 200 of a queued prompt is not a refusal."""
    assert read_refusal(recorded.entries("txt2img_cold")[0]["body"]) is None


def test_a_missing_model_is_named_with_the_available_ones(recorded: Recorded) -> None:
    """A loader's unknown file becomes model_missing, with the available files."""
    [entry] = recorded.entries("err_missing_model")
    refusal = read_refusal(entry["body"])
    assert refusal is not None
    [missing] = refusal.missing({})
    error = refusal.error({}, {missing.input: missing.choices})

    assert error.code is ErrorCode.MODEL_MISSING
    assert error.report.details == {
        "missing": [
            {"node_id": "unet", "node_type": "UNETLoader", "input": "unet_name", "value": "missing.safetensors"}
        ],
        "available": {"unet_name": ["flux1-dev-fp8.safetensors"]},
    }


def test_all_invalid_values_are_named(recorded: Recorded) -> None:
    """A refusal with a missing name among other problems is workflow_rejected, with every problem."""
    [entry] = recorded.entries("err_bad_values")
    refusal = read_refusal(entry["body"])
    assert refusal is not None
    error = refusal.error({}, {})

    assert error.code is ErrorCode.WORKFLOW_REJECTED
    assert {(node["input"], node["node_type"]) for node in error.report.details["nodes"]} == {
        ("steps", "KSampler"),
        ("sampler_name", "KSampler"),
    }


@pytest.mark.parametrize("name", ["err_unknown_node", "err_unknown_node_with_title"])
def test_a_missing_node_is_named_by_its_class(recorded: Recorded, name: str) -> None:
    """The error names the class, also if ComfyUI's message names only the title."""
    [entry] = recorded.entries(name)
    refusal = read_refusal(entry["body"])
    assert refusal is not None
    report = refusal.error({}, {}).report

    assert "NoSuchNode" in report.message
    if recorded.version != OLDEST:
        assert [(node["node_id"], node["node_type"]) for node in report.details["nodes"]] == [("ks", "NoSuchNode")]


def test_all_missing_nodes_are_named_before_the_graph_is_sent(recorded: Recorded) -> None:
    """The check against the recorded /object_info names every missing node by its class. ComfyUI names the first."""
    graph = {**TXT2IMG, "ks": node("NoSuchNode"), "lat": node("NoSuchLatent")}
    with pytest.raises(JobError) as info:
        check_structure(graph, recorded.object_info())

    assert {each["node_type"] for each in info.value.report.details["nodes"]} == {"NoSuchNode", "NoSuchLatent"}


def test_a_cycle_is_named_before_the_graph_is_sent(recorded: Recorded) -> None:
    """The check against the recorded /object_info names the nodes of a cycle for each version."""
    with pytest.raises(JobError) as info:
        check_structure(CYCLE, recorded.object_info())
    [problem] = info.value.report.details["nodes"]

    assert {*problem["problem"].removeprefix("is part of a cycle: ").split(" -> ")} == {"neg", "guid"}


def test_the_nodes_of_a_refused_cycle_are_named(recorded: Recorded) -> None:
    """A refusal of a cycle names its nodes, except in the oldest version, in which ComfyUI names none."""
    [entry] = recorded.entries("err_cycle")
    refusal = read_refusal(entry["body"])
    assert refusal is not None
    nodes = refusal.error({}, {}).report.details["nodes"]

    assert {each["node_id"] for each in nodes} == (set() if recorded.version == OLDEST else {"neg", "guid"})
    assert all("neg (ConditioningZeroOut)" in each["problem"] for each in nodes)


def test_an_input_that_this_version_requires_gets_its_default(recorded: Recorded) -> None:
    """A graph of an older version gets the default of an input that it lacks, if the version requires the input."""
    [first, *_] = recorded.entries("missing_resolution_steps")
    filled, warnings = with_defaults(RUNS_OF_NEWER_NODES["missing_resolution_steps"], recorded.object_info())
    is_refused = read_refusal(first["body"]) is not None

    assert is_refused == (recorded.version != OLDEST)
    assert filled["size"]["inputs"].get("resolution_steps") == (1 if is_refused else None)
    assert len(warnings) == is_refused


def test_nested_inputs_are_named_and_get_their_defaults(recorded: Recorded) -> None:
    """A refusal names inputs such as `resize_type.width`; a missing one gets its default before the graph is sent."""
    if recorded.version == OLDEST:
        assert "ResizeImageMaskNode" not in recorded.object_info()
        return
    [entry] = recorded.entries("err_nested_inputs")
    refusal = read_refusal(entry["body"])
    assert refusal is not None
    filled, [warning] = with_defaults(RUNS_OF_NEWER_NODES["err_nested_inputs"], recorded.object_info())

    names = {f"resize_type.{name}" for name in ("width", "height", "crop")}
    assert {each["input"] for each in refusal.error({}, {}).report.details["nodes"]} == names
    assert filled["size"]["inputs"]["resize_type.width"] == 512
    assert "had no resize_type.width" in warning
    assert combo_choices(recorded.object_info()["ResizeImageMaskNode"], "resize_type.crop") == ("disabled", "center")


def test_a_cancel_says_whether_a_prompt_was_cancelled(recorded: Recorded) -> None:
    """POST /api/jobs/{id}/cancel reports true for a waiting and a running prompt, and false for any other id.

    The oldest version does not have the route.
    """
    responses = [entry for entry in recorded.entries("cancel_jobs") if "/cancel" in json.dumps(entry.get("request"))]

    if recorded.version == OLDEST:
        assert {entry["status"] for entry in responses} == {405}
    else:
        assert [entry["body"]["cancelled"] for entry in responses] == [True, True, False, False, False, False]


@pytest.mark.parametrize(
    ("kind", "message", "expected"),
    [
        ("torch.OutOfMemoryError", "Allocation on device", "The GPU ran out of memory in"),
        ("torch.AcceleratorError", "CUDA error: out of memory", "The GPU ran out of memory in"),
        ("Exception", "x\nThis error means you ran out of memory on your GPU.", "The GPU ran out of memory in"),
        ("MemoryError", "VBAR OOM", "The GPU ran out of memory in"),
        ("MemoryError", "VBAR allocation failed", "The GPU ran out of memory in"),
        ("RuntimeError", "VRAM reservation failed", "The GPU ran out of memory in"),
        ("RuntimeError", "VRAM grow failed: 1048576 bytes", "The GPU ran out of memory in"),
        ("RuntimeError", "HostBuffer allocation failed", "ComfyUI ran out of main memory in"),
        ("RuntimeError", "HostBuffer.extend failed", "ComfyUI ran out of main memory in"),
        ("MemoryError", "", "ComfyUI ran out of main memory in"),
    ],
)
def test_exhausted_memory_is_recognised(kind: str, message: str, expected: str) -> None:
    """The exceptions of torch, of Python, and of the allocator comfy-aimdo become out_of_memory."""
    error = Failed("ks", "KSampler", kind, message).error()

    assert error.code is ErrorCode.OUT_OF_MEMORY
    assert error.report.message.startswith(expected)


def test_a_file_that_cannot_be_read_is_not_exhausted_memory() -> None:
    """An error of comfy-aimdo that has another cause stays execution_failed."""
    error = Failed("unet", "UNETLoader", "RuntimeError", "HostBuffer.read_file_slice failed").error()

    assert error.code is ErrorCode.EXECUTION_FAILED


def test_the_choices_of_an_input_are_read_from_object_info(recorded: Recorded) -> None:
    """/object_info lists the choices of an input; a number and an unknown node have none."""
    object_info = recorded.object_info()

    assert "euler" in combo_choices(object_info["KSampler"], "sampler_name")
    assert combo_choices(object_info["KSampler"], "steps") == ()
    assert combo_choices({}, "steps") == ()


@pytest.mark.parametrize(
    "frame",
    [
        "",
        "no json",
        "[]",
        '{"type": "status", "data": {}}',
        '{"type": "executing", "data": {}}',
        b"",
        b"\0\0\0\1",
        b"\0" * 20,
    ],
)
def test_a_frame_without_a_run_is_not_an_event(frame: str | bytes) -> None:
    """Unknown or damaged frames, and frames that belong to no run, are ignored."""
    assert parse_frame(frame) is None


@pytest.mark.parametrize("body", [None, [], {}, {"other": {}}, {"id": "text"}])
def test_a_response_without_an_entry_has_no_outcome(body: object) -> None:
    """A /history response without the prompt's entry has no outcome."""
    assert read_history(body, "id") is None


def test_an_entry_of_another_shape_is_parsed_as_far_as_possible() -> None:
    """Unknown outputs are ignored, texts are kept, and an error without a reason is still a failure."""
    outputs = {"9": {"text": ["hello", 5], "gifs": [{"filename": "a.webp", "type": "output"}], "odd": None}, "10": None}

    assert read_history({"id": {"outputs": outputs}}, "id") == Succeeded(
        (OutputFile("9", "gifs", "a.webp", "", "output"),), ("hello",)
    )
    assert isinstance(read_history({"id": {"status": {"status_str": "error"}}}, "id"), Failed)


@pytest.mark.parametrize("body", [None, {}, {"prompt_id": "x", "node_errors": {}}])
def test_a_response_without_errors_is_not_a_refusal(body: object) -> None:
    """A response without errors is not a refusal."""
    assert read_refusal(body) is None


def test_a_200_with_node_errors_is_a_refusal() -> None:
    """Outputs that ComfyUI would drop silently are in the refusal."""
    node = {"errors": [{"type": "bad", "message": "Wrong", "details": ""}, None], "class_type": "SaveImage"}
    refusal = read_refusal({"prompt_id": "x", "number": 1, "node_errors": {"9": node, "10": None}})

    assert refusal is not None
    error = refusal.error({}, {})
    assert error.code is ErrorCode.WORKFLOW_REJECTED
    assert error.report.details["nodes"] == [
        {"node_id": "9", "node_type": "SaveImage", "input": "", "problem": "Wrong"}
    ]


def test_older_and_newer_refusals_are_parsed() -> None:
    """An error that is plain text, and choices in the newer COMBO form, are parsed too."""
    old = read_refusal({"error": "invalid prompt"})
    assert old is not None
    assert "invalid prompt" in old.error({}, {}).report.message
    new = {"COMBO": None, "input": {"required": {"unet_name": ["COMBO", {"options": ["a", "b"]}]}}}
    assert combo_choices(new, "unet_name") == ("a", "b")
