"""Serves an aiohttp application on a free port of the running event loop, and closes every connection at the end."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import cast

from aiohttp import web

LOOP_ITERATIONS_TO_SET_UP = 6
"""Iterations of the event loop until a connection accepted at the last moment is open in the application."""


@contextlib.asynccontextmanager
async def serving(runner: web.AppRunner, host: str = "127.0.0.1") -> AsyncIterator[int]:
    """Serve `runner` inside the `async with` block; yield the port."""
    await runner.setup()
    try:
        application = cast("web.Server", runner.server)
        listener = await asyncio.get_running_loop().create_server(application, host, 0)
        try:
            yield listener.sockets[0].getsockname()[1]
        finally:
            await _stop_listening(listener)
    finally:
        await runner.cleanup()


async def _stop_listening(listener: asyncio.Server) -> None:
    """Accept no more connections, wait until the application has those that were just accepted, and close the port.

    Python 3.11 never closes a connection that it accepted just before `close` (CPython issue 109564). The garbage
    collector then reports an unclosed socket during another test.
    """
    for listening in listener.sockets:
        asyncio.get_running_loop().remove_reader(listening.fileno())
    for _ in range(LOOP_ITERATIONS_TO_SET_UP):
        await asyncio.sleep(0)
    listener.close()
