"""The shim as a Python class, without an HTTP server.

with ScenarioShim.from_env() as shim:
    job = shim.generate_txt2img({"prompt": "a pixel art knight"})["job"]
    done = shim.wait_for_job(job["jobId"])
    shim.download_asset(done["metadata"]["assetIds"][0], "knight.png")
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Coroutine, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from comfy_client.client import Client, client_from_env
from comfy_client.gateway.scenario.blobs import Blobs, make_blobs
from comfy_client.gateway.scenario.fields import BASE_MODELS
from comfy_client.gateway.scenario.models import IN_PROCESS_OWNER
from comfy_client.gateway.scenario.service import ShimService
from comfy_client.gateway.scenario.settings import ShimSettings
from comfy_client.input_images import ImageInput, image_text
from comfy_client.providers.scenario_responses import Status
from comfy_core.contract import JsonObject
from comfy_core.errors import WaitTimeout

if TYPE_CHECKING:
    from typing import Self

_Result = TypeVar("_Result")
SHIM_POLL_S = 0.1
TIMEOUT_S = 600.0
SHIM_START_TIMEOUT_S = 30.0


class ScenarioShim:
    """Scenario's API as methods, with Scenario's request and response fields. Thread-safe.

    Use it in a `with` block, or call `close`. Unfinished jobs continue when a shim is next started with the same data
    folder. Only one process can use a data folder at a time; in a second one, the constructor raises ConfigError.
    """

    def __init__(self, client: Client, settings: ShimSettings, blobs: Blobs | None = None) -> None:
        self._client = client
        self._service = ShimService(
            client,
            settings,
            blobs or make_blobs(settings.directory, settings.bucket),
            url_of=lambda asset_id: f"asset:{asset_id}",
            part_of=lambda *_: ("", 0.0),
        )
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="scenario-shim", daemon=True)
        self._thread.start()
        try:
            self._run(self._service.__aenter__(), SHIM_START_TIMEOUT_S)
        except BaseException:
            self._service.close()
            self._end_loop()
            raise

    @classmethod
    def from_env(cls, environment: Mapping[str, str] | None = None) -> Self:
        """Return a shim configured by `environment` (default: `os.environ`). Raises ConfigError."""
        environment = os.environ if environment is None else environment
        settings = ShimSettings.from_env(environment)
        return cls(client_from_env(environment), settings)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Wait for submits in progress, stop the shim, and close the client."""
        if not self._thread.is_alive():
            return
        self._run(self._service.__aexit__(None, None, None))
        self._end_loop()
        self._client.close()

    def _end_loop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.run_until_complete(self._loop.shutdown_default_executor())
        self._loop.close()

    def generate_txt2img(self, body: Mapping[str, Any]) -> JsonObject:
        """Start a job (`POST /generate/txt2img`) and return the response: `{"job": …, "creativeUnitsCost": …}`.

        `modelId` defaults to Flux.1-dev. Raises ShimError with all faults.
        """
        return self._generate("txt2img", body)

    def generate_img2img(self, body: Mapping[str, Any]) -> JsonObject:
        """Start a job (`POST /generate/img2img`). `image` is an asset id, a data URL or an https URL."""
        return self._generate("img2img", body)

    def upload_asset(self, image: ImageInput, name: str = "picture.png") -> JsonObject:
        """Store an image (a path, bytes, PIL image or base64) and return its asset. Raises JobError, ShimError."""
        body = {"name": name, "image": image_text(image, "image")}
        return self._asset(self._run(self._service.assets.upload(IN_PROCESS_OWNER, body)))

    def get_job(self, job_id: str) -> JsonObject:
        """Return a job. Raises ShimError (404)."""
        return self._unwrapped(self._run(self._service.job(IN_PROCESS_OWNER, job_id)), "job")

    def wait_for_job(self, job_id: str, timeout_s: float = TIMEOUT_S) -> JsonObject:
        """Wait until a job has ended and return it. Check its `status`: the job may have failed.

        Raises ShimError (404), or WaitTimeout after `timeout_s`. The job continues after a WaitTimeout.
        """
        deadline = time.monotonic() + timeout_s
        pause = threading.Event()
        while not Status((job := self.get_job(job_id))["status"]).is_final:
            if time.monotonic() > deadline:
                raise WaitTimeout(f"Job {job_id} has not ended after {timeout_s:g} s ({job['status']})", job_id)
            pause.wait(SHIM_POLL_S)
        return job

    def cancel_job(self, job_id: str) -> JsonObject:
        """Cancel a job and return it. Raises ShimError (404)."""
        return self._unwrapped(self._run(self._service.act(IN_PROCESS_OWNER, job_id, {"action": "cancel"})), "job")

    def get_asset(self, asset_id: str) -> JsonObject:
        """Return an asset. Its `url` cannot be fetched: use `download_asset`. Raises ShimError (404)."""
        return self._asset(self._run(self._service.assets.get(IN_PROCESS_OWNER, asset_id)))

    def download_asset(self, asset_id: str, path: str | os.PathLike[str] | None = None) -> bytes:
        """Return an asset's image, and write it to `path` if given. Raises ShimError (404), OSError."""
        self.get_asset(asset_id)
        image = self._run(self._service.assets.image(asset_id))
        if path is not None:
            Path(path).write_bytes(image.data)
        return image.data

    def _generate(self, route: str, body: Mapping[str, Any]) -> JsonObject:
        return self._run(self._service.generate(IN_PROCESS_OWNER, route, {"modelId": BASE_MODELS[0], **body}))

    def _asset(self, response: JsonObject) -> JsonObject:
        return self._unwrapped(response, "asset")

    def _unwrapped(self, response: JsonObject, name: str) -> JsonObject:
        record: JsonObject = response[name]
        return record

    def _run(self, work: Coroutine[Any, Any, _Result], timeout_s: float | None = None) -> _Result:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout_s)
