"""A build with custom nodes: the image contains the nodes and their requirements, or the build fails."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import docker
import pytest
from docker.models.networks import Network

from bench.container import worker_container
from bench.docker_engine import BuildFailedError
from bench.worker_setup import code_of
from tests.image.conftest import FAILED_BUILD, WORKER, BuiltImages
from tests.image.substitutes import comfyui_files, write_models

pytestmark = pytest.mark.slow
TAG = WORKER + "-nodes"


def write_snapshot(folder: Path, images: BuiltImages, nodes: dict[str, str]) -> dict[str, str]:
    """Write a snapshot.json with ComfyUI's substitute and `nodes` (commits by name); return the build contexts."""
    folder.mkdir()
    pinned = {images.git.url(name): {"hash": commit, "disabled": False} for name, commit in nodes.items()}
    snapshot = {"comfyui": images.worker.args["COMFYUI_REF"], "git_custom_nodes": pinned}
    (folder / "snapshot.json").write_text(json.dumps(snapshot))
    return {"snapshot": str(folder)}


def test_nodes_are_built_in_and_loaded(
    engine: docker.DockerClient, network: Network, images: BuiltImages, tmp_path: Path
) -> None:
    """Two custom nodes are in ComfyUI's folder, the requirement of one is installed, and a job succeeds without pip."""
    node = {"__init__.py": "NODE_CLASS_MAPPINGS = {}\n"}
    commits = {
        "node-with": images.git.put("node-with", {**node, "requirements.txt": "iniconfig\n"}, node)[0],
        "node-without": images.git.put("node-without", node)[0],
    }
    replace(images.worker, contexts=write_snapshot(tmp_path / "snapshot", images, commits)).run(TAG)
    write_models(tmp_path / "models", images.models, images.server)

    with worker_container(engine, network, TAG, volumes=[f"{tmp_path}:/runpod-volume:ro"]) as worker:
        assert code_of(worker.run()) is None
        found = worker.output_of("find", "/opt/comfyui/custom_nodes", "-name", "__init__.py").split()
        requirement_file = worker.output_of("python", "-c", "import iniconfig; print(iniconfig.__file__)")
        pip = worker.container.exec_run(["python", "-m", "pip", "--version"])
    engine.images.remove(TAG, force=True)
    assert sorted(found) == [f"/opt/comfyui/custom_nodes/{name}/__init__.py" for name in commits]
    assert requirement_file.startswith("/opt/venv/")
    assert pip.exit_code != 0


def test_packages_that_comfyui_lacks_fail_the_build(images: BuiltImages) -> None:
    """If ComfyUI requires a package or a version that the image does not have, the build fails and names each."""
    requirements = "aiohttp>=99\nno-such-package==1.0\ncomfyui-frontend-package==1.48.7\n"
    [commit] = images.git.put("newer-comfyui", {**comfyui_files(), "requirements.txt": requirements})
    args = {**images.worker.args, "COMFYUI_REPO": images.git.url("newer-comfyui"), "COMFYUI_REF": commit}

    with pytest.raises(BuildFailedError) as info:
        replace(images.worker, args=args).run(FAILED_BUILD)

    log = str(info.value)
    assert re.search(r"- aiohttp>=99: aiohttp [\d.]+ is installed", log)
    assert "- no-such-package==1.0: no-such-package is not installed" in log
    assert "comfyui-frontend-package is not" not in log
    assert "scripts/lock" in log


@pytest.mark.parametrize(("name", "commit"), [("no-such-node", "1" * 40), ("comfyui", "1" * 40)])
def test_a_missing_repository_or_commit_fails_the_build(
    images: BuiltImages, tmp_path: Path, name: str, commit: str
) -> None:
    """If a repository or a commit does not exist, the build fails and its error names the repository."""
    contexts = write_snapshot(tmp_path / "snapshot", images, {name: commit})

    with pytest.raises(BuildFailedError, match=name):
        replace(images.worker, contexts=contexts).run(FAILED_BUILD)
