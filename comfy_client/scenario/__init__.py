"""Scenario.com's API, answered from a ComfyUI of one's own: the shim. Importing it reads nothing.

Facts of that API are from reference/scenario.md, which names their sources (the official SDK 2.4.0, Scenario's pages
and its own plugin). docs/scenario.md is the page for its users.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from comfy_client.scenario.client import ScenarioShim
    from comfy_client.scenario.errors import ShimError

__all__ = ["ScenarioShim", "ShimError"]


def __getattr__(name: str) -> object:
    if name == "ScenarioShim":
        from comfy_client.scenario.client import ScenarioShim  # noqa: PLC0415 - loaded when it is first used

        return ScenarioShim
    if name == "ShimError":
        from comfy_client.scenario.errors import ShimError  # noqa: PLC0415 - as above

        return ShimError
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
