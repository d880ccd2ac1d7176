"""A uvicorn server that drains before it stops: it serves requests for some seconds after SIGTERM."""

from __future__ import annotations

import signal
import socket
import time
from collections.abc import Callable
from types import FrameType

import uvicorn


class DrainingServer(uvicorn.Server):
    """On SIGTERM it calls `on_drain`, and stops `drain_s` seconds later. Ctrl-C and a second signal stop it at once.

    It calls `on_stop` when it stops, before it waits for the requests in progress.
    """

    def __init__(
        self, config: uvicorn.Config, drain_s: float, on_drain: Callable[[], None], on_stop: Callable[[], None]
    ) -> None:
        super().__init__(config)
        self._drain_s = drain_s
        self._on_drain = on_drain
        self._on_stop = on_stop
        self._stop_at: float | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Handle a signal."""
        if sig != signal.SIGTERM or self._stop_at is not None or not self._drain_s:
            super().handle_exit(sig, frame)
            return
        self._stop_at = time.monotonic() + self._drain_s
        self._on_drain()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop the server."""
        self._on_stop()
        await super().shutdown(sockets)

    async def on_tick(self, counter: int) -> bool:
        """Return whether the server should stop. uvicorn calls this ten times a second."""
        if self._stop_at is not None and time.monotonic() >= self._stop_at:
            self.should_exit = True
        return await super().on_tick(counter)
