"""AsyncClient and AsyncJob have the methods of Client and Job; img2img, retry and events behave alike."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from comfy_client.aio import AsyncClient, AsyncJob, async_client_from_env
from comfy_client.client import Client, Job
from comfy_client.job import Done
from comfy_client.providers.interface import JobState
from comfy_core.contract import ErrorReport
from comfy_core.error_codes import ErrorCode
from comfy_core.errors import JobError
from simulators.runpod.queue_api import RunPodPlatform
from simulators.runpod.scripted_worker import Body, ScriptedWorker, image_result, png

OUT_OF_MEMORY = ErrorReport(ErrorCode.OUT_OF_MEMORY, "The GPU is full.").to_json()
WITHOUT_REQUEST = {"job"}
"""Methods that send no request and are therefore not awaited."""


def methods_of(a_class: type) -> dict[str, Callable[..., Any]]:
    """Return the public methods of a class."""
    return {name: each for name, each in vars(a_class).items() if inspect.isfunction(each) and not name.startswith("_")}


@pytest.mark.parametrize(("sync_class", "async_class"), [(Client, AsyncClient), (Job, AsyncJob)])
def test_the_methods_are_the_same(sync_class: type, async_class: type) -> None:
    """The classes have methods with the same names and parameters (except `is_followed`).

    All methods but those in `WITHOUT_REQUEST` are awaited or iterated.
    """
    sync_methods, async_methods = methods_of(sync_class), methods_of(async_class)

    assert sync_methods.keys() == async_methods.keys()
    for name, method in async_methods.items():
        sync_parameters, async_parameters = (
            inspect.signature(each).parameters for each in (sync_methods[name], method)
        )
        assert list(async_parameters) == [each for each in sync_parameters if each != "is_followed"], name
        is_awaited = inspect.iscoroutinefunction(method) or "AsyncIterator" in str(inspect.signature(method))
        assert is_awaited is (name not in WITHOUT_REQUEST), name


def run_with_client(platform: RunPodPlatform, story: Callable[[AsyncClient], Awaitable[None]]) -> None:
    """Run the coroutine of `story` with an async client of the platform."""

    async def run_story() -> None:
        async with async_client_from_env(platform.client_env(), timeout_s=60) as client:
            await story(client)

    asyncio.run(run_story())


def test_img2img_accepts_bytes(platform: RunPodPlatform) -> None:
    """AsyncClient.img2img accepts bytes, as Client.img2img does."""

    async def story(client: AsyncClient) -> None:
        with ScriptedWorker(platform, image_result):
            result = await client.img2img(png(16), "as an oil painting", seed=4)
        assert (result.seed, result.image.bytes) == (4, png(8, 4))

    run_with_client(platform, story)
    assert platform.submissions == 1


def test_a_job_is_opened_by_id_and_retried(platform: RunPodPlatform) -> None:
    """The same client opens the job by its id: the job fails, is retried, and its events end with the result."""
    first_responses = iter([{"error": OUT_OF_MEMORY}])

    async def story(client: AsyncClient) -> None:
        started = await client.submit(prompt="x", seed=2)
        job = AsyncJob.from_id(client, started.id)
        assert repr(job) == f"AsyncJob({started.id!r})"
        with ScriptedWorker(platform, response):
            with pytest.raises(JobError, match="The GPU is full"):
                await job.wait()
            assert (await job.retry()).state is JobState.QUEUED
            last = [event async for event in job.events()][-1]
        assert isinstance(last, Done)
        assert last.result.seed == 2
        assert job.progress is None

    def response(job: Body) -> Body:
        return next(first_responses, None) or image_result(job)

    run_with_client(platform, story)
    assert platform.submissions == 1
