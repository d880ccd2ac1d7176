"""The examples of docs/migrate.md and docs/rollout.md, taken from the pages and run unchanged.

They use the shim, started with the page's command, the simulated platform, the real worker, and the simulated
ComfyUI. The examples of rollout.md also use the simulated Scenario.
"""

from __future__ import annotations

import contextlib
import heapq
import io
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from bench.worker_setup import ROOT, WorkerSetup, running_worker
from comfy_client.client import client_from_env
from simulators.scenario import ScenarioSimulator
from simulators.waiting import until
from tests.needs import require_programs_of
from tests.npm import installed

pytestmark = pytest.mark.slow
FENCE = re.compile(r"^```(python|ts|js|sh)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
HEADING = re.compile(r"^##+ (.*)$", re.MULTILINE)
SERVE_COMMAND = "comfy-client scenario serve"
START_TIMEOUT_S = 120.0
RUN_TIMEOUT_S = 250
KEY, SECRET = "api_caller", "sec_caller_0123456789"


@dataclass(frozen=True)
class Example:
    """One code block of a page, with the heading above it."""

    page: str
    heading: str
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}: {self.heading}, {self.language}"

    def command(self, folder: Path) -> list[str]:
        """Return the command that runs the example; a file that it needs is written to `folder`."""
        require_programs_of("node " if self.language == "ts" else self.text)
        match self.language:
            case "python":
                return [sys.executable, "-c", self.text]
            case "sh":
                return ["bash", "-euo", "pipefail", "-c", self.text]
        module = folder / "example.mjs"
        module.write_text(self.text)
        return [shutil.which("node") or "node", str(module)]


def examples(page: str) -> list[Example]:
    """Return the Python, TypeScript, JavaScript and shell blocks of a page, in order."""
    text = (ROOT / "docs" / page).read_text()
    headings = [(found.start(), found[1]) for found in HEADING.finditer(text)]
    return [
        Example(page, next(name for at, name in reversed(headings) if at < found.start()), found[1], found[2])
        for found in FENCE.finditer(text)
    ]


MIGRATE_EXAMPLES = [
    example for example in examples("migrate.md") if SERVE_COMMAND not in example.text and example.language != "js"
]
[WORKER_EXAMPLE] = [example for example in examples("migrate.md") if example.language == "js"]
ROLLOUT_EXAMPLES = examples("rollout.md")
[SERVE_EXAMPLE] = [example for example in examples("migrate.md") if SERVE_COMMAND in example.text]


@dataclass(frozen=True)
class MigrationSetup:
    """The servers that the examples use."""

    worker_setup: WorkerSetup
    scenario: ScenarioSimulator
    shim_url: str
    tools: Path

    def environment(self) -> dict[str, str]:
        """Return the variables that the pages name. The comfy-client of this checkout is on PATH."""
        kept = {name: os.environ[name] for name in ("HOME", "LANG", "TMPDIR") if name in os.environ}
        return {
            **kept,
            "PATH": f"{self.tools}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            **self.worker_setup.platform.client_env(),
            "SCENARIO_SDK_API_KEY": KEY,
            "SCENARIO_SDK_API_SECRET": SECRET,
            **({"SCENARIO_BASE_URL": f"{self.shim_url}/v1"} if self.shim_url else {}),
        }


@pytest.fixture(scope="module")
def setup() -> Iterator[MigrationSetup]:
    """The worker, the simulated Scenario, and the shim, started with the page's command."""
    with (
        tempfile.TemporaryDirectory(prefix="migrate-") as name,
        running_worker(step_s=0.02) as worker_setup,
        ScenarioSimulator(run_s=0.05) as scenario,
    ):
        tools = Path(name, "tools")
        tools.mkdir()
        command = tools / "comfy-client"
        command.write_text(f'#!/bin/sh\nexec {sys.executable} -m comfy_client.cli.main "$@"\n')
        command.chmod(0o755)
        without_shim = MigrationSetup(worker_setup, scenario, "", tools)
        with Path(name, "shim.log").open("w+") as log:
            shim = subprocess.Popen(
                SERVE_EXAMPLE.command(Path(name)),
                env={**without_shim.environment(), "PORT": "0", "SCENARIO_SHIM_DRAIN_S": "0"},
                cwd=name,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
            try:
                yield MigrationSetup(worker_setup, scenario, url_of(shim, Path(log.name)), tools)
            finally:
                shim.terminate()
                shim.wait(START_TIMEOUT_S)


def url_of(shim: subprocess.Popen[bytes], log: Path) -> str:
    """Wait until the shim has logged its URL, and return the URL."""

    def logged_url() -> str:
        found = re.search(r"listens on (http://\S+)", log.read_text())
        return found[1] if found else ""

    assert until(lambda: logged_url() or shim.poll() is not None, START_TIMEOUT_S)
    assert logged_url(), log.read_text()
    return logged_url()


def run(example: Example, environment: dict[str, str], folder: Path) -> str:
    """Run an example in a folder with a knight.png; return its output."""
    shutil.copy(ROOT / "examples" / "knight.png", folder)
    ended = subprocess.run(
        example.command(folder),
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=RUN_TIMEOUT_S,
        check=False,
    )
    assert ended.returncode == 0, f"{example}\n{ended.stdout}\n{ended.stderr}"
    return ended.stdout


@pytest.mark.parametrize("example", MIGRATE_EXAMPLES, ids=str)
def test_an_example_of_the_migration_runs_unchanged(example: Example, setup: MigrationSetup, tmp_path: Path) -> None:
    """The example exits with 0, and each image that it names exists and can be decoded."""
    run(example, setup.environment(), tmp_path)

    for name in set(re.findall(r"[\w-]+\.png", example.text)):
        with Image.open(tmp_path / name) as image:
            image.load()


@pytest.mark.parametrize("body", ["", "knight.png"], ids=["txt2img", "img2img"])
def test_the_worker_of_the_migration_runs_in_workerd(body: str, setup: MigrationSetup, tmp_path: Path) -> None:
    """The Worker returns an image and stores it in R2, with the compatibility date of 2025 and without flags."""
    run_worker = installed("workerd") / "run.mjs"
    shutil.copy(ROOT / "examples" / "knight.png", tmp_path)
    (tmp_path / "worker.mjs").write_text(WORKER_EXAMPLE.text)
    ended = subprocess.run(
        [shutil.which("node") or "node", str(run_worker), "worker.mjs", "?prompt=a+knight", body, "made.png"],
        env=setup.environment(),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=RUN_TIMEOUT_S,
        check=False,
    )

    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert re.fullmatch(r"asset_\w+\.png", ended.stdout.strip())
    with Image.open(tmp_path / "made.png") as image:
        image.load()


def test_every_kind_of_caller_has_an_example() -> None:
    """The SDK, plain HTTP in Python, TypeScript and curl; the last two also upload."""
    all_examples = "\n".join(f"# {example.language}\n{example.text}" for example in MIGRATE_EXAMPLES)

    for part in ("from scenario_sdk", "import requests", "# ts\n", "await fetch(", "curl -sS"):
        assert part in all_examples
    assert {example.language for example in MIGRATE_EXAMPLES if "/assets" in example.text} >= {"ts", "sh"}


@pytest.mark.parametrize("example", ROLLOUT_EXAMPLES, ids=str)
def test_an_example_of_the_rollout_runs_unchanged(example: Example, setup: MigrationSetup, tmp_path: Path) -> None:
    """The example exits with 0, with the simulated Scenario. The page has the output of the Python example."""
    printed = run(example, {**setup.environment(), **setup.scenario.client_env()}, tmp_path)

    if example.language == "python":
        assert f"```text\n{printed}```" in (ROOT / "docs" / "rollout.md").read_text()


def test_the_provider_scenario_works_with_the_shim(setup: MigrationSetup) -> None:
    """The provider `scenario` generates an image with the shim; `health` reports that the shim is not Scenario."""
    with client_from_env({**setup.environment(), "IMAGE_GENERATION_PROVIDER": "scenario"}, timeout_s=60.0) as client:
        knight = ROOT / "examples" / "knight.png"
        result = client.img2img(knight, "as an oil painting", width=128, height=128, steps=2, seed=7)

        assert (result.provider, result.image.size, result.image.seed) == ("scenario", (128, 128), 7)
        assert result.image.asset_id
        assert "is not Scenario's own URL" in client.health().sentence


def simulated_percentiles_s(jobs_per_hour: float, workers: int, run_s: float) -> tuple[float, float]:
    """Return p50 and p95 of the seconds that 50,000 randomly arriving jobs take in a simulated queue."""
    chance = random.Random(1)  # noqa: S311 - not secret
    free_at, now, took = [0.0] * workers, 0.0, []
    for _ in range(50_000):
        now += chance.expovariate(jobs_per_hour / 3600)
        ends_at = max(now, heapq.heappop(free_at)) + run_s
        heapq.heappush(free_at, ends_at)
        took.append(ends_at - now)
    took.sort()
    return took[len(took) // 2], took[len(took) * 95 // 100]


def test_the_formula_of_the_rollout_is_close_to_a_simulated_queue() -> None:
    """The formula's p50 and p95 differ by at most a sixth from the simulated queue's, for each row of the table."""
    [formula] = [example for example in ROLLOUT_EXAMPLES if example.language == "python"]
    names: dict[str, Any] = {}
    with contextlib.redirect_stdout(io.StringIO()):
        exec(formula.text, names)  # noqa: S102 - our own page

    for jobs, workers in ((20, 1), (100, 1), (200, 2), (400, 3), (800, 4), (1600, 8)):
        expected = [names["warm_s"](share, jobs, workers) for share in (0.5, 0.95)]
        assert expected == pytest.approx(simulated_percentiles_s(jobs, workers, names["run_s"]), rel=1 / 6)
