"""The columns and indexes of the shim's database, and the conversion between a field and its column. Pure."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from comfy_client.gateway.scenario.models import Phase, Side
from comfy_client.providers.scenario_responses import Status

_COLUMNS = {"scenario_request": "asked", "worker_request": "input", "metadata": "about"}
"""Columns that are not named like their field, by the name of the field."""
_FIELDS = {column: name for name, column in _COLUMNS.items()}
_JSON_TYPES = (dict, list, tuple)

INDEXES = (
    "CREATE INDEX IF NOT EXISTS jobs_by_owner ON jobs (owner, created_at, id)",
    "CREATE INDEX IF NOT EXISTS jobs_by_fingerprint ON jobs (fingerprint, created_at)",
    "CREATE INDEX IF NOT EXISTS jobs_by_key ON jobs (owner, idempotency_key) WHERE idempotency_key != ''",
    "CREATE INDEX IF NOT EXISTS jobs_by_phase ON jobs (phase)",
    "CREATE INDEX IF NOT EXISTS jobs_by_side ON jobs (side, status, created_at)",
    """CREATE INDEX IF NOT EXISTS jobs_for_page ON jobs (
        created_at, id, owner, side, status, is_deleted, execution_s, cost_usd, scenario_units, prompt, asset_ids)""",
    "CREATE INDEX IF NOT EXISTS assets_by_owner ON assets (owner, created_at, id)",
    "CREATE INDEX IF NOT EXISTS assets_by_sha256 ON assets (sha256)",
    "CREATE INDEX IF NOT EXISTS assets_by_side ON assets (side, bytes)",
    "CREATE INDEX IF NOT EXISTS uploads_by_owner ON uploads (owner, state)",
    "CREATE INDEX IF NOT EXISTS links_by_scenario_id ON links (scenario_id)",
    "CREATE INDEX IF NOT EXISTS forwarded_by_fingerprint ON forwarded_calls (fingerprint, created_at)",
)
"""`jobs_for_page` has every column of the web page's queries of all jobs, so that they do not read the jobs."""
FILL_PROMPTS = """UPDATE jobs SET prompt = coalesce(
    json_extract(asked, '$.prompt'), json_extract(scenario_record, '$.metadata.input.prompt'), '')"""
"""Sets the column `prompt` in a database that did not have it."""


def column_of(field_name: str) -> str:
    """Return the column of a field."""
    return _COLUMNS.get(field_name, field_name)


def to_column_value(value: object) -> object:
    """Return a field's value as its column stores it."""
    if isinstance(value, _JSON_TYPES):
        return json.dumps(value, ensure_ascii=False)
    return value.value if isinstance(value, Phase | Status | Side) else value


def fields_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a record from its row. Raises ValueError, TypeError."""
    return {_FIELDS.get(name, name): _CONVERTERS.get(name, _unchanged)(value) for name, value in row.items()}


def _unchanged(value: object) -> object:
    return value


def _to_tuple(text: str) -> tuple[Any, ...]:
    return tuple(json.loads(text))


_CONVERTERS: Mapping[str, Callable[[Any], Any]] = {
    "asked": json.loads,
    "input": json.loads,
    "about": json.loads,
    "options": json.loads,
    "notes": _to_tuple,
    "asset_ids": _to_tuple,
    "tags": _to_tuple,
    "history": lambda text: tuple((at, status) for at, status in json.loads(text)),
    "phase": Phase,
    "status": Status,
    "side": Side,
    "scenario_record": json.loads,
    "response": json.loads,
    "is_hidden": bool,
    "is_cancel_wanted": bool,
    "is_answered": bool,
    "is_deleted": bool,
}
"""Functions that convert a column's text or number into the value of the field, by column."""
