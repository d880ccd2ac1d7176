"""Where models are found: search order, sizes, layouts, and ComfyUI's configuration."""

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
from worker.models.folders import (
    FOLDERS,
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

Put = Callable[..., Path]


@pytest.fixture
def put(tmp_path: Path) -> Put:
    """Return a function that creates a file of some size in the test's folder."""

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
    """Return the location of one model, or that it is missing."""
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
def test_a_file_in_comfyui_s_folders_needs_no_link(tmp_path: Path, put: Put, path: str) -> None:
    """Every root with ComfyUI's folders is searched, including a folder's older name."""
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
def test_a_file_in_runpod_s_cache_is_found_by_name_and_linked(tmp_path: Path, put: Put, path: str) -> None:
    """The three layouts of cached models, each with the repository's own folders."""
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


def test_a_baked_file_comes_before_the_volume_s_and_the_cache_s(tmp_path: Path, put: Put) -> None:
    """The location with the fastest start is used, and is not on the volume."""
    put(f"{HUB}/snapshots/abc/flux1-dev-fp8.safetensors")
    put(f"volume/models/{UNET}")
    baked = put(f"baked/{UNET}")
    located = locate_one_model(tmp_path)

    assert located.files == {UNET: baked}
    assert not is_on_volume(located, locations_in(tmp_path))


def test_a_file_of_another_size_is_skipped(tmp_path: Path, put: Put) -> None:
    """A checkpoint may have the transformer's name: a link to the file of the listed size takes precedence."""
    put(f"volume/models/{UNET}", 172)
    right = put(f"{HUB}/snapshots/abc/flux1-dev-fp8.safetensors")
    located = locate_one_model(tmp_path)

    assert located.links == {UNET: right}
    assert located.wrong == ()


def test_a_file_of_another_size_is_used_with_a_warning_if_it_is_the_only_one(tmp_path: Path, put: Put) -> None:
    """A different file may be intended, so it is used; the log has both sizes."""
    wrong = put(f"volume/models/{UNET}", 172)
    located = locate_one_model(tmp_path)

    assert located.files == {UNET: wrong}
    assert located.wrong == (UNET,)
    assert located.remarks == (f"{wrong} has 172 bytes, but {UNET} in models.txt has 119: it is a different file",)


def test_a_model_that_is_not_in_models_txt_is_found_by_name(tmp_path: Path, put: Put) -> None:
    """A custom workflow may load any model; in a repository the file in a matching folder comes first."""
    put(f"{HUB}/snapshots/abc/a/own.safetensors", 1)
    fitting = put(f"{HUB}/snapshots/abc/loras/own.safetensors", 2)

    assert locate(["loras/own.safetensors"], SIZES, locations_in(tmp_path)).files == {"loras/own.safetensors": fitting}


@pytest.mark.parametrize(("revision", "chosen"), [("", "of-main"), ("named", "named"), ("unknown", "of-main")])
def test_one_of_several_revisions_is_selected(tmp_path: Path, put: Put, revision: str, chosen: str) -> None:
    """The revision in MODEL_REVISION, otherwise that of the main branch, otherwise the newest."""
    for number, name in enumerate(("old", "of-main", "named", "new")):
        file = put(f"{HUB}/snapshots/{name}/flux1-dev-fp8.safetensors")
        os.utime(file.parent, (number, number))
    put(f"{HUB}/refs/main").write_text("of-main\n")

    assert locate_one_model(tmp_path, revision=revision).files[UNET].parent.name == chosen


def test_without_a_main_branch_the_newest_revision_is_selected(tmp_path: Path, put: Put) -> None:
    """In a cache without refs, the newest revision is selected."""
    for number, name in enumerate(("b-old", "c-new", "a-oldest")):
        file = put(f"{HUB}/snapshots/{name}/flux1-dev-fp8.safetensors")
        os.utime(file.parent, (number % 2, number % 2))

    assert locate_one_model(tmp_path).files[UNET].parent.name == "c-new"


@pytest.mark.parametrize("kind", ["part", "dangling", "circle", "folder", "nothing"])
def test_a_path_that_is_not_a_complete_file_is_missing(tmp_path: Path, put: Put, kind: str) -> None:
    """A partial file, a dangling link and a folder are not the model."""
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
    """The error has the models, the locations searched and the remedies."""
    where = locations_in(tmp_path)
    message = missing_message([UNET, VAE], where)

    assert message.startswith(f"Models not found: {UNET}, {VAE}.")
    for place in ("data/models", "comfyui/models", "baked", "volume/ComfyUI/models", "runpod/model-store/huggingface"):
        assert f"{tmp_path / place} (does not exist)" in message


def test_a_link_to_another_target_is_replaced(tmp_path: Path, put: Put) -> None:
    """A persistent data folder may have the links of an earlier boot."""
    place = tmp_path / "data/models" / UNET
    place.parent.mkdir(parents=True)
    place.symlink_to(tmp_path / "gone")
    file = put("runpod/cache/org/flux/main/flux1-dev-fp8.safetensors")
    link(locate_one_model(tmp_path), locations_in(tmp_path))

    assert place.resolve() == file
    assert [each.name for each in place.parent.iterdir()] == [place.name]


def test_a_file_at_a_link_s_path_is_kept_and_reported(tmp_path: Path, put: Put) -> None:
    """An existing file is not replaced by a link."""
    mine = put(f"data/models/{UNET}", 5)
    put("runpod/cache/org/flux/main/flux1-dev-fp8.safetensors")
    [problem] = link(locate_one_model(tmp_path), locations_in(tmp_path))

    assert problem.startswith(f"{mine} blocks a link to")
    assert not mine.is_symlink()


def test_comfyui_gets_the_existing_model_folders(tmp_path: Path, put: Put) -> None:
    """Every model type with its older names.

    The links come first, missing roots are omitted, and a volume adds no code.
    """
    put("volume/models/ipadapter/a.bin")
    put("volume/models/custom_nodes/evil/__init__.py")
    put("volume/models/clip/b.safetensors")
    config = json.loads(paths_config(locations_in(tmp_path)))
    first, volume = config.values()

    assert first["is_default"] is True
    assert first["vae"] == str(tmp_path / "data/models/vae")
    assert "is_default" not in volume
    assert volume["text_encoders"] == f"{tmp_path}/volume/models/text_encoders\n{tmp_path}/volume/models/clip"
    assert volume["ipadapter"] == f"{tmp_path}/volume/models/ipadapter"
    assert volume.keys() == {*FOLDERS, "ipadapter"}


def test_downloads_go_to_the_volume(tmp_path: Path) -> None:
    """Downloads go to a volume if there is one, in its layout, otherwise to WORKER_MODELS_DIR, which is created."""
    models, volume = tmp_path / "baked", tmp_path / "volume"

    assert download_directory(models, volume) == models
    volume.mkdir()
    assert download_directory(models, volume) == volume / "models"
    (volume / "models").rmdir()
    (volume / "ComfyUI/models").mkdir(parents=True)
    assert download_directory(models, volume) == volume / "ComfyUI/models"


def test_a_volume_that_cannot_be_written_is_skipped(tmp_path: Path) -> None:
    """A folder that cannot be created, because a file has its name, is skipped."""
    (tmp_path / "volume").mkdir()
    (tmp_path / "volume/models").write_text("")

    assert download_directory(tmp_path / "baked", tmp_path / "volume") == tmp_path / "baked"
    assert download_directory(tmp_path / "volume/models", tmp_path / "volume") is None


UNREADABLE = """\
import os, sys
from pathlib import Path
sys.path.insert(0, {root!r})
from tests.worker.models.test_folders import UNET, locate_one_model, locations_in, missing_message
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
    """A model that this user cannot read is not used, and an unreadable root is reported as such."""
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
            [sys.executable, "-c", UNREADABLE.format(root=str(ROOT), base=name)],
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
