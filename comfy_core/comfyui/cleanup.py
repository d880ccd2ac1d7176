"""Removes what runs leave behind in one ComfyUI: prompts that still run, history entries, files and folders.

A failed removal is repeated by a later run, which is always safe. `ComfyServer` makes the HTTP requests.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterable
from typing import Protocol

from comfy_core.comfyui.responses import OutputFile
from comfy_core.errors import RequestError

_DELETE_ATTEMPTS = 3


class CleanupApi(Protocol):
    """The ComfyUI requests that cleanup needs. Each raises RequestError if it fails."""

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
        """Remove prompts from ComfyUI's history. The `unfinished` ones are stopped first.

        A later call removes the prompts that keep running after the interrupt, and everything that is left after a
        failed request (RequestError).
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

    def remove_folder(self, name: str, prompts: Collection[str]) -> None:
        """Delete a run's folder now, and again when all its `prompts` have ended: they can write files until then."""
        with self._lock:
            self._folders_to_delete[name] = frozenset(prompts)
        self._remove_folders()

    def _remove_folders(self) -> None:
        with self._lock:
            folders = dict(self._folders_to_delete)
            self._folders_to_delete = {name: prompts for name, prompts in folders.items() if prompts & self._to_stop}
        for name in folders:
            self._api.remove_folder(name)

    def note_restart(self) -> None:
        """Forget all prompts after a restart of ComfyUI, which has cleared its queue and history."""
        with self._lock:
            self._to_stop = self._to_delete_from_history = self.stuck_prompts = frozenset()
        self._remove_folders()

    def _stop(self, prompt_ids: frozenset[str]) -> None:
        """Stop prompts whose history was not read yet, and delete the files that they wrote."""
        try:
            running = self._api.stop_prompts(prompt_ids)
        except RequestError:
            with self._lock:
                self.stuck_prompts |= prompt_ids  # the prompts may still be running
            raise
        with self._lock:
            self.stuck_prompts = (self.stuck_prompts - prompt_ids) | running
        stopped = prompt_ids - running
        files = [file for each in stopped for file in self._api.written_files(each)]
        with self._lock:
            self._to_stop -= stopped
            self._to_delete_from_history |= stopped
        self._remove_folders()
        self.remove_files(files)

    def remove_files(self, files: Iterable[OutputFile] = ()) -> None:
        """Delete files, and those that earlier calls could not delete. Raises RequestError if a file is not deleted.

        After _DELETE_ATTEMPTS error responses of ComfyUI for a file, it is not tried again.
        """
        with self._lock:
            for file in files:
                self._files_to_delete.setdefault(file, _DELETE_ATTEMPTS)
            to_delete = list(self._files_to_delete.items())
        failure = None
        for file, attempts in to_delete:
            try:
                self._api.remove_file(file)
            except RequestError as error:
                if error.status is None:
                    raise
                failure, attempts = error, attempts - 1  # noqa: PLW2901 - one attempt less
            else:
                attempts = 0  # noqa: PLW2901 - deleted
            with self._lock:
                self._files_to_delete.pop(file, None)
                if attempts:
                    self._files_to_delete[file] = attempts
        if failure is not None:
            raise failure
