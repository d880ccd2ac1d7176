"""Property tests of the parsers of RunPod's responses: any JSON is parsed, and a parsed status is consistent."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from comfy_client.providers.interface import JobState, JobStatus
from comfy_client.providers.results import read_result
from comfy_client.providers.runpod_responses import read_error, read_health, read_progress, read_status
from comfy_core.errors import JobError
from comfy_core.http import error_message

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
NAMES = ("IN_QUEUE", "IN_PROGRESS", "COMPLETED", "FAILED", "CANCELLED", "TIMED_OUT", "EXPIRED", "NEW")
KEYS = ("output", "error", "delayTime", "executionTime", "workerId", "retries", "stage", "preview", "percent")
JOBS = st.builds(
    lambda name, job_id, rest: {**rest, "id": job_id, "status": name},
    st.sampled_from(NAMES) | JSON,
    st.just("j1-u1") | JSON,
    st.dictionaries(st.sampled_from(KEYS), JSON, max_size=6),
)


@given(JOBS | JSON)
def test_any_response_is_parsed_as_a_status_or_as_none(body: object) -> None:
    """Only a job that ended without success has an error, only an ended one output, and only a running one progress."""
    status = read_status(body)

    if status is None:
        return
    assert status.job_id
    assert (status.error is not None) == (status.state.is_final and status.state is not JobState.SUCCEEDED)
    assert status.output is None or status.state.is_final
    assert status.progress is None or status.state is JobState.RUNNING
    assert status.state is not JobState.SUCCEEDED or status.output is not None
    assert json.loads(status.error.to_json())["message"] if status.error else True


@given(JSON)
def test_any_json_is_parsed_as_an_error_a_health_and_a_progress(value: object) -> None:
    """Any JSON value can be parsed as an error, as a health and as a progress."""
    assert read_error(value).message is not None
    assert read_health(value).why
    assert read_health({"jobs": value, "workers": value}).sentence
    read_progress(value)
    read_progress({"stage": "sampling", "percent": value, "preview": value, "step": value})
    assert "<html" not in error_message(json.dumps(value))


ENTRIES = st.dictionaries(
    st.sampled_from(["filename", "type", "data", "mime_type", "sha256", "seed", "width"]),
    JSON | st.sampled_from(["base64", "data:image/png;base64,aGk=", "aGk=", "/a/path"]),
    max_size=6,
)


@given(
    st.dictionaries(st.sampled_from(["images", "files", "texts", "seed", "workflow"]), st.lists(ENTRIES | JSON) | JSON)
)
def test_any_output_is_parsed_as_a_result_or_a_job_error(output: dict[str, object]) -> None:
    """An output is parsed as a result that is not empty, or raises a JobError with the job's id."""
    failed_job, result = None, None
    try:
        result = read_result(JobStatus("j1", JobState.SUCCEEDED, output=output), "comfyui")
    except JobError as error:
        failed_job = error.job_id
    assert failed_job == "j1" if result is None else result.images or result.files or result.texts


@given(st.text())
def test_any_text_is_parsed_as_an_error_message(text: str) -> None:
    """The message of any text has at most 300 characters."""
    read_error(text)

    assert len(error_message(text)) <= 300
