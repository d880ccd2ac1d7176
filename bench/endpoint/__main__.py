"""Measures the configured provider: cold start, latency by stage, throughput and cost per image.

It sends jobs, which cost money at RunPod: --dry-run prints how many. Ctrl-C cancels the running jobs and keeps the
results of the others.
"""

from __future__ import annotations

import argparse
import datetime as dt
import itertools
import json
import os
import platform
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.endpoint import report
from bench.endpoint.figures import FAILED, Price, Sample, failures, level_figures
from bench.endpoint.measure import FirstJob, Plan, Stop, Stopped, run_first, run_level
from bench.endpoint.price import SCENARIO_PRICE, find_price
from comfy_client import Client, __version__, client_from_env
from comfy_client.client import SYNC_WAIT_S
from comfy_core.errors import ComfyClientError, ConfigError

FORMAT = 2
"""The version of the format of benchmark.json."""
MAX_COMPARED = 4
"""Maximum number of benchmarks in one plot: more lines could not be distinguished."""
EXIT_INTERRUPTED = 130
OUTPUT_FOLDER = Path("debug-output") / "benchmark"


def measure(client: Client, plan: Plan, price: Price, stop: Stop) -> dict[str, Any]:
    """Run the benchmark; return the content of benchmark.json. Raises RequestError if the health cannot be read."""
    requests = plan.requests()
    first: FirstJob | None = None
    try:
        first = run_first(client, plan, next(requests), stop)
    except (KeyboardInterrupt, Stopped):
        stop.request()
    levels = [_measure_level(client, plan, requests, each, price, stop) for each in plan.levels if not stop.why]
    result = first.result if first else None
    return {
        "format": FORMAT,
        "made_at": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "provider": str(client.provider),
        "gpu": result.gpu if result else None,
        "machine": {"python": platform.python_version(), "system": platform.platform(), "cpus": os.cpu_count()},
        "versions": {"comfy-client": __version__, **(result.versions if result else {})},
        "inputs": dict(plan.inputs),
        "plan": {name: value for name, value in asdict(plan).items() if name != "inputs"},
        "price": asdict(price),
        "ended_because": stop.why,
        "first_job": _first_job_json(first),
        "levels": levels,
    }


def _first_job_json(first: FirstJob | None) -> dict[str, Any] | None:
    if first is None:
        return None
    facts = {name: value for name, value in vars(first).items() if name not in ("health", "result")}
    return {"health": asdict(first.health), **facts}


def _measure_level(
    client: Client, plan: Plan, requests: Iterator[dict[str, Any]], concurrency: int, price: Price, stop: Stop
) -> dict[str, Any]:
    """Run the warm-up and the jobs of one level, and return the level's figures."""

    def report_sample(sample: Sample) -> None:
        print("x" if sample.end == FAILED else ".", end="", file=sys.stderr, flush=True)

    print(f"{concurrency} concurrent: ", end="", file=sys.stderr, flush=True)
    warmup_samples, _ = run_level(
        client, plan, list(itertools.islice(requests, plan.warmups * concurrency)), concurrency, stop, lambda _: None
    )
    samples, workers = run_level(
        client, plan, list(itertools.islice(requests, plan.jobs)), concurrency, stop, report_sample
    )
    print(file=sys.stderr)
    return {**level_figures(concurrency, samples, price, workers), "warmup_failures": failures(warmup_samples)}


def write_report(runs: Sequence[Mapping[str, Any]], names: Sequence[str], folder: Path) -> Path:
    """Write the plots and the HTML report of one or several benchmarks into `folder`; return the report's path."""
    from bench.endpoint.plots import draw_all  # noqa: PLC0415 - matplotlib is slow to import

    path = folder / "benchmark.html"
    path.write_text(report.page(runs, names, draw_all(runs, names, folder)))
    return path


def compare(paths: Sequence[Path], folder: Path) -> int:
    """Print earlier benchmarks, write one report of all, and return 0. Raises ConfigError for an unreadable file."""
    runs = []
    for path in paths:
        try:
            run = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise ConfigError(f"{path} cannot be read: {error}") from error
        if not isinstance(run, dict) or run.get("format") != FORMAT:
            raise ConfigError(f"{path} is not a benchmark.json of this version (format {FORMAT})")
        runs.append(run)
    names = _names(paths)
    for name, run in zip(names, runs, strict=True):
        print(f"== {name}\n\n{report.text(run)}\n")
    folder.mkdir(parents=True, exist_ok=True)
    print(f"Report: {write_report(runs, names, folder)}")
    return 0


def _names(paths: Sequence[Path]) -> list[str]:
    """Return a name for each file, all different: the file names, else the folder names, else the whole paths."""
    for names in ([path.stem for path in paths], [path.resolve().parent.name for path in paths]):
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(prog="scripts/benchmark", description=__doc__)
    parser.add_argument("--prompt", default="a pixel art knight with a blue cape, game asset, plain background")
    for name, default in (("width", 1024), ("height", 1024), ("steps", 20), ("seed", 1000)):
        parser.add_argument(f"--{name}", type=int, default=default, help="%(default)s")
    parser.add_argument("--levels", default="1,2,4,8", help="numbers of concurrent jobs, each a level; %(default)s")
    parser.add_argument("--jobs", type=int, default=16, help="jobs of each level; %(default)s")
    parser.add_argument("--warmups", type=int, default=1, help="rounds of jobs before each level; %(default)s")
    parser.add_argument("--job-timeout-s", type=float, default=600.0, help="%(default)s")
    parser.add_argument("--max-s", type=float, default=1800.0, help="stop after this many seconds; %(default)s")
    hold = "longest long poll in seconds; Ctrl-C waits for it; %(default)s"
    parser.add_argument("--hold-s", type=float, default=SYNC_WAIT_S, help=hold)
    parser.add_argument("--pool", default="ADA_24", help="GPU pool of the endpoint, for the price; %(default)s")
    parser.add_argument("--output", type=Path, default=OUTPUT_FOLDER, help="output folder; %(default)s")
    parser.add_argument("--dry-run", action="store_true", help="print how many jobs it would send, and exit")
    parser.add_argument(
        "--compare", nargs="+", type=Path, metavar="JSON", help="compare earlier benchmarks, and run none"
    )
    options = parser.parse_args(arguments)
    try:
        options.levels = tuple(int(each) for each in options.levels.split(","))
    except ValueError:
        parser.error(f"--levels {options.levels}: write numbers separated by commas, such as 1,2,4,8")
    if min(options.levels) < 1 or options.jobs < 1 or options.warmups < 0:
        parser.error("--levels and --jobs must be 1 or more, --warmups 0 or more")
    if options.compare and len(options.compare) > MAX_COMPARED:
        parser.error(f"--compare takes at most {MAX_COMPARED} files")
    return options


def main(arguments: Sequence[str], environment: Mapping[str, str]) -> int:
    """Measure, or compare; return the exit status: 1 if a job failed or not all jobs ran, 130 after Ctrl-C."""
    options = parse_arguments(arguments)
    try:
        if options.compare:
            return compare(options.compare, options.output)
        return _measure_provider(options, environment)
    except ComfyClientError as error:
        print(f"scripts/benchmark: {error}", file=sys.stderr)
        return error.exit_status


def _measure_provider(options: argparse.Namespace, environment: Mapping[str, str]) -> int:
    inputs = {name: getattr(options, name) for name in ("prompt", "width", "height", "steps")}
    plan = Plan(
        inputs, options.seed, options.warmups, options.jobs, options.levels, options.job_timeout_s, options.max_s
    )
    with client_from_env(environment, sync_wait_s=options.hold_s) as client:
        count = 1 + sum(plan.jobs + plan.warmups * level for level in plan.levels)
        print(f"{client.provider!r}: {count} jobs, at most {plan.max_s:g} s", file=sys.stderr)
        if options.dry_run:
            return 0
        price = SCENARIO_PRICE if client.provider.name == "scenario" else find_price(options.pool, environment)
        run = measure(client, plan, price, Stop(plan.max_s))
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "benchmark.json").write_text(json.dumps(run, indent=1) + "\n")
    print(report.text(run))
    print(f"\nReport: {write_report([run], ['benchmark'], options.output)}")
    if run["ended_because"] == "interrupted":
        return EXIT_INTERRUPTED
    return int(bool(report.problems(run)) or run["first_job"] is None or bool(run["first_job"]["error"]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], os.environ))
