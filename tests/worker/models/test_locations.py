"""Where models are found, linked and downloaded: search order, sizes, layouts, and ComfyUI's configuration."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.worker_setup import ROOT
from comfy_core.models.folders import FOLDERS
from worker import nodes
from worker.models.locations import (
    LocatedModels,
    ModelLocations,
    download_directory,
    is_on_volume,
    link,
    locate,
    missing_message,
    model_locations,
    paths_config,
)

pytestmark = pytest.mark.slow
UNET = "diffusion_models/flux1-dev-fp8.safetensors"
VAE = "vae/ae.safetensors"
SIZES = {UNET: 119, VAE: 3}
HUB = "volume/huggingface-cache/hub/models--org--flux"

PutFile = Callable[..., Path]


@pytest.fixture
def put(tmp_path: Path) -> PutFile:
    """Return a function that creates a file of `size` bytes in the test's folder, and returns its path."""

    def make(path: str, size: int = 119) -> Path:
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(bytes(size))
        return file

    return make


def locations_in(base: Path, revision: str = "") -> ModelLocations:
    """Return the model locations of a worker whose folders are all in `base`."""
    return model_locations(
        comfyui=base / "comfyui",
        data=base / "data",
        models=base / "baked",
        volume=base / "volume",
        cache=base / "runpod",
        revision=revision,
    )


def locate_one_model(base: Path, model: str = UNET, revision: str = "") -> LocatedModels:
    """Return where `locate` finds one model, or that it is missing."""
    return locate([model], SIZES, locations_in(base, revision))


@pytest.mark.parametrize(
    "path",
    [
        f"comfyui/models/{UNET}",
        "comfyui/models/unet/flux1-dev-fp8.safetensors",
        f"baked/{UNET}",
        f"volume/models/{UNET}",
        f"volume/ComfyUI/models/{UNET}",
        f"volume/comfyui/models/{UNET}",
        "volume/models/unet/flux1-dev-fp8.safetensors",
    ],
)
def test_a_file_in_comfyui_s_folders_needs_no_link(tmp_path: Path, put: PutFile, path: str) -> None:
    """A file in any root with ComfyUI's folders, even under a folder's older name, is found without a link."""
    file = put(path)
    located = locate_one_model(tmp_path)

    assert located.files == {UNET: file}
    assert (located.links, located.missing, located.remarks) == ({}, (), ())


@pytest.mark.parametrize(
    "path",
    [
        f"{HUB}/snapshots/abc/flux1-dev-fp8.safetensors",
        f"{HUB}/snapshots/abc/split_files/{UNET}",
        "runpod/model-store/huggingface/org/flux/abc/flux1-dev-fp8.safetensors",
        "runpod/model-store/huggingface/org/flux/pin/snapshots/abc/unet/flux1-dev-fp8.safetensors",
        "runpod/cache/org/flux/main/flux1-dev-fp8.safetensors",
    ],
)
def test_a_file_in_runpod_s_cache_is_found_by_name_and_linked(tmp_path: Path, put: PutFile, path: str) -> None:
    """A file in any layout of cached models is found by name and linked; the next search finds the link."""
    file = put(path)
    where = locations_in(tmp_path)
    located = locate([UNET], SIZES, where)

    assert located.links == {UNET: file}
    assert link(located, where) == []
    assert (tmp_path / "data/models" / UNET).resolve() == file
    assert is_on_volume(located, where) == path.startswith("volume/")
    again = locate_one_model(tmp_path)
    assert again.links == {}
    assert again.files == {UNET: tmp_path / "data/models" / UNET}


def test_a_baked_file_comes_before_the_volume_s_and_the_cache_s(tmp_path: Path, put: PutFile) -> None:
    """Of three locations the baked file is used, which starts fastest and is not on the volume."""
    put(f"{HUB}/snapshots/abc/flux1-dev-fp8.safetensors")
    put(f"volume/models/{UNET}")
    baked = put(f"baked/{UNET}")
    located = locate_one_model(tmp_path)

    assert located.files == {UNET: baked}
    assert not is_on_volume(located, locations_in(tmp_path))


def test_a_file_of_another_size_is_skipped(tmp_path: Path, put: PutFile) -> None:
    """Of two files with a model's name, the one with the listed size is linked, whatever their order."""
    put(f"volume/models/{UNET}", 172)
    right = put(f"{HUB}/snapshots/abc/flux1-dev-fp8.safetensors")
    located = locate_one_model(tmp_path)

    assert located.links == {UNET: right}
    assert located.wrong == ()


def test_a_file_of_another_size_is_used_with_a_warning_if_it_is_the_only_one(tmp_path: Path, put: PutFile) -> None:
    """The only file of a model's name is used, though it has another size; the remark has both sizes."""
    wrong = put(f"volume/models/{UNET}", 172)
    located = locate_one_model(tmp_path)

    assert located.files == {UNET: wrong}
    assert located.wrong == (UNET,)
    assert located.remarks == (f"{wrong} has 172 bytes, but {UNET} in models.txt has 119: it is a different file",)


def test_a_model_that_is_not_in_models_txt_is_found_by_name(tmp_path: Path, put: PutFile) -> None:
    """A model without a listed size is found by name; in a cached repository the file in a matching folder is used."""
    put(f"{HUB}/snapshots/abc/a/own.safetensors", 1)
    matching = put(f"{HUB}/snapshots/abc/loras/own.safetensors", 2)

    assert locate(["loras/own.safetensors"], SIZES, locations_in(tmp_path)).files == {"loras/own.safetensors": matching}


@pytest.mark.parametrize(("revision", "selected"), [("", "of-main"), ("named", "named"), ("unknown", "of-main")])
def test_the_wanted_or_main_revision_is_selected(tmp_path: Path, put: PutFile, revision: str, selected: str) -> None:
    """The requested revision is used if it exists, otherwise the one of the main branch."""
    for number, name in enumerate(("old", "of-main", "named", "new")):
        file = put(f"{HUB}/snapshots/{name}/flux1-dev-fp8.safetensors")
        os.utime(file.parent, (number, number))
    put(f"{HUB}/refs/main").write_text("of-main\n")

    assert locate_one_model(tmp_path, revision=revision).files[UNET].parent.name == selected


def test_without_a_main_branch_the_newest_revision_is_selected(tmp_path: Path, put: PutFile) -> None:
    """In a cache without refs, the newest revision is selected."""
    for number, name in enumerate(("b-old", "c-new", "a-oldest")):
        file = put(f"{HUB}/snapshots/{name}/flux1-dev-fp8.safetensors")
        os.utime(file.parent, (number % 2, number % 2))

    assert locate_one_model(tmp_path).files[UNET].parent.name == "c-new"


@pytest.mark.parametrize("kind", ["part", "dangling", "circle", "folder", "nothing"])
def test_a_path_that_is_not_a_complete_file_is_missing(tmp_path: Path, put: PutFile, kind: str) -> None:
    """A partial file, a dangling link, a link to itself, a folder or nothing is not the model."""
    place = put(f"baked/{UNET}.part").with_suffix("")
    if kind == "dangling":
        place.symlink_to(tmp_path / "blobs" / "gone")
    elif kind == "circle":
        place.symlink_to(place)
    elif kind == "folder":
        place.mkdir()
    located = locate_one_model(tmp_path)

    assert located.missing == (UNET,)
    assert located.files == {}


def test_missing_models_are_reported_with_the_searched_locations(tmp_path: Path) -> None:
    """The error has the models, and each searched location with the remark that it does not exist."""
    where = locations_in(tmp_path)
    message = missing_message([UNET, VAE], where)

    assert message.startswith(f"Models not found: {UNET}, {VAE}.")
    for place in ("data/models", "comfyui/models", "baked", "volume/ComfyUI/models", "runpod/model-store/huggingface"):
        assert f"{tmp_path / place} (does not exist)" in message


def test_a_link_to_another_target_is_replaced(tmp_path: Path, put: PutFile) -> None:
    """A link of an earlier boot is replaced by one to the file that was found now."""
    place = tmp_path / "data/models" / UNET
    place.parent.mkdir(parents=True)
    place.symlink_to(tmp_path / "gone")
    file = put("runpod/cache/org/flux/main/flux1-dev-fp8.safetensors")
    link(locate_one_model(tmp_path), locations_in(tmp_path))

    assert place.resolve() == file
    assert [each.name for each in place.parent.iterdir()] == [place.name]


def test_a_file_at_a_link_s_path_is_kept_and_reported(tmp_path: Path, put: PutFile) -> None:
    """A file at the link's path is not replaced by the link, and the problem is returned."""
    existing = put(f"data/models/{UNET}", 5)
    put("runpod/cache/org/flux/main/flux1-dev-fp8.safetensors")
    [problem] = link(locate_one_model(tmp_path), locations_in(tmp_path))

    assert problem.startswith(f"{existing} blocks a link to")
    assert not existing.is_symlink()


def test_comfyui_gets_the_existing_model_folders(tmp_path: Path, put: PutFile) -> None:
    """The configuration has every model type, with the folders of older names.

    The folder of the links comes first, missing roots are omitted. A volume's custom_nodes are not listed; the
    folder of the worker's own nodes is.
    """
    put("volume/models/ipadapter/a.bin")
    put("volume/models/custom_nodes/evil/__init__.py")
    put("volume/models/clip/b.safetensors")
    config = json.loads(paths_config(locations_in(tmp_path)))
    first, volume, worker_nodes = config.values()

    assert first["is_default"] is True
    assert first["vae"] == str(tmp_path / "data/models/vae")
    assert "is_default" not in volume
    assert volume["text_encoders"] == f"{tmp_path}/volume/models/text_encoders\n{tmp_path}/volume/models/clip"
    assert volume["ipadapter"] == f"{tmp_path}/volume/models/ipadapter"
    assert volume.keys() == {*FOLDERS, "ipadapter"}
    assert worker_nodes == {"custom_nodes": str(nodes.DIRECTORY)}


def test_downloads_go_to_the_volume(tmp_path: Path) -> None:
    """Downloads go to a volume if there is one, in the layout that it has, otherwise to WORKER_MODELS_DIR."""
    models, volume = tmp_path / "baked", tmp_path / "volume"

    assert download_directory(models, volume) == models
    volume.mkdir()
    assert download_directory(models, volume) == volume / "models"
    (volume / "models").rmdir()
    (volume / "ComfyUI/models").mkdir(parents=True)
    assert download_directory(models, volume) == volume / "ComfyUI/models"


def test_a_volume_that_cannot_be_written_is_skipped(tmp_path: Path) -> None:
    """A volume whose folder cannot be created is skipped. If no folder can be created, the result is None."""
    (tmp_path / "volume").mkdir()
    (tmp_path / "volume/models").write_text("")

    assert download_directory(tmp_path / "baked", tmp_path / "volume") == tmp_path / "baked"
    assert download_directory(tmp_path / "volume/models", tmp_path / "volume") is None


UNPRIVILEGED_SCRIPT = """\
import os, sys
from pathlib import Path
sys.path.insert(0, {root!r})
from tests.worker.models.test_locations import UNET, locate_one_model, locations_in, missing_message
if os.geteuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
base = Path({base!r})
located = locate_one_model(base)
print(located.missing, *located.remarks)
print(missing_message([UNET], locations_in(base)))
"""


def test_unreadable_models_and_folders_are_reported() -> None:
    """A model that this user cannot read is missing with a remark, and an unreadable root is reported as unreadable."""
    with tempfile.TemporaryDirectory() as name:
        base = Path(name)
        base.chmod(0o755)
        file, volume = base / "baked" / UNET, base / "volume/models"
        volume.mkdir(parents=True)
        file.parent.mkdir(parents=True)
        file.write_bytes(bytes(119))
        file.chmod(0o000)
        volume.chmod(0o000)
        ended = subprocess.run(
            [sys.executable, "-c", UNPRIVILEGED_SCRIPT.format(root=str(ROOT), base=name)],
            env={name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")},
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        volume.chmod(0o755)

    assert f"{file} cannot be read by this user, so {UNET} is not used from there" in ended.stdout
    assert ended.stdout.startswith(f"('{UNET}',)")
    assert f"{volume} (cannot be read by this user)" in ended.stdout
