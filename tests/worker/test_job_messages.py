"""Parsing of job-take and job-stop responses, valid or not, and job-done bodies, which can always be posted."""

from __future__ import annotations

import json
from typing import Any

import pytest

from comfy_core.contract import ErrorReport, JsonObject
from comfy_core.error_codes import ErrorCode
from worker.job_messages import MAX_JOB_DEPTH, done_body, read_stops, read_take_response

VALID = {"id": "good", "input": {"prompt": "a knight"}}


def batch(*items: str) -> bytes:
    """Return a job-take response: the first of `items`, a valid job, and the other `items`."""
    return f"[{', '.join([*items[:1], json.dumps(VALID), *items[1:]])}]".encode()


def deep_job(levels: int, job_id: str = "deep") -> str:
    """Return the JSON text of a job whose input has lists nested `levels` deep."""
    return f'{{"id": "{job_id}", "input": {{"workflow": {"[" * levels}{"]" * levels}}}}}'


@pytest.mark.parametrize(
    "item",
    [
        "null",
        "5",
        '"text"',
        "[]",
        "{}",
        '{"input": {}}',
        '{"id": null}',
        '{"id": true}',
        '{"id": 1.5}',
        '{"id": ""}',
        '{"id": [1]}',
        '{"id": "' + "x" * 200000 + '"}',
        '{"id": "\\ud800"}',
        '{"id": ' + "7" * 5000 + "}",
    ],
    ids=lambda item: item[:20],
)
def test_an_invalid_item_is_dropped_alone(item: str) -> None:
    """An invalid item is dropped with a short reason; the other job is kept."""
    taken = read_take_response(batch(item))

    assert taken.jobs == (VALID,)
    assert len(taken.drop_reasons) == 1
    assert len(taken.drop_reasons[0]) < 100


@pytest.mark.parametrize(
    ("item", "job"),
    [
        ('{"id": 5, "input": {}}', {"id": "5", "input": {}}),
        ('{"id": "a\\r\\nb", "input": 1}', {"id": "a\r\nb", "input": 1}),
        ('{"id": "none"}', {"id": "none", "input": None}),
        ('{"id": "x", "input": null, "self": 1, "__class__": 2, "a b": 3, "policy": {}}', {"policy": {}}),
    ],
)
def test_a_job_is_converted_to_a_shape_that_the_sdk_can_handle(item: str, job: JsonObject) -> None:
    """The id becomes text, a missing input null, and keys that the SDK cannot pass as keyword arguments are dropped."""
    [kept, good] = read_take_response(batch(item)).jobs

    assert kept == {"id": "x", "input": None, **job}
    assert good == VALID


@pytest.mark.parametrize("levels", [990, 20_000, 200_000])
def test_a_job_that_is_nested_too_deeply_is_rejected_alone(levels: int) -> None:
    """Jobs that are nested deeper than the limit get an error with the limit; the other job is kept."""
    taken = read_take_response(batch(deep_job(levels), deep_job(levels, "second")))

    assert taken.jobs == (VALID,)
    assert set(taken.rejected) == {"deep", "second"}
    assert taken.rejected["deep"].code is ErrorCode.INVALID_INPUT
    assert f"more than {MAX_JOB_DEPTH} levels" in taken.rejected["deep"].report.message


def test_brackets_in_strings_are_not_counted_as_levels() -> None:
    """A prompt of many brackets is accepted unchanged, although another job of the response is nested too deeply."""
    prompt = '[{"' * 500 + "\\"
    text = json.dumps({"id": "brackets", "input": {"prompt": prompt}})

    assert read_take_response(batch(deep_job(990), text)).jobs[1]["input"] == {"prompt": prompt}


def test_a_very_long_integer_becomes_infinity() -> None:
    """A very long integer is parsed as an infinite number, which the request's validation rejects."""
    [job, _] = read_take_response(batch('{"id": "long", "input": {"seed": -' + "9" * 5000 + "}}")).jobs

    assert job["input"]["seed"] == float("-inf")


@pytest.mark.parametrize("body", [b"", b"<html>", b"\xff\xfe", b"[1", b'{"id": "x"'])
def test_invalid_json_is_a_value_error(body: bytes) -> None:
    """Invalid JSON raises ValueError, so that the caller can log it and poll again."""
    with pytest.raises(ValueError, match=r"."):
        read_take_response(body)


@pytest.mark.parametrize("body", [b"", b"null", b"[]", b"{}", b'{"jobsToStop": 5}', b"[" * 5000 + b"]" * 5000])
def test_an_invalid_job_stop_response_is_a_value_error(body: bytes) -> None:
    """An invalid response raises ValueError, so that the caller can log it and poll again."""
    with pytest.raises(ValueError, match=r"."):
        read_stops(body)


def test_job_stop_ids_may_be_text_or_integers() -> None:
    """An integer becomes text, as in job-take; other types are ignored."""
    assert read_stops(b'{"jobsToStop": ["a", 5, null, {}, true, "a"]}') == ["a", "5", "a"]


def self_containing_result() -> dict[str, Any]:
    """Return a result that contains itself in its list of images."""
    result: dict[str, Any] = {}
    result["images"] = [result]
    return result


@pytest.mark.parametrize(
    "result", [{"images": b"x"}, {"seed": float("nan")}, self_containing_result(), {"images": {1, 2}}], ids=str
)
def test_a_result_that_is_not_json_is_posted_as_an_error(result: JsonObject) -> None:
    """A result that JSON cannot represent is posted as an error, because the SDK would post nothing for it."""
    posted = json.loads(done_body(result))

    assert list(posted) == ["error"]
    assert ErrorReport.from_json(posted["error"]).code is ErrorCode.INTERNAL


def test_a_lone_surrogate_is_posted_escaped() -> None:
    """A lone surrogate is escaped, because the SDK would post nothing for it; other text is sent unchanged."""
    assert json.loads(done_body({"texts": ["\ud800"]})) == {"output": {"texts": ["\ud800"]}}
    assert done_body({"texts": ["é"]}) == '{"output": {"texts": ["é"]}}'.encode()
    assert done_body({"error": "text"}) == b'{"error": "text"}'
