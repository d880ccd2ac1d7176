"""What ComfyUI answers over HTTP, as values: how a prompt ended (/history), why one was refused (/prompt). No I/O.

Facts (ComfyUI 0.3.64; tests/recordings):

- /history/{id} is `{}` while a prompt is pending or running, and for one that is unknown. Else
  `{id: {"prompt", "outputs", "status": {"status_str", "completed", "messages"}, "meta"}}`; the messages tell an error
  from an interruption.
- /prompt refuses with 400 `{"error": {type, message, details}, "node_errors": {id: {errors, class_type}}}`, and can
  answer 200 with node_errors, when it would drop some outputs and run the others.
- `value_not_in_list` on a loader's file is a missing model. It lists those that are there, unless they are
  more than 20.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from comfy_client.contract import ErrorCode, JsonObject
from comfy_client.errors import ComfyUIBroken, JobError


@dataclass(frozen=True)
class OutputFile:
    """A file that a node wrote: the words by which /view finds it, and the key it stood under (`images`, `gifs`, …)."""

    node_id: str
    key: str
    filename: str
    subfolder: str
    type: str


@dataclass(frozen=True)
class Succeeded:
    """The prompt ended well and left these."""

    files: tuple[OutputFile, ...]
    texts: tuple[str, ...]

    @property
    def written(self) -> tuple[OutputFile, ...]:
        """The files that are the prompt's own; a node may also show one of the inputs."""
        return tuple(file for file in self.files if file.type in {"output", "temp"})


@dataclass(frozen=True)
class Failed:
    """A node raised."""

    node_id: str
    node_type: str
    exception_type: str
    message: str

    @property
    def is_out_of_memory(self) -> bool:
        """Whether the GPU's memory did not suffice (torch.OutOfMemoryError, torch.cuda.OutOfMemoryError)."""
        return self.exception_type.endswith("OutOfMemoryError") or "CUDA error: out of memory" in self.message

    @property
    def breaks_cuda(self) -> bool:
        """Whether the process's CUDA context is unusable from now on: every later kernel fails as well.

        torch raises AcceleratorError (2.8 and newer) or a RuntimeError that begins `CUDA error:`.
        """
        return self.exception_type.endswith("AcceleratorError") or "CUDA error:" in self.message

    def error(self) -> JobError:
        """Return it as the job's error."""
        where = f"node {self.node_id} ({self.node_type})"
        details = {"node_id": self.node_id, "node_type": self.node_type, "exception_type": self.exception_type}
        if self.is_out_of_memory:
            message = (
                f"The GPU ran out of memory in {where}. Ask for a smaller size or fewer LoRAs, or use a larger GPU."
            )
            return JobError.because(ErrorCode.OUT_OF_MEMORY, message, **details)
        if self.breaks_cuda:
            message = f"The GPU failed in {where}: {self.message}. The worker starts anew; send the job again."
            return ComfyUIBroken.because(ErrorCode.COMFYUI_UNAVAILABLE, message, **details)
        return JobError.because(ErrorCode.EXECUTION_FAILED, f"{where} failed: {self.message}", **details)


@dataclass(frozen=True)
class Interrupted:
    """Someone interrupted the prompt at this node."""

    node_id: str
    node_type: str

    def error(self) -> JobError:
        """Return it as the job's error."""
        return JobError.because(
            ErrorCode.INTERRUPTED,
            f"Someone interrupted ComfyUI in node {self.node_id} ({self.node_type}). Send the job again.",
            node_id=self.node_id,
            node_type=self.node_type,
        )


Outcome: TypeAlias = Succeeded | Failed | Interrupted


def read_history(body: object, prompt_id: str) -> Outcome | None:
    """Return how the prompt ended by an answer of /history, or None where it has not ended."""
    match body:
        case {**entries} if isinstance(entry := entries.get(prompt_id), dict):
            return _read_entry(entry)
    return None


def read_written(body: object, prompt_id: str) -> tuple[OutputFile, ...]:
    """Return the files that the prompt wrote, however it ended, by an answer of /history."""
    match body:
        case {**entries} if isinstance(entry := entries.get(prompt_id), dict):
            return _read_outputs(entry.get("outputs")).written
    return ()


def _read_entry(entry: Mapping[str, Any]) -> Outcome:
    status = entry.get("status")
    messages = status.get("messages", []) if isinstance(status, dict) else []
    for message in messages:
        match message:
            case ["execution_error", {"node_id": node_id, "node_type": node_type, **rest}]:
                text = without_paths(str(rest.get("exception_message", "")).strip())
                return Failed(str(node_id), str(node_type), str(rest.get("exception_type", "")), text)
            case ["execution_interrupted", {"node_id": node_id, "node_type": node_type}]:
                return Interrupted(str(node_id), str(node_type))
    if isinstance(status, dict) and status.get("status_str") == "error":
        return Failed("", "", "", "ComfyUI says that it failed, and not why")
    return _read_outputs(entry.get("outputs"))


def _read_outputs(outputs: object) -> Succeeded:
    files, texts = [], []
    for node_id, shown in outputs.items() if isinstance(outputs, dict) else ():
        for key, items in shown.items() if isinstance(shown, dict) else ():
            for item in items if isinstance(items, list | tuple) else ():
                match item:
                    case {"filename": str(name), "type": str(kind)}:
                        files.append(OutputFile(str(node_id), str(key), name, str(item.get("subfolder", "")), kind))
                    case str() if key == "text":
                        texts.append(item)
    return Succeeded(tuple(files), tuple(texts))


def without_paths(text: str) -> str:
    """Return `text` with each absolute path cut to its last part: a container's folders are nobody's business."""
    return re.sub(r"(?<![\w:/.])/(?:[^\s/'\":]+/)+([^\s/'\":]*)", r"\1", text)


@dataclass(frozen=True)
class NodeProblem:
    """One thing that is wrong with one input of a refused graph."""

    node_id: str
    node_type: str
    kind: str
    input: str
    value: object
    problem: str
    choices: tuple[str, ...]
    """The names to choose from; empty where there is no choice, or ComfyUI did not list them."""


@dataclass(frozen=True)
class Refusal:
    """Why /prompt did not take a graph, or not all of it."""

    kind: str
    message: str
    problems: tuple[NodeProblem, ...]

    @property
    def missing(self) -> tuple[NodeProblem, ...]:
        """The problems that are a name which this ComfyUI does not have: a model, LoRA, sampler, scheduler."""
        return tuple(problem for problem in self.problems if problem.kind == "value_not_in_list")

    def error(self, available: Mapping[str, tuple[str, ...]]) -> JobError:
        """Return it as the job's error. `available` are the names to choose from, by input, for what is missing."""
        if self.missing and len(self.missing) == len(self.problems):
            return _missing_error(self.missing, available)
        nodes: list[JsonObject] = [
            {"node_id": each.node_id, "node_type": each.node_type, "input": each.input, "problem": each.problem}
            for each in self.problems
        ]
        told = "; ".join(f"node {each.node_id} ({each.node_type}) {each.problem}" for each in self.problems[:8])
        remedy = ""
        if self.kind == "prompt_no_outputs":
            remedy = " End the graph in SaveImage; PreviewImage does not count."
        message = f"ComfyUI refused the graph: {told or self.message}.{remedy}"
        return JobError.because(ErrorCode.WORKFLOW_REJECTED, message, nodes=nodes, type=self.kind)


def _missing_error(missing: tuple[NodeProblem, ...], available: Mapping[str, tuple[str, ...]]) -> JobError:
    told = []
    for each in missing:
        names = available.get(each.input, ())
        has = f"it has {', '.join(names[:8])}{', …' if len(names) > 8 else ''}" if names else "it has none"  # noqa: PLR2004
        told.append(f"no {each.input} {each.value!r} ({has})")
    return JobError.because(
        ErrorCode.MODEL_MISSING,
        f"This ComfyUI has {'; '.join(told)}.",
        missing=[
            {"node_id": each.node_id, "node_type": each.node_type, "input": each.input, "value": each.value}
            for each in missing
        ],
        available={name: list(names) for name, names in available.items()},
    )


def read_refusal(body: object) -> Refusal | None:
    """Return why an answer of /prompt (400, or 200 with node_errors) is a refusal, or None where it is none."""
    match body:
        case {"node_errors": {**nodes}, **rest} if nodes or "error" in rest:
            problems = tuple(problem for node_id, node in nodes.items() for problem in _problems(str(node_id), node))
            kind, message = _read_error(rest.get("error"))
            return Refusal(kind, message, problems)
        case {"error": error}:
            return Refusal(*_read_error(error), problems=())
    return None


def _read_error(error: object) -> tuple[str, str]:
    match error:
        case {"type": str(kind), "message": str(message), **rest}:
            details = str(rest.get("details") or "")
            return kind, without_paths(f"{message} ({details})" if details and details != message else message)
        case str():
            return "", without_paths(error)
    return "outputs_dropped", "some outputs would be dropped"


def _problems(node_id: str, node: object) -> list[NodeProblem]:
    problems = []
    match node:
        case {"errors": list(errors), "class_type": str(node_type)}:
            for error in errors:
                match error:
                    case {"type": str(kind), "message": str(message), **rest}:
                        problems.append(_problem(node_id, node_type, kind, message, rest))
    return problems


def _problem(node_id: str, node_type: str, kind: str, message: str, rest: Mapping[Any, Any]) -> NodeProblem:
    info = rest.get("extra_info")
    info = info if isinstance(info, dict) else {}
    details = str(rest.get("details") or "")
    return NodeProblem(
        node_id=node_id,
        node_type=node_type,
        kind=kind,
        input=str(info.get("input_name", "")),
        value=info.get("received_value"),
        problem=without_paths(f"{message}: {details}" if details else message),
        choices=_choices(info.get("input_config")),
    )


def _choices(config: object) -> tuple[str, ...]:
    match config:
        case [[*names], *_] | ["COMBO", {"options": [*names]}, *_]:
            return tuple(map(str, names))
    return ()


def combo_choices(node_type: Mapping[str, Any], input_name: str) -> tuple[str, ...]:
    """Return the names that an input of a node type, as /object_info declares it, can be chosen from."""
    match node_type:
        case {"input": {**groups}}:
            for inputs in groups.values():
                if isinstance(inputs, dict) and input_name in inputs:
                    return _choices(inputs[input_name])
    return ()
