"""File accesses of a ComfyUI process, from a log of strace: those of Python, and those of libraries in C and Rust.

strace -f --seccomp-bpf -qq -y -ttt -s 4096 -e trace=%file -o LOG python main.py ...
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

_CALL = re.compile(r"^\d+ +(\d+\.\d+) (\w+)\((.*)$")
_PATH = re.compile(r'(?:(?:AT_FDCWD|\d+)<([^>]*)>, )?"((?:[^"\\]|\\.)*)"')
_WRITES = {"mkdir", "mkdirat", "rename", "renameat", "renameat2", "unlink", "unlinkat", "rmdir", "link", "linkat"} | {
    "symlink", "symlinkat", "truncate", "creat", "mknod", "mknodat", "chmod", "fchmodat", "chown", "fchownat",
}  # fmt: skip
_OPENS = {"open", "openat", "openat2"}
_CREATED_BY_COMFYUI = {"input", "output", "temp", "input/3d"}
"""Folders that ComfyUI creates whenever it lists the files a loader node can load (for `/object_info`)."""
_OWN_FILES = re.compile(r"(^|/)(input|output|temp|datasets)/(run-[0-9a-f]{32}(/|$)|ComfyUI_temp_[a-z]{5}_\d+_\.png$)")
"""The folders of runs, and the images of preview nodes: these have random names and are deleted with their run."""


@dataclass(frozen=True)
class Access:
    """One path in one system call of the process."""

    at: float
    call: str
    path: Path
    writes: bool
    opens: bool
    is_directory: bool

    def __str__(self) -> str:
        return f"{self.call} {'writes' if self.writes else 'reads'} {self.path}"


def accesses(log: Iterable[str]) -> Iterator[Access]:
    """Yield each path of each system call in a log of strace."""
    for line in log:
        found = _CALL.match(line)
        if not found:
            continue
        at, call, rest = found.groups()
        opens = call in _OPENS
        writes = call in _WRITES or (opens and bool(re.search(r"O_(WRONLY|RDWR|CREAT|TRUNC)", rest)))
        for folder, quoted in _PATH.findall(rest.partition(" = ")[0]):
            text = quoted.encode("latin-1", "replace").decode("unicode_escape").encode("latin-1", "replace")
            path = Path(os.path.normpath(os.path.join(folder or "/", os.fsdecode(text))))  # noqa: PTH118
            yield Access(float(at), call, path, writes, opens, "O_DIRECTORY" in rest)


def strays(
    log: Iterable[str],
    directory: Path,
    is_forbidden: Callable[[Path], bool],
    since: float,
    writable_folders: Iterable[Path],
) -> Iterator[Access]:
    """Yield the accesses after `since` that a job must not cause.

    These are writes outside the job's own folders, opened files of other jobs or outputs, and any forbidden path. Each
    folder of a run counts as the job's own unless `is_forbidden`. Reads in the input folder are allowed, except in the
    folders of other runs: ComfyUI lists the folder and reads files there for `/object_info`, and a graph may load the
    files that belong to no run. ComfyUI itself may write to `writable_folders`.
    """
    allowed = (Path("/dev/null"), Path("/dev/shm"), *writable_folders)  # noqa: S108 - semaphores of libraries
    for access in accesses(log):
        if access.at < since or (_OWN_FILES.search(str(access.path)) and not is_forbidden(access.path)):
            continue
        inside = access.path.relative_to(directory).as_posix() if access.path.is_relative_to(directory) else ""
        if access.writes:
            is_allowed = inside in _CREATED_BY_COMFYUI or any(map(access.path.is_relative_to, allowed))
            is_stray = not is_allowed and access.path.name != "datasets"
        elif inside.partition("/")[0] in {"input", "output", "temp"}:
            is_shared_input = inside.startswith("input/") and not inside.startswith("input/run-")
            is_file = not access.is_directory and inside not in _CREATED_BY_COMFYUI
            is_stray = access.opens and is_file and not is_shared_input
        else:
            is_stray = is_forbidden(access.path)
        if is_stray:
            yield access
