"""Progress: posts are ordered and rate-limited, `drain` ends them, and the handler posts none after the result."""

from __future__ import annotations

import asyncio
import base64
import io
import logging
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from PIL import Image

from comfy_core.contract import ErrorReport, JsonObject
from comfy_core.error_codes import ErrorCode
from comfy_core.progress import Progress
from handler import make_handler, worker_from_settings
from simulators.comfyui import Simulator
from simulators.waiting import until
from worker.job_execution import Service
from worker.lifecycle import Lifecycle
from worker.progress import ProgressSender, progress_output
from worker.settings import Settings

TICK_S = 0.05


class Platform:
    """A platform that records the posts and their times. A post takes `takes_s`, or raises `failure`."""

    def __init__(self, *, takes_s: float = 0.0, failure: Exception | None = None) -> None:
        self._takes_s = takes_s
        self._failure = failure
        self.posted_steps: list[int] = []
        self.times: list[float] = []
        self.active_posts = 0
        self.max_active_posts = 0
        self.cancelled_posts = 0

    async def post(self, progress: JsonObject) -> None:
        """Record the time of the post, and its step once it succeeds."""
        self.active_posts += 1
        self.max_active_posts = max(self.max_active_posts, self.active_posts)
        self.times.append(asyncio.get_running_loop().time())
        try:
            if self._failure is not None:
                raise self._failure
            await asyncio.sleep(self._takes_s)
            self.posted_steps.append(progress["step"])
        except asyncio.CancelledError:
            self.cancelled_posts += 1
            raise
        finally:
            self.active_posts -= 1


async def wait_until(condition: Callable[[], object]) -> None:
    """Return when `condition` is true, without blocking the event loop; fail after 10 s."""
    assert await asyncio.to_thread(until, condition)


def run_story(story: Callable[[], Awaitable[None]]) -> None:
    """Run the coroutine of `story` in a new event loop."""

    async def bounded() -> None:
        await asyncio.wait_for(story(), 60)

    asyncio.run(bounded())


def test_the_progress_of_a_download_has_its_bytes() -> None:
    """While models are downloaded, the output has the stage `model` and the bytes; otherwise it has no bytes."""
    output = progress_output(Progress.of_models(5, 9))

    assert (output["stage"], output["done_bytes"], output["total_bytes"], output["images"]) == ("model", 5, 9, [])
    assert "done_bytes" not in progress_output(Progress())


def test_a_report_is_posted_at_once() -> None:
    """The first progress does not wait for the interval."""

    async def story() -> None:
        platform = Platform()
        sender = ProgressSender(platform.post, interval_s=60)
        sender.report({"step": 1})
        await wait_until(lambda: platform.posted_steps == [1])
        await sender.drain()

    run_story(story)


def test_posts_are_ordered_and_rate_limited() -> None:
    """Frequent reports are posted in order, one at a time, no closer than the interval, the newest last."""
    platform = Platform(takes_s=0.01)

    async def story() -> None:
        sender = ProgressSender(platform.post, interval_s=TICK_S)

        def report_all() -> None:
            for step in range(1, 301):
                sender.report({"step": step})
                threading.Event().wait(0.001)

        await asyncio.to_thread(report_all)
        await wait_until(lambda: platform.posted_steps[-1] == 300)
        await sender.drain()

    run_story(story)
    assert platform.posted_steps == sorted(set(platform.posted_steps))
    assert 3 <= len(platform.posted_steps) < 100
    assert platform.max_active_posts == 1
    gaps = [later - earlier for earlier, later in zip(platform.times, platform.times[1:], strict=False)]
    assert min(gaps) >= TICK_S


def test_only_the_newest_is_posted() -> None:
    """Of all reports that arrive during a post, only the newest is posted next."""
    platform = Platform(takes_s=0.2)

    async def story() -> None:
        sender = ProgressSender(platform.post, interval_s=0)
        sender.report({"step": 1})
        await wait_until(lambda: platform.active_posts)
        for step in range(2, 50):
            sender.report({"step": step})
        await wait_until(lambda: len(platform.posted_steps) == 2)
        await sender.drain()

    run_story(story)
    assert platform.posted_steps == [1, 49]


def test_nothing_is_posted_after_drain() -> None:
    """A thread reports during and after `drain`: once `drain` has returned, no post is in progress, and none starts."""
    platform = Platform(takes_s=0.02)
    stopped = threading.Event()

    async def story() -> None:
        sender = ProgressSender(platform.post, interval_s=0)

        def report_on() -> None:
            step = 0
            while not stopped.wait(0.0005):
                step += 1
                sender.report({"step": step})

        thread = threading.Thread(target=report_on)
        thread.start()
        await wait_until(lambda: len(platform.posted_steps) > 2)
        await sender.drain()
        begun = len(platform.times)
        assert platform.active_posts == 0
        assert not await asyncio.to_thread(until, lambda: len(platform.times) > begun, 0.2)
        stopped.set()
        thread.join()

    run_story(story)


def test_drain_does_not_wait_for_the_interval() -> None:
    """`drain` returns at once, although the interval between two posts has not passed."""

    async def story() -> None:
        platform = Platform()
        sender = ProgressSender(platform.post, interval_s=60)
        sender.report({"step": 1})
        await wait_until(lambda: platform.posted_steps)
        await asyncio.wait_for(sender.drain(), 50)

    run_story(story)


def test_drain_drops_a_report_that_was_not_posted() -> None:
    """`drain` drops a report that was not posted yet, because the result supersedes it."""
    platform = Platform()

    async def story() -> None:
        sender = ProgressSender(platform.post)
        begun = asyncio.Event()
        # runs after the sender's task, which is waiting for a report by then
        asyncio.get_running_loop().call_soon(begun.set)
        await begun.wait()
        sender.report({"step": 1})
        await sender.drain()

    run_story(story)
    assert platform.times == []


def test_drain_waits_for_a_running_post() -> None:
    """`drain` waits for a post in progress, which could otherwise arrive after the result."""
    platform = Platform(takes_s=0.2)

    async def story() -> None:
        sender = ProgressSender(platform.post)
        sender.report({"step": 1})
        await wait_until(lambda: platform.active_posts)
        await sender.drain()
        assert platform.posted_steps == [1]

    run_story(story)


def test_a_hanging_post_is_cancelled() -> None:
    """`drain` waits at most `drain_s` for a hanging post, and then cancels the post."""
    platform = Platform(takes_s=3600)

    async def story() -> None:
        sender = ProgressSender(platform.post, drain_s=TICK_S)
        sender.report({"step": 1})
        await wait_until(lambda: platform.active_posts)
        await asyncio.wait_for(sender.drain(), 60)

    run_story(story)
    assert (platform.cancelled_posts, platform.active_posts, platform.posted_steps) == (1, 0, [])


@pytest.mark.parametrize("failure", [TimeoutError(), OSError("reset"), ValueError("a bug of the SDK's")])
def test_a_post_that_fails_does_not_lose_the_result(failure: Exception, caplog: pytest.LogCaptureFixture) -> None:
    """An error of a post is logged once by its type, and `drain` raises nothing."""
    platform = Platform(failure=failure)

    async def story() -> None:
        sender = ProgressSender(platform.post, interval_s=0)
        sender.report({"step": 1})
        await wait_until(lambda: platform.times)
        sender.report({"step": 2})
        await sender.drain()

    with caplog.at_level(logging.WARNING):
        run_story(story)
    assert [record.getMessage() for record in caplog.records] == [
        f"progress could not be posted: {type(failure).__name__}"
    ]


def test_a_report_after_the_loop_is_closed_is_ignored() -> None:
    """Reporting after the loop is closed raises no error."""
    senders: list[ProgressSender] = []

    async def story() -> None:
        senders.append(ProgressSender(Platform().post))
        await senders[0].drain()

    run_story(story)
    senders[0].report({"step": 1})


@pytest.mark.parametrize(
    ("progress", "percent"),
    [
        (Progress.at(1, 1, 0, 0), 0),
        (Progress.at(1, 1, 5, 20), 25),
        (Progress.at(2, 4, 10, 20), 37),
        (Progress.at(4, 4, 20, 20), 100),
    ],
)
def test_percent_counts_images_and_steps(progress: Progress, percent: int) -> None:
    """The picture's number and its step are converted to the percentage of the whole job."""
    output = progress_output(progress)

    assert output["percent"] == percent
    assert (output["stage"], output["picture"], output["pictures"]) == (
        "sampling",
        progress.picture,
        progress.pictures,
    )


def test_progress_has_an_empty_list_of_images() -> None:
    """Progress has the key `images`, so that callers that read `output.images` of a running job get no missing key."""
    assert progress_output(Progress())["images"] == []


def test_a_preview_is_scaled_down() -> None:
    """A preview is sent as base64 of a small image with at most 256 pixels a side."""
    large = io.BytesIO()
    Image.effect_noise((1024, 512), 80).save(large, "JPEG")
    preview = base64.b64decode(progress_output(Progress(preview=large.getvalue()))["preview"])

    assert Image.open(io.BytesIO(preview)).size == (256, 128)
    assert len(preview) < 40_000


def test_an_unreadable_preview_is_omitted() -> None:
    """Progress with a damaged preview is sent without the preview."""
    assert "preview" not in progress_output(Progress(preview=b"\xff\xd8 no JPEG"))


# --- in the handler


def run_in_handler(post: Callable[[JsonObject, JsonObject], Awaitable[None]], **changes: object) -> dict[str, Any]:
    """Run a job with two images in the handler, with `post` for its progress; return the handler's result."""
    with Simulator(step_s=0.02) as simulator:
        lifecycle = Lifecycle(stop_comfyui=_never, report_unhealthy=_never, grace_s=1, end=_never)
        worker = worker_from_settings(Settings.from_env({"COMFYUI_URL": simulator.url}))
        handler = make_handler(Service(worker, lifecycle), post)
        job_input = {"prompt": "a knight", "width": 64, "height": 64, "steps": 4, "num_images": 2, **changes}

        async def bounded() -> dict[str, Any]:
            return await asyncio.wait_for(handler({"id": "job-1", "input": job_input}), 60)

        result = asyncio.run(bounded())
        worker.server.close()
        return result


def _never(*_: object) -> None:
    raise AssertionError("no job ends the worker")


def test_the_handler_waits_for_a_running_post() -> None:
    """The handler returns the result only when the slow posts that it began have succeeded."""
    platform = Platform(takes_s=0.5)
    jobs: list[object] = []

    async def post(job: JsonObject, progress: JsonObject) -> None:
        jobs.append(job["id"])
        await platform.post(progress)

    result = run_in_handler(post)

    assert len(result["images"]) == 2
    assert set(jobs) == {"job-1"}
    assert len(platform.posted_steps) == len(platform.times)
    assert platform.active_posts == 0


def test_a_failing_post_does_not_change_the_result(caplog: pytest.LogCaptureFixture) -> None:
    """If each post fails, the result is complete, and the failure is logged."""

    async def post(_job: JsonObject, _progress: JsonObject) -> None:
        raise TimeoutError

    assert len(run_in_handler(post)["images"]) == 2
    assert "progress could not be posted" in caplog.text


def test_a_rejected_request_has_no_progress() -> None:
    """For a rejected request nothing is posted, and the handler returns the error report."""
    platform = Platform()

    async def post(_job: JsonObject, progress: JsonObject) -> None:
        await platform.post(progress)

    result = run_in_handler(post, steps=0)

    assert ErrorReport.from_json(result["error"]).code is ErrorCode.INVALID_INPUT
    assert platform.times == []
