"""Requests of worker-comfyui on this worker. docs/worker-comfyui.md lists the responses that differ."""

from __future__ import annotations

import pytest

from tools.stock_worker.cases import CASES, Case
from tools.stock_worker.outcomes import our_handler, outcome_of
from tools.stock_worker.recordings import STOCK_WORKER, THIS_WORKER, Verdict, recorded, verdict

pytestmark = pytest.mark.slow
UPDATE_COMMAND = "run `python -m tools.stock_worker.record ours`, then scripts/docs"


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.title)
def test_the_page_has_this_worker_s_responses(case: Case) -> None:
    """The recording from which docs/worker-comfyui.md is generated is equal to the handler's current response."""
    assert outcome_of(case, our_handler) == recorded(THIS_WORKER)[case.title], UPDATE_COMMAND


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.title)
def test_a_difference_has_a_reason(case: Case) -> None:
    """A case has a reason for the page if, and only if, its verdict is DIFFERENT."""
    different = verdict(recorded(STOCK_WORKER)[case.title], recorded(THIS_WORKER)[case.title]) is Verdict.DIFFERENT

    assert different == bool(case.why)


def test_both_recordings_have_every_request() -> None:
    """The recordings of the two workers have the requests of all cases, in order, and no others."""
    names = [case.title for case in CASES]

    assert list(recorded(THIS_WORKER)) == list(recorded(STOCK_WORKER)) == names
