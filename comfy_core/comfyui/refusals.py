"""Parses ComfyUI's rejection of a prompt (POST /prompt), and turns it into the job's error. No I/O.

Facts, which hold for ComfyUI 0.3.64 and 0.33.0 (recorded in tests/recordings):

- /prompt rejects with 400 `{"error": {type, message, details, extra_info}, "node_errors": {id: {errors, class_type}}}`.
  It can also respond 200 with node_errors, if it would skip some outputs and run the others.
- `value_not_in_list` for a loader's file means a missing model. The error lists the available names if there are at
  most 20. For image loaders this list contains files of other callers, so it is never passed on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from comfy_core.comfyui.file_inputs import RUN_FOLDER_PATTERN, FileUse, declared_input, file_use
from comfy_core.comfyui.model_inputs import FETCHED_PATTERN, declared_choices, model_folder
from comfy_core.comfyui.responses import foreign_text
from comfy_core.contract import ErrorReport, JsonObject, shortened
from comfy_core.error_codes import ErrorCode
from comfy_core.errors import JobError
from comfy_core.validation import shown

_SHOWN_PROBLEMS = 8
_SHOWN_NAMES = 8
_NOT_SENT: Mapping[FileUse | None, str] = {
    FileUse.LOADS: "this file was not sent; send it in `images` under this name",
    FileUse.LOADS_FOLDER: "ComfyUI's input folder has no such folder, and a request cannot send folders",
}
"""Problems with a file or folder that ComfyUI's input folder does not have, by file use."""


@dataclass(frozen=True)
class NodeProblem:
    """One problem with one node or input of a rejected graph."""

    node_id: str
    node_type: str
    kind: str
    input: str
    value: object
    text: str
    choices: tuple[str, ...]
    """The valid values; empty if the input has no choices, or ComfyUI did not list them."""

    def use(self, declaration: object) -> FileUse | None:
        """Return what the node does with the file that the input names. `declaration`: /object_info of its type."""
        return file_use(self.node_type, self.input, declared_input(declaration, self.input))


@dataclass(frozen=True)
class Refusal:
    """ComfyUI's reasons for rejecting a graph, or some of its outputs."""

    kind: str
    message: str
    problems: tuple[NodeProblem, ...]

    def with_classes(self, class_of: Callable[[str, str], str]) -> Refusal:
        """Return the refusal with the node classes of the caller's graph. See `Prompt.class_of` for `class_of`."""
        problems = (replace(each, node_type=class_of(each.node_id, each.node_type)) for each in self.problems)
        return replace(self, problems=tuple(problems))

    def missing(self, node_types: Mapping[str, object]) -> tuple[NodeProblem, ...]:
        """Return the problems with names that ComfyUI does not have, such as the name of a model, LoRA or sampler."""
        return tuple(
            problem
            for problem in self.problems
            if problem.kind == "value_not_in_list" and problem.use(node_types.get(problem.node_type)) not in _NOT_SENT
        )

    def error(self, node_types: Mapping[str, object], available: Mapping[str, tuple[str, ...]]) -> JobError:
        """Return the job's error.

        Args:
            node_types: the /object_info entries of the node types.
            available: the names that ComfyUI has, for each input in `missing`.
        """
        missing = self.missing(node_types)
        details: JsonObject = {}
        if missing:
            details["missing"] = [_entry(each) | {"value": _short(each.value)} for each in missing]
            details["available"] = {name: [shortened(each) for each in names] for name, names in available.items()}
        if missing and len(missing) == len(self.problems):
            listed = _listed([_missing_text(each, available) for each in missing])
            return JobError.because(ErrorCode.MODEL_MISSING, f"This ComfyUI has {listed}{_folders(missing)}", **details)
        nodes = [_entry(each) | {"problem": _sentence(each, node_types)} for each in self.problems]
        listed = _listed([f"node {each['node_id']} ({each['node_type']}) {each['problem']}" for each in nodes])
        code = ErrorCode.WORKFLOW_REJECTED
        remedy_source = ErrorCode.NO_OUTPUT if self.kind == "prompt_no_outputs" else code
        message = remedy_source.message(f"ComfyUI rejected the graph: {listed or self.message}")
        return JobError(ErrorReport(code, message, {"nodes": nodes, "type": self.kind, **details}))


def _entry(problem: NodeProblem) -> JsonObject:
    return {"node_id": problem.node_id, "node_type": problem.node_type, "input": problem.input}


def _listed(texts: list[str]) -> str:
    more = f"; and {len(texts) - _SHOWN_PROBLEMS} more" if len(texts) > _SHOWN_PROBLEMS else ""
    return "; ".join(texts[:_SHOWN_PROBLEMS]) + more


def _folders(missing: Iterable[NodeProblem]) -> str:
    """Return the folders in which the missing files belong, for an error; empty if they are not known."""
    found = [model_folder(each.node_type, each.input) for each in missing]
    folders = dict.fromkeys(f"models/{folder}" for folder in found if folder)
    return f"; missing files belong in {' and '.join(folders)}" if folders else ""


def _missing_text(problem: NodeProblem, available: Mapping[str, tuple[str, ...]]) -> str:
    names = available.get(problem.input, ())
    has = ", ".join(shortened(name) for name in names[:_SHOWN_NAMES]) + (", …" if len(names) > _SHOWN_NAMES else "")
    return f"no {problem.input} {_short(problem.value)!r} ({f'it has {has}' if names else 'it has none'})"


def _sentence(problem: NodeProblem, node_types: Mapping[str, object]) -> str:
    """Return the problem as a predicate, without the list of choices, which may name files of other callers."""
    use = problem.use(node_types.get(problem.node_type))
    match problem.kind:
        case "value_not_in_list" | "custom_validation_failed" if use in _NOT_SENT:
            return f"{problem.input}: {_NOT_SENT[use]}"
        case "value_not_in_list":
            return f"{problem.input}: {shown(_short(problem.value))} is not one of its choices"
        case "return_type_mismatch":
            return f"{problem.input}: is linked to an output of another type ({_short(problem.value)})"
        case "required_input_missing":
            override = f'{{"{problem.node_id}.{problem.input}": value}}'
            return f"{problem.text}; link it to another node, or add it with overrides {override}"
    return problem.text


def _short(value: object) -> object:
    """Return a value from the graph, shortened for an error."""
    match value:
        case str():
            return shortened(value)
        case int() | float() | None:
            return value
    return shown(value)


def read_refusal(body: object) -> Refusal | None:
    """Return the refusal in a /prompt response (400, or 200 with node_errors), or None if it contains none."""
    match body:
        case {"node_errors": {**nodes}, **rest} if nodes or "error" in rest:
            problems = [problem for node_id, node in nodes.items() for problem in _problems(str(node_id), node)]
            kind, message = _read_error(rest.get("error"))
            return Refusal(kind, message, (*_missing_node(rest.get("error")), *problems))
        case {"error": error}:
            return Refusal(*_read_error(error), problems=tuple(_missing_node(error)))
    return None


def _read_error(error: object) -> tuple[str, str]:
    match error:
        case {"type": str(kind), "message": str(message), **rest}:
            details = str(rest.get("details") or "")
            return kind, foreign_text(f"{message} ({details})" if details and details != message else message)
        case str():
            return "", foreign_text(error)
    return "outputs_dropped", "some outputs would be skipped"


def _missing_node(error: object) -> Iterator[NodeProblem]:
    """Yield the problem of a missing node in an error of ComfyUI 0.33, whose message names only the node's title."""
    match error:
        case {"type": "missing_node_type", "extra_info": {"node_id": node_id, "class_type": class_type}}:
            text = "does not exist in this ComfyUI; install its custom node, or remove the node"
            yield NodeProblem(str(node_id), shortened(str(class_type)), "missing_node_type", "", None, text, ())


def _problems(node_id: str, node: object) -> Iterator[NodeProblem]:
    match node:
        case {"errors": list(errors), "class_type": str(node_type)}:
            for error in errors:
                match error:
                    case {"type": str(kind), "message": str(message), **rest}:
                        yield _problem(node_id, node_type, kind, message, rest)


def _problem(node_id: str, node_type: str, kind: str, message: str, rest: Mapping[Any, Any]) -> NodeProblem:
    info = rest.get("extra_info")
    info = info if isinstance(info, dict) else {}
    details = str(rest.get("details") or "")
    return NodeProblem(
        node_id=shortened(node_id),
        node_type=shortened(node_type),
        kind=kind,
        input=shortened(str(info.get("input_name", ""))),
        value=info.get("received_type") if kind == "return_type_mismatch" else info.get("received_value"),
        text=foreign_text(f"{message}: {details}" if details else message),
        choices=_choices(info.get("input_config")),
    )


def _choices(config: object) -> tuple[str, ...]:
    """Return the choices in an input's declaration, without files of jobs and models that jobs named by address."""
    hidden = (RUN_FOLDER_PATTERN, FETCHED_PATTERN)
    return tuple(name for name in declared_choices(config) or () if not any(each.search(name) for each in hidden))


def combo_choices(node_type: object, input_name: str) -> tuple[str, ...]:
    """Return the choices of an input from its node type's /object_info entry."""
    return _choices(declared_input(node_type, input_name))
