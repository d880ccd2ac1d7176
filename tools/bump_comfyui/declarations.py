"""Compares what two versions of ComfyUI declare: node classes, flags, model folders, routes, packages. Pure.

Flags, folders and routes are read in the source, so the pinned version need not be started.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from comfy_core.comfyui.file_inputs import FileUse, file_use
from tools.bump_comfyui.changes import ABSENT, Change

_FOLDER = re.compile(r"^folder_names_and_paths\[\"(\w+)\"\] *=", re.MULTILINE)
_ROUTE = re.compile(r"routes\.(get|post|put|delete|patch|head)\(\s*f?[\"']([^\"']+)[\"']", re.IGNORECASE)
_REQUIREMENT = re.compile(r"^([\w.-]+)==([^\s;\\]+)", re.MULTILINE)


def flags_in(source: str) -> frozenset[str]:
    """Return the flags that ComfyUI's cli_args.py defines."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    names = [call.args for call in calls if isinstance(call.func, ast.Attribute) and call.func.attr == "add_argument"]
    constants = [name.value for arguments in names for name in arguments if isinstance(name, ast.Constant)]
    return frozenset(name for name in constants if isinstance(name, str) and name.startswith("--"))


def folders_in(source: str) -> frozenset[str]:
    """Return the model types that ComfyUI's folder_paths.py defines."""
    return frozenset(_FOLDER.findall(source))


def routes_in(sources: Iterable[str]) -> frozenset[str]:
    """Return the routes, such as `GET /queue`, that ComfyUI's modules define."""
    return frozenset(f"{method.upper()} {path}" for source in sources for method, path in _ROUTE.findall(source))


def packages_in(requirements: str) -> dict[str, str]:
    """Return the version of each package of a lock file."""
    return dict(_REQUIREMENT.findall(requirements))


def set_changes(before: frozenset[str], after: frozenset[str]) -> list[Change]:
    """Return what one of two sets has alone."""
    removed = [Change(name, "", "yes", ABSENT) for name in sorted(before - after)]
    return [*removed, *(Change(name, "", ABSENT, "yes") for name in sorted(after - before))]


def value_changes(before: Mapping[str, str], after: Mapping[str, str]) -> list[Change]:
    """Return the names whose values differ."""
    pairs = [(name, before.get(name, ABSENT), after.get(name, ABSENT)) for name in sorted(before.keys() | after.keys())]
    return [Change(name, "", old, new) for name, old, new in pairs if old != new]


def node_changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Change]:
    """Return the differences between two /object_info responses, for the classes of the first."""
    changes = []
    for name in sorted(before):
        if name not in after:
            changes.append(Change(name, "", "yes", ABSENT))
            continue
        old, new = (dict(_declared_parts(info[name])) for info in (before, after))
        for part in sorted(old.keys() | new.keys()):
            if part.rpartition(".")[0] in old.keys() ^ new.keys():
                continue  # an option of an input that only one version has
            removed, added = (sorted(set(a.get(part, ())) - set(b.get(part, ()))) for a, b in ((old, new), (new, old)))
            if removed or added:
                changes.append(Change(name, part, ", ".join(removed) or ABSENT, ", ".join(added) or ABSENT))
    return changes


def _declared_parts(node_type: Mapping[str, Any]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield the parts of a node class, each with its values: inputs, their options and choices, and the outputs.

    The choices of an input for uploads are the files of one machine, so its options are left out.
    """
    yield (
        "outputs",
        tuple(f"{kind} {name}" for kind, name in zip(node_type["output"], node_type["output_name"], strict=True)),
    )
    for group, inputs in node_type["input"].items():
        for name, declared in inputs.items() if group != "hidden" else ():
            kind, options = _kind_and_options(declared)
            yield f"input {name}", (f"{kind}, {group}",)
            lists_files = any(option.endswith("_upload") for option in options)
            for option, value in options.items() if not lists_files else ():
                yield f"input {name}.{option}", tuple(map(str, value)) if isinstance(value, list) else (str(value),)


def _kind_and_options(declared: list[Any]) -> tuple[str, dict[str, Any]]:
    """Return the type and the options of an input. Choices have an older form, `[[…]]`, and a newer one."""
    options = declared[1] if len(declared) > 1 else {}
    return ("COMBO", {"options": declared[0], **options}) if isinstance(declared[0], list) else (declared[0], options)


def new_classes(object_info: Mapping[str, Any], old_sources: Iterable[str]) -> list[str]:
    """Return the node classes, without those of paid APIs, whose names are in no string of the pinned version."""
    strings = {text for source in old_sources for pair in re.findall(r"\"(.*?)\"|'(.*?)'", source) for text in pair}
    core = [name for name, info in object_info.items() if not info["python_module"].startswith("comfy_api_nodes")]
    return sorted(name for name in core if name not in strings)


def new_file_inputs(object_info: Mapping[str, Any], classes: Iterable[str]) -> list[Change]:
    """Return the inputs of `classes` that name a file outside the model folders, with their use by our rules."""
    changes = []
    for name in classes:
        for inputs in object_info[name]["input"].values():
            for input_name, declared in inputs.items():
                use = file_use(name, input_name, declared)
                if use not in {None, FileUse.LOADS_MODEL}:
                    changes.append(Change(name, f"input {input_name}", ABSENT, use.value))
    return changes
