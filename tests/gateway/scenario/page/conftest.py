"""Fixtures: Chromium, and an endpoint whose jobs fail if their prompt says so."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser

from simulators.runpod.queue_api import RunPodPlatform
from simulators.runpod.scripted_worker import Body, ScriptedWorker, image_result
from tests.browser import browser


def respond(job: Body) -> Body:
    """Return an image, or out_of_memory if the prompt contains `fails`."""
    if "fails" in job["input"]["prompt"]:
        return {
            "error": '{"code": "out_of_memory", "message": "The GPU was full. Request a smaller size.", "details": {}}'
        }
    return image_result(job)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """One browser for all tests of a module."""
    with browser() as chromium:
        yield chromium


@pytest.fixture(scope="module")
def platform() -> Iterator[RunPodPlatform]:
    """An endpoint whose worker responds with `respond`."""
    with RunPodPlatform(long_poll_s=0.5) as platform, ScriptedWorker(platform, respond):
        yield platform
