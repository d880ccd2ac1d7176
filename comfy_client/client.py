"""The synchronous client: generates images through any provider. `AsyncClient` (aio.py) is the asyncio version.

with client_from_env() as client:
    client.txt2img("a pixel art knight", seed=42).image.save("knight.png")
"""

from __future__ import annotations

import functools
import os
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from comfy_client import coroutines
from comfy_client.job import PATIENCE_S, Event, JobPoller, Observer
from comfy_client.job_log import JobLog, sha256_of
from comfy_client.logged_provider import LoggedProvider
from comfy_client.models import Models
from comfy_client.profiles import with_profile
from comfy_client.providers import provider_from_env
from comfy_client.providers.interface import (
    NO_OPTIONS,
    GenerationRequest,
    GenerationResult,
    Health,
    JobOptions,
    JobStatus,
    Provider,
)
from comfy_client.tasks import Outcome, make_request, outcome_task, run_task
from comfy_client.workflow_methods import WorkflowMethods
from comfy_core.graphs import Graph
from comfy_core.progress import Progress
from comfy_core.thread_call import run_outside_main_thread

if TYPE_CHECKING:
    from typing import Self

TIMEOUT_S = 600.0
"""Enough for a job and a cold start of a worker that has its models."""
SYNC_WAIT_S = 10.0
"""How long RunPod may hold a submit until the result is ready. It saves polling requests."""


class Client(WorkflowMethods):
    """Generates images. Thread-safe. Call `close` when done, or use it in a `with` statement.

    `Client(api_key=…, endpoint_id=…)` calls this project's worker on RunPod. `Client(comfyui_url=…)` calls a ComfyUI
    directly. Neither reads environment variables. `client_from_env` configures the provider from environment variables.

    Args:
        provider: the provider that runs the jobs, instead of the three arguments below.
        api_key: RunPod API key.
        endpoint_id: id of the RunPod endpoint.
        comfyui_url: URL of a ComfyUI, for example `http://127.0.0.1:8188`.
        comfyui_dir: the base folder of that ComfyUI, if it is on this machine: see COMFYUI_DIR in docs/client.md.
        workflows: a folder of own templates, in addition to the shipped ones. Not with `provider`.
        timeout_s: default timeout of calls that wait for a job.
        sync_wait_s: how long `run` and methods such as `txt2img` let RunPod hold the submit until the result is ready.
            The job has no id until then. 0 always polls.
        job_log: the log that gets the jobs of this client. Default: none. `comfy-client` has a log (docs/command.md).
    """

    def __init__(  # noqa: PLR0913 - all but `provider` are keywords with defaults
        self,
        provider: Provider | None = None,
        *,
        api_key: str | None = None,
        endpoint_id: str | None = None,
        comfyui_url: str | None = None,
        comfyui_dir: Path | None = None,
        workflows: Path | None = None,
        timeout_s: float = TIMEOUT_S,
        sync_wait_s: float = SYNC_WAIT_S,
        job_log: JobLog | None = None,
    ) -> None:
        ways = (provider is not None, api_key is not None and endpoint_id is not None, comfyui_url is not None)
        if sum(ways) != 1:
            raise TypeError(
                "Client takes either a provider, or api_key and endpoint_id, or comfyui_url. client_from_env() reads "
                "them from the environment"
            )
        self.provider: Provider = provider or provider_from_env(
            {
                "RUNPOD_API_KEY": api_key or "",
                "RUNPOD_ENDPOINT_ID": endpoint_id or "",
                "COMFYUI_ENDPOINT": comfyui_url or "",
                "COMFYUI_DIR": str(comfyui_dir or ""),
            },
            workflows,
        )
        if job_log is not None:
            self.provider = LoggedProvider(self.provider, job_log)
        self._job_log = job_log
        self.models = Models(self)
        self.timeout_s = timeout_s
        self.sync_wait_s = sync_wait_s

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections. Submitted jobs continue.

        Jobs of `run`, `map` and methods such as `txt2img` are cancelled on a ComfyUI that is called directly.
        """
        self.provider.close()

    def run(
        self,
        workflow: str | Graph | None = None,
        *,
        options: JobOptions = NO_OPTIONS,
        wait_timeout_s: float | None = None,
        observer: Observer | None = None,
        **inputs: Any,  # noqa: ANN401 - types depend on the workflow's schema
    ) -> GenerationResult:
        """Run a workflow, or a whole graph, and return its result.

        If Ctrl-C interrupts the call, it cancels the job, provided that the job already has an id (see `sync_wait_s`).

        Args:
            workflow: a template's name, or a graph in ComfyUI's API format. Default: img2img if `image` is given, else
                txt2img.
            options: RunPod's options for the job.
            wait_timeout_s: how long to wait. The job continues after that. To stop the job instead, use the input
                `timeout_s`.
            observer: called with each event of the job; see `Job.events`.
            **inputs: the workflow's inputs, and the common fields of every request (docs/api.md).

        Raises:
            JobError: the job failed, or its inputs are invalid (nothing was sent). `.code` has the reason.
            RequestError: the provider was not reached, or returned an error. `Unauthorized` if it refused the API key.
            WaitTimeout: the job did not end within `wait_timeout_s`. The job `.job_id` continues.
        """
        request = make_request(workflow, options=options, **inputs)
        return coroutines.run(run_task(self, request, wait_timeout_s, observer))

    def submit(
        self,
        workflow: str | Graph | None = None,
        *,
        options: JobOptions = NO_OPTIONS,
        **inputs: Any,  # noqa: ANN401 - types depend on the workflow's schema
    ) -> Job:
        """Start a job and return it without waiting. Raises JobError and RequestError like `run`."""
        return self.submit_request(make_request(workflow, options=options, **inputs))

    def submit_request(self, request: GenerationRequest, *, is_followed: bool = False) -> Job:
        """Start a job for a request from `make_request`.

        Set `is_followed` if the caller polls the job at once. RunPod then accepts a request of up to 20 MB instead of
        10 MiB, but keeps the result of such a large request for one minute only.
        """
        status = self.provider.submit(request, 0.0 if is_followed else None)
        return Job(self, JobPoller(self.provider, status.job_id, status))

    def job(self, job_id: str) -> Job:
        """Return the job with this id, started by this or another process."""
        return Job.from_id(self, job_id)

    def map(
        self,
        requests: Iterable[GenerationRequest | Mapping[str, Any]],
        concurrency: int = 8,
        *,
        wait_timeout_s: float | None = None,
    ) -> Iterator[Outcome]:
        """Yield the outcome of each request, in order, with up to `concurrency` jobs at once.

        A request is a GenerationRequest, or a mapping of the arguments of `make_request` (`workflow`, `options` and the
        workflow's inputs). Requests are read lazily, at most twice `concurrency` ahead of the caller. If the caller
        stops early, no more requests are sent, and running jobs are cancelled.
        """
        waiting: deque[Future[Outcome]] = deque()
        stopped = threading.Event()
        pool = ThreadPoolExecutor(concurrency, thread_name_prefix="comfy-map")

        def start(request: GenerationRequest | Mapping[str, Any]) -> Future[Outcome]:
            return pool.submit(_outcome, self, request, wait_timeout_s, stopped)

        try:
            for request in requests:
                waiting.append(run_outside_main_thread(functools.partial(start, request)))
                if len(waiting) >= 2 * concurrency:
                    yield run_outside_main_thread(waiting.popleft().result)
            while waiting:
                yield run_outside_main_thread(waiting.popleft().result)
        finally:
            stopped.set()
            pool.shutdown(wait=True, cancel_futures=True)

    def health(self) -> Health:
        """Return the provider's health: counts of jobs and workers, and why a job may have to wait."""
        return self.provider.health()

    def note_files(self, job_id: str, paths: Iterable[Path]) -> None:
        """Write into the log of jobs where a job's result was saved. No effect without a log."""
        if self._job_log is not None:
            files = [path.absolute() for path in paths]
            self._job_log.note(job_id, files=list(map(str, files)), hashes=list(map(sha256_of, files)))

    def purge_queue(self) -> int:
        """Remove all queued jobs and return how many were removed. On RunPod, jobs of other clients are included.

        Raises RequestError if the provider is Scenario, which has no such call.
        """
        return self.provider.purge_queue()


class Job:
    """A started job.

    Methods that make requests raise RequestError if the provider is not reachable, and JobError (job_expired) if the
    provider does not know the job. `wait`, `result` and `events` raise JobError if the job failed.
    """

    def __init__(self, client: Client, poller: JobPoller) -> None:
        self._client = client
        self._poller = poller

    def __repr__(self) -> str:
        return f"Job({self.id!r})"

    @classmethod
    def from_id(cls, client: Client, job_id: str) -> Job:
        """Return the job with this id, started by this or another process. Sends no request."""
        return cls(client, JobPoller(client.provider, job_id))

    @property
    def id(self) -> str:
        """The job's id at the provider."""
        return self._poller.id

    @property
    def progress(self) -> Progress | None:
        """The progress at the last poll, or None if there is none."""
        return self._poller.progress

    def status(self) -> JobStatus:
        """Return the job's current status."""
        return coroutines.run(self._poller.status())

    def wait(self, timeout_s: float | None = None) -> GenerationResult:
        """Wait for the job and return its result. Raises WaitTimeout after `timeout_s`; the job continues."""
        return coroutines.run(self._poller.wait(self._client.timeout_s if timeout_s is None else timeout_s))

    def result(self) -> GenerationResult:
        """Return the job's result. Raises WaitTimeout if the job has not ended."""
        return self.wait(0)

    def events(self, timeout_s: float | None = None) -> Iterator[Event]:
        """Yield the job's events (the classes of comfy_client.job): Done is the last.

        Raises WaitTimeout after `timeout_s`; the job continues.
        """
        return coroutines.iterate(self._poller.events(self._client.timeout_s if timeout_s is None else timeout_s))

    def cancel(self, patience_s: float = PATIENCE_S) -> None:
        """Cancel the job. No effect on a finished job. A failed call is retried for up to `patience_s`."""
        coroutines.run(self._poller.cancel(patience_s))

    def retry(self) -> JobStatus:
        """Start the job again under the same id.

        Raises RequestError unless the job failed or timed out, or if the provider has no retry.
        """
        return coroutines.run(self._poller.retry())


def _outcome(
    client: Client,
    request: GenerationRequest | Mapping[str, Any],
    wait_timeout_s: float | None,
    stopped: threading.Event,
) -> Outcome:
    task = outcome_task(client, request, wait_timeout_s)
    return coroutines.run(task, lambda pause_s: _sleep(pause_s, stopped))


class _Stopped(Exception):  # noqa: N818 - not an error: the caller has stopped reading outcomes
    pass


def _sleep(seconds: float, stopped: threading.Event) -> None:
    if stopped.wait(seconds):
        raise _Stopped


def client_from_env(
    environment: Mapping[str, str] | None = None,
    *,
    profile: str | None = None,
    workflows: Path | None = None,
    timeout_s: float = TIMEOUT_S,
    sync_wait_s: float = SYNC_WAIT_S,
    job_log: JobLog | None = None,
) -> Client:
    """Return a client for the provider that IMAGE_GENERATION_PROVIDER selects.

    `environment` replaces `os.environ`. `profile` names a profile of the user's profiles.toml, whose values are used
    where the environment has none (docs/profiles.md); without it, no file is read. `workflows` is a folder of own
    templates and replaces COMFY_WORKFLOWS. For `timeout_s`, `sync_wait_s` and `job_log` see Client. Raises ConfigError
    that names a missing variable.
    """
    environment = os.environ if environment is None else environment
    if profile is not None:
        environment = with_profile(environment, profile)
    provider = provider_from_env(environment, workflows)
    return Client(provider, timeout_s=timeout_s, sync_wait_s=sync_wait_s, job_log=job_log)
