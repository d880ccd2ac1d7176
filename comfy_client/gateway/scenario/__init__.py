"""The shim: serves Scenario.com's API from your own ComfyUI endpoint.

docs/scenario.md is the user documentation. docs/reference/scenario.md has the facts about Scenario's API and their
sources. The names of `__all__` are imported on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from comfy_client.gateway.scenario.client import ScenarioShim
    from comfy_client.gateway.scenario.errors import ShimError

__all__ = ["ScenarioShim", "ShimError"]

_MODULES = {"ScenarioShim": "comfy_client.gateway.scenario.client", "ShimError": "comfy_client.gateway.scenario.errors"}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)
