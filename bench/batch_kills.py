"""Kills `comfy-client batch` repeatedly, and counts the images at the end and the jobs that were sent twice."""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from simulators.runpod.queue_api import RunPodPlatform
from simulators.runpod.scripted_worker import Body, ScriptedWorker, image_result

BATCH_WORKERS = 4
GROUP = """
[groups.entities{number}]
[[groups.entities{number}.assets]]
name = "knight"
prompt = "a knight"
variations = 16
[[groups.entities{number}.assets]]
name = "gold"
from = "knight"
prompt = "a golden knight"
variations = 16
"""
IMAGES_PER_GROUP = 32


def batch_kills(options: argparse.Namespace) -> None:
    """Run a batch for about `options.minutes`, kill it `options.kills` times at random moments, print the outcome."""
    group_count = max(1, round(options.minutes * 60 * BATCH_WORKERS / (IMAGES_PER_GROUP * options.job_s)))
    rng = random.Random(options.seed)  # noqa: S311 - the seed makes a run repeatable
    pause = threading.Event()

    def respond(job: Body) -> Body:
        pause.wait(options.job_s * rng.uniform(0.5, 1.5))
        return image_result(job)

    with tempfile.TemporaryDirectory() as name, RunPodPlatform(long_poll_s=2.0) as platform:
        folder = Path(name)
        groups = "".join(GROUP.format(number=number) for number in range(group_count))
        (folder / "assets.toml").write_text(f'game = "kills"\n{groups}')
        command = [sys.executable, "-m", "comfy_client.cli.main", "batch", "assets.toml", "--out=out", "--json"]
        environment = {**os.environ, **platform.client_env(), "PYTHONPATH": str(Path(__file__).parent.parent)}
        begun_at = time.monotonic()
        with ScriptedWorker(platform, respond, threads=BATCH_WORKERS):
            for _ in range(options.kills):
                run = subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL)
                try:
                    run.wait(options.minutes * 60 / (options.kills + 1) * rng.uniform(0.5, 1.5))
                except subprocess.TimeoutExpired:
                    run.kill()
                    run.wait()
            last_run = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        report = json.loads(last_run.stdout)
        files = list((folder / "out").rglob("*.png"))
        seeds = [job.input["seed"] for job in platform.jobs.values() if isinstance(job.input, dict)]
    print(f"{IMAGES_PER_GROUP * group_count} images, {options.kills} kills, {time.monotonic() - begun_at:.0f} s")
    print(f"last run: {report['counts']}, status {last_run.returncode}; files {len(files)}")
    print(f"jobs at the endpoint {len(seeds)}, of them repeated {len(seeds) - len(set(seeds))}")
