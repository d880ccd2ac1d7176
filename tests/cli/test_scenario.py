"""`comfy-client scenario route`."""

from __future__ import annotations

from pathlib import Path

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
