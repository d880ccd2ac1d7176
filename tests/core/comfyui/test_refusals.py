"""Errors for the caller, made from ComfyUI's refusals: short, and without files of other jobs."""

from __future__ import annotations

from typing import Any

import pytest

from comfy_core.comfyui.refusals import Refusal, combo_choices, read_refusal
from comfy_core.contract import MAX_REPORT_BYTES, MAX_TEXT, ErrorReport
from comfy_core.error_codes import ErrorCode

OTHER_JOBS_FOLDER = "run-" + "a" * 32


def refusal_of(*errors: dict[str, Any], class_type: str = "LoadImage") -> Refusal:
    """Return the refusal of a graph whose node 17 has these errors."""
    node_errors = {"17": {"errors": list(errors), "class_type": class_type, "dependent_outputs": ["9"]}}
    found = read_refusal({"error": {"type": "t", "message": "m", "details": "d"}, "node_errors": node_errors})
    assert found is not None
    return found


def not_in_list_error(name: str, value: object, choices: list[str], *, is_v3: bool = False) -> dict[str, Any]:
    """Return ComfyUI's error for a value that is not one of the choices."""
    config = ["COMBO", {"options": choices}] if is_v3 else [choices, {}]
    info = {"input_name": name, "input_config": config, "received_value": value}
    details = f"{name}: '{value}' not in {choices}"
    return {"type": "value_not_in_list", "message": "Value not in list", "details": details, "extra_info": info}


INVALID_FILE = {
    "type": "custom_validation_failed",
    "message": "Custom validation failed for node",
    "details": "image - Invalid image file: x.png",
    "extra_info": {"input_name": "image"},
}


@pytest.mark.parametrize("is_v3", [False, True])
@pytest.mark.parametrize(
    ("class_type", "name"),
    [
        ("LoadImageSetFromFolderNode", "folder"),
        ("LoadImageDataSetFromFolder", "folder"),
        ("LoadLatent", "latent"),
        ("LoadAudio", "audio"),
        ("Load3D", "model_file"),
        ("VHS_LoadImages", "directory"),
    ],
)
def test_the_files_of_other_callers_are_never_listed(class_type: str, name: str, is_v3: bool) -> None:
    """A loader's choices are removed from the message and the details, also if there are other problems."""
    error = not_in_list_error(name, "x", [OTHER_JOBS_FOLDER, "a.png"], is_v3=is_v3)
    other = {"type": "bad", "message": "Wrong", "details": "", "extra_info": {"input_name": "n"}}
    for errors in ([error], [error, other]):
        found = refusal_of(*errors, class_type=class_type)
        report = found.error({}, {each.input: each.choices for each in found.missing({})}).report
        assert report.code is ErrorCode.WORKFLOW_REJECTED
        assert "run-" not in report.to_json()
        assert "a.png" not in report.to_json()
        problem = report.details["nodes"][0]["problem"]
        assert ("was not sent" in problem) != ("no such folder" in problem)


def test_job_folders_are_not_listed_as_choices() -> None:
    """Job folders are removed from the choices of a node of any name."""
    assert combo_choices(
        {"input": {"required": {"odd": [[OTHER_JOBS_FOLDER, f"{OTHER_JOBS_FOLDER}/0.png", "a"]]}}}, "odd"
    ) == ("a",)


def test_a_linked_loader_s_choices_are_not_repeated() -> None:
    """The error omits a linked loader's choices, which ComfyUI puts into the type of the input."""
    error = {
        "type": "return_type_mismatch",
        "message": "Return type mismatch between linked nodes",
        "details": f"image, received_type(IMAGE) mismatch input_type(['{OTHER_JOBS_FOLDER}'])",
        "extra_info": {"input_name": "image", "received_type": "IMAGE", "linked_node": ["1", 0]},
    }
    report = refusal_of(error).error({}, {}).report
    assert "run-" not in report.to_json()
    assert report.details["nodes"][0]["problem"] == "image: is linked to an output of another type (IMAGE)"


def test_an_image_that_was_not_sent_is_reported() -> None:
    """The error names the request's key instead of ComfyUI's rule."""
    report = refusal_of(INVALID_FILE).error({}, {}).report
    assert report.message.startswith(
        "ComfyUI rejected the graph: node 17 (LoadImage) image: this file was not sent; send it in `images` under this "
        "name."
    )


def test_a_missing_model_among_other_problems_lists_the_models() -> None:
    """The available models are listed, although the graph has another problem too."""
    other_fault = {"type": "bad", "message": "Wrong", "details": "", "extra_info": {"input_name": "n"}}
    found = refusal_of(
        not_in_list_error("unet_name", "b.safetensors", ["a.safetensors"]), other_fault, class_type="UNETLoader"
    )
    report = found.error({}, {"unet_name": ("a.safetensors",)}).report
    assert report.code is ErrorCode.WORKFLOW_REJECTED
    assert report.details["available"] == {"unet_name": ["a.safetensors"]}
    assert [each["value"] for each in report.details["missing"]] == ["b.safetensors"]
    assert [each["problem"] for each in report.details["nodes"]] == [
        'unet_name: "b.safetensors" is not one of its choices',
        "Wrong",
    ]


def test_a_missing_input_is_reported_with_the_remedy() -> None:
    """The error suggests an override or a link that adds the missing input."""
    error = {"type": "required_input_missing", "message": "Required input is missing", "details": "resolution_steps"}
    report = refusal_of({**error, "extra_info": {"input_name": "resolution_steps"}}, class_type="Scale").error({}, {})
    assert 'add it with overrides {"17.resolution_steps": value}' in report.report.message


def test_a_node_is_named_as_in_the_caller_s_graph() -> None:
    """The error has the class in the caller's graph, although the run replaces SaveImage by SaveImageWebsocket."""
    error = {"type": "bad", "message": "Wrong", "details": "", "extra_info": {"input_name": "images"}}
    found = refusal_of(error, class_type="SaveImageWebsocket").with_classes(
        lambda node_id, _: {"17": "SaveImage"}[node_id]
    )
    assert "node 17 (SaveImage) Wrong" in found.error({}, {}).report.message


def test_a_long_value_is_shortened() -> None:
    """A long value, such as 5 MB of base64, is shortened in the message and in each detail."""
    long = "A" * 5_000_000
    for class_type, name in (("LoadImage", "image"), ("UNETLoader", "unet_name")):
        found = refusal_of(
            not_in_list_error(name, long, ["a"] * 50), {**INVALID_FILE, "details": long}, class_type=class_type
        )
        text = found.error({}, {name: ("b" * 5000,) * 5}).report.to_json()
        assert len(text) < 10_000
        assert "A" * (MAX_TEXT + 1) not in text
        assert "b" * (MAX_TEXT + 1) not in text


def test_an_error_never_has_more_than_64_kb() -> None:
    """A report is shortened to 64 KB; the last item of a shortened list is the number of omitted items."""
    report = ErrorReport(
        ErrorCode.WORKFLOW_REJECTED,
        "x" * 200_000,
        {"nodes": [{"problem": "y" * 1000}] * 5000, "log_tail": ["z" * 1000] * 137, "available": {"a": ["b"] * 20_000}},
    )
    text = report.to_json()
    assert len(text.encode()) <= MAX_REPORT_BYTES
    read = ErrorReport.from_json(text)
    assert read.code is ErrorCode.WORKFLOW_REJECTED
    assert read.details["log_tail"][-1] == "and 117 more"
    assert read.details["nodes"][-1] == "and 4980 more"


@pytest.mark.parametrize(
    "details", [{"odd": {str(key): "x" * 900 for key in range(900)}}, {"deep": [[["é" * 90_000]]]}]
)
def test_an_error_of_any_shape_is_shortened(details: dict[str, Any]) -> None:
    """Objects with many keys, and texts with more bytes than characters, are shortened too."""
    text = ErrorReport(ErrorCode.INTERNAL, "é" * 60_000, details).to_json()
    assert len(text.encode()) <= MAX_REPORT_BYTES
    assert ErrorReport.from_json(text).code is ErrorCode.INTERNAL


def test_a_small_error_is_not_changed() -> None:
    """A small report is returned completely."""
    report = ErrorReport(ErrorCode.INTERNAL, "x" * 5000, {"log_tail": ["z" * 1000] * 10})
    assert ErrorReport.from_json(report.to_json()) == report
