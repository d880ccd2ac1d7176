"""Fixtures: an endpoint with a scripted worker, which a test can hold."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from simulators.runpod.queue_api import RunPodPlatform
from simulators.runpod.scripted_worker import Body, ScriptedWorker, image_result


@pytest.fixture
def released() -> threading.Event:
    """The event that lets the endpoint's worker finish its jobs."""
    return threading.Event()


@pytest.fixture
def platform(released: threading.Event) -> Iterator[RunPodPlatform]:
    """An endpoint whose worker holds its jobs until `released` is set."""

    def respond(job: Body) -> Body:
        assert released.wait(60)
        return image_result(job)

    with RunPodPlatform(long_poll_s=0.5) as platform, ScriptedWorker(platform, respond, threads=4):
        yield platform
        released.set()
