"""`comfy-client scenario`: `route`, `models`, and the error of `import` and `export` without Scenario's key."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from comfy_client.gateway.scenario.bridge.routing import RoutingRule, RoutingTable
from comfy_client.gateway.scenario.models import Side
from simulators.scenario.api import KEY, SECRET, ScenarioSimulator
from tests.cli.conftest import Shell


def test_the_command_shows_and_changes_the_table(shell: Shell, tmp_path: Path) -> None:
    """`scenario route` prints the table; CAPABILITY=SIDE sets an entry, and CAPABILITY= removes it."""
    data = f"--data={tmp_path}"
    shown = shell("scenario", "route", "txt2img=own:25", "img2img=scenario", data)
    changed = shell("scenario", "route", "txt2img=", data)
    refused = shell("scenario", "route", "txt2img=ours", data)

    assert "own 25 %, scenario 75 %" in shown.out
    assert changed.status == 0
    assert "img2img" in changed.out
    assert "txt2img" not in changed.out
    assert refused.status == 2
    assert RoutingTable(tmp_path).rules == {"img2img": RoutingRule(Side.SCENARIO)}


@pytest.mark.parametrize("action", ["import", "export"])
def test_a_transfer_needs_scenario_s_key(shell: Shell, tmp_path: Path, action: str) -> None:
    """Without the key, the command exits with status 3, names the variables, and does not create the folder."""
    refused = shell("scenario", action, f"--data={tmp_path / 'shim'}")

    assert refused.status == 3
    assert "SCENARIO_SHIM_UPSTREAM_API_KEY" in refused.err
    assert not (tmp_path / "shim").exists()


def test_the_models_of_the_account_are_listed_for_the_table(shell: Shell) -> None:
    """`scenario models` prints each private model of the account, and keeps the entries of SCENARIO_SHIM_MODELS."""
    ink = {"loras": [{"name": "ink.safetensors"}]}
    with ScenarioSimulator() as scenario:
        listed = shell(
            "scenario",
            "models",
            SCENARIO_SHIM_UPSTREAM_API_KEY=KEY,
            SCENARIO_SHIM_UPSTREAM_API_SECRET=SECRET,
            SCENARIO_SHIM_UPSTREAM_URL=scenario.url,
            SCENARIO_SHIM_MODELS=json.dumps({"model_ink": ink}),
        )
    without_key = shell("scenario", "models")

    assert json.loads(listed.out) == {"model_studio": {"name": "Studio", "loras": None}, "model_ink": ink}
    assert without_key.status == 3
    assert "SCENARIO_SHIM_UPSTREAM_API_KEY is not set" in without_key.err


def test_the_commands_of_the_page_change_the_table(shell: Shell, tmp_path: Path) -> None:
    """The commands of docs/bridge.md set two entries, replace them by one, and empty the table."""
    page = Path(__file__).parents[2] / "docs" / "bridge.md"
    commands = [line for line in page.read_text().splitlines() if line.startswith("comfy-client scenario route ")]
    table = RoutingTable(tmp_path / "scenario-shim")
    sizes = []
    for command in commands:
        assert shell(*shlex.split(command, comments=True)[1:]).status == 0
        sizes.append(len(table.rules))

    assert sizes == [2, 1, 0]
