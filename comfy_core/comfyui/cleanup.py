"""Removes what runs leave behind in one ComfyUI: prompts that still run, history entries, files and folders.

What could not be removed is tried again by a later run; removing something twice does no harm. `ComfyServer` makes the
HTTP requests.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterable
from typing import Protocol

from comfy_core.comfyui.responses import OutputFile
from comfy_core.errors import RequestError

_DELETE_ATTEMPTS = 3


class CleanupApi(Protocol):
    """The ComfyUI requests that cleanup needs. A method raises RequestError if its request fails."""

    def stop_prompts(self, prompt_ids: Collection[str]) -> frozenset[str]:
        """Stop the prompts, and return those that are still running."""

    def delete_history(self, prompt_ids: Collection[str]) -> None:
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
        self._to_stop: frozenset[str] = frozenset()
        self._to_delete_from_history: frozenset[str] = frozenset()
        self._files_to_delete: dict[OutputFile, int] = {}
        self._folders_to_delete: dict[str, frozenset[str]] = {}
        self.stuck_prompts: frozenset[str] = frozenset()
        """Prompts that did not stop after their interrupt, or whose interrupt failed, so that they may still run."""

    def remove_prompts(self, ended: Collection[str] = (), unfinished: Collection[str] = ()) -> None:
        """Remove prompts from ComfyUI's history. The `unfinished` ones are stopped first, and their files are deleted.

        A prompt that still runs after its interrupt is removed by a later call. Raises RequestError if a request fails;
        a later call then removes what is left.
        """
        with self._lock:
            self._to_delete_from_history |= set(ended)
            self._to_stop |= set(unfinished)
            to_stop = self._to_stop
        if to_stop:
            self._stop(to_stop)
        with self._lock:
            to_delete = self._to_delete_from_history
        if to_delete:
            self._api.delete_history(to_delete)
            with self._lock:
                self._to_delete_from_history -= to_delete

    def remove_folder(self, name: str, prompt_ids: Collection[str]) -> None:
        """Delete a run's folder now, and again when all its prompts have ended: they can write files until then."""
        with self._lock:
            self._folders_to_delete[name] = frozenset(prompt_ids)
        self._remove_folders()

    def _remove_folders(self) -> None:
        with self._lock:
            folders = dict(self._folders_to_delete)
            self._folders_to_delete = {name: ids for name, ids in folders.items() if ids & self._to_stop}
        for name in folders:
            self._api.remove_folder(name)

    def note_restart(self) -> None:
        """Forget all prompts, because a restart has cleared ComfyUI's queue and history. Delete remaining folders."""
        with self._lock:
            self._to_stop = self._to_delete_from_history = self.stuck_prompts = frozenset()
        self._remove_folders()

    def _stop(self, prompt_ids: frozenset[str]) -> None:
        """Stop prompts whose history was not read yet, and delete the files of those that have stopped."""
        try:
            running = self._api.stop_prompts(prompt_ids)
        except RequestError:
            with self._lock:
                self.stuck_prompts |= prompt_ids  # the prompts may still be running
            raise
        with self._lock:
            self.stuck_prompts = (self.stuck_prompts - prompt_ids) | running
        stopped = prompt_ids - running
        files = [file for prompt_id in stopped for file in self._api.written_files(prompt_id)]
        with self._lock:
            self._to_stop -= stopped
            self._to_delete_from_history |= stopped
        self._remove_folders()
        self.remove_files(files)

    def remove_files(self, files: Iterable[OutputFile] = ()) -> None:
        """Delete `files`, and the files that earlier calls could not delete. Raises RequestError if a request fails.

        A file is given up after _DELETE_ATTEMPTS error responses of ComfyUI. If a request gets no response, the
        remaining files are left to a later call.
        """
        with self._lock:
            for file in files:
                self._files_to_delete.setdefault(file, _DELETE_ATTEMPTS)
            to_delete = list(self._files_to_delete.items())
        failure = None
        for file, attempts_left in to_delete:
            try:
                self._api.remove_file(file)
            except RequestError as error:
                if error.status is None:
                    raise
                failure, attempts_left = error, attempts_left - 1  # noqa: PLW2901 - one attempt less
            else:
                attempts_left = 0  # noqa: PLW2901 - deleted
            with self._lock:
                self._files_to_delete.pop(file, None)
                if attempts_left:
                    self._files_to_delete[file] = attempts_left
        if failure is not None:
            raise failure
