"""A short soak, through the same code as scripts/soak."""

from __future__ import annotations

import pytest

from bench.soak.__main__ import soak

pytestmark = pytest.mark.slow


def test_a_short_soak_keeps_every_promise(capfd: pytest.CaptureFixture[str]) -> None:
    """Fifty jobs with all kinds of faults, and ComfyUI killed three times: no job lost or hung, no file left."""
    is_well = soak(jobs=50, seconds=10, kills=3, seed=7)

    assert is_well, capfd.readouterr().out
