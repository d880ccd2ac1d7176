"""Atomic file writes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from comfy_core.files import write_atomically


def test_a_file_is_replaced_and_its_folder_created(tmp_path: Path) -> None:
    """The file has the new bytes and the given mode, and no temporary file is left."""
    path = tmp_path / "new" / "file"
    write_atomically(path, b"old")
    write_atomically(path, b"new", mode=0o600)

    assert path.read_bytes() == b"new"
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(path.parent.iterdir()) == [path]


@pytest.fixture
def restrictive_umask() -> Iterator[None]:
    """The process's umask is 0o027 during the test: other users cannot read new files."""
    before = os.umask(0o027)
    yield
    os.umask(before)


@pytest.mark.usefixtures("restrictive_umask")
def test_the_umask_applies(tmp_path: Path) -> None:
    """A file that is written without a mode gets 0o666 without the bits of the umask."""
    write_atomically(tmp_path / "file", b"data")

    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640


def test_a_link_is_replaced(tmp_path: Path) -> None:
    """The target of a symbolic link keeps its content."""
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_bytes(b"theirs")
    link.symlink_to(target)

    write_atomically(link, b"ours")

    assert (target.read_bytes(), link.read_bytes(), link.is_symlink()) == (b"theirs", b"ours", False)


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    """If the file cannot be moved to its path, the temporary file is deleted."""
    (tmp_path / "folder").mkdir()

    with pytest.raises(IsADirectoryError):
        write_atomically(tmp_path / "folder", b"data")

    assert list(tmp_path.iterdir()) == [tmp_path / "folder"]
