"""Validates a posted graph as /prompt does. Pure: the check that LoadImage's file exists is a parameter.

Facts about ComfyUI:

- Validation starts at the output nodes and goes upstream. For nodes that no output needs, only the class is checked.
- Literals for INT, FLOAT, STRING or BOOLEAN are converted in place, so the graph in /history can differ from the posted
  one.
- An error names the invalid node and the outputs that depend on it. These outputs have no error of their own.
- One valid output is enough for status 200. `node_errors` contains the errors of the other outputs, which do not run.
- A list of more than 20 choices is not sent back: the details contain its length, and `input_config` is null.
- A link to a node that does not exist is a KeyError that is caught.
- In a cycle every node gets the error `dependency_cycle` with the path of the cycle.
- Text in place of the graph or of a node causes an exception, which becomes a 500.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from simulators.comfyui.node_table import ANY_TYPES, NODE_TYPES, Input, ListFiles

Errors = list[dict[str, Any]]
LINK_LENGTH = 2
MAX_CHOICES_SHOWN = 20
CONVERSIONS: Mapping[str, Callable[[Any], Any]] = {"INT": int, "FLOAT": float, "STRING": str, "BOOLEAN": bool}
UNEXPECTED = (LookupError, TypeError, AttributeError, RecursionError)
"""Exceptions that malformed graphs cause during validation. They become errors of a node."""


@dataclass(frozen=True)
class PromptRefusal:
    """The reason why a prompt is refused."""

    type: str
    message: str
    details: str = ""
    extra_info: dict[str, Any] = field(default_factory=dict)
    node_errors: dict[str, Any] = field(default_factory=dict)

    def body(self) -> dict[str, Any]:
        """Return the body of the response with status 400."""
        error = {"type": self.type, "message": self.message, "details": self.details, "extra_info": self.extra_info}
        return {"error": error, "node_errors": self.node_errors}


@dataclass(frozen=True)
class Accepted:
    """The output nodes that run, and the errors of the others."""

    outputs: list[str]
    node_errors: dict[str, Any]


@dataclass(frozen=True)
class _Verdict:
    valid: bool
    errors: Errors


NO_PROMPT = PromptRefusal("no_prompt", "No prompt provided", "No prompt provided")
INVALID_PROMPT_ID = PromptRefusal(
    "invalid_prompt_id",
    "prompt_id must be a valid UUID",
    "prompt_id must be a UUID string in canonical lowercase hyphenated form; omit it to let the server generate one",
)


def check(graph: Any, listing: ListFiles, is_file: Callable[[str], bool]) -> Accepted | PromptRefusal:  # noqa: ANN401  a body
    """Return the outputs of a posted graph that run, or the refusal."""
    outputs = []
    for node_id, node in graph.items():
        if "class_type" not in node or node["class_type"] not in NODE_TYPES:
            return _missing_node(node_id, node)
        if NODE_TYPES[node["class_type"]].is_output:
            outputs.append(node_id)
    if not outputs:
        return PromptRefusal("prompt_no_outputs", "Prompt has no outputs")
    return _Validation(graph, listing, is_file).outputs(outputs)


def _missing_node(node_id: str, node: dict[str, Any]) -> PromptRefusal:
    """Return the refusal of a node without a class, or with a class that does not exist."""
    class_type = node.get("class_type")
    title = node.get("_meta", {}).get("title", class_type)
    message = f"Node '{title}' not found. The custom node may not be installed."
    if class_type is None:
        named = title or f"ID #{node_id}"
        message = f"Node '{named}' has no class_type. The workflow may be corrupted or a custom node is missing."
    extra = {"node_id": node_id, "class_type": class_type, "node_title": title}
    return PromptRefusal("missing_node_type", message, f"Node ID '#{node_id}'", extra)


class _Validation:
    """The validation of one graph."""

    def __init__(self, graph: dict[str, Any], listing: ListFiles, is_file: Callable[[str], bool]) -> None:
        self._graph = graph
        self._listing = listing
        self._is_file = is_file
        self._verdicts: dict[str, _Verdict] = {}
        self._visiting: list[str] = []

    def outputs(self, outputs: list[str]) -> Accepted | PromptRefusal:
        """Return the outputs that run and the errors of the others, or the refusal."""
        good: list[str] = []
        problems: list[str] = []
        node_errors: dict[str, Any] = {}
        for output in outputs:
            verdict = self._output(output)
            if verdict.valid:
                good.append(output)
                continue
            problems += [f"{error['message']}: {error['details']}" for error in verdict.errors]
            self._add_errors(output, node_errors)
        if good:
            return Accepted(good, node_errors)
        message = "Prompt outputs failed validation"
        return PromptRefusal("prompt_outputs_failed_validation", message, "\n".join(problems), {}, node_errors)

    def _add_errors(self, output: str, node_errors: dict[str, Any]) -> None:
        for node_id, verdict in self._verdicts.items():
            if verdict.errors:
                found = {"errors": verdict.errors, "dependent_outputs": []}
                found["class_type"] = self._graph[node_id]["class_type"]
                node_errors.setdefault(node_id, found)["dependent_outputs"].append(output)

    def _output(self, output: str) -> _Verdict:
        try:
            return self._node(output)
        except UNEXPECTED as unexpected:
            extra = {"exception_type": type(unexpected).__name__, "traceback": _traceback(unexpected)}
            error = _error("exception_during_validation", "Exception when validating node", str(unexpected), extra)
            self._verdicts[output] = _Verdict(valid=False, errors=[error])
            return self._verdicts[output]

    def _node(self, node_id: str) -> _Verdict:
        if node_id in self._verdicts:
            return self._verdicts[node_id]
        if node_id in self._visiting:
            return self._cycle(node_id)
        inputs = self._graph[node_id]["inputs"]
        kind = NODE_TYPES[self._graph[node_id]["class_type"]]
        errors: Errors = []
        upstream_valid = True
        for name, entry in kind.inputs_of(inputs).items():
            self._visiting.append(node_id)
            try:
                found = self._input(name, entry, inputs, is_file_name=kind.checks_file == name)
            finally:
                self._visiting.pop()
            upstream_valid = upstream_valid and found is not None
            errors += found or []
        if kind.checks_file in inputs and not self._is_file(str(inputs[kind.checks_file])):
            details = f"{kind.checks_file} - Invalid image file: {inputs[kind.checks_file]}"
            message = "Custom validation failed for node"
            errors.append(_error("custom_validation_failed", message, details, {"input_name": kind.checks_file}))
        errors = [*self._errors_of_a_cycle(node_id), *errors]
        self._verdicts[node_id] = _Verdict(valid=upstream_valid and not errors, errors=errors)
        return self._verdicts[node_id]

    def _errors_of_a_cycle(self, node_id: str) -> Errors:
        """Return the errors that a node got when a cycle through it was found."""
        return self._verdicts[node_id].errors if node_id in self._verdicts else []

    def _cycle(self, node_id: str) -> _Verdict:
        """Give every node of a cycle through `node_id` its error, and return the verdict of `node_id`."""
        nodes = self._visiting[self._visiting.index(node_id) :]
        path = " -> ".join(f"{each} ({self._graph[each]['class_type']})" for each in [*nodes, node_id])
        for each in nodes:
            extra = {"node_id": each, "cycle_nodes": nodes}
            error = _error("dependency_cycle", "Dependency cycle detected", path, extra)
            self._verdicts[each] = _Verdict(valid=False, errors=[error])
        return self._verdicts[node_id]

    def _input(self, name: str, entry: Input, inputs: dict[str, Any], *, is_file_name: bool) -> Errors | None:
        """Return the errors of an input, or None if a node upstream of it is invalid."""
        if name not in inputs:
            last_name = name.rpartition(".")[2]
            missing = _error("required_input_missing", "Required input is missing", last_name, {"input_name": name})
            return [] if entry.optional else [missing]
        if isinstance(inputs[name], list):
            return self._link(name, entry, inputs[name])
        return self._literal(name, entry, inputs, is_file_name=is_file_name)

    def _link(self, name: str, entry: Input, link: list[Any]) -> Errors | None:
        extra = {"input_name": name, "input_config": entry.declared(self._listing)}
        if len(link) != LINK_LENGTH:
            message = "Bad linked input, must be a length-2 list of [node_id, slot_index]"
            return [_error("bad_linked_input", message, name, {**extra, "received_value": link})]
        choices = entry.listed_choices(self._listing)
        expected_type: Any = entry.type if choices is None else "COMBO" if entry.is_v3 else choices
        received_type = NODE_TYPES[self._graph[link[0]]["class_type"]].outputs[link[1]]
        if received_type != expected_type and not {received_type, entry.type} & ANY_TYPES:
            details = f"{name}, received_type({received_type}) mismatch input_type({expected_type})"
            extra |= {"received_type": received_type, "linked_node": link}
            return [_error("return_type_mismatch", "Return type mismatch between linked nodes", details, extra)]
        try:
            return [] if self._node(link[0]).valid else None
        except UNEXPECTED as unexpected:
            extra |= {"exception_message": str(unexpected), "exception_type": type(unexpected).__name__}
            extra |= {"traceback": _traceback(unexpected), "linked_node": link}
            message = "Exception when validating inner node"
            error = _error("exception_during_inner_validation", message, str(unexpected), extra)
            self._verdicts[link[0]] = _Verdict(valid=False, errors=[error])
            return None

    def _literal(self, name: str, entry: Input, inputs: dict[str, Any], *, is_file_name: bool) -> Errors:
        value = inputs[name]
        if isinstance(value, dict) and "__value__" in value:
            inputs[name] = value = value["__value__"]
        extra = {"input_name": name, "input_config": entry.declared(self._listing), "received_value": value}
        try:
            inputs[name] = value = CONVERSIONS.get(entry.type, lambda same: same)(value)
        except (TypeError, ValueError, OverflowError) as refused:
            message = f"Failed to convert an input value to a {entry.type} value"
            extra |= {"exception_message": str(refused)}
            return [_error("invalid_input_type", message, f"{name}, {value}, {refused}", extra)]
        return [] if is_file_name else self._range(name, entry, {**extra, "received_value": value})

    def _range(self, name: str, entry: Input, extra: dict[str, Any]) -> Errors:
        value, minimum, maximum = extra["received_value"], entry.options.get("min"), entry.options.get("max")
        if minimum is not None and value < minimum:
            return [_error("value_smaller_than_min", f"Value {value} smaller than min of {minimum}", name, extra)]
        if maximum is not None and value > maximum:
            return [_error("value_bigger_than_max", f"Value {value} bigger than max of {maximum}", name, extra)]
        choices = entry.listed_choices(self._listing)
        if choices is None or value in choices:
            return []
        shown = str(choices)
        if len(choices) > MAX_CHOICES_SHOWN:
            shown, extra = f"(list of length {len(choices)})", {**extra, "input_config": None}
        return [_error("value_not_in_list", "Value not in list", f"{name}: {value!r} not in {shown}", extra)]


def _error(kind: str, message: str, details: str, extra_info: dict[str, Any]) -> dict[str, Any]:
    return {"type": kind, "message": message, "details": details, "extra_info": extra_info}


def _traceback(error: BaseException) -> list[str]:
    return traceback.format_tb(error.__traceback__)
