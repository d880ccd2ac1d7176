"""Lists as Scenario gives them: filters and pages from a query (docs/reference/scenario.md#lists-of-jobs)."""

from __future__ import annotations

import base64
import binascii
import datetime as dt
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from comfy_client.gateway.scenario.errors import bad_request
from comfy_client.gateway.scenario.models import AssetRow, JobRow
from comfy_client.gateway.scenario.store import Filter, Kept, Store
from comfy_core.contract import Fault, JsonObject

Query: TypeAlias = Mapping[str, str]
Condition: TypeAlias = tuple[str, Callable[[str], tuple[object, ...]]]

_DEFAULT_SIZE = 50
_MOST = 100
_ORDERS = {"createdAt": "created_at", "updatedAt": "updated_at"}


def _one(value: str) -> tuple[object, ...]:
    return (value,)


def _many(value: str) -> tuple[object, ...]:
    """Return the values of a list, which the SDK sends as one text with commas, as JSON's text of a list."""
    return (json.dumps([part.strip() for part in value.split(",")]),)


def _moment(value: str) -> tuple[object, ...]:
    moment = dt.datetime.fromisoformat(value.strip())
    return ((moment if moment.tzinfo else moment.replace(tzinfo=dt.UTC)).timestamp(),)


def _truth(value: str) -> tuple[object, ...]:
    if value not in ("true", "false"):
        raise ValueError(value)
    return (int(value == "true"),)


_IN = "{} IN (SELECT value FROM json_each(?))"
_COMMON: Mapping[str, Condition] = {
    "authorId": ("owner = ?", _one),
    "createdAfter": ("created_at > ?", _moment),
    "createdBefore": ("created_at < ?", _moment),
    "updatedAfter": ("updated_at > ?", _moment),
    "updatedBefore": ("updated_at < ?", _moment),
}
FILTERS: Mapping[type, Mapping[str, Condition]] = {
    JobRow: {
        **_COMMON,
        "status": (_IN.format("status"), _many),
        "type": (_IN.format("job_type"), _many),
        "types": (_IN.format("job_type"), _many),
        "workflowId": ("? = ''", _one),
        "hideResults": ("is_hidden = ?", _truth),
    },
    AssetRow: {
        **_COMMON,
        "type": (_IN.format("type"), _many),
        "types": (_IN.format("type"), _many),
        "modelId": ("model_id = ?", _one),
        "inferenceId": ("job_id = ?", _one),
        "tags": ("EXISTS (SELECT 1 FROM json_each(tags) AS t JOIN json_each(?) AS w ON t.value = w.value)", _many),
        "privacy": ("? = 'private'", _one),
        "collectionId": ("? = ''", _one),
        "parentAssetId": ("? = ''", _one),
        "rootAssetId": ("? = ''", _one),
        "deleted": ("? = 0", _truth),
    },
}
"""What a list is filtered by. What no row here has (a collection, a workflow) matches none."""


@dataclass(frozen=True)
class Page:
    """What a query asks for."""

    wanted: Filter
    order: str
    is_descending: bool
    size: int


def read_page(kind: type, owner: str, query: Query, *, only: Filter | None = None) -> Page:
    """Return what `query` asks for of `owner`'s rows. Unknown keys count for nothing. Raises ShimError (400)."""
    faults: list[Fault] = []
    wanted = (only or Filter()).where("owner = ?", owner)
    for name, (condition, values) in FILTERS[kind].items():
        if text := query.get(name, ""):
            try:
                wanted = wanted.where(condition, *values(text))
            except (ValueError, OverflowError):
                faults.append(Fault(name, "must be true or false" if values is _truth else "must be an ISO time"))
    order, direction = query.get("sortBy") or "createdAt", query.get("sortDirection") or "desc"
    if order not in _ORDERS:
        faults.append(Fault("sortBy", f"must be one of {', '.join(_ORDERS)}"))
    if direction not in ("asc", "desc"):
        faults.append(Fault("sortDirection", "must be asc or desc"))
    size = query.get("pageSize") or str(_DEFAULT_SIZE)
    if not (size.isascii() and size.isdigit() and len(size) <= 3 and 1 <= int(size) <= _MOST):  # noqa: PLR2004 - digits of _MOST
        faults.append(Fault("pageSize", f"must be a whole number from 1 to {_MOST}"))
    token = query.get("paginationToken") or ""
    position = _read_token(token) if token else None
    if token and position is None:
        faults.append(Fault("paginationToken", "is none that a list gave: begin without one"))
    if faults:
        raise bad_request(faults)
    column = _ORDERS[order]
    if position is not None:
        wanted = wanted.where(f"({column}, id) {'<' if direction == 'desc' else '>'} (?, ?)", *position)
    return Page(wanted, column, direction == "desc", int(size))


def fill_page(store: Store, kind: type[Kept], page: Page) -> tuple[list[Kept], JsonObject]:
    """Return a page's rows, and what stands beside them: the next page's token, where there is one that has rows."""
    rows = store.page(kind, page.wanted, order=page.order, is_descending=page.is_descending, size=page.size + 1)
    if len(rows) <= page.size:
        return rows, {}
    rows = rows[: page.size]
    token = json.dumps([getattr(rows[-1], page.order), rows[-1].id])
    return rows, {"nextPaginationToken": base64.urlsafe_b64encode(token.encode()).decode()}


def _read_token(token: str) -> tuple[float, str] | None:
    try:
        match json.loads(base64.urlsafe_b64decode(token)):
            case [float() | int() as at, str(row_id)]:
                return float(at), row_id
    except (binascii.Error, ValueError, RecursionError):
        pass
    return None


def names(kind: type) -> Iterator[str]:
    """Yield the names of a list's query, for the OpenAPI document."""
    yield from (*FILTERS[kind], "sortBy", "sortDirection", "pageSize", "paginationToken")
