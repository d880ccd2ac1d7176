"""The container's health check: one request, one sentence, one exit status."""

from __future__ import annotations

import io
import os
import socket
import subprocess
import sys
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


def run_check(environment: Mapping[str, str], timeout_s: float = 5.0) -> tuple[int, str]:
    """Run the health check in this process; return its exit status and its output."""
    out = io.StringIO()
    return main(environment, out, timeout_s), out.getvalue().rstrip("\n")


def test_a_comfyui_that_responds_is_healthy(simulator: Simulator) -> None:
    """ComfyUI's address comes from COMFYUI_PORT, as in the container, or from COMFYUI_URL."""
    port = simulator.url.rpartition(":")[2]

    assert run_check({"COMFYUI_PORT": port}) == (0, "ComfyUI responds.")
    assert run_check({"COMFYUI_URL": f"{simulator.url}/"}) == (0, "ComfyUI responds.")
    assert set(simulator.requests) == {("GET", "/system_stats")}


def test_a_local_api_that_does_not_listen_yet_is_unhealthy(simulator: Simulator) -> None:
    """With SERVE_API_LOCALLY=true the check fails until the port of the local API accepts connections."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        environment = {"COMFYUI_URL": simulator.url, "WORKER_API_PORT": str(listening.getsockname()[1])}
        assert run_check({**environment, "SERVE_API_LOCALLY": "true"})[0] == 0
    assert run_check({**environment, "SERVE_API_LOCALLY": "false"})[0] == 0
    status, sentence = run_check({**environment, "SERVE_API_LOCALLY": "true"})

    assert status == 1
    assert sentence.startswith("The local API does not accept connections on port ")


def test_an_unreachable_comfyui_is_unhealthy() -> None:
    """If nothing listens on ComfyUI's port, it is starting or has exited: the check fails and says so."""
    port = str(free_port())
    sentence = (
        f"ComfyUI at 127.0.0.1:{port} could not be reached (ConnectionRefusedError): it is starting, or it has exited."
    )

    assert run_check({"COMFYUI_PORT": port}) == (1, sentence)


def test_a_comfyui_that_returns_500_is_unhealthy(simulator: Simulator) -> None:
    """A program that returns 500 for /system_stats is not a healthy ComfyUI."""
    simulator.faults.respond_500("/system_stats")
    status, sentence = run_check({"COMFYUI_URL": simulator.url})

    assert status == 1
    assert sentence.endswith("returned 500 for /system_stats.")


def test_a_full_disk_is_unhealthy(simulator: Simulator, tmp_path: Path) -> None:
    """If the disk of COMFYUI_DATA_DIR is full, the check fails and names the folder.

    It does not check the disk of an external ComfyUI, or a folder that does not exist.
    """
    port = simulator.url.rpartition(":")[2]
    out = io.StringIO()

    assert main({"COMFYUI_PORT": port, "COMFYUI_DATA_DIR": str(tmp_path)}, out, min_free_bytes=1 << 62) == 1
    assert main({"COMFYUI_URL": simulator.url}, out, min_free_bytes=1 << 62) == 0
    assert main({"COMFYUI_PORT": port, "COMFYUI_DATA_DIR": str(tmp_path / "absent")}, out) == 0
    sentence, *others = out.getvalue().splitlines()
    assert sentence.startswith(f"The disk of {tmp_path} is full: ")
    assert others == ["ComfyUI responds."] * 2


def test_a_silent_comfyui_is_unhealthy() -> None:
    """If ComfyUI does not respond within the timeout, the check fails."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        status, sentence = run_check({"COMFYUI_PORT": str(silent.getsockname()[1])}, 0.3)

    assert (status, "did not respond within 0.3 s" in sentence) == (1, True)


@pytest.mark.parametrize(
    ("name", "value"), [("COMFYUI_URL", "gpu"), ("COMFYUI_PORT", "many"), ("COMFYUI_PORT", "99999")]
)
def test_an_invalid_variable_is_named(name: str, value: str) -> None:
    """The check fails, and its output begins with the variable's name."""
    status, sentence = run_check({name: value})

    assert status == 1
    assert sentence.startswith(name)


def test_the_command_uses_little_cpu_time(simulator: Simulator) -> None:
    """The health command uses less than 0.3 s of CPU time, because it runs every 30 seconds."""
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
        output, _ = process.communicate(timeout=60)
        after = psutil.Process().cpu_times()

    assert (process.returncode, output) == (0, "ComfyUI responds.\n")
    used_s = after.children_user + after.children_system - before.children_user - before.children_system
    assert used_s < 0.3
