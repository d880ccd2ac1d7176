"""A running simulator, and a client of it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from simulators.comfyui import Simulator

from .driver import Driver


@pytest.fixture
def sim() -> Iterator[Simulator]:
    """A simulator whose steps take no time."""
    with Simulator() as simulator:
        yield simulator


@pytest.fixture
def driver(sim: Simulator) -> Iterator[Driver]:
    """A client of the simulator."""
    client = Driver(sim.url)
    with client.session:
        yield client
