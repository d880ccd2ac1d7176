"""What a job-take response contains, as jobs that the SDK can handle, and the body of a job-done request. No I/O.

Facts about runpod 1.12 that make this module necessary (docs/reference/runpod.md 1.2 and 1.3):

- A batch that `json.loads` cannot read is dropped whole. A nesting of about 990 levels (2 kB) or an integer of more
  than 4,300 digits is enough, and the other jobs of the batch are lost with it.
- An item that is null or has no id ends the SDK's loop, and with it the process. An id that is no string, or has a line
  break, is never answered, and its header breaks every later request of the session.
- An answer that is not JSON, or has a lone surrogate, is not posted at all.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

from comfy_core.contract import ErrorCode, ErrorReport, Fault, JsonObject
from comfy_core.errors import JobError, invalid_input

MAX_DEPTH = 100
"""Levels of nesting that are kept where a response is too deep for the JSON parser."""
MAX_ID_CHARACTERS = 256
"""RunPod's ids have about 40. One that does not fit into an address cannot be answered."""
MAX_INTEGER_CHARACTERS = 400
"""A longer integer is read as a float, which is infinite: the request's validation refuses it and names its path."""
_CUT = "\ue000nested too deeply\ue000"
_TOKENS = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{}]', re.DOTALL)
_TOO_DEEP = Fault("", f"is nested more than {MAX_DEPTH} levels deep; no workflow needs that")


@dataclass(frozen=True)
class TakeResponse:
    """What a response holds: jobs to run, jobs to be answered with an error at once, and why others are dropped."""

    jobs: tuple[JsonObject, ...]
    refused: Mapping[str, JobError]
    """By the id of the job."""
    dropped: tuple[str, ...]


def read_take_response(body: bytes) -> TakeResponse:
    """Return the jobs of a response of job-take or job-take-batch. Raises ValueError if it is no JSON."""
    text = body.decode("utf-8", "surrogatepass")
    try:
        parsed, is_cut = _loads(text), False
    except RecursionError:
        parsed, is_cut = _loads(_without_deep_values(text)), True
    jobs, refused, dropped = [], {}, []
    for item in parsed if isinstance(parsed, list) else [parsed]:
        job_id = _id_of(item)
        if job_id is None or not isinstance(item, dict):
            dropped.append(_why_dropped(item))
        elif is_cut and _CUT in json.dumps(item, ensure_ascii=False):
            refused[job_id] = invalid_input([_TOO_DEEP])
        else:
            jobs.append(_job(item, job_id))
    return TakeResponse(tuple(jobs), refused, tuple(dropped))


def read_stops(body: bytes) -> list[str]:
    """Return the ids of a response of job-stop. Raises ValueError if it is not one."""
    try:
        parsed = _loads(body.decode("utf-8", "surrogatepass"))
    except RecursionError as error:
        raise ValueError("the JSON is nested too deeply") from error
    ids = parsed.get("jobsToStop") if isinstance(parsed, dict) else None
    if not isinstance(ids, list):
        raise ValueError("jobsToStop is no list")  # noqa: TRY004 - one kind of error for a bad response
    return [job_id for each in ids if (job_id := _id_of({"id": each})) is not None]


def done_body(answer: JsonObject) -> bytes:
    """Return the body of a job-done request for what the handler returned.

    An answer that is not JSON becomes the error `internal`: whatever happened, the caller gets an answer.
    """
    try:
        return as_json({"error": answer["error"]} if "error" in answer else {"output": answer})
    except (TypeError, ValueError, RecursionError) as error:
        message = f"The result is not JSON ({type(error).__name__}): a bug in the worker."
        return as_json({"error": ErrorReport(ErrorCode.INTERNAL, message).to_json()})


def progress_body(progress: JsonObject) -> bytes:
    """Return the body of a job-done request for progress."""
    return as_json({"status": "IN_PROGRESS", "output": progress})


def as_json(body: JsonObject) -> bytes:
    """Return a body as JSON. Raises TypeError, ValueError or RecursionError if it is none."""
    try:
        return json.dumps(body, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError:  # a lone surrogate, which JSON can only carry escaped
        return json.dumps(body, allow_nan=False).encode()


def _loads(text: str) -> object:
    return json.loads(text, parse_int=_integer)


def _integer(digits: str) -> float:
    return int(digits) if len(digits) <= MAX_INTEGER_CHARACTERS else float(digits)


def _id_of(item: object) -> str | None:
    """Return the id of a job as text, or None if the job cannot be answered."""
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


def _why_dropped(item: object) -> str:
    if not isinstance(item, dict):
        return f"it is {type(item).__name__} instead of an object"
    if "id" not in item:
        return "it has no id"
    return f"its id ({repr(item['id'])[:40]}) cannot be part of an address"


def _job(item: JsonObject, job_id: str) -> JsonObject:
    """Return a job as the SDK keeps it: it passes every key on as a keyword argument and sets it as an attribute."""
    kept = {key: value for key, value in item.items() if key.isidentifier() and key != "self" and key[0] != "_"}
    return {**kept, "id": job_id, "input": item.get("input")}


def _without_deep_values(text: str) -> str:
    """Return JSON with every value below MAX_DEPTH replaced by a mark, without recursion."""
    kept, level, begin = [], 0, 0
    for token in _TOKENS.finditer(text):
        if token[0] in ("[", "{"):
            level += 1
            if level == MAX_DEPTH + 1:
                kept.append(text[begin : token.start()])
        elif token[0] in ("]", "}"):
            level -= 1
            if level == MAX_DEPTH:
                kept.append(json.dumps(_CUT))
                begin = token.end()
    return "".join([*kept, text[begin:]])
