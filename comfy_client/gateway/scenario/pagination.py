"""Filtering, sorting and pagination of lists, as in Scenario's API (docs/reference/scenario.md#lists-of-jobs)."""

from __future__ import annotations

import base64
import binascii
import datetime as dt
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from comfy_client.gateway.scenario.errors import bad_request
from comfy_client.gateway.scenario.filters import Filter
from comfy_client.gateway.scenario.models import SHARED_OWNER, ShimAsset, ShimJob
from comfy_client.gateway.scenario.record_schemas import SWITCH, TEXT, TIME
from comfy_client.gateway.scenario.store import Record, Store
from comfy_core.contract import Fault, JsonObject

Query: TypeAlias = Mapping[str, str]
Condition: TypeAlias = tuple[str, Callable[[str], tuple[object, ...]]]
"""An SQL condition, and the parser that turns the text of a query parameter into the values of the condition."""

_DEFAULT_SIZE = 50
_MAX_PAGE_SIZE = 100
_ORDERS = {"createdAt": "created_at", "updatedAt": "updated_at"}


def _parse_text(value: str) -> tuple[object, ...]:
    return (value,)


def _parse_list(value: str) -> tuple[object, ...]:
    """Return a comma-separated list (as the SDK sends it) as a JSON array for `_IN`."""
    return (json.dumps([part.strip() for part in value.split(",")]),)


def _parse_time(value: str) -> tuple[object, ...]:
    moment = dt.datetime.fromisoformat(value.strip())
    return ((moment if moment.tzinfo else moment.replace(tzinfo=dt.UTC)).timestamp(),)


def _parse_boolean(value: str) -> tuple[object, ...]:
    if value not in ("true", "false"):
        raise ValueError(value)
    return (int(value == "true"),)


_PARAMETER_SCHEMAS: Mapping[Callable[[str], tuple[object, ...]], JsonObject] = {
    _parse_time: TIME,
    _parse_boolean: SWITCH,
}
_IN = "{} IN (SELECT value FROM json_each(?))"
_COMMON: Mapping[str, Condition] = {
    "authorId": ("owner = ?", _parse_text),
    "createdAfter": ("created_at > ?", _parse_time),
    "createdBefore": ("created_at < ?", _parse_time),
    "updatedAfter": ("updated_at > ?", _parse_time),
    "updatedBefore": ("updated_at < ?", _parse_time),
}
FILTERS: Mapping[type, Mapping[str, Condition]] = {
    ShimJob: {
        **_COMMON,
        "status": (_IN.format("status"), _parse_list),
        "type": (_IN.format("job_type"), _parse_list),
        "types": (_IN.format("job_type"), _parse_list),
        "workflowId": ("? = ''", _parse_text),
        "hideResults": ("is_hidden = ?", _parse_boolean),
    },
    ShimAsset: {
        **_COMMON,
        "type": (_IN.format("type"), _parse_list),
        "types": (_IN.format("type"), _parse_list),
        "modelId": ("model_id = ?", _parse_text),
        "inferenceId": ("job_id = ?", _parse_text),
        "tags": (
            "EXISTS (SELECT 1 FROM json_each(tags) AS t JOIN json_each(?) AS w ON t.value = w.value)",
            _parse_list,
        ),
        "privacy": ("? = 'private'", _parse_text),
        "collectionId": ("? = ''", _parse_text),
        "parentAssetId": ("? = ''", _parse_text),
        "rootAssetId": ("? = ''", _parse_text),
        "deleted": ("? = 0", _parse_boolean),
    },
}
"""The filters of each list. A filter for something that the shim does not have (collections, workflows) matches
nothing."""


@dataclass(frozen=True)
class PageQuery:
    """The filter, order and page size of a list request."""

    wanted: Filter
    order: str
    is_descending: bool
    size: int


def parse_page_query(kind: type, owner: str | None, query: Query, *, only: Filter | None = None) -> PageQuery:
    """Parse the query of a list request for the records of `owner`, or of all owners if it is None.

    Unknown keys are ignored. Raises ShimError (400).
    """
    faults: list[Fault] = []
    wanted = _visible_to(owner, only or Filter())
    for name, (condition, parse) in FILTERS[kind].items():
        if text := query.get(name, ""):
            try:
                wanted = wanted.where(condition, *parse(text))
            except (ValueError, OverflowError):
                faults.append(
                    Fault(name, "must be true or false" if parse is _parse_boolean else "must be an ISO 8601 time")
                )
    order, direction = query.get("sortBy") or "createdAt", query.get("sortDirection") or "desc"
    if order not in _ORDERS:
        faults.append(Fault("sortBy", f"must be one of {', '.join(_ORDERS)}"))
    if direction not in ("asc", "desc"):
        faults.append(Fault("sortDirection", "must be asc or desc"))
    size = query.get("pageSize") or str(_DEFAULT_SIZE)
    if not (size.isascii() and size.isdigit() and len(size) <= 3 and 1 <= int(size) <= _MAX_PAGE_SIZE):  # noqa: PLR2004 - digits of _MAX_PAGE_SIZE
        faults.append(Fault("pageSize", f"must be a whole number from 1 to {_MAX_PAGE_SIZE}"))
    token = query.get("paginationToken") or ""
    position = _read_token(token) if token else None
    if token and position is None:
        faults.append(Fault("paginationToken", "is invalid. Start without a token"))
    if faults:
        raise bad_request(faults)
    column = _ORDERS[order]
    if position is not None:
        wanted = wanted.where(f"({column}, id) {'<' if direction == 'desc' else '>'} (?, ?)", *position)
    return PageQuery(wanted, column, direction == "desc", int(size))


def _visible_to(owner: str | None, wanted: Filter) -> Filter:
    return wanted if owner is None else wanted.where("owner IN (?, ?)", owner, SHARED_OWNER)


def fetch_page(store: Store, kind: type[Record], page: PageQuery) -> tuple[list[Record], JsonObject]:
    """Return the records of a page, and a dict that has `nextPaginationToken` unless it is the last page."""
    rows = store.page(kind, page.wanted, order=page.order, is_descending=page.is_descending, size=page.size + 1)
    if len(rows) <= page.size:
        return rows, {}
    rows = rows[: page.size]
    return rows, {"nextPaginationToken": next_page(rows[-1], page.order)}


def next_page(last: Record, order: str) -> str:
    """Return the token of the page after the record `last`, in the order of the column `order`."""
    token = json.dumps([getattr(last, order), last.id])
    return base64.urlsafe_b64encode(token.encode()).decode()


def _read_token(token: str) -> tuple[float, str] | None:
    try:
        match json.loads(base64.urlsafe_b64decode(token)):
            case [float() | int() as at, str(row_id)]:
                return float(at), row_id
    except (binascii.Error, ValueError, RecursionError):
        pass
    return None


def query_parameters(kind: type) -> JsonObject:
    """Return the query parameters of a list with their schemas, for the OpenAPI document."""
    return {
        **{name: _PARAMETER_SCHEMAS.get(parse, TEXT) for name, (_, parse) in FILTERS[kind].items()},
        "sortBy": {"type": "string", "enum": list(_ORDERS)},
        "sortDirection": {"type": "string", "enum": ["asc", "desc"]},
        "pageSize": {"type": "integer", "minimum": 1, "maximum": _MAX_PAGE_SIZE},
        "paginationToken": TEXT,
    }
