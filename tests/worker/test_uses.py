"""Which job's prompt ComfyUI runs, by what the jobs in hand have noted."""

from __future__ import annotations

import pytest

from comfy_core.comfyui.cleanup import Cleanup
from comfy_core.comfyui.responses import OutputFile
from comfy_core.errors import RequestError
from worker.uses import Use, Uses


def queued(uses: Uses, count: int) -> list[Use]:
    """Return uses whose prompts were queued in their order."""
    found = [uses.begin(0, 0) for _ in range(count)]
    for use in found:
        uses.note_queued(use)
    return found


def test_the_first_that_was_queued_runs() -> None:
    """Also where a node held the interpreter before the report of its start was sent."""
    uses = Uses()
    idle = uses.begin(0, 0)
    first, _second = queued(uses, 2)

    assert uses.running() is first
    uses.end(idle)
    assert uses.running() is first


def test_the_last_that_has_started_runs() -> None:
    """ComfyUI runs one at a time, in their order: where the second has started, the first has ended."""
    uses = Uses()
    first, second, _third = queued(uses, 3)
    first.has_started = True
    assert uses.running() is first
    second.has_started = True
    assert uses.running() is second


def test_one_whose_prompts_have_ended_does_not_run() -> None:
    """It stores its results, and the next one runs, reported or not."""
    uses = Uses()
    first, second = queued(uses, 2)
    first.has_started = first.has_run = True
    assert uses.running() is second
    uses.end(second)
    assert uses.running() is None


def test_a_job_that_ended_while_comfyui_hung_is_the_one_that_runs() -> None:
    """It was cancelled, or its time was over: the job that waits behind it is not to blame, until ComfyUI is well."""
    uses = Uses()
    first, second = queued(uses, 2)
    uses.end(first, may_run_on=True)
    assert uses.running() is first
    uses.forget_ended()
    assert uses.running() is second


def test_a_job_that_has_queued_nothing_does_not_run() -> None:
    """It uploads its pictures still."""
    uses = Uses()
    uses.begin(0, 0)

    assert uses.running() is None


class Unreachable:
    """A ComfyUI that answers nothing."""

    def stop_prompts(self, _: object) -> frozenset[str]:
        """Fail."""
        raise RequestError("ComfyUI was not reached")

    def forget_prompts(self, _: object) -> None:
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


def test_a_prompt_whose_stop_failed_counts_as_one_that_goes_on_until_a_restart() -> None:
    """Nobody knows: so it is looked at whether it heeds the interrupt, and its lines may be in the log."""
    cleanup = Cleanup(Unreachable())
    with pytest.raises(RequestError):
        cleanup.remove_prompts(others=["a"])
    assert cleanup.lingering == {"a"}

    cleanup.note_restart()

    assert cleanup.lingering == frozenset()
    cleanup.remove_prompts()
