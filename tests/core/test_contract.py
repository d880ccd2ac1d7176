"""Error reports survive JSON, and the registry of error codes agrees with the code that raises them."""

from __future__ import annotations

import ast
import json
import math
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from comfy_core.contract import ALIASES, ENVELOPE, OUTPUT_FORMATS, ErrorReport, Fault
from comfy_core.error_codes import ErrorCode, Retry
from comfy_core.errors import (
    ComfyClientError,
    ConfigError,
    JobCancelled,
    JobError,
    RequestError,
    WaitTimeout,
    invalid_input,
)

ROOT = Path(__file__).parents[2]
SOURCES = (
    *(file for package in ("comfy_core", "comfy_client", "worker") for file in ROOT.glob(f"{package}/**/*.py")),
    ROOT / "handler.py",
)

RESEND_CODES = {
    "out_of_memory",
    "interrupted",
    "deadline_exceeded",
    "comfyui_unavailable",
    "disk_full",
    "output_not_stored",
    "rate_limited",
    "network",
    "worker_lost",
    "job_expired",
}
NO_RETRY_CODES = {
    "invalid_input",
    "invalid_image",
    "unknown_workflow",
    "workflow_rejected",
    "model_missing",
    "execution_failed",
    "no_output",
    "output_too_large",
    "cancelled",
    "internal",
    "auth_failed",
    "endpoint_not_found",
    "payload_too_large",
    "result_lost",
    "misconfigured",
    "unrecognized",
}
PUBLISHED = (
    dict.fromkeys(RESEND_CODES, Retry.RESEND) | dict.fromkeys(NO_RETRY_CODES, Retry.NO) | {"queue_timeout": Retry.WAIT}
)
"""The codes of released versions. A caller's program may depend on each code and its retry word."""

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def codes_in(file: Path) -> Iterator[tuple[str, bool]]:
    """Yield the name of each `ErrorCode.X` in a file, and whether `ErrorCode.X` is an argument or a default there."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    arguments = {
        id(argument)
        for call in ast.walk(tree)
        if isinstance(call, ast.Call)
        for argument in (*call.args, *(keyword.value for keyword in call.keywords))
    }
    arguments |= {id(each) for node in ast.walk(tree) if isinstance(node, ast.arguments) for each in node.kw_defaults}
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=ast.Name(id="ErrorCode"), attr=name):
                yield name, id(node) in arguments


@given(code=st.sampled_from(ErrorCode), message=st.text(), details=st.dictionaries(st.text(), JSON, max_size=3))
def test_a_report_survives_json(code: ErrorCode, message: str, details: dict[str, object]) -> None:
    """A report that is written as JSON and parsed again is equal to the original."""
    report = ErrorReport(code, message, details)

    assert ErrorReport.from_json(report.to_json()) == report


def test_a_report_is_json_of_four_keys() -> None:
    """A report has the code, the message, whether a retry can help, and the details; letters are not escaped."""
    text = ErrorReport(ErrorCode.OUT_OF_MEMORY, "zu groß", {"node_id": "8"}).to_json()

    assert json.loads(text) == {
        "code": "out_of_memory",
        "message": "zu groß",
        "retryable": True,
        "details": {"node_id": "8"},
    }
    assert "zu groß" in text


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_that_json_lacks_is_an_error(value: float) -> None:
    """`to_json` raises ValueError for NaN and infinity, which are not JSON."""
    with pytest.raises(ValueError, match="JSON"):
        ErrorReport(ErrorCode.INTERNAL, "x", {"value": value}).to_json()


def test_an_unknown_code_is_unrecognized() -> None:
    """A report with the code of a newer worker keeps its message; the details contain the whole report."""
    newer = {"code": "of_tomorrow", "message": "what happened", "retryable": True, "details": {"a": 1}}

    report = ErrorReport.from_json(json.dumps(newer))

    assert report == ErrorReport(ErrorCode.UNRECOGNIZED, "what happened", {"error": newer})
    assert not report.retryable


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Traceback (most recent call last)",
        "null",
        "[]",
        "{}",
        '{"code": 5, "message": "x"}',
        '{"code": "internal"}',
        '{"code": "internal", "message": null}',
        "[" * 200_000,
        "9" * 5_000,
    ],
    ids=lambda text: text[:30],
)
def test_text_that_is_not_a_report_is_unrecognized(text: str) -> None:
    """Any text that is not a report becomes the message, and is repeated in the details."""
    assert ErrorReport.from_json(text) == ErrorReport(ErrorCode.UNRECOGNIZED, text, {"error": text})


@pytest.mark.parametrize("details", ["", ', "details": null', ', "details": [1]'])
def test_details_may_be_missing(details: str) -> None:
    """A report whose details are missing or not an object has none."""
    report = ErrorReport.from_json(f'{{"code": "interrupted", "message": "x"{details}}}')

    assert report == ErrorReport(ErrorCode.INTERRUPTED, "x", {})


@pytest.mark.parametrize("code", ErrorCode)
def test_a_row_of_the_registry_is_complete(code: ErrorCode) -> None:
    """Each code has a known retry word, and a cause and a remedy in full sentences."""
    assert code.retry in Retry
    assert code.retry.meaning.endswith(".")
    assert code.cause.endswith(".")
    assert code.remedy.endswith(".")


def test_published_codes_stay() -> None:
    """No released code is removed or changes its retry word."""
    assert PUBLISHED.items() <= {code.value: code.retry for code in ErrorCode}.items()


@pytest.mark.parametrize("code", ErrorCode)
def test_retryable_means_that_the_request_can_be_resent(code: ErrorCode) -> None:
    """`retryable` is true only for the retry word `resend`, and false if the job may still run."""
    sent = json.loads(ErrorReport(code, "x").to_json())
    unsure = ErrorReport(code, "x", {"may_run": True})

    assert sent["retryable"] == (code.retry is Retry.RESEND)
    assert not unsure.retryable


@pytest.mark.slow
def test_the_code_and_the_registry_agree() -> None:
    """The source mentions exactly the codes of the registry, and has an error that is built with each."""
    mentioned = {name for file in SOURCES for name, _ in codes_in(file)}
    built = {name for file in SOURCES for name, is_built in codes_in(file) if is_built}

    assert mentioned == {code.name for code in ErrorCode}
    assert built == mentioned


def test_the_envelope_is_a_json_schema() -> None:
    """Each request key is a JSON Schema with a description and a valid default; no alias is a workflow's name."""
    jsonschema.Draft202012Validator.check_schema({"properties": ENVELOPE})
    for rule in ENVELOPE.values():
        assert rule["description"].endswith(".")
        if "default" in rule:
            jsonschema.Draft202012Validator(rule).validate(rule["default"])
    assert ENVELOPE["output_format"]["enum"] == list(OUTPUT_FORMATS)
    assert not ALIASES.keys() & ALIASES.values()


def test_a_job_error_prints_its_code_and_message() -> None:
    """The text of the error has code, message and the registry's remedy. The details are only in its report."""
    error = JobError.because(ErrorCode.INTERRUPTED, "Someone pressed stop.", node_id="3")

    assert str(error) == "interrupted: Someone pressed stop. Send the job again."
    assert error.code is ErrorCode.INTERRUPTED
    assert error.report.details == {"node_id": "3"}
    assert isinstance(error, ComfyClientError)
    assert not isinstance(error, JobCancelled)


def test_a_cancelled_job_has_its_own_exception() -> None:
    """`except` distinguishes a cancellation from a failure."""
    assert isinstance(JobError.because(ErrorCode.CANCELLED), JobCancelled)


@pytest.mark.parametrize("problem", ["It broke", "It broke.", ""])
def test_a_message_has_a_problem_and_the_remedy(problem: str) -> None:
    """A message is the problem and the registry's remedy. Without a problem the message begins with the cause."""
    code = ErrorCode.RATE_LIMITED
    message = f"{'It broke.' if problem else code.cause} {code.remedy}"

    assert JobError.because(code, problem).report.message == message
    assert str(RequestError.because(code, problem, status=429)) == message
    assert WaitTimeout("It waits", "job-1").report.message == f"It waits. {ErrorCode.QUEUE_TIMEOUT.remedy}"


def test_a_request_error_keeps_status_and_body() -> None:
    """A caller can read the server's response; without a response there is no status."""
    with_response = RequestError("ComfyUI answered 500", status=500, body="oops")
    without_response = RequestError("ComfyUI was not reached")

    assert (with_response.status, with_response.body) == (500, "oops")
    assert (without_response.status, without_response.body) == (None, "")
    assert issubclass(ConfigError, ComfyClientError)
    assert issubclass(RequestError, ComfyClientError)


def test_all_faults_are_in_one_error() -> None:
    """The message and the details have every fault. The message says `input` for a fault of the whole request."""
    error = invalid_input([Fault("", "must be a JSON object"), Fault("steps", "must be at least 1, not 0")])

    assert (
        error.report.message
        == "The request has 2 faults. input: must be a JSON object; steps: must be at least 1, not 0"
    )
    assert error.report.details["faults"] == [
        {"path": "", "message": "must be a JSON object"},
        {"path": "steps", "message": "must be at least 1, not 0"},
    ]
    assert invalid_input([Fault("steps", "x")]).report.message == "The request has 1 fault. steps: x"
