"""Writes the differences between two versions of ComfyUI as Markdown. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from tools.bump_comfyui.changes import Change

CELL_LENGTH = 120
"""Characters of a cell; a longer value is cut."""
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


def page(title: str, sections: Iterable[Section], closing: Iterable[str] = ()) -> str:
    """Return the page: a heading, the tables, and closing paragraphs. It is cut to BODY_LENGTH characters."""
    parts = [f"# {title}", *(part for section in sections for part in _section(section)), *closing]
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
    cells = [what, change.before, change.after, ", ".join(f"`{place}`" for place in readers) or "nothing"]
    return [*cells, ", ".join(change.recordings)] if has_recordings else cells


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(map(_cell, cells))} |"


def _cell(text: str) -> str:
    flat = " ".join(text.split()).replace("|", "\\|")
    return flat if len(flat) <= CELL_LENGTH else f"{flat[:CELL_LENGTH]}…"
