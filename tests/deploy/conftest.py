"""Fixtures: the shipped deploy.toml, an endpoint's queue with a worker, and a RunPod account with the command."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from bench.worker_setup import ROOT
from simulators.runpod.queue_api import RunPodPlatform
from simulators.runpod.rest import RunPodAccount
from simulators.runpod.scripted_worker import ScriptedWorker, image_result
from tests.cli.conftest import Completed, Shell

DESCRIPTION = """\
name = "flux"
image = "ghcr.io/me/worker:1.0.0"

[gpu]
pools = ["ADA_48_PRO", "ADA_24"]
min_cuda_version = "13.0"
"""
MODEL = "https://huggingface.co/me/models:main"
STORAGE_TABLE = f'[storage]\ncached_model = "{MODEL}"\nnetwork_volume = "models"\n'


@dataclass(frozen=True)
class DeploySetup:
    """The command in the current folder, which has a deploy.toml, with a simulated RunPod account."""

    account: RunPodAccount
    platform: RunPodPlatform
    shell: Shell

    def write(self, more: str = "", text: str = DESCRIPTION) -> None:
        """Write `text` and then `more` into deploy.toml."""
        Path("deploy.toml").write_text(text + more)

    def deploy(self, *arguments: str, **variables: str) -> Completed:
        """Run `comfy-client deploy --yes`, with --no-image unless `arguments` contain --image."""
        flags = arguments if "--image" in arguments else ("--no-image", *arguments)
        return self.shell("deploy", "--yes", *flags, **variables)

    def destroy(self) -> Completed:
        """Run `comfy-client destroy --yes`."""
        return self.shell("destroy", "--yes")

    @property
    def endpoint(self) -> dict[str, object]:
        """The account's endpoint, of which there must be exactly one."""
        [endpoint] = self.account.endpoints.values()
        return endpoint


@pytest.fixture(scope="session")
def shipped() -> str:
    """The text of the shipped deploy.toml."""
    return (ROOT / "deploy.toml").read_text()


@pytest.fixture(scope="module")
def platform() -> Iterator[RunPodPlatform]:
    """An endpoint's queue with a worker that responds at once."""
    with RunPodPlatform(long_poll_s=0.1) as platform, ScriptedWorker(platform, image_result):
        yield platform


@pytest.fixture
def deploy_setup(platform: RunPodPlatform, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[DeploySetup]:
    """The command with an account without endpoints. The current folder has only DESCRIPTION as deploy.toml."""
    monkeypatch.chdir(tmp_path)
    with RunPodAccount(platform) as account:
        deploy_setup = DeploySetup(account, platform, Shell(account.environment()))
        deploy_setup.write()
        yield deploy_setup
