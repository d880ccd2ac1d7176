"""Models at boot: found or downloaded, to the volume if there is one, and errors otherwise."""

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
from tests.worker.models.conftest import ModelSetup, Served
from worker.comfyui_process import ModelsMissing
from worker.models.manager import ModelFetch, ModelManager
from worker.settings import Settings

pytestmark = pytest.mark.slow
SIZE = 1_000_000


@pytest.fixture
def models() -> Iterator[ModelSetup]:
    """The simulator of Hugging Face."""
    with ModelServer() as server:
        yield ModelSetup(server)


def manager_of(base: Path, models: ModelSetup, *served: Served, **environment: str) -> ModelManager:
    """Return the model manager of a worker in `base` whose models.txt lists the served models."""
    settings = Settings.from_env({**make_comfyui(base), "WORKER_FETCH_MODELS": "true", **environment})
    listed = [each.model for each in served]
    return ModelManager(settings, [model.path for model in listed], listed, models.hub)


def download_all(supply: ModelManager) -> None:
    """Download what is missing and wait for it."""
    supply.begin()
    supply.await_all(lambda: None)


@pytest.mark.parametrize(
    ("volume", "place"),
    [("", "baked"), ("volume", "volume/models"), ("volume/ComfyUI/models", "volume/ComfyUI/models")],
)
def test_a_missing_model_is_downloaded_to_persistent_storage(
    tmp_path: Path, models: ModelSetup, volume: str, place: str
) -> None:
    """The download goes to the volume if there is one; the next boot finds it there without a request."""
    (tmp_path / volume).mkdir(parents=True, exist_ok=True)
    vae = models.put()
    supply = manager_of(tmp_path, models, vae)
    download_all(supply)

    assert (tmp_path / place / "vae/ae.safetensors").read_bytes() == vae.content
    assert str(tmp_path / place / "vae") in supply.paths_config()
    assert supply.is_on_volume == bool(volume)
    second = manager_of(tmp_path, models, vae)
    download_all(second)
    assert not second.is_fetching
    assert len(models.server.received) == 1


def test_an_existing_model_is_not_downloaded(tmp_path: Path, models: ModelSetup) -> None:
    """Only the missing model of two is requested."""
    vae, clip = models.put(), models.put("text_encoders/clip_l.safetensors")
    place = tmp_path / "volume/comfyui/models/vae/ae.safetensors"
    place.parent.mkdir(parents=True)
    place.write_bytes(vae.content)
    download_all(manager_of(tmp_path, models, vae, clip))

    assert [request.path for request in models.server.received] == [clip.path]


def test_a_download_takes_precedence_over_a_file_of_another_size(tmp_path: Path, models: ModelSetup) -> None:
    """The downloaded file is linked in front of one of another size that ComfyUI would find first."""
    vae = models.put()
    wrong = tmp_path / "models/vae/ae.safetensors"
    wrong.parent.mkdir(parents=True)
    wrong.write_bytes(b"another")
    download_all(manager_of(tmp_path, models, vae))

    assert wrong.read_bytes() == b"another"
    assert (tmp_path / "data/models/vae/ae.safetensors").read_bytes() == vae.content


def test_a_workflow_s_model_that_is_not_in_models_txt_is_missing(tmp_path: Path, models: ModelSetup) -> None:
    """The model is not listed, so nothing is downloaded."""
    vae = models.put()
    settings = Settings.from_env({**make_comfyui(tmp_path), "WORKER_FETCH_MODELS": "true"})
    supply = ModelManager(settings, ["loras/own.safetensors"], [vae.model], models.hub)
    with pytest.raises(ModelsMissing, match=r"^Models not found: loras/own\.safetensors\."):
        supply.begin()

    assert models.server.received == []


def test_a_dead_comfyui_ends_the_download(tmp_path: Path, models: ModelSetup) -> None:
    """The download stops if ComfyUI has died; the partial file is kept."""
    vae = models.put()
    hold = models.server.hold(vae.path, SIZE // 2)
    supply = manager_of(tmp_path, models, vae)
    supply.begin()
    assert hold.reached.wait(30)
    part = tmp_path / "baked/vae/ae.safetensors.part"
    assert until(lambda: part.exists() and part.stat().st_size)
    releasing = threading.Timer(0.5, hold.release)
    releasing.start()
    with pytest.raises(JobError, match="it died"):
        supply.await_all(lambda: JobError.because(ErrorCode.COMFYUI_UNAVAILABLE, "it died"))
    releasing.join()

    assert part.stat().st_size


def test_progress_is_logged(tmp_path: Path, models: ModelSetup, caplog: pytest.LogCaptureFixture) -> None:
    """A log line every few seconds, and no bars."""
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
    """After WORKER_FETCH_TIMEOUT_S the error has the progress and the variables to set."""
    vae = models.put()
    hold = models.server.hold(vae.path, SIZE // 2)
    fetch = ModelFetch([vae.model], tmp_path, models.hub, 0.5)
    fetch.start()
    releasing = threading.Timer(1, hold.release)
    releasing.start()
    with pytest.raises(
        ModelsMissing, match=r"not downloaded within 0.5 s .*WORKER_FETCH_TIMEOUT_S.*RUNPOD_INIT_TIMEOUT"
    ):
        fetch.await_end(lambda: None)
    releasing.join()


def test_wrong_content_is_reported_with_both_hashes(tmp_path: Path, models: ModelSetup) -> None:
    """Wrong content fails the boot with the downloader's error, which has both hashes."""
    vae = models.put(served=bytes(SIZE))
    with pytest.raises(ModelsMissing, match=r"vae/ae.safetensors: wrong bytes: sha256 \w{64} was expected, \w{64}"):
        download_all(manager_of(tmp_path, models, vae))
