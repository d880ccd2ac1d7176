"""The check of the language finds banned phrases in prose."""

from __future__ import annotations

from tools import check_language


def test_a_banned_phrase_is_found_in_prose_and_not_in_code() -> None:
    """Comments, docstrings and texts are read; `is None` is Python, and "there is none" is plain English."""
    source = (
        '"""Begins\nanew if there is none."""\nassert x is None  # a number that is none\n'
        '# whoever\nanew = f"what came {x}"\n'
    )

    assert sorted(check_language.banned_phrases(check_language.comments_and_strings(source))) == [
        (2, "anew"),
        (3, "is none"),
        (4, "whoever"),
        (5, "what came"),
    ]
