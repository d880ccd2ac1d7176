"""The container's health check: one request, one sentence, one exit status."""

from __future__ import annotations

import io
import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import psutil
import pytest

from bench.worker_setup import ROOT
from simulators.comfyui import Simulator
from simulators.http_server import free_port
from tests.processes import killed_at_end
from worker.health import main

pytestmark = pytest.mark.slow


def checked(environment: Mapping[str, str], timeout_s: float = 5.0) -> tuple[int, str]:
    """Return the status and the sentence."""
    out = io.StringIO()
    return main(environment, out, timeout_s), out.getvalue().rstrip("\n")


def test_a_comfyui_that_responds_is_healthy(simulator: Simulator) -> None:
    """The address comes from the port, as in the container, or from the URL."""
    port = simulator.url.rpartition(":")[2]

    assert checked({"COMFYUI_PORT": port}) == (0, "ComfyUI responds.")
    assert checked({"COMFYUI_URL": f"{simulator.url}/"}) == (0, "ComfyUI responds.")
    assert set(simulator.requests) == {("GET", "/system_stats")}


def test_a_local_api_that_does_not_listen_yet_is_unhealthy(simulator: Simulator) -> None:
    """A caller that waits for the health check finds the local API's port open."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        environment = {"COMFYUI_URL": simulator.url, "WORKER_API_PORT": str(listening.getsockname()[1])}
        assert checked({**environment, "SERVE_API_LOCALLY": "true"})[0] == 0
    assert checked({**environment, "SERVE_API_LOCALLY": "false"})[0] == 0
    status, sentence = checked({**environment, "SERVE_API_LOCALLY": "true"})

    assert status == 1
    assert sentence.startswith("The local API does not accept connections on port ")


def test_an_unreachable_comfyui_is_unhealthy() -> None:
    """ComfyUI is unhealthy before it has started and after it has exited."""
    port = str(free_port())
    sentence = (
        f"ComfyUI at 127.0.0.1:{port} could not be reached (ConnectionRefusedError): it is starting, or it has exited."
    )

    assert checked({"COMFYUI_PORT": port}) == (1, sentence)


def test_another_program_on_the_port_is_unhealthy(simulator: Simulator) -> None:
    """ComfyUI is unhealthy if another program listens on its port."""
    simulator.faults.respond_500("/system_stats")
    status, sentence = checked({"COMFYUI_URL": simulator.url})

    assert status == 1
    assert sentence.endswith("returned 500 for /system_stats.")


def test_a_full_disk_is_unhealthy(simulator: Simulator, tmp_path: Path) -> None:
    """If ComfyUI's disk is full, the check names the folder. The disk of an external ComfyUI is not checked."""
    port = simulator.url.rpartition(":")[2]
    out = io.StringIO()

    assert main({"COMFYUI_PORT": port, "COMFYUI_DATA_DIR": str(tmp_path)}, out, min_free_bytes=1 << 62) == 1
    assert main({"COMFYUI_URL": simulator.url}, out, min_free_bytes=1 << 62) == 0
    assert main({"COMFYUI_PORT": port, "COMFYUI_DATA_DIR": str(tmp_path / "absent")}, out) == 0
    sentence, *others = out.getvalue().splitlines()
    assert sentence.startswith(f"The disk of {tmp_path} is full: ")
    assert others == ["ComfyUI responds."] * 2


def test_a_silent_comfyui_is_unhealthy() -> None:
    """The health request has a timeout, after which ComfyUI is unhealthy."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        begun_at = time.monotonic()
        status, sentence = checked({"COMFYUI_PORT": str(silent.getsockname()[1])}, 0.3)

    assert (status, "did not respond within 0.3 s" in sentence) == (1, True)
    assert time.monotonic() - begun_at < 2


@pytest.mark.parametrize(
    ("name", "value"), [("COMFYUI_URL", "gpu"), ("COMFYUI_PORT", "many"), ("COMFYUI_PORT", "99999")]
)
def test_an_invalid_variable_is_named(name: str, value: str) -> None:
    """The sentence names the variable."""
    status, sentence = checked({name: value})

    assert status == 1
    assert sentence.startswith(name)


def test_the_command_is_cheap(simulator: Simulator) -> None:
    """The health command runs every 30 seconds, so it must need little CPU time."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    with killed_at_end(
        subprocess.Popen(
            [sys.executable, "-m", "worker.health"],
            cwd=ROOT,
            env={**env, "COMFYUI_URL": simulator.url},
            stdout=subprocess.PIPE,
            text=True,
        )
    ) as process:
        before = psutil.Process().cpu_times()
        output, _ = process.communicate(timeout=30)
        after = psutil.Process().cpu_times()

    assert (process.returncode, output) == (0, "ComfyUI responds.\n")
    used_s = after.children_user + after.children_system - before.children_user - before.children_system
    assert used_s < 0.3
