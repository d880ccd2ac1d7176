"""The model files of a ComfyUI: lists them, adds and deletes files, and holds those that running jobs load.

A job holds a shared lock on each model file that its graphs name, and a file is deleted or replaced only under an
exclusive lock, so also another worker on the volume respects it. Files are added to and deleted from one models folder
only. For a worker it is that of the volume if there is one: the others are part of the image.

    <name>.safetensors             a model; <name>.safetensors.verified is its marker (files.py)
    <name>.safetensors.source      the address from which it was downloaded
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import stat
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from comfy_core.comfyui.model_inputs import FETCHED_FOLDER, model_folder
from comfy_core.contract import Fault, JsonObject
from comfy_core.error_codes import ErrorCode
from comfy_core.errors import JobError, invalid_input
from comfy_core.files import write_atomically
from comfy_core.graphs import Graph
from comfy_core.models.address_cache import SUFFIX, Lease, remove_unless_used
from comfy_core.models.file_locks import LOCK_POLL_S, LOCK_WAIT_S, is_in_use, shared_lock
from comfy_core.models.files import marker_of, size_of
from comfy_core.models.folders import FOLDERS
from comfy_core.models.listing import ModelFile
from comfy_core.request.models_task import name_problem, require_folder
from comfy_core.validation import nearest

MODEL_SUFFIXES = frozenset({".safetensors", ".sft", ".ckpt", ".pt", ".pt2", ".pth", ".bin", ".pkl", ".gguf", ".onnx"})
"""Suffixes of model files: ComfyUI's (folder_paths.py), and those of well-known custom nodes."""
KEY_CHARACTERS = 12
"""How many digits of its hash name a file of the cache. The whole hash would give access to a private file."""
_SOURCE_SUFFIX = ".source"
_EMBEDDING = re.compile(r"embedding:([^\s,()]+)")


@dataclass(frozen=True)
class StoredModel:
    """A model file.

    Attributes:
        folder: the model type, such as `loras`, or FETCHED_FOLDER for a file of the cache.
        name: the path in the folder; of a file of the cache, the first digits of its hash.
        path: the file.
        size: number of bytes.
        sha256: the hash; empty if it is not known, or the file belongs to the cache.
        source: the address from which the file was downloaded; empty if it is not known.
        used_at: the time of the last use as seconds since 1970, or that of the file if it was not used since.
    """

    folder: str
    name: str
    path: Path
    size: int
    sha256: str
    source: str
    used_at: float


SearchPaths = Callable[[], Mapping[str, Sequence[Path]]]
"""Returns each model type with the folders that ComfyUI searches, in search order. See `folders.search_paths`."""


class ModelStore:
    """The model files that a ComfyUI finds.

    Args:
        paths: the folders of each model type, which may change.
        target: the models folder in which files are added and deleted.
        cache: the folder of the cache of files by address, which may not exist.
        listed: the models of models.txt.
        queued: returns the graphs of jobs that hold no locks, because another program started them.
    """

    def __init__(
        self,
        paths: SearchPaths,
        target: Path,
        cache: Path,
        listed: Iterable[ModelFile] = (),
        queued: Callable[[], Iterable[Graph]] = tuple,
    ) -> None:
        self.target = target
        self._queued = queued
        self._paths = paths
        self._cache = cache
        self._listed: Mapping[str, ModelFile] = {model.path: model for model in listed}

    def models(self, folder: str = "") -> Iterator[StoredModel]:
        """Yield the models, or those of one folder. Of several files with one name, only the one that ComfyUI loads."""
        for kind, places in self._paths().items():
            seen: set[str] = set()
            for file, name in _files(places if folder in {"", kind} else ()):
                if name not in seen and (found := self._stored(kind, name, file)):
                    seen.add(name)
                    yield found
        if folder in {"", FETCHED_FOLDER}:
            yield from self._cached()

    def entries(self, models: Iterable[StoredModel]) -> list[JsonObject]:
        """Return the models for a result (docs/api.md)."""
        queued = self.named(self._queued())
        return [
            {
                "folder": model.folder,
                "name": model.name,
                "bytes": model.size,
                "sha256": model.sha256 or None,
                "source": model.source or None,
                "last_used": datetime.fromtimestamp(model.used_at, UTC).isoformat(timespec="seconds"),
                "in_use": model.path in queued or is_in_use(model.path),
            }
            for model in models
        ]

    def is_own(self, model: StoredModel) -> bool:
        """Return whether a model is in the target, and not in the cache."""
        return model.folder != FETCHED_FOLDER and model.path.is_relative_to(self.target)

    def folders(self) -> list[str]:
        """Return the names of all folders."""
        return sorted({FETCHED_FOLDER, *self._paths()})

    def disk(self) -> JsonObject:
        """Return the folder in which files are added, with the free and all bytes of its disk."""
        existing = next(each for each in (self.target, *self.target.parents) if each.exists())
        usage = shutil.disk_usage(existing)
        return {"folder": str(self.target), "free_bytes": usage.free, "total_bytes": usage.total}

    def named(self, graphs: Iterable[Graph]) -> dict[Path, str]:
        """Return the files that the graphs name, each with its name as `folder/name`, sorted by name."""
        paths = self._paths()
        names: dict[Path, str] = {}
        for kind, name in sorted(_named(graphs, {*FOLDERS, *paths})):
            if (file := _first_file(each / name for each in paths.get(kind, ()))) is not None:
                names.setdefault(file, f"{kind}/{name}")
        return names

    @contextlib.contextmanager
    def held(self, graphs: Iterable[Graph]) -> Iterator[tuple[str, ...]]:
        """Keep the files that the graphs name from being deleted inside the block, and set their time of use.

        Yield the names of the files as `folder/name`, sorted.
        """
        names = self.named(graphs)
        with contextlib.ExitStack() as stack:
            for file in names:
                if (descriptor := shared_lock(file)) is not None:
                    stack.callback(os.close, descriptor)
                    self._note_use(file)
            yield tuple(names.values())

    def present(self, folder: str, name: str) -> StoredModel | None:
        """Return the file to which a download would go, or None if it does not exist yet.

        Raises JobError (invalid_input) if it cannot go there.
        """
        require_folder(folder, [each for each in self.folders() if each != FETCHED_FOLDER])
        path = self._path(folder, name)
        self._require_inside(path)
        return self._stored(folder, name, path)

    def add(self, folder: str, name: str, lease: Lease, source: str) -> StoredModel:
        """Give a file of the cache the name `name` in `folder`, and return it. A file of this name is replaced.

        Raises JobError: model_in_use if a job loads the file of this name, or model_download_failed if it cannot be
        written.
        """
        path = self._path(folder, name)
        try:
            path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            self._require_inside(path)
            if path.exists():
                self._remove(path, f"{folder}/{name}")
            size = lease.path.stat().st_size
            _link(lease.path, path)
            with contextlib.suppress(OSError):  # without a marker, the hash is not in the list
                write_atomically(marker_of(path), marker_of(lease.path).read_bytes(), mode=0o644)
            write_atomically(_source_of(path), f"{source}\n".encode(), mode=0o644)
        except OSError as error:
            problem = f"cannot be written to {path} ({error.strerror})"
            models = [{"address": source, "problem": problem}]
            raise JobError.because(
                ErrorCode.MODEL_DOWNLOAD_FAILED, f"{folder}/{name} {problem}", models=models
            ) from error
        return StoredModel(folder, name, path, size, lease.sha256, source, time.time())

    def delete(self, folder: str, name: str, *, force: bool) -> StoredModel:
        """Delete a file and return it. Raises JobError: invalid_input, or model_in_use if a running job loads it."""
        found = self._cached_file(name) if folder == FETCHED_FOLDER else self._deletable(folder, name)
        if f"{folder}/{name}" in self._listed and not force:
            problem = f"is missing: {folder}/{name} is one of models.txt, which the shipped workflows load"
            raise invalid_input([Fault("force", problem)])
        self._remove(found.path, f"{folder}/{name}")
        for companion in (marker_of(found.path), _source_of(found.path)):
            companion.unlink(missing_ok=True)
        return found

    def _deletable(self, folder: str, name: str) -> StoredModel:
        """Return a file that may be deleted. Raises JobError (invalid_input)."""
        require_folder(folder, [each for each in self.folders() if each != FETCHED_FOLDER])
        path = _first_file(each / name for each in self._own_folders(folder) if Path(name).suffix in MODEL_SUFFIXES)
        if path is not None and not path.is_symlink():
            self._require_inside(path)
            if found := self._stored(folder, name, path):
                return found
        elsewhere = path or _first_file(each / name for each in self._paths()[folder])
        if elsewhere is not None:
            problem = f"is {elsewhere}, and only files of {self.target} are deleted: remove it where it comes from"
        else:
            names = [each.name for each in self.models(folder)]
            problem = f"is not a model in the folder {folder}{nearest(name, names)}"
        raise invalid_input([Fault("name", problem)])

    def _cached_file(self, name: str) -> StoredModel:
        """Return the file of the cache with this name in the list. Raises JobError (invalid_input)."""
        for found in self._cached():
            if found.name == name:
                return found
        raise invalid_input([Fault("name", f"is not a file in the folder {FETCHED_FOLDER}")])

    def _cached(self) -> Iterator[StoredModel]:
        with contextlib.suppress(OSError):
            for path in sorted(self._cache.iterdir()):
                if path.suffix == SUFFIX and (status := _status_of(path)):
                    name = path.stem[:KEY_CHARACTERS]
                    yield StoredModel(FETCHED_FOLDER, name, path, status.st_size, "", "", _used_at(status))

    def _stored(self, kind: str, name: str, path: Path) -> StoredModel | None:
        status = _status_of(path)
        if status is None:
            return None
        listed = self._listed.get(f"{kind}/{name}")
        source = listed.url if listed and listed.size == status.st_size else _text_of(_source_of(path))
        return StoredModel(kind, name, path, status.st_size, _marked_sha256(path, status), source, _used_at(status))

    def _path(self, folder: str, name: str) -> Path:
        """Return the place of a file in the target: where it is, else in the type's folder of the same name."""
        folders = self._own_folders(folder)
        default = self.target / folder if self.target / folder in folders else folders[0]
        return _first_file(each / name for each in folders) or default / name

    def _own_folders(self, folder: str) -> list[Path]:
        """Return the folders of a model type that are in the target, in search order.

        Raises JobError (invalid_input) if ComfyUI searches only other folders.
        """
        searched = self._paths()[folder]
        found = [each for each in searched if each.is_relative_to(self.target)]
        if not found:
            places = ", ".join(map(str, searched))
            raise invalid_input([Fault("folder", f"is {folder}, which ComfyUI reads from {places}, not {self.target}")])
        return found

    def _require_inside(self, path: Path) -> None:
        """Raise JobError (invalid_input) if a link leads out of the target, or a file belongs to the cache."""
        if FETCHED_FOLDER in path.relative_to(self.target).parts:
            raise invalid_input(
                [Fault("name", f"is in {FETCHED_FOLDER}, which has only files that jobs name by address")]
            )
        if path.is_symlink() or not path.parent.resolve().is_relative_to(self.target.resolve()):
            raise invalid_input([Fault("name", f"is at {path}, where a link leads out of {self.target}")])

    def _remove(self, path: Path, name: str) -> None:
        """Delete a file. Raises JobError: model_in_use, or invalid_input if it is gone or cannot be deleted."""
        if path in self.named(self._queued()):
            raise _in_use_error(name)
        deadline = time.monotonic() + LOCK_WAIT_S
        while not remove_unless_used(path):
            if not path.exists():
                raise invalid_input([Fault("name", f"does not exist any more: another job has deleted {name}")])
            if time.monotonic() > deadline:
                if is_in_use(path):
                    raise _in_use_error(name)
                problem = f"is {path}, which this user may not write, or whose disk has no file locks"
                raise invalid_input([Fault("name", problem)])
            time.sleep(LOCK_POLL_S)

    def _note_use(self, file: Path) -> None:
        """Set the time of the last access. In a layer of the image this would copy the whole file."""
        if file.is_relative_to(self.target):
            with contextlib.suppress(OSError):
                os.utime(file, ns=(time.time_ns(), file.stat().st_mtime_ns))


def _in_use_error(name: str) -> JobError:
    return JobError.because(ErrorCode.MODEL_IN_USE, f"{name} is in use", model=name)


def _link(file: Path, path: Path) -> None:
    """Make `path` a second name of `file`, or a copy if the disk has no hard links. Raises OSError."""
    temporary = path.with_name(f".{uuid.uuid4().hex}")
    try:
        try:
            os.link(file, temporary)
        except OSError:
            shutil.copy2(file, temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _first_file(places: Iterable[Path]) -> Path | None:
    """Return the first path that is a file. It is the one that ComfyUI loads."""
    return next((each for each in places if size_of(each) is not None), None)


def _files(folders: Iterable[Path]) -> Iterator[tuple[Path, str]]:
    """Yield the model files below the folders, each with its path in its folder. Hidden ones are left out."""
    for top in folders:
        for folder, subfolders, names in os.walk(top):
            subfolders[:] = sorted(each for each in subfolders if not each.startswith(".") and each != FETCHED_FOLDER)
            for name in sorted(names):
                file = Path(folder, name)
                if file.suffix in MODEL_SUFFIXES and not name.startswith("."):
                    yield file, file.relative_to(top).as_posix()


def _named(graphs: Iterable[Graph], kinds: Iterable[str]) -> set[tuple[str, str]]:
    """Return the files that graphs name, as folder and name. The folder of an unknown input may be any of `kinds`."""
    named: set[tuple[str, str]] = set()
    for node in (node for graph in graphs for node in graph.values()):
        for key, value in node["inputs"].items():
            if not isinstance(value, str):
                continue
            name = value.replace("\\", "/")
            if known := model_folder(node["class_type"], key):
                named.add((known, name))
            elif Path(name).suffix in MODEL_SUFFIXES:
                named |= {(kind, name) for kind in kinds}
            for word in _EMBEDDING.findall(name):
                named |= {("embeddings", f"{word}{suffix}") for suffix in ("", *MODEL_SUFFIXES)}
    return {(kind, name) for kind, name in named if not name_problem(name)}  # ComfyUI loads no absolute path


def _status_of(path: Path) -> os.stat_result | None:
    """Return the status of a regular file, or None if there is none: another process may have deleted it."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status if stat.S_ISREG(status.st_mode) else None


def _used_at(status: os.stat_result) -> float:
    return max(status.st_atime, status.st_mtime)


def _marked_sha256(path: Path, status: os.stat_result) -> str:
    """Return the hash in a file's marker, or an empty string if the file is not the one that was marked."""
    match _text_of(marker_of(path)).split():
        case [sha256, size, modified_at]:
            return sha256 if [size, modified_at] == [str(status.st_size), str(int(status.st_mtime))] else ""
    return ""


def _source_of(path: Path) -> Path:
    return path.with_name(path.name + _SOURCE_SUFFIX)


def _text_of(path: Path) -> str:
    try:
        with path.open(encoding="utf-8") as file:
            return file.read(4096).strip()
    except (OSError, UnicodeDecodeError):
        return ""
