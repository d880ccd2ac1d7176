"""The documented name of the Scenario shim without HTTP, which is defined in `comfy_client.gateway.scenario`."""

from comfy_client.gateway.scenario import ScenarioShim

__all__ = ["ScenarioShim"]
