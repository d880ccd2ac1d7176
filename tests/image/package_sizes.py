"""Run inside the image: prints the total size of the named packages and their dependencies."""

from __future__ import annotations

import importlib.metadata
import re
import sys
from pathlib import Path


def sizes_of(names: list[str], seen: dict[str, int]) -> dict[str, int]:
    """Return the size of each package and its dependencies by name, except those in `seen`."""
    for name in names:
        try:
            package = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # required on another platform only
        if package.name.lower() not in seen:
            files = [Path(file.locate()) for file in package.files or ()]
            seen[package.name.lower()] = sum(file.stat().st_size for file in files if file.exists())
            requirements = [text for text in package.requires or () if "extra ==" not in text]
            sizes_of([re.split(r"[^\w.-]", text)[0] for text in requirements], seen)
    return seen


if __name__ == "__main__":
    print(sum(sizes_of(sys.argv[1:], {}).values()))  # noqa: T201 - read by the test
