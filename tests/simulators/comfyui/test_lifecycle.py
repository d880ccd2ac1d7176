"""Start and end of the simulator, in a thread and as a process."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from simulators.comfyui import Simulator, __main__
from simulators.comfyui.queue_and_history import PromptQueue, QueuedPrompt
from tests.processes import killed_at_end
from tools.recorded_graphs import TXT2IMG

from .driver import FIRST, SECOND, Driver, simulated, wait_until

pytestmark = pytest.mark.slow


def test_the_end_leaves_nothing() -> None:
    """A simulator with a running prompt stops at once; its threads have ended and its folder is deleted."""
    threads = threading.active_count()
    with simulated(step_s=3600) as (sim, driver):
        driver.queue(TXT2IMG)
        wait_until(lambda: sim.executed_prompts)
        folder = sim.output_dir.parent
        with driver.listening() as listener:
            listener.frame()
            sim.stop()

    assert threading.active_count() == threads
    assert not folder.exists()


def test_a_given_folder_is_kept(tmp_path: Path) -> None:
    """A folder given by the caller gets input, output and temp, and is kept."""
    with simulated(base_directory=tmp_path) as (_, driver):
        driver.run(TXT2IMG)

    assert sorted(path.name for path in tmp_path.iterdir()) == ["input", "output", "temp"]
    assert (tmp_path / "output" / "rec_00001_.png").is_file()


def test_a_port_in_use_is_an_error(sim: Simulator) -> None:
    """A second simulator cannot start on the port of a running one. After the first has stopped, it can."""
    port = int(sim.url.rsplit(":", 1)[1])
    with pytest.raises(OSError, match="ddress already in use"), Simulator(port=port):
        pass
    sim.stop()
    with Simulator(port=port) as other:
        assert other.url == sim.url


def test_requests_and_connections_are_recorded(sim: Simulator, driver: Driver) -> None:
    """The simulator records requests in order, connections, open websockets and prompts, and names its folders."""
    driver.get("/queue")
    driver.run(TXT2IMG, prompt_id=FIRST)
    assert sim.requests[:2] == [("GET", "/queue"), ("POST", "/prompt")]
    assert sim.connections == 1, "a reused connection counts once"

    requests.get(f"{sim.url}/queue", timeout=60)
    with driver.listening() as listener:
        listener.frame()
        assert (sim.connections, sim.sockets) == (3, 1)
    assert (sim.history_ids, sim.queue_ids, sim.executed_prompts) == ([FIRST], [], [FIRST])
    assert {path.name for path in (sim.input_dir, sim.output_dir, sim.temp_dir)} == {"input", "output", "temp"}


def test_the_times_of_prompts_are_recorded() -> None:
    """Start and end of each prompt are recorded, whether it succeeded or failed. Two prompts do not overlap."""
    with simulated(step_s=0.01) as (sim, driver):
        sim.faults.run_out_of_memory()
        begun_at = time.monotonic()
        for prompt_id in (FIRST, SECOND):
            driver.run(TXT2IMG, prompt_id=prompt_id)
        wait_until(lambda: len(sim.executions) == 2)
        first, second = sim.executions

    assert (first.prompt_id, second.prompt_id) == (FIRST, SECOND)
    assert begun_at <= first.started_at <= first.ended_at <= second.started_at
    assert second.ended_at - second.started_at >= 3 * 0.01


def test_a_simulator_that_is_not_running_raises_an_error() -> None:
    """Reading `requests` of a simulator that was not started raises an error."""
    with pytest.raises(RuntimeError, match="not running"):
        _ = Simulator().requests


def test_history_drops_the_oldest() -> None:
    """The history keeps at most 10,001 entries and drops the oldest."""
    queue = PromptQueue(lambda: None)

    async def run_all() -> None:
        for number in range(10_002):
            queue.put(QueuedPrompt(number, f"prompt {number}", {}, {}, []))
            await queue.next_prompt()
            queue.ended({})

    asyncio.run(run_all())

    assert (len(queue.history_ids), queue.history_ids[0]) == (10_001, "prompt 1")


@contextlib.contextmanager
def process(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Start a simulator as a process and wait until it is ready; yield the process and the simulator's URL."""
    command = [sys.executable, "-m", "simulators.comfyui", "--port", "0", *arguments]
    with killed_at_end(subprocess.Popen(command, stderr=subprocess.PIPE, text=True)) as running:
        assert running.stderr is not None
        lines = iter(running.stderr.readline, "")
        yield running, next(line.split()[-1] for line in lines if line.startswith("To see the GUI go to:"))


@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGINT])
def test_a_process_ends_with_0(signal_number: signal.Signals) -> None:
    """The simulator's process accepts ComfyUI's flags, serves, and exits with 0 on a signal."""
    with process("--listen", "127.0.0.1", "--disable-auto-launch", "--lowvram", "--step-s", "0") as (running, address):
        driver = Driver(address)
        with driver.session:
            assert driver.run(TXT2IMG)["status"]["completed"]
        running.send_signal(signal_number)
        assert running.wait(60) == 0


def test_a_process_dies_with_137() -> None:
    """--fault die:1 ends the process at the first step, with the status of a process that was killed by SIGKILL."""
    with process("--fault", "die:1", "--preview-method", "latent2rgb") as (running, address):
        driver = Driver(address)
        with driver.session:
            driver.queue(TXT2IMG)
        assert running.wait(60) == 137


def test_an_unknown_fault_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    """The message lists the existing faults."""
    with pytest.raises(SystemExit, match="2"):
        __main__.main(["--fault", "explode"])

    assert "drop_socket" in capsys.readouterr().err
