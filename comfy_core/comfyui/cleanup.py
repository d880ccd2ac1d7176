"""Removes what runs leave behind in one ComfyUI: prompts that still run, history entries, files and folders.

A failed removal is retried by a later run; every removal is safe to repeat. The HTTP requests are made by `server`.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterable
from typing import Protocol

from comfy_core.comfyui.responses import OutputFile
from comfy_core.errors import RequestError

_ATTEMPTS = 3


class CleanupApi(Protocol):
    """The ComfyUI requests that cleanup needs. Each raises RequestError if it fails."""

    def stop_prompts(self, prompt_ids: Collection[str]) -> frozenset[str]:
        """Stop the prompts, and return those that are still running."""

    def forget_prompts(self, prompt_ids: Collection[str]) -> None:
        """Remove the prompts from the history."""

    def written_files(self, prompt_id: str) -> tuple[OutputFile, ...]:
        """Return the files that a prompt wrote."""

    def remove_file(self, file: OutputFile) -> None:
        """Delete a file, or empty it if only HTTP access is available."""

    def remove_folder(self, name: str) -> None:
        """Delete a run's folders, if the file system is accessible."""


class Cleanup:
    """Removes what runs leave behind, and remembers what could not be removed. Thread-safe.

    Args:
        api: the ComfyUI server.
    """

    def __init__(self, api: CleanupApi) -> None:
        self._api = api
        self._lock = threading.Lock()
        self._unended: frozenset[str] = frozenset()
        self._unforgotten: frozenset[str] = frozenset()
        self._unremoved: dict[OutputFile, int] = {}
        self._folders: dict[str, frozenset[str]] = {}
        self.stuck_prompts: frozenset[str] = frozenset()
        """Prompts that were still running, or may have been, after they were interrupted."""

    def remove_prompts(self, ended: Collection[str] = (), others: Collection[str] = ()) -> None:
        """Remove prompts from ComfyUI's history: those that `ended`, and `others`, which are stopped first.

        Prompts that keep running after the interrupt are removed by a later call. So is everything that remains after
        a failed request (RequestError).
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
            self._api.forget_prompts(forgotten)
            with self._lock:
                self._unforgotten -= forgotten

    def remove_folder(self, name: str, prompts: Collection[str]) -> None:
        """Delete a run's folder, and delete it again once all its `prompts` have ended, as they may still write."""
        with self._lock:
            self._folders[name] = frozenset(prompts)
        self._remove_folders()

    def _remove_folders(self) -> None:
        with self._lock:
            folders = dict(self._folders)
            self._folders = {name: prompts for name, prompts in folders.items() if prompts & self._unended}
        for name in folders:
            self._api.remove_folder(name)

    def note_restart(self) -> None:
        """Forget all prompts after a restart of ComfyUI, which has cleared its queue and history."""
        with self._lock:
            self._unended = self._unforgotten = self.stuck_prompts = frozenset()
        self._remove_folders()

    def _end(self, prompt_ids: frozenset[str]) -> None:
        """Stop prompts whose history was not read yet, and delete the files that they wrote."""
        try:
            running = self._api.stop_prompts(prompt_ids)
        except RequestError:
            with self._lock:
                self.stuck_prompts |= prompt_ids  # they may still be running
            raise
        with self._lock:
            self.stuck_prompts = (self.stuck_prompts - prompt_ids) | running
        stopped = prompt_ids - running
        files = [file for each in stopped for file in self._api.written_files(each)]
        with self._lock:
            self._unended -= stopped
            self._unforgotten |= stopped
        self._remove_folders()
        self.remove_files(files)

    def remove_files(self, files: Iterable[OutputFile] = ()) -> None:
        """Delete files. Raises RequestError if that fails.

        Later calls try again. Files that ComfyUI answers with an error are given up after a few attempts.
        """
        with self._lock:
            for file in files:
                self._unremoved.setdefault(file, _ATTEMPTS)
            unremoved = list(self._unremoved.items())
        refusal = None
        for file, attempts in unremoved:
            try:
                self._api.remove_file(file)
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
