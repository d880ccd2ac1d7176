"""What every test may rely on: an environment without our variables, and the shipped workflows."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping

import pytest
from xdist.scheduler import LoadFileScheduling

from comfy_core.workflows import Workflow, default_directory, load_workflows

OURS = ("COMFYUI_", "HF_", "WORKER_", "RUNPOD_", "BUCKET_", "SCENARIO_", "IMAGE_GENERATION_PROVIDER")
COMFYUI_URL = os.environ.get("COMFYUI_URL")
"""A real ComfyUI that tests/comfyui is to run on; read before the environment is scrubbed."""

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    # A shell starts what runs in its background so, and the processes of the tests would inherit it.
    signal.signal(signal.SIGINT, signal.default_int_handler)


LONGEST = ("image", "test_fuzz.py", "production", "providers")
"""Folders and files that are begun with, as the others are divided better beside them."""
TOGETHER = ("tests/image/",)
"""Folders of tests that share what is made once a session: one process runs them all where the run is divided (-n)."""


class ByFile(LoadFileScheduling):  # type: ignore[misc] # pytest-xdist ships no types
    """Gives each file's tests to one process, as they share its fixtures, and each such folder's."""

    def _split_scope(self, nodeid: str) -> str:
        folder = next((folder for folder in TOGETHER if nodeid.startswith(folder)), None)
        return folder or str(super()._split_scope(nodeid))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes longest."""
    items.sort(key=lambda item: min((LONGEST.index(part) for part in item.path.parts if part in LONGEST), default=99))


@pytest.hookimpl(optionalhook=True)  # also without pytest-xdist (-p no:xdist)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> ByFile:
    """Divide the tests so, in their order. With pytest 9.2, `--dist loadgroup` of xdist 3.8 divides the groups too."""
    config.option.loadscopereorder = False  # which would begin with the file that has most tests
    return ByFile(config, log)


@pytest.fixture(autouse=True)
def _scrubbed_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(OURS):
            monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def workflows() -> Mapping[str, Workflow]:
    """The workflows that ship."""
    return load_workflows(default_directory())
