"""Reads JSON files, and writes files atomically."""

from __future__ import annotations

import json
import os
import secrets
from pathlib import Path
from typing import Any

from comfy_core.errors import ConfigError


def read_json(file: Path) -> Any:  # noqa: ANN401 - any JSON value
    """Return the value of the JSON text in a file. Raises ConfigError with the file's path."""
    try:
        return json.loads(file.read_bytes())
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{file} is not JSON: {error}") from error


def write_atomically(path: Path, data: bytes, *, mode: int = 0o666) -> None:
    """Write `data` to a temporary file in the folder of `path`, sync it to disk, and rename it to `path`.

    So `path` has its old content or all of `data`, even after a crash. Missing folders are created. A symbolic link at
    `path` is replaced, not followed. The umask applies to `mode`. Raises OSError; the temporary file is then deleted.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".part-{secrets.token_hex(8)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(descriptor)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
