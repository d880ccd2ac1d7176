"""What every test may rely on: an environment without our variables, and the shipped workflows."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from pathlib import Path

import pytest

from comfy_client.workflows import Workflow, default_directory, load_workflows

OURS = ("COMFYUI_", "HF_", "WORKER_", "RUNPOD_", "BUCKET_", "SCENARIO_", "IMAGE_GENERATION_PROVIDER")
COMFYUI_URL = os.environ.get("COMFYUI_URL")
"""A real ComfyUI that tests/comfyui is to run on; read before the environment is scrubbed."""

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    # A shell starts what runs in its background so, and the processes of the tests would inherit it.
    signal.signal(signal.SIGINT, signal.default_int_handler)


ALONE = ("image",)
"""Folders of tests that share what is made once a session, and stay together where the run is divided (-n)."""


@pytest.hookimpl(tryfirst=True)  # pytest-xdist reads the marks in the same hook
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep the tests of one file together, as they share its fixtures, and those of such a folder."""
    for item in items:
        folder = item.path.relative_to(Path(__file__).parent).parts[0]
        item.add_marker(pytest.mark.xdist_group(folder if folder in ALONE else item.nodeid.partition("::")[0]))


@pytest.fixture(autouse=True)
def _scrubbed_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(OURS):
            monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def workflows() -> Mapping[str, Workflow]:
    """The workflows that ship."""
    return load_workflows(default_directory())
