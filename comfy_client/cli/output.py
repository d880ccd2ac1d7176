"""Implements the flag `-o`: checks its path before a job is submitted, and saves the job's outputs there.

If the path cannot be written after the job has ended, the outputs are saved in another folder.
"""

from __future__ import annotations

import itertools
import mimetypes
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path, PureWindowsPath

from comfy_client.cli.flags import Flag, UsageError
from comfy_client.cli.screen import Screen
from comfy_client.providers.interface import FORMATS, GeneratedFile, GenerationRequest, GenerationResult
from comfy_core.contract import ENVELOPE, ErrorReport
from comfy_core.error_codes import ErrorCode
from comfy_core.errors import ComfyClientError
from comfy_core.request.encoded import is_url

_SUFFIXES = {"image/png": ".png", "image/jpeg": ".jpg", "image/webp": ".webp"}
_STDOUT = frozenset({"-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"})
_MAX_NAME_CHARACTERS = 100
"""How many characters are kept at the end of a file name from a result, or from -o if another folder is used."""

OUTPUT = Flag(
    ("-o", "--output"),
    "File, folder/, or - for stdout. The suffix .png, .jpg or .webp selects the format. Several images: name-1, "
    "name-2; {seed} and {id} in the name are replaced by the seed and the job's id. Existing files are not "
    "overwritten: the next free name is used. Default: ./WORKFLOW-SEED.png",
    "FILE",
    {"default": "."},
)
FORCE = Flag(("--force",), "Overwrite existing files.", settings={"action": "store_true"})


class NotSaved(ComfyClientError):  # noqa: N818 - the job succeeded
    """The result could not be saved in any folder. The message has the job id."""

    def __init__(self, message: str, job_id: str) -> None:
        super().__init__(message, ErrorReport(ErrorCode.OUTPUT_NOT_STORED, message, {"job_id": job_id}))


@dataclass(frozen=True)
class OutputTarget:
    """The parsed `-o` flag. If `is_folder` is set, `path` is a folder and the file names are generated.

    `has_force` is whether the command has the flag --force.
    """

    text: str
    path: Path
    is_folder: bool
    is_forced: bool = False
    has_force: bool = True

    @property
    def is_stdout(self) -> bool:
        """Whether the image is written to stdout."""
        return self.text == "-"

    @property
    def format(self) -> str | None:
        """The image format of the file name's suffix, or None."""
        return None if self.is_folder or self.is_stdout else FORMATS.get(self.path.suffix.lower())


def prepare_output(text: str, screen: Screen, *, is_forced: bool = False) -> OutputTarget:
    """Parse the value of `-o`, create the folder in it and check that this folder is writable. Raises UsageError."""
    if text in _STDOUT:
        if screen.is_json:
            raise UsageError("-o - and --json both write to stdout. Nothing was sent. Use -o FILE")
        if screen.is_terminal:
            raise UsageError(
                "-o - would write binary image data to the terminal. Nothing was sent. Use -o FILE, or a pipe"
            )
        return OutputTarget("-", Path(), is_folder=True)
    if is_url(text):
        raise UsageError(f"-o {text} is a URL, but images can only be saved to files. Nothing was sent")
    path = _with_home_folder(Path(text))
    is_folder = text.endswith(("/", os.sep)) or _is_dir(path)
    folder = path if is_folder else path.parent
    for field in ("{seed}", "{id}"):
        if field in str(folder):
            raise UsageError(
                f"-o {text}: {field} can only be used in the file name, not in a folder name. Nothing was sent"
            )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        is_special = not is_folder and path.exists() and not path.is_file()
        with suppress(FileNotFoundError):
            path.lstat()  # raises OSError if the name is too long
        if not is_special:
            tempfile.TemporaryFile(dir=folder, prefix=".comfy-").close()
    except (OSError, ValueError) as error:
        is_file = isinstance(error, FileExistsError | NotADirectoryError)
        reason = f"{folder} is not a folder" if is_file else error.strerror if isinstance(error, OSError) else error
        raise UsageError(f"-o {text} cannot be written: {reason}. Nothing was sent") from error
    return OutputTarget(text, path, is_folder, is_forced)


def _with_home_folder(path: Path) -> Path:
    """Return the path with `~` replaced by the home folder. A shell does not expand `~` in --output=~/x.png."""
    with suppress(RuntimeError):
        return path.expanduser()
    return path


def _is_dir(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def with_output_format(output: OutputTarget, request: GenerationRequest) -> GenerationRequest:
    """Return the request with the image format of the output's suffix, or unchanged if the suffix selects none.

    Raises UsageError if the format is not supported or conflicts with the request, or if stdout would get several
    images.
    """
    wanted, given = output.format, request.input.get("output_format")
    is_graph = isinstance(request.input.get("workflow"), dict)
    num_images = request.input.get("num_images")
    if output.is_stdout and isinstance(num_images, int) and num_images > 1:
        raise UsageError(f"-o - takes one image, not {num_images}. Nothing was sent. Use a file or a folder with -o")
    if wanted is None:
        guessed = mimetypes.guess_type(output.path.name)[0] or ""
        if not is_graph and not output.is_folder and guessed.startswith("image/"):
            raise UsageError(f"-o {output.text}: supported image formats are .png, .jpg and .webp. Nothing was sent")
        return request
    if given is not None and given != wanted:
        raise UsageError(f"-o {output.text} is a {wanted} file, but the request has {given}. Nothing was sent")
    if wanted == ENVELOPE["output_format"]["default"]:
        return request
    return replace(request, input={**request.input, "output_format": wanted})


@dataclass(frozen=True)
class Saved:
    """The paths of a result's files: images first, none for stdout. `notes` are warnings about the names.

    If the files are not at the requested path, `problem` is the reason, else an empty string.
    """

    paths: tuple[Path, ...]
    problem: str = ""
    notes: tuple[str, ...] = ()


def save_result(output: OutputTarget, result: GenerationResult, screen: Screen, remedy: str = "") -> Saved:
    """Save a result's files. If that fails, save them in the current folder or in the temporary folder.

    Raises NotSaved if no folder can be written. Its message ends with `remedy`. Default: the command `result`.
    """
    remedy = remedy or fetch_again(result)
    files: list[GeneratedFile] = [*result.images, *result.files]
    if output.is_stdout:
        if len(files) == 1:
            try:
                screen.write_bytes(files[0].bytes)
            except OSError as error:
                return _save_elsewhere(output, result, remedy, f"stdout cannot be written: {error.strerror or error}")
            return Saved(())
        return _save_elsewhere(output, result, remedy, f"-o - takes one file, and the job made {len(files)}")
    try:
        return _write_files(output, result)
    except OSError as error:
        return _save_elsewhere(output, result, remedy, f"-o {output.text} cannot be written: {error.strerror}")


def fetch_again(result: GenerationResult) -> str:
    """Return the end of a sentence: the command that saves a result again."""
    return f"run `comfy-client result {result.job_id} -o FILE` before the result expires"


def _save_elsewhere(output: OutputTarget, result: GenerationResult, remedy: str, problem: str) -> Saved:
    """Save the result in the first writable folder, with the requested file name if there is one."""
    name = "" if output.is_folder else output.path.name[-_MAX_NAME_CHARACTERS:]
    for find_folder in (Path, tempfile.gettempdir):
        with suppress(OSError):  # gettempdir raises it too, if no folder is writable
            target = Path(find_folder(), name)
            return replace(_write_files(OutputTarget(output.text, target, is_folder=not name), result), problem=problem)
    raise NotSaved(
        f"{problem}, and no other folder could be written. Job {result.job_id} has succeeded: free some space, and "
        f"{remedy}",
        result.job_id,
    )


def _write_files(output: OutputTarget, result: GenerationResult) -> Saved:
    """Write the files of a result and return their paths.

    If a write fails, raise OSError. The files that were already written are then removed, except with --force, because
    they may have replaced older files.
    """
    files: list[GeneratedFile] = [*result.images, *result.files]
    candidates_by_target: dict[Path, Iterator[Path]] = {}
    paths: list[Path] = []
    notes: list[str] = []
    targets = [_target(output, result, file, number) for number, file in enumerate(files, 1)]
    for file, target in zip(files, targets, strict=True):
        is_numbered = targets.count(target) > 1
        candidates = candidates_by_target.setdefault(target, _candidate_paths(target, is_numbered=is_numbered))
        path = next(candidates) if output.is_forced else _reserve_free_path(candidates)
        try:
            file.save(path)
        except OSError:
            for each in () if output.is_forced else (*paths, path):
                if each.is_file():  # not a device
                    each.unlink()
            raise
        paths.append(path)
        if not output.is_folder and targets.count(target) == 1 and path.name != target.name:
            remedy = " (use --force to overwrite)" if output.has_force else ""
            notes.append(f"{target} already exists; the new image is {path}{remedy}")
    if not output.is_folder and targets and targets[0].suffix != output.path.suffix:
        notes.append(f"-o {output.text}: the output is {files[0].mime_type}, so the suffix is {targets[0].suffix}")
    return Saved(tuple(paths), notes=tuple(notes))


def _target(output: OutputTarget, result: GenerationResult, file: GeneratedFile, number: int) -> Path:
    """Return the path at which file `number` of a result is to be saved. Existing files are not considered."""
    seed = getattr(file, "seed", None)
    if output.is_folder:
        own_name = _name(file.filename) or "picture"
        return output.path / (
            f"{_name(result.workflow)}-{seed}{Path(own_name).suffix}" if seed is not None else own_name
        )
    fields = {"{seed}": str(number if seed is None else seed), "{id}": re.sub(r"[^\w.-]", "_", result.job_id)}
    target = output.path.with_name(re.sub("{seed}|{id}", lambda found: fields[found[0]], output.path.name))
    suffix = _SUFFIXES.get(file.mime_type)
    requested_format = FORMATS.get(target.suffix.lower())
    return target.with_suffix(suffix) if suffix and requested_format and requested_format != FORMATS[suffix] else target


def _name(given: str) -> str:
    """Return the name of a file in a result without folders (Windows or POSIX) and control characters."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f]", "_", PureWindowsPath(given).name)[-_MAX_NAME_CHARACTERS:]


def _candidate_paths(target: Path, *, is_numbered: bool) -> Iterator[Path]:
    """Yield paths for a file: `target` itself unless `is_numbered`, then target-1, target-2, and so on."""
    if not is_numbered:
        yield target
    for number in itertools.count(1):
        yield target.with_name(f"{target.stem}-{number}{target.suffix}")


def _reserve_free_path(candidates: Iterator[Path]) -> Path:
    """Create an empty file at the first free path and return the path. No other process can then use that path.

    A device or a pipe is returned as it is.
    """
    for path in candidates:
        if path.exists() and not (path.is_file() or path.is_dir()):
            return path  # a device or a pipe, such as /dev/null
        with suppress(FileExistsError):
            path.open("xb").close()
            return path
    raise AssertionError("candidates do not end")
