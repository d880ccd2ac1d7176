"""The command in this process, and a platform that it finds."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from comfy_client.cli.main import main
from simulators.runpod.queue_api import RunPodPlatform
from simulators.runpod.scripted_worker import ScriptedWorker, pictured, png


@dataclass(frozen=True)
class Ended:
    """A command that ended."""

    status: int
    data: bytes
    err: str

    @property
    def out(self) -> str:
        """What it printed."""
        return self.data.decode("utf-8")

    @property
    def json(self) -> Any:  # noqa: ANN401 - any JSON value
        """The one object that it printed."""
        return json.loads(self.out)


@dataclass(frozen=True)
class Shell:
    """Calls the command with the variables of a platform."""

    environment: Mapping[str, str]

    def __call__(self, *arguments: str, **changes: str) -> Ended:
        """Call `comfy-client` with `arguments`."""
        data, err = io.BytesIO(), io.StringIO()
        with io.TextIOWrapper(data, encoding="utf-8", write_through=True) as out:
            status = main(arguments, {**self.environment, **changes}, out, err)
            return Ended(status, data.getvalue(), err.getvalue())


@pytest.fixture
def platform() -> Iterator[RunPodPlatform]:
    """A platform with a worker that answers at once."""
    with RunPodPlatform(long_poll_s=0.1) as platform, ScriptedWorker(platform, pictured):
        yield platform


@pytest.fixture
def shell(platform: RunPodPlatform, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shell:
    """The command in an empty folder, but for one picture."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in.png").write_bytes(png(16))
    return Shell(platform.client_env())
