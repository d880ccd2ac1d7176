"""The asyncio client: runs the tasks of tasks.py and job.py from asyncio.

Blocking code runs in a thread (`asyncio.to_thread`). If `run`, `map` or a method of a workflow is cancelled, its
jobs are cancelled too, as Ctrl-C does in `Client`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from comfy_client import coroutines
from comfy_client.async_workflow_methods import AsyncWorkflowMethods
from comfy_client.client import SYNC_WAIT_S, TIMEOUT_S, Client, client_from_env
from comfy_client.job import PATIENCE_S, Event, JobPoller, Observer
from comfy_client.job_log import JobLog
from comfy_client.models import AsyncModels
from comfy_client.providers.interface import (
    NO_OPTIONS,
    GenerationRequest,
    GenerationResult,
    Health,
    JobOptions,
    JobStatus,
)
from comfy_client.tasks import Outcome, make_request, outcome_task, run_task
from comfy_core.graphs import Graph
from comfy_core.progress import Progress

if TYPE_CHECKING:
    from typing import Self


class AsyncClient(AsyncWorkflowMethods):
    """Asyncio version of Client. To run many jobs, start many tasks: a waiting job holds no thread.

    `AsyncClient(api_key=…, endpoint_id=…)` and `AsyncClient(comfyui_url=…)` take the arguments of Client, without
    `sync_wait_s`: the asyncio client always polls. `AsyncClient(client)` uses an existing Client and closes it.
    """

    def __init__(
        self,
        client: Client | None = None,
        *,
        api_key: str | None = None,
        endpoint_id: str | None = None,
        comfyui_url: str | None = None,
        workflows: Path | None = None,
        timeout_s: float | None = None,
        job_log: JobLog | None = None,
    ) -> None:
        settings = (api_key, endpoint_id, comfyui_url, workflows, timeout_s, job_log)
        if client is not None and any(setting is not None for setting in settings):
            raise TypeError("AsyncClient takes either a Client, or the arguments of Client")
        self._client = client or Client(
            api_key=api_key,
            endpoint_id=endpoint_id,
            comfyui_url=comfyui_url,
            workflows=workflows,
            timeout_s=TIMEOUT_S if timeout_s is None else timeout_s,
            job_log=job_log,
        )
        self.models = AsyncModels(self._client)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await asyncio.to_thread(self._client.close)

    async def run(
        self,
        workflow: str | Graph | None = None,
        *,
        options: JobOptions = NO_OPTIONS,
        wait_timeout_s: float | None = None,
        observer: Observer | None = None,
        **inputs: Any,  # noqa: ANN401 - types depend on the workflow's schema
    ) -> GenerationResult:
        """See Client.run. `observer` is called in a thread other than the event loop's."""
        request = await asyncio.to_thread(make_request, workflow, options=options, **inputs)
        return await coroutines.arun(run_task(self._client, request, wait_timeout_s, observer, may_hold=False))

    async def submit(
        self,
        workflow: str | Graph | None = None,
        *,
        options: JobOptions = NO_OPTIONS,
        **inputs: Any,  # noqa: ANN401 - types depend on the workflow's schema
    ) -> AsyncJob:
        """See Client.submit."""
        return await self.submit_request(await asyncio.to_thread(make_request, workflow, options=options, **inputs))

    async def submit_request(self, request: GenerationRequest) -> AsyncJob:
        """See Client.submit_request. Always submits with `is_followed` False."""
        status = await asyncio.to_thread(self._client.provider.submit, request)
        return AsyncJob(self._client, JobPoller(self._client.provider, status.job_id, status))

    def job(self, job_id: str) -> AsyncJob:
        """See Client.job."""
        return AsyncJob(self._client, JobPoller(self._client.provider, job_id))

    async def map(
        self,
        requests: Iterable[GenerationRequest | Mapping[str, Any]],
        concurrency: int = 8,
        *,
        wait_timeout_s: float | None = None,
    ) -> AsyncIterator[Outcome]:
        """See Client.map."""
        free = asyncio.Semaphore(concurrency)

        async def outcome(request: GenerationRequest | Mapping[str, Any]) -> Outcome:
            async with free:
                return await coroutines.arun(outcome_task(self._client, request, wait_timeout_s))

        waiting: deque[asyncio.Task[Outcome]] = deque()
        try:
            for request in requests:
                waiting.append(asyncio.create_task(outcome(request)))
                if len(waiting) >= 2 * concurrency:
                    yield await waiting[0]
                    waiting.popleft()
            while waiting:
                yield await waiting[0]
                waiting.popleft()
        finally:
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)

    async def health(self) -> Health:
        """See Client.health."""
        return await asyncio.to_thread(self._client.health)

    async def note_files(self, job_id: str, paths: Iterable[Path]) -> None:
        """See Client.note_files."""
        await asyncio.to_thread(self._client.note_files, job_id, paths)

    async def purge_queue(self) -> int:
        """See Client.purge_queue."""
        return await asyncio.to_thread(self._client.purge_queue)


class AsyncJob:
    """See Job."""

    def __init__(self, client: Client, poller: JobPoller) -> None:
        self._client = client
        self._poller = poller

    def __repr__(self) -> str:
        return f"AsyncJob({self.id!r})"

    @classmethod
    def from_id(cls, client: AsyncClient, job_id: str) -> AsyncJob:
        """See Job.from_id."""
        return client.job(job_id)

    @property
    def id(self) -> str:
        """See Job.id."""
        return self._poller.id

    @property
    def progress(self) -> Progress | None:
        """See Job.progress."""
        return self._poller.progress

    async def status(self) -> JobStatus:
        """See Job.status."""
        return await coroutines.arun(self._poller.status())

    async def wait(self, timeout_s: float | None = None) -> GenerationResult:
        """See Job.wait."""
        return await coroutines.arun(self._poller.wait(self._client.timeout_s if timeout_s is None else timeout_s))

    async def result(self) -> GenerationResult:
        """See Job.result."""
        return await self.wait(0)

    def events(self, timeout_s: float | None = None) -> AsyncIterator[Event]:
        """See Job.events."""
        return coroutines.aiterate(self._poller.events(self._client.timeout_s if timeout_s is None else timeout_s))

    async def cancel(self, patience_s: float = PATIENCE_S) -> None:
        """See Job.cancel."""
        await coroutines.arun(self._poller.cancel(patience_s))

    async def retry(self) -> JobStatus:
        """See Job.retry."""
        return await coroutines.arun(self._poller.retry())


def async_client_from_env(
    environment: Mapping[str, str] | None = None,
    *,
    profile: str | None = None,
    workflows: Path | None = None,
    timeout_s: float = TIMEOUT_S,
    sync_wait_s: float = SYNC_WAIT_S,
    job_log: JobLog | None = None,
) -> AsyncClient:
    """Return an AsyncClient for the provider that IMAGE_GENERATION_PROVIDER selects. See client_from_env."""
    client = client_from_env(
        environment,
        profile=profile,
        workflows=workflows,
        timeout_s=timeout_s,
        sync_wait_s=sync_wait_s,
        job_log=job_log,
    )
    return AsyncClient(client)
