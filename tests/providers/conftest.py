"""A platform of the test's own, and the client that its variables make."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from comfy_client.client import Client, client_from_env
from tests.fakes.runpod_platform import RunPodPlatform


@pytest.fixture
def platform() -> Iterator[RunPodPlatform]:
    """An endpoint without a worker, which holds polls for a tenth of a second."""
    with RunPodPlatform(long_poll_s=0.1) as platform:
        yield platform


@pytest.fixture
def client(platform: RunPodPlatform) -> Iterator[Client]:
    """The client of it; it waits for a few seconds."""
    with client_from_env(platform.client_env(), timeout_s=20.0) as client:
        yield client
