"""`comfy-client models --comfyui-dir` as a process: output, a kill, a full disk, and two downloads at once."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from bench.worker_setup import ROOT
from simulators.comfyui import Simulator
from simulators.hugging_face import ModelServer
from simulators.waiting import until
from tests.core.models.addresses import HF, HF_PATH, LORA, sha256

pytestmark = pytest.mark.slow
KNIGHT = "loras/knight.safetensors"
SCRIPT = ROOT / "tests/cli/models_command.py"
TOKEN = "hf_TOPSECRET"  # noqa: S105 - not real


@dataclass(frozen=True)
class Setup:
    """A ComfyUI on this machine, a server of models, and the command."""

    simulator: Simulator
    server: ModelServer
    base: Path

    @property
    def part_sizes(self) -> list[int]:
        """The sizes of unfinished downloads."""
        return [part.stat().st_size for part in self.base.glob("models/.by-address/*.part")]

    def start(self, *arguments: str, **variables: str) -> subprocess.Popen[str]:
        """Start `comfy-client models` with the folder of the ComfyUI."""
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "COMFYUI_ENDPOINT": self.simulator.url,
            "MODEL_SERVER": self.server.url,
            "COMFY_CLIENT_JOB_LOG": str(self.base.parent / "jobs.sqlite3"),
            **variables,
        }
        command = [sys.executable, str(SCRIPT), "models", *arguments, f"--comfyui-dir={self.base}"]
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def run(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run the command until it ends."""
        with self.start(*arguments, **variables) as process:
            out, err = process.communicate(timeout=120)
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)

    def download(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run the download of the LoRA."""
        return self.run("download", HF, "--folder=loras", *arguments, **variables)


@pytest.fixture
def setup(lora_server: ModelServer, tmp_path: Path) -> Iterator[Setup]:
    """A ComfyUI without files, and a server with one LoRA."""
    base = tmp_path / "base"
    base.mkdir()
    with Simulator(base_directory=base) as simulator:
        (base / "models/loras").mkdir(parents=True)
        yield Setup(simulator, lora_server, base)


def test_the_command_downloads_lists_and_deletes(setup: Setup) -> None:
    """Each output has the file with size and hash; the JSON has the worker's keys; the token is shown nowhere."""
    done = setup.download(HF_TOKEN=TOKEN)
    again = setup.download("--json")
    listed = setup.run("list", "loras")
    as_json = json.loads(setup.run("list", "--json").stdout)
    deleted = setup.run("delete", KNIGHT)

    assert done.stdout == f"downloaded {KNIGHT}  {len(LORA):,} bytes  sha256 {sha256(LORA)}\n"
    assert {request.token for request in setup.server.requests(HF_PATH)} == {TOKEN}
    assert TOKEN not in done.stdout + done.stderr
    assert json.loads(again.stdout)["downloaded"] is False
    [line] = [line for line in listed.stdout.splitlines() if line.startswith(KNIGHT)]
    assert line.split()[1:4] == ["0.1", "MB", sha256(LORA)[:12]]
    assert line.endswith(HF)
    assert listed.stdout.splitlines()[-1].endswith(" GB are free")
    assert {"action", "models", "left_out", "disk"} <= as_json.keys()
    [entry] = [each for each in as_json["models"] if each["name"] == "knight.safetensors"]
    assert entry.keys() == {"folder", "name", "bytes", "sha256", "source", "last_used", "in_use"}
    assert as_json["disk"].keys() == {"folder", "free_bytes", "total_bytes"}
    assert deleted.stdout.startswith(f"deleted {KNIGHT}")
    assert not (setup.base / "models" / KNIGHT).exists()


def test_a_killed_download_is_resumed(setup: Setup) -> None:
    """After SIGKILL in the middle, the same command downloads only the rest."""
    hold = setup.server.hold(HF_PATH, after=50_000)
    with setup.start("download", HF, "--folder=loras") as process:
        assert until(lambda: setup.part_sizes == [50_000])
        process.kill()
        process.communicate()
    hold.release()
    done = setup.download()

    assert done.stdout.startswith(f"downloaded {KNIGHT}"), done.stderr
    assert setup.server.requests(HF_PATH)[-1].offset == 50_000
    assert sha256((setup.base / "models" / KNIGHT).read_bytes()) == sha256(LORA)
    assert setup.part_sizes == []
    assert list((setup.base / "models/.by-address").glob("*.safetensors")) == []


def test_ctrl_c_ends_the_download(setup: Setup) -> None:
    """Ctrl-C ends the command with 130 and keeps the received bytes for the next one."""
    hold = setup.server.hold(HF_PATH, after=50_000)
    with setup.start("download", HF, "--folder=loras") as process:
        assert until(lambda: setup.part_sizes == [50_000])
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    hold.release()
    done = setup.download()

    assert process.returncode == 130
    assert "was cancelled" in err
    assert done.returncode == 0
    assert setup.server.requests(HF_PATH)[-1].offset == 50_000


def test_a_timeout_ends_the_download(setup: Setup) -> None:
    """--wait-timeout ends the command and its download. The error says so, and names no job to wait for."""
    hold = setup.server.hold(HF_PATH, after=50_000)
    late = setup.download("--wait-timeout=3")
    hold.release()
    done = setup.download()

    assert late.returncode == 1
    assert "The same command continues a download" in late.stderr
    assert "comfy-client wait" not in late.stderr
    assert done.returncode == 0


def test_two_processes_download_one_file_once(setup: Setup) -> None:
    """Of two commands at once, one downloads the file and the other waits for it. Both succeed."""
    hold = setup.server.hold(HF_PATH, after=50_000)
    asks = ("GET", "/experiment/models/loras")
    with setup.start("download", HF, "--folder=loras") as first:
        assert hold.reached.wait(60)
        with setup.start("download", HF, "--folder=loras") as second:
            assert until(lambda: setup.simulator.requests.count(asks) == 2)
            hold.release()
            outputs = [process.communicate(timeout=120) for process in (first, second)]

    assert [first.returncode, second.returncode] == [0, 0], outputs
    assert len(setup.server.requests(HF_PATH)) == 2, "one process requests the version and the file"
    assert sorted(out.split()[0] for out, _ in outputs) == ["already", "downloaded"]
    assert sha256((setup.base / "models" / KNIGHT).read_bytes()) == sha256(LORA)


def test_a_full_disk_keeps_the_received_bytes(setup: Setup) -> None:
    """A limit on the size of files is a full disk: one clear error, and the next run resumes."""
    full = setup.download(MAX_FILE_BYTES="40000")
    done = setup.download()

    assert full.returncode == 1
    assert f"the disk is full ({os.strerror(errno.EFBIG)})" in full.stderr
    assert "Traceback" not in full.stderr
    assert done.returncode == 0
    assert setup.server.requests(HF_PATH)[-1].offset == 40_000
