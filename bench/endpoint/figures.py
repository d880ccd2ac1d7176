"""Figures computed from a benchmark's samples: percentiles by stage, throughput, failures, cost. No I/O."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from comfy_core.comfyui.responses import is_simulator
from comfy_core.prices import job_usd

STAGES: Mapping[str, str] = {
    "wait": "waiting for a worker",
    "queue": "ComfyUI's queue",
    "execute": "ComfyUI running",
    "fetch": "fetching from ComfyUI",
    "encode": "encoding",
    "rest": "transfer and overhead",
}
"""The stages of a job in order, with their labels.

Their times add up to the time that the caller waited, or slightly more (`stages_of`).
"""

EMPTY_CELL = "-"
"""The text of a value that is not known."""
DONE, FAILED, CANCELLED, NOT_RUN = "done", "failed", "cancelled", "not_run"


@dataclass(frozen=True)
class Sample:
    """The measurements of one job.

    Attributes:
        seed: the job's seed.
        end: done, failed, cancelled (because the benchmark was stopped), or not_run.
        begun_s: seconds from the start of the level to the job's submission.
        ended_s: seconds from the start of the level to the job's end.
        stages: seconds by stage, as far as the provider reports them.
        execution_s: the worker's execution time, which is billed; None if it is unknown.
        images: the number of images.
        error: a failed job's code and message.
    """

    seed: int
    end: str
    begun_s: float = 0.0
    ended_s: float = 0.0
    stages: Mapping[str, float] = field(default_factory=dict)
    execution_s: float | None = None
    images: int = 0
    error: tuple[str, str] | None = None

    @property
    def total_s(self) -> float:
        """Seconds that the caller waited."""
        return self.ended_s - self.begun_s


def stages_of(
    total_s: float, delay_s: float | None, execution_s: float | None, timings: Mapping[str, float]
) -> dict[str, float]:
    """Return the seconds of a job by stage. `rest` is the time outside all other stages.

    If `timings` has the key `total_s`, this project's worker sent them, and `delay_s` precedes their stages. If not,
    ComfyUI was called directly, and `delay_s` is left out: `timings["queue_s"]` is the same time. Without timings the
    job ran on the stock worker, and `execution_s` is a stage.
    """
    if not timings:
        reported = {"wait": delay_s, "execute": execution_s}
    else:
        reported = {name: timings.get(f"{name}_s") for name in ("queue", "execute", "fetch", "encode")}
        if "total_s" in timings:
            reported = {"wait": delay_s, **reported}
    stages = {name: seconds for name, seconds in reported.items() if seconds is not None}
    # The clocks of several machines differ: the sum can slightly exceed the time waited.
    return {**stages, "rest": max(0.0, total_s - sum(stages.values()))}


def percentiles(values: Sequence[float]) -> dict[str, float] | None:
    """Return p50, p95, minimum, maximum and count, or None if there are no values. Percentiles are interpolated."""
    if not values:
        return None
    cuts = statistics.quantiles(values, n=100, method="inclusive") if len(values) > 1 else [values[0]] * 99
    return {"p50": cuts[49], "p95": cuts[94], "min": min(values), "max": max(values), "count": len(values)}


@dataclass(frozen=True)
class Price:
    """The price of one second of a worker, and the source of the price. The price is 0 if seconds are not billed."""

    usd_per_s: float
    source: str
    pool: str = ""


def level_figures(concurrency: int, samples: Sequence[Sample], price: Price, workers: int | None) -> dict[str, Any]:
    """Return the figures of a level for benchmark.json; `workers` is the number of running workers, if known.

    The percentiles are those of the completed jobs. The duration of the level ends with its last job, also if that job
    failed or was cancelled. The throughput is the number of images divided by this duration.
    """
    done = [sample for sample in samples if sample.end == DONE]
    counts = Counter(sample.end for sample in samples)
    ran = [sample for sample in samples if sample.end != NOT_RUN]
    seconds = max((sample.ended_s for sample in ran), default=0.0)
    images = sum(sample.images for sample in done)
    return {
        "concurrency": concurrency,
        "jobs": len(samples),
        **{end: counts[end] for end in (DONE, FAILED, CANCELLED, NOT_RUN)},
        "failures": failures(samples),
        "seconds": seconds,
        "images": images,
        "images_per_min": 60 * images / seconds if seconds and images else None,
        "workers": workers,
        "total": percentiles([sample.total_s for sample in done]),
        "stages": {name: percentiles(_stage_times(done, name)) for name in STAGES if _stage_times(done, name)},
        "cost": cost(done, seconds, price, workers),
        "samples": [asdict(sample) for sample in samples],
    }


def _stage_times(samples: Iterable[Sample], name: str) -> list[float]:
    return [sample.stages[name] for sample in samples if name in sample.stages]


def failures(samples: Iterable[Sample]) -> list[dict[str, Any]]:
    """Return each kind of failure with an example message and its count, the most frequent first."""
    examples: dict[str, str] = {}
    counts: Counter[str] = Counter()
    for code, message in (sample.error for sample in samples if sample.error):
        examples.setdefault(code, message)
        counts[code] += 1
    return [{"code": code, "count": count, "message": examples[code]} for code, count in counts.most_common()]


def cost(done: Sequence[Sample], seconds: float, price: Price, workers: int | None) -> dict[str, float] | None:
    """Return the cost per image in dollars, computed in two ways; None without images, execution times or a price.

    `by_execution` is computed from the jobs' execution times, rounded up to seconds. Time in which a worker runs two
    jobs counts twice. `by_time` is computed from the number of workers and the duration of the level, during which all
    workers are billed.
    """
    executions = [sample.execution_s for sample in done if sample.execution_s is not None]
    images = sum(sample.images for sample in done)
    if not executions or not images or not price.usd_per_s:
        return None
    usd = {"by_execution": sum(job_usd(each, price.usd_per_s) for each in executions) / images}
    if workers:
        usd["by_time"] = workers * math.ceil(seconds) * price.usd_per_s / images
    return usd


def cost_per_image(level: Mapping[str, Any]) -> float | None:
    """Return the cost per image of a level in dollars: `by_time` if it is known, otherwise `by_execution`; or None."""
    costs = level["cost"] or {}
    return costs.get("by_time", costs.get("by_execution"))


def is_simulated(run: Mapping[str, Any]) -> bool:
    """Return whether the jobs of a benchmark ran on the simulator of ComfyUI."""
    return is_simulator(run["versions"].get("comfyui", ""))


def measured_on(run: Mapping[str, Any]) -> str:
    """Return in one line what a benchmark measured: a simulator, or the GPU, or the provider; and with which inputs."""
    machine = "SIMULATOR, no GPU" if is_simulated(run) else run.get("gpu") or run["provider"]
    inputs = run["inputs"]
    size = f"{inputs['width']} x {inputs['height']}, {inputs['steps']} steps"
    return f"{machine} · {size} · {run['made_at'].partition('T')[0]}"


def duration(value: float | None) -> str:
    """Return a duration for readers, in ms below a second, otherwise in seconds; `-` for None."""
    match value:
        case None:
            return EMPTY_CELL
        case _ if round(value, 3) < 1:
            return f"{1000 * value:.0f} ms"
    return f"{value:.0f} s" if value >= 100 else f"{value:.1f} s" if value >= 10 else f"{value:.2f} s"


def duration_pair(first: float, second: float) -> str:
    """Return two durations with one unit, such as `4 / 6 ms`. The unit is ms if the second one is below 10 s."""
    if second < 10:
        return f"{1000 * first:.0f} / {1000 * second:.0f} ms"
    return f"{first:.1f} / {second:.1f} s"
