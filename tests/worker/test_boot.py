"""Before the first job: ComfyUI is there with its models, one step was run, and what fails is said in time."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from comfy_client.comfyui.server import ComfyServer
from comfy_client.contract import ErrorCode
from comfy_client.errors import JobError
from comfy_client.simulator import Simulator
from comfy_client.workflows import Workflow
from tests.stage import CHILD, ROOT, free_port
from tests.waiting import until
from worker.boot import await_boot, comfyui_command, make_process, models_of
from worker.comfyui_process import ComfyProcess, ModelsMissing
from worker.settings import Settings


@pytest.fixture
def simulator() -> Iterator[Simulator]:
    """A ComfyUI that runs elsewhere."""
    with Simulator() as simulator:
        yield simulator


@pytest.fixture
def server(simulator: Simulator) -> Iterator[ComfyServer]:
    """The connections to it."""
    server = ComfyServer(simulator.url)
    yield server
    server.close()


def elsewhere(simulator: Simulator, **environment: str) -> Settings:
    """Return the settings of a worker whose ComfyUI runs elsewhere."""
    return Settings.from_env({"COMFYUI_URL": simulator.url, **environment})


@pytest.fixture
def own(tmp_path: Path, workflows: Mapping[str, Workflow]) -> Iterator[tuple[Settings, ComfyServer, ComfyProcess]]:
    """A ComfyUI of the worker's own, started."""
    (tmp_path / "main.py").write_text(CHILD.format(directory=str(tmp_path)))
    settings = Settings.from_env({"COMFYUI_DIR": str(tmp_path), "COMFYUI_PORT": str(free_port())})
    server = ComfyServer(settings.comfyui_url, directory=tmp_path)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = make_process(settings, server, workflows, environment, lambda: None)
    assert process is not None
    process.start()
    yield settings, server, process
    process.stop()
    server.close()


def test_a_warm_up_runs_one_step_and_is_logged(
    simulator: Simulator, server: ComfyServer, workflows: Mapping[str, Workflow], caplog: pytest.LogCaptureFixture
) -> None:
    """The txt2img workflow runs for one step, so that the models are loaded; how long it took is in the log."""
    with caplog.at_level(logging.INFO, "worker.boot"):
        await_boot(elsewhere(simulator), server, workflows, None)

    assert simulator.sampled_steps == 1
    ready, warm = [record.getMessage() for record in caplog.records if record.name == "worker.boot"]
    assert ready.startswith("ComfyUI 0.3.64 is ready after")
    assert warm.startswith("warmed up in")
    assert [*simulator.queue_ids, *simulator.history_ids] == []


def test_it_asks_before_it_warms_up(
    simulator: Simulator, server: ComfyServer, workflows: Mapping[str, Workflow]
) -> None:
    """ComfyUI answers, then its models are looked at, then a prompt is queued."""
    await_boot(elsewhere(simulator), server, workflows, None)
    asked = simulator.requests

    models = max(place for place, (_, path) in enumerate(asked) if path.startswith("/models/"))
    assert asked[0] == ("GET", "/system_stats")
    assert models < asked.index(("POST", "/prompt"))


@pytest.mark.parametrize("chosen", [{}, {"flux-dev-img2img"}])
def test_without_a_warm_up_nothing_is_sampled(
    simulator: Simulator, server: ComfyServer, workflows: Mapping[str, Workflow], chosen: set[str]
) -> None:
    """WORKER_WARMUP=false, or a folder without the workflow for it, leaves it out."""
    settings = elsewhere(simulator) if chosen else elsewhere(simulator, WORKER_WARMUP="false")
    await_boot(settings, server, {name: workflows[name] for name in chosen} or workflows, None)

    assert simulator.sampled_steps == 0


def test_a_comfyui_that_is_not_there_is_an_error_in_time(
    simulator: Simulator, server: ComfyServer, workflows: Mapping[str, Workflow]
) -> None:
    """Nothing answers at COMFYUI_URL: boot ends with its limit and says so."""
    settings = elsewhere(simulator, COMFYUI_READY_TIMEOUT_S="1")
    simulator.stop()
    begun_at = time.monotonic()
    with pytest.raises(JobError, match="was not ready after 1 s") as info:
        await_boot(settings, server, workflows, None)

    assert info.value.code is ErrorCode.COMFYUI_UNAVAILABLE
    assert 1 <= time.monotonic() - begun_at < 3


def test_a_comfyui_that_comes_late_is_waited_for(
    simulator: Simulator, server: ComfyServer, workflows: Mapping[str, Workflow]
) -> None:
    """It refuses connections and answers 500 at first, as while it starts."""
    simulator.faults.answer_500("/system_stats", times=2)
    simulator.faults.answer_500("/models", times=2)
    simulator.faults.refuse_connections(0.5)
    await_boot(elsewhere(simulator), server, workflows, None)

    assert simulator.sampled_steps == 1


def test_a_model_that_is_missing_elsewhere_is_named(workflows: Mapping[str, Workflow]) -> None:
    """A ComfyUI that runs elsewhere is held to the same models."""
    with Simulator(models={"vae": ()}) as simulator:
        server = ComfyServer(simulator.url)
        with pytest.raises(ModelsMissing, match=r"does not have vae/ae\.safetensors\."):
            await_boot(elsewhere(simulator), server, workflows, None)
        server.close()

    assert simulator.sampled_steps == 0


def test_a_warm_up_that_fails_is_a_boot_that_fails(
    simulator: Simulator, server: ComfyServer, workflows: Mapping[str, Workflow]
) -> None:
    """A GPU that cannot run one step takes no job."""
    simulator.faults.run_out_of_memory(times=2)
    with pytest.raises(JobError) as info:
        await_boot(elsewhere(simulator), server, workflows, None)

    assert info.value.code is ErrorCode.OUT_OF_MEMORY


def test_the_worker_s_own_boots(
    own: tuple[Settings, ComfyServer, ComfyProcess],
    workflows: Mapping[str, Workflow],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The child is waited for, warmed up, and can be used; its own words are in the log at DEBUG alone."""
    settings, server, process = own
    with caplog.at_level(logging.INFO):
        await_boot(settings, server, workflows, process)

    process.await_use(lambda: None)
    assert "warmed up in" in caplog.text
    assert "To see the GUI" not in caplog.text
    assert any("To see the GUI" in line for line in process.log_tail())


def test_one_that_fails_its_warm_up_is_stopped(
    own: tuple[Settings, ComfyServer, ComfyProcess], workflows: Mapping[str, Workflow]
) -> None:
    """A boot that fails leaves no ComfyUI behind."""
    settings, server, process = own
    workflow = workflows["flux-dev-txt2img"]
    graph = {name: {**node, "class_type": "NoSuchNode"} for name, node in workflow.graph.items()}
    broken = {workflow.name: replace(workflow, graph=graph)}
    with pytest.raises(JobError) as info:
        await_boot(settings, server, broken, process)

    assert info.value.code is ErrorCode.WORKFLOW_REJECTED
    with pytest.raises(JobError, match="is stopping"):
        process.start()


def test_a_comfyui_elsewhere_is_nobody_s_child(
    simulator: Simulator, server: ComfyServer, workflows: Mapping[str, Workflow]
) -> None:
    """With COMFYUI_URL there is no process to start."""
    assert make_process(elsewhere(simulator), server, workflows, {}, lambda: None) is None


def test_the_launch_flags_are_those_of_the_settings(tmp_path: Path) -> None:
    """Headless and quiet; previews only where they are wanted; COMFYUI_ARGS come last, so that they win."""
    (tmp_path / "main.py").touch()
    base = {"COMFYUI_DIR": str(tmp_path), "COMFYUI_PORT": "9000"}
    plain = comfyui_command(Settings.from_env(base))
    rich = comfyui_command(Settings.from_env({**base, "WORKER_PREVIEWS": "true", "COMFYUI_ARGS": "--lowvram --fast"}))

    assert plain[:6] == [sys.executable, "main.py", "--listen", "127.0.0.1", "--port", "9000"]
    assert "--disable-all-custom-nodes" in plain
    assert rich == [*plain, "--preview-method", "latent2rgb", "--lowvram", "--fast"]


def test_the_models_are_those_of_all_workflows(workflows: Mapping[str, Workflow]) -> None:
    """Each file once, as folder/file."""
    models = models_of(workflows)

    assert "vae/ae.safetensors" in models
    assert len(models) == len(set(models))


def test_a_child_that_is_ready_late_is_ready(
    own: tuple[Settings, ComfyServer, ComfyProcess], workflows: Mapping[str, Workflow]
) -> None:
    """`start` returns at once; what happens until `await_boot` is called is not waited for twice."""
    settings, server, process = own
    assert until(lambda: any("To see the GUI" in line for line in process.log_tail()))
    begun_at = time.monotonic()
    await_boot(settings, server, workflows, process)

    assert time.monotonic() - begun_at < 5
