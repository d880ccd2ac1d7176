"""Queue and history of prompts: waiting, running and ended. Independent of HTTP and of nodes.

Facts about ComfyUI:

- The prompt with the lowest (number, id) runs first. `front` makes a number negative. Waiting prompts are in heap
  order.
- Each change sends the number of waiting and running prompts to every socket; the deletion of the last waiting prompt
  sends it twice.
- A history entry contains the graph from the start of the run. The history has at most 10,001 entries.
"""

from __future__ import annotations

import asyncio
import copy
import heapq
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

MAX_HISTORY_ENTRIES = 10_000


@dataclass(frozen=True, order=True)
class QueuedPrompt:
    """A queued prompt."""

    number: float
    prompt_id: str
    graph: dict[str, Any] = field(compare=False)
    extra_data: dict[str, Any] = field(compare=False)
    outputs: list[str] = field(compare=False)

    @property
    def client_id(self) -> str | None:
        """Return the client that gets the frames, or None for all clients."""
        client_id = self.extra_data.get("client_id")
        return None if client_id is None else str(client_id)

    def listed(self) -> list[Any]:
        """Return the prompt in the format of /queue and /history."""
        return [self.number, self.prompt_id, self.graph, self.extra_data, self.outputs]


class PromptQueue:
    """Waiting, running and ended prompts. `changed` is called when the number of waiting or running prompts changes."""

    def __init__(self, changed: Callable[[], None]) -> None:
        self._changed = changed
        self._waiting: list[QueuedPrompt] = []
        self._running: QueuedPrompt | None = None
        self._history: dict[str, dict[str, Any]] = {}
        self._woken = asyncio.Event()

    @property
    def remaining(self) -> int:
        """Return the number of waiting and running prompts."""
        return len(self._waiting) + (self._running is not None)

    @property
    def running_id(self) -> str | None:
        """Return the id of the running prompt, or None."""
        return self._running.prompt_id if self._running else None

    @property
    def ids(self) -> list[str]:
        """Return the ids of the running and the waiting prompts."""
        running = [self._running] if self._running else []
        return [prompt.prompt_id for prompt in (*running, *sorted(self._waiting))]

    @property
    def history_ids(self) -> list[str]:
        """Return the ids of the ended prompts, oldest first."""
        return list(self._history)

    def put(self, prompt: QueuedPrompt) -> None:
        """Add a prompt."""
        heapq.heappush(self._waiting, prompt)
        self._changed()
        self._woken.set()

    def wake(self) -> None:
        """Make `next_prompt` return although no prompt waits."""
        self._woken.set()

    async def next_prompt(self) -> QueuedPrompt | None:
        """Wait for a prompt or a wake-up. Return the prompt and mark it as running, or return None."""
        if not self._waiting:
            await self._woken.wait()
        self._woken.clear()
        if not self._waiting:
            return None
        prompt = heapq.heappop(self._waiting)
        self._running = copy.deepcopy(prompt)
        self._changed()
        return prompt

    def ended(self, result: dict[str, Any]) -> None:
        """Write the history entry of the running prompt, and mark it as finished."""
        if self._running is None:
            return
        prompt, self._running = self._running, None
        if len(self._history) > MAX_HISTORY_ENTRIES:
            del self._history[next(iter(self._history))]
        self._history[prompt.prompt_id] = {"prompt": prompt.listed(), **result}
        self._changed()

    def info(self) -> dict[str, Any]:
        """Return the body of GET /prompt and of `status` frames."""
        return {"exec_info": {"queue_remaining": self.remaining}}

    def listed(self) -> dict[str, list[list[Any]]]:
        """Return the body of GET /queue."""
        running = [self._running.listed()] if self._running else []
        return {"queue_running": running, "queue_pending": [prompt.listed() for prompt in self._waiting]}

    def delete(self, prompt_id: str) -> bool:
        """Delete one waiting prompt; return whether it was waiting."""
        for prompt in self._waiting:
            if prompt.prompt_id == prompt_id:
                self._waiting.remove(prompt)
                heapq.heapify(self._waiting)
                if not self._waiting:
                    self._changed()
                self._changed()
                return True
        return False

    def history(self, prompt_id: str | None = None) -> dict[str, dict[str, Any]]:
        """Return all entries, or the entry of one prompt by its id; empty if it does not exist."""
        return {key: entry for key, entry in self._history.items() if prompt_id in (None, key)}

    def forget(self, prompt_id: str) -> None:
        """Delete one history entry."""
        self._history.pop(prompt_id, None)

    def forget_everything(self) -> None:
        """Reset all state, as a restarted ComfyUI would."""
        self._waiting, self._running, self._history = [], None, {}
