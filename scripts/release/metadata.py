"""Prints the metadata of a release: the notes in CHANGELOG.md, the names of images, and layers too large for GHCR.

It uses only the standard library, so a CI job can run it without setup.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
EXIT_RELEASE_ERROR = 3
GB = 10**9
GHCR_LAYER_LIMIT_BYTES = 10 * GB
"""GHCR accepts layers of 10 GB, each within ten minutes (docs.github.com, Working with the Container registry)."""
COMMIT_DIGITS = 12
TAG_SUFFIXES: Mapping[str, str] = {"worker": "", "worker-flux1-dev-fp8": "-flux1-dev-fp8", "simulator": "-simulator"}
"""The suffix of the version in a tag, by the target of docker-bake.hcl."""


class ReleaseError(Exception):
    """Something must be corrected before the release; the message describes it."""


def version_in(pyproject: str) -> str:
    """Return the version in the text of pyproject.toml. Raises ReleaseError if it has none."""
    found = re.search(r'^version = "(\d+\.\d+\.\d+)"$', pyproject, re.MULTILINE)
    if not found:
        raise ReleaseError('pyproject.toml has no line like version = "1.2.3"')
    return found[1]


def release_notes(changelog: str, version: str) -> str:
    """Return the section of a version in CHANGELOG.md, without its heading. Raises ReleaseError if there is none."""
    heading = re.compile(rf"^## \[{re.escape(version)}\] - \d{{4}}-\d\d-\d\d$", re.MULTILINE)
    found = heading.search(changelog)
    if not found:
        raise ReleaseError(
            f"CHANGELOG.md has no heading like '## [{version}] - 2026-12-31'. Rename [Unreleased] to it, with the day, "
            "and put an empty [Unreleased] above it"
        )
    text = re.split(r"^## ", changelog[found.end() :], maxsplit=1, flags=re.MULTILINE)[0].strip()
    if not text:
        raise ReleaseError(f"CHANGELOG.md has no entry for {version}")
    return text


def image_names(target: str, repositories: list[str], version: str, commit: str, ref: str) -> Iterator[str]:
    """Yield the names of an image in each repository: by the commit, and by the version if `ref` is a git tag.

    A name always means the same image. There is no `latest`, because RunPod would not look it up again.
    Raises ReleaseError for an unknown target, an invalid commit, or a tag that is not the project's version.
    """
    if target not in TAG_SUFFIXES:
        raise ReleaseError(f"{target} is not a target. Targets: {', '.join(TAG_SUFFIXES)}")
    if not re.fullmatch(r"[0-9a-f]{40}", commit):
        raise ReleaseError(f"{commit!r} is not a commit: it needs the 40 digits that git rev-parse HEAD prints")
    names = [f"sha-{commit[:COMMIT_DIGITS]}"]
    if ref.startswith("refs/tags/"):
        check_tag(ref, version)
        names.insert(0, version)
    for repository in repositories:
        for name in names:
            yield f"{repository.lower()}:{name}{TAG_SUFFIXES[target]}"


def check_tag(ref: str, version: str) -> None:
    """Raise ReleaseError if a git tag is not the version in pyproject.toml."""
    if ref != f"refs/tags/v{version}":
        raise ReleaseError(
            f"{ref} is not the tag of version {version} in pyproject.toml. Delete the tag, correct the version, "
            f"and tag that commit v{version}"
        )


def image_manifest(layout: Path) -> dict[str, Any]:
    """Return the manifest of the amd64 image in an OCI layout, whose indexes may also list attestations."""
    manifest: dict[str, Any] = json.loads((layout / "index.json").read_text())
    while "manifests" in manifest:
        entry = next(each for each in manifest["manifests"] if _architecture(each) in ("amd64", None))
        manifest = json.loads((layout / "blobs" / entry["digest"].replace(":", "/")).read_text())
    return manifest


def _architecture(descriptor: Mapping[str, Any]) -> str | None:
    """Return the architecture of an index's entry: "unknown" for attestations, None for an index."""
    architecture: str | None = descriptor.get("platform", {}).get("architecture")
    return architecture


def layers_larger_than(manifest: Mapping[str, Any], limit_bytes: int) -> list[int]:
    """Return the sizes in bytes of an image's layers that are larger than `limit_bytes`."""
    sizes = [int(layer["size"]) for layer in manifest["layers"]]
    return [size for size in sizes if size > limit_bytes]


def _print_notes(options: argparse.Namespace) -> None:
    print(release_notes((ROOT / "CHANGELOG.md").read_text(), options.version))


def _print_image_names(options: argparse.Namespace) -> None:
    version = version_in((ROOT / "pyproject.toml").read_text())
    for name in image_names(options.target, options.repository, version, options.commit, options.ref):
        print(name)


def _print_version(options: argparse.Namespace) -> None:
    version = version_in((ROOT / "pyproject.toml").read_text())
    check_tag(options.ref, version)
    print(version)


def _check_layers(options: argparse.Namespace) -> None:
    if large := layers_larger_than(image_manifest(options.layout), GHCR_LAYER_LIMIT_BYTES):
        sizes = ", ".join(f"{size / GB:.1f} GB" for size in large)
        raise ReleaseError(f"{len(large)} layers are larger than GHCR allows (10 GB): {sizes}")


def main(arguments: list[str], environment: Mapping[str, str]) -> int:
    """Run the selected command; return the exit status."""
    parser = argparse.ArgumentParser(prog="scripts.release", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    command = commands.add_parser("notes", help="print the section of a version in CHANGELOG.md")
    command.add_argument("version")
    command.set_defaults(run=_print_notes)
    command = commands.add_parser("tags", help="print an image's names, one a line")
    command.add_argument("target", help="target of docker-bake.hcl")
    command.add_argument("repository", nargs="+", help="such as ghcr.io/me/flux-comfyui-worker")
    command.add_argument("--commit", default=environment.get("GITHUB_SHA", ""))
    command.add_argument("--ref", default=environment.get("GITHUB_REF", ""))
    command.set_defaults(run=_print_image_names)
    command = commands.add_parser("version", help="print the version, and fail if the git tag is another version")
    command.add_argument("--ref", default=environment.get("GITHUB_REF", ""))
    command.set_defaults(run=_print_version)
    command = commands.add_parser("layers", help="fail if an image has a layer that is too large for GHCR")
    command.add_argument("layout", type=Path, help="folder with an OCI layout")
    command.set_defaults(run=_check_layers)
    options = parser.parse_args(arguments)
    try:
        options.run(options)
    except ReleaseError as error:
        print(f"scripts/release: {error}", file=sys.stderr)
        return EXIT_RELEASE_ERROR
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], os.environ))
