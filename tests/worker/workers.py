"""`configured`: a worker with settings that differ from the fixture's."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from worker.jobs import Worker


def configured(worker: Worker, **changes: Any) -> Worker:  # noqa: ANN401 - any field of Settings
    """Return a copy of the worker in which some settings are changed."""
    return replace(worker, settings=replace(worker.settings, **changes))
