"""One simulated server inside its event loop: queue, executor, sockets, port. simulator.py runs the loop in a thread.

A second socket holds the port without listening, so that no other process takes it while connections are refused.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass
from typing import Any, cast

from aiohttp import web

from simulators.comfyui.executor import Executor, SharedTools
from simulators.comfyui.faults import ComfyUIFaults, Cut
from simulators.comfyui.files import Folders
from simulators.comfyui.progress import ProgressFrames
from simulators.comfyui.queue_and_history import PromptQueue, QueuedPrompt
from simulators.comfyui.routes import application
from simulators.comfyui.sampling import Pace, SamplingLoop
from simulators.comfyui.sockets import Sockets

KILLED_EXIT_STATUS = 137
LOOP_ITERATIONS_TO_CLOSE = 6
"""Iterations of the event loop until a connection accepted at the last moment is set up, aborted and closed."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SimulatorSettings:
    """The settings of one server."""

    host: str
    port: int
    folders: Folders
    models: dict[str, Iterable[str]]
    pace: Pace
    is_own_process: bool = False


@dataclass(frozen=True)
class Execution:
    """When a prompt started, and when the executor was free for the next prompt, on the monotonic clock."""

    prompt_id: str
    started_at: float
    ended_at: float


class Core:
    """One server: queue, executor, websockets and port. All its methods run in its event loop."""

    def __init__(self, settings: SimulatorSettings, faults: ComfyUIFaults) -> None:
        self._settings = settings
        self._port = settings.port
        self._listener: asyncio.Server | None = None
        self._delivery: asyncio.Task[None] | None = None
        self._work_task: asyncio.Task[None] | None = None
        self._failure: BaseException | None = None
        self._reopening: asyncio.TimerHandle | None = None
        self._next_prompt_number = 0
        self._must_empty_cache = False
        self._ending = asyncio.Event()
        self._sampling = SamplingLoop(settings.pace, faults, self._cut_client)
        self._executor = Executor(SharedTools(settings.folders, faults, self._sampling))
        self.faults = faults
        self.folders = settings.folders
        self.queue = PromptQueue(self._send_status)
        self.sockets = Sockets(self.queue.info)
        self.requests: list[tuple[str, str]] = []
        self.executed_prompts: list[str] = []
        self.executions: list[Execution] = []
        self.connections = 0
        self._runner = web.AppRunner(application(self), access_log=None, logger=logger, shutdown_timeout=0.0)

    @property
    def hanging_step(self) -> int | None:
        """The step that hangs now, or None."""
        return self._sampling.hanging_step

    @property
    def sampled_steps(self) -> int:
        """The total number of sampled steps."""
        return self._sampling.steps_done

    async def serve(self, ready: Callable[[int], None]) -> None:
        """Serve until `stop`. Call `ready` with the port when the server listens."""
        port_holder = _bound_socket(self._settings.host, self._settings.port)
        self._port = port_holder.getsockname()[1]
        try:
            self._delivery = self._task(self.sockets.deliver())
            self._work_task = self._task(self._work())
            await self._runner.setup()
            await self._listen()
            ready(self._port)
            await self._ending.wait()
        finally:
            await self._close_port()
            await _cancel_all(self._delivery, self._work_task)
            await self._runner.cleanup()
            port_holder.close()
        if self._failure is not None:
            raise self._failure

    def stop(self) -> None:
        """End `serve`."""
        self._ending.set()

    def listing(self, folder: str) -> tuple[str, ...]:
        """Return the files of a model folder, or of `input`."""
        if folder == "input":
            return self.folders.input_files()
        return tuple(sorted({*self._settings.models.get(folder, ()), *self.folders.model_files(folder)}))

    def file_listing(self, folder: str) -> list[dict[str, Any]]:
        """Return the files of a model folder with their sizes. A simulated model without a file has 0 bytes."""
        paths = self.folders.model_files(folder)
        found = {name: paths[name].stat() if name in paths else None for name in self.listing(folder)}
        return [
            {
                "name": name,
                "pathIndex": 0,
                "modified": status.st_mtime if status else 0.0,
                "created": status.st_ctime if status else 0.0,
                "size": status.st_size if status else 0,
            }
            for name, status in found.items()
        ]

    def next_number(self) -> int:
        """Count a new prompt and return its number."""
        self._next_prompt_number += 1
        return self._next_prompt_number - 1

    def interrupt(self) -> None:
        """Interrupt the running prompt."""
        self._sampling.interrupt()

    def free(self) -> None:
        """Empty the cache before the next prompt starts."""
        self._must_empty_cache = True
        self.queue.wake()

    async def cut(self, how: Cut, client_id: str | None = None) -> None:
        """Drop, reset or stall the websocket of a client, or of all clients if `client_id` is None; or die."""
        match how:
            case "drop":
                await self.sockets.drop(client_id)
            case "reset":
                await self.sockets.reset(client_id)
            case "stall":
                await self.sockets.stall(client_id)
            case "die":
                await self._die()

    async def refuse(self, seconds: float) -> None:
        """Close all connections and refuse new ones for `seconds`."""
        await self._close_port()
        self._reopening = asyncio.get_running_loop().call_later(seconds, self._open_port)

    async def forget(self) -> None:
        """Reset all state, as a restarted ComfyUI would."""
        await _cancel_all(self._work_task)
        self.queue.forget_everything()
        self._executor.forget()
        self._next_prompt_number = 0
        self.sockets.running_client_id = self.sockets.running_node = None
        await self.sockets.drop(None)
        self._work_task = self._task(self._work())

    async def release(self) -> None:
        """Release hanging steps and stalled sockets."""
        self._sampling.release()
        self.sockets.release()

    async def _work(self) -> None:
        while not self._ending.is_set():
            prompt = await self.queue.next_prompt()
            if prompt is not None:
                await self._run(prompt)
            if self._must_empty_cache:
                self._must_empty_cache = False
                self._executor.forget()

    async def _run(self, prompt: QueuedPrompt) -> None:
        started_at = time.monotonic()
        self.executed_prompts.append(prompt.prompt_id)
        self.sockets.running_client_id = prompt.client_id
        progress = ProgressFrames(self.sockets, prompt)
        entry = await self._executor.run(prompt, progress)
        self.sockets.running_node = None
        await asyncio.sleep(self.faults.history_delay_s)
        self.queue.ended(entry)
        progress.ended()
        self.executions.append(Execution(prompt.prompt_id, started_at, time.monotonic()))

    def _task(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Start a task whose failure ends the server."""
        task = asyncio.create_task(coroutine)
        task.add_done_callback(self._note_task_end)
        return task

    def _note_task_end(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception() is not None:
            self._failure = task.exception()
            self._ending.set()

    def _send_status(self) -> None:
        self.sockets.send_status()

    def _cut_client(self, how: Cut) -> None:
        client_id = self.sockets.running_client_id
        self.sockets.call(lambda: self.cut(how, client_id))

    async def _die(self) -> None:
        if self._settings.is_own_process:
            os._exit(KILLED_EXIT_STATUS)
        if self._work_task is not None:
            self._work_task.cancel()
        await self._close_port()

    async def _close_port(self) -> None:
        """Refuse new connections and close the open ones, including those that are accepted at this moment."""
        if self._reopening is not None:
            self._reopening.cancel()
        listener, self._listener = self._listener, None
        for listening in listener.sockets if listener else ():
            asyncio.get_running_loop().remove_reader(listening.fileno())
        for _ in range(LOOP_ITERATIONS_TO_CLOSE):
            for connection in self._runner.server.connections if self._runner.server else ():
                if connection.transport is not None:
                    connection.transport.abort()
            await asyncio.sleep(0)
        if listener is not None:
            listener.close()

    def _open_port(self) -> None:
        self._reopening = None
        self._task(self._listen())

    async def _listen(self) -> None:
        listening = _bound_socket(self._settings.host, self._port)
        self._listener = await asyncio.get_running_loop().create_server(self._make_protocol, sock=listening)

    def _make_protocol(self) -> asyncio.Protocol:
        self.connections += 1
        server = self._runner.server
        return server() if server is not None and self._listener is not None else _ClosedConnection()


class _ClosedConnection(asyncio.Protocol):
    """Closes a connection that was accepted just before the port closed."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Close the connection."""
        cast("asyncio.Transport", transport).abort()


def _bound_socket(host: str, port: int) -> socket.socket:
    """Return a bound socket that does not listen yet. Two sockets can share a port as long as neither listens."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
    except OSError:
        bound.close()
        raise
    return bound


async def _cancel_all(*tasks: asyncio.Task[Any] | None) -> None:
    """Cancel tasks and wait until they end."""
    running = [task for task in tasks if task is not None]
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
