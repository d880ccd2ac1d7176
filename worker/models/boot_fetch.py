"""Downloads missing models at boot (WORKER_FETCH_MODELS), in a thread, while ComfyUI starts."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from comfy_core.errors import JobError
from worker.comfyui_process import ModelsMissing
from worker.models.download import fetch_models
from worker.models.listing import ModelFile, ModelsError
from worker.models.source import Hub

LOG_EVERY_S = 10.0
_POLL_S = 0.1
_STOP_S = 5.0

log = logging.getLogger(__name__)


class ModelFetch:
    """One download of several models. Call `start`, then `await_end`; `stop` ends it early and keeps partial files."""

    def __init__(
        self,
        models: Sequence[ModelFile],
        directory: Path,
        hub: Hub,
        timeout_s: float,
        *,
        log_every_s: float = LOG_EVERY_S,
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
        """Request the download to end."""
        self._stop.set()

    def await_end(self, failed: Callable[[], JobError | None]) -> None:
        """Return when all models are present. Progress is logged every ten seconds.

        Raises ModelsMissing with the error of each model, or after the time limit; or the error that `failed` returns,
        after stopping the download.
        """
        logged_at = time.monotonic()
        while not self._ended.wait(_POLL_S):
            now = time.monotonic()
            error = failed()
            is_late = now - self._begun_at > self._timeout_s
            if error is not None or is_late:
                self._stop.set()
                self._ended.wait(_STOP_S)
                raise error or ModelsMissing(self._late())
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

    def _note(self, model: ModelFile, size: int) -> None:
        self._sizes[model.path] = size

    def _gigabytes(self) -> float:
        return sum(model.size for model in self._models) / 1e9

    def _progress(self) -> str:
        came = sum(list(self._sizes.values()))
        took_s = time.monotonic() - self._begun_at
        return f"{came / 1e9:.2f} of {self._gigabytes():.2f} GB, {came / 1e6 / took_s:.0f} MB/s"

    def _late(self) -> str:
        return (
            f"The models were not downloaded within {self._timeout_s:g} s ({self._progress()}). Partial downloads in "
            f"{self._directory} are resumed if that folder persists. Raise WORKER_FETCH_TIMEOUT_S and the endpoint's "
            "RUNPOD_INIT_TIMEOUT, or put the models on a network volume or into the image"
        )
