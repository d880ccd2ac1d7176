"""Contents of the images: required files, and files that must not be in them."""

from __future__ import annotations

import json
import mmap
import shutil
import stat
import subprocess
import sysconfig
import tarfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

import docker
import pytest

from bench.docker_engine import BASE_IMAGE, BuildFailedError
from bench.worker_setup import ROOT
from tests.image.conftest import FAILED_BUILD, SIMULATOR, TOKEN, WITH_WEIGHTS, WORKER, BuiltImages

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("images")]

MIB = 1024 * 1024
ALLOWED_EXTRA_BYTES = 100 * MIB
COMFYUI_REQUIREMENTS = ("aiohttp", "numpy", "pillow", "rich")
"""Requirements of the substitute for ComfyUI, and rich, which a real ComfyUI requires through transformers."""


ArchiveOf: TypeAlias = Callable[[str], Path]
"""Maps the name of an image to its archive, as `docker save` writes it."""


@pytest.fixture(scope="module")
def archive_of(engine: docker.DockerClient, tmp_path_factory: pytest.TempPathFactory) -> ArchiveOf:
    """Return a function that saves an image as an archive, once for all tests."""
    folder = tmp_path_factory.mktemp("archives")

    def saved_archive(name: str) -> Path:
        image = engine.images.get(name)
        archive = folder / f"{str(image.id).partition(':')[2]}.tar"
        if not archive.exists():
            with archive.open("wb") as file:
                file.writelines(image.save())
        return archive

    return saved_archive


def layers_of(archive: Path) -> Iterator[tarfile.TarFile]:
    """Yield the layers of an image, from the base upwards."""
    with tarfile.open(archive) as outer:
        manifest = outer.extractfile("manifest.json")
        assert manifest is not None
        for name in json.load(manifest)[0]["Layers"]:
            with tarfile.open(fileobj=outer.extractfile(name)) as layer:
                yield layer


def weights_layers(engine: docker.DockerClient, archive_of: ArchiveOf, image: str) -> list[str]:
    """Return the hashes of the layers that contain a model."""
    hashes = engine.images.get(image).attrs["RootFS"]["Layers"]
    names = [layer.getnames() for layer in layers_of(archive_of(image))]
    return [
        each for each, files in zip(hashes, names, strict=True) if any(name.endswith(".safetensors") for name in files)
    ]


@pytest.mark.parametrize("image", [WORKER, WITH_WEIGHTS])
def test_structure(image: str) -> None:
    """container-structure-test finds the metadata and files listed in structure.yaml."""
    tool = Path(sysconfig.get_path("scripts")) / "container-structure-test"
    done = subprocess.run(
        [str(tool), "test", "--image", image, "--config", str(ROOT / "tests" / "image" / "structure.yaml")],
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("image", [WORKER, WITH_WEIGHTS, SIMULATOR])
def test_health_check_and_stop_signal(engine: docker.DockerClient, image: str) -> None:
    """The image's health check runs worker.health, and its stop signal is SIGTERM."""
    config = engine.images.get(image).attrs["Config"]

    assert config["Healthcheck"]["Test"] == ["CMD", "/opt/venv/bin/python", "-m", "worker.health"]
    assert config["StopSignal"] == "SIGTERM"


@pytest.mark.parametrize("image", [WORKER, WITH_WEIGHTS, SIMULATOR])
def test_no_file_is_world_writable(archive_of: ArchiveOf, image: str) -> None:
    """No file or folder of a layer is world-writable except sticky folders such as /tmp."""
    found = [
        member.name
        for layer in layers_of(archive_of(image))
        for member in layer
        if (member.isfile() or member.isdir()) and member.mode & (stat.S_IWOTH | stat.S_ISVTX) == stat.S_IWOTH
    ]

    assert found == []


@pytest.mark.parametrize("image", [WORKER, WITH_WEIGHTS, SIMULATOR])
def test_no_file_has_a_setuid_or_setgid_bit(engine: docker.DockerClient, image: str) -> None:
    """No program of the image runs with the rights of its owner or group instead of its caller's."""
    search = ["/", "-xdev", "-type", "f", "-perm", "/6000"]
    found = engine.containers.run(image, search, entrypoint="/usr/bin/find", user="root", remove=True)

    assert found == b""


@pytest.mark.parametrize("image", [WORKER, WITH_WEIGHTS])
def test_no_repository_or_cache_is_left(archive_of: ArchiveOf, image: str) -> None:
    """No layer contains .git, a cache of root, apt or pytest, or a partial download."""
    forbidden = (".git/", "/root/.cache", "var/lib/apt/lists/", "/.pytest_cache", ".part")
    found = [
        member.name
        for layer in layers_of(archive_of(image))
        for member in layer
        if member.size and any(word in f"/{member.name}" for word in forbidden)
    ]

    assert found == []


def test_the_token_is_not_in_the_image(engine: docker.DockerClient, archive_of: ArchiveOf, images: BuiltImages) -> None:
    """The token that gave access to the models is in no layer, history, configuration or log."""
    assert {request.token for request in images.server.received} == {TOKEN}

    with (
        archive_of(WITH_WEIGHTS).open("rb") as archive,
        mmap.mmap(archive.fileno(), 0, access=mmap.ACCESS_READ) as whole,
    ):
        assert whole.find(TOKEN.encode()) == -1
    for layer in layers_of(archive_of(WITH_WEIGHTS)):
        for member in layer:
            file = layer.extractfile(member) if member.isfile() else None
            assert file is None or TOKEN.encode() not in file.read(), member.name
    assert TOKEN not in json.dumps(engine.images.get(WITH_WEIGHTS).history())
    assert all(TOKEN not in log for log in images.logs.values())


def test_models_have_their_own_layers_and_notices(
    engine: docker.DockerClient, archive_of: ArchiveOf, images: BuiltImages
) -> None:
    """Each file of models.txt is in a layer without other models.

    The licence is a file in the image, and the image's description names it.
    """
    baked = [
        [member.name for member in layer if member.isfile() and member.name.startswith("opt/models/")]
        for layer in layers_of(archive_of(WITH_WEIGHTS))
    ]
    names = [line.split()[2] for line in (images.models / "models.txt").read_text().splitlines()]

    assert sorted(files[0] for files in baked if len(files) == 2 and files[1] == f"{files[0]}.verified") == sorted(
        f"opt/models/{name}" for name in names
    )
    assert "opt/models/licences/LICENSE-FLUX1-dev" in {name for files in baked for name in files}
    label = engine.images.get(WITH_WEIGHTS).labels["org.opencontainers.image.description"]
    assert "FLUX.1 [dev] Non-Commercial License" in label


def test_rebuilt_weights_have_the_same_layers(
    engine: docker.DockerClient, archive_of: ArchiveOf, images: BuiltImages
) -> None:
    """If the models are downloaded again, their layers have the same hashes and need no new push or pull."""
    tag = WITH_WEIGHTS + "-again"
    images.worker_with_weights.run(tag, "--no-cache-filter=weights")

    layers = [weights_layers(engine, archive_of, each) for each in (WITH_WEIGHTS, tag)]
    engine.images.remove(tag, force=True)
    assert len(layers[0]) == len((images.models / "models.txt").read_text().splitlines())
    assert layers[0] == layers[1]


def test_new_code_downloads_no_weights(engine: docker.DockerClient, images: BuiltImages, tmp_path: Path) -> None:
    """A change of the handler changes one layer only, and no model is requested again."""
    before, after = WITH_WEIGHTS + "-before", WITH_WEIGHTS + "-after"
    images.worker_with_weights.run(before)
    requests_before = len(images.server.received)
    ignored = shutil.ignore_patterns(".venv", ".git", "__pycache__", ".*_cache", "debug-output", "tests")
    shutil.copytree(ROOT, tmp_path / "changed", ignore=ignored)
    (tmp_path / "changed" / "handler.py").write_text("print('changed')\n")

    images.worker_with_weights.run(after, context=tmp_path / "changed")

    layers = [engine.images.get(each).attrs["RootFS"]["Layers"] for each in (before, after)]
    for each in (before, after):
        engine.images.remove(each, force=True)
    assert len(images.server.received) == requests_before
    assert [one == other for one, other in zip(*layers, strict=True)].count(False) == 1


def test_the_worker_adds_at_most_100_mb(engine: docker.DockerClient, capsys: pytest.CaptureFixture[str]) -> None:
    """Without the base image, the packages of apt and ComfyUI's dependencies, the image has at most 100 MiB."""
    image = engine.images.get(WORKER)
    sizes = {layer["CreatedBy"].removeprefix("/bin/sh -c ")[:90]: layer["Size"] for layer in image.history()}
    comfyui_bytes = _comfyui_bytes(engine)
    with capsys.disabled():
        lines = [
            f"{image.attrs['Size'] / MIB:9.1f} MiB  {WORKER}, ComfyUI's own packages {comfyui_bytes / MIB:.1f} of it"
        ]
        lines += [f"{size / MIB:9.1f} MiB  {name}" for name, size in sizes.items() if size]
        print("", *lines, sep="\n")  # noqa: T201 - shown in the output of each run

    base = engine.images.get(BASE_IMAGE).attrs["Size"]
    runtime = next(size for name, size in sizes.items() if "apt-get install" in name)
    assert image.attrs["Size"] - base - runtime - comfyui_bytes <= ALLOWED_EXTRA_BYTES


def _comfyui_bytes(engine: docker.DockerClient) -> int:
    """Return the size of ComfyUI's dependencies in the image."""
    script = (ROOT / "tests" / "image" / "package_sizes.py").read_text()
    command = ["-c", script, *COMFYUI_REQUIREMENTS]
    return int(engine.containers.run(WORKER, command, entrypoint="/opt/venv/bin/python", remove=True))


def test_a_wrong_model_fails_the_build(images: BuiltImages, tmp_path: Path) -> None:
    """A model whose hash differs from the list fails the build, which prints the file and the expected hash."""
    lines: Mapping[str, list[str]] = {
        line.split()[2]: line.split() for line in (images.models / "models.txt").read_text().splitlines()
    }
    lines["vae/ae.safetensors"][0] = "0" * 64
    (tmp_path / "models.txt").write_text("\n".join(" ".join(fields) for fields in lines.values()) + "\n")

    with pytest.raises(BuildFailedError) as info:
        replace(
            images.worker_with_weights, contexts={**images.worker_with_weights.contexts, "model-list": str(tmp_path)}
        ).run(FAILED_BUILD)

    log = str(info.value)
    assert "vae/ae.safetensors" in log
    assert "0" * 64 in log
    assert TOKEN not in log
