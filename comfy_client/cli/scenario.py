"""The command `scenario`: serves the shim, changes its routing table, and copies assets from and to Scenario."""

from __future__ import annotations

import argparse
import asyncio
import importlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from comfy_client.cli.call import JSON, Call, Command
from comfy_client.cli.flags import Flag, UsageError, parse_pair
from comfy_client.cli.serve import SERVE_FLAGS, serve_scenario
from comfy_client.cli.transfer import export_assets, import_library
from comfy_core.errors import requiring_extra

if TYPE_CHECKING:
    from comfy_client.gateway.scenario.bridge.routing import RoutingRule
    from comfy_core.workflows import Workflow

SCENARIO_FLAGS: Sequence[Flag] = (
    Flag(
        ("action",),
        "`serve`: run the server until Ctrl-C or SIGTERM. Unfinished jobs continue at the next start. `route`: show "
        "the routing table, or change it. A running server uses the new table at once. `models`: print the table for "
        "SCENARIO_SHIM_MODELS, with every private model of the account at Scenario. `import`: copy every image of "
        "the Scenario project to the folder. `export`: upload every own asset to Scenario. For import and export, stop "
        "the server; both continue where an earlier run ended.",
        "serve|route|models|import|export",
        {"choices": ["serve", "route", "models", "import", "export"]},
    ),
    Flag(
        ("changes",),
        "With `route`: which side serves a capability, such as txt2img=own, img2img=own:25 (a quarter of the "
        'requests), model_abc=scenario, "GET /models"=scenario, or *=scenario for every generate call. CAPABILITY= '
        "removes an entry.",
        "CAPABILITY=SIDE",
        {"nargs": "*"},
    ),
    Flag(
        ("--only",),
        'With `route`: remove every other entry. `route "*=scenario" --only` sends every generate call to Scenario.',
        settings={"action": "store_true"},
    ),
    *SERVE_FLAGS,
)


def commands(_workflows: Mapping[str, Workflow]) -> tuple[Command, ...]:
    """Return the command `scenario`."""
    return (Command("scenario", [*SCENARIO_FLAGS, JSON], _scenario),)


def _scenario(call: Call) -> int:
    actions: dict[str, Callable[[Call], int]] = {
        "serve": serve_scenario,
        "route": _route,
        "models": _models,
        "import": import_library,
        "export": export_assets,
    }
    if (call.options.changes or call.options.only) and call.options.action != "route":
        raise UsageError("only `scenario route` takes CAPABILITY=SIDE and --only")
    with requiring_extra("The shim", "scenario"):
        importlib.import_module("comfy_client.gateway.scenario.settings")
    return actions[call.options.action](call)


def _route(call: Call) -> int:
    from comfy_client.gateway.scenario.bridge.routing import RoutingTable  # noqa: PLC0415 - only needed by this command
    from comfy_client.gateway.scenario.settings import ShimSettings  # noqa: PLC0415 - as above

    table = RoutingTable(call.options.data or ShimSettings.from_env(call.environment).directory)
    changes = dict(map(_parse_change, call.options.changes))
    is_change = changes or call.options.only
    rules = table.change(changes, keeps_others=not call.options.only) if is_change else table.rules
    lines = [f"{name:40} {rule.shares}" for name, rule in rules.items()]
    rest = "Every other call: own if the shim can serve it, else scenario (with SCENARIO_SHIM_UPSTREAM_API_KEY)"
    call.screen.show({"routes": {name: str(rule) for name, rule in rules.items()}}, *lines, rest)
    return 0


def _parse_change(text: str) -> tuple[str, RoutingRule | None]:
    from comfy_client.gateway.scenario.bridge.routing import RoutingRule  # noqa: PLC0415 - as above

    try:
        capability, side = parse_pair(text)
        return capability, RoutingRule.parse(side) if side else None
    except (ValueError, argparse.ArgumentTypeError) as error:
        raise UsageError(f"{error}. Write CAPABILITY=SIDE, such as txt2img=own:25") from error


def _models(call: Call) -> int:
    from comfy_client.gateway.scenario.bridge.upstream import private_models  # noqa: PLC0415 - as above
    from comfy_client.gateway.scenario.settings import ShimSettings  # noqa: PLC0415 - as above
    from comfy_client.gateway.scenario.studio_models import unmapped_table  # noqa: PLC0415 - as above

    settings = ShimSettings.from_env(call.environment)
    table = unmapped_table(asyncio.run(private_models(settings.upstream())), settings.models)
    call.screen.show(table, json.dumps(table, indent=2, ensure_ascii=False))
    return 0
