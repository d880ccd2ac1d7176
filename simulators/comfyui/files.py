"""The folders that ComfyUI reads and writes, and how it names files in them. No HTTP.

Facts about ComfyUI:

- `name.png [output]` (or `[input]`, `[temp]`) in LoadImage and /view selects another folder than the default.
- A saved image is `<prefix>_<counter>_.png`. The counter is one more than the highest of that prefix in the folder,
  with at least five digits. A slash in the prefix names a subfolder; a prefix outside the folder is an error.
- An upload under a name that exists keeps the name if the bytes are the same, otherwise it becomes `name (1).png`.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

FOLDERS = ("output", "input", "temp")
FOLDER_NAMES = """
checkpoints configs loras vae text_encoders diffusion_models clip_vision style_models embeddings diffusers
vae_approx controlnet gligen upscale_models latent_upscale_models custom_nodes datasets hypernetworks photomaker
classifiers model_patches audio_encoders background_removal frame_interpolation geometry_estimation optical_flow
detection
"""
MODEL_FOLDERS = tuple(FOLDER_NAMES.split())
OLDER_NAMES: Mapping[str, tuple[str, ...]] = {
    "text_encoders": ("text_encoders", "clip"),
    "diffusion_models": ("unet", "diffusion_models"),
    "controlnet": ("controlnet", "t2i_adapter"),
}
"""Model folders with more than one folder below `models`, in search order."""


class OutsideFolderError(Exception):
    """A path is outside its folder."""


@dataclass(frozen=True)
class SaveTarget:
    """The folder and the file name of the next image of a prefix."""

    folder: Path
    stem: str
    counter: int
    subfolder: str

    def file_name(self, index: int) -> str:
        """Return the name of the image at `index` of the batch."""
        return f"{self.stem.replace('%batch_num%', str(index))}_{self.counter + index:05}_.png"


@dataclass(frozen=True)
class Folders:
    """The folders `input`, `output`, `temp` and `models` below one base folder.

    `extra_models` are the further folders of model folders, as in extra_model_paths.yaml. `base_in_container` is the
    base folder's path in responses, for a ComfyUI in a container.
    """

    base: Path
    extra_models: Mapping[str, tuple[Path, ...]] = field(default_factory=dict)
    base_in_container: Path | None = None

    @property
    def input(self) -> Path:
        """Return the folder of uploads."""
        return self.base / "input"

    @property
    def output(self) -> Path:
        """Return the folder of saved images."""
        return self.base / "output"

    @property
    def temp(self) -> Path:
        """Return the folder of previews."""
        return self.base / "temp"

    @property
    def model_folders(self) -> tuple[str, ...]:
        """Return the names of the model folders."""
        return tuple(dict.fromkeys([*MODEL_FOLDERS, *self.extra_models]))

    def model_paths(self, folder: str) -> list[Path]:
        """Return the folders that are searched for the files of a model folder, in search order."""
        names = OLDER_NAMES.get(folder, (folder,)) if folder in MODEL_FOLDERS else ()
        return [*(self.base / "models" / name for name in names), *self.extra_models.get(folder, ())]

    def reported_paths(self, folder: str) -> list[str]:
        """Return the paths of `model_paths` as responses have them."""
        base = self.base_in_container or self.base
        paths = self.model_paths(folder)
        return [str(base / path.relative_to(self.base) if path.is_relative_to(self.base) else path) for path in paths]

    def model_files(self, folder: str) -> dict[str, Path]:
        """Return the files of a model folder by their path in it. As in ComfyUI, links to nothing count."""
        found: dict[str, Path] = {}
        for root in self.model_paths(folder):
            for path in filter(Path.exists, root.rglob("*.safetensors")):
                found.setdefault(str(path.relative_to(root)), path)
        return found

    def make(self) -> None:
        """Create the folders that do not exist."""
        for name in FOLDERS:
            (self.base / name).mkdir(parents=True, exist_ok=True)

    def of_type(self, name: str) -> Path | None:
        """Return the folder of a `type`, or None if the type does not exist."""
        return self.base / name if name in FOLDERS else None

    def annotated(self, name: str) -> tuple[str, Path | None]:
        """Return a name without an annotation such as ` [output]`, and the folder of the annotation or None."""
        for folder in FOLDERS:
            if name.endswith(f"[{folder}]"):
                return name[: -len(folder) - 3], self.base / folder
        return name, None

    def readable(self, name: str) -> Path:
        """Return the path that LoadImage reads.

        The path may be outside the folder, as in ComfyUI before 0.28, so that tests notice a request that our own
        checks should have refused.
        """
        plain, folder = self.annotated(name)
        return (folder or self.input) / plain

    def input_files(self) -> tuple[str, ...]:
        """Return the names of the files directly in the input folder, sorted."""
        return tuple(sorted(entry.name for entry in self.input.iterdir() if entry.is_file()))


def inside(folder: Path, *parts: str) -> Path:
    """Return the path of `parts` below `folder`.

    Raises:
        OutsideFolderError: the path is outside the folder.
    """
    path = Path(os.path.abspath(folder.joinpath(*parts)))  # noqa: PTH100  Path.resolve would follow links
    if not path.is_relative_to(os.path.abspath(folder)):  # noqa: PTH100  Path.resolve would follow links
        raise OutsideFolderError(str(path))
    return path


def save_target(folder: Path, prefix: str, size: tuple[int, int]) -> SaveTarget:
    """Return the target of the next image of `prefix`, and create its folder.

    Raises:
        OutsideFolderError: the prefix is outside the folder.
    """
    subfolder, stem = os.path.split(os.path.normpath(_with_size(prefix, size)))
    target = inside(folder, subfolder)
    target.mkdir(parents=True, exist_ok=True)
    taken = [_counter(entry.name, stem) for entry in target.iterdir()]
    return SaveTarget(target, stem, max(taken, default=0) + 1, subfolder)


def upload_name(folder: Path, name: str, content: bytes) -> str:
    """Return the name under which an upload is stored without overwriting different content."""
    stem, extension = os.path.splitext(name)  # noqa: PTH122  the name may hold folders
    names = itertools.chain([name], (f"{stem} ({number}){extension}" for number in itertools.count(1)))
    return next(each for each in names if not (folder / each).exists() or (folder / each).read_bytes() == content)


def _with_size(prefix: str, size: tuple[int, int]) -> str:
    return prefix.replace("%width%", str(size[0])).replace("%height%", str(size[1]))


def _counter(name: str, stem: str) -> int:
    if not name.startswith(f"{stem}_"):
        return 0
    digits = name[len(stem) + 1 :].partition("_")[0]
    return int(digits) if digits.isdecimal() else 0
