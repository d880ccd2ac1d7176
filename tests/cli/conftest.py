"""Fixtures: a Shell that runs `comfy-client` in this process, and a simulated platform."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from comfy_client.cli.main import main
from simulators.runpod.queue_api import RunPodPlatform
from simulators.runpod.scripted_worker import ScriptedWorker, image_result, png


@dataclass(frozen=True)
class Completed:
    """A completed command: its exit status, the bytes on its stdout, and the text on its stderr."""

    status: int
    data: bytes
    err: str

    @property
    def out(self) -> str:
        """The text on stdout."""
        return self.data.decode("utf-8")

    @property
    def json(self) -> Any:  # noqa: ANN401 - any JSON value
        """The value of the JSON text on stdout."""
        return json.loads(self.out)


@dataclass(frozen=True)
class Shell:
    """Runs the command with the variables of a platform."""

    environment: Mapping[str, str]

    def __call__(self, *arguments: str, **changes: str) -> Completed:
        """Run `comfy-client` with `arguments`, and with `changes` to the variables."""
        data, err = io.BytesIO(), io.StringIO()
        with io.TextIOWrapper(data, encoding="utf-8", write_through=True) as out:
            status = main(arguments, {**self.environment, **changes}, out, err)
            return Completed(status, data.getvalue(), err.getvalue())


@pytest.fixture
def platform() -> Iterator[RunPodPlatform]:
    """A platform with a worker that responds at once."""
    with RunPodPlatform(long_poll_s=0.1) as platform, ScriptedWorker(platform, image_result):
        yield platform


@pytest.fixture
def shell(platform: RunPodPlatform, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shell:
    """A Shell in a new folder with in.png and mask.png, a white image. Its log of jobs is in the folder `state`."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in.png").write_bytes(png(16))
    Image.new("L", (16, 16), 255).save(tmp_path / "mask.png")
    return Shell({**platform.client_env(), "COMFY_CLIENT_JOB_LOG": str(tmp_path / "state" / "jobs.sqlite3")})
