"""The WHERE clause of a list of records. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Filter:
    """The WHERE clause of a list: pairs of an SQL condition and its values, joined by AND."""

    conditions: tuple[tuple[str, tuple[Any, ...]], ...] = ()

    def where(self, condition: str, *values: object) -> Filter:
        """Return a new filter with one more condition."""
        return Filter((*self.conditions, (condition, values)))

    @property
    def text(self) -> str:
        """The SQL of the clause."""
        return " AND ".join(condition for condition, _ in self.conditions)

    @property
    def values(self) -> list[Any]:
        """The values of the clause."""
        return [value for _, values in self.conditions for value in values]
