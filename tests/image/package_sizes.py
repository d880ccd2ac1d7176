"""Run inside the image: prints the total size of the named packages and their dependencies."""

from __future__ import annotations

import importlib.metadata
import re
import sys
from pathlib import Path


def add_sizes(names: list[str], sizes: dict[str, int]) -> dict[str, int]:
    """Add the sizes of the packages and of their dependencies to `sizes`, by name; return `sizes`."""
    for name in names:
        try:
            package = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # required on another platform only
        if package.name.lower() not in sizes:
            files = [Path(file.locate()) for file in package.files or ()]
            sizes[package.name.lower()] = sum(file.stat().st_size for file in files if file.exists())
            requirements = [text for text in package.requires or () if "extra ==" not in text]
            add_sizes([re.split(r"[^\w.-]", text)[0] for text in requirements], sizes)
    return sizes


if __name__ == "__main__":
    print(sum(add_sizes(sys.argv[1:], {}).values()))  # noqa: T201 - read by the test
