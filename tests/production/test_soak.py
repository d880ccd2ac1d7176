"""A short soak, through the same code as scripts/soak."""

from __future__ import annotations

import pytest

from bench.soak.__main__ import soak

pytestmark = pytest.mark.slow


def test_a_short_soak_keeps_every_promise(capfd: pytest.CaptureFixture[str]) -> None:
    """With fifty jobs, all kinds of faults, and ComfyUI killed three times, the soak finds no problem."""
    passed = soak(jobs=50, seconds=10, kills=3, seed=7)

    assert passed, capfd.readouterr().out
