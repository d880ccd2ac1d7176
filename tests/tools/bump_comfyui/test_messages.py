"""The comparison of the recordings of two versions of ComfyUI."""

from __future__ import annotations

from typing import Any

from tools.bump_comfyui.changes import ABSENT, Change
from tools.bump_comfyui.messages import message_changes

GRAPH = {"ks": {"class_type": "KSampler", "inputs": {"seed": 7}}}


def frame(kind: str, **data: Any) -> dict[str, Any]:  # noqa: ANN401 - JSON
    """Return a recorded frame."""
    return {"t": 0.1, "ws": {"type": kind, "data": data}}


def history(**entry: Any) -> dict[str, Any]:  # noqa: ANN401 - JSON
    """Return a recorded response of /history for a run of GRAPH."""
    prompt_id = "0f0f0f0f-0000-4000-8000-000000000000"
    return {"http": "GET /history/{id}", "status": 200, "body": {prompt_id: {"prompt": [1, prompt_id, GRAPH], **entry}}}


def changes(before: list[dict[str, Any]], after: list[dict[str, Any]]) -> list[Change]:
    """Return the differences between two recordings named `run`."""
    return message_changes({"run": before}, {"run": after})


def test_repeated_frames_are_no_difference() -> None:
    """Another number of frames, other ids and other times are no difference."""
    short = [frame("progress", value=1, node="ks"), history()]
    long = [{**frame("progress", value=1, node="ks"), "t": 7.5}, frame("progress", value=1, node="ks"), history()]

    assert changes(short, long) == []


def test_a_new_key_is_one_difference_for_all_recordings() -> None:
    """A new object is one difference, without its keys, and names each recording that shows it."""
    old = [frame("executed", node="ks"), history()]
    new = [frame("executed", node="ks", usage={"ram": 1, "vram": 2}), history()]

    assert message_changes({"a": old, "b": old}, {"a": new, "b": new}) == [
        Change("frame executed", "usage", ABSENT, "{}", ("a", "b"))
    ]


def test_node_and_prompt_ids_are_stars_in_a_path() -> None:
    """A key below a node id and a prompt id has one path for all nodes and prompts."""
    [change] = changes([history(outputs={"ks": {}})], [history(outputs={"ks": {"images": []}})])

    assert (change.subject, change.what) == ("GET /history/{id}", "body.*.outputs.*.images")


def test_a_status_and_a_text_have_both_values() -> None:
    """A changed status code and a changed text are two differences, each with the value before and after."""
    old = {
        "request": {"method": "POST", "path": "/prompt", "json": {"prompt": []}},
        "status": 400,
        "body": {"error": "a"},
    }
    new = {**old, "status": 500, "body": {"error": "b"}}

    assert changes([old], [new]) == [
        Change('POST /prompt {"prompt": []}', "body.error", '"a"', '"b"', ("run",)),
        Change('POST /prompt {"prompt": []}', "status", "400", "500", ("run",)),
    ]


def test_an_additional_kind_of_message_is_one_difference() -> None:
    """Kinds of messages that only one version sent are listed in one difference, without their keys."""
    old = [frame("executing", node="ks"), frame("executing", node=None)]
    new = [frame("executing", node="ks"), frame("done", node="ks", seconds=1)]

    assert changes(old, new)[0] == Change(
        "kinds of messages", "", "frame executing (node null)", "frame done", ("run",)
    )


def test_another_order_of_frames_is_a_difference() -> None:
    """The order of the first frame of each kind counts; status frames do not."""
    started, cached, status = frame("execution_start"), frame("execution_cached"), frame("status")

    assert changes([status, started, cached], [started, status, cached]) == []
    assert changes([started, cached], [cached, started]) == [
        Change(
            "order of the first frames",
            "",
            "frame execution_start, frame execution_cached",
            "frame execution_cached, frame execution_start",
            ("run",),
        )
    ]


def test_only_the_keys_of_the_system_stats_count() -> None:
    """Values of /system_stats depend on the machine, so only a new key is a difference."""
    request = {"method": "GET", "path": "/system_stats"}
    old = {"request": request, "status": 200, "body": {"system": {"ram_total": 1}}}
    new = {"request": request, "status": 200, "body": {"system": {"ram_total": 2, "os": "linux"}}}

    assert [change.what for change in changes([old], [new])] == ["body.system.os"]


def test_a_recording_of_one_version_is_not_compared() -> None:
    """A recording that only one version has is left out."""
    assert message_changes({"old": [frame("status")]}, {"new": [frame("executed")]}) == []
