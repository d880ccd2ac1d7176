"""Results that survive: a killed command, a suspended machine, a lost network, and a failed write."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from simulators.http_server import free_port
from simulators.runpod.queue_api import RunPodPlatform
from simulators.runpod.scripted_worker import ScriptedWorker, image_result, png
from tests.cli.conftest import Shell
from tests.processes import killed_at_end

pytestmark = pytest.mark.slow
COMMAND = [sys.executable, "-m", "comfy_client.cli.main"]


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
        process = start(shell, *arguments, prefix=("sh", "-c", 'ulimit -f 0; exec "$@"', "sh"))
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
