"""The whole of it, as an owner does it: deploy, make pictures through the real worker, destroy."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from tests.cli.conftest import Shell
from tests.fakes.runpod_rest import RunPodAccount
from tests.stage import Stage, staged


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    """The worker that the endpoint's image would be, on the queue that the endpoint gets."""
    with staged(step_s=0.02) as stage:
        yield stage


def test_deploy_make_pictures_destroy(
    stage: Stage, shipped: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The shipped deploy.toml with an owner: its one picture and those of the printed variables are the worker's."""
    monkeypatch.chdir(tmp_path)
    Path("deploy.toml").write_text(shipped.replace("OWNER", "me"))
    with RunPodAccount(stage.platform) as account:
        shell = Shell(account.environment())
        deployed = shell("deploy", "--yes")
        printed = dict(line.split("=", 1) for line in deployed.out.splitlines())
        made = shell("txt2img", "a castle", "--width", "64", "--height", "64", "--steps", "2", "-o", "a.png", **printed)
        destroyed = shell("destroy", "--yes")

    assert (deployed.status, made.status, destroyed.status) == (0, 0, 0), deployed.err + made.err
    for name, size in (("flux-comfyui.png", (1024, 1024)), ("a.png", (64, 64))):
        with Image.open(name) as picture:
            assert picture.size == size
    assert {job.worker_id for job in stage.platform.jobs.values()} == {"worker-1"}
    assert account.endpoints == {}
    assert "picture: done" in deployed.err
