"""An account at RunPod with an empty endpoint's queue, a worker that answers at once, and the command in a folder."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from bench.stage import ROOT
from simulators.runpod.queue_api import RunPodPlatform
from simulators.runpod.rest import RunPodAccount
from simulators.runpod.scripted_worker import ScriptedWorker, pictured
from tests.cli.conftest import Ended, Shell

DESCRIPTION = """\
name = "flux"
image = "ghcr.io/me/worker:1.0.0"

[gpu]
pools = ["ADA_48_PRO", "ADA_24"]
min_cuda_version = "13.0"
"""
MODEL = "https://huggingface.co/me/models:main"
STORED = f'[storage]\ncached_model = "{MODEL}"\nnetwork_volume = "models"\n'


@dataclass(frozen=True)
class Desk:
    """Where somebody deploys from: a folder with a deploy.toml, and an account."""

    account: RunPodAccount
    platform: RunPodPlatform
    shell: Shell

    def write(self, more: str = "", text: str = DESCRIPTION) -> None:
        """Write deploy.toml."""
        Path("deploy.toml").write_text(text + more)

    def deploy(self, *arguments: str, **variables: str) -> Ended:
        """Deploy without being asked, and without a picture unless that is wanted."""
        flags = arguments if "--picture" in arguments else ("--no-picture", *arguments)
        return self.shell("deploy", "--yes", *flags, **variables)

    def destroy(self) -> Ended:
        """Destroy without being asked."""
        return self.shell("destroy", "--yes")

    @property
    def endpoint(self) -> dict[str, object]:
        """The one endpoint of the account."""
        [endpoint] = self.account.endpoints.values()
        return endpoint


@pytest.fixture(scope="session")
def shipped() -> str:
    """The deploy.toml that ships."""
    return (ROOT / "deploy.toml").read_text()


@pytest.fixture(scope="module")
def platform() -> Iterator[RunPodPlatform]:
    """An endpoint's queue with a worker."""
    with RunPodPlatform(long_poll_s=0.1) as platform, ScriptedWorker(platform, pictured):
        yield platform


@pytest.fixture
def desk(platform: RunPodPlatform, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    """An empty account, and a folder with a deploy.toml."""
    monkeypatch.chdir(tmp_path)
    with RunPodAccount(platform) as account:
        desk = Desk(account, platform, Shell(account.environment()))
        desk.write()
        yield desk
