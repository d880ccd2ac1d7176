"""Results that survive: a killed command, a suspended machine, a lost network, and a failed write."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from PIL import Image

from simulators.comfyui import Simulator
from simulators.http_server import free_port
from simulators.runpod.queue_api import RunPodPlatform
from simulators.runpod.scripted_worker import ScriptedWorker, image_result, png
from simulators.waiting import until
from tests.cli.conftest import Shell
from tests.processes import killed_at_end

pytestmark = pytest.mark.slow
COMMAND = [sys.executable, "-m", "comfy_client.cli.main"]
SMALL_FLAGS = ["--width=64", "--height=64", "--steps=2"]
NO_FILES = ("sh", "-c", 'ulimit -f 0; exec "$@"', "sh")
"""The start of a command that cannot write to any file."""


@pytest.fixture
def platform() -> Iterator[RunPodPlatform]:
    """A platform without a worker, so that jobs stay in the queue."""
    with RunPodPlatform(long_poll_s=0.1) as platform:
        yield platform


def start(shell: Shell, *arguments: str, prefix: Sequence[str] = ()) -> subprocess.Popen[str]:
    """Start `comfy-client` as a process, with the variables of `shell`."""
    environment = {**os.environ, **shell.environment, "PYTHONPATH": str(Path(__file__).parents[2])}
    pipe = subprocess.PIPE
    return subprocess.Popen([*prefix, *COMMAND, *arguments], env=environment, stdout=pipe, stderr=pipe, text=True)


def start_and_read_id(shell: Shell) -> tuple[subprocess.Popen[str], str]:
    """Start `txt2img`; return its process and its job's id, which it prints when RunPod has accepted the job."""
    process = start(shell, "txt2img", "a knight", "--seed=7", "-o", "first.png")
    assert process.stderr is not None
    return process, process.stderr.readline().removeprefix("job ").strip()


def test_a_killed_command_loses_no_result(shell: Shell, platform: RunPodPlatform) -> None:
    """After SIGKILL of `txt2img`, another process finds the job and saves its image; RunPod has one job."""
    process, job_id = start_and_read_id(shell)
    with killed_at_end(process):
        process.kill()
        process.wait(60)
    listed = shell("jobs", "--json").json["jobs"]
    with ScriptedWorker(platform, image_result):
        waited = shell("wait", "--last", "-o", "x.png")

    assert [(job["job_id"], job["state"], job["inputs"]["prompt"]) for job in listed] == [
        (job_id, "queued", "a knight")
    ]
    assert waited.status == 0, waited.err
    assert Path("x.png").read_bytes() == png(8, 7)
    assert platform.submissions == 1


def test_a_suspended_command_continues(shell: Shell, platform: RunPodPlatform) -> None:
    """A job that ends while the machine is suspended, and whose connections are then dead, is saved on resume."""
    process, job_id = start_and_read_id(shell)
    with killed_at_end(process):
        process.send_signal(signal.SIGSTOP)
        with ScriptedWorker(platform, image_result):
            platform.wait_for(job_id)
        platform.faults.drop_connection("status", times=3)
        process.send_signal(signal.SIGCONT)
        out, _ = process.communicate(timeout=60)

    assert out == "first.png  8 x 8  seed 7\n"
    assert platform.submissions == 1


def test_a_lost_network_loses_no_result(shell: Shell, platform: RunPodPlatform) -> None:
    """After a `wait` that did not reach RunPod, `result` saves the image."""
    job_id = shell("submit", "txt2img", "-iprompt=a knight", "-iseed=7").out.strip()
    with ScriptedWorker(platform, image_result):
        platform.wait_for(job_id)
    offline = shell("wait", "--last", "--wait-timeout=0", RUNPOD_ENDPOINT_BASE_URL=f"http://127.0.0.1:{free_port()}")
    saved = shell("result", "--last", "-o", "x.png")

    assert offline.status == 5
    assert f"comfy-client wait {job_id}" in offline.err
    assert saved.status == 0, saved.err
    assert Path("x.png").read_bytes() == png(8, 7)


def test_a_failed_write_loses_no_result(shell: Shell, platform: RunPodPlatform) -> None:
    """If no folder can be written, as with a full disk, the message has the command that saves the image later."""
    arguments = ["txt2img", "a knight", "--seed=7", "-o", "x.png"]
    with ScriptedWorker(platform, image_result):
        process = start(shell, *arguments, prefix=NO_FILES)
        with killed_at_end(process):
            _, err = process.communicate(timeout=60)
    [job_id] = platform.jobs
    command = f"comfy-client result {job_id} -o"
    saved = shell(*command.split()[1:], "x.png")

    assert process.returncode == 1
    assert f"`{command} FILE`" in err
    assert saved.status == 0, saved.err
    assert Path("x.png").read_bytes() == png(8, 7)
    assert platform.submissions == 1


@pytest.fixture
def direct(shell: Shell) -> Iterator[tuple[Shell, Simulator]]:
    """A shell that calls a simulated ComfyUI directly, and the ComfyUI."""
    with Simulator() as simulator:
        yield Shell({**shell.environment, "COMFYUI_ENDPOINT": simulator.url}), simulator


def test_a_killed_command_of_a_direct_comfyui_loses_no_result(direct: tuple[Shell, Simulator]) -> None:
    """ComfyUI finishes the prompts of a killed command, and another process saves the images, without a log."""
    shell, simulator = direct
    simulator.faults.hang_sampling()
    flags = ["--seed=7", "--num-images=2", *SMALL_FLAGS]
    process = start(shell, "txt2img", "a knight", *flags)
    with killed_at_end(process):
        assert process.stderr is not None
        job_id = process.stderr.readline().removeprefix("job ").strip()
        assert until(lambda: simulator.hanging_step and len(simulator.queue_ids) == 2)
        process.kill()
        process.wait(60)
    simulator.faults.release()
    waited = shell("wait", job_id, "-o", "x.png", COMFY_CLIENT_JOB_LOG="off")
    again = shell("txt2img", "a knight", *flags, "-o", "y.png")

    assert waited.status == 0, waited.err
    assert again.status == 0, again.err
    for number in (1, 2):
        with Image.open(f"x-{number}.png") as found, Image.open(f"y-{number}.png") as expected:
            assert found.tobytes() == expected.tobytes()
            assert found.info == expected.info


def test_commands_of_a_direct_comfyui_find_each_other_s_jobs(direct: tuple[Shell, Simulator]) -> None:
    """`submit` returns when the job is queued; `status`, `wait`, `result` and `cancel` take its id or --last."""
    shell, simulator = direct
    simulator.faults.hang_sampling()
    words = ["submit", "txt2img", "-iprompt=a knight", "-iwidth=64", "-iheight=64", "-isteps=2"]
    job_id = shell(*words, "-iseed=7").out.strip()
    assert until(lambda: simulator.hanging_step)
    running = shell("status", "--last")
    unfinished = shell("result", job_id)
    simulator.faults.release()
    waited = shell("wait", "--last", "-o", "x.png")
    saved = shell("result", job_id, "-o", "y.png")
    simulator.faults.hang_sampling()
    shell(*words)
    assert until(lambda: simulator.hanging_step)
    cancelled = shell("cancel", "--last")

    assert running.out == f"{job_id}  running\n"
    assert unfinished.status == 5
    assert waited.out == "x.png  64 x 64  seed 7\n", waited.err
    assert saved.status == 0, saved.err
    assert Path("x.png").read_bytes() == Path("y.png").read_bytes()
    assert cancelled.out.endswith("cancelled\n")
    assert not simulator.queue_ids
    assert [job["state"] for job in shell("jobs", "--json").json["jobs"]] == ["cancelled", "succeeded"]


def test_a_failed_write_of_a_direct_comfyui_names_the_seed(direct: tuple[Shell, Simulator]) -> None:
    """ComfyUI keeps nothing of `txt2img`, so the message has the seed that generates the same image."""
    shell, _ = direct
    process = start(shell, "txt2img", "x", "--seed=7", *SMALL_FLAGS, prefix=NO_FILES)
    with killed_at_end(process):
        _, err = process.communicate(timeout=60)

    assert process.returncode == 1
    assert "generate it again with the seed 7" in err


def test_a_wait_timeout_of_a_direct_comfyui_names_no_job_to_wait_for(direct: tuple[Shell, Simulator]) -> None:
    """The job of `txt2img` is cancelled with the command; the message says so, and how to start one that continues."""
    shell, simulator = direct
    simulator.faults.hang_sampling()
    late = shell("txt2img", "x", "--wait-timeout=1", *SMALL_FLAGS)

    assert late.status == 1
    assert "was cancelled with this command" in late.err
    assert "`comfy-client submit`" in late.err
    assert "comfy-client wait" not in late.err
    assert until(lambda: not simulator.queue_ids)


def test_logs_of_a_direct_comfyui(direct: tuple[Shell, Simulator]) -> None:
    """`logs` shows the traceback of the node that failed, for a job of this log or of another process."""
    shell, simulator = direct
    simulator.faults.fail_node("KSampler", "ValueError", "the tensor is wrong")
    shell("txt2img", "x", *SMALL_FLAGS)
    logged = shell("logs", "--last")
    simulator.faults.fail_node("KSampler", "ValueError", "the tensor is wrong")
    job_id = shell("submit", "txt2img", "-iprompt=x", "-isteps=1", "-iwidth=64", "-iheight=64").out.strip()
    assert shell("wait", job_id, COMFY_CLIENT_JOB_LOG="off").status == 1
    found = shell("logs", job_id, COMFY_CLIENT_JOB_LOG="off")

    for ended in (logged, found):
        assert ended.status == 0, ended.err
        assert "File " in ended.out
        assert "execution_failed: node 8 (KSampler) failed: the tensor is wrong" in ended.err
