"""A running simulator, and a client of it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from simulators.comfyui import Simulator

from .driver import Driver


@pytest.fixture
def sim() -> Iterator[Simulator]:
    """Yield a simulator that takes no time for its steps."""
    with Simulator() as simulator:
        yield simulator


@pytest.fixture
def driver(sim: Simulator) -> Iterator[Driver]:
    """Yield a client of the simulator."""
    client = Driver(sim.url)
    with client.session:
        yield client
