"""Copies whole libraries: every image of a Scenario project to the shim, and every own asset to Scenario.

Both directions can be repeated after an interruption: an asset that was already transferred is not transferred again.
The folder's lock is taken, so the shim must not run.
"""

from __future__ import annotations

import asyncio
import csv
import enum
import io
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import ExitStack, asynccontextmanager, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from comfy_client.gateway.scenario.asset_storage import AssetStorage
from comfy_client.gateway.scenario.blobs import make_blobs
from comfy_client.gateway.scenario.bridge.assets import TRANSFERS_AT_ONCE, AssetBridge
from comfy_client.gateway.scenario.bridge.upstream import UpstreamRefused
from comfy_client.gateway.scenario.errors import INTERNAL, NO_SPACE, TOO_MANY, ShimError
from comfy_client.gateway.scenario.folder import FolderLock
from comfy_client.gateway.scenario.serializers import iso
from comfy_client.gateway.scenario.settings import ShimSettings
from comfy_client.gateway.scenario.store import Store
from comfy_core.backoff import backoff_s
from comfy_core.contract import JsonObject
from comfy_core.errors import ComfyClientError, ConfigError
from comfy_core.files import write_atomically

TABLE_FILE = "scenario-ids.csv"
"""The file in the shim's folder that has the id at Scenario of each exported asset."""
ATTEMPTS = 4
MAX_PAUSE_S = 60.0
MAX_FAILURES_IN_A_ROW = 20
"""After this many failed assets without a transferred one in between, the transfer ends: Scenario is not available."""
BATCH_SIZE = 100

_Result = TypeVar("_Result")


class Outcome(enum.StrEnum):
    """The outcome of one asset."""

    TRANSFERRED = "transferred"
    PRESENT = "present"
    """It had been transferred before."""
    SKIPPED = "skipped"
    """It has no image that could be copied."""
    FAILED = "failed"


@dataclass(frozen=True)
class AssetTransfer:
    """The outcome of one asset. `reason` says why it was not transferred."""

    asset_id: str
    outcome: Outcome
    reason: str = ""


class Transfer:
    """Transfers assets between Scenario and the shim. `on_outcome` gets the outcome of each asset."""

    def __init__(self, bridge: AssetBridge, store: Store, on_outcome: Callable[[AssetTransfer], None]) -> None:
        self._bridge = bridge
        self._store = store
        self._on_outcome = on_outcome
        self._slots = asyncio.Semaphore(TRANSFERS_AT_ONCE)
        self._failures_in_a_row = 0
        self._stop_reason: ComfyClientError | None = None

    async def import_library(self) -> None:
        """Copy every image of the Scenario project that the shim does not have.

        Raises ShimError if Scenario's list cannot be read, if the disk is full, or after MAX_FAILURES_IN_A_ROW.
        """
        token = ""
        while True:
            records, token = await _with_retries(partial(self._bridge.library_page, token))
            await self._all([self._one(str(record.get("id")), partial(self._import_one, record)) for record in records])
            if not (token and records):
                return

    async def export_assets(self) -> None:
        """Upload every own asset that has no copy at Scenario. Raises ShimError as `import_library` does."""
        for link in self._store.links():
            self._on_outcome(AssetTransfer(link.id, Outcome.PRESENT))
        ids = self._store.own_assets_without_link()
        for begin in range(0, len(ids), BATCH_SIZE):
            batch = ids[begin : begin + BATCH_SIZE]
            await self._all([self._one(asset_id, partial(self._export_one, asset_id)) for asset_id in batch])

    async def _import_one(self, record: JsonObject) -> AssetTransfer:
        asset_id = str(record.get("id"))
        if self._store.asset(asset_id) is not None:
            return AssetTransfer(asset_id, Outcome.PRESENT)
        if await self._bridge.copied(asset_id, record) is not None:
            return AssetTransfer(asset_id, Outcome.TRANSFERRED)
        kind = str(record.get("kind"))
        reason = "it has no URL" if kind == "image" else f"its kind is {kind}, and only images are copied"
        return AssetTransfer(asset_id, Outcome.SKIPPED, reason)

    async def _export_one(self, asset_id: str) -> AssetTransfer:
        asset = self._store.asset(asset_id)
        if asset is not None:
            await self._bridge.linked(asset)
        return AssetTransfer(asset_id, Outcome.TRANSFERRED)

    async def _all(self, transfers: Sequence[Awaitable[None]]) -> None:
        await asyncio.gather(*transfers)
        if self._stop_reason is not None:
            raise self._stop_reason

    async def _one(self, asset_id: str, transfer: Callable[[], Awaitable[AssetTransfer]]) -> None:
        """Transfer one asset and report its outcome, unless the transfer has ended."""
        async with self._slots:
            if self._stop_reason is not None:
                return
            try:
                result = await _with_retries(transfer)
            except OSError as error:
                result = AssetTransfer(asset_id, Outcome.FAILED, f"its image file cannot be read or written: {error}")
            except ComfyClientError as error:
                result = AssetTransfer(asset_id, Outcome.FAILED, error.report.message)
                self._failures_in_a_row += 1
                if self._failures_in_a_row >= MAX_FAILURES_IN_A_ROW or getattr(error, "status", 0) == NO_SPACE:
                    self._stop_reason = error
        if result.outcome is Outcome.TRANSFERRED:
            self._failures_in_a_row = 0
        self._on_outcome(result)


@asynccontextmanager
async def open_transfer(settings: ShimSettings, on_outcome: Callable[[AssetTransfer], None]) -> AsyncIterator[Transfer]:
    """Lock the shim's folder and yield its Transfer. At the end, write the table of the exported assets' ids.

    Raises ConfigError if a shim runs on the folder, or if Scenario's key is not set.
    """
    upstream = settings.upstream()
    try:
        with ExitStack() as stack:
            stack.callback(FolderLock(settings.directory).release)
            store = stack.enter_context(closing(Store(settings.directory)))
            stack.callback(write_table, store, settings.directory / TABLE_FILE)
            storage = AssetStorage(store, make_blobs(settings.directory, settings.bucket))
            yield Transfer(AssetBridge(upstream, storage), store, on_outcome)
    finally:
        await upstream.close()


def write_table(store: Store, file: Path) -> None:
    """Write the ids of the exported assets and of their copies at Scenario as CSV. Raises ConfigError."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(["id", "scenario_id", "name", "exported_at"])
    for link in store.links():
        asset = store.asset(link.id)
        writer.writerow([link.id, link.scenario_id, "" if asset is None else asset.name, iso(link.created_at)])
    try:
        write_atomically(file, text.getvalue().encode())
    except OSError as error:
        raise ConfigError(f"{file} cannot be written: {error.strerror}") from error


async def _with_retries(call: Callable[[], Awaitable[_Result]]) -> _Result:
    """Return the result of a call, which is repeated if Scenario is busy, fails or is not reached.

    Repeating is safe: reads change nothing, and `AssetBridge.linked` looks for an earlier upload before it uploads.
    """
    attempt = 0
    while True:
        try:
            return await call()
        except ShimError as error:
            is_temporary = error.status == TOO_MANY or (error.status >= INTERNAL and error.status != NO_SPACE)
            if not is_temporary or attempt == ATTEMPTS - 1:
                raise
            pause_s = error.pause_s if isinstance(error, UpstreamRefused) else None
        await asyncio.sleep(min(MAX_PAUSE_S, backoff_s(attempt, pause_s)))
        attempt += 1
