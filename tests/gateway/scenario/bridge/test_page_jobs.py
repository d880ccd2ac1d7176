"""Scenario's jobs on the web page of a shim that has Scenario's key."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from comfy_client.gateway.scenario.bridge.routing import RoutingRule, RoutingTable
from comfy_client.gateway.scenario.models import Side
from simulators.scenario.api import ScenarioSimulator
from simulators.waiting import until
from tests.gateway.scenario.bridge.caller import Caller

pytestmark = pytest.mark.slow


def only_job(caller: Caller) -> dict[str, Any]:
    """Return the newest job of the page."""
    return dict(caller.json("GET", "/shim/jobs?pageSize=1")["jobs"][0])


def test_a_forwarded_job_is_updated_by_the_page(caller: Caller, scenario: ScenarioSimulator) -> None:
    """Nobody polls the job, and the changes of the page have its end, its prompt and its creative units."""
    token = caller.json("GET", "/shim/jobs")["changeToken"]
    job_id = caller.json("POST", "/generate/remove-background", {"prompt": "a knight"})["job"]["jobId"]
    seen: dict[str, Any] = {}

    def has_ended() -> bool:
        seen.update(
            {each["job"]["jobId"]: each for each in caller.json("GET", f"/shim/jobs/changes?since={token}")["jobs"]}
        )
        return bool(seen[job_id]["job"]["status"] == "success")

    assert until(has_ended)
    assert (seen[job_id]["side"], seen[job_id]["prompt"], seen[job_id]["creativeUnits"]) == ("scenario", "a knight", 5)
    assert scenario.submissions == 1


def test_a_forwarded_job_runs_again_on_the_side_of_the_table(
    caller: Caller, scenario: ScenarioSimulator, tmp_path: Path
) -> None:
    """The call is made again: at Scenario, and at the endpoint once the routing table says so."""
    table = RoutingTable(tmp_path / "shim")
    table.change({"txt2img": RoutingRule(Side.SCENARIO)})
    body = {"prompt": "a knight", "width": 256, "height": 256, "numInferenceSteps": 4}
    first = caller.json("POST", "/generate/custom/model_bfl-flux-1-dev", body)["job"]["jobId"]
    caller.ended(first)
    second = caller.json("POST", f"/shim/jobs/{first}/again", {"seed": "new"})["job"]["jobId"]
    table.change({"txt2img": None})
    third = caller.json("POST", f"/shim/jobs/{first}/again", {"seed": "new"})["job"]["jobId"]

    assert [scenario.jobs[each].body for each in (first, second)] == [body, body]
    assert caller.ended(third)["metadata"]["side"] == "own"
    assert only_job(caller)["prompt"] == "a knight"


def test_a_job_of_a_route_that_only_scenario_has_runs_again(caller: Caller, scenario: ScenarioSimulator) -> None:
    """Its path and body are sent again, with the ids of own assets translated, and each job is charged once."""
    made = caller.generate("txt2img", modelId="flux.1-dev", prompt="a knight", width=64, height=64)
    [asset_id] = made["metadata"]["assetIds"]
    first = caller.json("POST", "/generate/remove-background", {"image": asset_id})["job"]["jobId"]
    second = caller.json("POST", f"/shim/jobs/{first}/again", {"seed": "same"})["job"]["jobId"]

    assert scenario.submissions == 2
    assert scenario.jobs[first].body == scenario.jobs[second].body
    assert scenario.jobs[second].job_type == "remove-background"


def test_a_deleted_job_of_scenario_does_not_return(caller: Caller) -> None:
    """It is deleted here only, and a request with its id does not read it from Scenario again. Its units stay."""
    job_id = caller.generate("remove-background", prompt="a knight")["jobId"]
    before = caller.json("GET", "/shim/overview")["scenario"]
    caller.json("DELETE", f"/shim/jobs/{job_id}")

    assert caller.call("GET", f"/jobs/{job_id}").status_code == 404
    assert caller.json("GET", "/shim/jobs")["jobs"] == []
    assert before == {"jobs": 1, "creative_units": 5}
    assert caller.json("GET", "/shim/overview")["scenario"] == before


def test_the_content_of_a_deleted_job_of_scenario_is_erased(
    caller: Caller, scenario: ScenarioSimulator, tmp_path: Path
) -> None:
    """The database has no prompt of it, and a retry of its call gets the job's id and is not sent."""
    call = ("POST", "/generate/remove-background", {"prompt": "a secret plan"})
    key = {"Idempotency-Key": "k1"}
    job_id = caller.json(*call, **key)["job"]["jobId"]
    caller.ended(job_id)
    caller.json("DELETE", f"/shim/jobs/{job_id}")
    again = caller.json(*call, **key)["job"]
    with closing(sqlite3.connect(tmp_path / "shim/shim.sqlite3")) as database:
        rows = [*database.execute("SELECT * FROM jobs"), *database.execute("SELECT * FROM forwarded_calls")]

    assert (again["jobId"], scenario.submissions) == (job_id, 1)
    assert len(rows) == 2
    assert "secret" not in str(rows)


def test_the_overview_has_the_routing_table(caller: Caller, tmp_path: Path) -> None:
    """It has each capability with its side and percentage, and whether the shim has Scenario's key."""
    RoutingTable(tmp_path / "shim").change({"txt2img": RoutingRule(Side.OWN, 25), "*": RoutingRule(Side.SCENARIO)})
    overview = caller.json("GET", "/shim/overview")

    assert overview["hasScenario"] is True
    assert overview["routing"] == [
        {"capability": "*", "side": "scenario", "percent": 100},
        {"capability": "txt2img", "side": "own", "percent": 25},
    ]
