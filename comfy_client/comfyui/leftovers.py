"""What runs leave in one ComfyUI, until it is removed: prompts that still run, entries of history, files.

A call that fails is made again by a later run: none of them does harm when it is repeated. The calls themselves are the
server's.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterable
from typing import Protocol

from comfy_client.comfyui.answers import OutputFile
from comfy_client.errors import RequestError

_EMPTY_ATTEMPTS = 3


class Calls(Protocol):
    """The calls of ComfyUI that remove something. Each raises RequestError where it fails."""

    def stop_prompts(self, prompt_ids: Collection[str]) -> frozenset[str]:
        """Stop prompts, and return those that still run."""

    def forget_prompts(self, prompt_ids: Collection[str]) -> None:
        """Remove the history of prompts."""

    def written_files(self, prompt_id: str) -> tuple[OutputFile, ...]:
        """Return the files that a prompt wrote."""

    def empty_file(self, file: OutputFile) -> None:
        """Write nothing over a file."""


class Leftovers:
    """Removes what runs leave, and remembers what could not be removed. Safe to use from several threads.

    Args:
        calls: the ComfyUI.
        empties_files: whether what a stopped prompt wrote is emptied; else someone deletes it.
    """

    def __init__(self, calls: Calls, *, empties_files: bool) -> None:
        self._calls = calls
        self._empties_files = empties_files
        self._lock = threading.Lock()
        self._unended: frozenset[str] = frozenset()
        self._unforgotten: frozenset[str] = frozenset()
        self._unemptied: dict[OutputFile, int] = {}
        self.lingering: frozenset[str] = frozenset()
        """The prompts that were to be stopped and still ran, or may have run, when their run ended."""

    def remove_prompts(self, ended: Collection[str] = (), others: Collection[str] = ()) -> None:
        """Remove prompts, with their history and graphs: those that `ended`, and `others`, which are stopped first.

        What runs on although it was interrupted, and everything where a call fails (RequestError), is removed by a
        later call.
        """
        with self._lock:
            self._unforgotten |= set(ended)
            self._unended |= set(others)
            unended = self._unended
        if unended:
            self._end(unended)
        with self._lock:
            forgotten = self._unforgotten
        if forgotten:
            self._calls.forget_prompts(forgotten)
            with self._lock:
                self._unforgotten -= forgotten

    def note_restart(self) -> None:
        """Note that ComfyUI was ended: its queue and its history are gone."""
        with self._lock:
            self._unended = self._unforgotten = self.lingering = frozenset()

    def _end(self, prompt_ids: frozenset[str]) -> None:
        """Stop prompts of which nobody has read what they wrote, and empty that."""
        try:
            running = self._calls.stop_prompts(prompt_ids)
        except RequestError:
            with self._lock:
                self.lingering |= prompt_ids  # for all that is known
            raise
        with self._lock:
            self.lingering = (self.lingering - prompt_ids) | running
        stopped = prompt_ids - running
        if self._empties_files:
            self.empty_files([file for each in stopped for file in self._calls.written_files(each)])
        with self._lock:
            self._unended -= stopped
            self._unforgotten |= stopped

    def empty_files(self, files: Iterable[OutputFile] = ()) -> None:
        """Empty files. Raises RequestError where that fails.

        It is tried again by later calls: for a file that ComfyUI refuses to write, a few times.
        """
        with self._lock:
            for file in files:
                self._unemptied.setdefault(file, _EMPTY_ATTEMPTS)
            unemptied = list(self._unemptied.items())
        refusal = None
        for file, attempts in unemptied:
            try:
                self._calls.empty_file(file)
            except RequestError as error:
                if error.status is None:
                    raise
                refusal, attempts = error, attempts - 1  # noqa: PLW2901 - one fewer
            else:
                attempts = 0  # noqa: PLW2901 - done
            with self._lock:
                self._unemptied.pop(file, None)
                if attempts:
                    self._unemptied[file] = attempts
        if refusal is not None:
            raise refusal
