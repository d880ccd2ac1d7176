"""Checks a graph against /object_info and adds missing defaults, before ComfyUI validates the graph. Pure.

ComfyUI reports only the first missing node, 0.33.0 by its title. 0.3.64 names neither the nodes of a cycle nor a node
with a link to an output that does not exist. Newer versions require inputs that older exports lack.
"""

from __future__ import annotations

import copy
import graphlib
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

from comfy_core.comfyui.file_inputs import SILENT_SAVERS, FileUse, declared_input, dynamic_choices, file_use
from comfy_core.contract import EXPORT_MENU, JsonObject, shortened
from comfy_core.error_codes import ErrorCode
from comfy_core.errors import JobError
from comfy_core.graphs import EDITOR_NODES, Graph, is_link
from comfy_core.request.spellings import as_number
from comfy_core.validation import shown

_ONLY_IN_EDITOR = f"exists in the editor only; export the workflow again with {EXPORT_MENU}"
_NOT_INSTALLED = "does not exist in this ComfyUI; install its custom node, or remove the node"
_NOT_REPORTED = "writes files that ComfyUI does not report, so the job cannot return them; add a SaveImage node"
_SHOWN_PROBLEMS = 8
_ChoicesBySpelling: TypeAlias = dict[tuple[str, str], dict[str, list[Any]]]
"""For each class and input: the choices of the input, by their folded spelling (see `_folded`)."""


def check_structure(graph: Graph, node_types: Mapping[str, JsonObject]) -> None:
    """Raise JobError (workflow_rejected) if ComfyUI cannot run `graph` or would not report the files that it saves.

    The error lists all missing nodes and bad links, one cycle, and all savers that do not report their files, if there
    is no other output node. `node_types` are the /object_info entries of the node types that ComfyUI has.
    """
    missing = {node_id: node for node_id, node in graph.items() if node["class_type"] not in node_types}
    problems = [
        _problem(graph, node_id, "", _ONLY_IN_EDITOR if node["class_type"] in EDITOR_NODES else _NOT_INSTALLED)
        for node_id, node in missing.items()
    ]
    problems += _bad_links(graph, node_types)
    savers = [node_id for node_id, node in graph.items() if _is_output(node, node_types)]
    if savers and all(graph[node_id]["class_type"] in SILENT_SAVERS for node_id in savers):
        problems += [_problem(graph, node_id, "", _NOT_REPORTED) for node_id in savers]
    if cycle := _cycle(graph):
        problems.append(_problem(graph, cycle[0], "", f"is part of a cycle: {shortened(' -> '.join(cycle))}"))
    if problems:
        listed = "; ".join(
            f"node {each['node_id']} ({each['node_type']}) {each['problem']}" for each in problems[:_SHOWN_PROBLEMS]
        )
        more = f"; and {len(problems) - _SHOWN_PROBLEMS} more" if len(problems) > _SHOWN_PROBLEMS else ""
        raise JobError.because(
            ErrorCode.WORKFLOW_REJECTED,
            f"ComfyUI cannot run the graph: {listed}{more}.",
            nodes=problems,
            type="missing_node_type" if missing else "invalid_graph",
        )


def _problem(graph: Graph, node_id: str, name: str, problem: str) -> JsonObject:
    node_type = shortened(graph[node_id]["class_type"])
    return {"node_id": shortened(node_id), "node_type": node_type, "input": shortened(name), "problem": problem}


def _is_output(node: JsonObject, node_types: Mapping[str, JsonObject]) -> bool:
    return bool(node_types.get(node["class_type"], {}).get("output_node"))


def _bad_links(graph: Graph, node_types: Mapping[str, JsonObject]) -> Iterator[JsonObject]:
    """Yield a problem for each link to an output that its node does not have."""
    for node_id, node in graph.items():
        for name, value in node["inputs"].items():
            if not is_link(value) or value[0] not in graph:
                continue
            match node_types.get(graph[value[0]]["class_type"]):
                case {"output": [*outputs]} if not 0 <= value[1] < len(outputs):
                    source = shortened(value[0])
                    problem = f"links to output {value[1]} of node {source}, which has {len(outputs)} outputs"
                    yield _problem(graph, node_id, name, problem)


def _cycle(graph: Graph) -> list[str]:
    """Return the node ids of a cycle, with the first id repeated at the end; empty if there is no cycle."""
    sources = {
        node_id: [value[0] for value in node["inputs"].values() if is_link(value)] for node_id, node in graph.items()
    }
    try:
        graphlib.TopologicalSorter(sources).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


def with_defaults(graph: Graph, node_types: Mapping[str, JsonObject]) -> tuple[Graph, list[str]]:
    """Return `graph` with defaults for missing required inputs, and a warning for each.

    A required input that is null counts as missing. Inputs that need a link, and inputs that name a file to read, get
    no default. Without a warning, whole numbers given as text become integers, and a choice that differs only in case
    or slashes (`"Euler"`) is replaced by the node's own spelling.
    """
    filled = copy.deepcopy(graph)
    warnings = []
    by_spelling: _ChoicesBySpelling = {}
    for node_id, node in filled.items():
        node_type = node_types.get(node["class_type"])
        required = _required(node_type, node["inputs"])
        node["inputs"] = {
            name: _respelled(node["class_type"], name, value, declared_input(node_type, name), by_spelling)
            for name, value in node["inputs"].items()
            if value is not None or name not in required
        }
        for name, declared in required.items():
            value = None if name in node["inputs"] else _default(node["class_type"], name, declared)
            if value is not None:
                node["inputs"][name] = value
                warnings.append(
                    f"node {shortened(node_id)} ({node['class_type']}) had no {name}, which this ComfyUI requires; "
                    f"the default was used: {shown(value)}"
                )
    return filled, warnings


def missing_inputs(node: JsonObject, node_type: JsonObject) -> list[str]:
    """Return the required inputs that a node lacks and that have no default."""
    return [
        name
        for name, declared in _required(node_type, node["inputs"]).items()
        if node["inputs"].get(name) is None
        and declared[:1] != ["COMFY_AUTOGROW_V3"]  # its inputs are `name.item`, and may be none
        and _default(node["class_type"], name, declared) is None
    ]


def _required(node_type: object, inputs: JsonObject) -> dict[str, Any]:
    """Return the declarations of the required inputs of a node, with those of the choices of its dynamic combos."""
    match node_type:
        case {"input": {"required": {**declarations}}}:
            required = {str(name): declared for name, declared in declarations.items()}
            for name, declared in list(required.items()):
                chosen = dynamic_choices(declared).get(str(inputs.get(name)))
                nested = {each.removeprefix(f"{name}."): value for each, value in inputs.items()}
                required |= {f"{name}.{each}": value for each, value in _required(chosen, nested).items()}
            return required
    return {}


def _respelled(class_type: str, name: str, value: Any, declared: object, by_spelling: _ChoicesBySpelling) -> Any:  # noqa: ANN401 - any JSON value
    """Return `value` as the node spells it: text that is a whole number as an int, a choice in the declared spelling.

    A value that matches no choice, or several, stays unchanged. So do names of files in the input folder, because two
    files may differ only in case. `by_spelling` caches the choices.
    """
    match declared, value:
        case ["INT", *_], str() if (number := as_number(value)) is not None and float(number).is_integer():
            return int(number)
        case (([[*choices], *_] | ["COMBO", {"options": [*choices]}, *_]), str()) if value not in choices:
            if file_use(class_type, name, declared) in {None, FileUse.LOADS_MODEL}:
                if (class_type, name) not in by_spelling:
                    choices_by_spelling = by_spelling[class_type, name] = {}
                    for each in choices:
                        choices_by_spelling.setdefault(_folded(each), []).append(each)
                matches = by_spelling[class_type, name].get(_folded(value), [])
                return matches[0] if len(matches) == 1 else value
    return value


def _folded(choice: object) -> str:
    return str(choice).strip().lower().replace("\\", "/")


def _default(class_type: str, name: str, declared: object) -> object:
    """Return the default that /object_info declares for an input, else its first choice, else None.

    None is also returned for an input that needs a link or names a file to read.
    """
    match declared:
        case [_, {"forceInput": True}, *_]:
            return None
        case [str(kind), *_] if kind.startswith("COMFY_"):
            return None
        case [_, {"default": default}, *_]:
            return None if file_use(class_type, name, declared) not in {None, FileUse.WRITES} else default
        case [[first, *_], *_] | ["COMBO", {"options": [first, *_]}, *_]:
            return None if file_use(class_type, name, declared) else first
    return None
