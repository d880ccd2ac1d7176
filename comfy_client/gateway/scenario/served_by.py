"""The side that serves the current request, for the header `x-shim-side` and the metrics.

Each request starts as the shim's own. The bridge calls `forwarded` before it sends a request of a caller to Scenario.
"""

from __future__ import annotations

from contextvars import ContextVar

from comfy_client.gateway.scenario.models import Side

SIDE_HEADER = "x-shim-side"
"""The response header that names the side: `scenario` if the call was forwarded, also if it then failed."""

_side: ContextVar[Side] = ContextVar("_side", default=Side.OWN)


def begin() -> None:
    """Start a request. Until `forwarded` is called, it is the shim's own."""
    _side.set(Side.OWN)


def forwarded() -> None:
    """Record that the current request is forwarded to Scenario."""
    _side.set(Side.SCENARIO)


def current() -> Side:
    """Return the side of the current request."""
    return _side.get()
