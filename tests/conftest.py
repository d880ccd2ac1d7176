"""What every test may rely on: an environment without our variables, and the shipped workflows."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping

import pytest

from comfy_client.workflows import Workflow, default_directory, load_workflows

OURS = ("COMFYUI_", "HF_", "WORKER_", "RUNPOD_", "BUCKET_", "SCENARIO_", "IMAGE_GENERATION_PROVIDER")
COMFYUI_URL = os.environ.get("COMFYUI_URL")
"""A real ComfyUI that tests/comfyui is to run on; read before the environment is scrubbed."""

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    # A shell starts what runs in its background so, and the processes of the tests would inherit it.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _scrubbed_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(OURS):
            monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def workflows() -> Mapping[str, Workflow]:
    """The workflows that ship."""
    return load_workflows(default_directory())
