"""How long a job that has ended waited and ran, at the shim's endpoint or at Scenario. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from comfy_client.gateway.scenario.models import ShimJob, Side
from comfy_client.providers.scenario_responses import read_job


@dataclass(frozen=True)
class JobTimes:
    """Durations in seconds. None if the side did not report what they are calculated from.

    Attributes:
        whole_s: from the request to the end.
        run_s: how long the job ran at its side.
    """

    whole_s: float | None = None
    run_s: float | None = None

    @property
    def queue_s(self) -> float | None:
        """The time without the run: the queue, the transfers, and the storage of the images."""
        return None if self.whole_s is None or self.run_s is None else max(0.0, self.whole_s - self.run_s)


def job_times(job: ShimJob) -> JobTimes:
    """Return the times of a job that has ended. Those of Scenario's jobs are from the dates in its record."""
    if job.side is Side.OWN:
        return JobTimes(max(0.0, job.updated_at - job.created_at), job.execution_s)
    status = read_job({"job": job.scenario_record})
    if status is None or status.delay_s is None or status.execution_s is None:
        return JobTimes()
    return JobTimes(status.delay_s + status.execution_s, status.execution_s)
