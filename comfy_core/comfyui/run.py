"""Runs graphs on ComfyUI: upload inputs, queue prompts, monitor them, collect outputs, and always clean up."""

from __future__ import annotations

import contextlib
import copy
import json
import logging
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from http import HTTPStatus

from comfy_core.comfyui.graph_checks import check_structure, with_defaults
from comfy_core.comfyui.graph_rewrite import (
    FILE_SAVER,
    PIXEL_SAVER,
    TEXT_NODES,
    WEBSOCKET_SAVER,
    rewrite_graph,
    websocket_savers,
)
from comfy_core.comfyui.outputs import PromptResult, prompt_result, require_content
from comfy_core.comfyui.path_guard import path_faults, playlist_faults
from comfy_core.comfyui.prompt_monitor import Observe, Prompt, PromptMonitor, WaitLimits, unavailable
from comfy_core.comfyui.refusals import Refusal, combo_choices, read_refusal
from comfy_core.comfyui.responses import OutputFile, Succeeded, read_history
from comfy_core.comfyui.server import ComfyServer
from comfy_core.contract import MAX_FAULTS, JsonObject
from comfy_core.error_codes import ErrorCode
from comfy_core.errors import JobError, RequestError, invalid_input
from comfy_core.graphs import Graph
from comfy_core.images.pixels import EncodePixels
from comfy_core.request.uploads import Upload

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunResult:
    """The results of a run.

    Attributes:
        prompts: the outputs of each graph, in the order of the graphs.
        queue_s: time from queueing to the start of the first prompt.
        execute_s: time from that start to the end of the last prompt.
        fetch_s: time for fetching the outputs.
        warnings: deviations from the graphs, such as inputs that were added.
    """

    prompts: tuple[PromptResult, ...]
    queue_s: float
    execute_s: float
    fetch_s: float
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class RunNames:
    """Names that a run's caller chooses, so that another process can find the run's prompts in ComfyUI.

    Attributes:
        folder: the run's folder, of the form of RUN_FOLDER_PATTERN.
        prompt_ids: the id of each graph's prompt, a UUID. A prompt that is repeated gets another id.
        extra_data: an addition to the `extra_data` of each graph's prompt, which /queue and /history return.
        is_kept: whether the run saves its images to files, and leaves its prompts and files in ComfyUI. A run that
            fails before it has queued a prompt leaves nothing.
    """

    folder: str
    prompt_ids: tuple[str, ...]
    extra_data: tuple[JsonObject, ...]
    is_kept: bool


@dataclass(frozen=True)
class Hooks:
    """Optional hooks of a run's caller.

    Attributes:
        observe: called with the progress.
        turn: a context manager that is entered while prompts are queued, so that concurrent runs queue their prompts in
            a fixed order. A run that repeats a prompt enters the context again.
        encode: encodes raw pixels as PNG. Without it, ComfyUI encodes the images, even if it could send raw pixels.
        queued: called when all prompts are queued, and again if a prompt is repeated.
        names: the names of the run. Default: random names that no other process finds.
    """

    observe: Observe = lambda _: None
    turn: AbstractContextManager[object] = field(default_factory=contextlib.nullcontext)
    encode: EncodePixels | None = None
    queued: Callable[[], None] = lambda: None
    names: RunNames | None = None


NO_HOOKS = Hooks()


def run_graphs(
    server: ComfyServer,
    graphs: Sequence[Graph],
    uploads: Sequence[Upload],
    limits: WaitLimits,
    stop_reason: Callable[[], JobError | None],
    hooks: Hooks = NO_HOOKS,
    extra_data: JsonObject | None = None,
) -> RunResult:
    """Run `graphs` on `server` in order and return their results. All prompts are queued together.

    `stop_reason` is called ten times a second while the prompts run, and while their images are read; an error that it
    returns ends the run. `extra_data` is passed to ComfyUI with each graph.

    Raises:
        JobError: invalid_input (a file name outside the job's folders), workflow_rejected, model_missing,
            execution_failed, out_of_memory (after one retry with freed memory), interrupted, deadline_exceeded,
            comfyui_unavailable, disk_full, no_output, or the error that `stop_reason` returned.
    """
    run = _Run(server, limits, stop_reason, hooks, extra_data or {})
    try:
        return run.execute(graphs, uploads)
    except RequestError as error:
        raise unavailable(str(error)) from error
    finally:
        run.clean_up()


def collect_prompts(
    server: ComfyServer,
    prompts: Sequence[Prompt],
    graphs: Sequence[Graph],
    limits: WaitLimits,
    stop_reason: Callable[[], JobError | None] = lambda: None,
) -> tuple[PromptResult, ...]:
    """Return the outputs of prompts that another process has queued and that have succeeded. They stay in ComfyUI.

    `graphs` are the caller's, which determine the names of the images. A prompt whose images were sent to the other
    process over its websocket runs again: ComfyUI's cache has its results, or it samples the same images again.

    Raises JobError like `run_graphs`, and RequestError.
    """
    run = _Run(server, limits, stop_reason, NO_HOOKS, {})
    try:
        return run.collect(prompts, graphs)
    finally:
        run.clean_up()


class _Run:
    """State of one run, including the folder, prompts and files that `clean_up` removes."""

    def __init__(
        self,
        server: ComfyServer,
        limits: WaitLimits,
        stop_reason: Callable[[], JobError | None],
        hooks: Hooks,
        extra_data: JsonObject,
    ) -> None:
        self._server = server
        self._limits = limits
        self._stop_reason = stop_reason
        self._hooks = hooks
        self._extra_data = extra_data
        self._names = hooks.names
        self._folder = self._names.folder if self._names else f"run-{uuid.uuid4().hex}"
        self._prompts: list[Prompt] = []
        self._files: list[OutputFile] = []
        self._node_types: Mapping[str, JsonObject] = {}

    def execute(self, graphs: Sequence[Graph], uploads: Sequence[Upload]) -> RunResult:
        with _log_failure("removing what earlier runs left"):
            self._server.cleanup.remove_prompts()
            self._server.cleanup.remove_files()
        named = self._with_upload_names(graphs, uploads)
        classes = {node["class_type"] for graph in named for node in graph.values()}
        node_types = self._server.node_types(classes | TEXT_NODES)
        self._check(named, node_types, uploads)
        filled = [with_defaults(graph, node_types) for graph in named]
        named = [graph for graph, _ in filled]
        self._upload(named, uploads)
        self._node_types = node_types
        saver = self._saver()
        monitor = self._monitor()
        queued_at = time.monotonic()
        prompts = [self._new_prompt(graph, saver) for graph in named]
        if self._names is not None:
            for prompt, prompt_id, extra in zip(prompts, self._names.prompt_ids, self._names.extra_data, strict=True):
                prompt.prompt_id, prompt.extra_data = prompt_id, extra
        prompts = self._execute(monitor, prompts)
        ended_at = time.monotonic()
        results = self.collect(prompts, named)
        started_at = monitor.started_at or ended_at
        fetch_s = time.monotonic() - ended_at
        warnings = tuple(dict.fromkeys(warning for _, each in filled for warning in each))
        return RunResult(results, started_at - queued_at, ended_at - started_at, fetch_s, warnings)

    def collect(self, prompts: Sequence[Prompt], graphs: Sequence[Graph]) -> tuple[PromptResult, ...]:
        """Return the outputs of prompts that have succeeded. Raises JobError (no_output) if there are none."""
        results = tuple(self._collect(*pair) for pair in zip(prompts, graphs, strict=True))
        if not any(result.images or result.files or result.texts for result in results):
            raise JobError.because(ErrorCode.NO_OUTPUT, "The graph succeeded but saved no output")
        return results

    def _monitor(self) -> PromptMonitor:
        return PromptMonitor(self._server, self._limits, self._stop_reason, self._hooks.observe, self._hooks.encode)

    def _saver(self) -> str:
        """Return the class of the node that replaces the graphs' SaveImage nodes: the fastest that is possible."""
        if self._names is not None and self._names.is_kept:
            return FILE_SAVER
        if self._hooks.encode is not None and self._server.offers(PIXEL_SAVER):
            return PIXEL_SAVER
        return WEBSOCKET_SAVER if self._server.offers(WEBSOCKET_SAVER) else FILE_SAVER

    def _with_upload_names(self, graphs: Sequence[Graph], uploads: Sequence[Upload]) -> list[Graph]:
        """Return copies of `graphs` that refer to the uploads by the names they will have in ComfyUI."""
        named = [copy.deepcopy(graph) for graph in graphs]
        for number, upload in enumerate(uploads):
            for graph in named:
                for target in upload.targets:
                    target.set(graph, f"{self._folder}/{upload_name(number, upload)}")
        return named

    def _check(self, graphs: Sequence[Graph], node_types: Mapping[str, JsonObject], uploads: Sequence[Upload]) -> None:
        """Raise JobError if a graph or an upload would access other files than the job's, or if a graph cannot run."""
        faults = [fault for graph in graphs for fault in path_faults(graph, node_types, self._folder)]
        faults += [fault for each in uploads for fault in playlist_faults(each.file.data, each.targets)]
        if faults:
            raise invalid_input(list(dict.fromkeys(faults))[:MAX_FAULTS])
        for graph in graphs:
            check_structure(graph, node_types)

    def _upload(self, graphs: Sequence[Graph], uploads: Sequence[Upload]) -> None:
        """Upload the files and write the names that ComfyUI returns into `graphs`."""
        for number, upload in enumerate(uploads):
            filename = upload_name(number, upload)
            self._files.append(OutputFile("", "", filename, self._folder, "input"))
            file = upload.file
            try:
                name = self._server.upload(file.data, folder=self._folder, filename=filename, mime_type=file.mime_type)
            except RequestError as error:
                if (error.status or 0) >= HTTPStatus.INTERNAL_SERVER_ERROR:
                    raise _not_stored(error) from error
                raise
            for graph in graphs:
                for target in upload.targets:
                    target.set(graph, name)

    def _execute(self, monitor: PromptMonitor, prompts: list[Prompt]) -> list[Prompt]:
        """Run the prompts. After an out-of-memory error, free memory and run the unfinished prompts once more."""
        try:
            self._queue_and_wait(monitor, prompts)
        except JobError as error:
            if error.code is not ErrorCode.OUT_OF_MEMORY:
                raise
            log.warning("ComfyUI ran out of memory; freeing memory and retrying once")
            self._server.stop_prompts([prompt.prompt_id for prompt in prompts if prompt.outcome is None])
            self._server.free_memory()
            prompts = [
                each if each.outcome else Prompt(each.graph, str(uuid.uuid4()), each.original) for each in prompts
            ]
            self._queue_and_wait(monitor, [prompt for prompt in prompts if prompt.outcome is None])
        return prompts

    def _queue_and_wait(self, monitor: PromptMonitor, prompts: Sequence[Prompt]) -> None:
        with self._server.listen([prompt.prompt_id for prompt in prompts]) as notices:
            with self._hooks.turn:
                for prompt in prompts:
                    self._prompts.append(prompt)
                    self._queue(prompt)
            self._hooks.queued()
            monitor.wait(prompts, notices)

    def _queue(self, prompt: Prompt) -> None:
        """Queue one prompt. Raises JobError if ComfyUI rejects it or any of its outputs."""
        try:
            refusal = read_refusal(self._post(prompt))
        except RequestError as error:
            refusal = _refusal_in(error)
            if refusal is None:
                raise
        if refusal is not None:
            refusal = refusal.with_classes(prompt.class_of)
            available = {
                problem.input: problem.choices
                or combo_choices(self._server.node_type(problem.node_type), problem.input)
                for problem in refusal.missing(self._node_types)
            }
            raise refusal.error(self._node_types, available)

    def _post(self, prompt: Prompt) -> object:
        """Post a prompt and return the response.

        If there is no response, return None if ComfyUI has the prompt, else post it once more.
        """
        extra_data = {**self._extra_data, **prompt.extra_data}
        try:
            return self._server.queue_prompt(prompt.graph, prompt.prompt_id, extra_data)
        except RequestError as error:
            if error.status is not None:
                raise
            running, pending = self._server.queue_state()
            if prompt.prompt_id in running | pending or read_history(
                self._server.history(prompt.prompt_id), prompt.prompt_id
            ):
                return None
            log.warning("no response to POST /prompt, and ComfyUI does not have the prompt; posting it again")
            return self._server.queue_prompt(prompt.graph, prompt.prompt_id, extra_data)

    def _new_prompt(self, graph: Graph, saver: str = FILE_SAVER, rerun: Collection[str] = ()) -> Prompt:
        folder = f"{self._folder}/again" if rerun else self._folder
        types = self._node_types
        changed = rewrite_graph(graph, folder, saver=saver, node_types=types, rerun=rerun)
        return Prompt(changed, str(uuid.uuid4()), graph)

    def _collect(self, prompt: Prompt, graph: Graph) -> PromptResult:
        """Return a prompt's outputs. `graph` is the caller's, which determines the names of the images.

        If websocket frames are missing or a file is empty, the prompt runs again and saves its images to files.
        """
        if websocket_savers(prompt.graph) and not prompt.is_complete:
            log.warning("websocket frames are missing; running the prompt again and saving its images to files")
            self._server.reopen_socket()
            prompt = self._repeat(prompt)
        files = self._read_files(prompt)
        if empty := {file.node_id for file, data in files.items() if not data}:
            log.warning("nodes %s reported cached files that are empty or deleted; running these nodes again", empty)
            prompt = self._repeat(prompt, empty)
            files = self._read_files(prompt)
        require_content(graph, files)
        return prompt_result(prompt, graph, files, self._raise_if_stopped)

    def _repeat(self, prompt: Prompt, nodes: Collection[str] = ()) -> Prompt:
        """Run a prompt again, with its images saved to files. The `nodes` run even if their results are cached."""
        if not self._node_types:
            classes = {node["class_type"] for node in prompt.original.values()}
            self._node_types = self._server.node_types(classes | TEXT_NODES)
        [repeated] = self._execute(self._monitor(), [self._new_prompt(prompt.original, rerun=nodes)])
        return repeated

    def _read_files(self, prompt: Prompt) -> dict[OutputFile, bytes]:
        """Return the content of the prompt's output files. It is empty for a file that ComfyUI does not have."""
        outcome = prompt.outcome
        assert isinstance(outcome, Succeeded)  # noqa: S101 - `PromptMonitor.wait` raises otherwise
        return {file: self._read_file(file) for file in outcome.files if file.type == "output"}

    def _read_file(self, file: OutputFile) -> bytes:
        try:
            return self._server.view(file)
        except RequestError as error:
            if error.status is not None and error.status < HTTPStatus.INTERNAL_SERVER_ERROR:
                return b""
            raise

    def _raise_if_stopped(self) -> None:
        error = self._stop_reason()
        if error is not None:
            raise error

    def clean_up(self) -> None:
        """Remove the run's prompts, history, files and folder from ComfyUI, unless they are kept.

        Logs failures instead of raising; a later run tries again.
        """
        if self._names is not None and self._names.is_kept and self._prompts:
            return
        prompt_ids = {prompt.prompt_id for prompt in self._prompts}
        ended = {prompt.prompt_id for prompt in self._prompts if prompt.outcome is not None}
        with _log_failure("removing prompts"):
            self._server.cleanup.remove_prompts(ended, prompt_ids - ended)
        for prompt in self._prompts:
            if isinstance(prompt.outcome, Succeeded):
                self._files += prompt.outcome.written
        with _log_failure("removing files"):
            self._server.cleanup.remove_files(self._files)
        with _log_failure("removing folders"):
            self._server.cleanup.remove_folder(self._folder, prompt_ids)


def _not_stored(error: RequestError) -> JobError:
    problem = f"{error}: it could not store an input file; its disk may be full or not writable"
    return JobError.because(ErrorCode.DISK_FULL, problem)


def upload_name(number: int, upload: Upload) -> str:
    """Return the name of a run's upload in the run's folder."""
    return f"{number}.{upload.extension}"


def _refusal_in(error: RequestError) -> Refusal | None:
    if error.status != 400:  # noqa: PLR2004 - the status of a rejected prompt
        return None
    try:
        return read_refusal(json.loads(error.body))
    except ValueError:
        return None


@contextlib.contextmanager
def _log_failure(what: str) -> Iterator[None]:
    try:
        yield
    except (RequestError, OSError) as error:
        log.warning("%s failed: %s", what, error)
