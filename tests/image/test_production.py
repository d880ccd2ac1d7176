"""The image in true production mode: the platform's stand-in outside; tini, the worker and its own ComfyUI inside."""

from __future__ import annotations

import base64
import io
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import docker
import pytest
import requests
from docker.models.networks import Network
from PIL import Image

from bench.container import WorkerContainer, gateway_of, worker_container
from bench.stage import ROOT, SMALL, code_of
from comfy_core.workflows import default_directory, load_workflows, render
from simulators.hugging_face import ModelServer
from simulators.runpod.queue_api import QueueJobState
from simulators.waiting import until
from tests.image.conftest import BAKED, WORKER, BuiltImages
from tests.image.standins import fill, make_models

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("images")]

SOON = {"test": ["CMD", "/opt/venv/bin/python", "-m", "worker.health"], "timeout": 10**10}
ENVIRONMENTS = """\
import os, pathlib
for process in pathlib.Path("/proc").glob("[0-9]*"):
    if process.name == str(os.getpid()):
        continue  # this text is its own command line
    words = (process / "cmdline").read_bytes()
    for name in ("tini", "handler.py", "main.py"):
        if name in words.decode() and (name == "tini" or b"tini" not in words):
            try:
                print(name, [item.partition("=")[0] for item in (process / "environ").read_text().split(chr(0))])
            except PermissionError as error:
                print(name, type(error).__name__)
"""
CONNECT = """\
import socket, sys
try:
    socket.create_connection((sys.argv[1], int(sys.argv[2])), 5).close()
    print("connected")
except OSError as error:
    print(error.strerror or error)
"""
WRITE = """\
import pathlib, sys
for folder in sys.argv[1:]:
    try:
        (pathlib.Path(folder) / "written").touch()
        print(folder)
    except OSError:
        pass
"""
QUICK_HEALTH = {**SOON, "interval": 10**9, "start_period": 10**9, "retries": 1}


@pytest.fixture(scope="module")
def box(engine: docker.DockerClient, network: Network) -> Iterator[WorkerContainer]:
    """A worker with baked weights that several tests use one after the other."""
    with worker_container(engine, network, BAKED) as shared:
        yield shared


def test_text_becomes_a_picture(box: WorkerContainer) -> None:
    """A txt2img job comes back as a PNG of the size asked for."""
    job = box.run(width=96)

    assert code_of(job) is None
    picture = Image.open(io.BytesIO(base64.b64decode(job.output["images"][0]["data"])))
    assert (picture.format, picture.size) == ("PNG", (96, 64))


def test_a_picture_becomes_another(box: WorkerContainer) -> None:
    """An img2img job takes an image and returns one."""
    image = base64.b64encode((ROOT / "examples" / "knight.png").read_bytes()).decode()

    job = box.platform.wait_for(
        box.platform.submit({"prompt": "a knight in winter", "image": image, "strength": 0.5, "steps": 2}), 60
    )

    assert code_of(job) is None
    assert job.output["workflow"] == "flux-dev-img2img"


def test_a_graph_of_the_caller_s_own_runs(box: WorkerContainer) -> None:
    """A whole graph in API format runs unchanged."""
    [graph] = render(load_workflows(default_directory())["flux-dev-txt2img"], {**SMALL, "seed": 7})

    assert code_of(box.platform.wait_for(box.platform.submit({"workflow": graph}), 60)) is None


def test_two_jobs_are_in_hand_at_once(box: WorkerContainer) -> None:
    """The second is taken while the first samples, and both succeed."""
    first = box.submit(steps=40, seed=1)
    second = box.submit(steps=2, seed=2)
    box.await_sampling(first)

    box.platform.wait_until(lambda: box.platform.jobs[second].state is QueueJobState.IN_PROGRESS, 10)
    assert box.platform.jobs[first].state is QueueJobState.IN_PROGRESS
    assert [code_of(box.platform.wait_for(job_id, 60)) for job_id in (first, second)] == [None, None]


def test_a_cancelled_job_makes_room(box: WorkerContainer) -> None:
    """A job of a minute is cancelled, and the next one does not wait for it."""
    long = box.submit(steps=100, num_images=8)
    box.await_sampling(long)

    headers = {"Authorization": f"Bearer {box.platform.api_key}"}
    requests.post(f"{box.platform.endpoint_url}/cancel/{long}", headers=headers, timeout=10).raise_for_status()

    assert code_of(box.run(seed=3)) is None
    assert box.platform.jobs[long].state is QueueJobState.CANCELLED


def test_a_comfyui_that_is_killed_comes_back(box: WorkerContainer) -> None:
    """The running job fails with an error that allows resending; the next one works, on the same worker."""
    job_id = box.submit(steps=100)
    box.await_sampling(job_id)

    box.signal_comfyui(signal.SIGKILL)

    assert code_of(box.platform.wait_for(job_id, 60)) == "comfyui_unavailable"
    assert code_of(box.run(seed=4)) is None
    assert box.state()["Status"] == "running"


def test_nobody_in_it_is_root(box: WorkerContainer) -> None:
    """Every process has the user 1000 and no capabilities, and PID 1 is tini."""
    status = box.read("cat", "/proc/1/status")
    words = {line.split(":")[0]: line.split()[1:] for line in status.splitlines() if len(line.split()) > 1}

    assert words["Name"] == ["tini"]
    assert words["Uid"] == ["1000"] * 4
    assert words["CapEff"] == ["0" * 16]
    assert words["NoNewPrivs"] == ["1"]


def test_no_process_beside_them_reads_the_secrets_of_tini_and_the_worker(box: WorkerContainer) -> None:
    """A custom node runs as the same user: /proc/<pid>/environ of both is closed to it; ComfyUI's own has no secret."""
    environments = dict(line.split(" ", 1) for line in box.read("python", "-c", ENVIRONMENTS).splitlines())

    assert [environments[name] for name in ("tini", "handler.py")] == ["PermissionError"] * 2
    assert "PATH" in environments["main.py"]
    assert "RUNPOD" not in environments["main.py"]


def test_it_leads_nowhere_but_to_the_platform(box: WorkerContainer, engine: docker.DockerClient) -> None:
    """The jobs above ran without network access outside the container's own network."""
    routes = [line.split()[1] for line in box.read("cat", "/proc/net/route").splitlines()[1:]]
    elsewhere = engine.networks.get("bridge").attrs["IPAM"]["Config"][0]["Gateway"]
    port = str(urlsplit(box.platform.base_url).port)

    assert routes
    assert "00000000" not in routes
    assert "unreachable" in box.read("python", "-c", CONNECT, elsewhere, port)
    assert box.read("python", "-c", CONNECT, box.platform.host, port) == "connected\n"


def test_nothing_but_tmp_can_be_written(box: WorkerContainer) -> None:
    """The root file system is read-only: files can only be created in /tmp."""
    written = box.read("python", "-c", WRITE, "/", "/app", "/opt/comfyui", "/opt/models", "/opt/venv", "/var", "/tmp")  # noqa: S108 - the container's

    assert written == "/tmp\n"  # noqa: S108 - the container's


def test_it_gets_along_with_8_gb(box: WorkerContainer) -> None:
    """The jobs above ran within a memory limit of 8 GB, without an OOM kill."""
    stats: Any = box.container.stats(stream=False)  # of which the type says that it may be a stream
    memory = stats["memory_stats"]

    assert memory["limit"] == 8 * 1024**3
    assert 0 < memory["usage"] < memory["limit"]
    assert box.state()["OOMKilled"] is False


def test_nothing_of_the_jobs_is_left(box: WorkerContainer) -> None:
    """After all these jobs ComfyUI's folders contain no image."""
    found = box.read("find", "/tmp/comfyui/input", "/tmp/comfyui/output", "-type", "f", "-size", "+0")  # noqa: S108

    assert found == ""


def test_an_idle_worker_ends_at_once(engine: docker.DockerClient, network: Network) -> None:
    """SIGTERM without a job: exit status 0."""
    with worker_container(engine, network, BAKED) as box:
        box.container.kill("SIGTERM")

        assert box.await_end(15) == 0


def test_a_busy_worker_ends_with_its_result_posted(engine: docker.DockerClient, network: Network) -> None:
    """On SIGTERM during a job, the job succeeds, its result is posted, and then the worker exits with 0."""
    with worker_container(engine, network, BAKED) as box:
        job_id = box.submit(steps=60)
        box.await_sampling(job_id)

        box.container.kill("SIGTERM")

        assert code_of(box.platform.wait_for(job_id, 30)) is None
        assert box.await_end(15) == 0


def test_health_follows_comfyui(engine: docker.DockerClient, network: Network) -> None:
    """The engine reports the container as healthy while ComfyUI responds, and as unhealthy otherwise."""
    with worker_container(engine, network, BAKED, healthcheck=QUICK_HEALTH) as box:
        assert until(lambda: box.state()["Health"]["Status"] == "healthy", 20)

        box.signal_comfyui(signal.SIGSTOP)

        assert until(lambda: box.state()["Health"]["Status"] == "unhealthy", 20)
        assert "ComfyUI" in box.state()["Health"]["Log"][-1]["Output"]
        box.signal_comfyui(signal.SIGCONT)
        assert until(lambda: box.state()["Health"]["Status"] == "healthy", 20)


def test_the_models_of_a_volume_are_found(
    engine: docker.DockerClient, network: Network, images: BuiltImages, tmp_path: Path
) -> None:
    """The image without weights uses those of a read-only network volume."""
    fill(tmp_path / "models", images.models, images.server)

    with worker_container(engine, network, WORKER, volumes=[f"{tmp_path}:/runpod-volume:ro"], **_listed(images)) as box:
        assert code_of(box.run()) is None


def test_a_missing_model_is_named(
    engine: docker.DockerClient, network: Network, images: BuiltImages, tmp_path: Path
) -> None:
    """If a model is missing the worker takes no job, logs the model and the locations searched, and exits."""
    fill(tmp_path / "models", images.models, images.server, ["vae/ae.safetensors"])

    options: dict[str, Any] = {"volumes": [f"{tmp_path}:/runpod-volume:ro"], "is_to_be_ready": False, **_listed(images)}
    with worker_container(engine, network, WORKER, **options) as box:
        assert box.await_end() != 0
        assert not box.platform.takes
        log = box.log()
    assert "text_encoders/clip_l.safetensors" in log
    assert "/runpod-volume/models" in log
    assert "vae/ae.safetensors" not in log.split("text_encoders/clip_l.safetensors")[0].rpartition("\n")[2]


def test_models_are_fetched_at_the_first_boot(
    engine: docker.DockerClient, network: Network, images: BuiltImages, tmp_path: Path
) -> None:
    """WORKER_FETCH_MODELS=true downloads them to a new volume, as in compose.yaml; a second worker finds them there."""
    name = "comfy-client-test-models"
    options = {"volumes": [f"{name}:/opt/models"], **_listed(images)}
    with ModelServer(gateway_of(network)) as server:
        make_models(tmp_path, server)
        environment = {"WORKER_FETCH_MODELS": "true", "HF_ENDPOINT": server.url}
        try:
            for _ in range(2):
                with worker_container(engine, network, WORKER, environment=environment, **options) as box:
                    assert code_of(box.run()) is None
        finally:
            engine.volumes.get(name).remove()
        assert len(server.asked) == len((tmp_path / "models.txt").read_text().splitlines())


def test_a_volume_that_may_not_be_read_is_named(
    engine: docker.DockerClient, network: Network, images: BuiltImages, tmp_path: Path
) -> None:
    """For a volume that only another user can read, the error says so, instead of that it is empty."""
    fill(tmp_path / "models", images.models, images.server)
    tmp_path.chmod(0o700)

    with worker_container(
        engine, network, WORKER, volumes=[f"{tmp_path}:/runpod-volume:ro"], is_to_be_ready=False
    ) as box:
        assert box.await_end() != 0
        assert "/runpod-volume/models (cannot be read by this user)" in box.log()


def _listed(images: BuiltImages) -> dict[str, Any]:
    """Return how a container knows the sizes of the stand-ins: by their own list in the place of ours."""
    return {
        "mounts": [docker.types.Mount("/app/models.txt", str(images.models / "models.txt"), "bind", read_only=True)]
    }
