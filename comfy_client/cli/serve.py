"""The command `serve`: serves OpenAI's and Scenario's APIs from one process, with the web page."""

from __future__ import annotations

import argparse
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from comfy_client.cli.call import JSON, Call, Command, print_url
from comfy_client.cli.flags import Flag, parse_port
from comfy_core.errors import requiring_extra

if TYPE_CHECKING:
    from comfy_core.workflows import Workflow

APIS = ("openai", "scenario")
SERVE_FLAGS: Sequence[Flag] = (
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
    Flag(
        ("--page-token",),
        "Print the web page's address with a token that signs in. The token is created at the first start and stored "
        "in the folder.",
        settings={"action": "store_true"},
    ),
)
"""The flags of a command that runs the server."""


def parse_apis(text: str) -> Sequence[str]:
    """Return the names in a list of APIs. Raises argparse.ArgumentTypeError."""
    names = [name.strip().lower() for name in text.split(",") if name.strip()]
    if not names or not set(names) <= set(APIS):
        raise argparse.ArgumentTypeError(f"must be {' or '.join(APIS)}, or both separated by a comma, not {text!r}")
    return names


API = Flag(
    ("--api",),
    "The APIs to serve. The web page is always served. [default openai,scenario]",
    "API,…",
    {"type": parse_apis, "default": APIS},
)


def commands(_workflows: Mapping[str, Workflow]) -> tuple[Command, ...]:
    """Return the command `serve`."""
    return (Command("serve", [API, *SERVE_FLAGS, JSON], lambda call: _serve(call, call.options.api)),)


def serve_scenario(call: Call) -> int:
    """Serve Scenario's API alone: `comfy-client scenario serve`."""
    return _serve(call, ("scenario",))


def _serve(call: Call, apis: Collection[str]) -> int:
    with requiring_extra("The server", "scenario"):
        from comfy_client.gateway.serve import serve  # noqa: PLC0415 - only needed by this command

    options = call.options
    return serve(
        call.environment,
        host=options.host,
        port=options.port,
        is_open=options.insecure_local,
        directory=options.data,
        is_strict=options.strict,
        has_page_token=options.page_token,
        apis=apis,
        log_stream=call.screen.err,
        on_ready=lambda url: print_url(call, url),
    )
