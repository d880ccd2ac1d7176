"""Locates models in the container and configures ComfyUI to find them. Checks names and sizes, reads no file content.

There are four kinds of location, searched in this order: ComfyUI's own folder, WORKER_MODELS_DIR (baked into the image,
or downloaded), the network volume, and RunPod's cached models. The first three have ComfyUI's folder layout. A cached
repository has its own layout, so a needed file is found by name and linked into the data folder, which ComfyUI searches
first. A link is also created if an earlier location has a file of that name with a wrong size, and a later one has
the file with the size in models.txt.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from comfy_core.errors import ConfigError
from comfy_core.models.files import size_of
from comfy_core.models.folders import FOLDERS, model_types, subfolders
from worker import nodes

VOLUME_LAYOUTS = ("models", "ComfyUI/models", "comfyui/models")
"""Possible models folders on a network volume."""


@dataclass(frozen=True)
class ModelLocations:
    """The places where models may be.

    Attributes:
        links: the worker's own folder for links; ComfyUI searches it first.
        roots: folders with ComfyUI's layout, in search order; some may not exist.
        caches: the folders of RunPod's cached models; some may not exist.
        snapshots: the folders of the cached revisions; those of one repository are in order of preference.
        volume: the network volume, which may not exist.
    """

    links: Path
    roots: tuple[Path, ...]
    caches: tuple[Path, ...]
    snapshots: tuple[Path, ...]
    volume: Path

    @property
    def searched(self) -> str:
        """A list of all locations, for an error message."""
        return ", ".join(f"{path}{_state(path)}" for path in (*self.roots, *self.caches))


@dataclass(frozen=True)
class LocatedModels:
    """The result of a search.

    Attributes:
        files: the path of each model found.
        links: the paths of models that need a link, because ComfyUI would find no file or a different one.
        missing: models that were not found.
        wrong: models found with a size other than in models.txt.
        remarks: warnings, one sentence each.
    """

    files: Mapping[str, Path]
    links: Mapping[str, Path]
    missing: tuple[str, ...]
    wrong: tuple[str, ...]
    remarks: tuple[str, ...]


def model_locations(
    *, comfyui: Path, data: Path, models: Path, volume: Path, cache: Path, revision: str = ""
) -> ModelLocations:
    """Return the locations of models.

    Args:
        comfyui: ComfyUI's folder.
        data: ComfyUI's data folder.
        models: WORKER_MODELS_DIR.
        volume: the mount point of the network volume.
        cache: RunPod's folder of cached models on the host.
        revision: MODEL_REVISION, the cached revision to use.
    """
    hub = volume / "huggingface-cache" / "hub"
    store = cache / "model-store" / "huggingface"
    older = cache / "cache"
    found = [*_hub_snapshots(hub, revision), *_store_snapshots(store, revision), *_store_snapshots(older, revision)]
    roots = model_roots(comfyui=comfyui, data=data, models=models, volume=volume)
    return ModelLocations(data / "models", roots, (hub, store, older), tuple(found), volume)


def model_roots(*, comfyui: Path, data: Path, models: Path, volume: Path) -> tuple[Path, ...]:
    """Return the folders with ComfyUI's layout, in search order. See `model_locations`."""
    roots = (data / "models", comfyui / "models", models, *(volume / layout for layout in VOLUME_LAYOUTS))
    return tuple(dict.fromkeys(roots))


def locate(wanted: Iterable[str], sizes: Mapping[str, int], locations: ModelLocations) -> LocatedModels:
    """Search for the models `wanted` (`folder/file`). `sizes` has the required sizes, if known."""
    models = tuple(dict.fromkeys(wanted))
    cached = _cached(frozenset(model.rpartition("/")[2] for model in models), locations.snapshots)
    files: dict[str, Path] = {}
    links: dict[str, Path] = {}
    remarks: list[str] = []
    wrong: list[str] = []
    for model in models:
        size = sizes.get(model)
        candidates = [file for file in _candidates(model, locations.roots) if size_of(file) is not None]
        comfyui_file = candidates[0] if candidates else None
        others = sorted(cached.get(model.rpartition("/")[2], ()), key=lambda file: not _is_in_folder(file, model))
        readable = [file for file in (*candidates, *others) if os.access(file, os.R_OK)]
        unreadable = [file for file in (*candidates, *others) if file not in readable]
        remarks += [f"{file} cannot be read by this user, so {model} is not used from there" for file in unreadable]
        matching = [file for file in readable if size is None or size_of(file) == size]
        if not readable:
            continue
        files[model] = file = (matching or readable)[0]
        if file != comfyui_file:
            links[model] = file
        if not matching:
            wrong.append(model)
            remarks.append(
                f"{file} has {size_of(file):,} bytes, but {model} in models.txt has {size:,}: it is a different file"
            )
    missing = tuple(model for model in models if model not in files)
    return LocatedModels(files, links, missing, tuple(wrong), tuple(remarks))


def link(located: LocatedModels, locations: ModelLocations) -> list[str]:
    """Create the required links; return a sentence for each link that a file blocks. Safe to run concurrently.

    Raises ConfigError if a link cannot be created.
    """
    problems = []
    for model, file in located.links.items():
        link_path = locations.links / model
        if link_path.exists() and not link_path.is_symlink():
            problems.append(f"{link_path} blocks a link to {file}, which has the right content: remove it")
            continue
        temporary = link_path.with_name(f".{link_path.name}.{uuid.uuid4().hex}")
        try:
            link_path.parent.mkdir(parents=True, exist_ok=True)
            temporary.symlink_to(file)
            temporary.replace(link_path)
        except OSError as error:
            raise ConfigError(
                f"COMFYUI_DATA_DIR: the link {link_path} cannot be created ({error.strerror}). Set it to a folder that "
                "this user can write"
            ) from error
    return problems


def paths_config(locations: ModelLocations) -> str:
    """Return an extra_model_paths.yaml that makes ComfyUI search the existing roots, the links first.

    It also lists the folder of the worker's custom nodes.

    It is JSON, a subset of YAML. Paths are absolute, because ComfyUI expands `$` and `~` in a `base_path`. Unknown
    subfolders are added under their own names: later ComfyUI versions and custom nodes have further model types.
    """
    config: dict[str, dict[str, object]] = {}
    for number, root in enumerate(root for root in locations.roots if root == locations.links or _is_folder(root)):
        kinds = model_types(root)
        is_first = root == locations.links
        config[f"worker_{number}"] = {
            **({"is_default": True} if is_first else {}),
            # ComfyUI prepends default folders one by one, so the last one ends up first.
            **{
                kind: "\n".join(str(root / folder) for folder in (reversed(folders) if is_first else folders))
                for kind, folders in kinds.items()
            },
        }
    config["worker_nodes"] = {"custom_nodes": str(nodes.DIRECTORY)}
    return json.dumps(config, indent=1, ensure_ascii=False)


def is_on_volume(located: LocatedModels, locations: ModelLocations) -> bool:
    """Return whether any located model is on the network volume, in its models folder or in RunPod's cache."""
    volume = _resolved(locations.volume)
    return any(_resolved(file).is_relative_to(volume) for file in located.files.values())


def download_directory(models: Path, volume: Path) -> Path | None:
    """Return the folder for downloads: on the volume if there is one, so that they persist, otherwise `models`.

    The folder is created. Returns None if neither can be written.
    """
    for directory in ([_volume_models(volume)] if _is_folder(volume) else []) + [models]:
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError:
            continue
        if os.access(directory, os.W_OK | os.X_OK):
            return directory
    return None


def cache_directory(links: Path, volume: Path) -> Path:
    """Return the models folder for files that jobs name by address: on the volume if it can be written, else `links`.

    The folder may not exist.
    """
    models = _volume_models(volume)
    nearest = models if _is_folder(models) else volume
    return models if _is_folder(nearest) and os.access(nearest, os.W_OK | os.X_OK) else links


def _volume_models(volume: Path) -> Path:
    """Return the models folder of a volume: the first that exists, else the first of VOLUME_LAYOUTS."""
    layouts = [volume / layout for layout in VOLUME_LAYOUTS]
    return next((layout for layout in layouts if _is_folder(layout)), layouts[0])


def missing_message(missing: Collection[str], locations: ModelLocations) -> str:
    """Return the error message for models that were not found: names, searched locations, and remedies."""
    return (
        f"Models not found: {', '.join(missing)}. Put each on the network volume "
        f"({locations.volume / VOLUME_LAYOUTS[0]}/<folder>/<file>), set WORKER_FETCH_MODELS=true, or use the image "
        f"that contains the weights (docs/models.md). Searched: {locations.searched}"
    )


def _candidates(model: str, roots: Iterable[Path]) -> Iterator[Path]:
    kind, _, file = model.partition("/")
    for root in roots:
        for folder in FOLDERS.get(kind, (kind,)):
            yield root / folder / file


def _is_in_folder(file: Path, model: str) -> bool:
    kind = model.partition("/")[0]
    return file.parent.name in FOLDERS.get(kind, (kind,))


def _cached(names: frozenset[str], snapshots: Iterable[Path]) -> dict[str, list[Path]]:
    """Return the files with these names in the snapshots, by name."""
    found: dict[str, list[Path]] = {}
    for snapshot in snapshots:
        for folder, folders, files in os.walk(snapshot):
            folders.sort()
            for name in sorted(names & set(files)):
                file = Path(folder, name)
                if size_of(file) is not None:
                    found.setdefault(name, []).append(file)
    return found


def _hub_snapshots(hub: Path, revision: str) -> Iterator[Path]:
    """Yield the snapshots of a Hugging Face cache; for each repository, the main branch first."""
    for repository in subfolders(hub):
        try:
            main = (repository / "refs" / "main").read_text().strip()
        except (OSError, UnicodeDecodeError):
            main = ""
        yield from _by_revision(repository / "snapshots", (revision, main))


def _store_snapshots(store: Path, revision: str) -> Iterator[Path]:
    """Yield the revision folders of a store with the layout `organisation/name/revision`."""
    for organisation in subfolders(store):
        for repository in subfolders(organisation):
            yield from _by_revision(repository, (revision, "main"))


def _by_revision(folder: Path, first: tuple[str, ...]) -> list[Path]:
    """Return the folders in `folder`: first those named in `first`, in that order, then from newest to oldest."""

    def rank(snapshot: Path) -> tuple[int, float]:
        position = first.index(snapshot.name) if snapshot.name in first else len(first)
        try:
            return position, -snapshot.stat().st_mtime
        except OSError:
            return position, 0.0

    return sorted(subfolders(folder), key=rank)


def _state(folder: Path) -> str:
    """Return a remark in parentheses if a folder cannot be searched; empty if it can."""
    try:
        folder.stat()
    except PermissionError:
        return " (cannot be read by this user)"
    except OSError:
        return " (does not exist)"
    return "" if os.access(folder, os.R_OK | os.X_OK) else " (cannot be read by this user)"


def _is_folder(path: Path) -> bool:
    """Return whether a folder exists; False if this user may not access it, for which pathlib raises."""
    try:
        return path.is_dir()
    except OSError:
        return False


def _resolved(path: Path) -> Path:
    try:
        return path.resolve()
    except (OSError, RuntimeError):  # a link cycle
        return path
