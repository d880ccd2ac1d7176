"""Waits for other threads and processes, with a timeout."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


def until(reached: Callable[[], object], timeout_s: float = 60.0) -> bool:
    """Call `reached` every few milliseconds until it is true; return whether it became true in time."""
    deadline = time.monotonic() + timeout_s
    pause = threading.Event()
    while not reached():
        if time.monotonic() > deadline:
            return False
        pause.wait(0.005)
    return True
