"""`-o`: checked before a job is sent, and the pictures saved after it. A picture that was made is never thrown away."""

from __future__ import annotations

import itertools
import mimetypes
import os
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path, PureWindowsPath

from comfy_client.cli.flags import Flag, UsageError, is_address
from comfy_client.cli.screen import Screen
from comfy_client.providers.interface import FORMATS, GeneratedFile, GenerationRequest, GenerationResult
from comfy_core.contract import ENVELOPE, ErrorCode, ErrorReport
from comfy_core.errors import ComfyClientError

_SUFFIXES = {"image/png": ".png", "image/jpeg": ".jpg", "image/webp": ".webp"}
_STDOUT = frozenset({"-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"})
_LONGEST_NAME = 100
"""Characters of a file's name that are kept when the file has to go into another folder."""

OUTPUT = Flag(
    ("-o", "--output"),
    "File, folder/ or - for stdout. .png, .jpg and .webp choose the format. Several pictures: name-1, name-2; "
    "{seed} in the name is the picture's seed. An existing file is kept, and the next free name used. "
    "Default: ./WORKFLOW-SEED.png",
    "FILE",
    {"default": "."},
)
FORCE = Flag(("--force",), "Overwrite existing files.", settings={"action": "store_true"})


class NotSaved(ComfyClientError):  # noqa: N818 - the job succeeded
    """No folder took the result; the message has the job's id."""

    def __init__(self, message: str, job_id: str) -> None:
        super().__init__(message, ErrorReport(ErrorCode.OUTPUT_NOT_STORED, message, {"job_id": job_id}))


@dataclass(frozen=True)
class Output:
    """Where the pictures of one command go. `is_folder` says that `path` is a folder, and names are ours."""

    text: str
    path: Path
    is_folder: bool
    is_forced: bool = False

    @property
    def is_stdout(self) -> bool:
        """Whether the picture goes to stdout."""
        return self.text == "-"

    @property
    def format(self) -> str | None:
        """The format that the file's name asks for, if it asks for one."""
        return None if self.is_folder or self.is_stdout else FORMATS.get(self.path.suffix.lower())


def checked_output(text: str, screen: Screen, *, is_forced: bool = False) -> Output:
    """Return where pictures go, with its folder made. Raises UsageError if they cannot be written there."""
    if text in _STDOUT:
        if screen.is_json:
            raise UsageError("-o - and --json both write to stdout. Nothing was sent. Give -o a file")
        if screen.is_terminal:
            raise UsageError(
                "-o - would write a picture's bytes to the terminal. Nothing was sent. Use -o FILE, or a pipe"
            )
        return Output("-", Path(), is_folder=True)
    if is_address(text):
        raise UsageError(f"-o {text} is an address, and pictures go to files. Nothing was sent")
    path = _home(Path(text))
    is_folder = text.endswith(("/", os.sep)) or _is_dir(path)
    folder = path if is_folder else path.parent
    if "{seed}" in str(folder):
        raise UsageError(f"-o {text}: {{seed}} may stand in a file's name, and not in a folder's. Nothing was sent")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        is_special = not is_folder and path.exists() and not path.is_file()
        with suppress(FileNotFoundError):
            path.lstat()  # raises OSError for a name that is too long
        if not is_special:
            tempfile.TemporaryFile(dir=folder, prefix=".comfy-").close()
    except (OSError, ValueError) as error:
        is_file = isinstance(error, FileExistsError | NotADirectoryError)
        reason = f"{folder} is not a folder" if is_file else error.strerror if isinstance(error, OSError) else error
        raise UsageError(f"-o {text} cannot be written: {reason}. Nothing was sent") from error
    return Output(text, path, is_folder, is_forced)


def _home(path: Path) -> Path:
    """Return a path whose `~` is the home folder: a shell leaves it in --output=~/x.png as it is."""
    with suppress(RuntimeError):
        return path.expanduser()
    return path


def _is_dir(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def fitted(output: Output, request: GenerationRequest) -> GenerationRequest:
    """Return the request with the format that the output's name asks for. Raises UsageError if the two differ."""
    wanted, given = output.format, request.input.get("output_format")
    is_graph = isinstance(request.input.get("workflow"), dict)
    pictures = request.input.get("num_images")
    if output.is_stdout and isinstance(pictures, int) and pictures > 1:
        raise UsageError(f"-o - takes one picture, not {pictures}. Nothing was sent. Give -o a file or a folder")
    if wanted is None:
        guessed = mimetypes.guess_type(output.path.name)[0] or ""
        if not is_graph and not output.is_folder and guessed.startswith("image/"):
            raise UsageError(f"-o {output.text}: pictures are .png, .jpg or .webp. Nothing was sent")
        return request
    if given is not None and given != wanted:
        raise UsageError(f"-o {output.text} is a {wanted} file, and {given} was requested. Nothing was sent")
    if wanted == ENVELOPE["output_format"]["default"]:
        return request
    return replace(request, input={**request.input, "output_format": wanted})


@dataclass(frozen=True)
class Saved:
    """The files of a result, in its order. `problem` says why they are not where they should be; empty if they are."""

    paths: tuple[Path, ...]
    problem: str = ""
    notes: tuple[str, ...] = ()


def save_result(output: Output, result: GenerationResult, screen: Screen) -> Saved:
    """Write a result's files. If that fails they go into the current folder, else into the temporary one.

    Raises NotSaved if neither takes them.
    """
    files: list[GeneratedFile] = [*result.images, *result.files]
    if output.is_stdout:
        if len(files) == 1:
            try:
                screen.write_bytes(files[0].bytes)
            except OSError as error:
                return _rescued(output, result, f"stdout cannot be written: {error.strerror}")
            return Saved(())
        return _rescued(output, result, f"-o - takes one file, and the job made {len(files)}")
    try:
        return _saved(output, result)
    except OSError as error:
        return _rescued(output, result, f"-o {output.text} cannot be written: {error.strerror}")


def _rescued(output: Output, result: GenerationResult, problem: str) -> Saved:
    """Save the result in the first folder that takes it, under the wanted name if there is one."""
    name = "" if output.is_folder else output.path.name[-_LONGEST_NAME:]
    for folder in (Path(), Path(tempfile.gettempdir())):
        with suppress(OSError):
            return replace(_saved(Output(output.text, folder / name, is_folder=not name), result), problem=problem)
    raise NotSaved(
        f"{problem}, and no other folder could be written. Job {result.job_id} has succeeded: make room and run "
        f"`comfy-client wait {result.job_id} -o FILE` soon",
        result.job_id,
    )


def _saved(output: Output, result: GenerationResult) -> Saved:
    """Write the files of a result. Raises OSError; files that were written before it are removed."""
    files: list[GeneratedFile] = [*result.images, *result.files]
    names: dict[Path, Iterator[Path]] = {}
    paths: list[Path] = []
    notes: list[str] = []
    wanted = [_target(output, result, file, number) for number, file in enumerate(files, 1)]
    for file, target in zip(files, wanted, strict=True):
        fallback = names.setdefault(target, _names(target, is_numbered=wanted.count(target) > 1))
        path = next(fallback) if output.is_forced else _reserved(fallback)
        try:
            file.save(path)
        except OSError:
            for each in () if output.is_forced else (*paths, path):
                if each.is_file():  # and no device
                    each.unlink()
            raise
        paths.append(path)
        if not output.is_folder and wanted.count(target) == 1 and path.name != target.name:
            notes.append(f"{target} exists and was kept; the new picture is {path} (--force overwrites)")
    if not output.is_folder and wanted and wanted[0].suffix != output.path.suffix:
        notes.append(f"-o {output.text}: the job made {files[0].mime_type}, so the file ends in {wanted[0].suffix}")
    return Saved(tuple(paths), notes=tuple(notes))


def _target(output: Output, result: GenerationResult, file: GeneratedFile, number: int) -> Path:
    """Return the path that file `number` of a result should have, as long as nothing else has it."""
    seed = getattr(file, "seed", None)
    own_name = PureWindowsPath(file.filename).name or "picture"  # without the folders of either system
    if output.is_folder:
        name = f"{result.workflow}-{seed}{Path(own_name).suffix}" if seed is not None else own_name
        return output.path / name
    target = output.path.with_name(output.path.name.replace("{seed}", str(number if seed is None else seed)))
    suffix = _SUFFIXES.get(file.mime_type)
    asked = FORMATS.get(target.suffix.lower())
    return target.with_suffix(suffix) if suffix and asked and asked != FORMATS[suffix] else target


def _names(target: Path, *, is_numbered: bool) -> Iterator[Path]:
    """Yield the names that may be taken for `target`: itself if it is the only one, then name-1, name-2."""
    if not is_numbered:
        yield target
    for number in itertools.count(1):
        yield target.with_name(f"{target.stem}-{number}{target.suffix}")


def _reserved(names: Iterator[Path]) -> Path:
    """Return the first name that nothing has, with an empty file under it: two processes never choose the same."""
    for path in names:
        if path.exists() and not (path.is_file() or path.is_dir()):
            return path  # a device or a pipe, as /dev/null
        with suppress(FileExistsError):
            path.open("xb").close()
            return path
    raise AssertionError("names do not end")
