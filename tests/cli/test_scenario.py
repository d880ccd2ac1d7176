"""`comfy-client scenario route`, and the error of `import` and `export` without Scenario's key."""

from __future__ import annotations

from pathlib import Path

import pytest

from comfy_client.gateway.scenario.bridge.routing import RoutingRule, RoutingTable
from comfy_client.gateway.scenario.models import Side
from tests.cli.conftest import Shell


def test_the_command_shows_and_changes_the_table(shell: Shell, tmp_path: Path) -> None:
    """`scenario route` prints the table; CAPABILITY=SIDE sets an entry, and CAPABILITY= removes it."""
    data = f"--data={tmp_path}"
    shell("scenario", "route", "txt2img=own:25", "img2img=scenario", data)
    changed = shell("scenario", "route", "txt2img=", data)
    refused = shell("scenario", "route", "txt2img=ours", data)

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
