"""Parses job-take responses into jobs that the SDK can handle, and builds job-done request bodies. No I/O.

Facts about runpod 1.12 that make this module necessary (docs/reference/runpod.md#worker-protocol):

- If `json.loads` cannot parse a batch, the SDK drops all jobs of the batch. One job with about 990 levels of nesting
  (2 kB), or with an integer of more than 4,300 digits, is enough.
- An item that is null or has no id ends the SDK's loop and the process. If an id is not a string or contains a line
  break, the SDK never posts a result for the job, and a header with that id breaks all later requests of the session.
- A result that is not JSON, or contains a lone surrogate, is not posted at all.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

from comfy_core.contract import ErrorReport, Fault, JsonObject
from comfy_core.error_codes import ErrorCode
from comfy_core.errors import JobError, invalid_input

MAX_JOB_DEPTH = 100
"""Nesting levels that are kept if a response is too deep for the JSON parser."""
MAX_ID_CHARACTERS = 256
"""RunPod's ids have about 40 characters. A job with a longer id than this is dropped."""
MAX_INTEGER_CHARACTERS = 400
"""A longer integer is parsed as an infinite float. Validation of the request then rejects it and names its path."""
_CUT_MARKER = "\ue000nested too deeply\ue000"
_TOKENS = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{}]', re.DOTALL)
_TOO_DEEP = Fault("", f"is nested more than {MAX_JOB_DEPTH} levels deep; no workflow needs that")


@dataclass(frozen=True)
class TakeResponse:
    """The content of a job-take response.

    Attributes:
        jobs: the jobs to run.
        rejected: the errors of the jobs to reject, by job id.
        drop_reasons: for each item that is dropped, why no result could be posted for it.
    """

    jobs: tuple[JsonObject, ...]
    rejected: Mapping[str, JobError]
    drop_reasons: tuple[str, ...]


def read_take_response(body: bytes) -> TakeResponse:
    """Return the content of a job-take or job-take-batch response. Raises ValueError if it is not JSON."""
    text = body.decode("utf-8", "surrogatepass")
    try:
        parsed, is_cut = _loads(text), False
    except RecursionError:
        parsed, is_cut = _loads(_without_deep_values(text)), True
    jobs, rejected, drop_reasons = [], {}, []
    for item in parsed if isinstance(parsed, list) else [parsed]:
        job_id = _id_of(item)
        if job_id is None or not isinstance(item, dict):
            drop_reasons.append(_drop_reason(item))
        elif is_cut and _CUT_MARKER in json.dumps(item, ensure_ascii=False):
            rejected[job_id] = invalid_input([_TOO_DEEP])
        else:
            jobs.append(_job(item, job_id))
    return TakeResponse(tuple(jobs), rejected, tuple(drop_reasons))


def read_stops(body: bytes) -> list[str]:
    """Return the valid job ids of a job-stop response. Raises ValueError if it has no list of ids."""
    try:
        parsed = _loads(body.decode("utf-8", "surrogatepass"))
    except RecursionError as error:
        raise ValueError("the JSON is nested too deeply") from error
    ids = parsed.get("jobsToStop") if isinstance(parsed, dict) else None
    if not isinstance(ids, list):
        raise ValueError("jobsToStop is not a list")  # noqa: TRY004 - one kind of error for a bad response
    return [job_id for each in ids if (job_id := _id_of({"id": each})) is not None]


def done_body(result: JsonObject) -> bytes:
    """Return the job-done request body for what the handler returned.

    A result that is not JSON is replaced by the error `internal`, so that the caller always gets a response.
    """
    try:
        return as_json({"error": result["error"]} if "error" in result else {"output": result})
    except (TypeError, ValueError, RecursionError) as error:
        problem = f"The result is not JSON ({type(error).__name__}): a bug in the worker"
        return as_json({"error": ErrorReport.because(ErrorCode.INTERNAL, problem).to_json()})


def progress_body(progress: JsonObject) -> bytes:
    """Return the job-done request body for progress."""
    return as_json({"status": "IN_PROGRESS", "output": progress})


def as_json(body: JsonObject) -> bytes:
    """Return `body` as JSON. Raises TypeError, ValueError or RecursionError if it is not JSON."""
    try:
        return json.dumps(body, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError:  # a lone surrogate must be escaped
        return json.dumps(body, allow_nan=False).encode()


def _loads(text: str) -> object:
    return json.loads(text, parse_int=_integer)


def _integer(digits: str) -> float:
    return int(digits) if len(digits) <= MAX_INTEGER_CHARACTERS else float(digits)


def _id_of(item: object) -> str | None:
    """Return a job's id as text, or None if no result can be posted for it."""
    job_id = item.get("id") if isinstance(item, dict) else None
    if isinstance(job_id, int) and not isinstance(job_id, bool):
        job_id = str(job_id)
    if not isinstance(job_id, str) or not 0 < len(job_id) <= MAX_ID_CHARACTERS:
        return None
    return job_id if job_id.isascii() or _is_encodable(job_id) else None


def _is_encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _drop_reason(item: object) -> str:
    if not isinstance(item, dict):
        return f"it is {type(item).__name__} instead of an object"
    if "id" not in item:
        return "it has no id"
    return f"its id ({repr(item['id'])[:40]}) cannot be part of a URL"


def _job(item: JsonObject, job_id: str) -> JsonObject:
    """Return a job with only valid keys: the SDK uses each key as a keyword argument and an attribute."""
    kept = {key: value for key, value in item.items() if key.isidentifier() and key != "self" and key[0] != "_"}
    return {**kept, "id": job_id, "input": item.get("input")}


def _without_deep_values(text: str) -> str:
    """Return the JSON text with every list and object below MAX_JOB_DEPTH replaced by a marker, without recursion."""
    kept, level, begin = [], 0, 0
    for token in _TOKENS.finditer(text):
        if token[0] in ("[", "{"):
            level += 1
            if level == MAX_JOB_DEPTH + 1:
                kept.append(text[begin : token.start()])
        elif token[0] in ("]", "}"):
            level -= 1
            if level == MAX_JOB_DEPTH:
                kept.append(json.dumps(_CUT_MARKER))
                begin = token.end()
    return "".join([*kept, text[begin:]])
