"""The pages for contributors name files that exist, and the site has every page. `scripts/check` builds the site."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tools import site

ROOT = Path(__file__).parent.parent
PAGES = (
    "CONTRIBUTING.md",
    "docs/architecture.md",
    "docs/glossary.md",
    "docs/how-to-add.md",
    "tests/recordings/README.md",
)
PATH = re.compile(
    r"(?<![\w/.-])((?:comfy_\w+|bench|worker|simulators|scripts|tools|tests|workflows|docs|requirements)/[\w./-]*)"
)
PLACEHOLDERS = {"workflows/NAME.json", "workflows/NAME.inputs.json", "comfy_client/providers/NAME.py"}


@pytest.mark.parametrize("page", PAGES)
def test_a_page_for_contributors_names_files_that_exist(page: str) -> None:
    """Every path in a folder of PATH that the page names exists, except the PLACEHOLDERS."""
    named = {path.rstrip(".") for path in PATH.findall((ROOT / page).read_text())}
    missing = sorted(path for path in named - PLACEHOLDERS if not (ROOT / path).exists())

    assert missing == [], f"{page} names files that do not exist: correct the page"


def test_every_page_is_on_the_site(tmp_path: Path) -> None:
    """The nav of mkdocs.yml lists every page of the site, and nothing else."""
    assert site.nav_faults(site.write_sources(tmp_path)) == []


def test_links_and_boxes_become_those_of_the_site() -> None:
    """A link to a page leads to the site, a link to another file to GitHub. An alert becomes an admonition."""
    names = {"README.md": "index.md", "docs/a.md": "a.md", "docs/guide/b.md": "guide/b.md"}
    text = "[r](../README.md) [b](guide/b.md#x) [f](../Dockerfile) [w](https://w) [s](#s)\n\n> [!NOTE]\n> A box.\n"

    assert site.site_page(text, "docs/a.md", names, "https://g") == (
        "[r](index.md) [b](guide/b.md#x) [f](https://g/blob/main/Dockerfile) [w](https://w) [s](#s)\n\n"
        "!!! note\n\n    A box.\n"
    )
    assert site.site_page("[a](../a.md)", "docs/guide/b.md", names, "https://g") == "[a](../a.md)"


def test_a_pipe_in_the_code_of_a_table_is_not_escaped_on_the_site() -> None:
    """GitHub needs a backslash before `|` in a table's code; the site would show it. Other text is unchanged."""
    text = "| `png\\|webp` | a \\| b |\n\n`a\\|b`\n"

    assert site.site_page(text, "docs/a.md", {"docs/a.md": "a.md"}, "") == "| `png|webp` | a \\| b |\n\n`a\\|b`\n"


@pytest.mark.parametrize(
    ("page", "written", "on_the_site"),
    [
        ("README.md", "docs/a.webp", "a.webp"),
        ("docs/a.md", "benchmark/a.png", "benchmark/a.png"),
        ("docs/guide/b.md", "../a.webp", "../a.webp"),
    ],
)
def test_an_image_of_docs_is_found_on_the_site(page: str, written: str, on_the_site: str) -> None:
    """A link to an image in docs/ leads to its copy on the site, from the first page too."""
    names = {"README.md": "index.md", "docs/a.md": "a.md", "docs/guide/b.md": "guide/b.md"}

    assert site.site_page(f"![i]({written})", page, names, "https://g") == f"![i]({on_the_site})"


@pytest.mark.parametrize(
    ("text", "is_accepted"),
    [
        ("# A\n\nHow to release a version, for maintainers.\n\nMore.", True),
        ("# A\n\nFor maintainers, who release a version.\n\n## B", True),
        ("# A\n\n<!-- Written by scripts/docs. -->\n\nAll errors, for callers.\n\n## B", True),
        ("# A\n\nHow to release a version.\n\nMore, for maintainers.", False),
        ("# A\n\n- How to release a version, for maintainers.\n\nMore.", False),
        (f"# A\n\n{'How to release a version, ' * 12}for maintainers.\n", False),
        ("# A\n", False),
    ],
)
def test_a_page_opens_with_its_purpose_and_readers(text: str, is_accepted: bool) -> None:
    """The first paragraph is short, is no list, and names the readers. `scripts/site` names a page without one."""
    found = site.opening_faults({"docs/a.md": text})

    assert [fault.partition(":")[0] for fault in found] == ([] if is_accepted else ["docs/a.md"])
