"""Records of Scenario pass the schemas of the shim's OpenAPI document."""

from __future__ import annotations

import pytest

from bench.shim_process import ShimProcess
from tests.gateway.scenario.documented import DocumentedCaller

pytestmark = pytest.mark.slow


def test_records_of_scenario_have_the_required_fields(shim: ShimProcess) -> None:
    """A job and an asset that Scenario made have the required fields with their types. They may have more fields."""
    caller = DocumentedCaller(shim.base_url, is_closed=False)
    body = {"modelId": "flux.1-dev", "prompt": "x", "controlImage": "data:image/png;base64,AA=="}
    caller.follow("POST /generate/txt2img", body, "?dryRun=true")
    made = caller.ended(caller.follow("POST /generate/txt2img", body)["job"]["jobId"])
    [asset_id] = made["metadata"]["assetIds"]

    assert caller.follow("GET /jobs/{jobId}", jobId=made["jobId"])["job"]["metadata"]["side"] == "scenario"
    assert caller.follow("GET /assets/{assetId}", assetId=asset_id)["asset"]["metadata"]["side"] == "scenario"
    assert [job["jobId"] for job in caller.follow("GET /jobs")["jobs"]] == [made["jobId"]]
    assert [asset["id"] for asset in caller.follow("GET /assets")["assets"]] == [asset_id]
