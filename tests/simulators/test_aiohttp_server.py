"""The server of the simulators that use aiohttp."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket

import pytest
from aiohttp import web

from simulators.aiohttp_server import serving


@pytest.mark.parametrize("iterations", range(6))
def test_a_connection_accepted_at_the_last_moment_is_closed(iterations: int) -> None:
    """A connection that is accepted some iterations of the event loop before the end is closed, without a warning."""

    async def run_server() -> socket.socket:
        async with serving(web.AppRunner(web.Application(), shutdown_timeout=0.1)) as port:
            client = socket.create_connection(("127.0.0.1", port), timeout=60)
            for _ in range(iterations):
                await asyncio.sleep(0)
            return client

    with asyncio.run(run_server()) as client, contextlib.suppress(ConnectionResetError):
        assert client.recv(1) == b""
    gc.collect()
