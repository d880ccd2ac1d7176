"""Fixtures and hooks for all tests: an environment without our variables, the shipped workflows, the marker `slow`.

`./scripts/test fast` runs the tests that are not marked `slow`. A test that starts a process must be marked: see SLOW.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from xdist.scheduler import LoadFileScheduling

from comfy_core.workflows import Workflow, default_directory, load_workflows

OURS = ("COMFYUI_", "HF_", "WORKER_", "RUNPOD_", "BUCKET_", "SCENARIO_", "IMAGE_GENERATION_PROVIDER")
TESTS = Path(__file__).parent
COMFYUI_URL = os.environ.get("COMFYUI_URL")
"""The URL of a real ComfyUI for tests/comfyui. It is read before the environment is scrubbed."""
SLOW = (
    "batch/test_run.py",
    "benchmark/test_benchmark.py",
    "cli/test_output.py",
    "cli/test_terminal.py",
    "cli/test_words.py",
    "comfyui/test_hostile_graphs.py",
    "compat",
    "core/images/test_child_process.py",
    "core/request/test_properties.py",
    "deploy/test_docs.py",
    "deploy/test_rehearsal.py",
    "deploy/test_terminal.py",
    "gateway/scenario/test_abuse.py",
    "gateway/scenario/test_blobs.py",
    "gateway/scenario/test_direct.py",
    "gateway/scenario/test_folder.py",
    "gateway/scenario/test_full_disk.py",
    "gateway/scenario/test_fuzz.py",
    "gateway/scenario/test_http.py",
    "gateway/scenario/test_page.py",
    "gateway/scenario/test_survival.py",
    "image",
    "production",
    "providers/test_contract.py",
    "providers/test_faults.py",
    "providers/test_map_signals.py",
    "providers/test_promises.py",
    "providers/test_scenario.py",
    "providers/test_way_back.py",
    "release",
    "simulators/comfyui/test_lifecycle.py",
    "simulators/runpod/test_queue_api.py",
    "test_docs.py",
    "test_fuzz.py",
    "test_handler.py",
    "test_migrate.py",
    "test_no_secrets_in_help.py",
    "test_readme.py",
    "test_references.py",
    "test_wheel.py",
    "worker/models",
    "worker/snapshot",
    "worker/test_boot.py",
    "worker/test_boot_times.py",
    "worker/test_comfyui_environment.py",
    "worker/test_comfyui_process.py",
    "worker/test_health.py",
    "worker/test_launch_flags.py",
    "worker/test_lifecycle.py",
    "worker/test_outputs.py",
    "worker/test_storage.py",
    "worker/test_watchdog.py",
)
"""Folders and files whose tests are all marked `slow`: they start processes, or take seconds each."""
PROCESS_EVENTS = ("subprocess.Popen", "os.posix_spawn", "os.system", "os.exec", "pty.spawn")
"""Python's audit events that report a new process."""

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    # A shell ignores SIGINT in its background jobs, and the processes of the tests would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the same for `nohup`


LONGEST = ("image", "test_fuzz.py", "production", "providers")
"""Folders and files that run first, so that no process is left with a long file at the end."""
TOGETHER = ("tests/image/",)
"""Folders whose tests share session fixtures. With `-n`, one process runs all tests of such a folder."""


class ByFile(LoadFileScheduling):  # type: ignore[misc] # pytest-xdist ships no types
    """Runs all tests of a file, or of a folder of TOGETHER, in one process, because they share fixtures."""

    def _split_scope(self, nodeid: str) -> str:
        folder = next((folder for folder in TOGETHER if nodeid.startswith(folder)), None)
        return folder or str(super()._split_scope(nodeid))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the slow tests, and sort those that take longest to the front."""
    for item in items:
        path = item.path.relative_to(TESTS).as_posix()
        if any(path == slow or path.startswith(f"{slow}/") for slow in SLOW):
            item.add_marker("slow")
    items.sort(key=lambda item: min((LONGEST.index(part) for part in item.path.parts if part in LONGEST), default=99))


@pytest.hookimpl(optionalhook=True)  # also without pytest-xdist (-p no:xdist)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> ByFile:
    """Return the scheduler for `-n`. `--dist loadgroup` of xdist 3.8 splits groups with pytest 9.2."""
    config.option.loadscopereorder = False  # xdist would start with the file that has the most tests
    return ByFile(config, log)


@pytest.fixture(autouse=True)
def _scrubbed_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(OURS):
            monkeypatch.delenv(name)


_started: list[str] = []
"""Processes started since the last test ended, those of its module's fixtures included."""


def _record_process(
    event: str,
    arguments: tuple[object, ...],
    events: tuple[str, ...] = PROCESS_EVENTS,
    started: list[str] = _started,
    python: str = sys.executable,
) -> None:
    """Add a new Python process to `started`. The defaults are needed: the hook outlives the module's globals.

    The child that decodes images does not count: any test may be the first to need it, and it starts in 0.1 s.
    """
    if event in events and python in (command := str(arguments)) and "comfy_core.images.child" not in command:
        started.append(f"{event} {arguments[:2]}")


sys.addaudithook(_record_process)


def pytest_collection_finish() -> None:
    """Forget the processes that modules started when they were imported: they belong to no test."""
    _started.clear()


@pytest.fixture(autouse=True)
def _no_process_in_a_fast_test(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that is not marked `slow` and starts a process."""
    yield
    started, _started[:] = _started[:], []
    if started and not request.node.get_closest_marker("slow"):
        pytest.fail(f"A test without the marker `slow` started {started[0][:200]}. Add its file to SLOW in {__file__}.")


@pytest.fixture(scope="session")
def workflows() -> Mapping[str, Workflow]:
    """The workflows that ship."""
    return load_workflows(default_directory())
