"""What every provider does alike, each on its stage (provider_fixtures.py says how, and what some can do beyond).

RunPod and premade run on the platform's stand-in with the real worker behind it, Scenario on the stand-in of its API.
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

from bench.stage import ROOT, staged
from comfy_client.aio import AsyncClient
from comfy_client.client import client_from_env
from comfy_client.job import Done, Queued, Running
from comfy_client.providers import PROVIDERS
from comfy_client.providers.interface import JobState
from comfy_core.error_codes import ErrorCode
from comfy_core.errors import JobCancelled, JobError, WaitTimeout
from comfy_core.workflows import Workflow, render
from simulators.scenario import ScenarioStandIn
from simulators.waiting import until
from tests.providers.provider_fixtures import STAGINGS, Ability, ProviderScene, World, able, unable

pytestmark = pytest.mark.slow
SMALL: dict[str, Any] = {"width": 128, "height": 128, "steps": 4}
KNIGHT = ROOT / "examples" / "knight.png"


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    """One worker and one Scenario for all tests of this file."""
    with staged(step_s=0.03) as stage, ScenarioStandIn() as scenario:
        assert stage.simulator is not None
        yield World(stage, stage.simulator, scenario)


@pytest.fixture(params=STAGINGS)
def scene(request: pytest.FixtureRequest, world: World) -> Iterator[ProviderScene]:
    """Each provider in turn; tests that need an ability skip providers without it."""
    staging = STAGINGS[request.param]
    environment = {"IMAGE_GENERATION_PROVIDER": staging.provider, **staging.variables(world)}
    with client_from_env(environment, timeout_s=60.0) as client:
        behind = staging.behind(world)
        yield ProviderScene(client, world, behind, staging.abilities)
        behind.clear()


def needs(ability: Ability) -> pytest.MarkDecorator:
    """Return the marker for a test that needs an ability."""
    return pytest.mark.parametrize("scene", able(ability), indirect=True)


def test_every_provider_is_on_a_stage() -> None:
    """Every registered provider is tested."""
    assert {staging.provider for staging in STAGINGS.values()} == set(PROVIDERS)


def test_every_ability_is_some_provider_s() -> None:
    """Each ability has at least one provider."""
    assert all(able(ability) for ability in Ability)


ASKED: dict[Ability, dict[str, Any]] = {
    Ability.GRAPHS: {"workflow": {"1": {"class_type": "KSampler", "inputs": {}}}},
    Ability.FILES: {"prompt": "x", "loras": [{"name": "knight.safetensors", "strength": 1.0}]},
}
"""A request for each optional ability."""


@pytest.mark.parametrize(("scene", "ability"), unable(*ASKED), indirect=["scene"])
def test_what_a_provider_cannot_do_it_refuses_with_a_remedy(scene: ProviderScene, ability: Ability) -> None:
    """The error is raised before anything is sent, and names a provider with the ability."""
    before = scene.behind.taken()

    with pytest.raises(JobError, match="IMAGE_GENERATION_PROVIDER=comfyui") as info:
        scene.client.run(**ASKED[ability])

    assert info.value.code is ErrorCode.INVALID_INPUT
    assert scene.behind.taken() == before


def test_text_becomes_pictures(scene: ProviderScene, tmp_path: Path) -> None:
    """Images are in order, each with seed, size, type and hash, and can be saved and opened."""
    result = scene.client.txt2img("a knight", seed=5, num_images=2, **SMALL)

    assert [image.seed for image in result.images] == [5, 6]
    for image in result.images:
        assert image.size == (128, 128) == image.pil().size
        assert image.mime_type == "image/png"
        assert image.sha256 == hashlib.sha256(image.bytes).hexdigest()
    assert result.image.save(tmp_path / "knight.png").read_bytes() == result.image.bytes
    assert result.image.save(tmp_path) == tmp_path / result.image.filename
    assert (result.seed, result.workflow, result.inputs["steps"]) == (5, "flux-dev-txt2img", 4)
    assert result.provider == scene.client.provider.name
    assert result.job_id


@needs(Ability.PIXELS)
def test_a_seed_gives_the_same_picture_whoever_makes_it(scene: ProviderScene) -> None:
    """The pixels are the same for all providers that use ComfyUI."""
    with client_from_env(scene.world.stage.platform.client_env()) as reference:
        expected = reference.txt2img("a knight", seed=9, **SMALL).image.pil().tobytes()

    assert scene.client.txt2img("a knight", seed=9, **SMALL).image.pil().tobytes() == expected


@pytest.mark.parametrize("kind", ["path", "text", "bytes", "pil", "data URI"])
def test_a_picture_becomes_a_picture(scene: ProviderScene, kind: str) -> None:
    """An image may be a path, bytes, a PIL image or a data URI; URLs are downloaded by the worker."""
    source: Any = {
        "path": KNIGHT,
        "text": str(KNIGHT),
        "bytes": KNIGHT.read_bytes(),
        "pil": Image.open(io.BytesIO(KNIGHT.read_bytes())),
        "data URI": f"data:image/png;base64,{base64.b64encode(KNIGHT.read_bytes()).decode()}",
    }[kind]

    result = scene.client.img2img(source, "as an oil painting", strength=0.5, seed=1, **SMALL)

    assert result.image.size == (128, 128)
    assert result.workflow == "flux-dev-img2img"


@needs(Ability.GRAPHS)
def test_a_graph_of_one_s_own_runs(scene: ProviderScene, workflows: Mapping[str, Workflow]) -> None:
    """A complete graph is run with its images and overrides; its results have no seed."""
    [graph] = render(workflows["flux-dev-img2img"], {"prompt": "x", "seed": 1, "steps": 1, "width": 128, "height": 128})
    title = next(node["_meta"]["title"] for node in graph.values() if node["class_type"] == "LoadImage")
    result = scene.client.run(
        graph, images={"in.png": KNIGHT}, overrides={f"{title}.image": "in.png", "KSampler.seed": 3}
    )

    assert result.image.seed is None
    assert result.image.size == (128, 128)


@pytest.mark.parametrize("output_format", ["webp", "jpeg"])
def test_the_format_is_what_was_asked_for(scene: ProviderScene, output_format: Any) -> None:  # noqa: ANN401 - a Literal
    """Images have the requested format in bytes, type and name."""
    image = scene.client.txt2img("a knight", output_format=output_format, seed=1, **SMALL).image

    assert image.mime_type == f"image/{output_format}"
    assert Image.open(io.BytesIO(image.bytes)).format == output_format.upper()
    assert image.filename.endswith((".webp", ".jpg", ".jpeg"))


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
def test_a_wrong_request_costs_nothing(scene: ProviderScene, inputs: dict[str, Any], code: ErrorCode) -> None:
    """Faults are reported before anything is sent: no job, prompt or upload."""
    before = scene.behind.taken()

    with pytest.raises(JobError) as info:
        scene.client.run(**inputs)

    assert info.value.code is code
    assert scene.behind.taken() == before


def test_an_unknown_workflow_names_the_known(scene: ProviderScene) -> None:
    """An unknown workflow is reported by the provider or by its worker."""
    with pytest.raises(JobError, match="flux-dev-txt2img") as info:
        scene.client.run("txt3img", prompt="x")

    assert info.value.code is ErrorCode.UNKNOWN_WORKFLOW


@needs(Ability.FILES)
def test_a_missing_model_is_named(scene: ProviderScene) -> None:
    """A model that ComfyUI lacks has an error of its own, with the available ones."""
    with pytest.raises(JobError) as info:
        scene.client.txt2img("x", loras=[{"name": "nowhere.safetensors", "strength": 1.0}], **SMALL)

    assert info.value.code is ErrorCode.MODEL_MISSING
    assert info.value.job_id


@needs(Ability.GRAPHS)
def test_a_node_that_fails_is_named(scene: ProviderScene) -> None:
    """An exception in a node is execution_failed, with the node."""
    scene.simulator.faults.fail_node("KSampler", "RuntimeError", "the tensor is wrong")

    with pytest.raises(JobError, match="the tensor is wrong") as info:
        scene.client.txt2img("x", **SMALL)

    assert info.value.code is ErrorCode.EXECUTION_FAILED
    assert info.value.report.details["node_type"] == "KSampler"


def test_events_begin_with_the_queue_and_end_with_the_result(scene: ProviderScene) -> None:
    """Events are in order; the result can be read repeatedly afterwards."""
    job = scene.client.submit(prompt="a knight", seed=3, **SMALL)
    events = list(job.events())

    assert events[0] == Queued(job.id)
    assert any(isinstance(event, Running) for event in events)
    [done] = [event for event in events if isinstance(event, Done)]
    assert events[-1] is done
    assert done.result.image.seed == 3
    assert job.result().image.bytes == job.wait().image.bytes == done.result.image.bytes
    assert job.status().state is JobState.SUCCEEDED


def test_an_observer_is_told_and_the_result_returned(scene: ProviderScene) -> None:
    """`run` calls the observer while it waits."""
    told: list[object] = []
    result = scene.client.txt2img("a knight", observer=told.append, **SMALL)

    assert told[0] == Queued(result.job_id)
    assert told[-1] == Done(result)


def test_a_cancelled_job_is_cancelled(scene: ProviderScene) -> None:
    """The worker is free again, the wait raises JobCancelled, and the next job runs."""
    scene.behind.hold()
    job = scene.client.submit(prompt="a knight", **SMALL)
    assert until(scene.behind.is_held)
    job.cancel()

    with pytest.raises(JobCancelled) as info:
        job.wait(20)
    assert info.value.job_id == job.id
    assert job.status().state is JobState.CANCELLED
    assert until(scene.behind.is_idle)
    job.cancel()
    assert scene.client.txt2img("a knight", **SMALL).images


def test_a_wait_that_is_over_leaves_the_job_running(scene: ProviderScene) -> None:
    """WaitTimeout has the progress and the job id; the same job can be waited for again."""
    scene.behind.hold()
    job = scene.client.submit(prompt="a knight", **SMALL)
    assert until(scene.behind.is_held)

    with pytest.raises(WaitTimeout, match=job.id) as info:
        job.wait(0.3)
    assert info.value.job_id == job.id
    with pytest.raises(WaitTimeout):
        job.result()
    scene.behind.go_on()

    assert job.wait().images


def test_a_job_that_nobody_knows_is_expired(scene: ProviderScene) -> None:
    """An unknown id fails soon, with job_expired."""
    with pytest.raises(JobError) as info:
        scene.client.job("nobody-knows-it").status()

    assert info.value.code is ErrorCode.JOB_EXPIRED


def test_many_come_back_in_order_each_with_its_own_outcome(scene: ProviderScene) -> None:
    """One invalid request among many is one failed outcome."""
    requests = [{"prompt": "a knight", "seed": seed, **SMALL} for seed in range(5)]
    requests[2] = {"prompt": "a knight", "steps": 0}
    outcomes = list(scene.client.map(requests, 3))

    assert [outcome.request for outcome in outcomes] == requests
    assert [outcome.result and outcome.result.seed for outcome in outcomes] == [0, 1, None, 3, 4]
    assert outcomes[2].error is not None
    assert outcomes[2].error.code is ErrorCode.INVALID_INPUT
    with pytest.raises(JobError):
        outcomes[2].unwrap()


def test_many_are_awaited_in_order(scene: ProviderScene) -> None:
    """AsyncClient.map has one outcome for each request; leaving the loop cancels running jobs."""
    requests = [{"prompt": "a knight", "seed": seed, **SMALL} for seed in range(4)]
    requests[1] = {"prompt": "a knight", "steps": 0}

    async def story() -> list[int | None]:
        client = AsyncClient(scene.client)
        results = [outcome.result async for outcome in client.map(requests, 2)]
        outcomes = client.map(requests * 5, 2)
        async for outcome in outcomes:
            assert outcome.unwrap().seed == 0
            break
        await outcomes.aclose()  # type: ignore[attr-defined] # a generator, which the type does not promise
        return [result.seed if result else None for result in results]

    assert asyncio.run(story()) == [0, None, 2, 3]
    assert until(scene.behind.is_idle)


def test_the_same_is_awaited(scene: ProviderScene) -> None:
    """AsyncClient and its jobs return the same as Client."""

    async def both() -> list[int | None]:
        client = AsyncClient(scene.client)
        results = await asyncio.gather(*(client.txt2img("x", seed=seed, **SMALL) for seed in (1, 2)))
        job = await client.submit(prompt="x", seed=3, **SMALL)
        last = [event async for event in job.events()][-1]
        assert isinstance(last, Done)
        again = await job.result()
        with pytest.raises(JobError):
            await client.txt2img("")
        return [*(result.seed for result in results), last.result.seed, again.seed]

    assert asyncio.run(both()) == [1, 2, 3, 3]


def test_an_await_that_is_cancelled_cancels_its_job(scene: ProviderScene) -> None:
    """A cancelled task leaves no running job."""
    scene.behind.hold()

    async def cancelled() -> None:
        task = asyncio.create_task(AsyncClient(scene.client).txt2img("x", **SMALL))
        assert await asyncio.to_thread(until, scene.behind.is_held)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancelled())
    assert until(scene.behind.is_idle)


def test_health_says_that_it_is_idle(scene: ProviderScene) -> None:
    """A provider without jobs is idle."""
    assert until(lambda: scene.client.health().why == "idle")
    assert scene.client.health().sentence


@needs(Ability.WORKERS)
def test_health_counts_workers(scene: ProviderScene) -> None:
    """An endpoint without jobs has an idle worker."""
    assert until(lambda: scene.client.health().workers["idle"] == 1)
