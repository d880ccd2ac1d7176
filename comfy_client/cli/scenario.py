"""`comfy-client scenario serve`: its flags. What it does is comfy_client/scenario/serve.py."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from comfy_client.cli.call import JSON, Call, Command, served
from comfy_client.cli.flags import Flag
from comfy_client.scenario.serve import serve

FLAGS: Sequence[Flag] = (
    Flag(
        ("action",),
        "`serve`: until Ctrl-C or SIGTERM; jobs that have not ended go on at the next start.",
        "serve",
        {"choices": ["serve"]},
    ),
    Flag(("--host",), "The address to listen on [default 127.0.0.1].", "HOST", {"default": "127.0.0.1"}),
    Flag(("--port",), "The port; 0 takes a free one [default 8189].", "N", {"type": int, "default": 8189}),
    Flag(
        ("--data",),
        "The folder of jobs, assets and pictures; SCENARIO_SHIM_DATA_DIR where it is absent.",
        "DIR",
        {"type": Path},
    ),
    Flag(
        ("--strict",),
        "Refuse a field that cannot be honoured; SCENARIO_SHIM_STRICT.",
        settings={"action": "store_true"},
    ),
    Flag(
        ("--insecure-local",), "Ask nobody for a key, on a loopback address alone.", settings={"action": "store_true"}
    ),
)


def _serve(call: Call) -> int:
    options = call.options
    return serve(
        call.environment,
        host=options.host,
        port=options.port,
        is_open=options.insecure_local,
        directory=options.data,
        is_strict=options.strict,
        told=call.screen.err,
        on_ready=lambda url: served(call, url),
    )


COMMANDS = (
    Command("scenario", "answer Scenario.com's API from the endpoint (`scenario serve`)", [*FLAGS, JSON], _serve),
)
