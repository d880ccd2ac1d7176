"""Models at boot: found, or downloaded, to the volume if there is one; errors, timeouts and log lines."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.worker_setup import make_comfyui
from comfy_core.error_codes import ErrorCode
from comfy_core.errors import JobError
from simulators.hugging_face import ModelServer
from simulators.waiting import until
from tests.core.models.conftest import ModelSetup, Served
from worker.comfyui_process import ModelsMissing
from worker.models.manager import ModelFetch, ModelManager
from worker.settings import Settings

pytestmark = pytest.mark.slow
SIZE = 1_000_000


@pytest.fixture
def models() -> Iterator[ModelSetup]:
    """A simulated Hugging Face server without files."""
    with ModelServer() as server:
        yield ModelSetup(server)


def manager_of(base: Path, models: ModelSetup, *served: Served, **environment: str) -> ModelManager:
    """Return the model manager of a worker in `base` whose models.txt lists the served models."""
    settings = Settings.from_env({**make_comfyui(base), "WORKER_FETCH_MODELS": "true", **environment})
    listed = [each.model for each in served]
    return ModelManager(settings, [model.path for model in listed], listed, models.hub)


def download_all(manager: ModelManager) -> None:
    """Begin the downloads of missing models, and wait for their end."""
    manager.begin()
    manager.await_all(lambda: None)


@pytest.mark.parametrize(
    ("volume", "folder"),
    [("", "baked"), ("volume", "volume/models"), ("volume/ComfyUI/models", "volume/ComfyUI/models")],
)
def test_a_missing_model_is_downloaded_to_persistent_storage(
    tmp_path: Path, models: ModelSetup, volume: str, folder: str
) -> None:
    """The model is downloaded to the volume if there is one, else to the baked folder; the next boot finds it there."""
    (tmp_path / volume).mkdir(parents=True, exist_ok=True)
    vae = models.put()
    manager = manager_of(tmp_path, models, vae)
    download_all(manager)

    assert (tmp_path / folder / "vae/ae.safetensors").read_bytes() == vae.content
    assert str(tmp_path / folder / "vae") in manager.paths_config()
    assert manager.is_on_volume == bool(volume)
    second = manager_of(tmp_path, models, vae)
    download_all(second)
    assert not second.is_fetching
    assert len(models.server.received) == 1


def test_an_existing_model_is_not_downloaded(tmp_path: Path, models: ModelSetup) -> None:
    """Of two models only the missing one is requested."""
    vae, clip = models.put(), models.put("text_encoders/clip_l.safetensors")
    place = tmp_path / "volume/comfyui/models/vae/ae.safetensors"
    place.parent.mkdir(parents=True)
    place.write_bytes(vae.content)
    download_all(manager_of(tmp_path, models, vae, clip))

    assert [request.path for request in models.server.received] == [clip.path]


def test_a_download_takes_precedence_over_a_file_of_another_size(tmp_path: Path, models: ModelSetup) -> None:
    """A file of another size is kept, but the downloaded one is linked where ComfyUI looks first."""
    vae = models.put()
    wrong = tmp_path / "models/vae/ae.safetensors"
    wrong.parent.mkdir(parents=True)
    wrong.write_bytes(b"another")
    download_all(manager_of(tmp_path, models, vae))

    assert wrong.read_bytes() == b"another"
    assert (tmp_path / "data/models/vae/ae.safetensors").read_bytes() == vae.content


def test_a_workflow_s_model_that_is_not_in_models_txt_is_missing(tmp_path: Path, models: ModelSetup) -> None:
    """A workflow's model that is not in models.txt has no URL: `begin` raises ModelsMissing, and downloads nothing."""
    vae = models.put()
    settings = Settings.from_env({**make_comfyui(tmp_path), "WORKER_FETCH_MODELS": "true"})
    manager = ModelManager(settings, ["loras/own.safetensors"], [vae.model], models.hub)
    with pytest.raises(ModelsMissing, match=r"^Models not found: loras/own\.safetensors\."):
        manager.begin()

    assert models.server.received == []


def test_a_dead_comfyui_ends_the_download(tmp_path: Path, models: ModelSetup) -> None:
    """If ComfyUI has died, its error ends the wait, and the partial file is kept."""
    vae = models.put()
    hold = models.server.hold(vae.path, SIZE // 2)
    manager = manager_of(tmp_path, models, vae)
    manager.begin()
    assert hold.reached.wait(60)
    part = tmp_path / "baked/vae/ae.safetensors.part"
    assert until(lambda: part.exists() and part.stat().st_size)
    release_timer = threading.Timer(0.5, hold.release)
    release_timer.start()
    with pytest.raises(JobError, match="it died"):
        manager.await_all(lambda: JobError.because(ErrorCode.COMFYUI_UNAVAILABLE, "it died"))
    release_timer.join()

    assert part.stat().st_size


def test_progress_is_logged(tmp_path: Path, models: ModelSetup, caplog: pytest.LogCaptureFixture) -> None:
    """While a download runs, its progress is logged at an interval; its end is logged too."""
    vae = models.put()
    hold = models.server.hold(vae.path, SIZE // 2)
    fetch = ModelFetch([vae.model], tmp_path, models.hub, 60, log_every_s=0.2)
    with caplog.at_level(logging.INFO):
        fetch.start()
        ended = threading.Thread(target=fetch.await_end, args=(lambda: None,))
        ended.start()
        assert until(lambda: "downloading models: 0.00 of 0.00 GB" in caplog.text)
        hold.release()
        ended.join()

    assert "models downloaded in" in caplog.text


def test_a_download_times_out(tmp_path: Path, models: ModelSetup) -> None:
    """After the timeout the error names the time and the variables to set."""
    vae = models.put()
    hold = models.server.hold(vae.path, SIZE // 2)
    fetch = ModelFetch([vae.model], tmp_path, models.hub, 0.5)
    fetch.start()
    release_timer = threading.Timer(1, hold.release)
    release_timer.start()
    with pytest.raises(
        ModelsMissing, match=r"not downloaded within 0.5 s .*WORKER_FETCH_TIMEOUT_S.*RUNPOD_INIT_TIMEOUT"
    ):
        fetch.await_end(lambda: None)
    release_timer.join()


def test_wrong_content_is_reported_with_both_hashes(tmp_path: Path, models: ModelSetup) -> None:
    """Wrong content is ModelsMissing with the downloader's message, which has both hashes."""
    vae = models.put(served=bytes(SIZE))
    with pytest.raises(ModelsMissing, match=r"vae/ae.safetensors: wrong bytes: sha256 \w{64} was expected, \w{64}"):
        download_all(manager_of(tmp_path, models, vae))
