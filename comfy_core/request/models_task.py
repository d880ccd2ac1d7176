"""Parses a job that lists, downloads or deletes model files instead of generating images. Pure.

{"task": "models", "action": "list"}
{"task": "models", "action": "download", "hf": "owner/repository/knight.safetensors@main", "folder": "loras"}
{"task": "models", "action": "delete", "folder": "loras", "name": "knight.safetensors"}
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

from comfy_core.contract import ENVELOPE, Fault, JsonObject
from comfy_core.errors import invalid_input
from comfy_core.request.model_address import OBJECT_KEYS, ModelAddress, address_text, parse_address
from comfy_core.request.model_keys import read_tokens
from comfy_core.request.spellings import respelled
from comfy_core.request.webhook import Webhook, webhook_faults
from comfy_core.request.wrappers import parsed
from comfy_core.validation import Faults, Suggestions, nearest, path_of, plain, schema_faults

MODELS_TASK = "models"
LIST, DOWNLOAD, DELETE = ACTIONS = ("list", "download", "delete")
SAFETENSORS = ".safetensors"
"""Suffix of the files that can be downloaded."""
MODELS_KEYS: Mapping[str, JsonObject] = {
    "task": {"description": "`models`.", "enum": [MODELS_TASK]},
    "action": {"description": "What to do.", "enum": list(ACTIONS)},
    "folder": {
        "description": "The folder below ComfyUI's `models`, such as `loras`. For `list`: only this folder.",
        "type": "string",
        "minLength": 1,
        "maxLength": 64,
    },
    "name": {
        "description": "The file's name in the folder, with subfolders. For `download` it is the new name, which ends "
        "in .safetensors; default: the name in the address.",
        "type": "string",
        "minLength": 1,
        "maxLength": 255,
    },
    "hf": {"description": "For `download`: a file at Hugging Face.", "type": "string"},
    "civitai": {"description": "For `download`: a model version at Civitai.", "type": ["integer", "string"]},
    "url": {"description": "For `download`: the URL of a file.", "type": "string"},
    "sha256": {"description": "For `download`: the expected hash of the file.", "type": "string"},
    "force": {
        "description": "For `download`: replace a file of this name. For `delete`: also delete a file of models.txt.",
        "type": "boolean",
        "default": False,
    },
    "hash": {
        "description": "For `list`: read files without a known hash (about a second for each GB), and keep the hashes.",
        "type": "boolean",
        "default": False,
    },
    "model_tokens": ENVELOPE["model_tokens"],
    "timeout_s": ENVELOPE["timeout_s"],
    "webhook": ENVELOPE["webhook"],
}
"""JSON Schema (2020-12) of the keys of such a job."""
_COMMON = frozenset({"task", "action", "folder", "timeout_s", "webhook"})
_ALLOWED: Mapping[str, frozenset[str]] = {
    LIST: _COMMON | {"hash"},
    DOWNLOAD: _COMMON | {"name", "sha256", "force", "model_tokens", *OBJECT_KEYS},
    DELETE: _COMMON | {"name", "force"},
}
_REQUIRED: Mapping[str, tuple[str, ...]] = {LIST: (), DOWNLOAD: ("folder",), DELETE: ("folder", "name")}
_FOLDER = re.compile(r"\w[\w.-]*", re.ASCII)
_MAX_PART_BYTES = 200
"""Maximum length of a file or folder name. File systems allow 255 bytes, and other files have this name and more."""


@dataclass(frozen=True)
class ModelsRequest:
    """A valid request.

    Attributes:
        action: LIST, DOWNLOAD or DELETE.
        folder: the folder below `models`; empty if a list is to have all folders.
        name: the file's path in the folder; empty for a list.
        address: the file to download, or None.
        address_key: the key of the address: hf, civitai or url; empty without an address.
        force: whether a download replaces a file, and a file of models.txt is deleted.
        hash: whether a list hashes the files whose hash is not known.
        tokens: the token for each host.
        timeout_s: maximum time of the job, or None.
        webhook: the webhook that gets the job's events, or None.
    """

    action: str
    folder: str = ""
    name: str = ""
    address: ModelAddress | None = None
    address_key: str = ""
    force: bool = False
    hash: bool = False
    tokens: Mapping[str, str] = field(default_factory=dict, repr=False)
    timeout_s: float | None = None
    webhook: Webhook | None = None

    @property
    def path(self) -> str:
        """The file as `folder/name`."""
        return f"{self.folder}/{self.name}"

    @property
    def unfinished(self) -> str:
        """What was not done if the job ends early, for an error message."""
        return "the model was not downloaded" if self.action == DOWNLOAD else "the files were not hashed"


def is_models_task(raw: object) -> bool:
    """Return whether `raw`, the `input` of a job, has the task `models`. It may be invalid."""
    value = parsed(raw) if isinstance(raw, str) else raw
    return isinstance(value, dict) and value.get("task") == MODELS_TASK


def read_models_request(raw: object) -> ModelsRequest:
    """Return the valid request in `raw`. Raises JobError (invalid_input) with all faults."""
    faults = Faults()
    value: JsonObject = respelled(plain(parsed(raw) if isinstance(raw, str) else raw, faults), MODELS_KEYS)
    tokens = read_tokens(value.get("model_tokens"), faults)
    action = value.get("action")
    _check_keys(value, str(action), faults)
    if "webhook" in value:
        faults.extend(webhook_faults(value["webhook"]))
    faults.extend(schema_faults(value, {"properties": MODELS_KEYS, "required": ["action"]}))
    address = _address(value, faults) if action == DOWNLOAD else None
    folder, name = str(value.get("folder", "")), str(value.get("name", ""))
    if folder and (problem := folder_problem(folder)):
        faults.add("folder", problem)
    if address and not name and not (name := default_name(address)):
        faults.add("name", "is missing: the address does not end in the name of a .safetensors file")
    if name and (problem := name_problem(name)):
        faults.add("name", problem)
    elif name and action == DOWNLOAD and not name.endswith(SAFETENSORS):
        faults.add("name", f"must end in {SAFETENSORS}: only such files are downloaded")
    faults.raise_if_any()
    return ModelsRequest(
        action=str(action),
        folder=folder,
        name=name,
        address=address,
        address_key=next((key for key in OBJECT_KEYS if key in value), ""),
        force=value.get("force", False),
        hash=value.get("hash", False),
        tokens=tokens,
        timeout_s=value.get("timeout_s"),
        webhook=Webhook.of(value.get("webhook")),
    )


def _check_keys(value: JsonObject, action: str, faults: Faults) -> None:
    """Add a fault for each key that is unknown, is for another action, or is missing."""
    suggestions = Suggestions()
    allowed = _ALLOWED.get(action, MODELS_KEYS.keys())
    for name in sorted(value.keys() - MODELS_KEYS.keys()):
        faults.add(path_of([name]), f"is not known{suggestions.nearest(name, MODELS_KEYS)}")
    for name in sorted((value.keys() & MODELS_KEYS.keys()) - allowed):
        faults.add(name, f"is not for the action {action}")
    for name in _REQUIRED.get(action, ()):
        if name not in value:
            faults.add(name, "is missing")


def _address(value: JsonObject, faults: Faults) -> ModelAddress | None:
    given = [key for key in OBJECT_KEYS if key in value]
    if len(given) != 1:
        problem = "is one address too many" if given else "is missing"
        faults.add(given[-1] if given else "url", f"{problem}: a download has exactly one of hf, civitai and url")
        return None
    try:
        return parse_address(address_text({key: value[key] for key in (*given, "sha256") if key in value}))
    except ValueError as error:
        faults.add(given[0], str(error))
        return None


def default_name(address: ModelAddress) -> str:
    """Return the file name in an address, or an empty string if it has none. A version at Civitai has only a number."""
    if address.source.startswith("civitai:"):
        return f"{address.source.replace(':', '-')}{SAFETENSORS}"
    name = unquote(urlsplit(address.url).path).rpartition("/")[2]
    return name if name.endswith(SAFETENSORS) and not name_problem(name) else ""


def require_folder(folder: str, known: Sequence[str]) -> None:
    """Raise JobError (invalid_input) if `folder` is not one of the folders that a ComfyUI has."""
    if folder not in known:
        problem = f"is not a folder of models{nearest(folder, known) or '.'} Folders: {', '.join(known)}"
        raise invalid_input([Fault("folder", problem)])


def folder_problem(folder: str) -> str:
    """Return the problem with the name of a folder below `models`, or an empty string."""
    if _FOLDER.fullmatch(folder) and folder != "custom_nodes":
        return ""
    return "must be the name of a folder below ComfyUI's models, such as loras"


def name_problem(name: str) -> str:
    """Return the problem with a file's path in its folder, or an empty string."""
    parts = name.split("/")
    is_hidden = any(not part or part.startswith(".") or part != part.strip() for part in parts)
    if is_hidden or re.search(r"[\\\x00-\x1f\x7f]", name):
        return "must be the path of a file in its folder: no part of it is empty or begins with a dot, and no backslash"
    if any(len(part.encode()) > _MAX_PART_BYTES for part in parts):
        return f"has a part of more than {_MAX_PART_BYTES} bytes"
    return ""
