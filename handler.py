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
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

from comfy_client import picture_process
from comfy_client.comfyui.server import ComfyServer
from comfy_client.contract import ErrorCode, ErrorReport, JsonObject
from comfy_client.errors import ComfyClientError, ComfyUIBroken, ConfigError, JobError, RequestError
from comfy_client.http import HttpApi
from comfy_client.workflows import load_workflows
from worker import local_results, logs
from worker.boot import Boot
from worker.boot_times import BootTimes
from worker.comfyui_process import ComfyProcess, ModelsMissing
from worker.jobs import Control, Worker, run_job
from worker.lifecycle import Lifecycle
from worker.progress import ProgressSender, progress_of
from worker.settings import Settings
from worker.turns import Turn, Turns

Handler: TypeAlias = Callable[[JsonObject], Coroutine[Any, Any, JsonObject]]
PostProgress: TypeAlias = Callable[[JsonObject, JsonObject], Awaitable[None]]

log = logging.getLogger("handler")


@dataclass(frozen=True)
class Service:
    """The worker with what surrounds its jobs. `post_progress` takes a job and its progress, on the platform."""

    worker: Worker
    lifecycle: Lifecycle
    comfyui: ComfyProcess | None = None
    post_progress: PostProgress | None = None
    turns: Turns = field(default_factory=Turns)
    threads: ThreadPoolExecutor = field(default_factory=lambda: make_threads(2))
    """Where jobs run. asyncio's own would be shared with whoever else waits in a thread."""


def make_threads(jobs: int) -> ThreadPoolExecutor:
    """Return threads for so many jobs in hand; further ones wait, in the order in which they came."""
    return ThreadPoolExecutor(jobs, thread_name_prefix="job")


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


def make_handler(service: Service) -> Handler:
    """Return `handler(job)`: a result (docs/api.md), or exactly `{"error": "<JSON text of an ErrorReport>"}`.

    The job runs in a thread, so that the SDK's loop stays free to see that a job is to be stopped. Then the task is
    cancelled, the job's prompts are interrupted, and CancelledError goes on to the SDK once nothing of it is left.
    """

    async def handler(job: JsonObject) -> JsonObject:
        service.lifecycle.note_job()
        cancelled = threading.Event()
        attempt = _Attempt(service, job, cancelled)
        sender = None
        if service.post_progress is not None:
            post = service.post_progress
            sender = ProgressSender(lambda progress: post(job, progress))
        report = sender.report if sender else lambda _: None
        running = asyncio.get_running_loop().run_in_executor(service.threads, attempt.outcome, report)
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            cancelled.set()
            await running
            raise
        finally:
            if sender is not None:
                await sender.drain()

    return handler


def writing_files(handler: Handler, folder: Path) -> Handler:
    """Return a handler whose results have paths in `folder` in place of base64, for a person at a terminal."""

    async def writing(job: JsonObject) -> JsonObject:
        return await asyncio.to_thread(local_results.written, await handler(job), folder)

    return writing


class _Attempt:
    """One job in its thread, from its turn to its result or report."""

    def __init__(self, service: Service, job: Mapping[str, Any], cancelled: threading.Event) -> None:
        self._service = service
        self._job = job
        self._job_id = str(job.get("id", "unknown"))
        self._cancelled = cancelled
        self._deaths = service.comfyui.deaths if service.comfyui else 0
        self._turn: Turn = service.turns.take(self._stop)

    def outcome(self, report: Callable[[JsonObject], None]) -> JsonObject:
        """Return the job's result, or its error."""
        logs.job_id.set(self._job_id)
        begun_at = time.monotonic()
        try:
            result = self._run(report)
            log.info("done in %.2f s", time.monotonic() - begun_at)
        except JobError as error:
            log.warning("%s after %.2f s", error.code.value, time.monotonic() - begun_at)
            return {"error": error.report.to_json()}
        except Exception:
            log.exception("a bug")
            message = f"A bug in the worker; its log has the traceback for job {self._job_id}."
            return {"error": ErrorReport(ErrorCode.INTERNAL, message).to_json()}
        else:
            return result
        finally:
            self._turn.end()
            if self._service.comfyui is not None:
                self._service.comfyui.end_if_stuck(self._service.worker.server)

    def _run(self, report: Callable[[JsonObject], None]) -> JsonObject:
        comfyui = self._service.comfyui
        if comfyui is not None:
            comfyui.await_use(self._stop)
            self._deaths = comfyui.deaths
        control = Control(self._stop, lambda sampling: report(progress_of(sampling)), self._turn)
        try:
            result = run_job(self._service.worker, self._job, control)
        except ComfyUIBroken as error:
            self._service.lifecycle.retire(error.report.message)
            raise
        except JobError as error:
            if error.code is ErrorCode.COMFYUI_UNAVAILABLE and comfyui is not None:
                raise comfyui.failure_since(self._deaths) or error from error
            raise
        if comfyui is not None:
            comfyui.note_success()
        return result

    def _stop(self) -> JobError | None:
        if self._cancelled.is_set():
            return JobError.because(ErrorCode.CANCELLED, "The job was cancelled.")
        comfyui = self._service.comfyui
        died = comfyui.failure_since(self._deaths) if comfyui else None
        return died or self._service.lifecycle.stop_error()


def report_unhealthy(environment: Mapping[str, str], reason: str) -> None:
    """Tell the platform why this worker retires, as the SDK's failed fitness checks do (reference/runpod.md 1.8)."""
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
        settings = Settings.from_env(os.environ)
        worker = make_worker(settings)
        logs.configure(settings.log_level)
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
    service = Service(worker, lifecycle, boot.process, threads=make_threads(settings.concurrency))
    _serve(settings, service, boot, times)


def _serve(settings: Settings, service: Service, boot: Boot, times: BootTimes) -> None:
    """Hand over to the SDK. On RunPod the boot is a fitness check: no job is taken, and none billed, before it ends."""
    # The SDK logs the first 4096 characters of every result at DEBUG, its default (reference/runpod.md 1.4).
    os.environ.setdefault("RUNPOD_LOG_LEVEL", "INFO")
    import runpod  # noqa: PLC0415 - takes 1.6 s and reads files, so never at import, and while ComfyUI boots

    logs.configure(settings.log_level)  # runpod's import installs a handler of its own
    times.note("runpod_imported")
    picture_process.warm()
    if settings.serve_api_locally:
        log.warning("SERVE_API_LOCALLY: jobs come to port %d, and none from RunPod", settings.api_port)
        sys.argv[1:] = _local_api_arguments(settings.api_port)

    def finish_boot() -> None:
        try:
            boot.finish()
        except (JobError, ModelsMissing):
            if service.lifecycle.is_ending:  # it failed because it was ended, which is no fault to be reported
                service.lifecycle.await_end()
            raise

    def concurrency(_current: int) -> int:
        # The SDK calls this first in its running loop, after it has installed its own signal handlers.
        service.lifecycle.handle_signals()
        return settings.concurrency

    config: dict[str, Any] = {"handler": make_handler(service), "concurrency_modifier": concurrency}
    if _is_on_platform():
        runpod.serverless.register_fitness_check(finish_boot)
        config["handler"] = make_handler(replace(service, post_progress=_post_progress))
        runpod.serverless.start(config)
        service.lifecycle.await_end()
        return
    if "--rp_serve_api" not in _options():
        config["handler"] = writing_files(config["handler"], Path("debug-output"))
    try:
        finish_boot()
        runpod.serverless.start(config)
    except (ComfyClientError, ModelsMissing) as error:
        sys.exit(f"handler.py: {error}")
    finally:
        boot.stop()
        service.threads.shutdown(wait=False, cancel_futures=True)


def _local_api_arguments(port: int) -> list[str]:
    """Return the SDK's arguments for SERVE_API_LOCALLY. On all addresses: a container's port is published."""
    return ["--rp_serve_api", "--rp_api_host", "0.0.0.0", "--rp_api_port", str(port)]  # noqa: S104 - as it says


def _is_on_platform() -> bool:
    """Whether the SDK will take jobs from RunPod (worker.py of runpod 1.12: these arguments come first)."""
    local = {"--rp_serve_api", "--test_input"} & _options()
    return bool(os.environ.get("RUNPOD_WEBHOOK_GET_JOB")) and not local


def _options() -> set[str]:
    """Return the names of this process's arguments."""
    return {argument.partition("=")[0] for argument in sys.argv[1:]}


async def _post_progress(job: JsonObject, progress: JsonObject) -> None:
    """Post the progress of a job, as the SDK's progress_update does, in the caller's own order."""
    from runpod.http_client import AsyncClientSession  # noqa: PLC0415 - see _serve
    from runpod.serverless.modules.rp_http import send_result  # noqa: PLC0415 - see _serve

    async with AsyncClientSession() as session:
        await send_result(session, {"status": "IN_PROGRESS", "output": progress}, job)


if __name__ == "__main__":
    main()
