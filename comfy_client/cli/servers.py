"""The commands `simulate` and `scenario serve`, which run a server until Ctrl-C or SIGTERM."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from comfy_client.cli.call import JSON, Call, Command, print_url
from comfy_client.cli.flags import Flag, UsageError, parse_port
from comfy_core.errors import ConfigError, missing_extra

if TYPE_CHECKING:
    from comfy_core.workflows import Workflow

SIMULATE = "comfy-client simulate"
SCENARIO_FLAGS: Sequence[Flag] = (
    Flag(
        ("action",),
        "`serve`: run the server until Ctrl-C or SIGTERM. Unfinished jobs continue at the next start.",
        "serve",
        {"choices": ["serve"]},
    ),
    Flag(("--host",), "The address to listen on. [default 127.0.0.1]", "HOST", {"default": "127.0.0.1"}),
    Flag(("--port",), "The port; 0 selects a free port. [default 8189]", "N", {"type": parse_port, "default": 8189}),
    Flag(
        ("--data",), "The folder for jobs, assets and images. [default SCENARIO_SHIM_DATA_DIR]", "DIR", {"type": Path}
    ),
    Flag(
        ("--strict",),
        "Reject requests with unsupported fields, like SCENARIO_SHIM_STRICT.",
        settings={"action": "store_true"},
    ),
    Flag(
        ("--insecure-local",),
        "Require no key. Only allowed on a loopback address; requests from other web pages are rejected.",
        settings={"action": "store_true"},
    ),
)


def commands(_workflows: Mapping[str, Workflow]) -> tuple[Command, ...]:
    """Return the commands `simulate` and `scenario`."""
    return Command("simulate", [], _simulate), Command("scenario", [*SCENARIO_FLAGS, JSON], _scenario)


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


def _scenario(call: Call) -> int:
    from comfy_client.gateway.scenario.serve import serve  # noqa: PLC0415 - only needed by this command

    options = call.options
    return serve(
        call.environment,
        host=options.host,
        port=options.port,
        is_open=options.insecure_local,
        directory=options.data,
        is_strict=options.strict,
        log_stream=call.screen.err,
        on_ready=lambda url: print_url(call, url),
    )
