"""Limits of connections: too many idle ones, and callers that do not read. uvicorn runs in this process."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from comfy_client.gateway.connections import MIN_CONNECTIONS, LimitedProtocol, limited_protocol

_WAIT_S = 60.0
_REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


async def _small(_request: Request) -> Response:
    return Response("here")


async def _large(_request: Request) -> Response:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(1_000):
            yield b"x" * 65_536

    return StreamingResponse(pieces())


async def _serving(protocol: type[LimitedProtocol]) -> tuple[uvicorn.Server, asyncio.Task[None], int]:
    listening = socket.create_server(("127.0.0.1", 0))
    app = Starlette(routes=[Route("/", _small), Route("/large", _large)])
    config = uvicorn.Config(app, http=protocol, lifespan="off", log_config=None, timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    return server, asyncio.create_task(server.serve(sockets=[listening])), listening.getsockname()[1]


def test_the_oldest_idle_connection_is_closed() -> None:
    """Beyond the limit the oldest connection without a request is closed, and the newest one is served."""

    async def run_client() -> tuple[bytes, bytes]:
        server, task, port = await _serving(limited_protocol(0))
        connections = [await asyncio.open_connection("127.0.0.1", port) for _ in range(MIN_CONNECTIONS + 1)]
        first, last = connections[0], connections[-1]
        closed = await asyncio.wait_for(first[0].read(), 60)
        last[1].write(_REQUEST)
        response = await asyncio.wait_for(last[0].readuntil(b"here"), _WAIT_S)
        for _, writer in connections:
            writer.close()
        server.should_exit = True
        await task
        return closed, response

    closed, response = asyncio.run(run_client())

    assert closed == b""
    assert response.startswith(b"HTTP/1.1 200")


def test_a_connection_that_was_used_stays_open_for_the_next_request() -> None:
    """A connection without a request is closed after `head_timeout_s`; one that had a request is served again."""
    protocol = type("Short", (limited_protocol(0),), {"head_timeout_s": 0.2})

    async def run_client() -> bytes:
        server, task, port = await _serving(protocol)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(_REQUEST)
        await asyncio.wait_for(reader.readuntil(b"here"), _WAIT_S)
        unused, unused_writer = await asyncio.open_connection("127.0.0.1", port)
        assert await asyncio.wait_for(unused.read(), _WAIT_S) == b""
        writer.write(_REQUEST)
        response = await asyncio.wait_for(reader.readuntil(b"here"), _WAIT_S)
        for each in (writer, unused_writer):
            each.close()
        server.should_exit = True
        await task
        return response

    assert asyncio.run(run_client()).startswith(b"HTTP/1.1 200")


def test_a_half_sent_second_request_is_closed() -> None:
    """On a connection that was used, a head that does not end is closed after `head_timeout_s`, not kept open."""
    protocol = type("Short", (limited_protocol(0),), {"head_timeout_s": 0.2, "keep_alive_s": 3600.0})

    async def run_client() -> bytes:
        server, task, port = await _serving(protocol)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(_REQUEST)
        await asyncio.wait_for(reader.readuntil(b"here"), _WAIT_S)
        writer.write(_REQUEST[:20])
        rest = await asyncio.wait_for(reader.read(), _WAIT_S)
        writer.close()
        server.should_exit = True
        await task
        return rest

    assert asyncio.run(run_client()) == b""


def test_a_caller_that_reads_nothing_is_closed() -> None:
    """If a caller does not read a response, the connection is closed after `stall_timeout_s`."""
    protocol = type("Short", (limited_protocol(0),), {"stall_timeout_s": 0.2})

    async def run_client() -> None:
        server, task, port = await _serving(protocol)
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
        writer.write(_REQUEST.replace(b"GET /", b"GET /large"))
        async with asyncio.timeout(_WAIT_S):
            while not server.server_state.connections:  # noqa: ASYNC110 - no event exists for it
                await asyncio.sleep(0.01)
            while server.server_state.connections:  # noqa: ASYNC110 - as above
                await asyncio.sleep(0.01)
        writer.close()
        assert reader is not None
        server.should_exit = True
        await task

    asyncio.run(run_client())
