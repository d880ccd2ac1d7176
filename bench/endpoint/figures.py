"""Figures computed from a benchmark's samples: percentiles by stage, throughput, failures, cost. No I/O."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from comfy_client.prices import job_usd

STAGES: Mapping[str, str] = {
    "wait": "waiting for a worker",
    "queue": "ComfyUI's queue",
    "execute": "ComfyUI running",
    "fetch": "fetching from ComfyUI",
    "encode": "encoding",
    "rest": "transfer and overhead",
}
"""The stages of a job in order, with their labels. Their sum is the time that the caller waited."""

DONE, FAILED, CANCELLED, NOT_RUN = "done", "failed", "cancelled", "not_run"


@dataclass(frozen=True)
class Sample:
    """One job, as its caller saw it. Times are seconds; `begun_s` and `ended_s` from the beginning of its level.

    Attributes:
        end: done, failed, cancelled (it was under way when the benchmark ended), or not_run.
        stages: seconds by stage, as far as the provider tells them.
        execution_s: of the worker, which is billed; None where nobody says.
        error: a failed job's code and sentence.
    """

    seed: int
    end: str
    begun_s: float = 0.0
    ended_s: float = 0.0
    stages: Mapping[str, float] = field(default_factory=dict)
    execution_s: float | None = None
    pictures: int = 0
    error: tuple[str, str] | None = None

    @property
    def total_s(self) -> float:
        """Seconds that the caller waited."""
        return self.ended_s - self.begun_s


def stages_of(
    total_s: float, delay_s: float | None, execution_s: float | None, timings: Mapping[str, float]
) -> dict[str, float]:
    """Return the seconds of a job by stage. `rest` is the time outside all other stages.

    Our worker's timings have a `total_s`, and its platform's delay comes before them. A ComfyUI reached directly has
    its own queue as the delay, which is one of its timings already. A stock worker has none: its execution is one.
    """
    if not timings:
        told = {"wait": delay_s, "execute": execution_s}
    else:
        told = {name: timings.get(f"{name}_s") for name in ("queue", "execute", "fetch", "encode")}
        if "total_s" in timings:
            told = {"wait": delay_s, **told}
    stages = {name: seconds for name, seconds in told.items() if seconds is not None}
    # The clocks of several machines differ: the sum can slightly exceed the time waited.
    return {**stages, "rest": max(0.0, total_s - sum(stages.values()))}


def percentiles(values: Sequence[float]) -> dict[str, float] | None:
    """Return p50, p95, the least, the most and how many; None of no values. They lie between two values."""
    if not values:
        return None
    cuts = statistics.quantiles(values, n=100, method="inclusive") if len(values) > 1 else [values[0]] * 99
    return {"p50": cuts[49], "p95": cuts[94], "min": min(values), "max": max(values), "count": len(values)}


@dataclass(frozen=True)
class Price:
    """The price of one second of a worker, and its source; 0 if nothing is billed by the second."""

    usd_per_s: float
    source: str
    pool: str = ""


def level_figures(concurrency: int, samples: Sequence[Sample], price: Price, workers: int | None) -> dict[str, Any]:
    """Return a level's figures as benchmark.json has them; `workers` is how many ran at once, if known.

    Failures are counted but not timed. The throughput is the number of images divided by the whole time.
    """
    done = [sample for sample in samples if sample.end == DONE]
    counts = Counter(sample.end for sample in samples)
    run = [sample for sample in samples if sample.end != NOT_RUN]
    seconds = max((sample.ended_s for sample in run), default=0.0)
    pictures = sum(sample.pictures for sample in done)
    return {
        "concurrency": concurrency,
        "asked": len(samples),
        **{end: counts[end] for end in (DONE, FAILED, CANCELLED, NOT_RUN)},
        "failures": failures(samples),
        "seconds": seconds,
        "pictures": pictures,
        "pictures_per_min": 60 * pictures / seconds if seconds and pictures else None,
        "workers": workers,
        "total": percentiles([sample.total_s for sample in done]),
        "stages": {name: percentiles(_stage(done, name)) for name in STAGES if _stage(done, name)},
        "cost": cost(done, seconds, price, workers),
        "samples": [asdict(sample) for sample in samples],
    }


def _stage(samples: Iterable[Sample], name: str) -> list[float]:
    return [sample.stages[name] for sample in samples if name in sample.stages]


def failures(samples: Iterable[Sample]) -> list[dict[str, Any]]:
    """Return each kind of failure with an example message and its count, the most frequent first."""
    said: dict[str, str] = {}
    counts: Counter[str] = Counter()
    for code, sentence in (sample.error for sample in samples if sample.error):
        said.setdefault(code, sentence)
        counts[code] += 1
    return [{"code": code, "count": count, "message": said[code]} for code, count in counts.most_common()]


def cost(done: Sequence[Sample], seconds: float, price: Price, workers: int | None) -> dict[str, float] | None:
    """Return the dollars a picture, in two ways; None if the worker's time or its price is unknown.

    `by_execution`: each job's execution, whole seconds rounded up. Jobs that a worker holds at once are counted twice.
    `by_time`: all workers that ran, for the whole time of the level: what is billed while they are busy.
    """
    executions = [sample.execution_s for sample in done if sample.execution_s is not None]
    pictures = sum(sample.pictures for sample in done)
    if not executions or not pictures or not price.usd_per_s:
        return None
    usd = {"by_execution": sum(job_usd(each, price.usd_per_s) for each in executions) / pictures}
    if workers:
        usd["by_time"] = workers * math.ceil(seconds) * price.usd_per_s / pictures
    return usd
