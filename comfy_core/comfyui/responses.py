"""Parses ComfyUI's /history and /system_stats responses, and cleans ComfyUI's texts for errors. No I/O.

Facts (tests/recordings):

- /history/{id} is `{}` for a pending, running or unknown prompt. Otherwise it is
  `{id: {"prompt", "outputs", "status": {"status_str", "completed", "messages"}, "meta"}}`. The messages distinguish an
  error from an interruption. That of an error has the exception's `traceback`, which ComfyUI also logs.
- `prompt` is the entry that /queue had: `[number, prompt_id, graph, extra_data, outputs]`. `extra_data` is that of the
  request, without keys of comfy.org.
- /system_stats has the device that torch uses, with its `type` (`cpu`, `cuda`) and `name`.

Facts (model_management.py of 0.33.0, get_torch_device_name):

- The name of a CUDA device is `cuda:0 NVIDIA GeForce RTX 4090 : cudaMallocAsync`: the device, its driver's name for the
  GPU, and the allocator.

Facts (execution.py of 0.3.64 and 0.33.0; model_vbar.py, vram_buffer.py and host_buffer.py of comfy-aimdo 0.4.13):

- If the GPU runs out of memory, ComfyUI adds a tip to the exception's message: "you ran out of memory on your GPU".
- The allocator comfy-aimdo raises exceptions of its own, which ComfyUI does not recognise: a RuntimeError such as
  "VRAM grow failed: … bytes" or "HostBuffer allocation failed", and a MemoryError such as "VBAR OOM".
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from comfy_core.contract import JsonObject, shortened
from comfy_core.error_codes import ErrorCode
from comfy_core.errors import ComfyUIBroken, JobError
from comfy_core.graphs import Graph

_MAX_PROCESSED_TEXT = 10_000
"""Maximum number of characters of a text that are processed. The text of a node's exception has no size limit."""

_GPU_MEMORY = re.compile(
    r"(CUDA|HIP) error: out of memory|ran out of memory on your GPU|VRAM (reservation|grow|Allocation) failed|"
    r"VBAR (OOM|allocation failed)"
)
"""Matches messages of ComfyUI, torch and comfy-aimdo about exhausted GPU memory."""
_MAIN_MEMORY = re.compile(r"HostBuffer( allocation|\.extend|\.register) failed|Host OOM")
"""Matches messages of comfy-aimdo about exhausted main memory."""

SHOWN_LINES = 20
SHOWN_CHARACTERS = 300
_ESCAPES = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|\x1b.|[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""Terminal escape sequences (colours, titles) and control characters. Tabs are kept."""
_RUN_FOLDER = re.compile(r"run-[0-9a-f]{8,}(?:/[^\s'\"\],)]*)?")

_CUDA_DEVICE = re.compile(r"cuda(:\d+)? (?P<gpu>.+?)( : \w*)?")


@dataclass(frozen=True)
class SystemStats:
    """ComfyUI's version, or "unknown", and the driver's name of its GPU, or None for a CPU or an unknown device."""

    version: str
    gpu: str | None


def is_simulator(version: str) -> bool:
    """Return whether this is the version of the simulator, which adds `+simulator` to the version of its ComfyUI."""
    return version.endswith("+simulator")


def read_system_stats(body: object) -> SystemStats:
    """Parse the response of /system_stats. What it lacks is unknown."""
    version, gpu = "unknown", None
    match body:
        case {"system": {"comfyui_version": str(version)}}:
            pass
    match body:
        case {"devices": [{"name": str(name)}, *_]} if device := _CUDA_DEVICE.fullmatch(name):
            gpu = device["gpu"]
    return SystemStats(version, gpu)


@dataclass(frozen=True)
class OutputFile:
    """A file in a folder of ComfyUI: its /view parameters, and its key in the node's outputs (`images`, `gifs`, …)."""

    node_id: str
    key: str
    filename: str
    subfolder: str
    type: str


@dataclass(frozen=True)
class Succeeded:
    """The prompt succeeded, with these outputs."""

    files: tuple[OutputFile, ...]
    texts: tuple[str, ...]

    @property
    def written(self) -> tuple[OutputFile, ...]:
        """The files that the prompt wrote. Outputs may also include files from the input folder."""
        return tuple(file for file in self.files if file.type in {"output", "temp"})


@dataclass(frozen=True)
class Failed:
    """The prompt failed: usually, a node raised an exception. The node's fields are empty if ComfyUI names none.

    `traceback` has the last lines of the exception's traceback, as in `log_excerpt`.
    """

    node_id: str
    node_type: str
    exception_type: str
    message: str
    traceback: tuple[str, ...] = ()

    @property
    def memory_problem(self) -> str:
        """Which memory was exhausted, as the start of an error message; empty if the failure has another cause."""
        if self.exception_type.endswith("OutOfMemoryError") or _GPU_MEMORY.search(self.message):
            return "The GPU ran out of memory"
        if self.exception_type.endswith("MemoryError") or _MAIN_MEMORY.search(self.message):
            return "ComfyUI ran out of main memory"
        return ""

    @property
    def breaks_cuda(self) -> bool:
        """Whether the process's CUDA context is now unusable, so that every later kernel fails.

        torch raises AcceleratorError (2.8 and newer) or a RuntimeError whose message begins with `CUDA error:`.
        """
        return self.exception_type.endswith("AcceleratorError") or "CUDA error:" in self.message

    def error(self) -> JobError:
        """Return the job's error."""
        where = f"node {self.node_id} ({self.node_type})" if self.node_id else "the workflow"
        details: JsonObject = {
            "node_id": self.node_id,
            "node_type": self.node_type,
            "exception_type": self.exception_type,
        }
        if self.traceback:
            details["log_tail"] = list(self.traceback)
        if self.memory_problem:
            return JobError.because(ErrorCode.OUT_OF_MEMORY, f"{self.memory_problem} in {where}", **details)
        if self.breaks_cuda:
            problem = f"The GPU failed in {where}, and the worker restarts ComfyUI: {self.message}"
            return ComfyUIBroken.because(ErrorCode.COMFYUI_UNAVAILABLE, problem, **details)
        return JobError.because(ErrorCode.EXECUTION_FAILED, f"{where} failed: {self.message}", **details)


@dataclass(frozen=True)
class Interrupted:
    """The prompt was interrupted at this node."""

    node_id: str
    node_type: str

    def error(self) -> JobError:
        """Return the job's error."""
        return JobError.because(
            ErrorCode.INTERRUPTED,
            f"Another client interrupted ComfyUI in node {self.node_id} ({self.node_type})",
            node_id=self.node_id,
            node_type=self.node_type,
        )


Outcome: TypeAlias = Succeeded | Failed | Interrupted


def read_history(body: object, prompt_id: str) -> Outcome | None:
    """Return the prompt's outcome from a /history response, or None if the response has none."""
    entry = _entry(body, prompt_id)
    return _read_entry(entry) if entry else None


@dataclass(frozen=True)
class StoredPrompt:
    """A prompt as ComfyUI stores it: its graph, and the `extra_data` of its request."""

    graph: Graph
    extra_data: JsonObject


def read_prompt(item: object) -> StoredPrompt | None:
    """Return the prompt in an entry of /queue, or in the `prompt` of a history entry. None if it is not one."""
    match item:
        case [_, _, dict() as graph, dict() as extra_data, *_]:
            return StoredPrompt(graph, extra_data)
    return None


def read_history_prompt(body: object, prompt_id: str) -> StoredPrompt | None:
    """Return the prompt in a /history response, or None if the response has none."""
    return read_prompt(_entry(body, prompt_id).get("prompt"))


def read_written(body: object, prompt_id: str) -> tuple[OutputFile, ...]:
    """Return the files that the prompt wrote, whatever its outcome, from a /history response."""
    return _succeeded_with(_entry(body, prompt_id).get("outputs")).written


def _entry(body: object, prompt_id: str) -> Mapping[str, Any]:
    """Return the entry of a prompt in a /history response; empty if the response has none."""
    match body:
        case {**entries} if isinstance(entry := entries.get(prompt_id), dict):
            return entry
    return {}


def _read_entry(entry: Mapping[str, Any]) -> Outcome:
    status = entry.get("status")
    messages = status.get("messages", []) if isinstance(status, dict) else []
    for message in messages:
        match message:
            case ["execution_error", {"node_id": node_id, "node_type": node_type, **rest}]:
                text = foreign_text(" ".join(str(rest.get("exception_message", ""))[:_MAX_PROCESSED_TEXT].split()))
                kind = shortened(str(rest.get("exception_type", "")))
                return Failed(
                    shortened(str(node_id)), shortened(str(node_type)), kind, text, _traceback(rest.get("traceback"))
                )
            case ["execution_interrupted", {"node_id": node_id, "node_type": node_type}]:
                return Interrupted(shortened(str(node_id)), shortened(str(node_type)))
    if isinstance(status, dict) and status.get("status_str") == "error":
        return Failed("", "", "", "ComfyUI named neither a node nor a reason")
    return _succeeded_with(entry.get("outputs"))


def _traceback(entries: object) -> tuple[str, ...]:
    """Return the last lines of the traceback in an execution_error, whose entries are those of traceback.format_tb."""
    last = [str(entry)[-_MAX_PROCESSED_TEXT:] for entry in entries[-SHOWN_LINES:]] if isinstance(entries, list) else []
    lines = "".join(last).splitlines()
    return tuple(log_excerpt([line for line in lines if line.strip(" ^~")]))  # Python marks code with ^ and ~ below it


def _succeeded_with(outputs: object) -> Succeeded:
    files, texts = [], []
    for node_id, node_outputs in outputs.items() if isinstance(outputs, dict) else ():
        for key, items in node_outputs.items() if isinstance(node_outputs, dict) else ():
            for item in items if isinstance(items, list | tuple) else ():
                match item:
                    case {"filename": str(name), "type": str(kind)}:
                        files.append(OutputFile(str(node_id), str(key), name, str(item.get("subfolder", "")), kind))
                    case str() if key == "text":
                        texts.append(item)
    return Succeeded(tuple(files), tuple(texts))


def foreign_text(text: str) -> str:
    """Return a text from ComfyUI for use in an error message: shortened, and without absolute paths."""
    return shortened(without_paths(text[:_MAX_PROCESSED_TEXT]))


def without_paths(text: str) -> str:
    """Return `text` with each absolute path reduced to its last part, so that no folders are disclosed."""
    return re.sub(r"(?<![\w:/.])/(?:[^\s/'\":]+/)+([^\s/'\":]*)", r"\1", text)


def cleaned_line(line: str) -> str:
    """Return a line of ComfyUI's log without escape sequences, local folders, and names of files in a run's folder."""
    return _RUN_FOLDER.sub("run-…", without_paths(_ESCAPES.sub("", line)))


def log_excerpt(lines: Sequence[str]) -> list[str]:
    """Return the last lines of ComfyUI's log as an error may contain them: cleaned, and with limited lengths."""
    return [cleaned_line(line)[:SHOWN_CHARACTERS] for line in lines[-SHOWN_LINES:]]
