"""The GitHub Actions workflows: runs the script of each step, and checks rules that linters do not check."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped] # has no types

from bench.worker_setup import ROOT
from scripts.release.metadata import version_in
from tests.fakes.commands import FakeCommands
from tests.needs import require_programs

pytestmark = pytest.mark.slow
FOLDER = ROOT / ".github" / "workflows"
VERSION = version_in((ROOT / "pyproject.toml").read_text())
COMMIT = "0123456789abcdef0123456789abcdef01234567"
SHORT = f"sha-{COMMIT[:12]}"
EXPRESSIONS = {
    "github.repository_owner": "Octo-Org",
    "github.token": "ghs_token",
    "secrets.DOCKERHUB_USERNAME": "octo",
    "env.GHCR": "ghcr.io/Octo-Org/flux-comfyui-worker",
    "needs.base.outputs.image": "debian:bookworm-slim@sha256:0123",
    "toJSON(needs.*.result)": '["success", "success", "success"]',
}
"""Values of the expressions in the environments of the steps."""
FAKED_SCRIPTS = (
    "check",
    "test",
    "browser",
    "engine",
    "site",
    "release/wheel",
    "release/smoke_image",
    "release/propose_comfyui",
    "release/test_runpod",
)
"""Scripts that are tested elsewhere. This module replaces them by fakes."""
HUB = "docker.io/octo/flux-comfyui-worker"
GHCR = "ghcr.io/octo-org/flux-comfyui-worker"
PUBLISHING = ("docker", "gh", "skopeo")
"""Programs that build and publish. This module replaces them by fakes."""
BAKE = "docker buildx bake --file docker-bake.hcl"
FP8 = "worker-flux1-dev-fp8"
OUTPUT_FILE = "github_output"
"""Name of the file of a step's outputs, in the folder of the repository."""


def copies(target: str, suffix: str, *repositories: str) -> list[str]:
    """Return the commands that push the built layout of a target under its names."""
    return [
        f"skopeo copy --quiet --all --preserve-digests oci:candidates/{target} docker://{repository}:{name}{suffix}"
        for repository in repositories
        for name in (VERSION, SHORT)
    ]


def build_command(*targets: str) -> str:
    """Return the command that builds targets as layouts, with the build cache at GHCR, where no weights are stored."""
    options = []
    for target in targets:
        options.append(f"--set {target}.output=type=oci,tar=false,dest=candidates/{target}")
        cache = target.removesuffix("-flux1-dev-fp8")
        options.append(f"--set {target}.cache-from=type=registry,ref={GHCR}:cache-{cache}")
        if target != FP8:
            options.append(f"--set {target}.cache-to=type=registry,ref={GHCR}:cache-{target},mode=max")
    return f"{BAKE} {' '.join(targets)} --sbom=true --provenance=mode=max {' '.join(options)}"


def load_commands(target: str) -> list[str]:
    """Return the commands that load the built layout of a target into the engine."""
    platform = "--override-os linux --override-arch amd64"
    return [
        f"skopeo copy --quiet {platform} oci:candidates/{target} docker-archive:/dev/stdout:candidate:{target}",
        "docker load --quiet",
    ]


CALLS: dict[str, list[str]] = {
    "image/image: Build": [build_command("worker", "simulator")],
    "image/image: Load": [*load_commands("worker"), *load_commands("simulator")],
    "image/weights: Build": [build_command(FP8, "simulator")],
    "image/weights: Load, after the disk space of the build is free again": [
        "docker buildx prune --all --force",
        *load_commands(FP8),
        *load_commands("simulator"),
    ],
    "image/image: Push": [*copies("worker", "", GHCR, HUB), *copies("simulator", "-simulator", GHCR, HUB)],
    "image/weights: Push": copies(FP8, "-flux1-dev-fp8", HUB),
    "image/weights: Copy to GHCR, if it accepts the layers": copies(FP8, "-flux1-dev-fp8", GHCR),
    "release/release: Publish it": [
        f"gh release create v{VERSION} dist/package.whl --verify-tag --title {VERSION} --notes-file notes.md"
    ],
}
"""Commands of the steps that build or publish, by workflow, job and step. Other steps do not call PUBLISHING."""


@dataclass(frozen=True)
class WorkflowStep:
    """A step with a script, and its environment."""

    name: str
    script: str
    env: dict[str, str]

    def __str__(self) -> str:
        return self.name


def workflows() -> dict[str, Any]:
    """Return the workflows by file name, without the suffix."""
    return {path.stem: yaml.safe_load(path.read_text()) for path in sorted(FOLDER.glob("*.yml"))}


def jobs() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield, for every job, the name of its workflow, the name of the job, and the job."""
    for workflow, content in workflows().items():
        for name, job in content["jobs"].items():
            yield workflow, name, job


def steps() -> Iterator[WorkflowStep]:
    """Yield every step that has a script. Its name is built like those in CALLS."""
    for workflow, job_name, job in jobs():
        for step in job.get("steps", []):
            if "run" in step:
                env = {**job.get("env", {}), **step.get("env", {})}
                yield WorkflowStep(f"{workflow}/{job_name}: {step['name']}", step["run"], env)


STEPS = list(steps())


def expanded(text: str) -> str:
    """Return a text with its expressions replaced, as GitHub does before a step starts."""
    return re.sub(r"\$\{\{ *(.*?) *\}\}", lambda found: EXPRESSIONS[found[1]], text)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A folder with the files of the repository that the steps use, and a changelog with notes for the version.

    FAKED_SCRIPTS are missing.
    """
    checkout = tmp_path / "checkout"
    ignored = shutil.ignore_patterns("__pycache__", *(name.rpartition("/")[2] for name in FAKED_SCRIPTS))
    shutil.copytree(ROOT / "scripts", checkout / "scripts", ignore=ignored)
    for name in ("pyproject.toml", "docker-bake.hcl", "Dockerfile"):
        shutil.copy(ROOT / name, checkout)
    dated = f"## [Unreleased]\n\n## [{VERSION}] - 2026-11-25"
    changelog = (ROOT / "CHANGELOG.md").read_text()
    if f"## [{VERSION}]" not in changelog:
        changelog = changelog.replace("## [Unreleased]", dated, 1)
    (checkout / "CHANGELOG.md").write_text(changelog)
    (checkout / "dist").mkdir()
    (checkout / "dist" / "package.whl").touch()
    layout = checkout / "candidates" / FP8
    layout.mkdir(parents=True)
    (layout / "index.json").write_text('{"layers": [{"size": 9000000000}]}')
    return checkout


@pytest.mark.parametrize("step", STEPS, ids=str)
def test_every_script_of_a_step_runs(step: WorkflowStep, repository: Path, tmp_path: Path) -> None:
    """Each step's script succeeds under bash -e -o pipefail, and publishes only what CALLS lists."""
    require_programs("jq")
    responses = {"df": "Avail\n 100\n", "docker buildx imagetools inspect": '{"digest": "sha256:0123"}'}
    fakes = FakeCommands(tmp_path / "fakes", (*PUBLISHING, "sudo", "df"), responses)
    for name in FAKED_SCRIPTS:
        fakes.put(repository / "scripts" / name)
    github = {"GITHUB_SHA": COMMIT, "GITHUB_REF": f"refs/tags/v{VERSION}", "GITHUB_REF_NAME": f"v{VERSION}"}
    github["GITHUB_OUTPUT"] = str(repository / OUTPUT_FILE)
    ended = subprocess.run(
        ["bash", "--noprofile", "--norc", "-e", "-o", "pipefail", "-c", step.script],  # noqa: S607
        cwd=repository,
        env={"PATH": fakes.path, "HOME": str(tmp_path), **github, **{k: expanded(v) for k, v in step.env.items()}},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert ended.returncode == 0, ended.stdout + ended.stderr
    called = [call for call in fakes.calls if call.startswith(PUBLISHING) and " inspect " not in call]
    assert sorted(called) == sorted(CALLS.get(step.name, [])), "skopeo and docker load run at the same time"


def test_the_base_image_is_resolved_once(repository: Path, tmp_path: Path) -> None:
    """The first job of image.yml outputs the base image with its digest, and each build gets that output."""
    [resolve] = [step for step in STEPS if step.name.startswith("image/base: ")]
    fakes = FakeCommands(tmp_path / "fakes", ("docker",), {"docker buildx": '{"digest": "sha256:0123"}'})
    env = {"PATH": fakes.path, "GITHUB_OUTPUT": str(repository / OUTPUT_FILE)}
    subprocess.run(["bash", "-e", "-o", "pipefail", "-c", resolve.script], cwd=repository, env=env, check=True)  # noqa: S607

    assert (repository / OUTPUT_FILE).read_text() == "image=debian:bookworm-slim@sha256:0123\n"
    builds = [step for step in STEPS if "candidate_image" in step.script and "load_candidate" not in step.script]
    assert len(builds) == 2
    assert {step.env["BASE_IMAGE"] for step in builds} == {"${{ needs.base.outputs.image }}"}


def test_every_step_of_calls_exists() -> None:
    """Every step that CALLS names exists in its workflow."""
    assert CALLS.keys() <= {step.name for step in STEPS}


@pytest.mark.parametrize("result", ["failure", "cancelled", "skipped"])
def test_the_required_job_fails_unless_all_succeeded(result: str) -> None:
    """The required job fails if another job failed, was skipped or was cancelled."""
    [step] = [step for step in STEPS if step.name == "ci/required: All jobs succeeded"]
    ended = subprocess.run(
        ["bash", "-e", "-c", step.script],  # noqa: S607
        env={**os.environ, "RESULTS": f'["success", "{result}", "success"]'},
        capture_output=True,
        check=False,
    )

    assert ended.returncode != 0


def test_without_docker_hub_the_images_without_weights_go_to_ghcr(repository: Path, tmp_path: Path) -> None:
    """Without DOCKERHUB_USERNAME, the images without weights are pushed to ghcr.io only."""
    [step] = [step for step in STEPS if step.name == "image/image: Push"]
    fakes = FakeCommands(tmp_path / "fakes", PUBLISHING, {})
    env = {"PATH": fakes.path, "GITHUB_SHA": COMMIT, "GHCR": GHCR, "DOCKERHUB_USERNAME": ""}
    subprocess.run(["bash", "-e", "-o", "pipefail", "-c", step.script], cwd=repository, env=env, check=True)  # noqa: S607

    assert fakes.calls
    assert not [call for call in fakes.calls if "docker.io" in call]


@pytest.mark.parametrize("step", STEPS, ids=str)
def test_shellcheck_finds_nothing_in_a_step(step: WorkflowStep) -> None:
    """The script of every step passes shellcheck."""
    ended = subprocess.run(
        ["shellcheck", "--shell=bash", "-"],  # noqa: S607
        input=step.script,
        env={**os.environ, "PATH": f"{ROOT / '.venv' / 'bin'}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )

    assert ended.returncode == 0, ended.stdout


def test_permissions_and_timeouts_are_set_by_each_job() -> None:
    """Each job sets permissions and a timeout. The workflow itself has a concurrency group and no permission."""
    for name, content in workflows().items():
        assert content["permissions"] == {}, name
        assert content["concurrency"]["group"], name
    for workflow, name, job in jobs():
        assert "permissions" in job, (workflow, name)
        assert "uses" in job or job["timeout-minutes"] <= 180, (workflow, name)


def test_actions_are_pinned_and_checkouts_keep_no_credentials() -> None:
    """An action is named by its full commit, with the version next to it; a checkout keeps no credentials."""
    for path in FOLDER.glob("*.yml"):
        for line in re.findall(r"uses: (.*)", path.read_text()):
            is_local = line.startswith("./")
            assert is_local or re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", line), line
    for workflow, name, job in jobs():
        for step in job.get("steps", []):
            if step.get("uses", "").startswith("actions/checkout@"):
                assert step["with"] == {"persist-credentials": False}, (workflow, name)


def test_no_script_has_an_expression_in_it() -> None:
    """No script contains an expression, because GitHub would insert its value into the script as code.

    Values are passed in environment variables.
    """
    assert not [step.name for step in STEPS if "${{" in step.script]


def test_each_image_is_tested_and_scanned_before_it_is_pushed() -> None:
    """In each job that pushes images, the smoke test and a scan of each of them come before the push.

    A scan fails at a finding of severity high or critical that has a fix and is not in .grype.yaml.
    """
    for name in ("image", "weights"):
        job_steps = workflows()["image"]["jobs"][name]["steps"]
        order = [step.get("name", "") for step in job_steps]
        push = order.index("Push")
        pushed = set(re.findall(r"publish_image (\S+)", job_steps[push]["run"]))
        scans = [step["with"] for step in job_steps[:push] if step.get("uses", "").startswith("anchore/scan-action@")]
        assert order.index("Build") < order.index("Smoke test") < push, name
        assert {scan.pop("image") for scan in scans} == {f"candidate:{target}" for target in pushed}, name
        for scan in scans:
            assert scan == {
                "config": ".grype.yaml",
                "severity-cutoff": "high",
                "only-fixed": True,
                "output-format": "table",
            }
