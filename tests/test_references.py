"""Every citation of docs/reference/ names a page and a heading that exist."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parent.parent
PAGES = ROOT / "docs" / "reference"
CITATION = re.compile(r"(?P<folder>[\w/]*)reference/(?P<page>\w+)\.md(?:#(?P<heading>[\w-]+))?")
SKIPPED = ("CHANGELOG.md", "mkdocs.yml")
"""The changelog, which describes the past, and the site's table of contents, whose paths start below docs/."""


def slug(heading: str) -> str:
    """Return the anchor that GitHub gives to a heading."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings."""
    return {slug(line.lstrip("# ")) for line in page.read_text().splitlines() if line.startswith("#")}


def citations() -> list[tuple[str, str]]:
    """Return the position (`file:line`) and the text of each citation in the repository."""
    listed = subprocess.run(
        ["git", "grep", "--untracked", "-nIE", r"reference/\w+\.md", "--", ".", *(f":!{name}" for name in SKIPPED)],  # noqa: S607
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    found = []
    for line in listed.splitlines():
        path, number, text = line.split(":", 2)
        if path != "tests/test_references.py":
            found += [(f"{path}:{number}", match[0]) for match in CITATION.finditer(text)]
    return found


@pytest.mark.parametrize(("place", "citation"), citations())
def test_a_citation_leads_to_a_heading(place: str, citation: str) -> None:
    """The cited page and heading exist, so that a reader can look the fact up."""
    match = CITATION.fullmatch(citation)
    assert match is not None
    page = PAGES / f"{match['page']}.md"
    relative = place.startswith("docs/") and match["folder"] == ""
    assert relative or match["folder"] == "docs/", f"{place}: {citation}"
    assert page.is_file(), f"{place} cites {citation}, which does not exist"
    if match["heading"]:
        assert match["heading"] in anchors(page), f"{place} cites {citation}; {page.name} has no such heading"


def test_there_are_citations() -> None:
    """`citations` finds the citations: without any, the test above would check nothing."""
    assert len(citations()) > 40
