"""The one state of jobs, and every step that a job can take. No socket in it; any thread may call it."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import Any

from .changes import Changes
from .config import PlatformConfig
from .faults import QueueFaults
from .values import JsonObject, QueueJob, QueueJobState, StateChange

MOST_RETRIES = 1
STOPPED = frozenset({QueueJobState.CANCELLED, QueueJobState.TIMED_OUT})
RETRIABLE = frozenset({QueueJobState.FAILED, QueueJobState.TIMED_OUT})


class JobStore:
    """Jobs by id. `tell_webhook` is called in the loop with a job that ended and has one."""

    def __init__(
        self, terms: PlatformConfig, faults: QueueFaults, changes: Changes, tell_webhook: Callable[[QueueJob], None]
    ) -> None:
        self._terms = terms
        self._faults = faults
        self._changes = changes
        self._tell_webhook = tell_webhook
        self._queue: list[str] = []
        self._to_stop: dict[str, list[str]] = {}
        self._retried = 0
        # Replaced and never changed, so that a reader in another thread has a still picture without the lock.
        self.jobs: Mapping[str, QueueJob] = MappingProxyType({})

    def submit(self, body: Mapping[str, Any], *, is_sync: bool = False) -> QueueJob:
        """Put a job into the queue, with the body of its request; an empty input is stripped."""
        kept = {key: value for key, value in body.items() if (key, value) != ("input", {})}
        job_id = f"{'sync-' if is_sync else ''}{uuid.uuid4()}-u1"
        now = time.monotonic()
        job = QueueJob(job_id, MappingProxyType(kept), is_sync, (StateChange(QueueJobState.IN_QUEUE, now),))
        with self._changes.lock:
            self._queue.append(job_id)
            self._keep(job)
            self._changes.soon(job.policy_s("ttl", self._terms.ttl_s), partial(self._delete, job_id))
        return job

    def adopt(self, job_id: str) -> None:
        """Know a job that somebody else handed out."""
        now = time.monotonic()
        steps = (StateChange(QueueJobState.IN_QUEUE, now), StateChange(QueueJobState.IN_PROGRESS, now))
        with self._changes.lock:
            self._keep(QueueJob(job_id, MappingProxyType({}), is_sync=False, history=steps))

    def find(self, job_id: str) -> QueueJob | None:
        """Return a job as clients may still, or already, see it."""
        job, now = self.jobs.get(job_id), time.monotonic()
        if job is None or now < job.submitted_at + self._faults.late_404_s:
            return None
        kept_s = self._terms.sync_retention_s if job.is_sync else self._terms.retention_s
        is_expired = job.ended_at is not None and now >= job.ended_at + kept_s
        return None if is_expired or now >= job.submitted_at + job.policy_s("ttl", self._terms.ttl_s) else job

    def cancel(self, job_id: str) -> QueueJob:
        """Cancel a job that has not ended, and let its worker stop it."""
        with self._changes.lock:
            job = self.jobs[job_id]
            return job if job.state.is_final else self._end(job, QueueJobState.CANCELLED, is_told=False)

    def retry(self, job_id: str) -> QueueJob | None:
        """Return the job, in the queue again; None if it did not fail."""
        with self._changes.lock:
            job = self.jobs[job_id]
            if job.state not in RETRIABLE:
                return None
            self._retried += 1
            self._queue.append(job_id)
            return self._move(job, QueueJobState.IN_QUEUE, output=None, error=None)

    def purge(self) -> int:
        """Cancel what waits; return how many that were."""
        with self._changes.lock:
            waiting = [self.jobs[job_id] for job_id in self._queue]
            for job in waiting:
                self._end(job, QueueJobState.CANCELLED, is_told=False)
        return len(waiting)

    def drain_chunks(self, job_id: str) -> list[Any]:
        """Return the chunks that nobody fetched yet."""
        with self._changes.lock:
            job = self.jobs[job_id]
            self._keep(replace(job, fetched_chunks=len(job.chunks)))
        return list(job.chunks[job.fetched_chunks :])

    def counts(self) -> dict[str, int]:
        """Return the jobs of /health."""
        states = [job.state for job in self.jobs.values()]
        return {
            "completed": states.count(QueueJobState.COMPLETED),
            "failed": sum(state in RETRIABLE for state in states),
            "inProgress": states.count(QueueJobState.IN_PROGRESS),
            "inQueue": states.count(QueueJobState.IN_QUEUE),
            "retried": self._retried,
        }

    def hand_out(self, worker_id: str, at_most: int) -> list[JsonObject]:
        """Return the next jobs as a worker gets them; low priority comes last."""
        if self._faults.shortage is not None:
            return []
        with self._changes.lock:
            waiting = sorted(self._queue, key=lambda job_id: self.jobs[job_id].is_low_priority)
            return [self._hand_out(worker_id, self.jobs[job_id]) for job_id in waiting[:at_most]]

    def stop_signals(self, worker_id: str) -> list[str]:
        """Return the jobs that a worker is to stop, each once."""
        with self._changes.lock:
            return self._to_stop.pop(worker_id, [])

    def hear(self, job_ids: Iterable[str]) -> None:
        """Remember that somebody works on these jobs."""
        with self._changes.lock:
            for job in [self.jobs[job_id] for job_id in job_ids if job_id in self.jobs]:
                self._keep(replace(job, heard_at=time.monotonic()))

    def progress(self, job_id: str, value: object) -> None:
        """Keep a progress value; after a result it puts the job back."""
        with self._changes.lock:
            job = self.jobs[job_id]
            job = replace(job, progress=(*job.progress, value), heard_at=time.monotonic())
            if job.state.is_final and job.state not in STOPPED:
                self._move(job, QueueJobState.IN_PROGRESS, output=None, error=None)
            else:
                self._keep(job)

    def chunk(self, job_id: str, value: object) -> None:
        """Keep one chunk of a stream."""
        with self._changes.lock:
            job = self.jobs[job_id]
            self._keep(replace(job, chunks=(*job.chunks, value), heard_at=time.monotonic()))

    def finish(self, job_id: str, output: object = None, error: object = None) -> None:
        """End a job with what its worker posted; a job that has ended stays as it is."""
        with self._changes.lock:
            job = replace(self.jobs[job_id], final_posts=self.jobs[job_id].final_posts + 1)
            if job.state.is_final:
                self._keep(job)
            elif isinstance(error, str) and error:
                self._end(job, QueueJobState.FAILED, output=output, error=error)
            else:
                self._end(job, QueueJobState.COMPLETED, output=None if error else output)

    def _time_out(self, job_id: str, hand_outs: int) -> None:
        with self._changes.lock:
            job = self.jobs[job_id]
            if job.state is QueueJobState.IN_PROGRESS and job.hand_outs == hand_outs:
                self._end(job, QueueJobState.TIMED_OUT)

    def _delete(self, job_id: str) -> None:
        with self._changes.lock:
            job = self.jobs[job_id]
            if not job.state.is_final:
                self._end(job, QueueJobState.TIMED_OUT, is_told=False)

    def _look_after(self, job_id: str, hand_outs: int) -> None:
        """Hand a job out again, or give it up, if nobody has been heard to work on it."""
        with self._changes.lock:
            job = self.jobs[job_id]
            is_put_back = job.history[-2].state.is_final
            if job.state is not QueueJobState.IN_PROGRESS or job.hand_outs != hand_outs or is_put_back:
                return
            left_s = job.heard_at + self._terms.lost_job_s - time.monotonic()
            if left_s > 0:
                self._changes.soon(left_s, partial(self._look_after, job_id, hand_outs))
            elif job.retries < MOST_RETRIES:
                self._retried += 1
                self._queue.append(job_id)
                self._move(job, QueueJobState.IN_QUEUE, retries=job.retries + 1)
            else:
                self._end(job, QueueJobState.FAILED, error=f"job timed out after {job.retries} retries")

    def _hand_out(self, worker_id: str, job: QueueJob) -> JsonObject:
        hand_outs = job.hand_outs + 1
        self._queue.remove(job.id)
        now = time.monotonic()
        self._move(job, QueueJobState.IN_PROGRESS, worker_id=worker_id, hand_outs=hand_outs, heard_at=now)
        timeout_s = job.policy_s("executionTimeout", self._terms.execution_timeout_s)
        self._changes.soon(timeout_s, partial(self._time_out, job.id, hand_outs))
        self._changes.soon(self._terms.lost_job_s, partial(self._look_after, job.id, hand_outs))
        return {"id": job.id, **job.body}

    def _end(
        self,
        job: QueueJob,
        state: QueueJobState,
        *,
        output: object = None,
        error: str | None = None,
        is_told: bool = True,
    ) -> QueueJob:
        if job.state is QueueJobState.IN_QUEUE:
            self._queue.remove(job.id)
        elif state in STOPPED and job.worker_id is not None:
            self._to_stop.setdefault(job.worker_id, []).append(job.id)
        ended = self._move(job, state, output=output, error=error)
        if ended.webhook is not None and is_told:
            self._changes.soon(0, partial(self._tell_webhook, ended))
        return ended

    def _move(self, job: QueueJob, state: QueueJobState, **changes: Any) -> QueueJob:  # noqa: ANN401 - fields of Job
        return self._keep(replace(job, history=(*job.history, StateChange(state, time.monotonic())), **changes))

    def _keep(self, job: QueueJob) -> QueueJob:
        self.jobs = MappingProxyType({**self.jobs, job.id: job})
        self._changes.ring()
        return job
