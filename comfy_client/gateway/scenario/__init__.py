"""Scenario.com's API, answered from a ComfyUI of one's own: the shim. Importing it reads nothing.

Facts of that API are from docs/reference/scenario.md, which names their sources (the official SDK 2.4.0, Scenario's
pages and its own plugin). docs/scenario.md is the page for its users.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from comfy_client.gateway.scenario.client import ScenarioShim
    from comfy_client.gateway.scenario.errors import ShimError

__all__ = ["ScenarioShim", "ShimError"]

_HOMES = {"ScenarioShim": "comfy_client.gateway.scenario.client", "ShimError": "comfy_client.gateway.scenario.errors"}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
