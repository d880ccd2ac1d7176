"""Boot: ComfyUI responds and its models exist. A failure of each step ends the boot."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from bench.worker_setup import MODELS, data_directory, make_comfyui, put_models
from comfy_core.comfyui.server import ComfyServer
from comfy_core.error_codes import ErrorCode
from comfy_core.errors import ConfigError, JobError
from comfy_core.workflows import Workflow
from simulators import comfyui_main as comfyui
from simulators.comfyui import Simulator
from simulators.comfyui.version import pinned_version
from simulators.hugging_face import ModelServer
from simulators.waiting import until
from worker.boot import Boot, required_models
from worker.boot_times import BootTimes
from worker.comfyui_process import ModelsMissing, ProcessHooks
from worker.settings import Settings

pytestmark = pytest.mark.slow


@pytest.fixture
def server(simulator: Simulator) -> Iterator[ComfyServer]:
    """A client of the simulated ComfyUI."""
    server = ComfyServer(simulator.url)
    yield server
    server.close()


def external_settings(simulator: Simulator, **environment: str) -> Settings:
    """Return the settings of a worker that uses an external ComfyUI."""
    return Settings.from_env({"COMFYUI_URL": simulator.url, **environment})


@dataclass(frozen=True)
class OwnComfyBoot:
    """The boot of a worker with its own ComfyUI in `directory`, before `begin`."""

    directory: Path
    boot: Boot
    server: ComfyServer


@pytest.fixture
def make_boot(tmp_path: Path) -> Iterator[Callable[..., OwnComfyBoot]]:
    """Yield a function that creates a boot with workflows and extra variables; each boot is stopped afterwards."""
    with contextlib.ExitStack() as stack:

        def make(workflows: Mapping[str, Workflow], main: str = comfyui.MAIN, **environment: str) -> OwnComfyBoot:
            env = {**os.environ, **make_comfyui(tmp_path, main), **environment}
            settings = Settings.from_env(env)
            server = ComfyServer(settings.comfyui_url, directory=settings.comfyui_data_directory)
            boot = Boot(settings, server, workflows, env, ProcessHooks(), BootTimes())
            stack.callback(server.close)
            stack.callback(boot.stop)
            return OwnComfyBoot(tmp_path, boot, server)

        yield make


def boot_external(settings: Settings, server: ComfyServer, workflows: Mapping[str, Workflow]) -> None:
    """Boot a worker with an external ComfyUI: `begin` and `finish`."""
    boot = Boot(settings, server, workflows, {}, ProcessHooks(), BootTimes())
    boot.begin()
    assert boot.process is None
    boot.finish()


def test_the_end_of_the_boot_is_logged(
    simulator: Simulator, server: ComfyServer, workflows: Mapping[str, Workflow], caplog: pytest.LogCaptureFixture
) -> None:
    """The log has ComfyUI's version and the times. The boot runs no prompt, so that it does not delay a job."""
    with caplog.at_level(logging.INFO, "worker.boot"):
        boot_external(external_settings(simulator), server, workflows)

    [booted] = [record.__dict__ for record in caplog.records if record.name == "worker.boot"]
    assert (booted["message"], booted["comfyui"]) == ("booted", f"{pinned_version()}+simulator")
    assert list(booted["boot_s"]) == ["comfyui_ready", "total"]
    assert simulator.executed_prompts == []


def test_an_unreachable_comfyui_fails_the_boot_at_the_timeout(
    simulator: Simulator, server: ComfyServer, workflows: Mapping[str, Workflow]
) -> None:
    """If nothing responds at COMFYUI_URL, the boot fails after COMFYUI_READY_TIMEOUT_S."""
    settings = external_settings(simulator, COMFYUI_READY_TIMEOUT_S="1")
    simulator.stop()
    begun_at = time.monotonic()
    with pytest.raises(JobError, match="was not ready after 1 s") as info:
        boot_external(settings, server, workflows)

    assert info.value.code is ErrorCode.COMFYUI_UNAVAILABLE
    assert 1 <= time.monotonic() - begun_at < 25


def test_a_comfyui_that_starts_slowly_is_waited_for(
    simulator: Simulator, server: ComfyServer, workflows: Mapping[str, Workflow]
) -> None:
    """The boot succeeds although ComfyUI refuses connections and returns 500 at first."""
    simulator.faults.respond_500("/system_stats", times=2)
    simulator.faults.respond_500("/models", times=2)
    simulator.faults.refuse_connections(0.5)
    boot_external(external_settings(simulator), server, workflows)

    assert ("GET", "/models/vae") in simulator.requests


def test_a_model_that_an_external_comfyui_lacks_is_named(workflows: Mapping[str, Workflow]) -> None:
    """If an external ComfyUI lacks a model, the error names the model."""
    with Simulator(models={"vae": ()}) as simulator:
        server = ComfyServer(simulator.url)
        with pytest.raises(ModelsMissing, match=r"does not list vae/ae\.safetensors\."):
            boot_external(external_settings(simulator), server, workflows)
        server.close()


def test_the_worker_s_own_comfyui_boots(
    make_boot: Callable[..., OwnComfyBoot], workflows: Mapping[str, Workflow], caplog: pytest.LogCaptureFixture
) -> None:
    """The worker's own ComfyUI finds the baked models and is available.

    The boot times are in order, and ComfyUI's output is not logged at INFO.
    """
    own = make_boot(workflows)
    put_models(own.directory / "baked")
    with caplog.at_level(logging.INFO):
        own.boot.begin()
        own.boot.finish()

    assert own.boot.process is not None
    own.boot.process.await_available(lambda: None)
    [steps] = [record.__dict__["boot_s"] for record in caplog.records if record.getMessage() == "booted"]
    assert list(steps) == ["models", "comfyui_started", "comfyui_ready", "total"]
    assert sorted(steps.values()) == list(steps.values())
    assert "To see the GUI" not in caplog.text
    assert any("To see the GUI" in line for line in own.boot.process.log.lines())
    made = sorted(path.name for path in data_directory(own.directory).iterdir())
    assert made == ["input", "output", "temp", "user", "worker"]


def test_a_missing_model_is_named_before_comfyui_starts(
    make_boot: Callable[..., OwnComfyBoot], workflows: Mapping[str, Workflow]
) -> None:
    """`begin` starts no ComfyUI. `finish` raises the error: the missing models, the folders and the remedies."""
    own = make_boot(workflows)
    put_models(own.directory / "baked", "vae/ae.safetensors", "text_encoders/clip_l.safetensors")
    own.boot.begin()

    assert own.boot.process is None
    with pytest.raises(ModelsMissing) as info:
        own.boot.finish()
    message = str(info.value)
    assert message.startswith(
        "Models not found: diffusion_models/flux1-dev-fp8.safetensors, text_encoders/t5xxl_fp8_e4m3fn"
    )
    assert "ae.safetensors" not in message
    assert all(remedy in message for remedy in ("volume/models", "WORKER_FETCH_MODELS=true", "contains the weights"))
    assert f"{own.directory}/baked, " in message
    assert f"{own.directory}/volume/ComfyUI/models (does not exist)" in message


@pytest.mark.parametrize("configured_in", ["its own file", "its arguments"])
def test_a_comfyui_with_its_own_model_folders_is_queried(
    make_boot: Callable[..., OwnComfyBoot], workflows: Mapping[str, Workflow], configured_in: str
) -> None:
    """If a file or an argument of ComfyUI may add model folders, ComfyUI is started, and its models are checked."""
    arguments = "--extra-model-paths-config other.yaml" if configured_in == "its arguments" else ""
    own = make_boot(workflows, COMFYUI_ARGS=arguments)
    (own.directory / "other.yaml").write_text("{}")
    if not arguments:
        (own.directory / "extra_model_paths.yaml").write_text("{}")
    own.boot.begin()

    assert own.boot.process is not None
    with pytest.raises(ModelsMissing, match="ComfyUI does not list diffusion_models/flux1"):
        own.boot.finish()


def test_a_data_folder_that_cannot_be_written_is_named(
    make_boot: Callable[..., OwnComfyBoot], workflows: Mapping[str, Workflow]
) -> None:
    """The error names COMFYUI_DATA_DIR and the folder, and ComfyUI is not started."""
    own = make_boot(workflows)
    data_directory(own.directory).write_text("a file in the way")
    with pytest.raises(ConfigError, match=r"COMFYUI_DATA_DIR: .*/data/input cannot be written .*/tmp/comfyui"):
        own.boot.begin()

    assert own.boot.process is None


def test_cached_models_are_linked_and_listed(
    make_boot: Callable[..., OwnComfyBoot], workflows: Mapping[str, Workflow], caplog: pytest.LogCaptureFixture
) -> None:
    """Models in a Hugging Face cache on the volume are linked, ComfyUI lists them, and it gets --disable-mmap."""
    own = make_boot(workflows)
    hub = own.directory / "volume" / "huggingface-cache" / "hub"
    put_models(hub / "models--org--flux" / "snapshots" / "abc")
    with caplog.at_level(logging.DEBUG, "worker"):
        own.boot.begin()
        own.boot.finish()

    assert own.server.models("vae") == ["ae.safetensors"]
    assert "using vae/ae.safetensors from" in caplog.text
    assert "--disable-mmap" in caplog.text
    link = data_directory(own.directory) / "models" / "vae" / "ae.safetensors"
    assert link.resolve().is_relative_to(hub)


def test_a_failed_model_download_fails_the_boot(
    make_boot: Callable[..., OwnComfyBoot], workflows: Mapping[str, Workflow], caplog: pytest.LogCaptureFixture
) -> None:
    """With WORKER_FETCH_MODELS=true ComfyUI starts during the download. If the download fails, ComfyUI is stopped."""
    with ModelServer() as hub:
        own = make_boot(workflows, WORKER_FETCH_MODELS="true", HF_ENDPOINT=hub.url)
        put_models(own.directory / "baked", *(model.path for model in MODELS if not model.path.startswith("vae/")))
        with caplog.at_level(logging.INFO):
            own.boot.begin()
            assert own.boot.process is not None
            with pytest.raises(ModelsMissing, match=r"1 of 1 models .*vae/ae.safetensors: .* returned 404") as info:
                own.boot.finish()

    assert "Correct the URL" in str(info.value)
    assert f"downloading vae/ae.safetensors into {own.directory}/baked: 0.34 GB" in caplog.text
    assert own.boot.process.start_error() is not None


def test_an_invalid_setting_ends_a_running_download(
    make_boot: Callable[..., OwnComfyBoot], workflows: Mapping[str, Workflow]
) -> None:
    """If `begin` fails because of an invalid setting, the running download ends without the model."""
    vae = next(model for model in MODELS if model.path == "vae/ae.safetensors")
    path = vae.url.removeprefix("https://huggingface.co")
    with ModelServer() as hub:
        hub.put(path, bytes(vae.size))
        hold = hub.hold(path, 1)
        own = make_boot(workflows, WORKER_FETCH_MODELS="true", HF_ENDPOINT=hub.url, COMFYUI_PYTHON="/no/python")
        put_models(own.directory / "baked", *(model.path for model in MODELS if model != vae))
        with pytest.raises(ConfigError, match="COMFYUI_PYTHON"):
            own.boot.begin()
        hold.release()

        assert until(lambda: not [thread for thread in threading.enumerate() if thread.name == "model-fetch"])
        assert not (own.directory / "baked" / vae.path).exists()


def test_no_writable_folder_for_downloads_is_an_error(
    make_boot: Callable[..., OwnComfyBoot], workflows: Mapping[str, Workflow]
) -> None:
    """If neither the models folder nor a volume can be written, the error names the variables and the folders."""
    own = make_boot(workflows, WORKER_FETCH_MODELS="true")
    (own.directory / "baked").write_text("a file in the way")
    with pytest.raises(ConfigError, match=r"WORKER_FETCH_MODELS: neither WORKER_MODELS_DIR .*/volume\) can be written"):
        own.boot.begin()


def test_each_required_model_is_listed_once(workflows: Mapping[str, Workflow]) -> None:
    """Each model of the workflows is required once, as folder/file."""
    models = required_models(workflows)

    assert "vae/ae.safetensors" in models
    assert len(models) == len(set(models))


def test_begin_starts_comfyui_and_finish_is_quick_once_it_runs(
    make_boot: Callable[..., OwnComfyBoot], workflows: Mapping[str, Workflow]
) -> None:
    """`begin` starts ComfyUI and returns; once ComfyUI runs, `finish` returns."""
    own = make_boot(workflows)
    put_models(own.directory / "baked")
    own.boot.begin()
    process = own.boot.process
    assert process is not None
    assert until(lambda: any("To see the GUI" in line for line in process.log.lines()))
    begun_at = time.monotonic()
    own.boot.finish()

    assert time.monotonic() - begun_at < 30


def test_a_silent_server_does_not_exceed_the_boot_timeout(workflows: Mapping[str, Workflow]) -> None:
    """COMFYUI_READY_TIMEOUT_S also ends a request to a server that never responds."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        server = ComfyServer(url)
        begun_at = time.monotonic()
        with pytest.raises(JobError, match="was not ready after 1 s"):
            boot_external(Settings.from_env({"COMFYUI_URL": url, "COMFYUI_READY_TIMEOUT_S": "1"}), server, workflows)
        server.close()

    assert 1 <= time.monotonic() - begun_at < 25
