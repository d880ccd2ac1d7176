"""ComfyUI as the worker's child process: start, log, environment, crashes, restarts, stops, and stuck prompts."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from bench.worker_setup import ROOT, SIMULATOR_MAIN
from comfy_core.comfyui.prompt_monitor import WaitLimits
from comfy_core.comfyui.run import run_graphs
from comfy_core.comfyui.server import ComfyServer
from comfy_core.contract import ErrorReport
from comfy_core.error_codes import ErrorCode
from comfy_core.errors import JobError, RequestError
from comfy_core.workflows import Workflow, render
from handler import make_handler
from simulators.comfyui import Simulator
from simulators.http_server import free_port
from simulators.waiting import until
from tests.processes import killed_at_end
from worker.comfyui_environment import comfyui_environment
from worker.comfyui_log import KEPT_LINES
from worker.comfyui_process import ComfyProcess, KillTimeouts, ModelsMissing, ProcessHooks, await_ready
from worker.job_execution import Service
from worker.jobs import Worker
from worker.leases import RetryJob
from worker.lifecycle import Lifecycle
from worker.settings import Settings

pytestmark = pytest.mark.slow
SMALL = {"prompt": "a knight", "width": 64, "height": 64, "steps": 2, "seed": 1}
CANCELLED = JobError.because(ErrorCode.CANCELLED, "The job was cancelled.")
WAITING_SCRIPT = "import threading\nthreading.Event().wait()\n"
READY: Callable[[Callable[[], JobError | None]], None] = lambda _: None  # noqa: E731 - ready as soon as it is started


class Child:
    """A ComfyUI under test: its process, the client for it, and how often the process was reported as lost."""

    def __init__(
        self,
        directory: Path,
        script: str = "",
        *,
        models: Sequence[str] = (),
        timeout_s: float = 30,
        kill_timeouts: KillTimeouts | None = None,
        environment: Mapping[str, str] | None = None,
        ready: Callable[[Callable[[], JobError | None]], None] | None = None,
    ) -> None:
        self.directory = directory
        self.main = directory / "main.py"
        self.main.write_text(script or SIMULATOR_MAIN.format(directory=str(directory)))
        port = free_port()
        self.server = ComfyServer(f"http://127.0.0.1:{port}")
        self.times_lost = self.times_restarted = 0
        self.process = ComfyProcess(
            [sys.executable, "-u", "main.py", "--port", str(port)],
            directory,
            comfyui_environment({**os.environ, "PYTHONPATH": str(ROOT), **(environment or {})}),
            f"http://127.0.0.1:{port}",
            ready or partial(await_ready, self.server, models, timeout_s),
            ProcessHooks(self._note_loss, self._note_restart),
            kill_timeouts or KillTimeouts(stuck_s=60, hung_s=60),
        )

    def _note_loss(self) -> None:
        self.times_lost += 1

    def _note_restart(self) -> None:
        self.times_restarted += 1

    def processes(self) -> list[psutil.Process]:
        """Return the processes that run in ComfyUI's folder, except zombies."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.status() != psutil.STATUS_ZOMBIE and process.cwd() == str(self.directory):
                    found.append(process)
        return found

    def kill(self) -> None:
        """Kill ComfyUI, as the kernel does when memory is short; return when the death was counted."""
        deaths = self.process.deaths
        for process in self.processes():
            process.kill()
        assert until(lambda: self.process.deaths > deaths)

    def await_available(self) -> None:
        """Return when ComfyUI is available, or raise the error. After 60 s that error is CANCELLED."""
        deadline = time.monotonic() + 60
        self.process.await_available(lambda: None if time.monotonic() < deadline else CANCELLED)

    def logs_soon(self, text: str) -> bool:
        """Return whether ComfyUI logs a line with `text` before `until` times out."""
        return until(lambda: any(text in line for line in self.process.log.lines()))


Start = Callable[..., Child]


@pytest.fixture
def child(tmp_path: Path) -> Iterator[Start]:
    """Yield a function that starts a child in `tmp_path`; afterwards all children are stopped."""
    children: list[Child] = []

    def make(script: str = "", **options: object) -> Child:
        children.append(Child(tmp_path, script, **options))  # type: ignore[arg-type] # arguments of Child
        children[-1].process.start()
        return children[-1]

    yield make
    for each in children:
        each.process.stop()
        each.server.close()
        assert until(lambda each=each: not each.processes())  # type: ignore[misc] # called in the same iteration


def error_of(run: Callable[[], object]) -> JobError:
    """Return the error that `run` raises, which must be comfyui_unavailable and retryable."""
    with pytest.raises(JobError) as info:
        run()
    assert info.value.code is ErrorCode.COMFYUI_UNAVAILABLE
    assert info.value.report.retryable
    return info.value


# --- start


def test_it_is_ready_when_it_responds_and_has_the_models(child: Start) -> None:
    """`await_start` returns once ComfyUI responds and lists the model; then ComfyUI is available and accepts jobs."""
    comfyui = child(models=["vae/ae.safetensors"])
    comfyui.process.await_start()

    assert comfyui.server.fetch_system().version
    comfyui.await_available()
    assert comfyui.process.rejection_error() is None
    assert not comfyui.process.is_lost


def test_a_crash_before_it_is_ready_is_reported(child: Start) -> None:
    """The error has the exit status and the last lines of the log, without the folders of this machine."""
    comfyui = child(f"import sys\nprint('cannot import', {__file__!r})\nsys.exit(3)")
    error = error_of(comfyui.process.await_start)

    assert "ended with status 3 before it was ready" in error.report.message
    assert error.report.details == {"log_tail": ["cannot import test_comfyui_process.py"]}


def test_a_command_that_cannot_be_started_is_an_error(tmp_path: Path) -> None:
    """A command that does not exist raises OSError, or JobError if setpriv runs the command."""
    server = ComfyServer("http://127.0.0.1:1")
    process = ComfyProcess(
        ["/no/such/python"], tmp_path, {}, "http://127.0.0.1:1", partial(await_ready, server, [], 30), ProcessHooks()
    )

    def boot() -> None:
        process.start()
        process.await_start()

    with pytest.raises((OSError, JobError)):
        boot()


def test_a_comfyui_that_never_becomes_ready_is_stopped(child: Start) -> None:
    """The wait times out with comfyui_unavailable, and no child process is left."""
    comfyui = child(WAITING_SCRIPT, timeout_s=0.5)
    error = error_of(comfyui.process.await_start)

    assert "was not ready after" in error.report.message
    assert comfyui.processes() == []


def test_missing_models_are_reported_at_once(child: Start) -> None:
    """Each file that ComfyUI does not list is reported with its folder before the timeout, and the child is stopped."""
    comfyui = child(models=["vae/ae.safetensors", "vae/none.safetensors", "no-folder/none.pt"], timeout_s=600)
    with pytest.raises(ModelsMissing, match=r"list vae/none\.safetensors, no-folder/none\.pt\. Put each"):
        comfyui.process.await_start()

    assert comfyui.processes() == []


# --- its log and its environment


def test_the_last_hundred_lines_are_kept(child: Start) -> None:
    """Lines before the last KEPT_LINES are dropped; empty lines and invalid UTF-8 do no harm."""
    script = "import sys\nsys.stdout.buffer.write(b'\\xff\\n\\n')\nfor number in range(250): print('line', number)\n"
    comfyui = child(script + WAITING_SCRIPT)

    assert comfyui.logs_soon("line 249")
    assert comfyui.process.log.lines() == [f"line {number}" for number in range(250 - KEPT_LINES, 250)]


def test_no_line_has_an_absolute_path(child: Start) -> None:
    """Tracebacks and other lines contain file names, but no folders."""
    script = "import pathlib, traceback\ntry: 1 / 0\nexcept Exception: traceback.print_exc()\n"
    comfyui = child(f"{script}print('loading', {str(ROOT / 'models/vae/ae.safetensors')!r}, 'now')\n{WAITING_SCRIPT}")

    assert comfyui.logs_soon("loading ae.safetensors now")
    tail = "\n".join(comfyui.process.log.lines())
    assert 'File "main.py", line 2' in tail
    assert not re.search(r"(?<![\w.])/\w+/", tail)


def test_an_error_has_the_last_twenty_lines(child: Start) -> None:
    """An error contains only the last twenty lines of the log."""
    comfyui = child("for number in range(250): print('line', number)")

    tail = error_of(comfyui.process.await_start).report.details["log_tail"]
    assert tail == [f"line {number}" for number in range(230, 250)]


def test_secrets_are_not_passed_on(child: Start) -> None:
    """ComfyUI's environment has none of the worker's secrets, but has other variables, such as PyTorch's."""
    secrets = ["RUNPOD_AI_API_KEY", "BUCKET_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "HF_TOKEN", "MY_API_PASSWORD"]
    environment = {**dict.fromkeys(secrets, "secret-value"), "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}
    comfyui = child(
        "import os\nfor item in os.environ.items(): print(*item)\nprint('that is all')\n" + WAITING_SCRIPT,
        environment=environment,
    )

    assert comfyui.logs_soon("that is all")
    tail = comfyui.process.log.lines()
    assert "PYTORCH_CUDA_ALLOC_CONF expandable_segments:True" in tail
    assert not [line for line in tail if "secret-value" in line or line.split()[0] in secrets]


# --- crashes and restarts


def test_a_crash_fails_the_running_job_and_comfyui_restarts(child: Start) -> None:
    """The running job fails with a retryable error; a job that begins after the restart is not affected."""
    comfyui = child()
    comfyui.process.await_start()
    lease = comfyui.process.begin_lease()
    comfyui.process.note_queued(lease)
    comfyui.kill()
    error = comfyui.process.failure_of(lease)

    assert error is not None
    assert error.code is ErrorCode.COMFYUI_UNAVAILABLE
    assert error.report.retryable
    assert not isinstance(error, RetryJob)
    comfyui.await_available()
    assert comfyui.server.fetch_system().version
    assert comfyui.process.failure_of(comfyui.process.begin_lease()) is None
    assert (comfyui.times_lost, comfyui.process.is_lost) == (0, False)


def test_a_crash_makes_a_waiting_job_retryable(child: Start) -> None:
    """Of two jobs with queued prompts, the one that queued first is running and fails; the other gets RetryJob."""
    comfyui = child()
    comfyui.process.await_start()
    waiting, running = comfyui.process.begin_lease(), comfyui.process.begin_lease()
    comfyui.process.note_queued(running)
    comfyui.process.note_queued(waiting)
    comfyui.kill()

    assert not isinstance(comfyui.process.failure_of(running), RetryJob)
    assert isinstance(comfyui.process.failure_of(waiting), RetryJob)


def test_a_second_crash_without_a_success_is_final(child: Start) -> None:
    """ComfyUI is not started a third time: waiting jobs get an error, and the loss is reported once."""
    comfyui = child()
    comfyui.process.await_start()
    comfyui.kill()
    comfyui.await_available()
    comfyui.kill()
    error = error_of(comfyui.await_available)

    assert "could not be restarted" in error.report.message
    assert comfyui.process.is_lost
    assert until(lambda: comfyui.times_lost == 1)
    assert comfyui.processes() == []


def test_a_success_resets_the_restart_limit(child: Start) -> None:
    """A job that succeeds after a restart allows another restart."""
    comfyui = child()
    comfyui.process.await_start()
    for _ in range(2):
        comfyui.kill()
        comfyui.await_available()
        comfyui.process.note_success()

    assert comfyui.server.fetch_system().version
    assert comfyui.process.deaths == 2
    assert comfyui.times_lost == 0


@pytest.mark.parametrize("broken", ["import sys\nsys.exit(1)", None])
def test_a_failed_restart_is_final(child: Start, broken: str | None) -> None:
    """If the restarted ComfyUI exits or its script is missing, waiting jobs get the error, and the loss is reported."""
    comfyui = child()
    comfyui.process.await_start()
    if broken:
        comfyui.main.write_text(broken)
    else:
        comfyui.main.unlink()
    comfyui.kill()

    error_of(comfyui.await_available)
    assert until(lambda: comfyui.times_lost == 1)
    assert comfyui.processes() == []


def test_a_restart_without_its_folder_is_final(tmp_path: Path) -> None:
    """If ComfyUI's folder no longer exists at the restart, waiting jobs get the error, and the loss is reported."""
    (tmp_path / "there").mkdir()
    comfyui = Child(tmp_path / "there", WAITING_SCRIPT, ready=READY)
    comfyui.process.start()
    comfyui.process.await_start()
    (tmp_path / "there").rename(tmp_path / "moved")
    comfyui.directory = tmp_path / "moved"
    comfyui.kill()

    error_of(comfyui.await_available)
    assert until(lambda: comfyui.times_lost == 1)
    comfyui.server.close()


def test_a_cancelled_job_does_not_wait_for_the_restart(child: Start) -> None:
    """A job that is cancelled while ComfyUI restarts ends with its cancellation."""
    comfyui = child()
    comfyui.process.await_start()
    comfyui.main.write_text(WAITING_SCRIPT)
    comfyui.kill()
    with pytest.raises(JobError) as info:
        comfyui.process.await_available(lambda: CANCELLED)

    assert info.value is CANCELLED


def test_a_stopped_restart_is_not_reported_as_a_crash(child: Start) -> None:
    """If ComfyUI is stopped while it restarts, it is not reported as lost, and no process is left."""
    comfyui = child()
    comfyui.process.await_start()
    comfyui.main.write_text(f"print('starting again')\n{WAITING_SCRIPT}")
    comfyui.kill()
    assert comfyui.logs_soon("starting again")
    comfyui.process.stop()

    assert not until(lambda: comfyui.times_lost, 0.5)
    assert not comfyui.process.is_lost
    assert comfyui.processes() == []


# --- stop

SCRIPT_WITH_CHILD = """\
import signal, subprocess, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if len(sys.argv) < 9:
    subprocess.Popen([sys.executable, "-u", "main.py", *"abcdefgh"])
print("ignores SIGTERM", flush=True)
signal.pause()
"""


def test_stop_leaves_no_process_of_its_group(child: Start) -> None:
    """A ComfyUI that ignores SIGTERM is killed after the grace period, with its child process."""
    comfyui = child(SCRIPT_WITH_CHILD)
    assert until(lambda: sum("ignores SIGTERM" in line for line in comfyui.process.log.lines()) == 2)
    assert len(comfyui.processes()) == 2
    comfyui.process.stop(grace_s=0.2)

    assert until(lambda: comfyui.processes() == [])


def test_child_processes_of_a_crashed_comfyui_are_killed_before_the_restart(child: Start) -> None:
    """A child process that outlives ComfyUI would hold its port and memory, so it is killed before the restart."""
    comfyui = child(SCRIPT_WITH_CHILD, ready=READY)
    comfyui.process.await_start()
    assert until(lambda: sum("ignores SIGTERM" in line for line in comfyui.process.log.lines()) == 2)
    [eldest, orphan] = sorted(comfyui.processes(), key=lambda process: process.create_time())
    eldest.kill()

    comfyui.await_available()
    assert until(lambda: comfyui.process.deaths == 1)
    assert until(lambda: not orphan.is_running() or orphan.status() == psutil.STATUS_ZOMBIE)


def test_stop_may_be_called_twice_or_before_the_start(child: Start, tmp_path: Path) -> None:
    """`stop` may be called before the start and twice; a stopped ComfyUI cannot be started again."""
    ComfyProcess(["true"], tmp_path, {}, "http://127.0.0.1:1", READY, ProcessHooks()).stop()
    comfyui = child(WAITING_SCRIPT)
    comfyui.process.stop()
    comfyui.process.stop()

    error_of(comfyui.process.start)


PARENT_SCRIPT = """\
import os, signal, sys
from pathlib import Path
from worker.comfyui_process import ComfyProcess, ProcessHooks
from worker.settings import Settings
url = "http://127.0.0.1:1"
command = [sys.executable, "main.py"]
process = ComfyProcess(command, Path({directory!r}), os.environ, url, lambda _: None, ProcessHooks())
process.start()
print("started", flush=True)
signal.pause()
"""


def test_it_dies_with_its_parent(tmp_path: Path) -> None:
    """If the worker is killed with SIGKILL, ComfyUI's process ends too."""
    comfyui = Child(tmp_path, WAITING_SCRIPT)
    with killed_at_end(
        subprocess.Popen(
            [sys.executable, "-c", PARENT_SCRIPT.format(directory=str(tmp_path))],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            text=True,
        )
    ) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "started\n"
        assert until(lambda: any("main.py" in process.cmdline() for process in comfyui.processes()))
        parent.send_signal(signal.SIGKILL)

    assert until(lambda: comfyui.processes() == [])
    comfyui.server.close()


# --- a prompt that ignores its interruption


@contextlib.contextmanager
def stuck_prompts(simulator: Simulator, workflow: Workflow) -> Iterator[ComfyServer]:
    """Yield a client of the simulator, in which an interrupted prompt keeps running."""
    simulator.faults.hang_sampling(ignores_interrupt=True)
    server = ComfyServer(simulator.url)
    stopped = threading.Event()
    with pytest.raises(JobError):
        run_graphs(
            server,
            render(workflow, SMALL),
            [],
            WaitLimits(timeout_s=60, queue_timeout_s=60),
            lambda: CANCELLED if simulator.hanging_step or stopped.is_set() else None,
        )
    assert server.cleanup.stuck_prompts
    yield server
    simulator.faults.release()
    server.close()


def test_a_comfyui_with_a_stuck_prompt_is_restarted(child: Start, workflows: Mapping[str, Workflow]) -> None:
    """If a prompt is still stuck after `stuck_s`, ComfyUI is killed, restarted, and not lost."""
    comfyui = child(WAITING_SCRIPT, ready=READY, kill_timeouts=KillTimeouts(stuck_s=0.3))
    comfyui.process.await_start()
    with Simulator() as simulator, stuck_prompts(simulator, workflows["flux-dev-txt2img"]) as server:
        comfyui.process.end_if_stuck(server)
        assert until(lambda: comfyui.process.deaths == 1)
        comfyui.await_available()

    assert comfyui.times_lost == 0


def test_a_prompt_that_ends_late_causes_no_restart(child: Start, workflows: Mapping[str, Workflow]) -> None:
    """If the stuck prompt ends before `stuck_s`, ComfyUI is not killed."""
    comfyui = child(WAITING_SCRIPT, ready=READY, kill_timeouts=KillTimeouts(stuck_s=1.5))
    comfyui.process.await_start()
    with Simulator() as simulator, stuck_prompts(simulator, workflows["flux-dev-txt2img"]) as server:
        comfyui.process.end_if_stuck(server)
        simulator.faults.release()
        assert until(lambda: not simulator.queue_ids)
        assert not until(lambda: comfyui.process.deaths, 2.5)


READING_SCRIPT = """\
import threading
while not threading.Event().wait(0.01):
    open("/dev/zero", "rb").read(1_000_000)
"""


def test_a_prompt_that_loads_a_model_gets_more_time(child: Start, workflows: Mapping[str, Workflow]) -> None:
    """While ComfyUI reads files, a stuck prompt may run for LOADING_FACTOR times `stuck_s`."""
    comfyui = child(READING_SCRIPT, ready=READY, kill_timeouts=KillTimeouts(stuck_s=0.6))
    comfyui.process.await_start()
    with Simulator() as simulator, stuck_prompts(simulator, workflows["flux-dev-txt2img"]) as server:
        comfyui.process.end_if_stuck(server)
        assert not until(lambda: comfyui.process.deaths, 1.8)
        assert until(lambda: comfyui.process.deaths == 1)


def test_a_restarted_comfyui_is_not_killed_for_the_previous_one(
    child: Start, workflows: Mapping[str, Workflow]
) -> None:
    """If ComfyUI dies before `stuck_s`, the process that was restarted is not killed."""
    comfyui = child(WAITING_SCRIPT, ready=READY, kill_timeouts=KillTimeouts(stuck_s=1))
    comfyui.process.await_start()
    with Simulator() as simulator, stuck_prompts(simulator, workflows["flux-dev-txt2img"]) as server:
        comfyui.process.end_if_stuck(server)
        comfyui.kill()
        assert not until(lambda: comfyui.process.deaths > 1, 2)


def test_without_a_stuck_prompt_no_thread_is_left(child: Start) -> None:
    """If no prompt is stuck, `end_if_stuck` starts no thread."""
    comfyui = child(WAITING_SCRIPT)
    comfyui.process.end_if_stuck(comfyui.server)

    assert not [thread for thread in threading.enumerate() if thread.name == "comfyui-stuck"]


# --- with the handler


class HandlerSetup:
    """The handler with a child process. `ended` has the reason and the exit status if the worker retired."""

    def __init__(self, comfyui: Child, workflows: Mapping[str, Workflow]) -> None:
        self.ended: list[str] = []
        lifecycle = Lifecycle(
            stop_comfyui=lambda: None,
            report_unhealthy=self.ended.append,
            grace_s=0,
            end=lambda status: self.ended.append(str(status)),
        )
        worker = Worker(comfyui.server, workflows, Settings(job_timeout_s=60))
        self._handler = make_handler(Service(worker, lifecycle, comfyui.process))

    def run(self, **changes: object) -> dict[str, Any]:
        """Run a small job; return its result, or its error."""

        async def bounded() -> dict[str, Any]:
            return await asyncio.wait_for(self._handler({"id": "job-1", "input": {**SMALL, **changes}}), 60)

        return asyncio.run(bounded())

    def report(self, **changes: object) -> ErrorReport:
        """Run a small job that must fail; return its error report."""
        return ErrorReport.from_json(self.run(**changes)["error"])


LOGGING_SCRIPT = """\
import threading
def talk():
    while not threading.Event().wait(0.05):
        print("a line", flush=True)
threading.Thread(target=talk, daemon=True).start()
"""
SLOW_SIMULATOR = LOGGING_SCRIPT + SIMULATOR_MAIN.replace("[*sys.argv[1:],", "[*sys.argv[1:], '--step-s', '0.2',")


def test_a_crash_fails_the_job_and_the_next_one_runs(
    child: Start, tmp_path: Path, workflows: Mapping[str, Workflow]
) -> None:
    """The report of the job that ran at the crash has the last log lines; each success resets the restart limit."""
    comfyui = child(SLOW_SIMULATOR.format(directory=str(tmp_path)))
    comfyui.process.await_start()
    handler_setup = HandlerSetup(comfyui, workflows)
    for _ in range(2):
        killing = threading.Thread(target=_kill_while_it_runs, args=(comfyui,))
        killing.start()
        report = handler_setup.report(steps=20)
        killing.join()

        assert report.code is ErrorCode.COMFYUI_UNAVAILABLE
        assert set(report.details["log_tail"]) == {"a line"}
        assert handler_setup.run()["images"]
    assert (comfyui.process.deaths, comfyui.times_lost, handler_setup.ended) == (2, 0, [])


def _is_running_a_prompt(comfyui: Child) -> bool:
    try:
        return bool(comfyui.server.queue_state()[0])
    except RequestError:
        return False


def _kill_while_it_runs(comfyui: Child) -> None:
    assert until(lambda: _is_running_a_prompt(comfyui))
    line = comfyui.process.log.next_line
    assert until(lambda: comfyui.process.log.next_line > line)
    comfyui.kill()


def test_a_timeout_while_comfyui_hangs_is_reported_as_a_hang(
    child: Start, tmp_path: Path, workflows: Mapping[str, Workflow]
) -> None:
    """The code is execution_failed and not retryable, because a repeated job would hang the next worker."""
    comfyui = child(SLOW_SIMULATOR.format(directory=str(tmp_path)), kill_timeouts=KillTimeouts(hung_s=3))
    comfyui.process.await_start()
    freezing = threading.Thread(target=_freeze_while_it_runs, args=(comfyui,))
    freezing.start()
    report = HandlerSetup(comfyui, workflows).report(steps=20, timeout_s=1)
    freezing.join()

    assert report.code is ErrorCode.EXECUTION_FAILED
    assert report.details["reason"] == "comfyui_hung"
    assert not report.retryable


def _freeze_while_it_runs(comfyui: Child) -> None:
    assert until(lambda: _is_running_a_prompt(comfyui))
    for process in comfyui.processes():
        process.suspend()


def test_a_job_after_the_final_crash_fails(child: Start, workflows: Mapping[str, Workflow]) -> None:
    """A job that arrives when ComfyUI is lost fails with comfyui_unavailable."""
    comfyui = child(f"print('it has begun')\n{WAITING_SCRIPT}", ready=READY)
    comfyui.process.await_start()
    assert comfyui.logs_soon("it has begun")
    comfyui.main.write_text("raise SystemExit(1)")
    comfyui.kill()
    assert until(lambda: comfyui.process.is_lost)
    report = HandlerSetup(comfyui, workflows).report()

    assert report.code is ErrorCode.COMFYUI_UNAVAILABLE
    assert "could not be restarted" in report.message


def test_an_unusable_gpu_retires_the_worker(child: Start, tmp_path: Path, workflows: Mapping[str, Workflow]) -> None:
    """An error that leaves CUDA unusable is the job's report, and the reason why the worker retires with status 1."""
    fault = "'--fault', 'fail_node:KSampler:torch.AcceleratorError:an illegal memory access'"
    comfyui = child(
        SIMULATOR_MAIN.replace("[*sys.argv[1:],", f"[*sys.argv[1:], {fault},").format(directory=str(tmp_path))
    )
    comfyui.process.await_start()
    handler_setup = HandlerSetup(comfyui, workflows)
    report = handler_setup.report()

    assert report.code is ErrorCode.COMFYUI_UNAVAILABLE
    assert "an illegal memory access" in report.message
    assert until(lambda: len(handler_setup.ended) == 2)
    assert handler_setup.ended == [report.message, "1"]
