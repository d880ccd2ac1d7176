"""A short soak, through the same code as scripts/soak."""

from __future__ import annotations

import pytest

from bench.soak.__main__ import soak


def test_a_short_soak_keeps_every_promise(capfd: pytest.CaptureFixture[str]) -> None:
    """Fifty jobs while everything around them fails, and ComfyUI killed three times: nothing lost, hung or left."""
    is_well = soak(jobs=50, seconds=10, kills=3, seed=7)

    assert is_well, capfd.readouterr().out
