"""scripts/benchmark with simulators: what it sends, counts, writes and prints. No time is asserted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from bench.endpoint.__main__ import main
from bench.endpoint.figures import Price
from bench.endpoint.price import find_price
from bench.worker_setup import ROOT
from simulators.comfyui import Simulator
from simulators.runpod.queue_api import QueueJobState, RunPodPlatform
from simulators.runpod.rest import RunPodAccount
from simulators.runpod.scripted_worker import Body, ScriptedWorker, image_result
from simulators.scenario import ScenarioSimulator
from tests.browser import WIDTHS, browser, overflows
from tests.processes import killed_at_end

pytestmark = pytest.mark.slow
PLOTS = ("latency", "stages", "throughput", "duration", "cost")
TIMINGS = {"queue_s": 0.0, "execute_s": 0.001, "fetch_s": 0.0, "encode_s": 0.0, "total_s": 0.001}
PRICE_VARIABLE = {"COMFY_CLIENT_GPU_USD_PER_S": "0.00031"}
"""With this rate the price catalogue is not requested."""
DIRECT_ENDPOINT = {"COMFYUI_ENDPOINT": "http://127.0.0.1:9"}


def respond_with_timings(job: Body) -> Body:
    """Return a result like our worker's, with timings and versions; for a seed that ends with 7, return an error."""
    if job["input"]["seed"] % 10 == 7:
        return {"error": json.dumps({"code": "out_of_memory", "message": "no room", "retryable": True, "details": {}})}
    body = image_result(job)
    return {"output": {**body["output"], "timings": TIMINGS, "versions": {"worker": "9.9.9"}}}


@pytest.fixture(scope="module")
def platform() -> Iterator[RunPodPlatform]:
    """An endpoint whose workers respond at once."""
    with RunPodPlatform(long_poll_s=0.5) as platform, ScriptedWorker(platform, respond_with_timings, threads=4):
        yield platform


def run(environment: Mapping[str, str], folder: Path, *arguments: str) -> tuple[int, dict[str, Any]]:
    """Run the benchmark with few jobs; return the exit status and the content of benchmark.json."""
    small = ["--jobs", "3", "--levels", "1,2", "--width", "64", "--height", "64", "--steps", "1", "--seed", "10"]
    status = main([*small, *arguments, "--output", str(folder)], environment)
    return status, json.loads((folder / "benchmark.json").read_text())


@pytest.fixture(scope="module")
def measured(platform: RunPodPlatform, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, dict[str, Any], Path]:
    """Exit status, benchmark.json and folder of one run on the endpoint. The job with seed 17 fails in it."""
    folder = tmp_path_factory.mktemp("measured")
    before = platform.submissions
    status, found = run({**platform.client_env(), **PRICE_VARIABLE}, folder)
    assert platform.submissions - before == 1 + (1 + 3) + (2 + 3)  # the first job, and a level after each warm-up
    return status, found, folder


def test_every_job_and_second_is_accounted_for(measured: tuple[int, dict[str, Any], Path]) -> None:
    """Jobs of a level are done or failed, the stages of a job add up to its duration, and warm-ups are not samples."""
    _, found, _ = measured

    assert [level["concurrency"] for level in found["levels"]] == [1, 2]
    for level in found["levels"]:
        assert level["jobs"] == 3 == level["done"] + level["failed"] == len(level["samples"])
        for sample in level["samples"]:
            if sample["end"] == "done":
                whole = sample["ended_s"] - sample["begun_s"]
                assert sum(sample["stages"].values()) == pytest.approx(whole, abs=0.05)
        assert set(level["stages"]) == {"wait", "queue", "execute", "fetch", "encode", "rest"}
        assert level["stages"]["execute"]["p50"] == 0.001
    seeds = [sample["seed"] for level in found["levels"] for sample in level["samples"]]
    assert seeds == [12, 13, 14, 17, 18, 19]


def test_a_failure_is_counted_and_shown(
    measured: tuple[int, dict[str, Any], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """The status is 1; code, message and count are in the JSON, on the page and in the output."""
    status, found, folder = measured

    assert status == 1
    assert found["levels"][1]["failures"] == [{"code": "out_of_memory", "count": 1, "message": "no room"}]
    assert "2 concurrent: 1 times out_of_memory: no room" in (folder / "benchmark.html").read_text()
    main(["--compare", str(folder / "benchmark.json"), "--output", str(folder / "again")], {})
    assert "2 concurrent: 1 times out_of_memory: no room" in capsys.readouterr().out


def test_the_conditions_are_recorded(measured: tuple[int, dict[str, Any], Path], platform: RunPodPlatform) -> None:
    """Machine, date, versions, inputs and price are recorded with the figures. The API key is in no file."""
    _, found, folder = measured

    assert found["machine"].keys() == {"python", "system", "cpus"}
    assert found["versions"]["worker"] == "9.9.9"
    assert (found["inputs"]["width"], found["inputs"]["steps"]) == (64, 1)
    assert found["price"] == {"usd_per_s": 0.00031, "source": "COMFY_CLIENT_GPU_USD_PER_S", "pool": ""}
    assert found["made_at"].startswith("20")
    assert found["ended_because"] == ""
    for path in folder.glob("*.*"):
        assert platform.api_key.encode() not in path.read_bytes()


def test_the_report_is_one_page_with_its_plots(measured: tuple[int, dict[str, Any], Path]) -> None:
    """The report is a page with five SVG plots that loads nothing from other servers and fits every window."""
    _, _, folder = measured
    assert {path.name for path in folder.glob("*.svg")} == {f"{name}.svg" for name in PLOTS}
    loaded: list[str] = []
    with browser() as chromium:
        page = chromium.new_page()
        page.on("request", lambda request: loaded.append(request.url))
        for width in WIDTHS:
            page.set_viewport_size({"width": width, "height": 900})
            page.goto((folder / "benchmark.html").as_uri())
            assert not overflows(page)
        widths = page.locator("figure img").evaluate_all("images => images.map(each => each.naturalWidth)")
        assert [width > 0 for width in widths] == [True] * len(PLOTS)
    assert {url.partition(":")[0] for url in loaded} <= {"file", "data"}


def test_two_runs_are_shown_side_by_side(
    measured: tuple[int, dict[str, Any], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """--compare shows each of two runs under the name of its file, on the page and in the output."""
    _, found, folder = measured
    other = tmp_path / "other.json"
    other.write_text(json.dumps({**found, "levels": found["levels"][:1]}))

    assert main(["--compare", str(folder / "benchmark.json"), str(other), "--output", str(tmp_path)], {}) == 0

    page = (tmp_path / "benchmark.html").read_text()
    assert "<h1>Benchmark: benchmark and other</h1>" in page
    assert page.count("<section") == 2
    assert [line for line in capsys.readouterr().out.splitlines() if line.startswith("== ")] == [
        "== benchmark",
        "== other",
    ]


@pytest.mark.parametrize("text", ["", "[]", '{"format": 0}'])
def test_a_file_that_is_not_a_benchmark_is_reported(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """--compare with such a file exits with status 3, and the error names the file."""
    (tmp_path / "a.json").write_text(text)

    assert main(["--compare", str(tmp_path / "a.json")], {}) == 3
    assert "a.json" in capsys.readouterr().err


def test_a_cold_start_is_recorded(platform: RunPodPlatform, tmp_path: Path) -> None:
    """If there is no worker before the first job, the health and the time to a worker are recorded."""
    platform.faults.cold_start(1.0)
    _, found = run({**platform.client_env(), **PRICE_VARIABLE}, tmp_path, "--levels", "1", "--jobs", "1")

    first = found["first_job"]
    assert first["was_cold"]
    assert first["health"]["why"] == "cold"
    assert 0 <= first["to_running_s"] <= first["to_result_s"]


def test_a_dry_run_sends_nothing(platform: RunPodPlatform, capsys: pytest.CaptureFixture[str]) -> None:
    """--dry-run prints the number of jobs and submits none."""
    before = platform.submissions

    assert main(["--dry-run", "--jobs", "5", "--levels", "2"], {**platform.client_env(), **PRICE_VARIABLE}) == 0
    assert "8 jobs" in capsys.readouterr().err
    assert platform.submissions == before


def test_a_comfyui_is_measured_directly(tmp_path: Path) -> None:
    """A run on a ComfyUI has no stage `wait`, because no platform queues the jobs."""
    with Simulator(step_s=0.001) as simulator:
        status, found = run({"COMFYUI_ENDPOINT": simulator.url}, tmp_path, "--warmups", "0")

    assert status == 0
    assert set(found["levels"][0]["stages"]) == {"queue", "execute", "fetch", "encode", "rest"}
    assert found["levels"][0]["cost"].keys() == {"by_execution", "by_time"}


def test_a_simulator_is_named_in_every_plot(measured: tuple[int, dict[str, Any], Path], tmp_path: Path) -> None:
    """Every plot of a simulated ComfyUI says so inside the plot, and no plot of another run does."""
    with Simulator(step_s=0.001) as simulator:
        run({"COMFYUI_ENDPOINT": simulator.url}, tmp_path, "--warmups", "0", "--levels", "1", "--jobs", "1")

    for name in PLOTS:
        assert "SIMULATOR, no GPU" in (tmp_path / f"{name}.svg").read_text()
        assert "SIMULATOR" not in (measured[2] / f"{name}.svg").read_text()
    assert "simulator, no GPU" in (tmp_path / "benchmark.html").read_text()


def test_scenario_is_measured_without_a_price(tmp_path: Path) -> None:
    """Scenario does not bill GPU seconds: an image has no price, and the page has the reason."""
    with ScenarioSimulator(run_s=0.01) as scenario:
        environment = {"IMAGE_GENERATION_PROVIDER": "scenario", **scenario.client_env()}
        sizes = ("--width", "512", "--height", "512", "--steps", "4")
        status, found = run(environment, tmp_path, "--levels", "1", "--jobs", "1", "--warmups", "0", *sizes)

    assert status == 0, found["first_job"]
    assert [level["cost"] for level in found["levels"]] == [None]
    assert "Scenario bills units of its own" in (tmp_path / "benchmark.html").read_text()


def respond_once(ended: threading.Event, job: Body) -> Body:
    """Return a result: at once for the first job, which has seed 10, and for others not until `ended` is set."""
    if job["input"]["seed"] != 10:
        ended.wait(60)
    return image_result(job)


@pytest.fixture
def stuck_platform() -> Iterator[RunPodPlatform]:
    """An endpoint that ends only the first job, which has seed 10."""
    ended = threading.Event()
    with (
        RunPodPlatform(long_poll_s=0.5) as platform,
        ScriptedWorker(platform, lambda job: respond_once(ended, job), threads=2),
    ):
        yield platform
        ended.set()


def test_the_time_limit_ends_the_benchmark(stuck_platform: RunPodPlatform, tmp_path: Path) -> None:
    """Running jobs are cancelled, jobs that were not submitted are counted, and the exit status is 1."""
    limits = ("--max-s", "4", "--hold-s", "0", "--warmups", "0", "--levels", "2")
    status, found = run({**stuck_platform.client_env(), **PRICE_VARIABLE}, tmp_path, *limits)

    assert status == 1
    assert found["ended_because"] == "the limit of 4 s was reached"
    [level] = found["levels"]
    assert (level["done"], level["cancelled"], level["not_run"]) == (0, 2, 1)
    assert sorted(job.state for job in stuck_platform.jobs.values()) == sorted(
        [QueueJobState.COMPLETED, *[QueueJobState.CANCELLED] * 2]
    )


def test_a_job_that_takes_too_long_is_cancelled_and_failed(stuck_platform: RunPodPlatform, tmp_path: Path) -> None:
    """A job over --job-timeout-s counts as failed, and is cancelled so that it is not billed after the benchmark."""
    limits = ("--job-timeout-s", "0.5", "--hold-s", "0", "--warmups", "0", "--levels", "1", "--jobs", "1")
    status, found = run({**stuck_platform.client_env(), **PRICE_VARIABLE}, tmp_path, *limits)

    assert status == 1
    assert [each["code"] for each in found["levels"][0]["failures"]] == ["queue_timeout"]
    assert QueueJobState.CANCELLED in [job.state for job in stuck_platform.jobs.values()]


def test_ctrl_c_cancels_running_jobs(stuck_platform: RunPodPlatform, tmp_path: Path) -> None:
    """The exit status is 130, all jobs have ended, and the measurements so far are written."""
    small = ["--jobs", "3", "--levels", "2,4", "--width", "64", "--height", "64", "--steps", "1", "--seed", "10"]
    command = [sys.executable, "-m", "bench.endpoint", *small, "--hold-s", "0", "--warmups", "0"]
    environment = {**os.environ, **stuck_platform.client_env(), **PRICE_VARIABLE}
    with killed_at_end(subprocess.Popen([*command, "--output", str(tmp_path)], cwd=ROOT, env=environment)) as process:
        stuck_platform.wait_until(lambda: len(stuck_platform.jobs) == 3, 60)
        process.send_signal(signal.SIGINT)
        status = process.wait(60)

    found = json.loads((tmp_path / "benchmark.json").read_text())
    assert status == 130
    assert all(job.state.is_final for job in stuck_platform.jobs.values())
    assert found["ended_because"] == "interrupted"
    assert [(level["cancelled"], level["not_run"]) for level in found["levels"]] == [(2, 1)]
    assert (tmp_path / "benchmark.html").exists()


def test_the_price_is_from_the_catalogue_if_there_is_a_key(platform: RunPodPlatform, tmp_path: Path) -> None:
    """RunPod's catalogue takes precedence over the table, and COMFY_CLIENT_GPU_USD_PER_S over the catalogue."""
    one_job = ("--levels", "1", "--jobs", "1", "--warmups", "0")
    with RunPodAccount(platform) as account:
        environment = account.environment() | platform.client_env()
        _, found = run(environment, tmp_path, *one_job)
        own_price = find_price("ADA_24", {**environment, **PRICE_VARIABLE})
    table_price = find_price("ADA_24", {**environment, "RUNPOD_REST_BASE_URL": "http://127.0.0.1:9"})

    assert found["price"]["source"] == "RunPod's catalogue"
    assert own_price.source == "COMFY_CLIENT_GPU_USD_PER_S"
    assert table_price == Price(0.00031, "the table of 2026-08-20", "ADA_24")


@pytest.mark.parametrize(
    ("arguments", "environment", "expected"),
    [
        (["--pool", "ADA_42"], DIRECT_ENDPOINT, "--pool 'ADA_42'"),
        ([], {**DIRECT_ENDPOINT, "COMFY_CLIENT_GPU_USD_PER_S": "cheap"}, "COMFY_CLIENT_GPU_USD_PER_S"),
        ([], {}, "RUNPOD_API_KEY"),
    ],
)
def test_an_invalid_setting_is_one_sentence(
    arguments: list[str], environment: dict[str, str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The exit status is 3, and the error names the option or the variable."""
    assert main(arguments, environment) == 3
    assert expected in capsys.readouterr().err


def test_the_script_prints_its_help() -> None:
    """`scripts/benchmark --help` describes what is measured."""
    command = [str(ROOT / "scripts" / "benchmark"), "--help"]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)

    assert "cold start, latency by stage" in ended.stdout
