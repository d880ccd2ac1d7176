"""Parses models.txt: sha256, size, path, URL and licence of each model. Does not access the model files."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

from comfy_core.errors import ComfyClientError, ConfigError
from comfy_core.urls import is_loopback

PART_SUFFIX = ".part"
MARKER_SUFFIX = ".verified"
_FIELDS = ("sha256", "bytes", "path", "url", "licence")
_NAME = r"\w[\w.+-]*"


class WantedFile(Protocol):
    """A file to download: a model of the list, or the file at an address of a request."""

    @property
    def path(self) -> str:
        """The name of the file in messages."""

    @property
    def size(self) -> int:
        """The number of bytes."""

    @property
    def sha256(self) -> str:
        """The hash of the content; empty if it is not known before the download."""

    @property
    def url(self) -> str:
        """The download URL."""


@dataclass(frozen=True)
class ModelFile:
    """One model.

    Attributes:
        sha256: hash of the content, in lower-case hexadecimal.
        size: number of bytes.
        path: path inside ComfyUI's models folder, separated by `/`.
        url: download URL. It is not secret, but errors show it without its query.
        licence: SPDX identifier of the licence, or empty.
    """

    sha256: str
    size: int
    path: str
    url: str
    licence: str = ""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[0-9a-f]{64}", self.sha256):
            raise ValueError(f"sha256 must be 64 hexadecimal digits in lower case, not {self.sha256!r}")
        if self.size < 1:
            raise ValueError(f"bytes must be 1 or more, not {self.size}")
        if not re.fullmatch(rf"{_NAME}(/{_NAME})*", self.path) or self.path.endswith((PART_SUFFIX, MARKER_SUFFIX)):
            raise ValueError(
                f"path must be inside ComfyUI's models folder: names separated by '/', none beginning with a dot or "
                f"ending in {PART_SUFFIX} or {MARKER_SUFFIX}, not {self.path!r}"
            )
        if not _is_valid_url(self.url):
            raise ValueError(
                "url must begin with https:// (or http:// and a loopback address) and contain no user and no password"
            )


class ModelError(ComfyClientError):
    """A model is missing or wrong, or was not downloaded. The message names the model, the problem and the remedy.

    `problem` is the message without the model, and `is_temporary` whether a later attempt may succeed.
    """

    def __init__(self, model: WantedFile, problem: str, *, is_temporary: bool = False) -> None:
        super().__init__(f"{model.path}: {problem}")
        self.problem = problem
        self.is_temporary = is_temporary


class ModelsError(ComfyClientError):
    """Some models are missing or wrong, or were not downloaded. `errors` has one error for each."""

    def __init__(self, errors: tuple[ModelError, ...]) -> None:
        super().__init__("; ".join(map(str, errors)))
        self.errors = errors


def default_list() -> Path:
    """Return models.txt: inside the wheel, or next to the package in a checkout or in the image."""
    package = Path(__file__).parents[1]
    bundled = package / "models.txt"
    return bundled if bundled.is_file() else package.parent / "models.txt"


def read_models(file: Path) -> tuple[ModelFile, ...]:
    """Return the models of a list like models.txt. Raises ConfigError with every fault, each with its line."""
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ConfigError(f"The list of models {file} cannot be read: {reason}") from error
    lines: dict[str, int] = {}
    models: list[ModelFile] = []
    faults: list[str] = []
    for number, line in _entries(text):
        model = _model_or_fault(line)
        if isinstance(model, str):
            faults.append(f"{file} line {number}: {model}")
            continue
        first = lines.setdefault(model.path.casefold(), number)  # a volume may be case-insensitive
        if first != number:
            faults.append(f"{file} line {number}: path {model.path!r} is already in line {first}")
        models.append(model)
    if faults:
        raise ConfigError("; ".join(faults))
    return tuple(models)


def _entries(text: str) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip() and not line.lstrip().startswith("#"):
            yield number, line


def _model_or_fault(line: str) -> ModelFile | str:
    fields = line.split()
    if not len(_FIELDS) - 1 <= len(fields) <= len(_FIELDS):
        names = " ".join(_FIELDS[:-1])
        return f"must be `{names} [{_FIELDS[-1]}]`, 4 or 5 fields, and has {len(fields)}"
    sha256, size, *rest = fields
    if not re.fullmatch(r"[0-9]{1,18}", size):
        return f"bytes must be a whole number, not {size!r}"
    try:
        return ModelFile(sha256, int(size), *rest)
    except ValueError as error:
        return str(error)


def filter_models(models: tuple[ModelFile, ...], patterns: list[str]) -> tuple[ModelFile, ...]:
    """Return the models whose path matches one of `patterns`, or all models if there are no patterns.

    Raises ConfigError if a pattern matches no model.
    """
    for pattern in patterns:
        if not any(fnmatchcase(model.path, pattern) for model in models):
            known = ", ".join(model.path for model in models)
            raise ConfigError(f"--only {pattern!r} matches no model of the list. It has {known or 'none'}")
    return tuple(
        model for model in models if not patterns or any(fnmatchcase(model.path, pattern) for pattern in patterns)
    )


def _is_valid_url(url: str) -> bool:
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port  # an invalid port raises
    except ValueError:
        return False
    if not host or "@" in parts.netloc or not (url.isascii() and url.isprintable()):
        return False
    return parts.scheme == "https" or (parts.scheme == "http" and is_loopback(host))
