"""Builds the documentation as a site from mkdocs.yml, docs/ and the pages at the repository's root, without network.

The pages are written for GitHub. In a temporary copy of docs/, README.md becomes the first page, links to other files
of the repository become links to GitHub, GitHub's alerts (`> [!NOTE]`) become admonitions, and a `|` in a table's code
is not escaped. Zensical then builds the copy and checks every link between pages.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

import yaml  # type: ignore[import-untyped] # yaml ships no types

ROOT = Path(__file__).resolve().parent.parent
ROOT_PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
"""Pages outside docs/, with their file names on the site."""
LINK = re.compile(r"\]\((?!https?://|mailto:|#)(?P<target>[^)#\s]+)(?P<anchor>#[^)\s]*)?\)")
MAX_OPENING = 300
"""Maximum length of a page's first paragraph, in characters."""
TABLE_ROW = re.compile(r"^\|.*\|$", re.MULTILINE)
CODE = re.compile(r"`[^`]+`")
ALERT = re.compile(r"^> \[!(?P<kind>\w+)\]\n(?P<lines>(?:>.*\n?)+)", re.MULTILINE)


def site_page(text: str, source: str, site_paths: Mapping[str, str], repository: str) -> str:
    """Return a page's Markdown with links and alerts rewritten for the site.

    Args:
        text: The page's Markdown in the repository.
        source: The page's path in the repository.
        site_paths: The path on the site of every page, by its path in the repository.
        repository: The repository's URL, for links to files that are not pages.
    """

    def site_link(link: re.Match[str]) -> str:
        path = normalized(PurePosixPath(source).parent / link["target"])
        anchor = link["anchor"] or ""
        up = "../" * (len(PurePosixPath(site_paths[source]).parts) - 1)
        if path in site_paths:
            return f"]({up}{site_paths[path]}{anchor})"
        if path.startswith("docs/"):  # an image, which is copied with its folder
            return f"]({up}{path.removeprefix('docs/')}{anchor})"
        return f"]({repository}/blob/main/{path}{anchor})"

    def admonition(alert: re.Match[str]) -> str:
        lines = (f"    {line.removeprefix('>').strip()}\n" for line in alert["lines"].splitlines())
        return f"!!! {alert['kind'].lower()}\n\n{''.join(lines)}"

    def row_without_escapes(row: re.Match[str]) -> str:
        """Return a table's row whose code has no backslash before `|`. GitHub needs it, and Zensical would show it."""
        return CODE.sub(lambda code: code[0].replace("\\|", "|"), row[0])

    return TABLE_ROW.sub(row_without_escapes, ALERT.sub(admonition, LINK.sub(site_link, text)))


def normalized(path: PurePosixPath) -> str:
    """Return a path with `..` resolved. The path must not leave the repository."""
    parts: list[str] = []
    for part in path.parts:
        if part == "..":
            parts.pop()
        else:
            parts.append(part)
    return "/".join(parts)


def nav_pages(config: object) -> set[str]:
    """Return the pages that `config` names: the `nav` of mkdocs.yml, or a part of it."""
    if isinstance(config, str):
        return {config}
    entries = config.values() if isinstance(config, dict) else config if isinstance(config, list) else []
    return {page for entry in entries for page in nav_pages(entry)}


def opening_faults(pages: Mapping[str, str]) -> list[str]:
    """Return a message for each page that does not open with a paragraph on what it is for and who reads it.

    `pages` are the Markdown texts by path in the repository. The paragraph names the readers after `for`, and has at
    most MAX_OPENING characters.
    """
    faults = []
    for page, text in pages.items():
        blocks = [block for block in text.split("\n\n")[1:] if not block.startswith("<!--")]
        opening = blocks[0] if blocks else ""
        if not re.match(r"[\w`]", opening) or not re.search(r"\b[Ff]or\b", opening) or len(opening) > MAX_OPENING:
            faults.append(
                f"{page}: open it with one or two sentences on what it is for and who reads it, such as "
                "'How to release a version, for maintainers.'"
            )
    return faults


class ConfigLoader(yaml.SafeLoader):  # type: ignore[misc] # yaml ships no types
    """A YAML loader for mkdocs.yml that reads `!!python/name` as None."""


ConfigLoader.add_multi_constructor("tag:yaml.org,2002:python/name:", lambda *_: None)


def nav_faults(page_names: set[str]) -> list[str]:
    """Return a message for each page that `nav` in mkdocs.yml lacks, and for each page in it that does not exist."""
    listed = nav_pages(yaml.load((ROOT / "mkdocs.yml").read_text(), ConfigLoader)["nav"])  # noqa: S506 - a SafeLoader
    missing = [f"mkdocs.yml: nav does not list {name}" for name in sorted(page_names - listed)]
    return [*missing, *(f"mkdocs.yml: nav lists {name}, which does not exist" for name in sorted(listed - page_names))]


def write_sources(folder: Path) -> set[str]:
    """Write the site's sources, pages and mkdocs.yml, into `folder`. Return the pages' paths on the site."""
    repository = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Homepage"]
    site_paths = {page: page.removeprefix("docs/") for page in _docs_pages()} | ROOT_PAGES
    shutil.copytree(ROOT / "docs", folder / "docs", ignore=shutil.ignore_patterns("*.md"))
    shutil.copy(ROOT / "mkdocs.yml", folder)
    for source, site_path in site_paths.items():
        target = folder / "docs" / site_path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(site_page((ROOT / source).read_text(), source, site_paths, repository))
    return set(site_paths.values())


def _docs_pages() -> list[str]:
    """Return the paths of the pages in docs/, relative to the repository."""
    return sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md"))


def build_site(folder: Path) -> Path:
    """Build the site in `folder`, and return the folder of its pages.

    Exits the program if a page is missing from the `nav`, a page does not open with its purpose, or a link is broken.
    """
    texts = {page: (ROOT / page).read_text() for page in [*_docs_pages(), "CONTRIBUTING.md"]}
    if faults := [*nav_faults(write_sources(folder)), *opening_faults(texts)]:
        sys.exit("\n".join(faults))
    zensical = Path(sys.executable).with_name("zensical")
    built = subprocess.run(  # noqa: S603 - fixed arguments
        [zensical, "build", "--strict", "--config-file", folder / "mkdocs.yml"],
        capture_output=True,
        text=True,
        check=False,
    )
    if built.returncode:
        sys.exit(f"scripts/site: the site has broken links.\n{built.stdout}{built.stderr.partition('Traceback')[0]}")
    return folder / "site"


def main() -> None:
    """Build the site. With --check, keep nothing."""
    with tempfile.TemporaryDirectory() as temporary:
        built = build_site(Path(temporary))
        if "--check" not in sys.argv:
            shutil.rmtree(ROOT / "site", ignore_errors=True)
            shutil.copytree(built, ROOT / "site")
            print("site/index.html")


if __name__ == "__main__":
    main()
