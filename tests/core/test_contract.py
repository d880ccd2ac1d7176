"""What travels: the report survives the wire, and the registry of errors and the code that raises them agree."""

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

from comfy_core.contract import ALIASES, ENVELOPE, ERRORS, OUTPUT_FORMATS, ErrorCode, ErrorReport, Fault
from comfy_core.errors import ComfyClientError, ConfigError, JobCancelled, JobError, RequestError, invalid_input

ROOT = Path(__file__).parents[2]
SOURCES = (
    *(file for package in ("comfy_core", "comfy_client", "worker") for file in ROOT.glob(f"{package}/**/*.py")),
    ROOT / "handler.py",
)

RETRYABLE = {
    "invalid_input": False,
    "invalid_image": False,
    "unknown_workflow": False,
    "workflow_rejected": False,
    "model_missing": False,
    "execution_failed": False,
    "out_of_memory": True,
    "interrupted": True,
    "deadline_exceeded": True,
    "comfyui_unavailable": True,
    "disk_full": True,
    "no_output": False,
    "output_too_large": False,
    "output_not_stored": True,
    "internal": False,
}
"""The table of design.md, as far as it gives a flag."""

ADDED_BY_CLIENTS = {
    "auth_failed",
    "endpoint_not_found",
    "rate_limited",
    "payload_too_large",
    "network",
    "job_expired",
    "result_lost",
    "cancelled",
    "queue_timeout",
    "misconfigured",
    "worker_lost",
    "unrecognized",
}
"""The codes of design.md that have no flag there, and one that was added: RunPod lost the worker that had the job."""

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def codes_in(file: Path) -> Iterator[tuple[str, bool]]:
    """Yield each `ErrorCode.X` that a file mentions, and whether an error is built with it, or is so by default."""
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
def test_a_report_survives_the_wire(code: ErrorCode, message: str, details: dict[str, object]) -> None:
    """Every report comes back from its JSON text as it was."""
    report = ErrorReport(code, message, details)

    assert ErrorReport.from_json(report.to_json()) == report


def test_a_report_is_json_of_four_keys() -> None:
    """The wire names the code, the message, whether a second try may help, and the details, letters as they are."""
    text = ErrorReport(ErrorCode.OUT_OF_MEMORY, "zu groß", {"node_id": "8"}).to_json()

    assert json.loads(text) == {
        "code": "out_of_memory",
        "message": "zu groß",
        "retryable": True,
        "details": {"node_id": "8"},
    }
    assert "zu groß" in text


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_report_never_carries_what_is_no_json(value: float) -> None:
    """NaN and infinity do not leave as bare words that no decoder takes."""
    with pytest.raises(ValueError, match="JSON"):
        ErrorReport(ErrorCode.INTERNAL, "x", {"value": value}).to_json()


def test_an_unknown_code_reads_as_unrecognized() -> None:
    """The report of a newer worker keeps its message and all that it said."""
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
def test_what_is_no_report_reads_as_unrecognized(text: str) -> None:
    """Any other text is kept as the message."""
    assert ErrorReport.from_json(text) == ErrorReport(ErrorCode.UNRECOGNIZED, text, {"error": text})


@pytest.mark.parametrize("details", ["", ', "details": null', ', "details": [1]'])
def test_details_may_be_absent(details: str) -> None:
    """A report without details, or with details that are no object, has none."""
    report = ErrorReport.from_json(f'{{"code": "interrupted", "message": "x"{details}}}')

    assert report == ErrorReport(ErrorCode.INTERRUPTED, "x", {})


def test_every_code_is_in_the_registry_with_its_text() -> None:
    """Each code has facts, each with a cause and a remedy that are sentences."""
    assert set(ERRORS) == set(ErrorCode)
    for facts in ERRORS.values():
        assert facts.cause.endswith(".")
        assert facts.remedy.endswith(".")


def test_retryable_is_what_the_design_says() -> None:
    """The registry's flags are those of the design's table, and it has no code that the design does not name."""
    flags = {code.value: facts.retryable for code, facts in ERRORS.items() if code.value not in ADDED_BY_CLIENTS}

    assert flags.items() <= RETRYABLE.items()


def test_every_code_of_the_source_is_in_the_registry() -> None:
    """No file mentions a code that the registry does not explain."""
    mentioned = {name for file in SOURCES for name, _ in codes_in(file)}

    assert mentioned <= {code.name for code in ERRORS}


def test_every_code_of_the_registry_is_raised() -> None:
    """No code is explained that nothing makes."""
    built = {name for file in SOURCES for name, is_built in codes_in(file) if is_built}

    assert {code.name for code in ERRORS} - built == set()


def test_the_envelope_is_a_json_schema() -> None:
    """The keys of every request are valid JSON Schema, described, with defaults that keep their own rules."""
    jsonschema.Draft202012Validator.check_schema({"properties": ENVELOPE})
    for rule in ENVELOPE.values():
        assert rule["description"].endswith(".")
        if "default" in rule:
            jsonschema.Draft202012Validator(rule).validate(rule["default"])
    assert ENVELOPE["output_format"]["enum"] == list(OUTPUT_FORMATS)
    assert not ALIASES.keys() & ALIASES.values()


def test_a_job_error_says_its_code_and_message() -> None:
    """What a log prints of an error is its code and its message; its report has the details."""
    error = JobError.because(ErrorCode.INTERRUPTED, "Someone pressed stop.", node_id="3")

    assert str(error) == "interrupted: Someone pressed stop."
    assert error.code is ErrorCode.INTERRUPTED
    assert error.report.details == {"node_id": "3"}
    assert isinstance(error, ComfyClientError)
    assert not isinstance(error, JobCancelled)


def test_a_cancelled_job_has_a_type_of_its_own() -> None:
    """Cancelling is told from failing by `except`."""
    assert isinstance(JobError.because(ErrorCode.CANCELLED, "The job was cancelled."), JobCancelled)


def test_a_request_error_keeps_status_and_body() -> None:
    """A caller can read what a server answered; one that did not answer has no status."""
    answered = RequestError("ComfyUI answered 500", status=500, body="oops")
    silent = RequestError("ComfyUI was not reached")

    assert (answered.status, answered.body) == (500, "oops")
    assert (silent.status, silent.body) == (None, "")
    assert issubclass(ConfigError, ComfyClientError)
    assert issubclass(RequestError, ComfyClientError)


def test_all_faults_stand_in_one_error() -> None:
    """The message and the details of invalid_input name every fault; what concerns the whole is called `input`."""
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
