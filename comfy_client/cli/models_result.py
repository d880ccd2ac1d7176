"""Formats the result of a job of the task `models` as text lines and as JSON. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from comfy_client.cli.screen import Screen
from comfy_client.cli.tables import Column, table_lines
from comfy_client.models import ModelEntry, ModelList, model_entry, model_list
from comfy_client.providers.interface import GenerationResult
from comfy_core.contract import JsonObject
from comfy_core.request.models_task import DELETE, DOWNLOAD

_HASH_CHARACTERS = 12
_COLUMNS = (
    Column("FILE"),
    Column("SIZE", is_right=True),
    Column("SHA256"),
    Column("LAST USED"),
    Column(),
    Column("SOURCE", is_prose=True),
)
_OTHER_KEYS = frozenset({"task", "timings", "gpu", "cost"})


def models_object(result: GenerationResult) -> JsonObject:
    """Return the result as JSON."""
    report = {name: value for name, value in result.report.items() if name not in _OTHER_KEYS}
    return {"job_id": result.job_id, "cost": result.cost, **report}


def models_lines(screen: Screen, result: GenerationResult) -> list[str]:
    """Return the lines of a list, or the line about the file that was downloaded or deleted."""
    action = result.report.get("action")
    if action == DOWNLOAD:
        is_new = result.report.get("downloaded")
        return [f"{'downloaded' if is_new else 'already there:'} {_summary(model_entry(result))}"]
    if action == DELETE:
        return [f"deleted {_summary(model_entry(result))}"]
    return _list_lines(screen, model_list(result))


def _list_lines(screen: Screen, found: ModelList) -> list[str]:
    """Return a line for each file, and a line with the sums."""
    lines = table_lines(screen, _COLUMNS, [_cells(model) for model in found.models])
    left_out = f" ({found.left_out:,} more are not listed)" if found.left_out else ""
    sizes = [model.bytes for model in found.models if model.bytes is not None]
    total = f", {_size_text(sum(sizes))}" if sizes else ""
    disk = ""
    if found.free_bytes is not None and found.total_bytes is not None:
        disk = f"; {_size_text(found.free_bytes)} of {_size_text(found.total_bytes)} are free"
    files = "1 file" if len(found.models) == 1 else f"{len(found.models):,} files"
    return [*lines, f"{files}{left_out}{total}{disk}"]


def _cells(model: ModelEntry) -> Sequence[str]:
    return (
        model.path,
        "" if model.bytes is None else _size_text(model.bytes),
        (model.sha256 or "")[:_HASH_CHARACTERS],
        (model.last_used or "")[:16].replace("T", " "),
        "in use" if model.in_use else "",
        model.source or "",
    )


def _summary(model: ModelEntry) -> str:
    size = f"  {model.bytes:,} bytes" if model.bytes is not None else ""
    return f"{model.path}{size}{f'  sha256 {model.sha256}' if model.sha256 else ''}"


def _size_text(size: int) -> str:
    """Return a size as text in MB or GB (powers of 1,000)."""
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"  # noqa: PLR2004 - units
