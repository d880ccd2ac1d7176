"""The state of all jobs, and every state change. No network; thread-safe."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import Any

from .changes import Changes
from .config import PlatformConfig
from .faults import QueueFaults
from .values import JsonObject, QueueJob, QueueJobState, StateChange

MAX_RETRIES = 1
STOPPED = frozenset({QueueJobState.CANCELLED, QueueJobState.TIMED_OUT})
RETRIABLE = frozenset({QueueJobState.FAILED, QueueJobState.TIMED_OUT})


class JobStore:
    """All jobs by id."""

    def __init__(self, config: PlatformConfig, faults: QueueFaults, changes: Changes) -> None:
        self._config = config
        self._faults = faults
        self._changes = changes
        self._queue: list[str] = []
        self._to_stop: dict[str, list[str]] = {}
        self._retry_count = 0
        # Replaced, never modified, so that other threads read a consistent snapshot without the lock.
        self.jobs: Mapping[str, QueueJob] = MappingProxyType({})

    def submit(self, body: Mapping[str, Any], *, is_sync: bool = False) -> QueueJob:
        """Queue a job with the body of a request. An empty input is removed from the body."""
        stored_body = {key: value for key, value in body.items() if (key, value) != ("input", {})}
        job_id = f"{'sync-' if is_sync else ''}{uuid.uuid4()}-u1"
        now = time.monotonic()
        job = QueueJob(job_id, MappingProxyType(stored_body), is_sync, (StateChange(QueueJobState.IN_QUEUE, now),))
        with self._changes.lock:
            self._queue.append(job_id)
            self._store_job(job)
            self._changes.call_later(job.policy_s("ttl", self._config.ttl_s), partial(self._expire, job_id))
        return job

    def adopt(self, job_id: str) -> None:
        """Store a running job, which `QueueFaults.hand_out` handed out."""
        now = time.monotonic()
        steps = (StateChange(QueueJobState.IN_QUEUE, now), StateChange(QueueJobState.IN_PROGRESS, now))
        with self._changes.lock:
            self._store_job(QueueJob(job_id, MappingProxyType({}), is_sync=False, history=steps))

    def find(self, job_id: str) -> QueueJob | None:
        """Return a job if clients can see it now, else None."""
        job, now = self.jobs.get(job_id), time.monotonic()
        if job is None or now < job.submitted_at + self._faults.late_404_s:
            return None
        kept_s = self._config.sync_retention_s if job.is_sync else self._config.retention_s
        is_expired = job.ended_at is not None and now >= job.ended_at + kept_s
        return None if is_expired or now >= job.submitted_at + job.policy_s("ttl", self._config.ttl_s) else job

    def cancel(self, job_id: str) -> QueueJob:
        """Cancel an unfinished job, send its worker a stop signal, and return the job."""
        with self._changes.lock:
            job = self.jobs[job_id]
            return job if job.state.is_final else self._end(job, QueueJobState.CANCELLED)

    def retry(self, job_id: str) -> QueueJob | None:
        """Queue a failed or timed out job again and return it. Return None for any other job."""
        with self._changes.lock:
            job = self.jobs[job_id]
            if job.state not in RETRIABLE:
                return None
            self._retry_count += 1
            self._queue.append(job_id)
            return self._change_state(job, QueueJobState.IN_QUEUE, output=None, error=None)

    def purge(self) -> int:
        """Cancel all waiting jobs; return their number."""
        with self._changes.lock:
            waiting = [self.jobs[job_id] for job_id in self._queue]
            for job in waiting:
                self._end(job, QueueJobState.CANCELLED)
        return len(waiting)

    def counts(self) -> dict[str, int]:
        """Return the numbers of jobs for /health."""
        states = [job.state for job in self.jobs.values()]
        return {
            "completed": states.count(QueueJobState.COMPLETED),
            "failed": sum(state in RETRIABLE for state in states),
            "inProgress": states.count(QueueJobState.IN_PROGRESS),
            "inQueue": states.count(QueueJobState.IN_QUEUE),
            "retried": self._retry_count,
        }

    def hand_out(self, worker_id: str, at_most: int) -> list[JsonObject]:
        """Hand out at most `at_most` waiting jobs to a worker, those with low priority last."""
        if self._faults.shortage is not None:
            return []
        with self._changes.lock:
            waiting = sorted(self._queue, key=lambda job_id: self.jobs[job_id].is_low_priority)
            return [self._hand_out(worker_id, self.jobs[job_id]) for job_id in waiting[:at_most]]

    def stop_signals(self, worker_id: str) -> list[str]:
        """Return the jobs that a worker must stop, each once."""
        with self._changes.lock:
            return self._to_stop.pop(worker_id, [])

    def mark_running(self, job_ids: Iterable[str]) -> None:
        """Record that a worker reported these jobs as running."""
        with self._changes.lock:
            for job in [self.jobs[job_id] for job_id in job_ids if job_id in self.jobs]:
                self._store_job(replace(job, seen_at=time.monotonic()))

    def add_progress(self, job_id: str, value: object) -> None:
        """Store a progress value. After a result, progress sets the job back to IN_PROGRESS."""
        with self._changes.lock:
            job = self.jobs[job_id]
            job = replace(job, progress=(*job.progress, value), seen_at=time.monotonic())
            if job.state.is_final and job.state not in STOPPED:
                self._change_state(job, QueueJobState.IN_PROGRESS, output=None, error=None)
            else:
                self._store_job(job)

    def finish(self, job_id: str, output: object = None, error: object = None) -> None:
        """Finish a job with its worker's result. A finished job does not change."""
        with self._changes.lock:
            job = replace(self.jobs[job_id], final_posts=self.jobs[job_id].final_posts + 1)
            if job.state.is_final:
                self._store_job(job)
            elif isinstance(error, str) and error:
                self._end(job, QueueJobState.FAILED, output=output, error=error)
            else:
                self._end(job, QueueJobState.COMPLETED, output=None if error else output)

    def _time_out(self, job_id: str, hand_outs: int) -> None:
        with self._changes.lock:
            job = self.jobs[job_id]
            if job.state is QueueJobState.IN_PROGRESS and job.hand_outs == hand_outs:
                self._end(job, QueueJobState.TIMED_OUT)

    def _expire(self, job_id: str) -> None:
        with self._changes.lock:
            job = self.jobs[job_id]
            if not job.state.is_final:
                self._end(job, QueueJobState.TIMED_OUT)

    def _check_worker(self, job_id: str, hand_outs: int) -> None:
        """Hand a job out again, or fail it, if no worker has reported it for `lost_job_s`."""
        with self._changes.lock:
            job = self.jobs[job_id]
            is_put_back = job.history[-2].state.is_final
            if job.state is not QueueJobState.IN_PROGRESS or job.hand_outs != hand_outs or is_put_back:
                return
            left_s = job.seen_at + self._config.lost_job_s - time.monotonic()
            if left_s > 0:
                self._changes.call_later(left_s, partial(self._check_worker, job_id, hand_outs))
            elif job.retries < MAX_RETRIES:
                self._retry_count += 1
                self._queue.append(job_id)
                self._change_state(job, QueueJobState.IN_QUEUE, retries=job.retries + 1)
            else:
                self._end(job, QueueJobState.FAILED, error=f"job timed out after {job.retries} retries")

    def _hand_out(self, worker_id: str, job: QueueJob) -> JsonObject:
        hand_outs = job.hand_outs + 1
        self._queue.remove(job.id)
        now = time.monotonic()
        self._change_state(job, QueueJobState.IN_PROGRESS, worker_id=worker_id, hand_outs=hand_outs, seen_at=now)
        timeout_s = job.policy_s("executionTimeout", self._config.execution_timeout_s)
        self._changes.call_later(timeout_s, partial(self._time_out, job.id, hand_outs))
        self._changes.call_later(self._config.lost_job_s, partial(self._check_worker, job.id, hand_outs))
        return {"id": job.id, **job.body}

    def _end(self, job: QueueJob, state: QueueJobState, *, output: object = None, error: str | None = None) -> QueueJob:
        if job.state is QueueJobState.IN_QUEUE:
            self._queue.remove(job.id)
        elif state in STOPPED and job.worker_id is not None:
            self._to_stop.setdefault(job.worker_id, []).append(job.id)
        return self._change_state(job, state, output=output, error=error)

    def _change_state(self, job: QueueJob, state: QueueJobState, **changes: Any) -> QueueJob:  # noqa: ANN401 - fields of QueueJob
        return self._store_job(replace(job, history=(*job.history, StateChange(state, time.monotonic())), **changes))

    def _store_job(self, job: QueueJob) -> QueueJob:
        self.jobs = MappingProxyType({**self.jobs, job.id: job})
        self._changes.notify()
        return job
