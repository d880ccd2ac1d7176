"""Entry point of the RunPod worker: settings, wiring, and `handler(job)`.

python handler.py                                    runs test_input.json; images are written to debug-output/
python handler.py --test_input '{"input": {...}}'    runs that job in the same way
python handler.py --rp_serve_api                     serves RunPod's local API on port 8000
SERVE_API_LOCALLY=true                               serves that API on all interfaces, on port WORKER_API_PORT
on RunPod                                            takes jobs until SIGTERM
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import os
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeAlias

from comfy_core.comfyui.server import ComfyServer
from comfy_core.contract import JsonObject
from comfy_core.errors import ComfyClientError, ConfigError, JobError, RequestError
from comfy_core.http import HttpApi
from comfy_core.images import child_process
from comfy_core.workflow_folder import WorkflowFolder
from comfy_core.workflows import Workflow, default_directory, load_workflows
from worker import local_results, logs
from worker.boot import Boot
from worker.boot_times import BootTimes
from worker.comfyui_process import ModelsMissing, ProcessHooks
from worker.disk import full_disk_problem
from worker.job_execution import JobExecution, Service, make_threads
from worker.job_models import model_fetcher
from worker.job_record import MESSAGE, job_record
from worker.jobs import Worker
from worker.lifecycle import Lifecycle, end_process
from worker.models_task import model_store
from worker.process_memory import protect_process_memory
from worker.progress import ProgressSender
from worker.runpod_api import RunPodWorkerApi, secure_local_api
from worker.settings import RunPodVariables, Settings
from worker.warm_up import WarmUp

Handler: TypeAlias = Callable[[JsonObject], Coroutine[Any, Any, JsonObject]]
PostProgress: TypeAlias = Callable[[JsonObject, JsonObject], Awaitable[None]]

JOB_THREAD_MARGIN_S = 600.0
"""A job's thread may take this long, plus WORKER_JOB_TIMEOUT_S twice: for the wait and for the run."""
CANCEL_TIMEOUT_S = 60.0
"""Seconds to wait for the thread of a cancelled job to end. If it does not end, the worker retires."""
_POLL_S = 0.5

_default_handler_lock = threading.Lock()

log = logging.getLogger("handler")


def worker_from_settings(settings: Settings) -> Worker:
    """Return the configuration and connections shared by all jobs. Raises ConfigError."""
    return Worker(
        server=ComfyServer(settings.comfyui_url, directory=settings.comfyui_data_directory),
        workflows=_workflows(settings),
        settings=settings,
        models=model_fetcher(settings),
        store=model_store(settings),
    )


def _workflows(settings: Settings) -> Mapping[str, Workflow]:
    """Return the shipped workflows and those of WORKER_WORKFLOWS. Raises ConfigError if there can be none."""
    shipped = load_workflows(default_directory()) if settings.shipped_workflows else {}
    if settings.workflows_directory is None:
        if not shipped:
            raise ConfigError("WORKER_SHIPPED_WORKFLOWS is false: set WORKER_WORKFLOWS to a folder of workflows")
        return shipped
    workflows = WorkflowFolder(settings.workflows_directory, shipped)
    if not any(map(workflows.is_own, workflows)):
        log.warning("WORKER_WORKFLOWS: %s has no workflow yet", settings.workflows_directory)
    return workflows


def make_handler(service: Service, post_progress: PostProgress | None = None) -> Handler:
    """Return `handler(job)`, which returns a result (docs/api.md), or `{"error": <JSON text of an ErrorReport>}`.

    The job runs in a thread, so that the SDK's event loop can receive RunPod's cancellations. The SDK then cancels
    the task: the job's prompts are interrupted, and CancelledError is raised again once the job has ended, or after
    CANCEL_TIMEOUT_S. `post_progress` receives a job and its progress. The job's webhook gets its events.
    """

    async def run(job: JsonObject) -> JsonObject:
        begun_at = time.monotonic()
        service.lifecycle.note_job()
        events = service.worker.webhooks.events_of(job)
        logs.job_id.set(str(job.get("id", "unknown"))[:256])
        sender = None
        if post_progress is not None:
            sender = ProgressSender(lambda progress: post_progress(job, progress))

        def report(progress: JsonObject) -> None:
            events.report(progress)
            if sender is not None:
                sender.report(progress)

        execution = JobExecution(service, job, report)
        outcome: JsonObject | None = None
        try:
            outcome = await _outcome(service, execution)
            await events.end(outcome)
        except asyncio.CancelledError:
            outcome = None
            events.cancel()
            raise
        else:
            return outcome
        finally:
            record = job_record(job, outcome, execution.notes, time.monotonic() - begun_at)
            log.info(MESSAGE, extra={"job": record})
            if sender is not None:
                await sender.drain()

    return run


async def _outcome(service: Service, execution: JobExecution) -> JsonObject:
    """Run a job in a thread and return its result or error.

    Returns an error without waiting further if the worker takes no jobs or is ending, or if the thread takes too long.
    """
    if error := service.comfyui.rejection_error():
        execution.release_ticket()
        return execution.error_outcome(error)
    future = service.threads.submit(execution.run)
    running = asyncio.wrap_future(future)
    try:
        while not (await asyncio.wait({running}, timeout=_POLL_S))[0]:
            if error := execution.abandon_error():
                response = execution.error_outcome(error)
                execution.cancel_requested.set()
                if future.cancel():
                    execution.release_ticket()
                return response
            if execution.duration_s > service.max_job_s:
                execution.cancel_requested.set()
                service.lifecycle.retire("a job's thread does not end")
                return execution.bug_outcome()
        return running.result()
    except asyncio.CancelledError:
        execution.cancel_requested.set()
        if future.cancel():
            execution.release_ticket()
        elif not (await asyncio.wait({running}, timeout=CANCEL_TIMEOUT_S))[0]:
            service.lifecycle.retire("the thread of a cancelled job does not end")
        raise


def with_written_files(inner: Handler, folder: Path) -> Handler:
    """Return a handler for local use. Its results contain paths of files in `folder` instead of base64."""

    async def run_and_write(job: JsonObject) -> JsonObject:
        return await asyncio.to_thread(local_results.write_files, await inner(job), folder)

    return run_and_write


def report_unhealthy(platform: RunPodVariables, reason: str) -> None:
    """Report to the platform why this worker retires, as the SDK does after a failed fitness check.

    Do nothing if RunPod's ping URL or API key is not set. Source: docs/reference/runpod.md#fitness-checks.
    """
    url = platform.ping_url.replace("$RUNPOD_POD_ID", platform.worker_id)
    if not url or not platform.api_key:
        return
    api = HttpApi(url, name="RunPod", headers={"Authorization": platform.api_key})
    params = {"status": "unhealthy", "check": "comfyui", "reason": reason[:256]}
    try:
        api.call("GET", "", timeout_s=2, params=params)
    except RequestError as error:
        log.warning("the worker's state could not be reported to RunPod: %s", error)


def _make_boot(
    settings: Settings,
    worker: Worker,
    environment: Mapping[str, str],
    times: BootTimes,
    end: Callable[[int], None] = end_process,
) -> tuple[Boot, Lifecycle, WarmUp]:
    """Return the boot, not started yet, the lifecycle and the warm-up. `end` exits the process with a status."""
    hooks = ProcessHooks(
        on_lost=lambda: lifecycle.retire("ComfyUI died and could not be restarted"),
        on_restarted=lambda: warm_up.begin(boot.comfyui),
    )
    boot = Boot(settings, worker.server, worker.workflows, environment, hooks, times)
    lifecycle = Lifecycle(
        stop_comfyui=boot.stop,
        report_unhealthy=lambda reason: report_unhealthy(settings.runpod, reason),
        end_webhooks=worker.webhooks.end,
        grace_s=settings.shutdown_grace_s,
        end=end,
    )
    warm_up = WarmUp(worker, lifecycle)
    return boot, lifecycle, warm_up


def _make_service(settings: Settings, worker: Worker, lifecycle: Lifecycle, boot: Boot) -> Service:
    """Return the objects that all jobs of this process share. Call it after `boot.begin`."""
    data = settings.comfyui_data_directory
    disk_problem = partial(full_disk_problem, [data, settings.temporary_directory] if data else [])
    max_job_s = 2 * settings.job_timeout_s + JOB_THREAD_MARGIN_S
    return Service(
        worker, lifecycle, boot.comfyui, disk_problem, threads=make_threads(settings.concurrency), max_job_s=max_job_s
    )


async def handler(job: JsonObject) -> JsonObject:
    """Run one job. For programs that import this module; see `make_handler` for what it returns.

    The first call reads the environment, boots ComfyUI and waits until it is ready; later calls use the same
    ComfyUI, which is stopped at exit. Raises ConfigError, JobError or ModelsMissing if the boot fails; the next call
    tries again.
    """
    run_job = await asyncio.to_thread(_default_handler)
    return await run_job(job)


def _default_handler() -> Handler:
    with _default_handler_lock:
        return _boot_default_handler()


@cache
def _boot_default_handler() -> Handler:
    settings = Settings.from_env(os.environ)
    worker = worker_from_settings(settings)
    if settings.comfyui_is_ours:
        protect_process_memory()
    # The process belongs to the importing code, so a retiring worker must not exit it.
    boot, lifecycle, _ = _make_boot(settings, worker, os.environ, BootTimes(), end=lambda _status: None)
    boot.begin()
    boot.finish()
    atexit.register(boot.stop)
    atexit.register(worker.webhooks.end)
    return make_handler(_make_service(settings, worker, lifecycle, boot))


def main(make_worker: Callable[[Settings], Worker] = worker_from_settings) -> None:
    """Boot, then serve jobs in the mode that RunPod's SDK derives from the arguments and the environment."""
    times = BootTimes()
    times.note("python")
    try:
        is_protected = protect_process_memory()
        settings = Settings.from_env(os.environ)
        logs.configure(settings.log_level)
        worker = make_worker(settings)
        if settings.comfyui_is_ours and not is_protected:
            log.warning("custom nodes can read this process's environment: PR_SET_DUMPABLE failed")
        times.note("settings")
        boot, lifecycle, warm_up = _make_boot(settings, worker, os.environ, times)
        lifecycle.handle_signals()
        boot.begin()
    except ConfigError as error:
        sys.exit(f"handler.py: {error}")
    service = _make_service(settings, worker, lifecycle, boot)
    _serve(settings, service, boot, times, warm_up)


def _serve(settings: Settings, service: Service, boot: Boot, times: BootTimes, warm_up: WarmUp) -> None:
    """Finish the boot and serve jobs with the SDK.

    On RunPod the SDK waits for the end of the boot as a fitness check. Until then no job is taken and none is billed.
    """
    # The default is DEBUG, at which the SDK logs the first 4096 characters of every result
    # (docs/reference/runpod.md#result-size-and-logging).
    os.environ["RUNPOD_LOG_LEVEL"] = settings.runpod.log_level
    os.environ["RUNPOD_SKIP_AUTO_SYSTEM_CHECKS"] = settings.runpod.skips_system_checks
    import runpod  # noqa: PLC0415 - takes 1.6 s and reads files, so not at import but while ComfyUI boots

    logs.configure(settings.log_level)  # importing runpod installs its own log handler
    times.note("runpod_imported")
    child_process.warm()

    def finish_boot() -> None:
        try:
            boot.finish()
        except (JobError, ModelsMissing):
            if service.lifecycle.is_ending:  # failed because of the shutdown, which is not an error
                service.lifecycle.await_end()
            raise

    def on_start() -> None:
        service.lifecycle.handle_signals()
        warm_up.begin(boot.comfyui)

    if _is_on_platform(settings):
        runpod.serverless.register_fitness_check(finish_boot)
        platform = RunPodWorkerApi(settings.concurrency, service.lifecycle)
        platform_handler = make_handler(service, platform.post_progress)
        # on_start is called in the SDK's running loop before each poll, once the SDK has its own signal handlers.
        runpod.serverless.start(platform.sdk_config(platform_handler, on_start))
        service.lifecycle.await_end()
        return
    local_handler = make_handler(service)
    if settings.serve_api_locally:
        sys.argv[1:] = _local_api_arguments(settings.api_port)
    if is_server := "--rp_serve_api" in _options():
        secure_local_api()
    else:
        local_handler = with_written_files(local_handler, Path("debug-output"))
    try:
        finish_boot()
        if is_server:
            warm_up.begin(boot.comfyui)
        runpod.serverless.start({"handler": local_handler})
    except (ComfyClientError, ModelsMissing) as error:
        sys.exit(f"handler.py: {error}")
    finally:
        service.worker.webhooks.end()
        boot.stop()
        service.threads.shutdown(wait=False, cancel_futures=True)


def _local_api_arguments(port: int) -> list[str]:
    """Return the SDK's arguments for SERVE_API_LOCALLY: all interfaces, because the container's port is published."""
    return ["--rp_serve_api", "--rp_api_host", "0.0.0.0", "--rp_api_port", str(port)]  # noqa: S104 - intended, see above


def _is_on_platform(settings: Settings) -> bool:
    """Return whether the SDK will take jobs from RunPod. Its arguments for local use take precedence (runpod 1.12)."""
    local = {"--rp_serve_api", "--test_input"} & _options()
    return bool(settings.runpod.take_url) and not local and not settings.serve_api_locally


def _options() -> set[str]:
    """Return the names of the options in this process's command line, without their values."""
    return {argument.partition("=")[0] for argument in sys.argv[1:]}


if __name__ == "__main__":
    main()
