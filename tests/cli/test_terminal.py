"""`comfy-client` as a process: on a terminal, interrupted by signals, and as a server."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
from pathlib import Path

import psutil
import pytest
import requests

from bench.worker_setup import ROOT, running_worker
from comfy_client.cli.call import raise_on_signals
from simulators.comfyui import Simulator
from simulators.runpod.queue_api import RunPodPlatform
from simulators.waiting import until
from tests.cli.terminals import COMMAND, Terminal
from tests.processes import killed_at_end

pytestmark = pytest.mark.slow
WIDTHS = pytest.mark.parametrize("columns", [60, 100, 160])
SMALL_FLAGS = ["--width", "64", "--height", "64", "--steps", "8"]


@WIDTHS
def test_a_terminal_shows_bar_clock_and_stage(tmp_path: Path, columns: int) -> None:
    """Two lines on stderr show the whole job and its stage, and are removed at the end; stdout only has the result."""
    with running_worker(step_s=0.4) as setup:
        arguments = ["txt2img", "a knight", "-o", "x.png", "--seed", "1", "--num-images", "2", *SMALL_FLAGS]
        terminal = Terminal(arguments, setup.platform.client_env(), tmp_path, columns)
        whole, _ = terminal.wait_for_lines(
            r"\d+% \d:\d\d, about \d:\d\d left$", r"^sampling, image \d of 2, step \d of 8$"
        )
        status, out = terminal.wait()

    assert status == 0, terminal.screen
    assert re.match("[━╸╺]{10,50} ", whole)
    assert out == "x-1.png  64 x 64  seed 1\nx-2.png  64 x 64  seed 2\n"
    assert [line.partition(" ")[0] for line in terminal.lines] == ["job"]
    assert not terminal.is_cursor_hidden


@WIDTHS
def test_a_cold_start_shows_a_clock_and_the_complete_reason(tmp_path: Path, columns: int) -> None:
    """The clock never stands still; the reason for the wait is not truncated; after Ctrl-C no bar stays."""
    with RunPodPlatform(long_poll_s=0.1) as platform:
        terminal = Terminal(["txt2img", "a knight"], platform.client_env(), tmp_path, columns)
        terminal.wait_for_lines(r"0% \d:\d\d$", "^queued$")
        sentence = "RunPod sets it to 0 after a week without requests"
        assert until(lambda: sentence in terminal.text), terminal.screen
        clocks: set[str] = set()

        def runs() -> bool:
            clocks.update(re.findall(r"0% (\d:\d\d)", terminal.text))
            return len(clocks) >= 4

        assert until(runs), clocks
        terminal.process.send_signal(signal.SIGINT)
        status, _ = terminal.wait()

    assert status == 130
    assert "0%" not in terminal.text
    assert terminal.text.rstrip().endswith("was cancelled.")
    assert not terminal.is_cursor_hidden


@WIDTHS
def test_a_batch_shows_how_many_images_are_made(tmp_path: Path, columns: int) -> None:
    """The bar counts the images, the line below it has the newest one, and both are removed at the end."""
    file = ROOT / "examples" / "castle-defence" / "assets.toml"
    with Simulator(step_s=0.02) as simulator:
        terminal = Terminal(["batch", str(file)], {"COMFYUI_ENDPOINT": simulator.url}, tmp_path, columns)
        terminal.wait_for_lines(r"[1-9]\d* of 12 images \d:\d\d", "^[a-z]+/.*: made$")
        status, out = terminal.wait()

    assert (status, out) == (0, "12 made. Gallery: assets/castle-defence/index.html\n")
    assert terminal.lines == [""]


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
@pytest.mark.parametrize("command", [["txt2img", "a knight"], ["run", "txt2img", "-iprompt=a knight"]], ids=" ".join)
def test_a_signal_cancels_the_job(tmp_path: Path, command: list[str], number: signal.Signals, status: int) -> None:
    """On Ctrl-C, SIGTERM or a closed terminal the job is cancelled; its id is printed before and after that."""
    with RunPodPlatform(long_poll_s=0.1) as platform:
        terminal = Terminal(command, platform.client_env(), tmp_path)
        [job_id] = platform.wait_until(lambda: list(platform.jobs))
        assert until(lambda: f"job {job_id}" in terminal.screen)
        terminal.process.send_signal(number)

        assert terminal.wait() == (status, "")
        assert platform.jobs[job_id].state.value == "CANCELLED"
        assert f"job {job_id} was cancelled" in terminal.screen


@pytest.mark.parametrize("command", [["txt2img", "a knight"], ["submit", "txt2img", "-iprompt=x"]], ids=" ".join)
def test_a_signal_during_the_submit_loses_no_job(tmp_path: Path, command: list[str]) -> None:
    """The command waits some seconds for the response, which has the id; then it cancels the job."""
    with RunPodPlatform(long_poll_s=0.1, round_trip_s=1.0) as platform:
        terminal = Terminal(command, platform.client_env(), tmp_path)
        [job_id] = platform.wait_until(lambda: list(platform.jobs))
        terminal.process.send_signal(signal.SIGTERM)

        assert terminal.wait() == (143, "")
        assert platform.jobs[job_id].state.value == "CANCELLED"
        assert f"job {job_id} was cancelled" in terminal.screen


def test_an_ignored_signal_stays_ignored() -> None:
    """SIGHUP stays ignored in a command that `nohup` has started."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with raise_on_signals():
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_ctrl_c_of_wait_does_not_cancel_the_job(tmp_path: Path) -> None:
    """Ctrl-C of `wait` leaves the job running, because `wait` did not start it."""
    with RunPodPlatform(long_poll_s=0.1) as platform:
        job_id = platform.submit({"prompt": "x"})
        terminal = Terminal(["wait", job_id], platform.client_env(), tmp_path)
        assert until(lambda: "queued" in terminal.screen)
        terminal.process.send_signal(signal.SIGINT)
        status, out = terminal.wait()

    assert (status, out) == (130, "")
    assert f"job {job_id} continues" in terminal.screen


@pytest.mark.parametrize("command", [["txt2img", "x"], ["wait", "job-1"], ["health"]], ids=" ".join)
def test_ctrl_c_with_json(tmp_path: Path, command: list[str]) -> None:
    """An interrupted command prints one error object on stdout, and the terminal shows no bar."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        base_url = f"http://127.0.0.1:{silent.getsockname()[1]}/v2"
        environment = {"RUNPOD_API_KEY": "k", "RUNPOD_ENDPOINT_ID": "ep", "RUNPOD_ENDPOINT_BASE_URL": base_url}
        terminal = Terminal([*command, "--json"], environment, tmp_path)
        silent.settimeout(60)
        connection, _ = silent.accept()
        with connection:
            connection.recv(1)
            # A signal that comes just before the read begins would not interrupt it.
            waiting = psutil.Process(terminal.process.pid)
            assert until(lambda: waiting.status() == psutil.STATUS_SLEEPING)
            terminal.process.send_signal(signal.SIGINT)
            status, out = terminal.wait()

    assert status == 130
    assert json.loads(out)["error"]["code"] == "cancelled"
    assert "Traceback" not in terminal.screen
    assert "%" not in terminal.screen


def test_a_closed_pipe_is_not_an_error() -> None:
    """`comfy-client errors | head -1` shows no traceback."""
    with killed_at_end(
        subprocess.Popen([*COMMAND, "errors"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        err = process.stderr.read()

    assert err == ""


def test_the_shim_is_served_until_ctrl_c(tmp_path: Path) -> None:
    """`comfy-client scenario serve --json` prints the shim's URL; Ctrl-C ends the command with status 0."""
    command = [*COMMAND, "scenario", "serve", "--port=0", "--insecure-local", f"--data={tmp_path}", "--json"]
    environment = {**os.environ, "RUNPOD_API_KEY": "k", "RUNPOD_ENDPOINT_ID": "ep"}
    with killed_at_end(
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    ) as served:
        assert served.stdout is not None
        url = json.loads(served.stdout.readline())["url"]
        assert requests.get(url, timeout=60).ok
        served.send_signal(signal.SIGINT)

        assert served.stdout.read() == b""
        assert served.wait(60) == 0


def test_the_simulator_is_served(tmp_path: Path) -> None:
    """`comfy-client simulate --json` prints the simulator's URL, and the simulator generates an image."""
    command = [*COMMAND, "simulate", "--port", "0", "--json"]
    with killed_at_end(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)) as served:
        assert served.stdout is not None
        url = json.loads(served.stdout.readline())["url"]
        terminal = Terminal(["txt2img", "x", *SMALL_FLAGS, "-o", "x.png"], {"COMFYUI_ENDPOINT": url}, tmp_path)
        assert terminal.wait()[0] == 0, terminal.screen

    assert (tmp_path / "x.png").exists()
