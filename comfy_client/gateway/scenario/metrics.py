"""The shim's Prometheus metrics. docs/scenario.md has the list.

Counters and histograms count since the start of the process. Gauges of jobs and assets are read from the database for
each scrape. Labels have few values: never ids, keys, prompts or paths with ids.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from itertools import product
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from comfy_client import __version__
from comfy_client.gateway.scenario.job_times import job_times
from comfy_client.gateway.scenario.models import ShimJob, Side
from comfy_client.gateway.scenario.reports import NO_ASSETS, read_totals
from comfy_client.providers.scenario_responses import Status
from comfy_core.error_codes import ErrorCode

PREFIX = "scenario_shim"
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
JOB_BUCKETS = (0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600)
"""Seconds. A job takes a second on a simulator, and up to an hour in a queue."""
NO_RESPONSE = "none"
"""The label `status` of a call without a response."""

_log = logging.getLogger(__name__)


class ShimMetrics:
    """The metrics of one shim, whose database is `store_file`. The methods are thread-safe."""

    def __init__(self, store_file: Path, now: Callable[[], float] = time.time) -> None:
        self._scrape = asyncio.Lock()
        self._registry = CollectorRegistry()
        self._registry.register(_StoreCollector(store_file, now))
        ProcessCollector(registry=self._registry)
        Info("build", "Version of the shim", namespace=PREFIX, registry=self._registry).info({"version": __version__})
        self._ended = self._counter("jobs_ended", "Jobs that ended", "side", "status")
        self._errors = self._counter("job_errors", "Failed jobs by error code (docs/errors.md)", "side", "code")
        self._queue_s = self._histogram(
            "job_queue_seconds", "Time of successful jobs from the request to the result, without the run", "side"
        )
        self._run_s = self._histogram("job_execution_seconds", "Run time of successful jobs at their side", "side")
        self._whole_s = self._histogram(
            "job_duration_seconds", "Time of jobs from the request to the end", "side", "status"
        )
        self._usd = self._counter("spend_usd", "US dollars for the run time of own jobs, without cold starts")
        self._units = self._counter("creative_units", "Creative units that Scenario announced for forwarded jobs")
        self._upstream = self._counter(
            "upstream_requests", "Calls to Scenario by status, or none without a response", "method", "status"
        )
        self._upstream_s = self._histogram("upstream_request_duration_seconds", "Time to Scenario's response head")
        self._requests = self._counter(
            "http_requests", "Requests of callers by route template", "method", "route", "status", "side"
        )
        self._request_s = Histogram(
            "http_request_duration_seconds",
            "Time from a caller's request to the end of the response",
            ("side",),
            namespace=PREFIX,
            registry=self._registry,
        )
        self._endpoint_up = self._gauge("endpoint_up", "Whether the endpoint responded to the last health check")
        self._workers = self._gauge("endpoint_workers", "Workers of the endpoint at the last health check", "state")
        for side, status in product(Side, (each for each in Status if each.is_final)):
            self._ended.labels(side.value, status.value)
        for side, code in product(Side, ErrorCode):
            self._errors.labels(side.value, code.value)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labels, namespace=PREFIX, registry=self._registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(name, text, labels, namespace=PREFIX, registry=self._registry)

    def _histogram(self, name: str, text: str, *labels: str) -> Histogram:
        return Histogram(name, text, labels, namespace=PREFIX, registry=self._registry, buckets=JOB_BUCKETS)

    async def text(self) -> bytes:
        """Return all metrics in Prometheus's text format. One scrape runs at a time, in a thread."""
        async with self._scrape:
            return await asyncio.to_thread(generate_latest, self._registry)

    def job_ended(self, job: ShimJob) -> None:
        """Count a job that has ended."""
        side, status = job.side.value, job.status.value
        times = job_times(job)
        self._ended.labels(side, status).inc()
        if job.status is Status.FAILURE:
            self._errors.labels(side, job.error_code or ErrorCode.EXECUTION_FAILED.value).inc()
        self._usd.inc(job.cost_usd or 0.0)
        if times.whole_s is not None:
            self._whole_s.labels(side, status).observe(times.whole_s)
        if job.status is Status.SUCCESS and times.run_s is not None:
            self._run_s.labels(side).observe(times.run_s)
        if job.status is Status.SUCCESS and times.queue_s is not None:
            self._queue_s.labels(side).observe(times.queue_s)

    def job_forwarded(self, units: float) -> None:
        """Add the creative units that Scenario announced for a job."""
        self._units.inc(units)

    def upstream_call(self, method: str, status: int | None, duration_s: float) -> None:
        """Count a call to Scenario. `status` is None if there was no response."""
        self._upstream.labels(method, _status_label(status)).inc()
        self._upstream_s.observe(duration_s)

    def request_ended(self, method: str, route: str, status: int | None, side: Side, duration_s: float) -> None:
        """Count a request. `route` is a template, such as `/jobs/{jobId}`. `status` is None if the caller left."""
        self._requests.labels(method, route, _status_label(status), side.value).inc()
        self._request_s.labels(side.value).observe(duration_s)

    def endpoint_checked(self, workers: Mapping[str, int] | None) -> None:
        """Set what the last health check of the endpoint found. `workers` is None if it did not respond."""
        self._endpoint_up.set(workers is not None)
        if workers is not None:
            self._workers.clear()
            for state, count in workers.items():
                self._workers.labels(state).set(count)


class _StoreCollector(Collector):
    """Gauges that are read from the database for each scrape. If that fails, there is only `store_up` 0."""

    def __init__(self, file: Path, now: Callable[[], float]) -> None:
        self._file = file
        self._now = now

    def collect(self) -> Iterator[Metric]:
        try:
            totals = read_totals(self._file)
            disk = shutil.disk_usage(self._file.parent)
        except (OSError, sqlite3.Error) as error:
            _log.warning("the metrics of the database cannot be read: %s", error)
            yield _gauge("store_up", "Whether the database can be read", 0)
            return
        yield _gauge("store_up", "Whether the database can be read", 1)
        yield _gauge("disk_free_bytes", "Free space on the disk of the shim's folder", disk.free)
        yield _gauge("disk_size_bytes", "Size of the disk of the shim's folder", disk.total)
        jobs = _labelled("jobs", "Jobs in the database", "side", "status")
        for side, status in product(Side, Status):
            jobs.add_metric((side.value, status.value), totals.jobs.get((side, status), 0))
        yield jobs
        assets = _labelled("assets", "Assets in the database", "side")
        sizes = _labelled("asset_bytes", "Bytes of the assets' images", "side")
        for side in Side:
            assets.add_metric((side.value,), totals.assets.get(side, NO_ASSETS).count)
            sizes.add_metric((side.value,), totals.assets.get(side, NO_ASSETS).bytes)
        yield from (assets, sizes)
        age_s = 0.0 if totals.oldest_at is None else max(0.0, self._now() - totals.oldest_at)
        yield _gauge("jobs_waiting", "Own jobs that wait for a worker", totals.waiting)
        yield _gauge("oldest_waiting_job_age_seconds", "Age of the oldest own job that waits for a worker, or 0", age_s)


def _status_label(status: int | None) -> str:
    return NO_RESPONSE if status is None else str(status)


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"{PREFIX}_{name}", text, value=value)


def _labelled(name: str, text: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"{PREFIX}_{name}", text, labels=labels)
