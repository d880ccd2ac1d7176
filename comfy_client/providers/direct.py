"""Provider for a ComfyUI that is called directly, without RunPod. It does the worker's work in this process.

Job ids are valid in this process only. `close` interrupts jobs that have not ended. If the process exits without
`close`, ComfyUI finishes their prompts, and nobody collects the images.
"""

from __future__ import annotations

import math
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

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
from comfy_core.comfyui.outputs import JobOutput, job_outputs
from comfy_core.comfyui.prompt_monitor import WaitLimits
from comfy_core.comfyui.run import Hooks, RunResult, run_graphs
from comfy_core.comfyui.server import ComfyServer
from comfy_core.contract import ErrorReport, Fault
from comfy_core.error_codes import ErrorCode
from comfy_core.errors import ComfyClientError, ConfigError, JobError, RequestError, invalid_input
from comfy_core.models.address_source import ModelHosts
from comfy_core.phase_deadline import PhaseDeadline
from comfy_core.progress import Progress
from comfy_core.request import intake
from comfy_core.request.models_task import LIST, MODELS_TASK, ModelsRequest, is_models_task, read_models_request
from comfy_core.request.reading import read_request
from comfy_core.request.rendering import Rendered, Request
from comfy_core.workflows import Workflow

JOB_TIMEOUT_S = 600.0
JOB_PREFIX = "local-"
"""Prefix of the ids of jobs on a ComfyUI that is called directly."""
_KEPT_JOBS = 32
"""How many ended jobs are kept in memory. A submit forgets older ones; their ids are then unknown."""
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


@dataclass
class _DirectJob:
    """A job. `status` is immutable and replaced as a whole, so any thread may read it.

    `work` runs the job and returns the status of its success. It raises ComfyClientError.
    """

    work: Callable[[_DirectJob], JobStatus]
    status: JobStatus
    result: GenerationResult | None = None
    cancel_requested: threading.Event = field(default_factory=threading.Event)
    ended: threading.Event = field(default_factory=threading.Event)

    def stop_reason(self) -> JobError | None:
        """Return the error with which the job must end, or None if it may continue."""
        return JobError.because(ErrorCode.CANCELLED) if self.cancel_requested.is_set() else None

    def raise_if_stopped(self) -> None:
        """Raise JobError (cancelled) if a cancel was requested."""
        if (error := self.stop_reason()) is not None:
            raise error

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

    def __repr__(self) -> str:
        return f"DirectProvider({self._url!r})"

    def __str__(self) -> str:
        return f"ComfyUI at {self._url}"

    def submit(self, request: GenerationRequest, wait_s: float | None = None) -> JobStatus:
        """Start a job in a thread, wait up to `wait_s` for its end, and return its status.

        Raises JobError (invalid_input, invalid_image, unknown_workflow), or RequestError if ComfyUI does not respond.
        """
        if is_models_task(request.input):
            return self._start(self._models_work(read_models_request(request.input)), max(wait_s or 0.0, _QUICK_S))
        parsed = read_request(request.input, self._workflows)
        _check_supported(parsed, request)
        rendered = intake.render_request(parsed)
        if faults := address_faults(rendered.graphs, _NO_DOWNLOADS):
            raise invalid_input(faults)
        timeout_s = parsed.timeout_s or request.options.execution_timeout_s or JOB_TIMEOUT_S
        self._server.system()  # so that a wrong URL fails the submit, not the job
        return self._start(lambda job: self._generated(job, parsed, rendered, timeout_s), wait_s)

    def _start(self, work: Callable[[_DirectJob], JobStatus], wait_s: float | None) -> JobStatus:
        """Start a job in a thread, and return its status after up to `wait_s`."""
        job_id = f"{JOB_PREFIX}{uuid.uuid4()}"
        job = _DirectJob(work, JobStatus(job_id, JobState.QUEUED))
        with self._lock:
            ended_ids = [each_id for each_id, each in self._jobs.items() if each.ended.is_set()]
            for ended_id in ended_ids[: max(0, len(ended_ids) - _KEPT_JOBS)]:
                del self._jobs[ended_id]
            self._jobs[job_id] = job
        threading.Thread(target=self._run, args=(job,), name=job_id, daemon=True).start()
        job.ended.wait(wait_s or 0.0)
        return job.status

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
            deadline = PhaseDeadline(job.stop_reason, begun_at, end, "the model was not downloaded")
            output = local.run(request, hosts, deadline.check, job.record_progress)
            return replace(job.status, state=JobState.SUCCEEDED, progress=None, output=output)

        return work

    def status(self, job_id: str) -> JobStatus:
        """Return a job's status. Raises JobError (job_expired) for a job that is not this object's or was forgotten."""
        return self._job(job_id).status

    def result(self, status: JobStatus) -> GenerationResult:
        """Return a job's result. Raises JobError if the job has none, or was forgotten."""
        if status.error is not None:
            raise JobError.of(status.error, status.job_id)
        if status.output is not None:
            return read_result(status, self.name)
        result = self._job(status.job_id).result
        if result is None:
            raise JobError.because(ErrorCode.RESULT_LOST, "The job has no result")
        return result

    def cancel(self, job_id: str) -> None:
        """Request a job's cancellation, and wait up to 10 s until it has been removed from ComfyUI."""
        job = self._job(job_id)
        job.cancel_requested.set()
        job.ended.wait(_STOP_TIMEOUT_S)

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
        """Return a short interval: polling reads memory and sends no request."""
        return max(_MIN_POLL_INTERVAL_S, min(0.2, waited_s / 100))

    def close(self) -> None:
        """Cancel all jobs that have not ended, wait up to 10 s for their end, and close the connections."""
        with self._lock:
            open_jobs = [job for job in self._jobs.values() if not job.ended.is_set()]
        for job in open_jobs:
            job.cancel_requested.set()
        deadline = time.monotonic() + _STOP_TIMEOUT_S
        for job in open_jobs:
            job.ended.wait(max(0.0, deadline - time.monotonic()))
        self._server.close()

    def _job(self, job_id: str) -> _DirectJob:
        job = self._jobs.get(job_id)
        if job is None:
            problem = (
                f"This client has no job {job_id}: another client started it, or it ended and was forgotten. With "
                "COMFYUI_ENDPOINT, only the client that starts a job knows it."
            )
            raise JobError.of(ErrorReport.because(ErrorCode.JOB_EXPIRED, problem), job_id)
        return job

    def _run(self, job: _DirectJob) -> None:
        begun_at = time.monotonic()
        try:
            job.status = job.work(job)
        except ComfyClientError as error:
            state = JobState.CANCELLED if error.code is ErrorCode.CANCELLED else JobState.FAILED
            job.status = replace(job.status, state=state, progress=None, error=error.report)
        finally:
            if not job.status.state.is_final:
                problem = f"A bug in the client ended the job after {time.monotonic() - begun_at:.1f} s"
                report = ErrorReport.because(ErrorCode.INTERNAL, problem)
                job.status = replace(job.status, state=JobState.FAILED, error=report)
            job.ended.set()

    def _generated(self, job: _DirectJob, request: Request, rendered: Rendered, timeout_s: float) -> JobStatus:
        """Generate the images of a job, and return its status."""
        limits = WaitLimits(timeout_s=timeout_s, queue_timeout_s=JOB_TIMEOUT_S)
        hooks = Hooks(job.record_progress)
        run = run_graphs(
            self._server, rendered.graphs, rendered.uploads, limits, job.stop_reason, hooks, rendered.extra_data
        )
        job.result = self._result(job, request, rendered, run)
        return replace(
            job.status, state=JobState.SUCCEEDED, progress=None, delay_s=run.queue_s, execution_s=run.execute_s
        )

    def _result(self, job: _DirectJob, request: Request, rendered: Rendered, run: RunResult) -> GenerationResult:
        encode_begun_at = time.monotonic()
        outputs = job_outputs(request, rendered, run.prompts, job.raise_if_stopped)
        encode_s = time.monotonic() - encode_begun_at
        system = self._server.system()
        timings = {"queue_s": run.queue_s, "execute_s": run.execute_s, "fetch_s": run.fetch_s, "encode_s": encode_s}
        return GenerationResult(
            images=tuple(map(_image, outputs.images)),
            files=tuple(GeneratedFile(file.filename, file.mime_type, file.sha256, file.data) for file in outputs.files),
            texts=tuple(text for prompt in run.prompts for text in prompt.texts),
            provider=self.name,
            job_id=job.status.job_id,
            workflow=rendered.workflow,
            inputs=rendered.inputs,
            seed=rendered.seeds[0],
            warnings=(*rendered.warnings, *run.warnings, *outputs.warnings),
            timings={name: round(value, 4) for name, value in timings.items()},
            versions={"comfyui": system.version, "workflow": rendered.version},
            delay_s=run.queue_s,
            execution_s=run.execute_s,
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
