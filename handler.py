"""The RunPod worker's entry: settings, wiring, and `handler(job)`, which never raises but when it is cancelled.

python handler.py                                    runs test_input.json; pictures are written to debug-output/
python handler.py --test_input '{"input": {...}}'    runs that job, likewise
python handler.py --rp_serve_api                     serves RunPod's local API on port 8000
SERVE_API_LOCALLY=true                               the same on all addresses, as in the container
on RunPod                                            takes jobs until it is told to stop
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from comfy_core.comfyui.server import ComfyServer
from comfy_core.contract import JsonObject
from comfy_core.errors import ComfyClientError, ConfigError, JobError, RequestError
from comfy_core.http import HttpApi
from comfy_core.images import child_process
from comfy_core.workflows import load_workflows
from worker import local_results, logs
from worker.boot import Boot
from worker.boot_times import BootTimes
from worker.comfyui_process import ModelsMissing
from worker.disk import full_disk, temporary_folder
from worker.job_execution import JobExecution, Service, make_threads
from worker.jobs import Worker
from worker.lifecycle import Lifecycle
from worker.process_memory import protect_process_memory
from worker.progress import ProgressSender
from worker.runpod_api import RunPodWorkerApi, secure_local_api
from worker.settings import Settings

Handler: TypeAlias = Callable[[JsonObject], Coroutine[Any, Any, JsonObject]]
PostProgress: TypeAlias = Callable[[JsonObject, JsonObject], Awaitable[None]]

LONGEST_BESIDE_S = 600.0
"""How long a job's thread may take besides its wait for earlier jobs and its run, WORKER_JOB_TIMEOUT_S each."""
CANCEL_S = 60.0
"""How long the thread of a cancelled job may take to end."""
_POLL_S = 0.5

log = logging.getLogger("handler")


def make_worker(settings: Settings) -> Worker:
    """Return what the jobs of this process share. Raises ConfigError."""
    return Worker(
        server=ComfyServer(settings.comfyui_url, directory=settings.comfyui_data_directory),
        workflows=load_workflows(settings.workflows_directory),
        job_timeout_s=settings.job_timeout_s,
        max_result_bytes=settings.max_result_bytes,
        allow_graphs=settings.allow_graphs,
        image_fields=settings.image_fields,
        bucket=settings.bucket,
    )


def make_handler(service: Service, post_progress: PostProgress | None = None) -> Handler:
    """Return `handler(job)`: a result (docs/api.md), or exactly `{"error": "<JSON text of an ErrorReport>"}`.

    The job runs in a thread, so that the SDK's loop stays free to see that a job is to be stopped. Then the task is
    cancelled, the job's prompts are interrupted, and CancelledError goes on to the SDK once nothing of it is left.
    `post_progress` takes a job and its progress.
    """

    async def handler(job: JsonObject) -> JsonObject:
        service.lifecycle.note_job()
        logs.job_id.set(str(job.get("id", "unknown"))[:256])
        sender = None
        if post_progress is not None:
            sender = ProgressSender(lambda progress: post_progress(job, progress))
        attempt = JobExecution(service, job, sender.report if sender else lambda _: None)
        try:
            return await _outcome(service, attempt)
        finally:
            if sender is not None:
                await sender.drain()

    return handler


async def _outcome(service: Service, attempt: JobExecution) -> JsonObject:
    """Return what comes of a job, also if no thread is free for it, or its own does not end."""
    if error := service.comfyui.refusal():
        attempt.end()
        return attempt.failed(error)
    in_thread = service.threads.submit(attempt.outcome)
    running = asyncio.wrap_future(in_thread)
    try:
        while not (await asyncio.wait({running}, timeout=_POLL_S))[0]:
            if error := attempt.abandon_error():
                answer = attempt.failed(error)
                attempt.cancelled.set()
                if in_thread.cancel():
                    attempt.end()
                return answer
            if attempt.took_s > service.longest_s:
                attempt.cancelled.set()
                service.lifecycle.retire("a job's thread does not end")
                return attempt.bug()
        return running.result()
    except asyncio.CancelledError:
        attempt.cancelled.set()
        if in_thread.cancel():
            attempt.end()
        elif not (await asyncio.wait({running}, timeout=CANCEL_S))[0]:
            service.lifecycle.retire("the thread of a cancelled job does not end")
        raise


def writing_files(handler: Handler, folder: Path) -> Handler:
    """Return a handler whose results have paths in `folder` in place of base64, for a person at a terminal."""

    async def writing(job: JsonObject) -> JsonObject:
        return await asyncio.to_thread(local_results.written, await handler(job), folder)

    return writing


def report_unhealthy(environment: Mapping[str, str], reason: str) -> None:
    """Tell the platform why this worker retires, as the SDK's failed fitness checks do.

    Source: docs/reference/runpod.md#fitness-checks.
    """
    url = environment.get("RUNPOD_WEBHOOK_PING", "").replace("$RUNPOD_POD_ID", environment.get("RUNPOD_POD_ID", ""))
    key = environment.get("RUNPOD_AI_API_KEY", "")
    if not url or not key:
        return
    api = HttpApi(url, name="RunPod", headers={"Authorization": key})
    params = {"status": "unhealthy", "check": "comfyui", "reason": reason[:256]}
    try:
        api.call("GET", "", timeout_s=2, params=params)
    except RequestError as error:
        log.warning("the platform was not told: %s", error)


def main() -> None:
    """Boot, then serve jobs in the mode that RunPod's SDK reads from the arguments and the environment."""
    times = BootTimes()
    times.note("python")
    try:
        is_protected = protect_process_memory()
        settings = Settings.from_env(os.environ)
        worker = make_worker(settings)
        logs.configure(settings.log_level)
        if settings.comfyui_is_ours and not is_protected:
            log.warning("custom nodes can read this process's environment: PR_SET_DUMPABLE failed")
        times.note("settings")
        boot = Boot(
            settings,
            worker.server,
            worker.workflows,
            os.environ,
            lambda: lifecycle.retire("ComfyUI died and stayed dead"),
            times,
        )
        lifecycle = Lifecycle(
            stop_comfyui=boot.stop,
            report_unhealthy=lambda reason: report_unhealthy(os.environ, reason),
            grace_s=settings.shutdown_grace_s,
        )
        lifecycle.handle_signals()
        boot.begin()
    except ConfigError as error:
        sys.exit(f"handler.py: {error}")
    data = settings.comfyui_data_directory
    disk = partial(full_disk, [data, temporary_folder(os.environ)] if data else [])
    longest_s = 2 * settings.job_timeout_s + LONGEST_BESIDE_S
    service = Service(
        worker, lifecycle, boot.comfyui, disk, threads=make_threads(settings.concurrency), longest_s=longest_s
    )
    _serve(settings, service, boot, times)


def _serve(settings: Settings, service: Service, boot: Boot, times: BootTimes) -> None:
    """Hand over to the SDK. On RunPod the boot is a fitness check: no job is taken, and none billed, before it ends."""
    # The SDK logs the first 4096 characters of every result at DEBUG, its default
    # (docs/reference/runpod.md#result-size-and-logging).
    os.environ.setdefault("RUNPOD_LOG_LEVEL", "INFO")
    import runpod  # noqa: PLC0415 - takes 1.6 s and reads files, so never at import, and while ComfyUI boots

    logs.configure(settings.log_level)  # runpod's import installs a handler of its own
    times.note("runpod_imported")
    child_process.warm()

    def finish_boot() -> None:
        try:
            boot.finish()
        except (JobError, ModelsMissing):
            if service.lifecycle.is_ending:  # it failed because it was ended, which is no fault to be reported
                service.lifecycle.await_end()
            raise

    if _is_on_platform(settings):
        runpod.serverless.register_fitness_check(finish_boot)
        platform = RunPodWorkerApi(settings.concurrency, service.lifecycle)
        posting = make_handler(service, platform.post_progress)
        # In the SDK's running loop, after it has installed its own signal handlers.
        runpod.serverless.start(platform.configured(posting, on_start=service.lifecycle.handle_signals))
        service.lifecycle.await_end()
        return
    handler = make_handler(service)
    if settings.serve_api_locally:
        sys.argv[1:] = _local_api_arguments(settings.api_port)
    if "--rp_serve_api" in _options():
        secure_local_api()
    else:
        handler = writing_files(handler, Path("debug-output"))
    try:
        finish_boot()
        runpod.serverless.start({"handler": handler})
    except (ComfyClientError, ModelsMissing) as error:
        sys.exit(f"handler.py: {error}")
    finally:
        boot.stop()
        service.threads.shutdown(wait=False, cancel_futures=True)


def _local_api_arguments(port: int) -> list[str]:
    """Return the SDK's arguments for SERVE_API_LOCALLY. On all addresses: a container's port is published."""
    return ["--rp_serve_api", "--rp_api_host", "0.0.0.0", "--rp_api_port", str(port)]  # noqa: S104 - as it says


def _is_on_platform(settings: Settings) -> bool:
    """Whether the SDK will take jobs from RunPod (worker.py of runpod 1.12: these arguments come first)."""
    local = {"--rp_serve_api", "--test_input"} & _options()
    return bool(os.environ.get("RUNPOD_WEBHOOK_GET_JOB")) and not local and not settings.serve_api_locally


def _options() -> set[str]:
    """Return the names of this process's arguments."""
    return {argument.partition("=")[0] for argument in sys.argv[1:]}


if __name__ == "__main__":
    main()
