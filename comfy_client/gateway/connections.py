"""uvicorn's HTTP/1.1 protocol with timeouts for stalled clients and a limit on connections.

uvicorn itself only closes connections that are idle between two requests, after its `timeout_keep_alive`.
"""

from __future__ import annotations

import asyncio
import socket
from typing import ClassVar

from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

HEAD_TIMEOUT_S = 10.0
"""Timeout for the head of a request, counted from the connect, or from its first byte on a connection that was used."""
KEEP_ALIVE_S = 100
"""How long a connection may be idle after a response.

A request is lost if the shim closes its connection while the request is on its way: a client may repeat a GET, but not
a POST. So the shim waits longer than clients and proxies keep an idle connection (Node 4 s, nginx and AWS load
balancers 60 s, Go 90 s), and announces a shorter time. Measured with Node 20, whose fetch obeys the announcement: of 64
callers that pause about as long as the server waits, 12 of 5,057 requests were lost without it, none of 1,280 with it.
"""
ANNOUNCED_KEEP_ALIVE_S = 90
"""The `timeout` of the response header Keep-Alive."""
STALL_TIMEOUT_S = 60.0
"""How long a client may stop reading a response."""
MIN_CONNECTIONS = 64
MAX_CONNECTIONS = 8192


class LimitedProtocol(H11Protocol):
    """One connection. If there are more than `max_connections`, the one that has been idle longest is closed."""

    max_connections: ClassVar[int] = MAX_CONNECTIONS
    head_timeout_s: ClassVar[float] = HEAD_TIMEOUT_S
    keep_alive_s: ClassVar[float] = KEEP_ALIVE_S
    stall_timeout_s: ClassVar[float] = STALL_TIMEOUT_S
    idle: ClassVar[dict[LimitedProtocol, asyncio.TimerHandle]] = {}
    """The connections without a request in progress, and their timeouts. The longest idle connection is first."""
    _stall_timer: asyncio.TimerHandle | None = None
    _is_head_timed = True
    """Whether the timeout of an idle connection is that of a head which has begun."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn has it
        """Start the timeout for the first request."""
        super().connection_made(transport)
        # Without TCP_NODELAY a response's body is delayed by 40 ms. asyncio does not set it on these sockets.
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._begin_idle(self.head_timeout_s)
        if len(self.connections) > self.max_connections:
            next(iter(self.idle)).transport.abort()

    def data_received(self, data: bytes) -> None:
        """Stop the timeout when the head of a request has arrived, and limit the time for the rest of a begun head."""
        super().data_received(data)
        if self._has_request():
            self._end_idle()
        elif not self._is_head_timed and not self.transport.is_closing():
            self._is_head_timed = True
            self._begin_idle(self.head_timeout_s)

    def on_response_complete(self) -> None:
        """Start the timeout for the next request, unless that request has already arrived."""
        super().on_response_complete()
        self._is_head_timed = False
        if not self._has_request() and not self.transport.is_closing():
            self._begin_idle(self.keep_alive_s)

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel the timeouts."""
        super().connection_lost(exc)
        self._end_idle()
        self._cancel_stall()

    def pause_writing(self) -> None:
        """Start the timeout for a client that stopped reading."""
        super().pause_writing()
        self._stall_timer = self.loop.call_later(self.stall_timeout_s, self.transport.abort)

    def resume_writing(self) -> None:
        """Cancel the timeout: the client reads again."""
        super().resume_writing()
        self._cancel_stall()

    def _has_request(self) -> bool:
        cycle: RequestResponseCycle | None = self.cycle  # uvicorn's annotation omits None
        return cycle is not None and not cycle.response_complete

    def _begin_idle(self, timeout_s: float) -> None:
        self._end_idle()
        self.idle[self] = self.loop.call_later(timeout_s, self.transport.abort)

    def _end_idle(self) -> None:
        if (timer := self.idle.pop(self, None)) is not None:
            timer.cancel()

    def _cancel_stall(self) -> None:
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None


def limited_protocol(file_limit: int) -> type[LimitedProtocol]:
    """Return the protocol class for a process that can open `file_limit` files.

    Half of the files are for connections, but at least MIN_CONNECTIONS and at most MAX_CONNECTIONS.
    """
    max_connections = min(MAX_CONNECTIONS, max(MIN_CONNECTIONS, file_limit // 2))
    return type("Protocol", (LimitedProtocol,), {"max_connections": max_connections, "idle": {}})


def raise_file_limit() -> int:
    """Raise this process's limit on open files, up to 4 times MAX_CONNECTIONS, and return the number allowed."""
    try:
        import resource  # noqa: PLC0415 - not available on Windows
    except ImportError:
        return MAX_CONNECTIONS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = 4 * MAX_CONNECTIONS if hard == resource.RLIM_INFINITY else min(hard, 4 * MAX_CONNECTIONS)
    if soft != resource.RLIM_INFINITY and soft < limit:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
        return limit
    return limit if soft == resource.RLIM_INFINITY else soft
