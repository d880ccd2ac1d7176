"""The RunPod worker's entry: settings, wiring, and `handler(job)`, which never raises.

python handler.py                                    runs test_input.json and prints the result
python handler.py --test_input '{"input": {...}}'    runs that job
python handler.py --rp_serve_api                     serves RunPod's local API on port 8000
on RunPod                                            takes jobs until it is told to stop
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, TypeAlias

from comfy_client.comfyui.server import ComfyServer
from comfy_client.contract import ErrorCode, ErrorReport, JsonObject
from comfy_client.errors import ConfigError, JobError
from comfy_client.workflows import load_workflows
from worker.jobs import Worker, run_job
from worker.settings import Settings

Handler: TypeAlias = Callable[[JsonObject], Coroutine[Any, Any, JsonObject]]

log = logging.getLogger("handler")


def make_worker(settings: Settings) -> Worker:
    """Return what the jobs of this process share. Raises ConfigError."""
    return Worker(
        server=ComfyServer(settings.comfyui_url, directory=settings.comfyui_directory),
        workflows=load_workflows(settings.workflows_directory),
        job_timeout_s=settings.job_timeout_s,
    )


def make_handler(worker: Worker) -> Handler:
    """Return `handler(job)`: a result (docs/api.md), or exactly `{"error": "<JSON text of an ErrorReport>"}`.

    The job runs in a thread, so that the SDK's loop stays free to see that a job is to be stopped. Then the task is
    cancelled, the job's prompts are interrupted, and CancelledError goes on to the SDK once nothing of it is left.
    """

    async def handler(job: JsonObject) -> JsonObject:
        cancelled = threading.Event()
        running = asyncio.get_running_loop().run_in_executor(None, _outcome, worker, job, cancelled)
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            cancelled.set()
            await running
            raise

    return handler


def _outcome(worker: Worker, job: Mapping[str, Any], cancelled: threading.Event) -> JsonObject:
    job_id = str(job.get("id", "unknown"))

    def stop() -> JobError | None:
        return JobError.because(ErrorCode.CANCELLED, "The job was cancelled.") if cancelled.is_set() else None

    try:
        return run_job(worker, job_id, job.get("input"), stop)
    except JobError as error:
        log.warning("job %s: %s", job_id, error.code.value)
        report = error.report
    except Exception:
        log.exception("job %s: a bug", job_id)
        report = ErrorReport(ErrorCode.INTERNAL, f"A bug in the worker; its log has the traceback for job {job_id}.")
    return {"error": report.to_json()}


def main() -> None:
    """Serve jobs, in the mode that RunPod's SDK reads from the arguments and the environment."""
    try:
        settings = Settings.from_env(os.environ)
        worker = make_worker(settings)
    except ConfigError as error:
        sys.exit(f"handler.py: {error}")
    # The SDK logs the first 4096 characters of every result at DEBUG, its default (reference/runpod.md 1.4).
    os.environ.setdefault("RUNPOD_LOG_LEVEL", "INFO")
    import runpod  # noqa: PLC0415 - takes 1.6 s and reads files, so never at import

    logging.basicConfig(level=settings.log_level, format="%(levelname)s %(name)s: %(message)s", force=True)
    runpod.serverless.start({"handler": make_handler(worker)})


if __name__ == "__main__":
    main()
