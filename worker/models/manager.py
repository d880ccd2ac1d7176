"""Finds or downloads the models of the worker's own ComfyUI, and links those that ComfyUI would not find."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from comfy_core.errors import ConfigError, JobError
from comfy_core.models.download import fetch_models
from comfy_core.models.listing import ModelFile, ModelsError, WantedFile
from comfy_core.models.source import Hub
from worker.comfyui_process import ModelsMissing
from worker.models.locations import (
    LocatedModels,
    ModelLocations,
    download_directory,
    is_on_volume,
    link,
    locate,
    missing_message,
    model_locations,
    paths_config,
)
from worker.settings import Settings

_MODEL_FOLDER_FLAGS = ("--extra-model-paths-config", "--base-directory", "--models-directory")
"""Flags in COMFYUI_ARGS that give ComfyUI further model folders, which this module does not search."""

_LOG_EVERY_S = 10.0
_POLL_S = 0.1
_STOP_S = 5.0

log = logging.getLogger(__name__)


class ModelManager:
    """Provides the models of one worker.

    Args:
        settings: the settings of a worker with its own ComfyUI.
        needed: the models that the workflows load, as `folder/file`.
        listed: the models of models.txt.
        hub: the server to download from.
    """

    def __init__(self, settings: Settings, needed: Sequence[str], listed: Sequence[ModelFile], hub: Hub) -> None:
        assert settings.comfyui_directory is not None  # noqa: S101 - see the docstring
        assert settings.comfyui_data_directory is not None  # noqa: S101 - see the docstring
        self._settings = settings
        self._comfyui, self._data = settings.comfyui_directory, settings.comfyui_data_directory
        self._needed = tuple(needed)
        self._listed = tuple(listed)
        self._hub = hub
        self._fetch: ModelFetch | None = None
        self._fetches_to_volume = False
        self._found = self._locations(), LocatedModels({}, {}, self._needed, (), ())

    @property
    def is_fetching(self) -> bool:
        """Whether a download was started."""
        return self._fetch is not None

    @property
    def is_on_volume(self) -> bool:
        """Whether models are read from the network volume."""
        locations, located = self._found
        return self._fetches_to_volume or is_on_volume(located, locations)

    def paths_config(self) -> str:
        """Return the text of the extra_model_paths.yaml for ComfyUI."""
        return paths_config(self._found[0])

    def begin(self) -> None:
        """Locate the models, create links, and start to download missing ones if enabled.

        Raises ModelsMissing if a workflow's model is not found and will not be downloaded, ConfigError if links or
        downloads cannot be written.
        """
        settings = self._settings
        located = self._locate()
        missing_paths = {*located.missing, *located.wrong}
        to_fetch = [model for model in self._listed if settings.fetch_models and model.path in missing_paths]
        fetched = {model.path for model in to_fetch}
        self._require_found([model for model in located.missing if model in self._needed and model not in fetched])
        if not to_fetch:
            return
        target = download_directory(settings.models_directory, settings.volume_directory)
        if target is None:
            raise ConfigError(
                f"WORKER_FETCH_MODELS: neither WORKER_MODELS_DIR ({settings.models_directory}) nor a volume at "
                f"WORKER_VOLUME_DIR ({settings.volume_directory}) can be written. Attach a network volume, or set one "
                "to a folder that this user can write"
            )
        self._found = self._locations(), located  # `target` may have been created
        self._fetches_to_volume = target.is_relative_to(settings.volume_directory)
        self._fetch = ModelFetch(to_fetch, target, self._hub, settings.fetch_timeout_s)
        self._fetch.start()

    def await_all(self, find_error: Callable[[], JobError | None]) -> None:
        """Return when all downloads have ended and all needed models are present.

        Raises ModelsMissing, or the error that `find_error` returns.
        """
        if self._fetch is None:
            return
        self._fetch.await_end(find_error)
        located = self._locate()
        self._require_found([model for model in located.missing if model in self._needed])

    def stop(self) -> None:
        """Stop a running download; partial files are kept."""
        if self._fetch is not None:
            self._fetch.stop()

    def _locations(self) -> ModelLocations:
        settings = self._settings
        return model_locations(
            comfyui=self._comfyui,
            data=self._data,
            models=settings.models_directory,
            volume=settings.volume_directory,
            cache=settings.model_cache_directory,
            revision=settings.model_revision,
        )

    def _locate(self) -> LocatedModels:
        locations = self._locations()
        located = locate(
            [*self._needed, *(model.path for model in self._listed)],
            {model.path: model.size for model in self._listed},
            locations,
        )
        self._found = locations, located
        for remark in (*located.remarks, *link(located, locations)):
            log.warning(remark)
        for model, file in located.links.items():
            log.info("using %s from %s", model, file)
        return located

    def _require_found(self, missing: Sequence[str]) -> None:
        """Raise ModelsMissing for `missing`, unless ComfyUI has further model folders that are not searched here."""
        if not missing:
            return
        has_more_folders = any(
            argument.partition("=")[0] in _MODEL_FOLDER_FLAGS for argument in self._settings.comfyui_arguments
        )
        if has_more_folders or (self._comfyui / "extra_model_paths.yaml").exists():
            log.info("not found in the known folders: %s; ComfyUI has more folders", ", ".join(missing))
            return
        raise ModelsMissing(missing_message(missing, self._found[0]))


class ModelFetch:
    """One download of several models, in a thread, while ComfyUI starts.

    Call `start`, then `await_end`. `stop` ends the download early and keeps partial files.
    """

    def __init__(
        self,
        models: Sequence[ModelFile],
        directory: Path,
        hub: Hub,
        timeout_s: float,
        *,
        log_every_s: float = _LOG_EVERY_S,
    ) -> None:
        self._models = models
        self._directory = directory
        self._hub = hub
        self._timeout_s = timeout_s
        self._log_every_s = log_every_s
        self._sizes: dict[str, int] = {}
        self._stop = threading.Event()
        self._ended = threading.Event()
        self._error: ModelsError | None = None
        self._begun_at = 0.0

    def start(self) -> None:
        """Start the download and return immediately."""
        self._begun_at = time.monotonic()
        names = ", ".join(model.path for model in self._models)
        log.info("downloading %s into %s: %.2f GB", names, self._directory, self._gigabytes())
        # A daemon thread, not joined at exit: it may be waiting for a silent server.
        threading.Thread(target=self._run, name="model-fetch", daemon=True).start()

    def stop(self) -> None:
        """Stop the download at its next data or timeout. Does not wait for that."""
        self._stop.set()

    def await_end(self, find_error: Callable[[], JobError | None]) -> None:
        """Return when all models are present. Progress is logged every `log_every_s` seconds.

        Raises ModelsMissing with the error of each model that failed. Stops the download and raises ModelsMissing after
        `timeout_s`, or the error that `find_error` returns.
        """
        logged_at = time.monotonic()
        while not self._ended.wait(_POLL_S):
            now = time.monotonic()
            error = find_error()
            is_late = now - self._begun_at > self._timeout_s
            if error is not None or is_late:
                self._stop.set()
                self._ended.wait(_STOP_S)
                raise error or ModelsMissing(self._timeout_message())
            if now - logged_at >= self._log_every_s:
                logged_at = now
                log.info("downloading models: %s", self._progress())
        if self._error is not None:
            raise ModelsMissing(
                f"{len(self._error.errors)} of {len(self._models)} models were not downloaded. {self._error}"
            ) from self._error
        log.info("models downloaded in %.1f s", time.monotonic() - self._begun_at)

    def _run(self) -> None:
        try:
            fetch_models(self._models, self._directory, self._hub, stop=self._stop, progress=self._note)
        except ModelsError as error:
            self._error = error
        finally:
            self._ended.set()

    def _note(self, model: WantedFile, size: int) -> None:
        self._sizes[model.path] = size

    def _gigabytes(self) -> float:
        return sum(model.size for model in self._models) / 1e9

    def _progress(self) -> str:
        received_bytes = sum(list(self._sizes.values()))
        took_s = time.monotonic() - self._begun_at
        return f"{received_bytes / 1e9:.2f} of {self._gigabytes():.2f} GB, {received_bytes / 1e6 / took_s:.0f} MB/s"

    def _timeout_message(self) -> str:
        return (
            f"The models were not downloaded within {self._timeout_s:g} s ({self._progress()}). Partial downloads in "
            f"{self._directory} are resumed if that folder persists. Raise WORKER_FETCH_TIMEOUT_S and the endpoint's "
            "RUNPOD_INIT_TIMEOUT, or put the models on a network volume or into the image"
        )
