"""Finds banned phrases in comments, docstrings, texts of the program, and pages.

The repository is written in plain technical English. A phrase is banned because readers had to guess what it meant.
"""

from __future__ import annotations

import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

REPLACEMENTS = {
    "anew": "again",
    "ends well": "succeeds",
    "ended well": "succeeded",
    "is none": "does not exist",
    "its kin": "the names of the others",
    "whoever": "the caller, the owner, the process: which one",
    "is told": "is reported, gets",
    "the way back": "going back to Scenario",
    "what came": "the response, the bytes, the value: which one",
    "stands in for what": "simulates",
    "is to be had": "is available",
    "nobody's": "without an owner",
    "who asks": "the caller",
    "where it is absent": "if it is not set; Default: ...",
    "are none": "do not exist",
    "is asked for": "is requested",
    "is heard": "is received, takes effect",
    "answers well": "responds, responds with 200",
    "as it stands": "unchanged",
    "stands beside": "is next to",
    "who sends": "the caller",
    "what becomes of": "the result of, what happens to",
    "goes on": "continues",
    "gone on with": "resumed",
    "told apart": "distinguished",
    "knows nothing": "is independent of, has no data about",
}
"""Each banned phrase, and what to write instead."""

SKIPPED_PATHS = (
    "CHANGELOG.md",
    "LICENSE",
    "requirements/",
    "tools/check_language.py",
    "tests/recordings/",
    "tests/test_check_language.py",
)
"""The changelog, files by others, recordings, and this module with its test."""

CHECKED_SUFFIXES = {"", ".html", ".js", ".json", ".md", ".mjs", ".py", ".sh", ".toml", ".yaml", ".yml"}


def phrase_pattern(phrase: str) -> re.Pattern[str]:
    """Return a regular expression that matches a phrase, also across a line break in a comment.

    `is None` and "there is none" are not matched: the first is Python, the second is plain English.
    """
    words = r"[\s#]+".join(re.escape(word) for word in phrase.split())
    return re.compile(rf"(?<!\bthere\s)\b[{words[0].upper()}{words[0]}]{words[1:]}\b")


PATTERNS = {phrase: phrase_pattern(phrase) for phrase in REPLACEMENTS}


def comments_and_strings(source: str) -> str:
    """Return the comments and string literals of a Python module, each in the line where it is in `source`."""
    lines = [""] * (source.count("\n") + 2)
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type in {tokenize.COMMENT, tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", -1)}:
            for offset, line in enumerate(token.string.splitlines()):
                lines[token.start[0] - 1 + offset] += f" {line}"
    return "\n".join(lines)


def banned_phrases(text: str) -> Iterator[tuple[int, str]]:
    """Yield the line and the phrase of each use of a banned phrase."""
    for phrase, regex in PATTERNS.items():
        for found in regex.finditer(text):
            yield text.count("\n", 0, found.start()) + 1, phrase


def checked_files() -> list[str]:
    """Return the names of the files to check: tracked or new, with CHECKED_SUFFIXES, and not in SKIPPED_PATHS."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)  # noqa: S603
    return [
        name
        for name in sorted(set(listed.stdout.splitlines()))
        if not name.startswith(SKIPPED_PATHS) and Path(name).suffix in CHECKED_SUFFIXES and (ROOT / name).is_file()
    ]


def main() -> None:
    """Print each banned phrase with its file, its line and what to write instead; exit with 1 if there is one."""
    faults = []
    for name in checked_files():
        text = (ROOT / name).read_text()
        found = sorted(banned_phrases(comments_and_strings(text) if name.endswith(".py") else text))
        faults += [f"{name}:{line}: write {REPLACEMENTS[phrase]!r}, not {phrase!r}" for line, phrase in found]
    if faults:
        sys.exit("\n".join(faults))


if __name__ == "__main__":
    main()
