"""The command python -m worker.snapshot.requirements, which compares ComfyUI's requirements with installed packages.

Unlike the rest of this package it depends on `packaging`, and it examines the Python that runs it. So ComfyUI's Python
has to run it.

Exit status 0: every requirement is met; 1: not, or a file cannot be read; 3: usage error.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import TextIO

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from comfy_core.command_line import ConfigErrorParser
from comfy_core.errors import ConfigError

EXIT_UNMET = 1
EXIT_USAGE_ERROR = 3
_REMEDY = (
    "Lock the packages of this ComfyUI with scripts/lock (COMFYUI_REF sets a commit other than snapshot.json's), and "
    "build again. To build without a package, add it to requirements/image-overrides.txt with the reason"
)


def unmet(requirements: str, overrides: str, version_of: Callable[[str], str | None]) -> list[str]:
    """Return a sentence for each line of `requirements` that the installed packages do not meet.

    Args:
        requirements: the content of ComfyUI's requirements.txt.
        overrides: the content of requirements/image-overrides.txt. A package whose marker there is false is left out of
            the image on purpose, so its requirement counts as met.
        version_of: returns the installed version of a package, or None if it is not installed.
    """
    left_out = {canonicalize_name(each.name) for each in map(Requirement, _lines(overrides)) if not _applies(each)}
    return [problem for line in _lines(requirements) if (problem := _problem(line, left_out, version_of))]


def _problem(line: str, left_out: Collection[str], version_of: Callable[[str], str | None]) -> str:
    """Return the sentence for one requirement, empty if it is met."""
    try:
        required = Requirement(line)
    except InvalidRequirement:
        return f"{line}: this line is not a requirement, so the lock cannot be compared with it"
    if not _applies(required) or canonicalize_name(required.name) in left_out:
        return ""
    version = version_of(required.name)
    if version is None:
        return f"{line}: {required.name} is not installed"
    if not required.specifier.contains(version, prereleases=True):
        return f"{line}: {required.name} {version} is installed"
    return ""


def _applies(requirement: Requirement) -> bool:
    return requirement.marker is None or requirement.marker.evaluate()


def _lines(text: str) -> Iterator[str]:
    """Yield the lines without comments and empty lines."""
    for line in text.splitlines():
        if stripped := re.sub(r"(^|\s)#.*", "", line).strip():
            yield stripped


def installed_version(name: str) -> str | None:
    """Return the version of a package of this Python, or None if it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def main(arguments: Sequence[str], err: TextIO) -> int:
    """Compare according to `arguments`; return the exit status."""
    parser = ConfigErrorParser(
        prog="python -m worker.snapshot.requirements",
        description="Compare ComfyUI's requirements with the packages of this Python.",
    )
    parser.add_argument("requirements", type=Path, help="ComfyUI's requirements.txt")
    parser.add_argument(
        "--overrides", type=Path, required=True, metavar="FILE", help="requirements/image-overrides.txt"
    )
    try:
        options = parser.parse_args(arguments)
        problems = unmet(options.requirements.read_text(), options.overrides.read_text(), installed_version)
    except ConfigError as error:
        err.write(f"{error}\n")
        return EXIT_USAGE_ERROR
    except OSError as error:
        err.write(f"ComfyUI's requirements were not compared: {error.filename} cannot be read ({error.strerror})\n")
        return EXIT_UNMET
    if problems:
        listed = "".join(f"- {problem}\n" for problem in problems)
        err.write(f"The image lacks packages that ComfyUI requires, or has other versions:\n{listed}{_REMEDY}\n")
        return EXIT_UNMET
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], sys.stderr))
