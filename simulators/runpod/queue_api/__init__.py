"""A simulator of RunPod serverless: real workers and clients connect to it over HTTP.

It imports none of this project's other packages, so that it cannot share their mistakes. Workers are started by
`WorkerProcess`. It reproduces these facts of docs/reference/runpod.md; `?` marks those that are not measured.

Worker side, below /v2/{endpoint}; the SDK puts the ids into the URLs and appends `&…`, so each one holds a `?` already:
  GET  job-take/{worker}        held until a job is available: 200 with {id, input, and the envelope}; 204 after a while
  GET  job-take-batch/{worker}  the same with ?batch_size=n: 200 with a list of 1 to n jobs; 204
  GET  job-stop/{worker}        held until a job must be stopped: {"jobsToStop": [id, …]}, each id once; 204
  POST job-done/{worker}/{job}  a result, or progress if the body has {"status": "IN_PROGRESS"}; JSON sent as a form
  GET  ping/{worker}            ?job_id=a,b while jobs run; ?status=unhealthy&check=…&reason=… before a worker gives up
A string `error` makes a job FAILED; other fields of the result stay its output. Any other `error` makes it COMPLETED
without output, as a null or absent output does. A result that is too large or not JSON (NaN) gets 400, and the job
becomes COMPLETED without output. The SDK posts twice more after 5xx, and never again after 4xx or a lost connection. If
two results arrive, the first one is kept ?. Progress after the result sets the job back to IN_PROGRESS, until its
execution timeout (runpod-python #250). After a cancel, execution timeout or ttl ? job-stop reports the job to its
worker, and a later result has no effect.
A job of which no ping or progress arrives for `lost_job_s` is handed out once more, then FAILED with "job timed
out after 1 retries". A job with an empty `input` ends the same way: the input is stripped, and the SDK
drops a job without it.

Client side, `Authorization: Bearer KEY` or the bare key, else 401 {"status", "title", "detail"}:
  POST run, runsync?wait=ms     200 {id, status}, or the job once it ended; ids are <uuid>-u1 and sync-<uuid>-u1
  GET  status/{id}              absent rather than null; times in ms; while IN_PROGRESS `output` is the latest progress
  POST cancel/{id}, retry/{id}  {id, status}; only FAILED and TIMED_OUT can be retried, else 400
  POST purge-queue              {"removed": n, "status": "completed"}; running jobs continue
  GET  health                   {"jobs": {…}, "workers": {…}}, all integers; `ready` is idle and running ?
Too large a request is 400 `bad request: body: exceeded max body size of 10MiB`, not 413. 404 for an unknown endpoint or
job, for a job `retention_s` after its end (`sync_retention_s` for runsync), and for any job once its ttl is over.
Cancelling a job that ended changes nothing ?, purged jobs are CANCELLED ?, TIMED_OUT has no error ?. Not simulated:
streams, webhooks, rate limits, requests, batch, ?ttl=.
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
