"""What runs leave in one ComfyUI, until it is removed: prompts that still run, entries of history, files, folders.

A call that fails is repeated by a later run: none of them does harm when it is repeated. The calls themselves are the
server's.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterable
from typing import Protocol

from comfy_core.comfyui.responses import OutputFile
from comfy_core.errors import RequestError

_ATTEMPTS = 3


class Calls(Protocol):
    """The calls of ComfyUI that remove something. Each raises RequestError where it fails."""

    def stop_prompts(self, prompt_ids: Collection[str]) -> frozenset[str]:
        """Stop prompts, and return those that still run."""

    def forget_prompts(self, prompt_ids: Collection[str]) -> None:
        """Remove the history of prompts."""

    def written_files(self, prompt_id: str) -> tuple[OutputFile, ...]:
        """Return the files that a prompt wrote."""

    def remove_file(self, file: OutputFile) -> None:
        """Remove a file, or its content if ComfyUI is reached over HTTP only."""

    def remove_folder(self, name: str) -> None:
        """Remove what a run left in its folders, if they can be reached."""


class Leftovers:
    """Removes what runs leave, and remembers what could not be removed. Safe to use from several threads.

    Args:
        calls: the ComfyUI.
    """

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._lock = threading.Lock()
        self._unended: frozenset[str] = frozenset()
        self._unforgotten: frozenset[str] = frozenset()
        self._unremoved: dict[OutputFile, int] = {}
        self._folders: dict[str, frozenset[str]] = {}
        self.stuck_prompts: frozenset[str] = frozenset()
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

    def remove_folder(self, name: str, prompts: Collection[str]) -> None:
        """Remove the folder of a run, and once more when the last of its `prompts` has ended: it may still write."""
        with self._lock:
            self._folders[name] = frozenset(prompts)
        self._remove_folders()

    def _remove_folders(self) -> None:
        with self._lock:
            folders = dict(self._folders)
            self._folders = {name: prompts for name, prompts in folders.items() if prompts & self._unended}
        for name in folders:
            self._calls.remove_folder(name)

    def note_restart(self) -> None:
        """Note that ComfyUI was ended: its queue and its history are gone, and nothing of them writes any more."""
        with self._lock:
            self._unended = self._unforgotten = self.stuck_prompts = frozenset()
        self._remove_folders()

    def _end(self, prompt_ids: frozenset[str]) -> None:
        """Stop prompts whose outputs nobody has read, and remove the files that they wrote."""
        try:
            running = self._calls.stop_prompts(prompt_ids)
        except RequestError:
            with self._lock:
                self.stuck_prompts |= prompt_ids  # for all that is known
            raise
        with self._lock:
            self.stuck_prompts = (self.stuck_prompts - prompt_ids) | running
        stopped = prompt_ids - running
        files = [file for each in stopped for file in self._calls.written_files(each)]
        with self._lock:
            self._unended -= stopped
            self._unforgotten |= stopped
        self._remove_folders()
        self.remove_files(files)

    def remove_files(self, files: Iterable[OutputFile] = ()) -> None:
        """Remove files. Raises RequestError if that fails.

        It is tried again by later calls: for a file that ComfyUI refuses to write, a few times.
        """
        with self._lock:
            for file in files:
                self._unremoved.setdefault(file, _ATTEMPTS)
            unremoved = list(self._unremoved.items())
        refusal = None
        for file, attempts in unremoved:
            try:
                self._calls.remove_file(file)
            except RequestError as error:
                if error.status is None:
                    raise
                refusal, attempts = error, attempts - 1  # noqa: PLW2901 - one fewer
            else:
                attempts = 0  # noqa: PLW2901 - done
            with self._lock:
                self._unremoved.pop(file, None)
                if attempts:
                    self._unremoved[file] = attempts
        if refusal is not None:
            raise refusal
