"""The image in production mode: the simulated platform outside; tini, the worker and its own ComfyUI inside.

ComfyUI is the substitute, or with COMFYUI_CHECKOUT a real one, on the CPU and with its full set of packages.
"""

from __future__ import annotations

import base64
import io
import signal
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import docker
import pytest
import requests
from PIL import Image

from bench.container import WorkerContainer
from bench.worker_setup import ROOT, SMALL_JOB, code_of
from comfy_core.workflows import default_directory, load_workflows, render
from simulators.runpod.queue_api import QueueJobState
from tests.image.conftest import StartWorker

pytestmark = pytest.mark.slow

PRINT_ENVIRONMENTS = """\
import os, pathlib
for process in pathlib.Path("/proc").glob("[0-9]*"):
    if process.name == str(os.getpid()):
        continue  # this script, whose command line contains these names too
    words = (process / "cmdline").read_bytes()
    for name in ("tini", "handler.py", "main.py"):
        if name in words.decode() and (name == "tini" or b"tini" not in words):
            try:
                print(name, [item.partition("=")[0] for item in (process / "environ").read_text().split(chr(0))])
            except PermissionError as error:
                print(name, type(error).__name__)
"""
TRY_TO_CONNECT = """\
import socket, sys
try:
    socket.create_connection((sys.argv[1], int(sys.argv[2])), 5).close()
    print("connected")
except OSError as error:
    print(error.strerror or error)
"""
TRY_TO_WRITE = """\
import pathlib, sys
for folder in sys.argv[1:]:
    try:
        (pathlib.Path(folder) / "written").touch()
        print(folder)
    except OSError:
        pass
"""


@pytest.fixture(scope="module")
def worker(start_worker: StartWorker) -> Iterator[WorkerContainer]:
    """A running container, shared by the tests that use this fixture."""
    with start_worker() as shared:
        yield shared


def test_txt2img(worker: WorkerContainer) -> None:
    """A txt2img job returns a PNG of the requested size."""
    job = worker.run(width=96)

    assert code_of(job) is None
    generated = Image.open(io.BytesIO(base64.b64decode(job.output["images"][0]["data"])))
    assert (generated.format, generated.size) == ("PNG", (96, 64))


def test_img2img(worker: WorkerContainer) -> None:
    """A job with an image succeeds with the template flux-dev-img2img."""
    small = io.BytesIO()
    Image.open(ROOT / "examples" / "knight.png").resize((96, 96)).save(small, "PNG")  # fast on a CPU
    image = base64.b64encode(small.getvalue()).decode()

    job = worker.await_result(
        worker.platform.submit({"prompt": "a knight in winter", "image": image, "strength": 0.5, "steps": 2})
    )

    assert code_of(job) is None
    assert job.output["workflow"] == "flux-dev-img2img"


def test_a_caller_s_graph_runs(worker: WorkerContainer) -> None:
    """A job whose input is a graph in API format succeeds."""
    [graph] = render(load_workflows(default_directory())["flux-dev-txt2img"], {**SMALL_JOB, "seed": 7})

    assert code_of(worker.await_result(worker.platform.submit({"workflow": graph}))) is None


def test_two_jobs_are_active_at_once(worker: WorkerContainer) -> None:
    """The second job is taken while the first one samples, and both succeed."""
    first = worker.submit(steps=40, seed=1)
    second = worker.submit(steps=2, seed=2)
    worker.await_sampling(first)

    worker.platform.wait_until(lambda: worker.platform.jobs[second].state is QueueJobState.IN_PROGRESS)
    assert worker.platform.jobs[first].state is QueueJobState.IN_PROGRESS
    assert [code_of(worker.await_result(job_id)) for job_id in (first, second)] == [None, None]


def test_a_cancelled_job_does_not_delay_the_next(worker: WorkerContainer) -> None:
    """A job of 40 s (4 min on a real ComfyUI) is cancelled at its start; the next job succeeds in half that time."""
    long = worker.submit(steps=100, num_images=8)
    worker.await_sampling(long)

    headers = {"Authorization": f"Bearer {worker.platform.api_key}"}
    requests.post(f"{worker.platform.endpoint_url}/cancel/{long}", headers=headers, timeout=60).raise_for_status()

    assert code_of(worker.platform.wait_for(worker.submit(seed=3), worker.timeout_s / 3)) is None
    assert worker.platform.jobs[long].state is QueueJobState.CANCELLED


def test_a_killed_comfyui_is_restarted(worker: WorkerContainer) -> None:
    """The running job fails with a retryable error; the next job succeeds on the same worker."""
    job_id = worker.submit(steps=100)
    worker.await_sampling(job_id)

    worker.signal_comfyui(signal.SIGKILL)

    assert code_of(worker.await_result(job_id)) == "comfyui_unavailable"
    assert code_of(worker.run(seed=4)) is None
    assert worker.state()["Status"] == "running"


def test_pid_1_is_not_root(worker: WorkerContainer) -> None:
    """PID 1 is tini. It runs as user 1000, without capabilities, and cannot gain privileges."""
    status = worker.output_of("cat", "/proc/1/status")
    words = {line.split(":")[0]: line.split()[1:] for line in status.splitlines() if len(line.split()) > 1}

    assert words["Name"] == ["tini"]
    assert words["Uid"] == ["1000"] * 4
    assert words["CapEff"] == ["0" * 16]
    assert words["NoNewPrivs"] == ["1"]


def test_other_processes_cannot_read_the_secrets_of_tini_and_the_worker(worker: WorkerContainer) -> None:
    """A process of the same user, such as a custom node, can only read ComfyUI's environment.

    ComfyUI's environment has no variable of RunPod.
    """
    environments = dict(
        line.split(" ", 1) for line in worker.output_of("python", "-c", PRINT_ENVIRONMENTS).splitlines()
    )

    assert [environments[name] for name in ("tini", "handler.py")] == ["PermissionError"] * 2
    assert "PATH" in environments["main.py"]
    assert "RUNPOD" not in environments["main.py"]


def test_there_is_no_network_access_except_to_the_platform(
    worker: WorkerContainer, engine: docker.DockerClient
) -> None:
    """The container can connect to the platform, but to no other network. The jobs above ran in this container."""
    routes = [line.split()[1] for line in worker.output_of("cat", "/proc/net/route").splitlines()[1:]]
    elsewhere = engine.networks.get("bridge").attrs["IPAM"]["Config"][0]["Gateway"]
    port = str(urlsplit(worker.platform.base_url).port)

    assert routes
    assert "00000000" not in routes
    assert "unreachable" in worker.output_of("python", "-c", TRY_TO_CONNECT, elsewhere, port)
    assert worker.output_of("python", "-c", TRY_TO_CONNECT, worker.platform.host, port) == "connected\n"


def test_only_tmp_can_be_written(worker: WorkerContainer) -> None:
    """The root file system is read-only: files can only be created in /tmp."""
    folders = ("/", "/app", "/opt/comfyui", "/opt/models", "/opt/venv", "/var", "/tmp")  # noqa: S108 - a folder in the container
    written = worker.output_of("python", "-c", TRY_TO_WRITE, *folders)

    assert written == "/tmp\n"  # noqa: S108 - a folder in the container


def test_8_gb_of_memory_suffice(worker: WorkerContainer) -> None:
    """The jobs above ran within a memory limit of 8 GiB, without an OOM kill."""
    stats: Any = worker.container.stats(stream=False)  # the type also allows a stream
    memory = stats["memory_stats"]

    assert memory["limit"] == 8 * 1024**3
    assert 0 < memory["usage"] < memory["limit"]
    assert worker.state()["OOMKilled"] is False


def test_no_file_of_a_job_is_left(worker: WorkerContainer) -> None:
    """After the jobs above ComfyUI's input and output folders contain only empty files."""
    found = worker.output_of("find", "/tmp/comfyui/input", "/tmp/comfyui/output", "-type", "f", "-size", "+0")  # noqa: S108

    assert found == ""


def test_an_idle_container_exits_at_once(start_worker: StartWorker) -> None:
    """SIGTERM without a job ends the container with status 0."""
    with start_worker() as worker:
        worker.container.kill("SIGTERM")

        assert worker.await_end(15) == 0


def test_a_busy_container_exits_after_its_result_is_posted(start_worker: StartWorker) -> None:
    """On SIGTERM during a job, the job succeeds, its result is posted, and then the worker exits with 0."""
    with start_worker() as worker:
        job_id = worker.submit(steps=60)
        worker.await_sampling(job_id)

        worker.container.kill("SIGTERM")

        assert code_of(worker.await_result(job_id)) is None
        assert worker.await_end(15) == 0
