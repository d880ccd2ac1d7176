"""Runs prompts: decides which nodes run and which cached results are reused, and returns the entry of /history.

Facts about ComfyUI:

- The frames of a prompt are `execution_start` and `execution_cached` (the nodes with a cached result); then for every
  node `progress_state`, `executing`, the node's own messages, `executed` if it has UI output, and `progress_state`; at
  the end `execution_success`, `execution_error` or `execution_interrupted`.
- With --cache-classic, only results of the previous prompt's nodes are cached. LoadImage depends on the content of its
  file; SaveImageWebsocket and SendPixelsWebsocket run every time.
- An output node with a cached result does not run: it sends `executed` with its earlier output (a file that may no
  longer exist) and `progress_state` 1 of 1.
- The graph that SaveImage writes into a PNG contains the hash of LoadImage's file as `is_changed`; the one in /history
  does not.
- The outputs in /history are the UI outputs of the prompt's nodes, new or cached, even if the run failed.
- ComfyUI checks for an interruption before every node and at every step. An interrupted prompt sends no error, but its
  status in /history is `error`.
- An error message ends in a line break, and a tip may follow it.
- A literal instead of a link is accepted by /prompt. The node fails when it uses the value.
"""

from __future__ import annotations

import asyncio
import copy
import inspect
import traceback
import uuid
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, cast

from PIL import Image

from simulators.comfyui.faults import ComfyUIFaults
from simulators.comfyui.files import Folders
from simulators.comfyui.graph import RunOrder, inputs_of, is_link, signatures
from simulators.comfyui.node_table import NODE_TYPES, NodeType
from simulators.comfyui.nodes import BEHAVIOURS
from simulators.comfyui.progress import ProgressFrames
from simulators.comfyui.queue_and_history import QueuedPrompt
from simulators.comfyui.sampling import SamplingInterrupted, SamplingLoop
from simulators.comfyui.sockets import PNG
from simulators.comfyui.values import Latent, NodeContext, NodeFailure, Result

NEVER_CACHED = ("SaveImageWebsocket", "SendPixelsWebsocket")
FAILURES = (NodeFailure, OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError)
"""Exceptions that a node may raise: its own failures, and Pillow's for unreadable files."""


@dataclass(frozen=True)
class CacheEntry:
    """A node's cached result, and the node's metadata in /history."""

    result: Result
    meta: dict[str, Any]


@dataclass(frozen=True)
class SharedTools:
    """Objects that all prompts share."""

    folders: Folders
    faults: ComfyUIFaults
    sampling: SamplingLoop


class Executor:
    """Runs prompts one after the other, and caches the results of the last prompt."""

    def __init__(self, tools: SharedTools) -> None:
        self._tools = tools
        self._cache: dict[str, CacheEntry] = {}

    def forget(self) -> None:
        """Clear the cache."""
        self._cache = {}

    async def run(self, prompt: QueuedPrompt, progress: ProgressFrames) -> dict[str, Any]:
        """Run a prompt; return its history entry without the prompt itself."""
        self._tools.sampling.begin()
        progress.send_message("execution_start", {})
        graph = copy.deepcopy(prompt.graph)
        keys = signatures(graph, lambda node_id: _extra_identity(self._tools.folders, graph, node_id))
        self._cache = {key: self._cache[key] for key in keys.values() if key in self._cache}
        cached = [node_id for node_id, key in keys.items() if key in self._cache]
        progress.send_message("execution_cached", {"nodes": cached})
        run = _PromptRun(self._tools, self._cache, prompt, graph, progress, keys)
        is_success = await run.run_nodes(cached)
        entries = {node_id: self._cache[key] for node_id, key in keys.items() if key in self._cache}
        with_output = {node_id: entry for node_id, entry in entries.items() if entry.result.ui_output}
        status = {"status_str": "success" if is_success else "error", "completed": is_success}
        return {
            "outputs": {node_id: entry.result.ui_output for node_id, entry in with_output.items()},
            "status": {**status, "messages": progress.messages},
            "meta": {node_id: entry.meta for node_id, entry in with_output.items()},
        }


def _extra_identity(folders: Folders, graph: dict[str, Any], node_id: str) -> object:
    """Return what a node's result depends on besides its inputs, or None. Write a file's hash into the graph too."""
    node_type = NODE_TYPES[graph[node_id]["class_type"]]
    if node_type.name in NEVER_CACHED:
        return uuid.uuid4().hex
    if not node_type.checks_file:
        return None
    path = folders.readable(str(inputs_of(graph, node_id).get(node_type.checks_file)))
    graph[node_id]["is_changed"] = [sha256(path.read_bytes()).hexdigest() if path.is_file() else uuid.uuid4().hex]
    return graph[node_id]["is_changed"]


@dataclass(frozen=True)
class _PromptRun:
    """One run of one prompt."""

    tools: SharedTools
    cache: dict[str, CacheEntry]
    prompt: QueuedPrompt
    graph: dict[str, Any]
    progress: ProgressFrames
    keys: dict[str, str]
    executed: list[str] = field(default_factory=list)

    async def run_nodes(self, cached: list[str]) -> bool:
        """Run the nodes that are not cached; return whether all succeeded."""
        order = RunOrder(self.graph, lambda node_id: NODE_TYPES[self.graph[node_id]["class_type"]].is_output)
        for output in self.prompt.outputs:
            order.add(output, cached)
        while (node_id := order.next_node()) is not None:
            if not await self._run_node(node_id):
                return False
            order.done(node_id)
        self.progress.send_message("execution_success", {})
        return True

    async def _run_node(self, node_id: str) -> bool:
        """Run one node; return whether it succeeded."""
        cached = self.cache.get(self.keys[node_id])
        if cached is not None:
            self.progress.executed(node_id, cached.result.ui_output)
            self.progress.finished(node_id)
            return True
        self.progress.started(node_id)
        inputs = self._node_inputs(node_id)
        try:
            result = await self._run_behaviour(node_id, inputs)
        except SamplingInterrupted:
            self.progress.send_message("execution_interrupted", self._node_details(node_id))
            return False
        except FAILURES as failure:
            self._send_failure(node_id, inputs, failure)
            return False
        if result.ui_output:
            self.progress.executed(node_id, result.ui_output)
        meta = {"node_id": node_id, "display_node": node_id, "parent_node": None, "real_node_id": node_id}
        self.cache[self.keys[node_id]] = CacheEntry(result, meta)
        self.progress.finished(node_id)
        self.executed.append(node_id)
        return True

    async def _run_behaviour(self, node_id: str, inputs: dict[str, Any]) -> Result:
        self.tools.sampling.check()
        class_type = self.graph[node_id]["class_type"]
        fault = self.tools.faults.take_node_fault(class_type)
        if fault is not None:
            raise NodeFailure(fault.type_name, fault.message, fault.tip)
        _check_links(NODE_TYPES[class_type], self.graph[node_id]["inputs"])
        behaviour = BEHAVIOURS[class_type]
        if inspect.iscoroutinefunction(behaviour):
            return cast("Result", await behaviour(self._context(node_id), inputs))
        return cast("Result", await asyncio.to_thread(behaviour, self._context(node_id), inputs))

    def _node_inputs(self, node_id: str) -> dict[str, Any]:
        node = self.graph[node_id]
        declared = NODE_TYPES[node["class_type"]].inputs_of(node["inputs"])
        return {name: self._value(value) for name, value in node["inputs"].items() if name in declared}

    def _value(self, value: Any) -> Any:  # noqa: ANN401  a literal of the request, or a node's output
        if not is_link(value):
            return value
        return self.cache[self.keys[value[0]]].result.outputs[value[1]]

    def _context(self, node_id: str) -> NodeContext:
        async def sample(latent: Latent, steps: int) -> None:
            await self.tools.sampling.run(
                latent.frames[0], steps, lambda step, image: self.progress.stepped(node_id, step, steps, image)
            )

        async def send_image(index: int, count: int, file: bytes) -> None:
            self.tools.sampling.check()
            self.progress.stepped(node_id, index, count, (PNG, file))

        def send_pixels(index: int, count: int, image: Image.Image) -> None:
            if not self.tools.faults.take_image_loss():
                self.progress.sent_pixels(node_id, index, count, image)

        extra = self.prompt.extra_data.get("extra_pnginfo")
        return NodeContext(self.tools.folders, self.graph, extra, sample, send_image, send_pixels)

    def _hidden_inputs(self, node_id: str) -> dict[str, Any]:
        saves_metadata = NODE_TYPES[self.graph[node_id]["class_type"]].saves_metadata
        extra = self.prompt.extra_data.get("extra_pnginfo")
        return {"prompt": self.graph, "extra_pnginfo": extra} if saves_metadata else {}

    def _node_details(self, node_id: str) -> dict[str, Any]:
        return {"node_id": node_id, "node_type": self.graph[node_id]["class_type"], "executed": list(self.executed)}

    def _send_failure(self, node_id: str, inputs: dict[str, Any], failure: BaseException) -> None:
        failure_type = type(failure)
        module, name = failure_type.__module__, failure_type.__qualname__
        plain_name = name if module == "builtins" else f"{module}.{name}"
        details = {
            **self._node_details(node_id),
            "exception_message": f"{failure}\n{getattr(failure, 'tip', '')}",
            "exception_type": getattr(failure, "type_name", plain_name),
            "traceback": traceback.format_tb(failure.__traceback__),
            "current_inputs": {
                name: [_as_json_value(value)] for name, value in (inputs | self._hidden_inputs(node_id)).items()
            },
            "current_outputs": list(self.graph),
        }
        self.progress.send_message("execution_error", details)


def _check_links(node_type: NodeType, inputs: dict[str, Any]) -> None:
    """Raise NodeFailure for a literal in place of a link."""
    for name, entry in node_type.inputs.items():
        if entry.is_link_only and name in inputs and not is_link(inputs[name]):
            literal = type(inputs[name]).__name__
            raise NodeFailure("AttributeError", f"{literal!r} object has no attribute of a {entry.type}")


def _as_json_value(value: object) -> object:
    return value if value is None or isinstance(value, int | float | str) else str(value)
