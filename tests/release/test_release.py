"""scripts/release: notes, image names, version, layer limit, disk space, and the copy to GHCR."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bench.worker_setup import ROOT
from scripts.release.metadata import (
    GHCR_LAYER_LIMIT_BYTES,
    TAG_SUFFIXES,
    ReleaseError,
    check_tag,
    image_names,
    layers_larger_than,
    release_notes,
    version_in,
)
from tests.fakes.commands import FakeCommands

pytestmark = pytest.mark.slow
COMMIT = "0123456789abcdef0123456789abcdef01234567"
CHANGELOG = """\
# Changelog

## [Unreleased]

## [1.2.0] - 2026-11-25

### Added

- Images. See [1.1.0].

## [1.1.0] - 2026-10-01

## [1.0.0] - 2026-09-01

- First.
"""


def test_notes_are_the_section_of_the_version() -> None:
    """The notes are the text between the version's heading and the next heading, or the end of the file."""
    assert release_notes(CHANGELOG, "1.2.0") == "### Added\n\n- Images. See [1.1.0]."
    assert release_notes(CHANGELOG, "1.0.0") == "- First."


@pytest.mark.parametrize(
    ("version", "expected"), [("1.3.0", "Rename \\[Unreleased\\]"), ("1.1.0", "no entry for"), ("1.2", "no heading")]
)
def test_a_version_without_notes_is_rejected(version: str, expected: str) -> None:
    """A release needs notes; the error says what to write."""
    with pytest.raises(ReleaseError, match=expected):
        release_notes(CHANGELOG, version)


def test_an_image_is_named_by_version_and_commit() -> None:
    """At a version's tag an image is named by version and commit, in each repository; otherwise by commit only.

    The names are in lower case, as registries require.
    """
    both = list(
        image_names("worker-flux1-dev-fp8", ["ghcr.io/Me/x", "docker.io/me/x"], "1.2.0", COMMIT, "refs/tags/v1.2.0")
    )
    one = list(image_names("worker", ["ghcr.io/Me/x"], "1.2.0", COMMIT, "refs/heads/main"))

    assert both == [
        "ghcr.io/me/x:1.2.0-flux1-dev-fp8",
        "ghcr.io/me/x:sha-0123456789ab-flux1-dev-fp8",
        "docker.io/me/x:1.2.0-flux1-dev-fp8",
        "docker.io/me/x:sha-0123456789ab-flux1-dev-fp8",
    ]
    assert one == ["ghcr.io/me/x:sha-0123456789ab"]


def test_the_suffixes_are_those_of_the_bake_file() -> None:
    """Each target of TAG_SUFFIXES is in docker-bake.hcl, and has the same suffix there."""
    bake = (ROOT / "docker-bake.hcl").read_text()

    for target, suffix in TAG_SUFFIXES.items():
        assert f'target "{target}" {{' in bake
        assert f'tags     = ["${{IMAGE}}:${{VERSION}}{suffix}"]' in bake


def test_a_tag_that_is_not_the_version_is_rejected() -> None:
    """The tag v1.3.0 on a commit of version 1.2.0 is an error, and so is a branch in place of the version's tag."""
    with pytest.raises(ReleaseError, match="Delete the tag"):
        list(image_names("worker", ["x"], "1.2.0", COMMIT, "refs/tags/v1.3.0"))
    with pytest.raises(ReleaseError, match="is not the tag of"):
        check_tag("refs/heads/main", "1.2.0")


@pytest.mark.parametrize(("target", "commit"), [("nothing", COMMIT), ("worker", "main")])
def test_unknown_targets_and_commits_are_rejected(target: str, commit: str) -> None:
    """A target that is not in TAG_SUFFIXES, or a commit that is not a full hash, is an error."""
    with pytest.raises(ReleaseError):
        list(image_names(target, ["x"], "1.2.0", commit, ""))


def test_the_version_is_that_of_the_project() -> None:
    """The version in pyproject.toml has three numbers. A file without a version is an error."""
    assert version_in((ROOT / "pyproject.toml").read_text()).count(".") == 2
    with pytest.raises(ReleaseError):
        version_in("[project]\n")


def test_layers_over_ghcr_s_limit_are_found() -> None:
    """Layers over the limit are found; a layer of exactly the limit is not."""
    sizes = [5, GHCR_LAYER_LIMIT_BYTES, GHCR_LAYER_LIMIT_BYTES + 1]

    assert layers_larger_than({"layers": [{"size": size} for size in sizes]}, GHCR_LAYER_LIMIT_BYTES) == sizes[2:]


def test_an_error_is_one_sentence_and_a_status() -> None:
    """scripts/release/notes without an entry ends with status 3 and one sentence, without a traceback."""
    ended = subprocess.run(
        [str(ROOT / "scripts" / "release" / "notes"), "99.0.0"], capture_output=True, text=True, check=False
    )

    assert ended.returncode == 3
    assert ended.stderr.startswith("scripts/release: CHANGELOG.md has no heading")
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    ("free", "runner", "status", "deletes"),
    [
        (["90"], "github-hosted", 0, False),
        (["20", "20", "60"], "github-hosted", 0, True),
        (["20", "20", "30"], "github-hosted", 1, True),
        (["20"], "", 1, False),
    ],
    ids=["enough", "after deleting", "not even then", "on a machine of one's own"],
)
def test_disk_space_is_freed_or_the_job_fails(
    free: list[str], runner: str, status: int, deletes: bool, tmp_path: Path
) -> None:
    """Files are only deleted if the space is too small, and only on GitHub's own runners.

    If the space is still too small, the script fails and names the page with the remedy.
    """
    fakes = FakeCommands(tmp_path, ("df", "sudo", "docker"), {"df": [f"Avail\n {gb}\n" for gb in free]})
    ended = subprocess.run(
        [str(ROOT / "scripts" / "release" / "free_disk_space"), "40"],
        env={"PATH": fakes.path, "RUNNER_ENVIRONMENT": runner},
        capture_output=True,
        text=True,
        check=False,
    )

    assert ended.returncode == status, ended.stderr
    assert any(call.startswith("sudo rm -rf /usr/share/dotnet") for call in fakes.calls) == deletes
    assert ("docs/release.md" in ended.stderr) == (status == 1)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with the scripts and the version of the repository."""
    folder = tmp_path / "checkout"
    shutil.copytree(ROOT / "scripts", folder / "scripts", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def write_layout(layout: Path, layer_bytes: int) -> None:
    """Write an OCI layout as BuildKit does: its index has an index with an attestation and the amd64 image."""
    blobs = layout / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    attestation = {"digest": "sha256:a", "platform": {"architecture": "unknown"}}
    image = {"digest": "sha256:b", "platform": {"architecture": "amd64"}}
    (layout / "index.json").write_text(json.dumps({"manifests": [{"digest": "sha256:c"}]}))
    (blobs / "c").write_text(json.dumps({"manifests": [attestation, image]}))
    (blobs / "b").write_text(json.dumps({"layers": [{"size": layer_bytes}]}))


@pytest.mark.parametrize(("size", "is_copied"), [(9 * 10**9, True), (11 * 10**9, False)])
def test_ghcr_gets_the_image_if_its_layers_are_small_enough(
    size: int, is_copied: bool, checkout: Path, tmp_path: Path
) -> None:
    """An image with a layer over GHCR's limit is not pushed there, with a notice; the status is 0 in both cases."""
    target = "worker-flux1-dev-fp8"
    write_layout(checkout / "candidates" / target, size)
    fakes = FakeCommands(tmp_path / "fakes", ("skopeo",), {})
    ended = subprocess.run(
        [str(checkout / "scripts" / "release" / "copy_to_ghcr"), target, "ghcr.io/me/x"],
        cwd=checkout,
        env={"PATH": fakes.path, "GITHUB_SHA": COMMIT},
        capture_output=True,
        text=True,
        check=False,
    )

    assert ended.returncode == 0, ended.stderr
    pushed = [call for call in fakes.calls if call.endswith(" docker://ghcr.io/me/x:sha-0123456789ab-flux1-dev-fp8")]
    assert bool(pushed) == is_copied
    assert ("11.0 GB" in ended.stderr) != is_copied


def test_only_python_is_needed() -> None:
    """The two modules can be imported without any installed package, as in the jobs of CI."""
    code = "import sys; sys.path.insert(0, '.'); import scripts.release.metadata, scripts.release.smoke_image"
    subprocess.run([sys.executable, "-I", "-S", "-c", code], cwd=ROOT, check=True)
