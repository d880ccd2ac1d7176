"""deploy.toml as a value: read, checked against SCHEMA with all faults at once, frozen. Pure but `read_description`."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from comfy_core.contract import Fault, JsonObject
from comfy_core.errors import ConfigError
from comfy_core.validation import filled, path_of, plain, schema_faults

FLASHBOOT = ("OFF", "FLASHBOOT", "PRIORITY_FLASHBOOT")
LEAST_MEMORY_GB = 24
"""What Flux.1-dev in fp8 with its text encoders needs, so that nothing is moved in and out between two pictures."""
PLACEHOLDER = "OWNER"
"""Stands in the shipped deploy.toml where the reader's own registry goes."""


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


def _whole(description: str, low: int, high: int, default: int) -> JsonObject:
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
    "What `comfy-client deploy` makes at RunPod.",
    {
        "name": _text(
            "The name of the template and of the endpoint. They are found by it: another name is another endpoint.",
            pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{2,63}$",
        ),
        "image": _text(
            "The worker's image, with a tag that stays (not `latest`).", pattern=r"^[^\s@:/][^\s]*[:@][^\s/]+$"
        ),
        "registry": _text("Name or id of the credential at RunPod that opens a private image.", default=""),
        "disk_gb": _whole("Container disk: the image, and 10 % that must stay free.", 5, 1000, 40),
        "gpu": _table(
            "Which GPUs workers run on.",
            {
                "pools": _names("RunPod's pools of GPUs.", "^[A-Z0-9_]+$", minItems=1, maxItems=8),
                "order": {
                    "description": "`price`: the cheapest pool first, by RunPod's catalogue. `listed`: as they stand.",
                    "enum": ["price", "listed"],
                    "default": "price",
                },
                "excluded": _names("GPUs of these pools that are not wanted, by their ids.", r"^[^-\s]", default=[]),
                "min_cuda_version": _text(
                    "The least CUDA version of a machine's driver; absent: any.", pattern=r"^$|^\d+\.\d+$", default=""
                ),
            },
            ("pools",),
        ),
        "workers": _table(
            "How many workers there are, and how long an idle one stays.",
            {
                "min": _whole("Workers that always run, and are always paid.", 0, 100, 0),
                "max": _whole("Workers at most.", 1, 100, 3),
                "idle_timeout_s": _whole("Seconds that a worker waits for the next job, paid.", 1, 3600, 30),
                "queue_delay_s": {
                    "description": "Seconds that a job waits before another worker is started.",
                    "type": "number",
                    "minimum": 0.5,
                    "maximum": 3600,
                    "default": 4,
                },
                "flashboot": {
                    "description": "Whether RunPod keeps a stopped worker's state, for a quicker next start.",
                    "enum": list(FLASHBOOT),
                    "default": "FLASHBOOT",
                },
                "execution_timeout_s": _whole("Seconds after which RunPod ends a job.", 5, 604_800, 600),
            },
        ),
        "storage": _table(
            "Where the models are, when the image has none.",
            {
                "network_volume": _text("Name or id of a network volume; it is mounted at /runpod-volume.", default=""),
                "cached_model": _text(
                    "A repository of Hugging Face that RunPod brings to the machine. Absent: as it is; empty: none.",
                    pattern=r"^$|^https://huggingface\.co/[\w.-]+/[\w.-]+(:[\w./-]+)?$",
                ),
                "data_centers": _names("Where workers may run. Absent: as it is; empty: anywhere.", r"^[A-Z0-9-]+$"),
            },
        ),
        "env": {
            "description": "The worker's variables (docs/configure.md). All are text.",
            "type": "object",
            "propertyNames": {"pattern": "^[A-Za-z_][A-Za-z0-9_]*$"},
            "additionalProperties": {"type": "string"},
        },
        "secrets": _names(
            "Variables whose values come from the environment of who deploys.", "^[A-Za-z_][A-Za-z0-9_]*$", default=[]
        ),
    },
    ("name", "image", "gpu"),
)
"""JSON Schema (2020-12) of deploy.toml."""

_SECRET_NAME = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD)(_ID)?$", re.IGNORECASE)
_REFERENCE = re.compile(r"^\{\{\s*RUNPOD_SECRET_\w+\s*\}\}$")
"""How a variable of an endpoint names a secret that RunPod keeps."""


@dataclass(frozen=True)
class Description:
    """What deploy.toml says, with SCHEMA's defaults.

    `cached_model` and `data_centers` are None where they are left as RunPod has them: it fills in data centres by
    itself, as for a network volume, and REST v2 has no field for cached models.
    """

    name: str
    image: str
    registry: str
    disk_gb: int
    pools: tuple[str, ...]
    is_by_price: bool
    excluded_gpus: tuple[str, ...]
    min_cuda_version: str
    workers_min: int
    workers_max: int
    idle_timeout_s: int
    queue_delay_s: float
    flashboot: str
    execution_timeout_s: int
    network_volume: str
    cached_model: str | None
    data_centers: tuple[str, ...] | None
    env: tuple[tuple[str, str], ...]
    secrets: tuple[str, ...]

    def refuse_placeholder(self) -> None:
        """Raise ConfigError where the image is still the placeholder of the shipped file."""
        if PLACEHOLDER in re.split("[/:@]", self.image):
            raise ConfigError(
                f"image = {self.image!r} is the placeholder of the shipped deploy.toml: put the owner of your image in "
                f"the place of {PLACEHOLDER} (docs/deploy.md says how it comes to a registry)"
            )


def read_description(path: Path) -> Description:
    """Return what the file says. Raises ConfigError: it cannot be read, is no TOML, or has faults, all named."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {getattr(error, 'strerror', None) or 'it is no UTF-8'}") from error
    value = _parsed(text, path)
    faults = find_faults(value)
    if faults:
        count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
        told = "; ".join(f"{fault.path or 'the file'}: {fault.message}" for fault in faults)
        raise ConfigError(f"{path} has {count}. {told}")
    return make_description(value)


def _parsed(text: str, path: Path) -> JsonObject:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not TOML: {error}") from error


def find_faults(value: JsonObject) -> list[Fault]:
    """Return every fault of a file's content, at most one a path. What may be a secret is not repeated."""
    copied, not_json = plain(value)
    faults: dict[str, Fault] = {}
    for fault in (*not_json, *_rule_faults(copied), *schema_faults(copied, SCHEMA)):
        faults.setdefault(fault.path, fault)
    return [_explained(fault) for fault in faults.values()]


def _explained(fault: Fault) -> Fault:
    """Return a fault against a pattern with what the key is, which says more than the pattern does."""
    rule: Any = SCHEMA
    for part in fault.path.split("."):
        rule = rule.get("properties", {}).get(part, {})
    if not fault.message.startswith(("breaks the rule", "must match the pattern")) or "description" not in rule:
        return fault
    return Fault(fault.path, f"{fault.message}. {rule['description']}")


def _rule_faults(value: JsonObject) -> list[Fault]:
    """Return what a schema cannot say: of names that exclude each other, and of two numbers."""
    found = []
    match value:
        case {"image": str(image)} if image.endswith(":latest"):
            found.append(
                Fault("image", "has the tag latest: RunPod would not see a new one; name a version or a commit")
            )
    match value:
        case {"workers": {"min": int(low), **workers}} if low > _number(workers.get("max"), 3):
            found.append(Fault("workers.min", f"must be at most workers.max, {_number(workers.get('max'), 3)}"))
    env = value.get("env")
    secrets = value.get("secrets")
    names = [name for name in secrets if isinstance(name, str)] if isinstance(secrets, list) else []
    for name, text in env.items() if isinstance(env, dict) else ():
        if name in names:
            found.append(Fault(path_of(["env", name]), "stands in secrets too; keep one"))
        elif _SECRET_NAME.search(name) and text and not _REFERENCE.match(str(text)):
            found.append(
                Fault(
                    path_of(["env", name]),
                    f'looks like a secret: write secrets = ["{name}"] and export its value, or refer to one that '
                    "RunPod keeps, as {{ RUNPOD_SECRET_name }}",
                )
            )
    return found


def _number(value: object, default: int) -> int:
    return value if isinstance(value, int) else default


def make_description(value: JsonObject) -> Description:
    """Return the description of a file's content without faults."""
    tables: dict[str, Any] = {
        name: filled(value.get(name, {}), SCHEMA["properties"][name]) for name in ("gpu", "workers", "storage")
    }
    top = filled({name: item for name, item in value.items() if name not in tables}, SCHEMA)
    gpu, workers, storage = tables["gpu"], tables["workers"], tables["storage"]
    return Description(
        name=top["name"],
        image=top["image"],
        registry=top["registry"],
        disk_gb=top["disk_gb"],
        pools=tuple(gpu["pools"]),
        is_by_price=gpu["order"] == "price",
        excluded_gpus=tuple(gpu["excluded"]),
        min_cuda_version=gpu["min_cuda_version"],
        workers_min=workers["min"],
        workers_max=workers["max"],
        idle_timeout_s=workers["idle_timeout_s"],
        queue_delay_s=workers["queue_delay_s"],
        flashboot=workers["flashboot"],
        execution_timeout_s=workers["execution_timeout_s"],
        network_volume=storage["network_volume"],
        cached_model=_with_revision(storage.get("cached_model")),
        data_centers=tuple(storage["data_centers"]) if "data_centers" in storage else None,
        env=tuple(sorted(top.get("env", {}).items())),
        secrets=tuple(top["secrets"]),
    )


def _with_revision(model: str | None) -> str | None:
    """Return a model's address as RunPod keeps it, with `:main` where it names no revision."""
    return model if not model or ":" in model.partition("://")[2] else f"{model}:main"
