"""Reads deploy.toml and validates it against SCHEMA and some rules that a schema cannot express.

All faults are reported at once.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from comfy_core.contract import Fault, JsonObject
from comfy_core.errors import ConfigError
from comfy_core.validation import Faults, filled, path_of, plain, schema_faults

FLASHBOOT = ("OFF", "FLASHBOOT", "PRIORITY_FLASHBOOT")
MIN_MEMORY_GB = 24
"""GPU memory that Flux.1-dev in fp8 and its text encoders need to stay loaded between two images."""
PLACEHOLDER = "OWNER"
"""Placeholder in the shipped deploy.toml for the user's own registry account."""


def _table(description: str, properties: JsonObject, required: tuple[str, ...] = ()) -> JsonObject:
    return {
        "description": description,
        "type": "object",
        "additionalProperties": False,
        "required": list(required),
        "properties": properties,
    }


def _text(description: str, **rules: object) -> JsonObject:
    return {"description": description, "type": "string", **rules}


def _integer(description: str, low: int, high: int, default: int) -> JsonObject:
    return {"description": description, "type": "integer", "minimum": low, "maximum": high, "default": default}


def _names(description: str, pattern: str, **rules: object) -> JsonObject:
    return {
        "description": description,
        "type": "array",
        "uniqueItems": True,
        "items": {"type": "string", "pattern": pattern},
        **rules,
    }


SCHEMA: JsonObject = _table(
    "What `comfy-client deploy` creates at RunPod.",
    {
        "name": _text(
            "Name of the template and of the endpoint. They are found by this name: a new name creates a new endpoint.",
            pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{2,63}$",
        ),
        "image": _text(
            "The worker's container image, with a fixed tag (not `latest`).", pattern=r"^[^\s@:/][^\s]*[:@][^\s/]+$"
        ),
        "registry": _text("Name or id of RunPod's registry credential for a private image.", default=""),
        "disk_gb": _integer("Container disk: the size of the image plus 10 % free space.", 5, 1000, 40),
        "gpu": _table(
            "GPUs for the workers.",
            {
                "pools": _names("RunPod's GPU pools.", "^[A-Z0-9_]+$", minItems=1, maxItems=8),
                "order": {
                    "description": "`price`: cheapest pool first, by RunPod's catalogue. `listed`: in listed order.",
                    "enum": ["price", "listed"],
                    "default": "price",
                },
                "excluded": _names("Ids of GPUs in these pools that must not be used.", r"^[^-\s]", default=[]),
                "min_cuda_version": _text(
                    "Minimum CUDA version of a machine's driver. Default: any.", pattern=r"^$|^\d+\.\d+$", default=""
                ),
            },
            ("pools",),
        ),
        "workers": _table(
            "Number of workers, and their timeouts.",
            {
                "min": _integer("Workers that always run and are always billed.", 0, 100, 0),
                "max": _integer("Maximum number of workers.", 1, 100, 3),
                "idle_timeout_s": _integer(
                    "Seconds that an idle worker waits for the next job. They are billed.", 1, 3600, 30
                ),
                "queue_delay_s": {
                    "description": "Seconds that a job waits before RunPod starts another worker.",
                    "type": "number",
                    "minimum": 0.5,
                    "maximum": 3600,
                    "default": 4,
                },
                "flashboot": {
                    "description": "Whether RunPod keeps a stopped worker's state for a faster start.",
                    "enum": list(FLASHBOOT),
                    "default": "FLASHBOOT",
                },
                "execution_timeout_s": _integer("Seconds after which RunPod stops a job.", 5, 604_800, 600),
            },
        ),
        "storage": _table(
            "Location of the models if the image has none.",
            {
                "network_volume": _text("Name or id of a network volume. It is mounted at /runpod-volume.", default=""),
                "cached_model": _text(
                    "Hugging Face repository that RunPod caches on the machine. Default: unchanged. Empty: none.",
                    pattern=r"^$|^https://huggingface\.co/[\w.-]+/[\w.-]+(:[\w./-]+)?$",
                ),
                "data_centers": _names(
                    "Data centers in which workers may run. Default: unchanged. Empty: any.", r"^[A-Z0-9-]+$"
                ),
            },
        ),
        "env": {
            "description": "Environment variables of the worker (docs/configure.md). All values are strings.",
            "type": "object",
            "propertyNames": {"pattern": "^[A-Za-z_][A-Za-z0-9_]*$"},
            "additionalProperties": {"type": "string"},
        },
        "secrets": _names(
            "Variables whose values are taken from the environment of `comfy-client deploy`.",
            "^[A-Za-z_][A-Za-z0-9_]*$",
            default=[],
        ),
    },
    ("name", "image", "gpu"),
)
"""JSON Schema (2020-12) of deploy.toml."""

_SECRET_NAME = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD)(_ID)?$", re.IGNORECASE)
_REFERENCE = re.compile(r"^\{\{\s*RUNPOD_SECRET_\w+\s*\}\}$")
"""A reference in a variable's value to a secret that is stored at RunPod."""


@dataclass(frozen=True)
class Description:
    """The content of deploy.toml, with SCHEMA's defaults. The key `gpu.pools` is the field `gpu_pools`.

    `storage_cached_model` and `storage_data_centers` are None if they must not be changed. RunPod sets data centers by
    itself, for example for a network volume, and REST v2 has no field for cached models.
    """

    name: str
    image: str
    registry: str
    disk_gb: int
    gpu_pools: tuple[str, ...]
    gpu_order: str
    gpu_excluded: tuple[str, ...]
    gpu_min_cuda_version: str
    workers_min: int
    workers_max: int
    workers_idle_timeout_s: int
    workers_queue_delay_s: float
    workers_flashboot: str
    workers_execution_timeout_s: int
    storage_network_volume: str
    env: Mapping[str, str]
    secrets: tuple[str, ...]
    storage_cached_model: str | None = None
    storage_data_centers: tuple[str, ...] | None = None

    def reject_placeholder(self) -> None:
        """Raise ConfigError if the image still has the placeholder of the shipped file."""
        if PLACEHOLDER in re.split("[/:@]", self.image):
            raise ConfigError(
                f"image = {self.image!r} has the placeholder of the shipped deploy.toml. Replace {PLACEHOLDER} by your "
                "registry account (docs/deploy.md describes how to push the image)"
            )


def read_description(path: Path) -> Description:
    """Return the description in a file. Raises ConfigError if the file cannot be read, is not TOML, or has faults."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {getattr(error, 'strerror', None) or 'it is not UTF-8'}") from error
    value = _parsed(text, path)
    faults = find_faults(value)
    if faults:
        count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
        details = "; ".join(f"{fault.path or 'the file'}: {fault.message}" for fault in faults)
        raise ConfigError(f"{path} has {count}. {details}")
    return make_description(value)


def _parsed(text: str, path: Path) -> JsonObject:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not TOML: {error}") from error


def find_faults(value: JsonObject) -> list[Fault]:
    """Return all faults of a file's content, at most one for each path. Possible secrets are not quoted."""
    faults = Faults()
    copied = plain(value, faults)
    faults.extend((*_rule_faults(copied), *schema_faults(copied, SCHEMA)))
    return [_explained(fault) for fault in faults.listed()]


def _explained(fault: Fault) -> Fault:
    """Return the fault. If it is about a pattern, the key's description is added: a pattern alone explains little."""
    rule: Any = SCHEMA
    for part in fault.path.split("."):
        rule = rule.get("properties", {}).get(part, {})
    if not fault.message.startswith(("breaks the rule", "must match the pattern")) or "description" not in rule:
        return fault
    return Fault(fault.path, f"{fault.message}. {rule['description']}")


def _rule_faults(value: JsonObject) -> list[Fault]:
    """Return the faults against rules that a JSON Schema cannot express."""
    found = []
    match value:
        case {"image": str(image)} if image.endswith(":latest"):
            found.append(
                Fault("image", "has the tag latest, so RunPod would not notice a new image; use a version or a commit")
            )
    match value:
        case {"workers": {"min": int(low), **workers}} if low > _int_or(workers.get("max"), 3):
            found.append(Fault("workers.min", f"must be at most workers.max, {_int_or(workers.get('max'), 3)}"))
    env = value.get("env")
    secrets = value.get("secrets")
    names = [name for name in secrets if isinstance(name, str)] if isinstance(secrets, list) else []
    for name, text in env.items() if isinstance(env, dict) else ():
        if name in names:
            found.append(Fault(path_of(["env", name]), "is also in secrets; remove one of them"))
        elif _SECRET_NAME.search(name) and text and not _REFERENCE.match(str(text)):
            found.append(
                Fault(
                    path_of(["env", name]),
                    f'looks like a secret: write secrets = ["{name}"] and export its value, or refer to a secret '
                    "stored at RunPod, as {{ RUNPOD_SECRET_name }}",
                )
            )
    return found


def _int_or(value: object, default: int) -> int:
    return value if isinstance(value, int) else default


def make_description(value: JsonObject) -> Description:
    """Return the description for valid file content."""
    rules = SCHEMA["properties"]
    tables = {name for name, rule in rules.items() if "properties" in rule}
    fields: dict[str, Any] = {
        "env": {},
        **{name: item for name, item in filled(value, SCHEMA).items() if name not in tables},
    }
    for table in tables:
        fields |= {f"{table}_{key}": item for key, item in filled(value.get(table, {}), rules[table]).items()}
    fields["storage_cached_model"] = _with_revision(fields.get("storage_cached_model"))
    fields = {name: tuple(item) if isinstance(item, list) else item for name, item in fields.items()}
    return Description(**fields)


def _with_revision(model: str | None) -> str | None:
    """Return a model's URL as RunPod stores it: with `:main` if it has no revision. None and "" stay unchanged."""
    return model if not model or ":" in model.partition("://")[2] else f"{model}:main"
