"""The response to `GET /health` for a load balancer, from checks that run in the background.

The shim is unhealthy (503) while it cannot store anything, and after SIGTERM while it still serves requests. An
endpoint that does not respond does not make it unhealthy: without the shim, callers would also lose their jobs, assets
and Scenario.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from comfy_client.gateway.scenario.errors import UNAVAILABLE
from comfy_client.gateway.scenario.metrics import ShimMetrics
from comfy_client.providers.interface import Health
from comfy_core.contract import JsonObject
from comfy_core.errors import ComfyClientError

if TYPE_CHECKING:
    from typing import Self

STORE_CHECK_S = 5.0
ENDPOINT_CHECK_S = 60.0
STALE_S = 30.0
"""Without a check of the store for this long, the disk does not respond."""
LOCK_TIMEOUT_S = 1.0
PROBE_BYTES = 1024 * 1024

_log = logging.getLogger(__name__)


class HealthMonitor:
    """Checks the store and the endpoint inside its `async with` block.

    Args:
        store_file: the shim's database.
        endpoint_health: returns the endpoint's health. Called in a daemon thread, so that the end of the shim does not
            wait for an endpoint that does not respond.
        metrics: gets the outcome of the endpoint's checks.
        store_check_s: seconds between two checks of the store.
    """

    def __init__(
        self,
        store_file: Path,
        endpoint_health: Callable[[], Health],
        metrics: ShimMetrics,
        store_check_s: float = STORE_CHECK_S,
    ) -> None:
        self._store_check_s = store_check_s
        self._store_file = store_file
        self._endpoint_health = endpoint_health
        self._metrics = metrics
        self._problem = ""
        self._checked_at = time.monotonic()
        self._endpoint = "unknown"
        self._watch: asyncio.Task[None] | None = None
        self._ended = threading.Event()
        self.is_draining = False
        """Whether the shim is about to stop. Set by the server."""

    async def __aenter__(self) -> Self:
        self._watch = asyncio.create_task(self._watch_store())
        threading.Thread(target=self._watch_endpoint, name="endpoint-health", daemon=True).start()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._ended.set()
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.gather(self._watch, return_exceptions=True)

    def report(self) -> tuple[int, JsonObject]:
        """Return the HTTP status and the JSON body. It has no names, paths, ids or secrets."""
        problem = self._problem
        if self.is_draining:
            problem = "the shim is stopping"
        elif time.monotonic() > self._checked_at + STALE_S:
            problem = "the disk does not respond"
        if problem:
            return UNAVAILABLE, {"status": "unavailable", "reason": problem, "endpoint": self._endpoint}
        return 200, {"status": "ok", "endpoint": self._endpoint}

    async def _watch_store(self) -> None:
        while True:
            error = await asyncio.to_thread(storage_error, self._store_file)
            problem = "" if error is None else "the shim cannot write to its folder"
            if problem != self._problem:
                _log.warning("health: %s (%s)", problem or "the shim can write to its folder again", error)
            self._problem, self._checked_at = problem, time.monotonic()
            await asyncio.sleep(self._store_check_s)

    def _watch_endpoint(self) -> None:
        while not self._ended.is_set():
            try:
                health = self._endpoint_health()
            except ComfyClientError as error:
                _log.warning("health: the endpoint did not respond: %s", error)
                self._endpoint = "unreachable"
                self._metrics.endpoint_checked(None)
            else:
                self._endpoint = health.why
                self._metrics.endpoint_checked(health.workers)
            self._ended.wait(ENDPOINT_CHECK_S)


def storage_error(store_file: Path) -> Exception | None:
    """Return why nothing can be stored: a locked or damaged database, a full disk, no permission. Else None. Blocks."""
    try:
        with closing(sqlite3.connect(store_file, timeout=LOCK_TIMEOUT_S, isolation_level=None)) as database:
            database.execute("BEGIN IMMEDIATE")
            database.execute("ROLLBACK")
        with tempfile.TemporaryFile(dir=store_file.parent) as probe:
            probe.write(bytes(PROBE_BYTES))
    except (OSError, sqlite3.Error) as error:
        return error
    return None
