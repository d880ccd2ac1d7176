"""The distribution's name, extras and version bounds. No text tells a reader to install another project from PyPI."""

from __future__ import annotations

import importlib
import itertools
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from comfy_core.errors import install_command, missing_extra

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PACKAGES = ("comfy_core", "comfy_client", "simulators", "worker")
FOLDERS = (".ci", ".github", ".runpod", "docs", "examples", "scripts", *PACKAGES)
INSTALL = re.compile(r"\bpip[\"']? install\b(?P<arguments>[^`\n#;&|)]*)")
OPTIONS_WITH_VALUE = {"-r", "--requirement", "--target", "-t", "-c", "--constraint", "--index-url"}


def text_files() -> Iterator[Path]:
    """Yield every text file that a user reads or that installs something."""
    files = [*ROOT.iterdir(), *(file for folder in FOLDERS for file in (ROOT / folder).rglob("*"))]
    for file in files:
        if file.is_file() and "node_modules" not in file.parts and "__pycache__" not in file.parts:
            try:
                file.read_text()
            except UnicodeDecodeError:
                continue
            yield file


def installed_names(text: str) -> list[str]:
    """Return the PyPI projects in each `pip install` of a text; files, folders and variables are ignored."""
    names = []
    for found in INSTALL.finditer(text):
        words = [word.strip("'\"") for word in found["arguments"].split()]
        for before, word in zip(["", *words], words, strict=False):
            if before not in OPTIONS_WITH_VALUE and re.match(r"[A-Za-z]", word):
                names.append(word)
    return names


def test_names_are_found() -> None:
    """The check finds a project's name, with or without an extra, and ignores a folder."""
    assert installed_names("pip install 'comfy-client[batch]'") == ["comfy-client[batch]"]
    assert installed_names("pip install uv") == ["uv"]
    assert installed_names("pip install -qq -r requirements/dev.txt `pip install '.[batch]'` pip install .") == []


@pytest.mark.parametrize("page", [*text_files()], ids=lambda page: str(page.relative_to(ROOT)))
def test_no_text_installs_another_project(page: Path) -> None:
    """No text has `pip install NAME`: this project is installed from a clone; PyPI's comfy-client is something else."""
    text = page.read_text()

    assert installed_names(text) == []
    assert "comfy-client[" not in text


def test_the_distribution_has_its_own_name() -> None:
    """The distribution is flux-comfyui-client; its command is comfy-client, and comfy_client has its version."""
    assert PROJECT["name"] == "flux-comfyui-client"
    assert PROJECT["scripts"] == {"comfy-client": "comfy_client.cli.main:run"}
    assert importlib.import_module("comfy_client").__version__ == PROJECT["version"]


def test_a_message_about_a_missing_extra_names_an_existing_one() -> None:
    """Each message names an extra of pyproject.toml, and the command that installs the extra from a clone."""
    extras = PROJECT["optional-dependencies"]
    sources = [file.read_text() for package in PACKAGES for file in (ROOT / package).rglob("*.py")]
    named = {extra for text in sources for extra in re.findall(r'(?:missing|requiring)_extra\(.+?, "([\w-]+)"\)', text)}

    assert named == {"batch", "mcp", "scenario", "scenario-sdk", "simulator"}
    assert named <= set(extras)
    assert install_command("batch") in str(missing_extra("The gallery", "batch"))
    assert install_command("batch") == "pip install '.[batch]'"


def test_upper_bounds_have_a_reason() -> None:
    """Only two packages have an upper bound, which prevents users from updating; the comment above gives the reason."""
    lines = (ROOT / "pyproject.toml").read_text().splitlines()
    capped = [(above, line) for above, line in itertools.pairwise(lines) if re.search(r'"[^"]*,<\d', line)]

    assert [re.findall(r'"([\w-]+)', line) for _, line in capped] == [["runpod"], ["scenario-sdk"]]
    assert all(above.lstrip().startswith("# ") for above, _ in capped)
