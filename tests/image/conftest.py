"""Fixtures: images built from small substitutes, and a network from which only the simulated RunPod can be reached.

The images are built once per session. With COMFYUI_CHECKOUT, the tests that use `start_worker` run on an image with a
real ComfyUI. The variable is the path of a checkout whose `models` folder has the files of models.txt, which
tools/random_models.py creates. The image is the shipped one for CUDA, and runs on the CPU.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeAlias

import docker
import pytest
from docker.models.networks import Network

from bench.container import WorkerContainer, worker_container
from bench.docker_engine import Build, connect, ensure_base_image
from comfy_core.models.listing import default_list, read_models
from simulators.hugging_face import ModelServer
from tests.fakes.git_server import GitServer
from tests.image.substitutes import checkout_files, comfyui_files, serve_models
from tests.needs import skip_visibly

TOKEN = "hf_a_token_that_nobody_may_find"  # noqa: S105 - not a real secret
WORKER = "comfy-client/worker:test"
WITH_WEIGHTS = "comfy-client/worker:test-flux1-dev-fp8"
FAILED_BUILD = "comfy-client/failed-build"
"""The tag of the builds that tests expect to fail, so no image has this tag."""
SIMULATOR = "comfy-client/worker:test-simulator"
REAL = "comfy-client/worker:test-real"
COMFYUI_CHECKOUT = os.environ.get("COMFYUI_CHECKOUT", "")
REAL_TIMEOUT_S = 300.0
"""Maximum time of the boot and of each job of a real ComfyUI on a loaded machine without a GPU."""

StartWorker: TypeAlias = Callable[[], AbstractContextManager[WorkerContainer]]
"""Starts a container in production mode, and removes it when the context ends."""


@dataclass(frozen=True)
class BuiltImages:
    """The built images and their sources.

    Attributes:
        logs: output of each build, by the image's name.
        worker: the build of the image without weights.
        worker_with_weights: the build of the image with weights.
        models: a folder with the models.txt that lists the substitutes for the models.
        server: simulates Hugging Face and records its requests.
        git: serves the repository of the substitute for ComfyUI.
    """

    logs: dict[str, str]
    worker: Build
    worker_with_weights: Build
    models: Path
    server: ModelServer
    git: GitServer


NOT_TESTED_KEY = pytest.StashKey[str]()
"""The key of the notice that the images were not tested."""
BUILD_TIMEOUT_S = 1200
"""The timeout of each test, because the first one builds the images and downloads their packages."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Set the timeout of this folder's tests to BUILD_TIMEOUT_S."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.timeout(BUILD_TIMEOUT_S))


@pytest.fixture(scope="session")
def engine(request: pytest.FixtureRequest) -> docker.DockerClient:
    """Return a client of the Docker engine. Without one the tests are skipped with a notice, and in CI they fail."""
    client = connect()
    if client is None:
        missing = "NOT TESTED: no Docker engine responds; start one with ./scripts/engine start"
        request.config.stash[NOT_TESTED_KEY] = missing
        skip_visibly(missing)
    return client


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print a notice at the end if the images were not tested."""
    if missing := config.stash.get(NOT_TESTED_KEY, ""):
        terminalreporter.section("THE IMAGE WAS NOT TESTED", red=True, bold=True)
        terminalreporter.line(missing)


@pytest.fixture(scope="session")
def images(engine: docker.DockerClient, tmp_path_factory: pytest.TempPathFactory) -> Iterator[BuiltImages]:
    """Build the three images of docker-bake.hcl; yield them while their servers run."""
    ensure_base_image(engine)
    folder = tmp_path_factory.mktemp("substitutes")
    (folder / "licences").mkdir()
    (folder / "licences" / "LICENSE-FLUX1-dev").write_text("stands for the licence\n")
    with ModelServer() as server, GitServer(folder / "git") as git:
        serve_models(folder / "models", server)
        [commit] = git.put("comfyui", comfyui_files())
        light = {"TORCH": "none", "REQUIREMENTS": "simulator"}
        source = {**light, "COMFYUI_REPO": git.url("comfyui"), "COMFYUI_REF": commit}
        worker = Build("worker", source)
        worker_with_weights = Build(
            "worker-flux1-dev-fp8",
            {**source, "HF_ENDPOINT": server.url},
            {"model-list": str(folder / "models"), "licences": str(folder / "licences")},
            {"HF_TOKEN": TOKEN},
        )
        logs = {
            WORKER: worker.run(WORKER),
            WITH_WEIGHTS: worker_with_weights.run(WITH_WEIGHTS),
            SIMULATOR: Build("simulator").run(SIMULATOR),
        }
        yield BuiltImages(logs, worker, worker_with_weights, folder / "models", server, git)


@pytest.fixture(scope="session")
def start_worker(request: pytest.FixtureRequest, engine: docker.DockerClient, network: Network) -> StartWorker:
    """Return a function that starts the image with a real ComfyUI if COMFYUI_CHECKOUT is set, else the substitute's."""
    if not COMFYUI_CHECKOUT:
        request.getfixturevalue("images")
        return partial(worker_container, engine, network, WITH_WEIGHTS)
    models = request.getfixturevalue("real_image") / "models"
    return partial(
        worker_container,
        engine,
        network,
        REAL,
        environment={"COMFYUI_ARGS": "--cpu", "WORKER_SHUTDOWN_GRACE_S": "120"},  # a step on a CPU takes up to a second
        timeout_s=REAL_TIMEOUT_S,
        volumes=[f"{models}:/runpod-volume/models:ro"],
    )


@pytest.fixture(scope="session")
def real_image(engine: docker.DockerClient, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the image of the target `worker` with the ComfyUI of COMFYUI_CHECKOUT; return the path of the checkout."""
    checkout = Path(COMFYUI_CHECKOUT).resolve()
    needed = ["main.py", "requirements.txt", *(f"models/{model.path}" for model in read_models(default_list()))]
    if missing := [name for name in needed if not (checkout / name).exists()]:
        pytest.fail(f"COMFYUI_CHECKOUT: {checkout} has no {', '.join(missing)}. See tools/README.md")
    ensure_base_image(engine)
    with GitServer(tmp_path_factory.mktemp("checkout")) as git:
        [commit] = git.put("comfyui", checkout_files(checkout))
        Build("worker", {"COMFYUI_REPO": git.url("comfyui"), "COMFYUI_REF": commit}).run(REAL)
    return checkout


@pytest.fixture(scope="session")
def network(engine: docker.DockerClient) -> Iterator[Network]:
    """A network without internet access.

    The simulated RunPod listens on the address that the host has in this network.
    """
    made = engine.networks.create("comfy-client-test", internal=True)
    made.reload()
    yield made
    made.remove()
