"""Builds the documentation as a site from mkdocs.yml, docs/ and the pages at the root. It needs no network.

The pages are written for GitHub. In a temporary copy of docs/, README.md becomes the first page, links to other files
of the repository become links to GitHub, and GitHub's boxes become admonitions. Zensical then builds the copy and
checks every link between pages.
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

import yaml  # type: ignore[import-untyped] # it ships no types

ROOT = Path(__file__).resolve().parent.parent
PAGES_OF_THE_ROOT = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
"""Pages outside docs/, and their names on the site."""
LINK = re.compile(r"\]\((?!https?://|mailto:|#)(?P<target>[^)#\s]+)(?P<anchor>#[^)\s]*)?\)")
BOX = re.compile(r"^> \[!(?P<kind>\w+)\]\n(?P<lines>(?:>.*\n?)+)", re.MULTILINE)


def site_page(text: str, source: str, names: Mapping[str, str], repository: str) -> str:
    """Return a page as the site has it.

    Args:
        text: The page's Markdown.
        source: Its path in the repository.
        names: The path on the site of every page, by its path in the repository.
        repository: The repository's address, for links to files that are no pages.
    """

    def link(found: re.Match[str]) -> str:
        path = normalized(PurePosixPath(source).parent / found["target"])
        anchor = found["anchor"] or ""
        if path in names:
            up = "../" * (len(PurePosixPath(names[source]).parts) - 1)
            return f"]({up}{names[path]}{anchor})"
        if path.startswith("docs/"):  # an image, which is copied with its folder
            return found[0]
        return f"]({repository}/blob/main/{path}{anchor})"

    def box(found: re.Match[str]) -> str:
        lines = (f"    {line.removeprefix('>').strip()}\n" for line in found["lines"].splitlines())
        return f"!!! {found['kind'].lower()}\n\n{''.join(lines)}"

    return BOX.sub(box, LINK.sub(link, text))


def normalized(path: PurePosixPath) -> str:
    """Return a path without `..`; it stays in the repository."""
    parts: list[str] = []
    for part in path.parts:
        if part == "..":
            parts.pop()
        else:
            parts.append(part)
    return "/".join(parts)


def nav_pages(config: object) -> set[str]:
    """Return the pages that the `nav` of mkdocs.yml names."""
    if isinstance(config, str):
        return {config}
    entries = config.values() if isinstance(config, dict) else config if isinstance(config, list) else []
    return {page for entry in entries for page in nav_pages(entry)}


class ConfigLoader(yaml.SafeLoader):  # type: ignore[misc] # the same
    """Reads mkdocs.yml; a `!!python/name` is read as None."""


ConfigLoader.add_multi_constructor("tag:yaml.org,2002:python/name:", lambda *_: None)


def nav_faults(names: set[str]) -> list[str]:
    """Return what is wrong with the `nav`: pages that it lacks, and pages that do not exist."""
    listed = nav_pages(yaml.load((ROOT / "mkdocs.yml").read_text(), ConfigLoader)["nav"])  # noqa: S506 - a SafeLoader
    missing = [f"mkdocs.yml: nav does not list {name}" for name in sorted(names - listed)]
    return [*missing, *(f"mkdocs.yml: nav lists {name}, which does not exist" for name in sorted(listed - names))]


def stage(folder: Path) -> list[str]:
    """Write the pages and mkdocs.yml into `folder`. Return the faults of the `nav`."""
    repository = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Homepage"]
    pages = {f"docs/{path.relative_to(ROOT / 'docs').as_posix()}" for path in (ROOT / "docs").rglob("*.md")}
    names = {page: page.removeprefix("docs/") for page in pages} | PAGES_OF_THE_ROOT
    shutil.copytree(ROOT / "docs", folder / "docs", ignore=shutil.ignore_patterns("*.md"))
    shutil.copy(ROOT / "mkdocs.yml", folder)
    for source, name in names.items():
        target = folder / "docs" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(site_page((ROOT / source).read_text(), source, names, repository))
    return nav_faults(set(names.values()))


def main() -> None:
    """Build the site. Exit with 1 if a link is broken or a page is missing from the `nav`."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if faults := stage(folder):
            sys.exit("\n".join(faults))
        zensical = Path(sys.executable).with_name("zensical")
        built = subprocess.run(  # noqa: S603 - no input of a stranger
            [zensical, "build", "--strict", "--config-file", folder / "mkdocs.yml"],
            capture_output=True,
            text=True,
            check=False,
        )
        if built.returncode:
            sys.exit(
                f"scripts/site: the site has broken links.\n{built.stdout}{built.stderr.partition('Traceback')[0]}"
            )
        if "--check" not in sys.argv:
            shutil.rmtree(ROOT / "site", ignore_errors=True)
            shutil.copytree(folder / "site", ROOT / "site")
            print("site/index.html")


if __name__ == "__main__":
    main()
