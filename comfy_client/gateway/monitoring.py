"""ASGI middleware around the shim: counts each request, and adds the header `x-shim-side` to each response.

While the shim drains, responses also have `Connection: close`, so that callers open their next connection elsewhere.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from comfy_client.gateway.scenario import served_by
from comfy_client.gateway.scenario.metrics import ShimMetrics

ROUTE = "shim.route"
"""The key of the ASGI scope that has the request's route template."""
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
OTHER = "other"
"""The label of methods and paths that the shim does not have."""


@dataclass(frozen=True)
class MonitoredApp:
    """The application `app` with monitoring."""

    app: ASGIApp
    metrics: ShimMetrics
    is_draining: Callable[[], bool]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        served_by.begin()
        begun_at = time.monotonic()
        statuses: list[int] = []

        async def send_monitored(message: Message) -> None:
            if message["type"] == "http.response.start":
                statuses.append(message["status"])
                headers = MutableHeaders(scope=message)
                headers[served_by.SIDE_HEADER] = served_by.current().value
                if self.is_draining():
                    headers["Connection"] = "close"
            await send(message)

        try:
            await self.app(scope, receive, send_monitored)
        finally:
            method = scope["method"] if scope["method"] in METHODS else OTHER
            self.metrics.request_ended(
                method,
                scope.get(ROUTE, OTHER),
                statuses[0] if statuses else None,
                served_by.current(),
                time.monotonic() - begun_at,
            )
