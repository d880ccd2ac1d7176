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
    "toJSON(needs.*.result)": '["success", "success", "success"]',
}
"""Values of the expressions in the environments of the steps."""
FAKED_SCRIPTS = (
    "check",
    "test",
    "browser",
    "engine",
    "release/wheel",
    "release/smoke_image",
    "release/propose_comfyui",
    "release/test_runpod",
)
"""Scripts that are tested elsewhere. This module replaces them by fakes."""
HUB = "docker.io/octo/flux-comfyui-worker"
GHCR = "ghcr.io/octo-org/flux-comfyui-worker"
BAKE = "docker buildx bake --file docker-bake.hcl"
FP8 = "worker-flux1-dev-fp8"
ATTESTED = "--push --sbom=true --provenance=mode=max"


def push_command(target: str, suffix: str, *repositories: str) -> str:
    """Return the command that pushes a target under its names."""
    names = [f"{repository}:{name}{suffix}" for repository in repositories for name in (VERSION, SHORT)]
    sets = " ".join(f"--set {target}.tags={name}" for name in names)
    to = f" --set {target}.cache-to=type=registry,ref={GHCR}:cache-{target},mode=max" if target != FP8 else ""
    return f"{BAKE} {target} {ATTESTED} {sets}{to}"


def candidate_options(target: str, cache: str) -> str:
    """Return the options that name a target's image `candidate`, and read the build cache at GHCR."""
    return f"--set {target}.tags=candidate:{target} --set {target}.cache-from=type=registry,ref={GHCR}:cache-{cache}"


CALLS: dict[str, list[str]] = {
    "image/image: Build": [
        (
            f"{BAKE} worker simulator --load {candidate_options('worker', 'worker')} "
            f"{candidate_options('simulator', 'simulator')}"
        ),
    ],
    "image/weights: Build": [
        (
            f"{BAKE} {FP8} simulator --load {candidate_options(FP8, 'worker')} "
            f"{candidate_options('simulator', 'simulator')}"
        ),
    ],
    "image/image: Push": [push_command("worker", "", GHCR, HUB), push_command("simulator", "-simulator", GHCR, HUB)],
    "image/weights: Push": [push_command(FP8, "-flux1-dev-fp8", HUB)],
    "image/weights: Copy to GHCR, if it accepts the layers": [
        f"docker buildx imagetools create --tag {GHCR}:{name}-flux1-dev-fp8 {HUB}:{name}-flux1-dev-fp8"
        for name in (VERSION, SHORT)
    ],
    "release/release: Publish it": [
        f"gh release create v{VERSION} dist/package.whl --verify-tag --title {VERSION} --notes-file notes.md"
    ],
}
"""Commands of the steps that build or publish, by workflow, job and step. Other steps call neither docker nor gh."""


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
    for name in ("pyproject.toml", "docker-bake.hcl"):
        shutil.copy(ROOT / name, checkout)
    dated = f"## [Unreleased]\n\n## [{VERSION}] - 2026-11-25"
    changelog = (ROOT / "CHANGELOG.md").read_text()
    if f"## [{VERSION}]" not in changelog:
        changelog = changelog.replace("## [Unreleased]", dated, 1)
    (checkout / "CHANGELOG.md").write_text(changelog)
    (checkout / "dist").mkdir()
    (checkout / "dist" / "package.whl").touch()
    return checkout


@pytest.mark.parametrize("step", STEPS, ids=str)
def test_every_script_of_a_step_runs(step: WorkflowStep, repository: Path, tmp_path: Path) -> None:
    """Each step's script succeeds under bash -e -o pipefail, and publishes only what CALLS lists."""
    require_programs("jq")
    responses = {"df": "Avail\n 100\n", "docker buildx imagetools inspect": '{"layers": [{"size": 9000000000}]}'}
    fakes = FakeCommands(tmp_path / "fakes", ("docker", "gh", "sudo", "df"), responses)
    for name in FAKED_SCRIPTS:
        fakes.put(repository / "scripts" / name)
    github = {"GITHUB_SHA": COMMIT, "GITHUB_REF": f"refs/tags/v{VERSION}", "GITHUB_REF_NAME": f"v{VERSION}"}
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
    called = [call for call in fakes.calls if call.startswith(("docker", "gh")) and " inspect " not in call]
    assert called == CALLS.get(step.name, [])


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
    fakes = FakeCommands(tmp_path / "fakes", ("docker",), {})
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


def test_an_image_is_tested_and_scanned_before_it_is_pushed() -> None:
    """In each job that pushes, the smoke test comes first; for images without weights, the scan too."""
    for name, job in workflows()["image"]["jobs"].items():
        names = [step.get("name", "") for step in job["steps"]]
        assert names.index("Build") < names.index("Smoke test") < names.index("Push"), name
    plain = [step.get("name", "") for step in workflows()["image"]["jobs"]["image"]["steps"]]
    assert plain.index("Scan for known vulnerabilities") < plain.index("Push")
