"""The command `simulate`, which runs a server until Ctrl-C or SIGTERM."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from comfy_client.cli.call import Call, Command, print_url
from comfy_client.cli.flags import UsageError
from comfy_core.errors import ConfigError, missing_extra

if TYPE_CHECKING:
    from comfy_core.workflows import Workflow

SIMULATE = "comfy-client simulate"


def commands(_workflows: Mapping[str, Workflow]) -> tuple[Command, ...]:
    """Return the command `simulate`."""
    return (Command("simulate", [], _simulate),)


def _simulate(call: Call) -> int:
    def ready(url: str) -> None:
        call.screen.say(f"The simulated ComfyUI is ready. In another terminal:\n\n  export COMFYUI_ENDPOINT={url}")
        call.screen.say('  comfy-client txt2img "a pixel art knight" -o knight.png\n\nPress Ctrl-C to stop.')
        print_url(call, url)

    try:
        status: int = _simulator().main(call.options.arguments, on_ready=ready, prog=SIMULATE, is_strict=True)
    except ImportError as error:
        raise missing_extra("The simulator", "simulator") from error
    except SystemExit as ended:
        if not ended.code:  # --help
            raise
        if isinstance(ended.code, str):
            raise ConfigError(ended.code) from ended
        raise UsageError("the arguments of simulate are wrong; the reason is above") from ended
    return status


def simulate_help() -> str:
    """Return the help of `simulate`. Its flags are defined by the simulator."""
    text: str = _simulator().parser(SIMULATE).format_help()
    return text


def _simulator() -> Any:  # noqa: ANN401 - imported by name, because the client must not depend on the simulators
    return importlib.import_module("simulators.comfyui.__main__")
