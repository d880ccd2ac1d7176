"""Provider for a ComfyUI that is called directly, without RunPod. It does the worker's work in this process.

Any process finds a job by its id as long as ComfyUI has its prompts (direct_jobs.py). A job that its caller follows
(`wait_s` is not None) leaves nothing in ComfyUI when it ends, and `close` interrupts it. A job that its caller does not
follow continues after `close`, and its prompts and files stay in ComfyUI.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from comfy_client.providers.direct_jobs import FoundJob, Traces, find_job, new_job_id, run_names, traces_of
from comfy_client.providers.interface import (
    GeneratedFile,
    GeneratedImage,
    GenerationRequest,
    GenerationResult,
    Health,
    JobState,
    JobStatus,
    bucket_fault,
    webhook_fault,
)
from comfy_client.providers.results import read_result
from comfy_core.comfyui.model_inputs import address_faults
from comfy_core.comfyui.model_listing import listed_models
from comfy_core.comfyui.outputs import JobOutput, PromptResult, job_outputs
from comfy_core.comfyui.prompt_monitor import WaitLimits
from comfy_core.comfyui.run import Hooks, RunNames, RunResult, collect_prompts, run_graphs
from comfy_core.comfyui.server import ComfyServer
from comfy_core.contract import ErrorReport, Fault
from comfy_core.error_codes import ErrorCode
from comfy_core.errors import ComfyClientError, ConfigError, JobError, RequestError, invalid_input
from comfy_core.images.child_process import StopCheck, never_stop
from comfy_core.models.address_source import ModelHosts
from comfy_core.phase_deadline import PhaseDeadline
from comfy_core.progress import Progress
from comfy_core.request import intake
from comfy_core.request.models_task import LIST, MODELS_TASK, ModelsRequest, is_models_task, read_models_request
from comfy_core.request.reading import read_request
from comfy_core.request.rendering import Rendered, Request
from comfy_core.workflows import Workflow

JOB_TIMEOUT_S = 600.0
_JOBS_IN_MEMORY = 32
"""How many ended jobs are kept in memory. A submit forgets older ones."""
_JOBS_IN_COMFYUI = 256
"""How many forgotten jobs of this object are left in ComfyUI. A submit removes older ones."""
_FOUND_POLL_S = (0.5, 5.0)
"""Limits of the polling interval, if this object polls a job that another process has queued."""
_STOP_TIMEOUT_S = 10.0
_PROVIDER = "a direct ComfyUI (COMFYUI_ENDPOINT)"
_NO_DOWNLOADS = (
    "is an address, and a ComfyUI that is called directly (COMFYUI_ENDPOINT) downloads no models for a job: first "
    "download the file with `comfy-client models download`, and use its name, or use this project's worker on RunPod"
)
_NO_DIRECTORY = (
    "ComfyUI has no request for. If it runs on this machine, give its folder: --comfyui-dir DIR, or COMFYUI_DIR"
)
_QUICK_S = 0.25
"""How long a submit waits for a job of the task `models`: a list or a delete needs no progress."""
_MIN_POLL_INTERVAL_S = 0.02

_log = logging.getLogger(__name__)


@dataclass
class _DirectJob:
    """A job. `status` is immutable and replaced as a whole, so any thread may read it.

    `work` runs the job and returns the status of its success. It raises ComfyClientError. `kept` is what the job leaves
    in ComfyUI, so that any process can read its result; None if it leaves nothing.
    """

    work: Callable[[_DirectJob], JobStatus]
    status: JobStatus
    kept: Traces | None = None
    result: GenerationResult | None = None
    is_queued: bool = False
    is_abandoned: bool = False
    cancel_requested: threading.Event = field(default_factory=threading.Event)
    queued_or_ended: threading.Event = field(default_factory=threading.Event)
    ended: threading.Event = field(default_factory=threading.Event)

    def stop_reason(self) -> JobError | None:
        """Return the error with which the job must end, or None if it may continue."""
        return JobError.because(ErrorCode.CANCELLED) if self.cancel_requested.is_set() else None

    def raise_if_stopped(self) -> None:
        """Raise JobError (cancelled) if a cancel was requested."""
        if (error := self.stop_reason()) is not None:
            raise error

    def record_queued(self) -> None:
        self.is_queued = True
        self.queued_or_ended.set()

    def record_progress(self, progress: Progress) -> None:
        self.status = replace(self.status, state=JobState.RUNNING, progress=progress)


class DirectProvider:
    """A ComfyUI at `url`.

    Args:
        url: URL of the ComfyUI, for example `http://127.0.0.1:8188`.
        workflows: the templates that requests may name.
        directory: ComfyUI's base folder, if this process can access it: see ComfyServer.
        model_hosts: returns the hosts from which models may be downloaded to `directory`. Raises ConfigError.
    """

    name = "comfyui"
    jobs_outlive_process = False

    def __init__(
        self,
        url: str,
        workflows: Mapping[str, Workflow],
        *,
        directory: Path | None = None,
        model_hosts: Callable[[], ModelHosts] = ModelHosts,
    ) -> None:
        self._directory = directory
        self._model_hosts = model_hosts
        self._server = ComfyServer(url, directory=directory)
        self._url = url
        self._workflows = workflows
        self._lock = threading.Lock()
        self._jobs: dict[str, _DirectJob] = {}
        self._left: deque[Traces] = deque()
        self._cancelled: set[str] = set()
        self._has_polled_comfyui = False

    def __repr__(self) -> str:
        return f"DirectProvider({self._url!r})"

    def __str__(self) -> str:
        return f"ComfyUI at {self._url}"

    def submit(self, request: GenerationRequest, wait_s: float | None = None) -> JobStatus:
        """Start a job in a thread, and return its status.

        Wait up to `wait_s` for its end; if `wait_s` is None, wait until ComfyUI has queued it. Raises JobError
        (invalid_input, invalid_image, unknown_workflow, and if `wait_s` is None any reason why the job cannot be
        queued), or RequestError if ComfyUI does not respond.
        """
        if is_models_task(request.input):
            work = self._models_work(read_models_request(request.input))
            job = _DirectJob(work, JobStatus(new_job_id(), JobState.QUEUED))
            return self._start(job, max(wait_s or 0.0, _QUICK_S))
        parsed = read_request(request.input, self._workflows)
        _check_supported(parsed, request)
        rendered = intake.render_request(parsed)
        if faults := address_faults(rendered.graphs, _NO_DOWNLOADS):
            raise invalid_input(faults)
        timeout_s = parsed.timeout_s or request.options.execution_timeout_s or JOB_TIMEOUT_S
        self._server.system()  # so that a wrong URL fails the submit, not the job
        job_id = new_job_id()
        traces = traces_of(job_id, rendered)
        is_kept = wait_s is None
        names = run_names(traces, parsed, rendered, is_kept=is_kept)
        job = _DirectJob(
            lambda job: self._generated(job, parsed, rendered, timeout_s, names),
            JobStatus(job_id, JobState.QUEUED),
            traces if is_kept else None,
        )
        return self._start(job, wait_s)

    def _start(self, job: _DirectJob, wait_s: float | None) -> JobStatus:
        """Start a job in a thread, and return its status: after up to `wait_s`, or when it is queued."""
        job_id = job.status.job_id
        self._forget_old_jobs()
        with self._lock:
            self._jobs[job_id] = job
        threading.Thread(target=self._run, args=(job,), name=job_id, daemon=True).start()
        if wait_s is not None:
            job.ended.wait(wait_s)
            return job.status
        job.queued_or_ended.wait()
        if not job.is_queued and job.status.error is not None:
            raise JobError.of(job.status.error, job_id)
        return JobStatus(job_id, JobState.QUEUED)  # the job may have started, but its events begin with Queued

    def _forget_old_jobs(self) -> None:
        """Remove old ended jobs from memory, and from ComfyUI if it has kept many."""
        with self._lock:
            ended = [job for job in self._jobs.values() if job.ended.is_set()]
            for job in ended[: max(0, len(ended) - _JOBS_IN_MEMORY)]:
                del self._jobs[job.status.job_id]
                if job.kept is not None:
                    self._left.append(job.kept)
            removed = [self._left.popleft() for _ in range(len(self._left) - _JOBS_IN_COMFYUI)]
        for traces in removed:
            self._remove(traces)

    def _remove(self, traces: Traces) -> None:
        """Remove a job from ComfyUI. An error is logged; the next run tries again."""
        try:
            traces.remove(self._server)
        except RequestError as error:
            _log.warning("removing job %s from ComfyUI failed: %s", traces.job_id, error)

    def _models_work(self, request: ModelsRequest) -> Callable[[_DirectJob], JobStatus]:
        """Return the work of a job of the task `models`.

        Raises JobError (invalid_input), ConfigError or RequestError if it cannot be done.
        """
        if request.webhook is not None:
            raise invalid_input([webhook_fault(_PROVIDER)])
        if self._directory is None:
            if request.action != LIST:
                raise invalid_input([Fault("action", f"is {request.action}, which {_NO_DIRECTORY}")])
            models = listed_models(self._server, request.folder)
            output = {"task": MODELS_TASK, "action": LIST, "models": models}
            return lambda job: replace(job.status, state=JobState.SUCCEEDED, output=output)
        try:
            from comfy_client.providers.local_models import open_models  # noqa: PLC0415 - needs fcntl
        except ImportError as error:
            raise ConfigError("COMFYUI_DIR (--comfyui-dir): Windows lacks the file locks for model files") from error
        hosts = self._model_hosts()
        local = open_models(self._server, self._directory, request.folder)

        def work(job: _DirectJob) -> JobStatus:
            begun_at = time.monotonic()
            end = begun_at + (request.timeout_s or math.inf)
            deadline = PhaseDeadline(job.stop_reason, begun_at, end, request.unfinished)
            output = local.run(request, hosts, deadline.check, job.record_progress)
            return replace(job.status, state=JobState.SUCCEEDED, progress=None, output=output)

        return work

    def status(self, job_id: str) -> JobStatus:
        """Return a job's status. That of a job of another process, or an old one, is read from ComfyUI.

        Raises JobError (job_expired) if ComfyUI does not have the job, and RequestError.
        """
        job = self._jobs.get(job_id)
        if job is not None:
            return job.status
        if job_id in self._cancelled:
            return JobStatus(job_id, JobState.CANCELLED, error=ErrorReport.because(ErrorCode.CANCELLED))
        status = find_job(self._server, job_id).status
        self._has_polled_comfyui = True
        return status

    def result(self, status: JobStatus) -> GenerationResult:
        """Return a job's result, from memory or from ComfyUI. Raises JobError if the job has none, and RequestError."""
        if status.error is not None:
            raise JobError.of(status.error, status.job_id)
        if isinstance(status.output, FoundJob):
            return self._collected(status.output)
        if status.output is not None:
            return read_result(status, self.name)
        job = self._jobs.get(status.job_id)
        if job is None:
            return self.result(find_job(self._server, status.job_id).status)
        if job.result is None:
            raise JobError.because(ErrorCode.RESULT_LOST, "The job has no result")
        return job.result

    def _collected(self, found: FoundJob) -> GenerationResult:
        """Return the result of a job that has succeeded in ComfyUI."""
        begun_at = time.monotonic()
        rendered = found.rendered()
        limits = WaitLimits(timeout_s=JOB_TIMEOUT_S, queue_timeout_s=JOB_TIMEOUT_S)
        prompts = collect_prompts(self._server, found.succeeded_prompts(), rendered.graphs, limits)
        timings = {"fetch_s": time.monotonic() - begun_at}
        return self._result(found.job_id, found.request(), rendered, prompts, timings)

    def cancel(self, job_id: str) -> None:
        """Cancel a job and remove it from ComfyUI; wait up to 10 s if this process runs it.

        Raises JobError (job_expired) if ComfyUI does not have the job, and RequestError.
        """
        job = self._jobs.get(job_id)
        if job is not None:
            job.cancel_requested.set()
            job.ended.wait(_STOP_TIMEOUT_S)
        elif job_id not in self._cancelled:
            found = find_job(self._server, job_id)
            if not found.status.state.is_final:
                found.traces.remove(self._server)
                self._cancelled.add(job_id)

    def retry(self, job_id: str) -> JobStatus:
        """Raises RequestError: ComfyUI has no retry. The caller must submit the request again."""
        raise RequestError(f"ComfyUI has no retry: send the request of {job_id} again", code=ErrorCode.MISCONFIGURED)

    def health(self) -> Health:
        """Return the number of prompts in ComfyUI's queue, including those of other clients."""
        running, pending = self._server.queue_state()
        busy = bool(running or pending)
        prompts = "1 prompt" if len(running) == 1 else f"{len(running)} prompts"
        sentence = f"ComfyUI runs {prompts}; {len(pending) or 'none'} in its queue" if busy else "ComfyUI is idle"
        return Health(
            jobs={"inProgress": len(running), "inQueue": len(pending)},
            workers={"idle": int(not busy), "running": int(busy)},
            why="busy" if busy else "idle",
            sentence=sentence,
        )

    def missing_models(self) -> list[str]:
        """Return the model files that the workflows need and ComfyUI does not list, as `folder/file`."""
        required_models = sorted(
            {model for workflow in self._workflows.values() for model in workflow.schema.get("x-models", [])}
        )
        listed = {
            folder: self._server.models(folder) for folder in {model.partition("/")[0] for model in required_models}
        }
        return [model for model in required_models if model.partition("/")[2] not in listed[model.partition("/")[0]]]

    def purge_queue(self) -> int:
        """Cancel the queued jobs of this object and return how many. Prompts of other clients are not affected."""
        with self._lock:
            queued_jobs = [job for job in self._jobs.values() if job.status.state is JobState.QUEUED]
        for job in queued_jobs:
            job.cancel_requested.set()
        return len(queued_jobs)

    def pause_s(self, waited_s: float) -> float:
        """Return a short interval, because polling reads memory; a longer one if this object polls ComfyUI."""
        if self._has_polled_comfyui:
            shortest_s, longest_s = _FOUND_POLL_S
            return min(longest_s, max(shortest_s, waited_s / 10))
        return max(_MIN_POLL_INTERVAL_S, min(0.2, waited_s / 100))

    def close(self) -> None:
        """Cancel the jobs that their callers follow, wait up to 10 s for their end, and close the connections.

        Other jobs that ComfyUI has queued continue.
        """
        with self._lock:
            open_jobs = [job for job in self._jobs.values() if not job.ended.is_set()]
        for job in open_jobs:
            job.is_abandoned = job.kept is not None and job.is_queued
            job.cancel_requested.set()
        deadline = time.monotonic() + _STOP_TIMEOUT_S
        for job in open_jobs:
            job.ended.wait(max(0.0, deadline - time.monotonic()))
        self._server.close()

    def _run(self, job: _DirectJob) -> None:
        begun_at = time.monotonic()
        try:
            job.status = job.work(job)
        except ComfyClientError as error:
            self._end_failed(job, error)
        finally:
            if not job.status.state.is_final and not job.is_abandoned:
                problem = f"A bug in the client ended the job after {time.monotonic() - begun_at:.1f} s"
                report = ErrorReport.because(ErrorCode.INTERNAL, problem)
                job.status = replace(job.status, state=JobState.FAILED, error=report)
            job.ended.set()
            job.queued_or_ended.set()

    def _end_failed(self, job: _DirectJob, error: ComfyClientError) -> None:
        """Set the status of a job that has failed. If it is kept, stop its prompts, or remove it if that was wanted."""
        if job.is_abandoned:
            with self._lock:
                self._jobs.pop(job.status.job_id, None)  # its status is read from ComfyUI from now on
            return
        is_cancelled = error.code is ErrorCode.CANCELLED
        state = JobState.CANCELLED if is_cancelled else JobState.FAILED
        if job.kept is not None and (is_cancelled or not job.is_queued):
            self._remove(job.kept)
        elif job.kept is not None:
            with suppress(RequestError):
                self._server.stop_prompts(job.kept.prompt_ids)
        job.status = replace(job.status, state=state, progress=None, error=error.report)

    def _generated(
        self, job: _DirectJob, request: Request, rendered: Rendered, timeout_s: float, names: RunNames
    ) -> JobStatus:
        """Generate the images of a job, and return its status."""
        limits = WaitLimits(timeout_s=timeout_s, queue_timeout_s=JOB_TIMEOUT_S)
        hooks = Hooks(job.record_progress, queued=job.record_queued, names=names)
        run = run_graphs(
            self._server, rendered.graphs, rendered.uploads, limits, job.stop_reason, hooks, rendered.extra_data
        )
        job.result = self._result_of_run(job, request, rendered, run)
        return replace(
            job.status, state=JobState.SUCCEEDED, progress=None, delay_s=run.queue_s, execution_s=run.execute_s
        )

    def _result_of_run(self, job: _DirectJob, request: Request, rendered: Rendered, run: RunResult) -> GenerationResult:
        timings = {"queue_s": run.queue_s, "execute_s": run.execute_s, "fetch_s": run.fetch_s}
        rendered = replace(rendered, warnings=(*rendered.warnings, *run.warnings))
        result = self._result(job.status.job_id, request, rendered, run.prompts, timings, job.raise_if_stopped)
        return replace(result, delay_s=run.queue_s, execution_s=run.execute_s)

    def _result(
        self,
        job_id: str,
        request: Request,
        rendered: Rendered,
        prompts: Sequence[PromptResult],
        timings: Mapping[str, float],
        raise_if_stopped: StopCheck = never_stop,
    ) -> GenerationResult:
        encode_begun_at = time.monotonic()
        outputs = job_outputs(request, rendered, prompts, raise_if_stopped)
        timings = {**timings, "encode_s": time.monotonic() - encode_begun_at}
        system = self._server.system()
        return GenerationResult(
            images=tuple(map(_image, outputs.images)),
            files=tuple(GeneratedFile(file.filename, file.mime_type, file.sha256, file.data) for file in outputs.files),
            texts=tuple(text for prompt in prompts for text in prompt.texts),
            provider=self.name,
            job_id=job_id,
            workflow=rendered.workflow,
            inputs=rendered.inputs,
            seed=rendered.seeds[0],
            warnings=(*rendered.warnings, *outputs.warnings),
            timings={name: round(value, 4) for name, value in timings.items()},
            versions={"comfyui": system.version, "workflow": rendered.version},
            gpu=system.gpu,
        )


def _image(output: JobOutput) -> GeneratedImage:
    facts = output.facts
    return GeneratedImage(
        filename=output.filename,
        mime_type=output.mime_type,
        sha256=output.sha256,
        bytes=output.data,
        width=facts.get("width", 0),
        height=facts.get("height", 0),
        seed=facts["seed"],
    )


def _check_supported(parsed: Request, request: GenerationRequest) -> None:
    """Raise JobError (invalid_input) for a webhook or a bucket. RunPod's options of the queue are ignored."""
    why = "is not supported with a direct ComfyUI (COMFYUI_ENDPOINT): omit it, or use RunPod"
    options = {"webhook": request.options.webhook, "s3_config": request.options.s3_config}
    faults = [Fault(f"options.{name}", why) for name, value in options.items() if value is not None]
    if parsed.delivery == "s3":
        faults.append(bucket_fault(_PROVIDER))
    if parsed.webhook is not None:
        faults.append(webhook_fault(_PROVIDER))
    if faults:
        raise invalid_input(faults)
