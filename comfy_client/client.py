"""The client: pictures from whatever provider it is given. `AsyncClient` (aio.py) is the same, awaited.

with client_from_env() as client:
    client.txt2img("a pixel art knight", seed=42).image.save("knight.png")
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeAlias

from comfy_client import coroutines
from comfy_client.job import PATIENCE_S, Done, Event, JobPoller
from comfy_client.pictures import PictureSource, with_texts
from comfy_client.providers import provider_from_env
from comfy_client.providers.interface import (
    NO_OPTIONS,
    GenerationRequest,
    GenerationResult,
    Health,
    JobOptions,
    JobStatus,
    Progress,
    Provider,
)
from comfy_core.errors import ComfyClientError
from comfy_core.workflows import Graph

if TYPE_CHECKING:
    from typing import Self, Unpack

    from comfy_client.inputs import Img2ImgInputs, Txt2ImgInputs

TIMEOUT_S = 600.0
"""For a cold start that downloads nothing, and a job."""
CANCEL_PATIENCE_S = 5.0
"""How long work that is given up may take to cancel its job."""
SYNC_WAIT_S = 10.0
"""How long a call that nobody watches may be answered late, with the result: it saves a round trip, or several."""

Observer: TypeAlias = Callable[[Event], None]


def make_request(
    workflow: str | Graph | None = None,
    *,
    options: JobOptions = NO_OPTIONS,
    **inputs: Any,  # noqa: ANN401 - by the workflow's schema
) -> GenerationRequest:
    """Return the request for a workflow by name, or for a whole graph in ComfyUI's API format.

    `image`, and `images` (`{name: picture}`) for graphs, may be anything that `PictureSource` names; an input that is
    None is left out. Raises JobError (invalid_image).
    """
    texts = with_texts(inputs)
    return GenerationRequest({"workflow": workflow, **texts} if workflow is not None else texts, options)


class Client:
    """Makes pictures. Safe to use from several threads; `close` it, or use it in a `with`.

    `Client(api_key=…, endpoint_id=…)` calls this project's worker on RunPod, `Client(comfyui_url=…)` a ComfyUI
    directly; neither reads the environment. `client_from_env` takes all from there.

    Args:
        provider: where jobs run, instead of the three below.
        api_key: RunPod's API key.
        endpoint_id: the id of the endpoint at RunPod.
        comfyui_url: the address of a ComfyUI, as `http://127.0.0.1:8188`.
        timeout_s: how long a call waits for its job unless it gives its own time.
        sync_wait_s: how long `run`, `txt2img` and `img2img` let RunPod hold the submit until the result is ready. The
            job has no id until then. 0 always polls.
    """

    def __init__(
        self,
        provider: Provider | None = None,
        *,
        api_key: str | None = None,
        endpoint_id: str | None = None,
        comfyui_url: str | None = None,
        timeout_s: float = TIMEOUT_S,
        sync_wait_s: float = SYNC_WAIT_S,
    ) -> None:
        ways = (provider is not None, api_key is not None and endpoint_id is not None, comfyui_url is not None)
        if sum(ways) != 1:
            raise TypeError(
                "Client takes either a provider, or api_key and endpoint_id, or comfyui_url. client_from_env() reads "
                "them from the environment"
            )
        self.provider = provider or provider_from_env(
            {
                "RUNPOD_API_KEY": api_key or "",
                "RUNPOD_ENDPOINT_ID": endpoint_id or "",
                "COMFYUI_ENDPOINT": comfyui_url or "",
            }
        )
        self.timeout_s = timeout_s
        self.sync_wait_s = sync_wait_s

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self.provider.close()

    def txt2img(self, prompt: str, **inputs: Unpack[Txt2ImgInputs]) -> GenerationResult:
        """Return pictures of a prompt.

        Args:
            prompt: what the picture shows.
            **inputs: each is optional, and None leaves it out.

                - negative_prompt: what the picture must not show; ignored unless `negative_strength` is above 0.
                - negative_strength: weight of the negative prompt, 0 to 10 (default 0); above 0 doubles the time.
                - width: pixels, a multiple of 16, 64 to 2048 (default 1024).
                - height: pixels, a multiple of 16, 64 to 2048 (default 1024).
                - steps: sampling steps, 1 to 100 (default 20).
                - guidance: how closely the picture follows the prompt, 0 to 30 (default 3.5).
                - seed: same seed, same picture (default: random; the result has it).
                - num_images: 1 to 8 (default 1); picture i uses seed + i.
                - sampler: a sampler of ComfyUI (default "euler").
                - scheduler: a scheduler of ComfyUI (default "simple").
                - loras: LoRA files of the worker, at most 8: names, or `{"name": …, "strength": …}`.
                - output_format: "png" (default), "webp" or "jpeg".
                - output_quality: of webp and jpeg, 1 to 100 (default 90).
                - metadata: write prompt, seed and graph into the file (default True).
                - delivery: how the pictures come back, "auto" (default), "base64" or "s3".
                - timeout_s: end the job after this many seconds of rendering, 1 to 3600.
                - overrides: values of the graph, as `{"KSampler.seed": 5}`.
                - options, wait_timeout_s, observer: see `run`.

        Raises as `run` does.
        """
        return self.run("txt2img", prompt=prompt, **inputs)

    def img2img(self, image: PictureSource, prompt: str, **inputs: Unpack[Img2ImgInputs]) -> GenerationResult:
        """Return pictures made from a picture and a prompt.

        Args:
            image: a path, bytes, a PIL image, a data URI, base64 or an https address.
            prompt: what the picture shows.
            **inputs: those of `txt2img`, and

                - strength: how far the result may leave the picture, 0.01 to 1 (default 0.75).
                - width, height: default to the picture's own, rounded to 16 and limited to 2 megapixels.

        Raises as `run` does.
        """
        return self.run("img2img", image=image, prompt=prompt, **inputs)

    def run(
        self,
        workflow: str | Graph | None = None,
        *,
        options: JobOptions = NO_OPTIONS,
        wait_timeout_s: float | None = None,
        observer: Observer | None = None,
        **inputs: Any,  # noqa: ANN401 - by the workflow's schema
    ) -> GenerationResult:
        """Run a workflow, or a whole graph, and return its result.

        A call that Ctrl-C interrupts cancels its job, if the job has an id by then (`sync_wait_s`).

        Args:
            workflow: a template's name, or a graph in ComfyUI's API format. Default: img2img if `image` is given, else
                txt2img.
            options: RunPod's options for the job.
            wait_timeout_s: how long to wait; the job goes on. `timeout_s` among the inputs ends the job instead.
            observer: called with each event of the job, as `Job.events` yields them.
            **inputs: the workflow's inputs, and those for every request (docs/api.md).

        Raises:
            JobError: the job failed, or its inputs are invalid (nothing was sent); `.code` is the reason.
            RequestError: the provider was not reached, or its response was invalid; `Unauthorized` for the key.
            WaitTimeout: `wait_timeout_s` was over first; `.job_id` is the job, which goes on.
        """
        request = make_request(workflow, options=options, **inputs)
        return coroutines.run(run_task(self, request, wait_timeout_s, observer))

    def submit(
        self,
        workflow: str | Graph | None = None,
        *,
        options: JobOptions = NO_OPTIONS,
        **inputs: Any,  # noqa: ANN401 - by the workflow's schema
    ) -> Job:
        """Start a job and return it without waiting. Raises JobError and RequestError as `run` does."""
        return self.submit_request(make_request(workflow, options=options, **inputs))

    def submit_request(self, request: GenerationRequest, *, is_followed: bool = False) -> Job:
        """Start the job of a request that was made before.

        Where it is followed at once, it may have 20 MB, and RunPod need not keep its result for longer than a minute.
        """
        status = self.provider.submit(request, 0.0 if is_followed else None)
        return Job(self, JobPoller(self.provider, status.job_id, status))

    def job(self, job_id: str) -> Job:
        """Return a job that was started before, here or in another process."""
        return Job.from_id(self, job_id)

    def map(
        self,
        requests: Iterable[GenerationRequest | Mapping[str, Any]],
        concurrency: int = 8,
        *,
        wait_timeout_s: float | None = None,
    ) -> Iterator[Outcome]:
        """Yield the outcome of each request, in their order, with up to `concurrency` jobs at once.

        A request is a mapping of what `run` takes (`workflow`, and its inputs), or a GenerationRequest. They are read
        as they are needed, and at most twice `concurrency` outcomes wait to be taken. Where the caller stops early, no
        more are sent, and the jobs under way are cancelled.
        """
        waiting: deque[Future[Outcome]] = deque()
        stopped = threading.Event()
        pool = ThreadPoolExecutor(concurrency, thread_name_prefix="comfy-map")
        try:
            for request in requests:
                waiting.append(pool.submit(_outcome, self, request, wait_timeout_s, stopped))
                if len(waiting) >= 2 * concurrency:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            stopped.set()
            pool.shutdown(wait=True, cancel_futures=True)

    def health(self) -> Health:
        """Return what the provider is doing: jobs, workers, and why a job may have to wait."""
        return self.provider.health()

    def purge_queue(self) -> int:
        """Drop all jobs that wait at the endpoint, whoever sent them; return how many those were."""
        return self.provider.purge_queue()


@dataclass(frozen=True)
class Outcome:
    """What came of one request of `map`: a result or an error."""

    request: GenerationRequest | Mapping[str, Any]
    result: GenerationResult | None = None
    error: ComfyClientError | None = None

    def unwrap(self) -> GenerationResult:
        """Return the result, or raise the error."""
        if self.result is None:
            raise self.error or RuntimeError("neither result nor error")
        return self.result


class Job:
    """A job that was started. Its calls raise JobError where it failed, RequestError where nobody answers."""

    def __init__(self, client: Client, poller: JobPoller) -> None:
        self._client = client
        self._poller = poller

    def __repr__(self) -> str:
        return f"Job({self.id!r})"

    @classmethod
    def from_id(cls, client: Client, job_id: str) -> Job:
        """Return the job with that id, started here or in another process. Asks nothing yet."""
        return cls(client, JobPoller(client.provider, job_id))

    @property
    def id(self) -> str:
        """The provider's id of it."""
        return self._poller.id

    @property
    def progress(self) -> Progress | None:
        """How far it was when it was last looked at."""
        return self._poller.progress

    def status(self) -> JobStatus:
        """Return how it stands now."""
        return coroutines.run(self._poller.status())

    def wait(self, timeout_s: float | None = None) -> GenerationResult:
        """Return what it made, once it has ended. Raises WaitTimeout where that takes longer; it then goes on."""
        return coroutines.run(self._poller.wait(self._client.timeout_s if timeout_s is None else timeout_s))

    def result(self) -> GenerationResult:
        """Return what it made, if it has ended; WaitTimeout if not."""
        return self.wait(0)

    def events(self, timeout_s: float | None = None) -> Iterator[Event]:
        """Yield what happens to it: Queued, Waiting, Running, Sampling, Preview, ProviderUnavailable, and last Done."""
        return coroutines.iterate(self._poller.events(self._client.timeout_s if timeout_s is None else timeout_s))

    def cancel(self, patience_s: float = PATIENCE_S) -> None:
        """End the job; one that has ended stays as it is. A failing call is repeated for up to `patience_s`."""
        coroutines.run(self._poller.cancel(patience_s))

    def retry(self) -> JobStatus:
        """Start it once more, where it failed or timed out."""
        return coroutines.run(self._poller.retry())


def run_task(
    client: Client,
    request: GenerationRequest,
    timeout_s: float | None = None,
    observer: Observer | None = None,
    *,
    may_hold: bool = True,
) -> coroutines.Task[GenerationResult]:
    """Submit a job and return its result. Work that is given up cancels the job.

    Where somebody watches, or it may not hold a thread, the submit is answered at once: until a held one is, nobody
    knows the job's id.
    """
    timeout_s = client.timeout_s if timeout_s is None else timeout_s
    begun_at = time.monotonic()
    wait_s = min(client.sync_wait_s, timeout_s) if may_hold and observer is None else 0.0
    status = client.provider.submit(request, wait_s)
    poller = JobPoller(client.provider, status.job_id, status)
    left_s = max(0.0, begun_at + timeout_s - time.monotonic())
    try:
        if observer is None:
            return (yield from poller.wait(left_s))
        return (yield from _observed(poller, left_s, observer))
    except (GeneratorExit, KeyboardInterrupt):
        with contextlib.suppress(ComfyClientError):
            coroutines.run(poller.cancel(CANCEL_PATIENCE_S))
        raise


def _observed(poller: JobPoller, timeout_s: float, observer: Observer) -> coroutines.Task[GenerationResult]:
    for told in poller.events(timeout_s):
        if isinstance(told, coroutines.Sleep):
            yield told
            continue
        observer(told)
        if isinstance(told, Done):
            return told.result
    raise AssertionError("events end with Done, or raise")


def outcome_task(
    client: Client, request: GenerationRequest | Mapping[str, Any], wait_timeout_s: float | None
) -> coroutines.Task[Outcome]:
    """Do one request of a `map` and return its outcome, whatever it is."""
    try:
        made = request if isinstance(request, GenerationRequest) else make_request(**request)
        return Outcome(request, result=(yield from run_task(client, made, wait_timeout_s, may_hold=False)))
    except ComfyClientError as error:
        return Outcome(request, error=error)


def _outcome(
    client: Client,
    request: GenerationRequest | Mapping[str, Any],
    wait_timeout_s: float | None,
    stopped: threading.Event,
) -> Outcome:
    work = outcome_task(client, request, wait_timeout_s)
    return coroutines.run(work, lambda pause_s: _sleep(pause_s, stopped))


class _Stopped(Exception):  # noqa: N818 - not an error: nobody wants the outcome any more
    pass


def _sleep(seconds: float, stopped: threading.Event) -> None:
    if stopped.wait(seconds):
        raise _Stopped


def client_from_env(
    environment: Mapping[str, str] | None = None,
    *,
    workflows: Path | None = None,
    timeout_s: float = TIMEOUT_S,
    sync_wait_s: float = SYNC_WAIT_S,
) -> Client:
    """Return the client that IMAGE_GENERATION_PROVIDER selects; the two times are those of Client.

    `environment` replaces `os.environ`. `workflows` is a folder of templates that replaces the shipped ones. Raises
    ConfigError that names the missing variable.
    """
    provider = provider_from_env(os.environ if environment is None else environment, workflows)
    return Client(provider, timeout_s=timeout_s, sync_wait_s=sync_wait_s)
