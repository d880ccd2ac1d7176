"""Canaries: files around a ComfyUI that no job may reach, and the detection of a job that reached one."""

from __future__ import annotations

import base64
import io
import json
import shutil
import struct
import wave
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from tests.comfyui.conftest import png

COLOUR = (13, 57, 201)
"""The colour of every planted image; no hostile graph generates it."""
_MAX_COLOUR_DEVIATION = 2
"""The maximum deviation of a colour channel in a lossy format."""
MARKER = "canary-4d1f0b"
"""Text in every planted file that is not an image."""
UNNAMED = "unnamed-9c27e3"
"""Part of the names of those planted files that no request names. If a result contains it, a folder was listed."""
OTHER_JOB = f"run-{'c' * 32}"
"""The run folder of another job, with planted files."""
ABSENT_JOB = f"run-{'e' * 32}"
"""A run folder that does not exist."""
FOLDERS = ("input", "output", "temp")
SYSTEM_FILES = ("/etc/shadow", "/proc/self/environ", "/dev/zero", "/dev/stdin", "/root/.ssh/id_rsa")


def _latent() -> bytes:
    data = struct.pack("<64f", *[4.25] * 64)
    header = json.dumps(
        {
            "__metadata__": {"prompt": MARKER},
            "latent_tensor": {"dtype": "F32", "shape": [1, 4, 4, 4], "data_offsets": [0, len(data)]},
            "latent_format_version_0": {"dtype": "F32", "shape": [0], "data_offsets": [len(data), len(data)]},
        }
    ).encode()
    return struct.pack("<Q", len(header)) + header + data


def _wav() -> bytes:
    encoded = io.BytesIO()
    with wave.open(encoded, "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(8000)
        sound.writeframes(MARKER.encode() * 64)
    return encoded.getvalue()


CONTENTS: Mapping[str, bytes] = {
    "0.png": png(8, 8, f"rgb{COLOUR}"),
    "a_00001_.png": png(8, 8, f"rgb{COLOUR}"),
    "a.latent": _latent(),
    "a.safetensors": _latent(),
    "a.wav": _wav(),
    "a.txt": MARKER.encode(),
    "a.glb": b"glTF\x02\0\0\0" + MARKER.encode(),
}


class Canaries:
    """The planted files, and the expected file tree after all jobs.

    Args:
        directory: ComfyUI's base folder, if this process can access it.
        outside: a folder that does not belong to ComfyUI.
    """

    def __init__(self, directory: Path | None, outside: Path) -> None:
        self._directory = directory
        self.folders = [outside / "private"]
        if directory is not None:
            self.folders += [directory / kind / OTHER_JOB for kind in FOLDERS]
            self.folders += [directory / "output", directory / "temp", directory / "input-private"]
        self._forbidden_folders = [
            folder for folder in self.folders if folder.name in {"private", OTHER_JOB, "input-private"}
        ]
        self._files = [
            folder / f"{mark}{name}" for folder in self.folders for name in CONTENTS for mark in ("", f"{UNNAMED}-")
        ]
        if directory is not None:  # files directly in the input folder may be used; only their listing is a secret
            self._files += [
                directory / "input" / place / f"{UNNAMED}-{name}" for name in CONTENTS for place in ("", "3d")
            ]
        for file in self._files:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(CONTENTS[file.name.removeprefix(f"{UNNAMED}-")])
        self._before = self._tree()

    @property
    def targets(self) -> list[str]:
        """The absolute paths that attacks try to reach; some do not exist."""
        planted = [str(folder / name) for folder in self.folders for name in CONTENTS]
        absent = [str(folder / "absent.png") for folder in self.folders]
        missing = [str((self._directory or self.folders[0]) / "input" / ABSENT_JOB / "0.png")]
        return [*planted, *absent, *missing, *SYSTEM_FILES]

    def is_forbidden(self, path: Path) -> bool:
        """Return whether `path` is in a planted folder that no job may access, or is a secret of the machine."""
        return str(path) in SYSTEM_FILES or any(map(path.is_relative_to, self._forbidden_folders))

    def changes(self) -> list[str]:
        """Return the files that were added, changed or removed since the start. New empty folders do not count."""
        now = self._tree()
        return sorted(
            [f"+ {path}" for path in now.keys() - self._before.keys()]
            + [f"- {path}" for path in self._before.keys() - now.keys()]
            + [f"* {path}" for path in now.keys() & self._before.keys() if now[path] != self._before[path]]
        )

    def _tree(self) -> dict[str, bytes]:
        roots = [self.folders[0]]
        if self._directory is not None:
            roots += [self._directory / kind for kind in (*FOLDERS, "input-private")]
        files = (path for root in roots for path in root.rglob("*"))
        return {str(path): path.read_bytes() for path in files if path.is_file()}

    def remove(self) -> None:
        """Remove the planted files."""
        for file in self._files:
            file.unlink(missing_ok=True)
        for folder in self._forbidden_folders:
            shutil.rmtree(folder, ignore_errors=True)


def leaks(result: Mapping[str, Any]) -> Iterator[str]:
    """Yield a description of each name or content of a planted file that a result or an error contains."""
    words = json.dumps({**result, "images": [], "files": []}, default=str)
    if UNNAMED in words:
        yield "the name of a file that the request does not have"
    for file in [*result.get("images", ()), *result.get("files", ())]:
        data = base64.b64decode(file["data"])
        if UNNAMED in file["filename"] or UNNAMED.encode() in data:
            yield f"{file['filename']}: the name of another's file"
        if MARKER.encode() in data:
            yield f"{file['filename']}: another's bytes"
        if _has_colour(data):
            yield f"{file['filename']}: another's pixels"


def _has_colour(data: bytes) -> bool:
    try:
        image = Image.open(io.BytesIO(data)).convert("RGB")
    except OSError:
        return False
    return any(
        all(abs(value - planted) <= _MAX_COLOUR_DEVIATION for value, planted in zip(colour, COLOUR, strict=True))
        for _, colour in image.getcolors(1 << 20) or []
        if isinstance(colour, tuple)
    )
