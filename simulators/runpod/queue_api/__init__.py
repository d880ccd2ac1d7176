"""A simulator of RunPod serverless: one endpoint with its queue of jobs, for workers and clients, on a real socket.

Jobs may have any input and output. `WorkerProcess` starts workers. The simulator imports none of this project's other
packages, so that it cannot repeat their mistakes. It reproduces these facts of docs/reference/runpod.md. `?` marks
facts that are not measured.

Worker side, below /v2/{endpoint}. The SDK appends `&…` to the URLs of a worker's environment, so each has a query:
  GET  job-take/{worker}        waits for a job: 200 with {id, input, and the envelope}; 204 after `long_poll_s`
  GET  job-take-batch/{worker}  the same with ?batch_size=n: 200 with a list of 1 to n jobs; 204
  GET  job-stop/{worker}        waits until a job must be stopped: {"jobsToStop": [id, …]}, each id once; 204
  POST job-done/{worker}/{job}  a result, or progress if the body has {"status": "IN_PROGRESS"}; JSON sent as a form
  GET  ping/{worker}            ?job_id=a,b while jobs run; ?status=unhealthy&check=…&reason=… before a worker exits
- A result with a string as `error` makes the job FAILED, and its `output` is kept. With any other `error`, or without
  an output, the job is COMPLETED without output.
- A result that is too large or not JSON (NaN) gets 400, and the job is COMPLETED without output.
- The SDK posts a result twice more after 5xx, and never again after 4xx or a cut connection. If two results of a job
  arrive, the second has no effect ?.
- Progress after the result sets the job back to IN_PROGRESS until its execution timeout (runpod-python #250).
- A cancellation, the execution timeout and the ttl ? are sent to the worker in job-stop. A later result has no effect.
- A job without a ping or progress for `lost_job_s` is handed out once more, then FAILED with "job timed out after 1
  retries". So is a job with an empty `input`: RunPod removes the input, and the SDK ignores a job without input.

Client side, `Authorization: Bearer KEY` or the bare key, else 401 {"status", "title", "detail"}:
  POST run, runsync?wait=ms     200 {id, status}, or the job once it has ended; ids are <uuid>-u1 and sync-<uuid>-u1
  GET  status/{id}              no nulls; times in ms; while IN_PROGRESS `output` is the latest progress
  POST cancel/{id}, retry/{id}  {id, status}; only FAILED and TIMED_OUT can be retried, else 400
  POST purge-queue              {"removed": n, "status": "completed"}; running jobs continue
  GET  health                   {"jobs": {…}, "workers": {…}}, all integers; `ready` is idle and running ?
- A request that is too large gets 400 `bad request: body: exceeded max body size of 10MiB`, not 413.
- 404: an unknown endpoint or job, a job `retention_s` after its end (`sync_retention_s` for runsync), and a job whose
  ttl has passed.
- Cancelling a job that has ended changes nothing ?. Purged jobs are CANCELLED ?. TIMED_OUT has no error ?.

Not simulated: streams, webhooks, rate limits, requests, batch, ?ttl=.
"""

from .config import PlatformConfig
from .faults import QueueFaults
from .platform import RunPodPlatform
from .values import Ping, Post, QueueJob, QueueJobState, StateChange, Take
from .worker_process import WorkerProcess

__all__ = [
    "Ping",
    "PlatformConfig",
    "Post",
    "QueueFaults",
    "QueueJob",
    "QueueJobState",
    "RunPodPlatform",
    "StateChange",
    "Take",
    "WorkerProcess",
]
