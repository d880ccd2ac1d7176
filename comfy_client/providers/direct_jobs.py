"""Jobs on a ComfyUI as any process finds them: by prompt ids that are derived from the job's id. No threads.

The `extra_data` of each prompt has what is needed to read the job's result. ComfyUI returns it in /queue and /history
until it is restarted, so no log is needed.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeAlias

from comfy_client.providers.interface import JobState, JobStatus
from comfy_core.comfyui.prompt_monitor import Prompt
from comfy_core.comfyui.responses import (
    Outcome,
    OutputFile,
    StoredPrompt,
    Succeeded,
    read_history,
    read_history_prompt,
    read_prompt,
)
from comfy_core.comfyui.run import RunNames, upload_name
from comfy_core.comfyui.server import ComfyServer
from comfy_core.contract import ErrorReport, JsonObject
from comfy_core.error_codes import ErrorCode
from comfy_core.errors import JobError
from comfy_core.graphs import Graph
from comfy_core.request.rendering import Rendered, Request

JOB_PREFIX = "local-"
"""Prefix of the ids of jobs on a ComfyUI that is called directly."""
_KEY = "comfy_client"
"""The key in a prompt's `extra_data` under which it has the data of its job."""


@dataclass(frozen=True)
class PromptData:
    """What a prompt's `extra_data` has about its job.

    Attributes:
        prompts: the number of the job's prompts.
        uploads: the names of the files in the job's folder of ComfyUI's input folder.
        graph: the rendered graph, before it was changed to be queued.
        seed: its seed, as in Rendered.
    """

    prompts: int
    uploads: tuple[str, ...]
    workflow: str
    version: str
    inputs: JsonObject
    warnings: tuple[str, ...]
    output_format: str
    output_quality: int
    metadata: bool
    ai_mark: bool
    graph: Graph
    seed: int | None


_Place: TypeAlias = JobState | Outcome
"""Where a prompt is: QUEUED, RUNNING, or its outcome."""


def new_job_id() -> str:
    """Return the id of a new job."""
    return f"{JOB_PREFIX}{uuid.uuid4()}"


def _uuid_of(job_id: str) -> uuid.UUID:
    """Return the UUID in a job's id. Raises JobError (job_expired) for any other text."""
    try:
        if job_id.startswith(JOB_PREFIX):
            return uuid.UUID(job_id.removeprefix(JOB_PREFIX))
    except ValueError:
        pass
    raise _expired(job_id, f"{job_id[:100]!r} is not the id of a job on a ComfyUI that is called directly")


def job_folder(job_id: str) -> str:
    """Return the name of the folder of a job's files in ComfyUI."""
    return f"run-{_uuid_of(job_id).hex}"


def prompt_id(job_id: str, number: int) -> str:
    """Return the id of a job's prompt. Numbers begin with 0."""
    return str(uuid.uuid5(_uuid_of(job_id), str(number)))


@dataclass(frozen=True)
class Traces:
    """What a job has in ComfyUI: its prompts, its files, and the uploads with these names in its folder."""

    job_id: str
    prompt_ids: tuple[str, ...]
    uploads: tuple[str, ...]

    def remove(self, server: ComfyServer) -> None:
        """Stop the prompts, and delete them, their files and the uploads. Raises RequestError."""
        folder = job_folder(self.job_id)
        server.cleanup.remove_prompts(unfinished=self.prompt_ids)
        server.cleanup.remove_files(OutputFile("", "", name, folder, "input") for name in self.uploads)
        server.cleanup.remove_folder(folder, self.prompt_ids)


def traces_of(job_id: str, rendered: Rendered) -> Traces:
    """Return what a new job will have in ComfyUI."""
    return Traces(
        job_id,
        prompt_ids=tuple(prompt_id(job_id, number) for number in range(len(rendered.graphs))),
        uploads=tuple(upload_name(number, upload) for number, upload in enumerate(rendered.uploads)),
    )


def run_names(traces: Traces, request: Request, rendered: Rendered, *, is_kept: bool) -> RunNames:
    """Return the names with which any process finds the prompts of a job and reads its result."""
    data = [
        PromptData(
            prompts=len(rendered.graphs),
            uploads=traces.uploads,
            workflow=rendered.workflow,
            version=rendered.version,
            inputs=rendered.inputs,
            warnings=rendered.warnings,
            output_format=request.output_format,
            output_quality=request.output_quality,
            metadata=request.metadata,
            ai_mark=request.ai_mark,
            graph=graph,
            seed=seed,
        )
        for graph, seed in zip(rendered.graphs, rendered.seeds, strict=True)
    ]
    return RunNames(
        folder=job_folder(traces.job_id),
        prompt_ids=traces.prompt_ids,
        extra_data=tuple({_KEY: asdict(each)} for each in data),
        is_kept=is_kept,
    )


@dataclass(frozen=True)
class FoundPrompt:
    """A prompt of a job in ComfyUI: where it is, its graph, and the data of its job."""

    prompt_id: str
    place: _Place
    graph: Graph
    data: PromptData

    def error(self) -> JobError | None:
        """Return the error of a prompt that has failed or was interrupted, else None."""
        if isinstance(self.place, JobState | Succeeded):
            return None
        node_type = Prompt(self.graph, self.prompt_id, self.data.graph).class_of(
            self.place.node_id, self.place.node_type
        )
        return replace(self.place, node_type=node_type).error()


@dataclass(frozen=True)
class FoundJob:
    """A job in ComfyUI that this or another process has queued.

    `prompts` are its prompts in order, up to the first that has failed. The process that queued the job stops the rest.
    """

    job_id: str
    prompts: tuple[FoundPrompt, ...]

    @property
    def status(self) -> JobStatus:
        """The job's status. The `output` of a job that has succeeded is the FoundJob."""
        places = [prompt.place for prompt in self.prompts]
        if error := next(filter(None, (prompt.error() for prompt in self.prompts)), None):
            return JobStatus(self.job_id, JobState.FAILED, error=error.report)
        if all(isinstance(place, Succeeded) for place in places):
            return JobStatus(self.job_id, JobState.SUCCEEDED, output=self)
        is_queued = all(place is JobState.QUEUED for place in places)
        return JobStatus(self.job_id, JobState.QUEUED if is_queued else JobState.RUNNING)

    @property
    def traces(self) -> Traces:
        """What the job has in ComfyUI."""
        return Traces(self.job_id, tuple(each.prompt_id for each in self.prompts), tuple(self.prompts[0].data.uploads))

    def succeeded_prompts(self) -> list[Prompt]:
        """Return the prompts of a job that has succeeded. Their images were sent to the process that queued them."""
        return [
            Prompt(each.graph, each.prompt_id, each.graph, outcome=each.place, frames_missing=True)
            for each in self.prompts
            if isinstance(each.place, Succeeded)
        ]

    def request(self) -> Request:
        """Return a request with the job's settings for its images, and no inputs."""
        data = self.prompts[0].data
        return Request(
            template=None,
            graph={},
            inputs={},
            files={},
            overrides={},
            output_format=data.output_format,
            output_quality=data.output_quality,
            metadata=data.metadata,
            ai_mark=data.ai_mark,
            delivery="auto",
            timeout_s=None,
        )

    def rendered(self) -> Rendered:
        """Return the job's graphs and inputs, without its uploads."""
        data = self.prompts[0].data
        return Rendered(
            graphs=tuple(prompt.data.graph for prompt in self.prompts),
            seeds=tuple(prompt.data.seed for prompt in self.prompts),
            uploads=(),
            workflow=data.workflow,
            version=data.version,
            inputs=data.inputs,
            warnings=tuple(data.warnings),
        )


def find_job(server: ComfyServer, job_id: str) -> FoundJob:
    """Return a job that any process has queued in ComfyUI.

    Raises JobError (job_expired) if a prompt of the job is neither in the queue nor in the history, and RequestError.
    """
    _uuid_of(job_id)
    # A prompt moves from the queue to the history, so the queue is read first.
    running, pending = server.queued_prompts()

    def found(number: int) -> FoundPrompt:
        id_of_prompt = prompt_id(job_id, number)
        places: list[tuple[_Place, Mapping[str, object]]] = [(JobState.RUNNING, running), (JobState.QUEUED, pending)]
        for place, prompts in places:
            if id_of_prompt in prompts:
                return _found(job_id, id_of_prompt, place, read_prompt(prompts[id_of_prompt]))
        history = server.history(id_of_prompt)
        outcome = read_history(history, id_of_prompt)
        if outcome is None:
            problem = (
                f"ComfyUI at {server.url} does not have the job {job_id} any more: it was restarted, the job was "
                "cancelled or its prompts were deleted, or its process ended before it had queued them"
            )
            raise _expired(job_id, problem)
        return _found(job_id, id_of_prompt, outcome, read_history_prompt(history, id_of_prompt))

    prompts = [found(0)]
    while len(prompts) < prompts[0].data.prompts and prompts[-1].error() is None:
        prompts.append(found(len(prompts)))
    return FoundJob(job_id, tuple(prompts))


def _found(job_id: str, id_of_prompt: str, place: _Place, stored: StoredPrompt | None) -> FoundPrompt:
    """Return the prompt. Raises JobError (result_lost) if ComfyUI's entry lacks the data of the job."""
    if stored is not None and (data := _prompt_data(stored.extra_data.get(_KEY))) is not None:
        return FoundPrompt(id_of_prompt, place, stored.graph, data)
    problem = f"ComfyUI has the job {job_id}, but not the data that this version needs to read its result"
    raise JobError.of(ErrorReport.because(ErrorCode.RESULT_LOST, problem), job_id)


def _prompt_data(value: Any) -> PromptData | None:  # noqa: ANN401 - any JSON value
    """Return the data of a job; None if another program or another version of this client has written it."""
    match value:
        case {
            "prompts": int(),
            "uploads": list(),
            "workflow": str(),
            "version": str(),
            "inputs": dict(),
            "warnings": list(),
            "output_format": str(),
            "output_quality": int(),
            "metadata": bool(),
            "ai_mark": bool(),
            "graph": dict(),
            "seed": int() | None,
            **rest,
        } if not rest:
            return PromptData(**value)
    return None


def _expired(job_id: str, problem: str) -> JobError:
    return JobError.of(ErrorReport.because(ErrorCode.JOB_EXPIRED, problem), job_id)
