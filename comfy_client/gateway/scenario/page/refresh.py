"""Reads the unfinished jobs of Scenario in the background while a web page is open, so that the page is up to date."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time

from comfy_client.gateway.scenario.bridge.bridge import MAX_REFRESHED, Bridge
from comfy_client.gateway.scenario.errors import ShimError
from comfy_client.gateway.scenario.store import Store

REFRESH_S = 3.0
"""The least time between two reads of Scenario's jobs. Each reads at most MAX_REFRESHED jobs."""

_log = logging.getLogger(__name__)


class Refresher:
    """Reads Scenario's jobs. A read that is slow or fails delays no request of the page."""

    def __init__(self, store: Store, bridge: Bridge | None) -> None:
        self._store = store
        self._bridge = bridge
        self._task: asyncio.Task[None] | None = None
        self._next_at = 0.0
        self._read_at: dict[str, float] = {}

    def start(self) -> None:
        """Start to read the jobs that were read longest ago, unless the last read is recent or still runs."""
        now = time.monotonic()
        if self._bridge is None or now < self._next_at or (self._task is not None and not self._task.done()):
            return
        self._next_at = now + REFRESH_S
        self._task = asyncio.create_task(self._refresh(self._bridge, now))

    async def stop(self) -> None:
        """Stop a read that runs."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _refresh(self, bridge: Bridge, now: float) -> None:
        try:
            jobs = self._store.forwarded()
            self._read_at = {job.id: self._read_at.get(job.id, 0.0) for job in jobs}
            jobs = sorted(jobs, key=lambda job: (self._read_at[job.id], -job.created_at))[:MAX_REFRESHED]
            self._read_at |= dict.fromkeys((job.id for job in jobs), now)
            await bridge.refreshed(jobs)
        except ShimError as error:
            _log.warning("Scenario's jobs could not be read for the web page, will retry: %s", error)
