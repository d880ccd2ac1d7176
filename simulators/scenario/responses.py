"""The responses of the simulated API that faults change, and errors in Scenario's format."""

from __future__ import annotations

import asyncio

from aiohttp import hdrs, web

from .faults import Cut, ScenarioBreak, ScenarioDrop, ScenarioFault, ScenarioResponse, ScenarioStall
from .records import new_id


async def changed_by_fault(
    fault: ScenarioFault | None, request: web.Request, response: web.Response
) -> web.StreamResponse:
    """Return the response to a handled request, as a fault changes it."""
    match fault:
        case ScenarioDrop():
            return dropped(request)
        case ScenarioBreak():
            return await _broken(request, response)
        case ScenarioStall():
            await _wait_for_end(fault)
        case Cut() if isinstance(response.body, bytes):
            return web.Response(body=response.body[: len(response.body) // 2], content_type="image/png")
    return response


def problem(status: int, reason: str) -> web.Response:
    """Return an error in Scenario's format."""
    return web.json_response({"reason": reason, "trace_id": new_id("trace")}, status=status)


def response_of(fault: ScenarioResponse) -> web.Response:
    """Return the response of a fault."""
    if fault.body is None:
        return problem(fault.status, "internal error")
    if isinstance(fault.body, str):
        return web.Response(status=fault.status, text=fault.body, content_type="text/html")
    return web.json_response(dict(fault.body), status=fault.status)


async def _wait_for_end(stall: ScenarioStall) -> None:
    end = asyncio.get_running_loop().time() + stall.seconds
    while not stall.is_over.is_set() and asyncio.get_running_loop().time() < end:  # noqa: ASYNC110 - another thread sets it
        await asyncio.sleep(0.005)


async def _broken(request: web.Request, response: web.Response) -> web.StreamResponse:
    """Send half of a response, and close the connection."""
    body = response.body if isinstance(response.body, bytes) else b""
    broken = web.StreamResponse(status=response.status, headers={hdrs.CONTENT_TYPE: response.content_type})
    broken.content_length = len(body)
    await broken.prepare(request)
    await broken.write(body[: len(body) // 2])
    if request.transport is not None:
        request.transport.close()
    return broken


def dropped(request: web.Request) -> web.Response:
    """Close the connection, and return a response that is not sent."""
    if request.transport is not None:
        request.transport.abort()
    return web.Response()
