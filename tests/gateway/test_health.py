"""`GET /health`: 503 while nothing can be stored and while the shim drains, and 200 if only the endpoint is gone."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import threading
from contextlib import closing
from pathlib import Path

import pytest
import requests

from bench.shim_process import KEY, SECRET, ShimProcess
from comfy_client.gateway.health import PROBE_BYTES, HealthMonitor, storage_error
from comfy_client.gateway.scenario.metrics import ShimMetrics
from comfy_client.gateway.scenario.store import Store
from comfy_client.providers.interface import Health
from comfy_core.contract import JsonObject
from comfy_core.errors import RequestError
from simulators.runpod.queue_api import RunPodPlatform
from simulators.waiting import until
from tests.needs import small_disk


def health(shim: ShimProcess) -> requests.Response:
    """Return the response of /health."""
    return requests.get(f"{shim.url}/health", timeout=60)


def unreachable() -> Health:
    """Fail as an endpoint that does not respond."""
    raise RequestError("no response")


async def reported(monitor: HealthMonitor, status: int, endpoint: str) -> JsonObject:
    """Wait until the monitor reports this, and return the body."""
    async with asyncio.timeout(60):
        while True:
            found, body = monitor.report()
            if (found, body["endpoint"]) == (status, endpoint):
                return body
            await asyncio.sleep(0.01)


def test_the_store_decides_and_the_endpoint_does_not(tmp_path: Path) -> None:
    """While another program locks the database, the status is 503. An endpoint that is gone is only named."""

    async def run(store: Store) -> JsonObject:
        metrics = ShimMetrics(store.file)
        async with HealthMonitor(store.file, unreachable, metrics, store_check_s=0.01) as monitor:
            await reported(monitor, 200, "unreachable")
            with closing(sqlite3.connect(store.file, isolation_level=None)) as other:
                other.execute("BEGIN IMMEDIATE")
                body = await reported(monitor, 503, "unreachable")
            await reported(monitor, 200, "unreachable")
        return body

    with closing(Store(tmp_path)) as store:
        body = asyncio.run(run(store))

    assert body["status"] == "unavailable"
    assert body["reason"] == "the shim cannot write to its folder"


def test_the_end_does_not_wait_for_the_endpoint(tmp_path: Path) -> None:
    """The end of the shim does not wait until a check of an endpoint that does not respond has ended."""
    checked, responds, ended = threading.Event(), threading.Event(), threading.Event()

    def silent() -> Health:
        checked.set()
        responds.wait(60)
        ended.set()
        raise RequestError("no response")

    async def run(store: Store) -> None:
        async with HealthMonitor(store.file, silent, ShimMetrics(store.file)):
            await asyncio.to_thread(checked.wait, 60)

    with closing(Store(tmp_path)) as store:
        asyncio.run(run(store))

    assert checked.is_set()
    assert not ended.is_set()
    responds.set()
    assert until(ended.is_set)


def test_a_full_disk_cannot_store(tmp_path: Path) -> None:
    """A disk with less space than an image is an error, and no error when there is space again."""
    with small_disk(tmp_path / "small", "3m") as disk, closing(Store(disk)) as store:
        assert storage_error(store.file) is None
        filler = disk / "filler"
        with filler.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, 3 * 1024 * 1024 - PROBE_BYTES)
        assert storage_error(store.file) is not None
        filler.unlink()
        assert storage_error(store.file) is None


@pytest.mark.slow
def test_a_stopping_shim_is_503_and_serves_until_it_ends(platform: RunPodPlatform, tmp_path: Path) -> None:
    """After SIGTERM, /health is 503 and other calls succeed, each on a last connection; a second SIGTERM ends it."""
    with ShimProcess({**platform.client_env(), "SCENARIO_SHIM_DRAIN_S": "120"}, tmp_path / "shim") as shim:
        os.kill(shim.process_id, signal.SIGTERM)
        assert until(lambda: health(shim).status_code == 503)
        stopping = health(shim)
        jobs = requests.get(f"{shim.base_url}/jobs", auth=(KEY, SECRET), timeout=60)

        assert stopping.json()["reason"] == "the shim is stopping"
        assert jobs.status_code == 200
        assert jobs.headers["connection"] == "close"
        assert shim.stop() == 0


@pytest.mark.slow
def test_a_drained_shim_ends_by_itself(platform: RunPodPlatform, tmp_path: Path) -> None:
    """A shim ends with status 0 when SCENARIO_SHIM_DRAIN_S is over."""
    with ShimProcess({**platform.client_env(), "SCENARIO_SHIM_DRAIN_S": "0.2"}, tmp_path / "shim") as shim:
        assert shim.stop() == 0
