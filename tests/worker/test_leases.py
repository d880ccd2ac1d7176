"""Which job's prompt ComfyUI is running, according to the leases."""

from __future__ import annotations

import pytest

from comfy_core.comfyui.cleanup import Cleanup
from comfy_core.comfyui.responses import OutputFile
from comfy_core.errors import RequestError
from worker.leases import Lease, Leases


def queued(leases: Leases, count: int) -> list[Lease]:
    """Return leases whose prompts were queued in order."""
    found = [leases.begin(0, 0) for _ in range(count)]
    for lease in found:
        leases.note_queued(lease)
    return found


def test_the_first_queued_prompt_runs() -> None:
    """The first prompt counts as running, even if a blocked interpreter reports its start late."""
    leases = Leases()
    idle = leases.begin(0, 0)
    first, _second = queued(leases, 2)

    assert leases.running() is first
    leases.end(idle)
    assert leases.running() is first


def test_the_last_prompt_that_started_runs() -> None:
    """ComfyUI runs one prompt at a time, in order: if the second has started, the first has ended."""
    leases = Leases()
    first, second, _third = queued(leases, 3)
    first.has_started = True
    assert leases.running() is first
    second.has_started = True
    assert leases.running() is second


def test_a_job_whose_prompts_have_ended_does_not_run() -> None:
    """A job whose prompts have ended is storing its results, and the next job runs, reported or not."""
    leases = Leases()
    first, second = queued(leases, 2)
    first.has_started = first.has_run = True
    assert leases.running() is second
    leases.end(second)
    assert leases.running() is None


def test_a_job_that_ended_while_comfyui_hung_counts_as_running() -> None:
    """A cancelled or timed-out job counts as running until ComfyUI responds again, not the job that waits for it."""
    leases = Leases()
    first, second = queued(leases, 2)
    leases.end(first, may_still_run=True)
    assert leases.running() is first
    leases.forget_ended()
    assert leases.running() is second


def test_a_job_that_has_queued_nothing_does_not_run() -> None:
    """A job that has queued nothing is still uploading its images."""
    leases = Leases()
    leases.begin(0, 0)

    assert leases.running() is None


class Unreachable:
    """A ComfyUI that never responds."""

    def stop_prompts(self, _: object) -> frozenset[str]:
        """Fail."""
        raise RequestError("ComfyUI was not reached")

    def delete_history(self, _: object) -> None:
        """Fail."""
        raise RequestError("ComfyUI was not reached")

    def written_files(self, _: str) -> tuple[OutputFile, ...]:
        """Fail."""
        raise RequestError("ComfyUI was not reached")

    def remove_file(self, _: OutputFile) -> None:
        """Fail."""
        raise RequestError("ComfyUI was not reached")

    def remove_folder(self, _: str) -> None:
        """Remove it."""


def test_a_prompt_whose_stop_failed_counts_as_stuck_until_a_restart() -> None:
    """The state is unknown, so the prompt counts as stuck until ComfyUI reports otherwise."""
    cleanup = Cleanup(Unreachable())
    with pytest.raises(RequestError):
        cleanup.remove_prompts(unfinished=["a"])
    assert cleanup.stuck_prompts == {"a"}

    cleanup.note_restart()

    assert cleanup.stuck_prompts == frozenset()
    cleanup.remove_prompts()
