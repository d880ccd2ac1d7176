"""The contract of all providers: each test runs with each provider. provider_fixtures.py describes their setups.

The providers `comfyui` and `runpod` use the simulated RunPod with the real worker, or its ComfyUI directly. The
provider `scenario` uses the simulated Scenario.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from bench.worker_setup import ROOT, running_worker
from comfy_client.aio import AsyncClient
from comfy_client.client import client_from_env
from comfy_client.job import Done, Queued, Running
from comfy_client.providers import PROVIDERS
from comfy_client.providers.interface import JobState
from comfy_core.error_codes import ErrorCode
from comfy_core.errors import JobCancelled, JobError, WaitTimeout
from comfy_core.images.ai_mark import is_marked
from comfy_core.workflows import Workflow, render
from simulators.scenario import ScenarioSimulator
from simulators.waiting import until
from tests.providers.provider_fixtures import (
    PROVIDER_SETUPS,
    Ability,
    Backends,
    ProviderUnderTest,
    setups_with,
    setups_without,
)

pytestmark = pytest.mark.slow
SMALL: dict[str, Any] = {"width": 128, "height": 128, "steps": 4}
KNIGHT = ROOT / "examples" / "knight.png"


@pytest.fixture(scope="module")
def backends() -> Iterator[Backends]:
    """One worker and one simulated Scenario for all tests of this file."""
    with running_worker(step_s=0.03) as worker_setup, ScenarioSimulator() as scenario:
        assert worker_setup.simulator is not None
        yield Backends(worker_setup, worker_setup.simulator, scenario)


@pytest.fixture(params=PROVIDER_SETUPS)
def provider(request: pytest.FixtureRequest, backends: Backends) -> Iterator[ProviderUnderTest]:
    """Each provider in turn, or only those that a test selects. Afterwards its backend's faults are removed."""
    setup = PROVIDER_SETUPS[request.param]
    environment = {"IMAGE_GENERATION_PROVIDER": setup.provider, **setup.variables(backends)}
    with client_from_env(environment, timeout_s=60.0) as client:
        backend = setup.backend(backends)
        yield ProviderUnderTest(client, backends, backend, setup.abilities)
        backend.clear()


def needs(ability: Ability) -> pytest.MarkDecorator:
    """Return the marker of a test that runs only with providers that have the ability."""
    return pytest.mark.parametrize("provider", setups_with(ability), indirect=True)


def test_every_provider_is_tested() -> None:
    """Every registered provider has a setup."""
    assert {setup.provider for setup in PROVIDER_SETUPS.values()} == set(PROVIDERS)


def test_every_ability_has_a_provider() -> None:
    """Each ability that a test can require is declared by at least one provider."""
    assert all(setups_with(ability) for ability in Ability)


REQUESTS: dict[Ability, dict[str, Any]] = {
    Ability.GRAPHS: {"workflow": {"1": {"class_type": "KSampler", "inputs": {}}}},
    Ability.FILES: {"prompt": "x", "loras": [{"name": "knight.safetensors", "strength": 1.0}]},
}
"""For each ability, a request that needs it."""


@pytest.mark.parametrize(("provider", "ability"), setups_without(*REQUESTS), indirect=["provider"])
def test_an_unsupported_request_is_rejected_with_a_remedy(provider: ProviderUnderTest, ability: Ability) -> None:
    """The error is raised before anything is sent, and names a provider with the ability."""
    before = provider.backend.counts()

    with pytest.raises(JobError, match="IMAGE_GENERATION_PROVIDER=comfyui") as info:
        provider.client.run(**REQUESTS[ability])

    assert info.value.code is ErrorCode.INVALID_INPUT
    assert provider.backend.counts() == before


def test_txt2img_returns_images(provider: ProviderUnderTest, tmp_path: Path) -> None:
    """Images are in order, each with seed, size, MIME type and hash, and can be saved; the result has its inputs."""
    result = provider.client.txt2img("a knight", seed=5, num_images=2, **SMALL)

    assert [image.seed for image in result.images] == [5, 6]
    for image in result.images:
        assert image.size == (128, 128) == image.pil().size
        assert image.mime_type == "image/png"
        assert image.sha256 == hashlib.sha256(image.bytes).hexdigest()
    assert result.image.save(tmp_path / "knight.png").read_bytes() == result.image.bytes
    assert result.image.save(tmp_path) == tmp_path / result.image.filename
    assert (result.seed, result.workflow, result.inputs["steps"]) == (5, "flux-dev-txt2img", 4)
    assert result.provider == provider.client.provider.name
    assert result.job_id


@needs(Ability.PIXELS)
def test_a_seed_gives_the_same_image_with_every_provider(provider: ProviderUnderTest) -> None:
    """A seed's pixels equal those of this project's worker."""
    with client_from_env(provider.backends.worker_setup.platform.client_env()) as reference:
        expected = reference.txt2img("a knight", seed=9, **SMALL).image.pil().tobytes()

    assert provider.client.txt2img("a knight", seed=9, **SMALL).image.pil().tobytes() == expected


@pytest.mark.parametrize("kind", ["path", "text", "bytes", "pil", "data URI"])
def test_img2img_accepts_every_kind_of_image(provider: ProviderUnderTest, kind: str) -> None:
    """An image may be a path (as Path or text), bytes, a PIL image or a data URI."""
    source: Any = {
        "path": KNIGHT,
        "text": str(KNIGHT),
        "bytes": KNIGHT.read_bytes(),
        "pil": Image.open(io.BytesIO(KNIGHT.read_bytes())),
        "data URI": f"data:image/png;base64,{base64.b64encode(KNIGHT.read_bytes()).decode()}",
    }[kind]

    result = provider.client.img2img(source, "as an oil painting", strength=0.5, seed=1, **SMALL)

    assert result.image.size == (128, 128)
    assert result.workflow == "flux-dev-img2img"


@needs(Ability.GRAPHS)
def test_a_caller_s_graph_runs(provider: ProviderUnderTest, workflows: Mapping[str, Workflow]) -> None:
    """A caller's graph runs with its images and overrides; its image has no seed."""
    [graph] = render(workflows["flux-dev-img2img"], {"prompt": "x", "seed": 1, "steps": 1, "width": 128, "height": 128})
    title = next(node["_meta"]["title"] for node in graph.values() if node["class_type"] == "LoadImage")
    result = provider.client.run(
        graph, images={"in.png": KNIGHT}, overrides={f"{title}.image": "in.png", "KSampler.seed": 3}
    )

    assert result.image.seed is None
    assert result.image.size == (128, 128)


@pytest.mark.parametrize("output_format", ["webp", "jpeg"])
def test_images_have_the_requested_format(provider: ProviderUnderTest, output_format: Any) -> None:  # noqa: ANN401 - a Literal
    """Bytes, MIME type and file name of an image have the requested format."""
    image = provider.client.txt2img("a knight", output_format=output_format, seed=1, **SMALL).image

    assert image.mime_type == f"image/{output_format}"
    assert Image.open(io.BytesIO(image.bytes)).format == output_format.upper()
    assert image.filename.endswith((".webp", ".jpg", ".jpeg"))


@pytest.mark.parametrize("output_format", ["png", "webp", "jpeg"])
def test_images_are_marked_as_generated_by_ai(
    provider: ProviderUnderTest,
    tmp_path: Path,
    output_format: Any,  # noqa: ANN401 - a Literal
) -> None:
    """The mark does not depend on `metadata`, stays in a converted file, and can be forbidden. The hash includes it."""
    inputs: dict[str, Any] = {"output_format": output_format, "seed": 1, "metadata": False, **SMALL}
    image = provider.client.txt2img("a knight", **inputs).image
    without = provider.client.txt2img("a knight", ai_mark=False, **inputs).image
    other = "knight.png" if output_format == "jpeg" else "knight.jpg"

    assert is_marked(image.bytes)
    assert image.sha256 == hashlib.sha256(image.bytes).hexdigest()
    assert is_marked(image.save(tmp_path / other).read_bytes())
    if provider.client.provider.name != "runpod":  # its endpoint here is this project's worker, which marks the image
        assert not is_marked(without.bytes)


@pytest.mark.parametrize(
    ("inputs", "code"),
    [
        ({"prompt": "", **SMALL}, ErrorCode.INVALID_INPUT),
        ({"prompt": "x", "steps": 0, "width": 7}, ErrorCode.INVALID_INPUT),
        ({"prompt": "x", "stepps": 4}, ErrorCode.INVALID_INPUT),
        ({}, ErrorCode.INVALID_INPUT),
        ({"prompt": "x", "image": b"no picture"}, ErrorCode.INVALID_IMAGE),
        ({"prompt": "x", "image": "nowhere.png"}, ErrorCode.INVALID_IMAGE),
    ],
    ids=["blank", "range", "unknown key", "nothing", "no picture", "no file"],
)
def test_an_invalid_request_costs_nothing(provider: ProviderUnderTest, inputs: dict[str, Any], code: ErrorCode) -> None:
    """An invalid request raises an error, and creates no job, prompt or asset."""
    before = provider.backend.counts()

    with pytest.raises(JobError) as info:
        provider.client.run(**inputs)

    assert info.value.code is code
    assert provider.backend.counts() == before


def test_an_unknown_workflow_lists_the_known_ones(provider: ProviderUnderTest) -> None:
    """The error for an unknown workflow lists the known ones."""
    with pytest.raises(JobError, match="flux-dev-txt2img") as info:
        provider.client.run("txt3img", prompt="x")

    assert info.value.code is ErrorCode.UNKNOWN_WORKFLOW


@needs(Ability.FILES)
def test_a_missing_model_is_an_error(provider: ProviderUnderTest) -> None:
    """A LoRA that does not exist raises model_missing, with the job's id."""
    with pytest.raises(JobError) as info:
        provider.client.txt2img("x", loras=[{"name": "nowhere.safetensors", "strength": 1.0}], **SMALL)

    assert info.value.code is ErrorCode.MODEL_MISSING
    assert info.value.job_id


@needs(Ability.GRAPHS)
def test_a_failing_node_is_named(provider: ProviderUnderTest) -> None:
    """An exception in a node raises execution_failed, with its message and the node's type."""
    provider.simulator.faults.fail_node("KSampler", "RuntimeError", "the tensor is wrong")

    with pytest.raises(JobError, match="the tensor is wrong") as info:
        provider.client.txt2img("x", **SMALL)

    assert info.value.code is ErrorCode.EXECUTION_FAILED
    assert info.value.report.details["node_type"] == "KSampler"


def test_events_begin_with_the_queue_and_end_with_the_result(provider: ProviderUnderTest) -> None:
    """Events begin with Queued, contain Running and end with Done; the result can be read repeatedly afterwards."""
    job = provider.client.submit(prompt="a knight", seed=3, **SMALL)
    events = list(job.events())

    assert events[0] == Queued(job.id)
    assert any(isinstance(event, Running) for event in events)
    [done] = [event for event in events if isinstance(event, Done)]
    assert events[-1] is done
    assert done.result.image.seed == 3
    assert job.result().image.bytes == job.wait().image.bytes == done.result.image.bytes
    assert job.status().state is JobState.SUCCEEDED


def test_txt2img_calls_the_observer_and_returns_the_result(provider: ProviderUnderTest) -> None:
    """`txt2img` calls the observer with all events, from Queued to Done, and returns the result."""
    events: list[object] = []
    result = provider.client.txt2img("a knight", observer=events.append, **SMALL)

    assert events[0] == Queued(result.job_id)
    assert events[-1] == Done(result)


def test_a_cancelled_job_frees_the_worker(provider: ProviderUnderTest) -> None:
    """The wait for a cancelled job raises JobCancelled. The backend becomes idle, and the next job runs."""
    provider.backend.hold()
    job = provider.client.submit(prompt="a knight", **SMALL)
    assert until(provider.backend.is_held)
    job.cancel()

    with pytest.raises(JobCancelled) as info:
        job.wait(60)
    assert info.value.job_id == job.id
    assert job.status().state is JobState.CANCELLED
    assert until(provider.backend.is_idle)
    job.cancel()
    assert provider.client.txt2img("a knight", **SMALL).images


def test_a_wait_timeout_leaves_the_job_running(provider: ProviderUnderTest) -> None:
    """WaitTimeout has the job's id, the result of a running job raises it too, and the job can be waited for again."""
    provider.backend.hold()
    job = provider.client.submit(prompt="a knight", **SMALL)
    assert until(provider.backend.is_held)

    with pytest.raises(WaitTimeout, match=job.id) as info:
        job.wait(0.3)
    assert info.value.job_id == job.id
    with pytest.raises(WaitTimeout):
        job.result()
    provider.backend.resume()

    assert job.wait().images


def test_an_unknown_job_is_expired(provider: ProviderUnderTest) -> None:
    """The status of an unknown job raises job_expired."""
    with pytest.raises(JobError) as info:
        provider.client.job("nobody-knows-it").status()

    assert info.value.code is ErrorCode.JOB_EXPIRED


def test_map_returns_outcomes_in_order(provider: ProviderUnderTest) -> None:
    """`map` yields an outcome for each request, in order; an invalid request is an outcome with an error."""
    requests = [{"prompt": "a knight", "seed": seed, **SMALL} for seed in range(5)]
    requests[2] = {"prompt": "a knight", "steps": 0}
    outcomes = list(provider.client.map(requests, 3))

    assert [outcome.request for outcome in outcomes] == requests
    assert [outcome.result and outcome.result.seed for outcome in outcomes] == [0, 1, None, 3, 4]
    assert outcomes[2].error is not None
    assert outcomes[2].error.code is ErrorCode.INVALID_INPUT
    with pytest.raises(JobError):
        outcomes[2].unwrap()


def test_async_map_returns_outcomes_in_order(provider: ProviderUnderTest) -> None:
    """The async `map` yields an outcome for each request, in order; closing it early leaves no running job."""
    requests = [{"prompt": "a knight", "seed": seed, **SMALL} for seed in range(4)]
    requests[1] = {"prompt": "a knight", "steps": 0}

    async def story() -> list[int | None]:
        client = AsyncClient(provider.client)
        results = [outcome.result async for outcome in client.map(requests, 2)]
        outcomes = client.map(requests * 5, 2)
        async for outcome in outcomes:
            assert outcome.unwrap().seed == 0
            break
        await outcomes.aclose()  # type: ignore[attr-defined] # it is a generator
        return [result.seed if result else None for result in results]

    assert asyncio.run(story()) == [0, None, 2, 3]
    assert until(provider.backend.is_idle)


def test_the_async_client_generates_images_and_follows_a_job(provider: ProviderUnderTest) -> None:
    """AsyncClient generates images for several seeds at once, follows a job's events, and raises JobError."""

    async def run_client() -> list[int | None]:
        client = AsyncClient(provider.client)
        results = await asyncio.gather(*(client.txt2img("x", seed=seed, **SMALL) for seed in (1, 2)))
        job = await client.submit(prompt="x", seed=3, **SMALL)
        last = [event async for event in job.events()][-1]
        assert isinstance(last, Done)
        again = await job.result()
        with pytest.raises(JobError):
            await client.txt2img("")
        return [*(result.seed for result in results), last.result.seed, again.seed]

    assert asyncio.run(run_client()) == [1, 2, 3, 3]


def test_cancelling_a_task_cancels_its_job(provider: ProviderUnderTest) -> None:
    """If the task that awaits txt2img is cancelled, its job is cancelled too."""
    provider.backend.hold()

    async def cancel_task() -> None:
        task = asyncio.create_task(AsyncClient(provider.client).txt2img("x", **SMALL))
        assert await asyncio.to_thread(until, provider.backend.is_held)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancel_task())
    assert until(provider.backend.is_idle)


def test_health_of_an_idle_provider(provider: ProviderUnderTest) -> None:
    """The health of a provider without jobs is `idle`, with a sentence."""
    assert until(lambda: provider.client.health().why == "idle")
    assert provider.client.health().sentence


@needs(Ability.WORKERS)
def test_health_counts_workers(provider: ProviderUnderTest) -> None:
    """The health of an endpoint without jobs counts its idle worker."""
    assert until(lambda: provider.client.health().workers["idle"] == 1)
