"""Writes the differences between two versions of ComfyUI as Markdown. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tools.bump_comfyui.changes import Change

VALUE_LENGTH = 120
"""Characters of a value before or after; a longer one is cut."""
PLACES = 4
"""Places that a row lists."""
BODY_LENGTH = 65_000
"""GitHub accepts 65,536 characters as the text of a pull request."""


@dataclass(frozen=True)
class Section:
    """One table.

    Attributes:
        title: its heading.
        changes: its rows, each with the places that read what changed.
        note: a sentence above the table; may be empty.
    """

    title: str
    changes: Sequence[tuple[Change, Sequence[str]]]
    note: str = ""


def page(title: str, sections: Sequence[Section]) -> str:
    """Return the page: the files that read what changed, and the tables. It has at most BODY_LENGTH characters."""
    files = Counter(
        place.partition(":")[0] for section in sections for _, places in section.changes for place in places
    )
    listed = "\n".join(f"- `{file}`: {count}" for file, count in files.most_common()) or "None."
    parts = [f"# {title}", "Files that read what changed, with the number of rows below:", listed]
    parts += [part for section in sections for part in _section(section)]
    text = "\n\n".join(parts) + "\n"
    cut = "\n\n(cut: the complete table is in the work folder)\n"
    return text if len(text) <= BODY_LENGTH else text[: BODY_LENGTH - len(cut)].rpartition("\n")[0] + cut


def _section(section: Section) -> Iterator[str]:
    yield f"## {section.title}"
    if section.note:
        yield section.note
    if not section.changes:
        yield "No difference."
        return
    has_recordings = any(change.recordings for change, _ in section.changes)
    header = ["what", "pinned", "new", "read by", *(["recordings"] if has_recordings else [])]
    yield "\n".join(
        [_row(header), _row(["---"] * len(header)), *(_row(_cells(*row, has_recordings)) for row in section.changes)]
    )


def _cells(change: Change, readers: Sequence[str], has_recordings: bool) -> list[str]:
    what = f"{change.subject}: `{change.what}`" if change.what else change.subject
    places = [f"`{place}`" for place in readers[:PLACES]]
    more = [f"{len(readers) - PLACES} more"] if len(readers) > PLACES else []
    cells = [what, _cut(change.before), _cut(change.after), ", ".join([*places, *more]) or "nothing"]
    return [*cells, ", ".join(change.recordings)] if has_recordings else cells


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(map(_cell, cells))} |"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _cut(text: str) -> str:
    return text if len(text) <= VALUE_LENGTH else f"{text[:VALUE_LENGTH]}…"
