"""A difference between two versions of ComfyUI, as every comparison of this package returns it."""

from __future__ import annotations

from dataclasses import dataclass

ABSENT = "-"
"""The value of something that one of the two versions does not have."""


@dataclass(frozen=True)
class Change:
    """One difference between the pinned ComfyUI and the new one.

    Attributes:
        subject: what it belongs to: a message, a node class, a flag, a route, a package.
        what: the part of the subject that differs; empty if it is the subject itself.
        before: its value in the pinned ComfyUI, or ABSENT.
        after: its value in the new ComfyUI, or ABSENT.
        recordings: the names of the recordings that show it.
    """

    subject: str
    what: str
    before: str
    after: str
    recordings: tuple[str, ...] = ()
