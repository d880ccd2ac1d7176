"""Formats rows as lines: on a terminal a table of its width, elsewhere plain columns for other programs."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from comfy_client.cli.screen import Screen
from comfy_client.cli.terminal import Sequences, console_for, visible

MIN_PROSE_COLUMNS = 24
"""If less of the terminal's width than this is left for the column with prose, all columns may be wrapped."""
GOOD, DOUBTFUL, BAD = "green", "yellow", "bold red"
MARK_STYLES = {"ok": GOOD, "??": DOUBTFUL, "!!": BAD}


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Its heading is only shown on a terminal. A column with prose is wrapped if the terminal is too narrow for the table.
    `styles` has the style of each cell text that is emphasized (rich.readthedocs.io/en/stable/style.html).
    """

    heading: str = ""
    is_right: bool = False
    is_prose: bool = False
    styles: Mapping[str, str] = field(default_factory=dict)


def table_lines(screen: Screen, columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table for `screen`.

    On a terminal, a column whose cells are all empty is left out. Without a terminal there are no headings, and no line
    is wrapped.
    """
    if screen.is_json or not rows:
        return []
    rows = [list(map(visible, row)) for row in rows]
    if screen.is_terminal:
        filled = [any(cells) for cells in zip(*rows, strict=True)]
        kept_rows = [list(itertools.compress(row, filled)) for row in rows]
        return _terminal_lines(screen, list(itertools.compress(columns, filled)), kept_rows)
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if column.is_right else cell.ljust(width)
            for column, cell, width in zip(columns, row, widths, strict=True)
        ).rstrip()
        for row in rows
    ]


def _terminal_lines(screen: Screen, columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> list[str]:
    from rich.cells import cell_len  # noqa: PLC0415 - only needed on a terminal
    from rich.table import Table  # noqa: PLC0415 - as above
    from rich.text import Text  # noqa: PLC0415 - as above

    console = console_for(screen.out)
    table = Table(
        box=None,
        pad_edge=False,
        padding=(0, 2, 0, 0),
        show_header=any(column.heading for column in columns),
        header_style="bold",
    )
    narrow = [
        max(map(cell_len, cells)) + 2
        for column, cells in zip(columns, zip(*rows, strict=True), strict=True)
        if not column.is_prose
    ]
    is_wide_enough = sum(narrow) + MIN_PROSE_COLUMNS <= console.width
    for column in columns:
        table.add_column(
            column.heading,
            justify="right" if column.is_right else "left",
            no_wrap=is_wide_enough and not column.is_prose,
            overflow="fold",
        )
    for row in rows:
        styled = [Text(cell, column.styles.get(cell, "")) for column, cell in zip(columns, row, strict=True)]
        table.add_row(*styled)
    with console.capture() as captured:
        console.print(table)
    return [Sequences(line.rstrip()) for line in captured.get().splitlines()]
