"""The models of a studio: maps Scenario's model ids to a workflow, its inputs, and LoRAs. Pure.

SCENARIO_SHIM_MODELS has the table, SCENARIO_SHIM_LORAS its short form for models that are one LoRA. `comfy-client
scenario models` writes the table from the account's list, with `loras: null` for each model that nobody has mapped yet.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from comfy_core.contract import JsonObject
from comfy_core.request.model_address import public_name
from comfy_core.request.model_keys import named_loras
from comfy_core.validation import Faults

EXAMPLE = '{"model_abc": {"loras": [{"name": "knight.safetensors", "strength": 0.8}], "inputs": {"guidance": 4}}}'
_KEYS = frozenset({"name", "workflow", "inputs", "loras"})


@dataclass(frozen=True)
class StudioModel:
    """One model of a studio.

    Attributes:
        name: the name in lists of models.
        workflow: the workflow that generates the images. Empty: the one of the request's task.
        inputs: values for the workflow's inputs that a request does not set.
        loras: the LoRAs, as in docs/api.md. The `name` of each may be an address.
    """

    name: str
    workflow: str = ""
    inputs: JsonObject = field(default_factory=dict)
    loras: tuple[JsonObject, ...] = ()


def table_text(text: str) -> str:
    """Return the JSON in `text`, which may be the path of a JSON file instead. Raises ValueError.

    The error has no path, because an invalid JSON text, which may have a secret in a URL, is taken for a path.
    """
    try:
        return text if text.startswith("{") else Path(text).read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(f"the file cannot be read: {error.strerror}") from error


def parse_table(text: str) -> JsonObject:
    """Return the table of models in `text`: a JSON object, or the path of a file that has one. Raises ValueError."""
    try:
        table = json.loads(table_text(text))
        studio_models(table)
    except (ValueError, AttributeError) as error:
        raise ValueError(f"must be a JSON object such as {EXAMPLE}, or the path of such a file ({error})") from error
    checked: JsonObject = table
    return checked


def studio_models(table: JsonObject) -> dict[str, StudioModel]:
    """Return the models of a table by id, without those that are not mapped yet. Raises ValueError."""
    return {model_id: _parse(model_id, entry) for model_id, entry in table.items() if _is_mapped(entry)}


def lora_model(file: str) -> StudioModel:
    """Return the model for an entry of SCENARIO_SHIM_LORAS: a file of the worker, or an address."""
    return StudioModel(public_name(file), loras=({"name": file, "strength": 1.0},))


def _is_mapped(entry: object) -> bool:
    return not (isinstance(entry, Mapping) and "loras" in entry and entry["loras"] is None)


def _parse(model_id: str, entry: object) -> StudioModel:
    match entry:
        case {**given} if not given.keys() - _KEYS:
            name, workflow = str(given.get("name") or model_id), str(given.get("workflow", ""))
            inputs, loras = given.get("inputs", {}), given.get("loras", [])
            if isinstance(inputs, dict) and isinstance(loras, list) and all(isinstance(each, dict) for each in loras):
                return StudioModel(name, workflow, inputs, tuple(_checked(model_id, loras)))
    raise ValueError(f"the entry {model_id!r} must have the keys {', '.join(sorted(_KEYS))}")


def _checked(model_id: str, loras: list[JsonObject]) -> list[JsonObject]:
    """Return LoRAs with a `name` each, which may be an address. Raises ValueError for an invalid address."""
    faults = Faults()
    named = named_loras(loras, faults)
    for fault in faults.listed():
        raise ValueError(f"the entry {model_id!r}: {fault.path} {fault.message}")
    return named


def unmapped_table(records: Iterable[JsonObject], known: Mapping[str, object]) -> JsonObject:
    """Return the table for the models of an account. Entries of `known` are kept, and the others are to be mapped."""
    listed = {str(each["id"]): {"name": each.get("name") or each["id"], "loras": None} for each in records}
    return {**listed, **known}
