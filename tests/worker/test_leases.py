"""Leases: which job ComfyUI runs. Cleanup: which prompts are stuck."""

from __future__ import annotations

import pytest

from comfy_core.comfyui.cleanup import Cleanup
from comfy_core.comfyui.responses import OutputFile
from comfy_core.errors import RequestError
from worker.leases import Lease, Leases


def queued_leases(leases: Leases, count: int) -> list[Lease]:
    """Return `count` new leases whose prompts were queued in this order."""
    found = [leases.begin(0, 0) for _ in range(count)]
    for lease in found:
        leases.note_queued(lease)
    return found


def test_the_job_that_queued_first_runs() -> None:
    """The job that queued first counts as running, although the start of its prompt was not reported yet."""
    leases = Leases()
    idle = leases.begin(0, 0)
    first, _second = queued_leases(leases, 2)

    assert leases.running() is first
    leases.end(idle)
    assert leases.running() is first


def test_the_job_that_started_last_runs() -> None:
    """ComfyUI runs one prompt at a time, in order: once the second job has started, the first no longer runs."""
    leases = Leases()
    first, second, _third = queued_leases(leases, 3)
    first.has_started = True
    assert leases.running() is first
    second.has_started = True
    assert leases.running() is second


def test_a_job_whose_prompts_have_ended_does_not_run() -> None:
    """A job whose prompts have ended only stores its results. The next job runs, even before its start is reported."""
    leases = Leases()
    first, second = queued_leases(leases, 2)
    first.has_started = first.has_run = True
    assert leases.running() is second
    leases.end(second)
    assert leases.running() is None


def test_a_job_that_ended_while_comfyui_hung_counts_as_running() -> None:
    """A job that was cancelled or timed out counts as running until `forget_ended`; then the next job does."""
    leases = Leases()
    first, second = queued_leases(leases, 2)
    leases.end(first, may_still_run=True)
    assert leases.running() is first
    leases.forget_ended()
    assert leases.running() is second


def test_a_job_that_has_queued_nothing_does_not_run() -> None:
    """A job that has queued no prompt is still uploading its images, so no job runs."""
    leases = Leases()
    leases.begin(0, 0)

    assert leases.running() is None


class UnreachableComfyClient:
    """A client of a ComfyUI that never responds."""

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
        """Do nothing: the folder is on this machine."""


def test_a_prompt_whose_stop_failed_counts_as_stuck_until_a_restart() -> None:
    """If stopping a prompt fails, its state is unknown, and it counts as stuck until ComfyUI restarts."""
    cleanup = Cleanup(UnreachableComfyClient())
    with pytest.raises(RequestError):
        cleanup.remove_prompts(unfinished=["a"])
    assert cleanup.stuck_prompts == {"a"}

    cleanup.note_restart()

    assert cleanup.stuck_prompts == frozenset()
    cleanup.remove_prompts()
