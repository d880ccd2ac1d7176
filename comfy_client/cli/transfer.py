"""`comfy-client scenario import` and `comfy-client scenario export`."""

from __future__ import annotations

import asyncio
import json
import signal
from collections import Counter
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from comfy_client.cli.call import TERMINATING_SIGNALS, Call, Terminated, status_of
from comfy_client.cli.progress import LINE_S, CountDisplay, TickingDisplay
from comfy_core.contract import JsonObject
from comfy_core.errors import ComfyClientError, ConfigError

if TYPE_CHECKING:
    from comfy_client.gateway.scenario.bridge.transfer import AssetTransfer


def import_library(call: Call) -> int:
    """Copy the images of the Scenario project to the shim's folder, and return the exit status."""
    return _transfer(call, is_import=True)


def export_assets(call: Call) -> int:
    """Upload the shim's own assets to Scenario, and return the exit status."""
    return _transfer(call, is_import=False)


def _transfer(call: Call, *, is_import: bool) -> int:
    """Return 0 if every image was transferred, 1 if some failed, or the status of the error or signal that ended it."""
    from comfy_client.gateway.scenario.bridge.transfer import TABLE_FILE, open_transfer  # noqa: PLC0415 - only needed by these commands
    from comfy_client.gateway.scenario.settings import ShimSettings  # noqa: PLC0415 - as above

    settings = ShimSettings.from_env(call.environment)
    settings = replace(settings, directory=call.options.data or settings.directory)
    report = _Report()

    async def run(progress: CountDisplay) -> None:
        def count(transfer: AssetTransfer) -> None:
            report.add(transfer)
            progress.count(report.line)

        async with open_transfer(settings, count) as transfer:
            await (transfer.import_library() if is_import else transfer.export_assets())

    error: ComfyClientError | None = None
    try:
        with call.screen.count_bar(None, "assets") or _TransferLog(call) as progress:
            _run_async(run(progress))
    except KeyboardInterrupt as interrupt:
        call.screen.interrupted(
            f"Interrupted ({report.line}). What was transferred is kept; run the same command to continue."
        )
        return status_of(interrupt)
    except ConfigError:
        raise
    except ComfyClientError as raised:
        error = raised
    value = {**report.value(), **({} if is_import else {"table": str(settings.directory / TABLE_FILE)})}
    lines = [f"!! {each.asset_id}: {each.outcome}: {each.reason}" for each in report.problems]
    lines.append(report.line if is_import else f"{report.line}. Ids: {settings.directory / TABLE_FILE}")
    if error is not None:
        value["error"] = json.loads(error.report.to_json())
        lines.append(f"!! Ended early, by an error of Scenario or of the folder: {error.report.message}")
        lines.append("What was transferred is kept. Run the same command to continue")
    call.screen.show(value, *lines)
    return error.exit_status if error is not None else int(report.has_failures)


def _run_async(work: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine in an event loop. SIGTERM and SIGHUP cancel it, and then raise Terminated.

    An exception that a signal handler raises inside the event loop would be logged with a traceback.
    """
    received: list[int] = []

    async def cancellable() -> None:
        task = asyncio.ensure_future(work)

        def stop(number: int) -> None:
            received.append(number)
            task.cancel()

        for number in TERMINATING_SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                with suppress(NotImplementedError, RuntimeError, ValueError):  # Windows, or not the main thread.
                    asyncio.get_running_loop().add_signal_handler(number, stop, number)
        await task

    try:
        asyncio.run(cancellable())
    except asyncio.CancelledError:
        raise Terminated(*received[:1]) from None


class _Report:
    """The number of assets by outcome, and the assets that were not transferred."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.problems: list[AssetTransfer] = []

    def add(self, transfer: AssetTransfer) -> None:
        """Add the outcome of an asset."""
        self.counts[transfer.outcome.value] += 1
        if transfer.reason:
            self.problems.append(transfer)

    @property
    def line(self) -> str:
        """The counts in words."""
        return ", ".join(f"{count} {outcome}" for outcome, count in sorted(self.counts.items())) or "no assets"

    @property
    def has_failures(self) -> bool:
        """Whether an image was not transferred."""
        return bool(self.counts["failed"])

    def value(self) -> JsonObject:
        """The report as JSON."""
        problems = [
            {"asset_id": each.asset_id, "outcome": each.outcome.value, "reason": each.reason} for each in self.problems
        ]
        return {"counts": dict(self.counts), "not_transferred": problems}


class _TransferLog(TickingDisplay, CountDisplay):
    """Writes the counts every LINE_S seconds."""

    def __init__(self, call: Call) -> None:
        super().__init__(call.screen.err, LINE_S)
        self._line = "reading the list of assets"

    def count(self, line: str) -> None:
        """Set the counts."""
        self._line = line

    def tick(self) -> None:
        """Write the counts."""
        self.say(self._line)
