"""The log line `job ended`: one record for each job, for metrics and bills. No I/O.

A record has no prompt, image, token or URL.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from comfy_core.comfyui.model_inputs import FETCHED_FOLDER
from comfy_core.contract import ErrorReport, JsonObject
from comfy_core.request.models_task import is_models_task

MESSAGE = "job ended"
"""The message of the log line."""
FIELDS: Mapping[str, str] = {
    "state": "`COMPLETED`, `FAILED` or `CANCELLED`",
    "code": "error code of a failed job ([errors.md](errors.md)), otherwise null",
    "workflow": "name of the template, also of one in the request (`x-name`), `custom` for a graph of the caller, "
    "`models` for a job of the task `models`, or null if the request was rejected before it was known",
    "models": "model files that the graphs name and the worker has, as `folder/name`; of a file by address, only the "
    "first digits of its hash; null if the worker does not know ComfyUI's folders, or the job ended before",
    "images": "number of images in the result",
    "bytes": "size of the result's images and other files together, before base64",
    "retries": "how often the job was run again because another job ended ComfyUI",
    "worker_s": "seconds from the job's arrival at the worker to its response, with all waits",
    "timings": "the result's `timings` ([api.md](api.md#the-result)); `{}` without a result",
    "gpu": "the result's `gpu`; null without a result",
    "cost": "the result's `cost` in US dollars; null without a result, or if the price is not known",
}
"""The meaning of each field of a record, by its name. docs/operate.md is generated from it."""
_HASH = re.compile(rf"({FETCHED_FOLDER}/[0-9a-f]{{12}})[0-9a-f]{{52}}")
"""The file of a model by address. Its whole hash would give access to a private file (comfy_core/models/store.py)."""


@dataclass
class JobNotes:
    """What is noted for a job's record while it runs.

    Attributes:
        workflow: as the field `workflow`.
        models: names of model files as `folder/name`, or None if they are not known.
        runs: number of runs that have started.
    """

    workflow: str | None = None
    models: tuple[str, ...] | None = None
    runs: int = 0


def job_record(job: Mapping[str, Any], outcome: JsonObject | None, notes: JobNotes, worker_s: float) -> JsonObject:
    """Return the record of a job. `outcome` is what the handler returns, or None if the job was cancelled."""
    result = outcome if outcome is not None and "error" not in outcome else {}
    saved = [*result.get("images", ()), *result.get("files", ())]
    record = {
        **_ending(outcome),
        "workflow": "models" if is_models_task(job.get("input")) else notes.workflow,
        "models": None if notes.models is None else [_HASH.sub(r"\1", name) for name in notes.models],
        "images": len(result.get("images", ())),
        "bytes": sum(each["bytes"] for each in saved),
        "retries": max(0, notes.runs - 1),
        "worker_s": round(worker_s, 4),
        "timings": result.get("timings", {}),
        "gpu": result.get("gpu"),
        "cost": result.get("cost"),
    }
    return {name: record[name] for name in FIELDS}


def _ending(outcome: JsonObject | None) -> JsonObject:
    if outcome is None:
        return {"state": "CANCELLED", "code": None}
    if "error" in outcome:
        return {"state": "FAILED", "code": ErrorReport.from_json(outcome["error"]).code.value}
    return {"state": "COMPLETED", "code": None}
