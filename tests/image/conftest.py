"""Fixtures: images built from small substitutes, and a network from which only the simulated RunPod can be reached.

The images are built once per session.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import docker
import pytest
from docker.models.networks import Network

from bench.docker_engine import Build, connect, ensure_base_image
from simulators.hugging_face import ModelServer
from tests.fakes.git_server import GitServer
from tests.image.substitutes import comfyui_files, serve_models
from tests.needs import skip_visibly

TOKEN = "hf_a_token_that_nobody_may_find"  # noqa: S105 - not a real secret
WORKER = "comfy-client/worker:test"
WITH_WEIGHTS = "comfy-client/worker:test-flux1-dev-fp8"
FAILED_BUILD = "comfy-client/failed-build"
"""The tag of the builds that tests expect to fail, so no image has this tag."""
SIMULATOR = "comfy-client/worker:test-simulator"


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
def network(engine: docker.DockerClient) -> Iterator[Network]:
    """A network without internet access.

    The simulated RunPod listens on the address that the host has in this network.
    """
    made = engine.networks.create("comfy-client-test", internal=True)
    made.reload()
    yield made
    made.remove()
