"""Compares the desired request bodies with the current state, and returns the changes. No I/O."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from comfy_core.contract import JsonObject

OMITTED_VALUES: JsonObject = {
    "env": {},
    "registry": None,
    "networkVolumes": [],
    "dataCenterIds": [],
    "gpu.excludedTypes": [],
    "gpu.allowedCudaVersions": [],
    "gpu.minCudaVersion": "",
    "gpu.count": 1,
}
"""By field: the value that is assumed if RunPod's response omits the field or has null.

A create does not list these values.
"""
HIDDEN = "(not shown)"
KEYS: Mapping[str, str] = {
    "disk": "disk_gb",
    "timeout": "workers.execution_timeout_s",
    "gpu.excludedTypes": "gpu.excluded",
    "gpu.minCudaVersion": "gpu.min_cuda_version",
    "workers.idleTimeout": "workers.idle_timeout_s",
    "scaling.queueDelay": "workers.queue_delay_s",
    "flashboot": "workers.flashboot",
    "networkVolumes": "storage.network_volume",
    "dataCenterIds": "storage.data_centers",
    "modelReferences": "storage.cached_model",
}
"""Keys of deploy.toml for RunPod's fields, if their names differ."""
FIXED = frozenset({"serverless", "startSsh", "startJupyter", "gpu.count", "scaling.type"})
"""Fields that deploy.toml cannot set. An update lists them if they differ at RunPod; a create does not list them."""
_MS = 1000


@dataclass(frozen=True)
class Change:
    """A change of one key of deploy.toml, or of a RunPod field that has no key there.

    Old values of environment variables are always hidden, and new ones unless deploy.toml contains them.
    """

    path: str
    before: str
    after: str

    @property
    def line(self) -> str:
        """The change as text for the user."""
        if not self.before:
            return f"+ {self.path} = {self.after}"
        return f"~ {self.path}: {self.before} -> {self.after}" if self.after else f"- {self.path}: {self.before}"


@dataclass(frozen=True)
class DeployStep:
    """One create or update call. `body` has all fields for a create, and the changed fields for an update."""

    verb: Literal["create", "update"]
    what: Literal["template", "endpoint", "cached model"]
    name: str
    changes: tuple[Change, ...]
    body: JsonObject

    @property
    def lines(self) -> list[str]:
        """The step and its changes as text for the user."""
        return [f"{self.verb} {self.what} {self.name}", *(f"  {change.line}" for change in self.changes)]


def changes_of(wanted: JsonObject, found: JsonObject | None, shown_variables: Collection[str]) -> tuple[Change, ...]:
    """Return the changes from `found` to `wanted`, including removed environment variables.

    If `found` is None, these are all fields except the FIXED ones and those with the value in OMITTED_VALUES. The new
    values of the environment variables `shown_variables` are shown. All other values of variables are hidden.
    """
    return tuple(_changes(wanted, found, shown_variables))


def patch_of(wanted: JsonObject, found: JsonObject) -> JsonObject:
    """Return the top-level fields of `wanted` that differ in `found`, each with its complete value."""
    return {name: value for name, value in wanted.items() if tuple(_changes({name: value}, found, ()))}


def _changes(wanted: JsonObject, found: JsonObject | None, shown_variables: Collection[str]) -> Iterator[Change]:
    for name, value in wanted.items():
        current = None if found is None else _read(found, name)
        if name == "env":
            yield from _variable_changes(value, current or {}, shown_variables)
        elif isinstance(value, dict):
            inner = {f"{name}.{key}": item for key, item in value.items()}
            current_inner = None if found is None else {f"{name}.{key}": item for key, item in (current or {}).items()}
            yield from _changes(inner, current_inner, shown_variables)
        elif found is None:
            if name not in FIXED and value != OMITTED_VALUES.get(name, ...):
                yield Change(KEYS.get(name, name), "", _text(value, name))
        elif value != current:
            yield Change(KEYS.get(name, name), _text(current, name), _text(value, name))


def _read(found: JsonObject, name: str) -> Any:  # noqa: ANN401 - any JSON value
    value = found.get(name)
    return OMITTED_VALUES.get(name) if value is None else value


def _variable_changes(wanted: JsonObject, found: JsonObject, shown_variables: Collection[str]) -> Iterator[Change]:
    """Yield the changes of environment variables. Old values may be secrets and are never shown."""
    for name in sorted({*wanted, *found}):
        after = "" if name not in wanted else _text(wanted[name]) if name in shown_variables else HIDDEN
        if wanted.get(name) != found.get(name):
            yield Change(f"env.{name}", HIDDEN if name in found else "", after)


def _text(value: object, name: str = "") -> str:
    match value:
        case int() if name == "timeout":
            return f"{value / _MS:g}"
        case list():
            return ", ".join(map(str, value)) or "none"
        case None | "":
            return "none"
        case bool():
            return str(value).lower()
    return str(value)
