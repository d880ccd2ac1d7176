"""A build with custom nodes: all nodes at their commits with their requirements, or the build fails."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import docker
import pytest
from docker.models.networks import Network

from bench.container import worker_container
from bench.docker_engine import BuildFailedError
from bench.worker_setup import code_of
from tests.image.conftest import FAILED_BUILD, WORKER, BuiltImages
from tests.image.substitutes import fill

pytestmark = pytest.mark.slow
TAG = WORKER + "-nodes"


def write_snapshot(folder: Path, images: BuiltImages, nodes: dict[str, str]) -> dict[str, str]:
    """Write a snapshot.json with the small ComfyUI and `nodes` (commits by repository); return the build contexts."""
    folder.mkdir()
    pinned = {images.git.url(name): {"hash": commit, "disabled": False} for name, commit in nodes.items()}
    snapshot = {"comfyui": images.worker.args["COMFYUI_REF"], "git_custom_nodes": pinned}
    (folder / "snapshot.json").write_text(json.dumps(snapshot))
    return {"snapshot": str(folder)}


def test_nodes_are_built_in_and_loaded(
    engine: docker.DockerClient, network: Network, images: BuiltImages, tmp_path: Path
) -> None:
    """Two nodes, one with a requirement: both are in ComfyUI's folder, pip is removed again, and a job works."""
    node = {"__init__.py": "NODE_CLASS_MAPPINGS = {}\n"}
    commits = {
        "node-with": images.git.put("node-with", {**node, "requirements.txt": "iniconfig\n"}, node)[0],
        "node-without": images.git.put("node-without", node)[0],
    }
    replace(images.worker, contexts=write_snapshot(tmp_path / "snapshot", images, commits)).run(TAG)
    fill(tmp_path / "models", images.models, images.server)

    with worker_container(engine, network, TAG, volumes=[f"{tmp_path}:/runpod-volume:ro"]) as box:
        assert code_of(box.run()) is None
        found = box.output_of("find", "/opt/comfyui/custom_nodes", "-name", "__init__.py").split()
        where = box.output_of("python", "-c", "import iniconfig; print(iniconfig.__file__)")
        pip = box.container.exec_run(["python", "-m", "pip", "--version"])
    engine.images.remove(TAG, force=True)
    assert sorted(found) == [f"/opt/comfyui/custom_nodes/{name}/__init__.py" for name in commits]
    assert where.startswith("/opt/venv/")
    assert pip.exit_code != 0


@pytest.mark.parametrize(("name", "commit"), [("no-such-node", "1" * 40), ("comfyui", "1" * 40)])
def test_a_missing_repository_or_commit_fails_the_build(
    images: BuiltImages, tmp_path: Path, name: str, commit: str
) -> None:
    """A repository or commit that does not exist ends the build and is named."""
    contexts = write_snapshot(tmp_path / "snapshot", images, {name: commit})

    with pytest.raises(BuildFailedError, match=name):
        replace(images.worker, contexts=contexts).run(FAILED_BUILD)
