"""The scripts that build, load and push an image: what is pushed is what was tested, even if a tag moves in between.

They run on a small Dockerfile, with a Docker engine of their own and Debian's registry server.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from bench.worker_setup import ROOT
from scripts.release.metadata import image_manifest
from simulators.http_server import free_port
from simulators.waiting import until
from tests.needs import require_programs

pytestmark = pytest.mark.slow
COMMIT = "0123456789abcdef0123456789abcdef01234567"
START_TIMEOUT_S = 60
BRIDGE = f"test{os.getpid()}"
"""A network interface for the engine of this module. Without one, dockerd uses or deletes that of the other engine."""
AS_ROOT = () if os.geteuid() == 0 else ("sudo",)
DOCKERFILE = """\
ARG BASE_IMAGE={base}
FROM ${{BASE_IMAGE}} AS worker
COPY pyproject.toml /
ARG VERSION REVISION UPDATED
"""


@dataclass(frozen=True)
class Checkout:
    """A copy of the scripts with DOCKERFILE, and the environment that selects the engine and the registry.

    Attributes:
        folder: the copy.
        registry: host and port of the registry.
        environment: variables of each command.
    """

    folder: Path
    registry: str
    environment: Mapping[str, str]

    def run(self, *command: str, **variables: str) -> str:
        """Run a command in the folder, with `variables` added to the environment; return its output."""
        ended = subprocess.run(
            command,
            cwd=self.folder,
            env={**self.environment, **variables},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert ended.returncode == 0, ended.stdout + ended.stderr
        return ended.stdout.strip()

    def move_base(self, content: str) -> None:
        """Push an image with one file, named `content`, as the base image's tag."""
        folder = self.folder / f"base-{content}"
        folder.mkdir()
        (folder / content).touch()
        archive = shutil.make_archive(str(folder), "tar", folder)
        self.run("docker", "import", archive, f"{self.registry}/base:bookworm")
        self.run("docker", "push", "--quiet", f"{self.registry}/base:bookworm")

    def digest_of(self, name: str) -> str:
        """Return the digest that a name has in the registry."""
        found = self.run("docker", "buildx", "imagetools", "inspect", name, "--format", "{{json .Manifest}}")
        return str(json.loads(found)["digest"])


def as_root(*command: str) -> None:
    """Run a command as root; raise CalledProcessError if it fails."""
    subprocess.run([*AS_ROOT, *command], check=True)


@contextmanager
def process(*command: str, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process, with its output in `log`; end it afterwards."""
    with log.open("wb") as file, subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT) as started:
        try:
            yield started
        finally:
            as_root("kill", str(started.pid))


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[str]:
    """Host and port of a running registry without any image."""
    require_programs("docker-registry")
    port = free_port()
    config = {
        "version": "0.1",
        "storage": {"filesystem": {"rootdirectory": str(tmp_path / "registry")}},
        "http": {"addr": f"127.0.0.1:{port}"},
    }
    (tmp_path / "registry.json").write_text(json.dumps(config))  # YAML includes JSON

    def accepts() -> bool:
        with socket.socket() as client:
            return client.connect_ex(("127.0.0.1", port)) == 0

    log = tmp_path / "registry.log"
    with process("docker-registry", "serve", str(tmp_path / "registry.json"), log=log):
        assert until(accepts, START_TIMEOUT_S), log.read_text()
        yield f"127.0.0.1:{port}"


@pytest.fixture
def oci_engine() -> Iterator[str]:
    """The address of a Docker engine with containerd's image store, which can write OCI layouts with attestations."""
    require_programs("docker", "dockerd", "ip", "jq", "skopeo")
    folder = Path(tempfile.mkdtemp(prefix="engine-"))  # tmp_path is too long for a socket
    config = {
        "features": {"containerd-snapshotter": True},
        "hosts": [f"unix://{folder}/socket"],
        "group": str(os.getgid()),
        "data-root": f"{folder}/data",
        "exec-root": f"{folder}/exec",
        "pidfile": f"{folder}/pid",
        "bridge": BRIDGE,
        "iptables": False,
        "ip6tables": False,
    }
    (folder / "daemon.json").write_text(json.dumps(config))

    def responds() -> bool:
        version = ["docker", "--host", f"unix://{folder}/socket", "version"]
        return subprocess.run(version, capture_output=True, check=False).returncode == 0

    log = folder / "log"
    as_root("ip", "link", "add", BRIDGE, "type", "bridge")
    as_root("ip", "address", "add", "192.0.2.1/24", "dev", BRIDGE)
    try:
        with process(*AS_ROOT, "dockerd", f"--config-file={folder}/daemon.json", log=log):
            assert until(responds, START_TIMEOUT_S), log.read_text()
            yield f"unix://{folder}/socket"
    finally:
        as_root("ip", "link", "delete", BRIDGE)
        as_root("rm", "-rf", str(folder))


@pytest.fixture
def checkout(registry: str, oci_engine: str, tmp_path: Path) -> Checkout:
    """A copy of the scripts, whose builds start from the image `base:bookworm` of the registry."""
    folder = tmp_path / "checkout"
    shutil.copytree(ROOT / "scripts", folder / "scripts", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "docker-bake.hcl"):
        shutil.copy(ROOT / name, folder)
    (folder / "Dockerfile").write_text(DOCKERFILE.format(base=f"{registry}/base:bookworm"))
    settings = tmp_path / ".config" / "containers"
    settings.mkdir(parents=True)
    (settings / "registries.conf").write_text(f'[[registry]]\nlocation = "{registry}"\ninsecure = true\n')
    variables = {"HOME": str(tmp_path), "DOCKER_HOST": oci_engine, "GITHUB_SHA": COMMIT, "REVISION": COMMIT}
    # The generator of the SBOM is an image at Docker Hub.
    return Checkout(folder, registry, {"PATH": os.environ["PATH"], "SBOM": "false", **variables})


def test_a_tag_that_moves_does_not_change_what_is_pushed(checkout: Checkout) -> None:
    """The image in the engine and the pushed image have the same layers, from the base that was resolved first.

    The base image's tag moves before the build and again before the push. The pushed index is the one that the build
    wrote, so it also has the provenance.
    """
    checkout.move_base("first")
    base = checkout.run("scripts/release/base_digest")

    checkout.move_base("second")
    checkout.run("scripts/release/candidate_image", "worker", BASE_IMAGE=base)
    checkout.run("scripts/release/load_candidate", "worker")
    checkout.move_base("third")
    [name] = checkout.run("scripts/release/publish_image", "worker", f"{checkout.registry}/x").split()

    layout = checkout.folder / "candidates" / "worker"
    config = json.loads((layout / "blobs" / image_manifest(layout)["config"]["digest"].replace(":", "/")).read_text())
    [tested] = json.loads(checkout.run("docker", "image", "inspect", "candidate:worker"))
    [index] = json.loads((layout / "index.json").read_text())["manifests"]
    provenance = checkout.run("docker", "buildx", "imagetools", "inspect", name, "--format", "{{json .Provenance}}")
    assert tested["RootFS"]["Layers"] == config["rootfs"]["diff_ids"]
    assert checkout.digest_of(name) == index["digest"]
    assert base.partition("@sha256:")[2] in provenance
    assert checkout.digest_of(f"{checkout.registry}/base:bookworm") not in provenance
