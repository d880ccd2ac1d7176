"""Where the image's worker finds its models, and its health check. ComfyUI is always the substitute."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import docker
import pytest
from docker.models.networks import Network

from bench.container import gateway_address, worker_container
from bench.worker_setup import code_of
from simulators.hugging_face import ModelServer
from simulators.waiting import until
from tests.image.conftest import WITH_WEIGHTS, WORKER, BuiltImages
from tests.image.substitutes import serve_models, write_models

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("images")]

FREQUENT_HEALTH_CHECK = {
    "test": ["CMD", "/opt/venv/bin/python", "-m", "worker.health"],
    "timeout": 10**10,
    "interval": 10**9,
    "start_period": 10**9,
    "retries": 1,
}


def test_health_follows_comfyui(engine: docker.DockerClient, network: Network) -> None:
    """The engine reports the container as healthy while ComfyUI responds, and as unhealthy otherwise."""
    with worker_container(engine, network, WITH_WEIGHTS, healthcheck=FREQUENT_HEALTH_CHECK) as worker:
        assert until(lambda: worker.state()["Health"]["Status"] == "healthy")

        worker.signal_comfyui(signal.SIGSTOP)

        assert until(lambda: worker.state()["Health"]["Status"] == "unhealthy")
        assert "ComfyUI" in worker.state()["Health"]["Log"][-1]["Output"]
        worker.signal_comfyui(signal.SIGCONT)
        assert until(lambda: worker.state()["Health"]["Status"] == "healthy")


def test_the_models_of_a_volume_are_found(
    engine: docker.DockerClient, network: Network, images: BuiltImages, tmp_path: Path
) -> None:
    """The image without weights uses the models of a read-only network volume."""
    write_models(tmp_path / "models", images.models, images.server)

    with worker_container(
        engine, network, WORKER, volumes=[f"{tmp_path}:/runpod-volume:ro"], **_with_small_models(images)
    ) as worker:
        assert code_of(worker.run()) is None


def test_a_missing_model_is_named(
    engine: docker.DockerClient, network: Network, images: BuiltImages, tmp_path: Path
) -> None:
    """If models are missing, the worker takes no job, logs them and the folder that was searched, and exits."""
    write_models(tmp_path / "models", images.models, images.server, ["vae/ae.safetensors"])

    options: dict[str, Any] = {
        "volumes": [f"{tmp_path}:/runpod-volume:ro"],
        "waits_until_ready": False,
        **_with_small_models(images),
    }
    with worker_container(engine, network, WORKER, **options) as worker:
        assert worker.await_end() != 0
        assert not worker.platform.takes
        log = worker.log()
    assert "text_encoders/clip_l.safetensors" in log
    assert "/runpod-volume/models" in log
    assert "vae/ae.safetensors" not in log.split("text_encoders/clip_l.safetensors")[0].rpartition("\n")[2]


def test_models_are_downloaded_at_the_first_boot(
    engine: docker.DockerClient, network: Network, images: BuiltImages, tmp_path: Path
) -> None:
    """With WORKER_FETCH_MODELS=true the first worker downloads the models to a new volume; a second one uses them."""
    name = "comfy-client-test-models"
    options = {"volumes": [f"{name}:/opt/models"], **_with_small_models(images)}
    with ModelServer(gateway_address(network)) as server:
        serve_models(tmp_path, server)
        environment = {"WORKER_FETCH_MODELS": "true", "HF_ENDPOINT": server.url}
        try:
            for _ in range(2):
                with worker_container(engine, network, WORKER, environment=environment, **options) as worker:
                    assert code_of(worker.run()) is None
        finally:
            engine.volumes.get(name).remove()
        assert len(server.received) == len((tmp_path / "models.txt").read_text().splitlines())


def test_an_unreadable_volume_is_reported(
    engine: docker.DockerClient, network: Network, images: BuiltImages, tmp_path: Path
) -> None:
    """If only another user can read the volume, the log says that it cannot be read."""
    write_models(tmp_path / "models", images.models, images.server)
    tmp_path.chmod(0o700)

    with worker_container(
        engine, network, WORKER, volumes=[f"{tmp_path}:/runpod-volume:ro"], waits_until_ready=False
    ) as worker:
        assert worker.await_end() != 0
        assert "/runpod-volume/models (cannot be read by this user)" in worker.log()


def _with_small_models(images: BuiltImages) -> dict[str, Any]:
    """Return the option that mounts the substitutes' models.txt over the image's.

    The container then expects the sizes of the substitutes.
    """
    return {
        "mounts": [docker.types.Mount("/app/models.txt", str(images.models / "models.txt"), "bind", read_only=True)]
    }
