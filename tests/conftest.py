"""Fixtures and hooks for all tests: an environment without our variables, the shipped workflows, the marker `slow`.

`./scripts/test fast` runs the tests that are not marked `slow`. A test that starts a Python process must be marked so.
"""

from __future__ import annotations

import gc
import os
import re
import signal
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from hypothesis import settings
from xdist.scheduler import LoadFileScheduling

from comfy_core.workflows import Workflow, default_directory, load_workflows
from simulators.hugging_face import ModelServer
from tests.core.models.addresses import CIVITAI_PATH, HF_PATH, LORA

VARIABLE_PREFIXES = ("COMFYUI_", "HF_", "WORKER_", "RUNPOD_", "BUCKET_", "SCENARIO_", "IMAGE_GENERATION_PROVIDER")
COMFYUI_URL = os.environ.get("COMFYUI_URL")
"""The URL of a real ComfyUI for tests/comfyui. It is read before the environment is scrubbed."""
SLOW_MODULE = re.compile(r"^pytestmark = \[?pytest\.mark\.slow", re.MULTILINE)
"""Finds the line that marks all tests of a module `slow`: they start processes, or take seconds each."""
PROCESS_EVENTS = ("subprocess.Popen", "os.posix_spawn", "os.system", "os.exec", "pty.spawn")
"""Python's audit events that report a new process."""

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    # A shell ignores SIGINT in its background jobs, and the processes that tests start would ignore it too.
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # `nohup` ignores SIGHUP


os.environ["COMFY_CLIENT_JOB_LOG"] = "off"  # so that no test writes into the user's log of jobs
os.environ["COMFY_CLIENT_PROFILE"] = "off"  # so that no test uses the user's profiles

IMAGE_TESTS = "tests/image/"
"""The folder of the tests that share session fixtures and take longest. With `-n`, one process starts with them."""


class ByFile(LoadFileScheduling):  # type: ignore[misc] # pytest-xdist ships no types
    """Runs all tests of a file in one process, and all files of tests/image/ in one process: they share fixtures."""

    def _split_scope(self, nodeid: str) -> str:
        return IMAGE_TESTS if nodeid.startswith(IMAGE_TESTS) else str(super()._split_scope(nodeid))


def pytest_configure(config: pytest.Config) -> None:
    """Let property tests draw 20 examples in the fast run, and 500 in the whole run."""
    settings.register_profile("whole", derandomize=True, deadline=None, max_examples=500)
    settings.register_profile("fast", settings.get_profile("whole"), max_examples=20)
    settings.load_profile("fast" if _is_fast(config) else "whole")


def _is_fast(config: pytest.Config) -> bool:
    return bool(config.option.markexpr == "not slow")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Do not import the slow modules in the fast run: they take longer to import than the others."""
    if _is_fast(config) and collection_path.suffix == ".py" and SLOW_MODULE.search(collection_path.read_text()):
        return True
    return None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort tests/image/ to the front, then the slow modules, so that no process starts a long file at the end."""

    def order(item: pytest.Item) -> tuple[bool, bool]:
        is_slow = item.parent is not None and item.parent.get_closest_marker("slow") is not None
        return not item.nodeid.startswith(IMAGE_TESTS), not is_slow

    items.sort(key=order)


@pytest.hookimpl(optionalhook=True)  # also without pytest-xdist (-p no:xdist)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> ByFile:
    """Return the scheduler for `-n`. `--dist loadgroup` of xdist 3.8 has no effect with pytest 9.2."""
    config.option.loadscopereorder = False  # xdist would start with the file that has the most tests
    return ByFile(config, log)


@pytest.fixture(autouse=True)
def _scrubbed_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(VARIABLE_PREFIXES):
            monkeypatch.delenv(name)


_started: list[str] = []
"""Python processes that tests and fixtures have started since the last test ended."""


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
    """Forget the processes that modules started when they were imported: they belong to no test.

    The garbage collector ignores the imported modules from now on, so that `_garbage_is_collected` takes milliseconds.
    """
    _started.clear()
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="module")
def _garbage_is_collected() -> Iterator[None]:
    """Collect garbage after each module, so that an unclosed socket or file fails a test of the module that made it."""
    yield
    gc.collect()


@pytest.fixture(autouse=True)
def _no_process_in_a_fast_test(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that starts a Python process and is not marked `slow`."""
    yield
    started, _started[:] = _started[:], []
    if started and not request.node.get_closest_marker("slow"):
        pytest.fail(f"A test without the marker `slow` started {started[0][:200]}. Mark it: @pytest.mark.slow")


@pytest.fixture(scope="session")
def workflows() -> Mapping[str, Workflow]:
    """The shipped workflows, by name."""
    return load_workflows(default_directory())


@pytest.fixture
def lora_server() -> Iterator[ModelServer]:
    """A server with one LoRA, at Hugging Face and at Civitai."""
    with ModelServer() as server:
        server.put(HF_PATH, LORA)
        server.put(CIVITAI_PATH, LORA)
        yield server
