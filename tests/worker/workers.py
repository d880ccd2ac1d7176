"""A worker with other settings than the fixture's."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from worker.jobs import Worker


def configured(worker: Worker, **changes: Any) -> Worker:  # noqa: ANN401 - any field of Settings
    """Return the worker with some settings changed."""
    return replace(worker, settings=replace(worker.settings, **changes))
