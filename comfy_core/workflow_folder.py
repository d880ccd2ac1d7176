"""A mapping of the workflows in a folder, beside other workflows. Changed files are read again without a restart."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from comfy_core.error_codes import ErrorCode
from comfy_core.errors import ConfigError, JobError
from comfy_core.workflows import INPUTS_SUFFIX, Workflow, load_workflow

log = logging.getLogger(__name__)

_Stamp: TypeAlias = tuple[int, int]
"""Time of modification and size of a file."""


@dataclass(frozen=True)
class _Template:
    """What was read from the two files of a template: a workflow, or the reason why there is none."""

    stamps: tuple[_Stamp | None, _Stamp]
    workflow: Workflow | None = None
    problem: str = ""


@dataclass(frozen=True)
class _Content:
    """The templates of a folder by name, and the stamps of the folder's files at that time."""

    stamps: Mapping[str, _Stamp] = field(default_factory=dict)
    templates: Mapping[str, _Template] = field(default_factory=dict)


class WorkflowFolder(Mapping[str, Workflow]):
    """The workflows in `directory`, and `others`, of which those with the same name are replaced.

    Each access looks for files that were added, changed or removed since the last one. The lookup of a workflow whose
    files are invalid raises JobError (invalid_workflow) with the reason, and affects no other workflow. A folder that
    does not exist has no workflows.
    """

    def __init__(self, directory: Path, others: Mapping[str, Workflow]) -> None:
        self.others = others
        self._directory = directory
        self._lock = threading.Lock()
        self._content = _Content()

    def __getitem__(self, name: str) -> Workflow:
        template = self._current().templates.get(name)
        if template is None:
            return self.others[name]
        if template.workflow is None:
            raise JobError.because(ErrorCode.INVALID_WORKFLOW, template.problem, workflow=name)
        return template.workflow

    def __contains__(self, name: object) -> bool:
        return name in set(self)

    def __iter__(self) -> Iterator[str]:
        templates = self._current().templates
        own = {name for name, template in templates.items() if template.workflow is not None}
        return iter(sorted({*self.others.keys() - templates.keys(), *own}))

    def __len__(self) -> int:
        return len(list(iter(self)))

    def is_own(self, name: str) -> bool:
        """Return whether the folder has a template with this name, which may be invalid."""
        return name in self._current().templates

    def problems(self) -> dict[str, str]:
        """Return the reason for each template of the folder whose files are invalid, by name."""
        return {name: each.problem for name, each in self._current().templates.items() if each.problem}

    def _current(self) -> _Content:
        """Return the folder's content. Only files whose time or size has changed are read."""
        stamps = _stamps(self._directory)
        with self._lock:
            if stamps != self._content.stamps:
                self._content = _Content(stamps, self._read(stamps))
            return self._content

    def _read(self, stamps: Mapping[str, _Stamp]) -> dict[str, _Template]:
        templates = {}
        for file in stamps:
            name = file.removesuffix(INPUTS_SUFFIX)
            if name == file:
                continue
            own_stamps = (stamps.get(f"{name}.json"), stamps[file])
            known = self._content.templates.get(name)
            templates[name] = known if known and known.stamps == own_stamps else self._load(name, own_stamps)
        return templates

    def _load(self, name: str, stamps: tuple[_Stamp | None, _Stamp]) -> _Template:
        try:
            workflow = load_workflow(self._directory, name)
        except ConfigError as error:
            log.error("the workflow %s is invalid: %s", name, error)  # noqa: TRY400 - an expected error
            return _Template(stamps, problem=str(error))
        log.info("the workflow %s was read, version %s", name, workflow.version)
        return _Template(stamps, workflow)


def _stamps(directory: Path) -> dict[str, _Stamp]:
    """Return the stamp of each JSON file in a folder; empty if the folder cannot be read."""
    found = {}
    try:
        with os.scandir(directory) as entries:
            for entry in entries:
                if entry.name.endswith(".json") and entry.is_file():
                    status = entry.stat()
                    found[entry.name] = (status.st_mtime_ns, status.st_size)
    except OSError:
        return {}
    return found
