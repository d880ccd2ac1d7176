"""Ctrl-C during `map`. tests/providers/ has the jobs of `map`, and SIGTERM for the jobs of a whole program."""

from __future__ import annotations

import threading

import pytest

from comfy_client.client import Client
from simulators.waiting import until
from tests.interrupts import is_interrupted_at

INVALID = {"prompt": "a knight", "steps": 0}
"""A request that ends without a job."""


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_ctrl_c_at_any_moment_of_map_ends_its_threads() -> None:
    """Ctrl-C is raised as KeyboardInterrupt, except within a callback of a weak reference, and no thread stays.

    Python reports and ignores what such a callback raises.
    """
    with Client(comfyui_url="http://127.0.0.1:1") as client:
        moments = 0
        while is_interrupted_at(moments, lambda: list(client.map([INVALID] * 3, 1))):
            moments += 1

    assert moments
    assert until(lambda: not [each.name for each in threading.enumerate() if each.name.startswith("comfy-map")])
