"""`comfy-client batch` on the example game with a LoRA by address, on the real SDK: killed and resumed."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench.worker_setup import ROOT, WorkerSetup, running_worker
from simulators.hugging_face import ModelServer
from simulators.waiting import until
from tests.core.models.addresses import HF, HF_PATH, LORA, sha256
from tests.production.test_models_task import SCRIPT

pytestmark = pytest.mark.slow
KILLS = 3
LORAS = f'loras = [{{ hf = "{HF.removeprefix("hf:")}", sha256 = "{sha256(LORA)}", strength = 0.8 }}]'


def example_with_lora() -> str:
    """Return the assets.toml of the example game with the LoRA, and with small images."""
    text = (ROOT / "examples/castle-defence/assets.toml").read_text()
    text = text.replace("steps = 24", f"steps = 2\n{LORAS}")
    for size in ("1344", "1024", "768", "512"):
        text = text.replace(f"= {size}", "= 64")
    return text


def start_batch(setup: WorkerSetup, folder: Path, *flags: str) -> subprocess.Popen[str]:
    """Start the command in `folder`."""
    command = [sys.executable, "-m", "comfy_client.cli.main", "batch", "assets.toml", "--out=out", "--json", *flags]
    environment = {**os.environ, **setup.platform.client_env(), "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True)


def kill_after_some_jobs(setup: WorkerSetup, folder: Path, jobs: int) -> None:
    """Run the command until it has submitted `jobs` jobs, and kill it."""
    wanted = len(setup.platform.jobs) + jobs
    with start_batch(setup, folder) as process:
        assert until(lambda: len(setup.platform.jobs) >= wanted or process.poll() is not None, 60)
        process.kill()


def finish_batch(setup: WorkerSetup, folder: Path, *flags: str) -> dict[str, Any]:
    """Run the command to its end, and return its report."""
    with start_batch(setup, folder, *flags) as process:
        report: dict[str, Any] = json.loads(process.communicate(timeout=120)[0])
    return report


def seeds(setup: WorkerSetup) -> list[int]:
    """Return the seeds of all jobs; each image has its own."""
    return [job.input["seed"] for job in setup.platform.jobs.values() if isinstance(job.input, dict)]


def test_a_killed_batch_makes_each_image_once_and_fetches_the_lora_once(tmp_path: Path) -> None:
    """After three kills the next run continues, no job was sent twice, and the file was downloaded once.

    A kill during a submit needs --resend-unsure.
    """
    (tmp_path / "assets.toml").write_text(example_with_lora())
    chance = random.Random(4)  # noqa: S311 - reproducible, not secret
    with ModelServer() as server:
        server.put(HF_PATH, LORA)
        environment = {"MODEL_SERVER": server.url}
        with running_worker(shares_files=True, step_s=0.02, script=SCRIPT, environment=environment) as setup:
            for _ in range(KILLS):
                kill_after_some_jobs(setup, tmp_path, chance.randint(1, 3))
            unsure = finish_batch(setup, tmp_path)["counts"].get("unsure", 0)
            was_sent_once = len(seeds(setup)) == len(set(seeds(setup)))
            report = finish_batch(setup, tmp_path, "--resend-unsure")
            sent, downloads = len(seeds(setup)), setup.worker.log.count("downloaded, ")
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    names = {lora["name"] for asset in manifest["assets"] for lora in asset["inputs"]["loras"]}

    assert was_sent_once
    assert all(asset["state"] == "ready" for asset in report["assets"])
    assert sent <= len(report["assets"]) + unsure
    assert downloads == 1
    assert names == {f"{HF}#sha256={sha256(LORA)}"}
