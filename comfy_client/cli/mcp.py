"""The command `mcp`: serves tools for AI agents with the Model Context Protocol on stdin and stdout."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from comfy_client.cli.call import Call, Command
from comfy_client.cli.flags import Flag
from comfy_client.cli.output import prepare_output
from comfy_core.errors import requiring_extra
from comfy_core.workflows import Workflow

_FOLDER = Flag(
    ("-o", "--output"),
    "Folder for the images. It is created if necessary.",
    "FOLDER",
    {"required": True, "type": lambda text: Path(text).expanduser().absolute()},
)


def commands(_workflows: Mapping[str, Workflow]) -> tuple[Command, ...]:
    """Return the command `mcp`."""
    return (Command("mcp", [_FOLDER], _mcp),)


def _mcp(call: Call) -> int:
    """Serve until the client closes stdin."""
    with requiring_extra("The MCP server", "mcp"):
        from comfy_client.cli.mcp_server import serve  # noqa: PLC0415 - optional dependency
    # The tools write nothing to the screen: stdout belongs to the protocol.
    screen = replace(call.screen, out=call.screen.err, is_json=False)
    output = prepare_output(f"{call.options.output}/", screen)
    asyncio.run(serve(replace(call, screen=screen), output))
    return 0
