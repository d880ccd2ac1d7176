"""The OpenAPI document describes the responses of a running shim."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from bench.shim_process import ShimProcess
from bench.worker_setup import ROOT
from comfy_client.gateway.scenario.routes import ROUTES
from simulators.runpod.queue_api import RunPodPlatform
from tests.gateway.scenario.documented import DocumentedCaller

pytestmark = pytest.mark.slow
MODEL = "flux.1-dev"
BODY = {
    "prompt": "a knight",
    "width": 64,
    "height": 64,
    "numInferenceSteps": 4,
    "guidance": "3.5",
    "style": "x",
    "numSamples": 2,
}


@pytest.fixture
def own(platform: RunPodPlatform, tmp_path: Path, released: Any) -> Iterator[DocumentedCaller]:  # noqa: ANN401 - an event
    """A caller of a shim without a key of Scenario."""
    released.set()
    variables = {**platform.client_env(), "SCENARIO_SHIM_LORAS": '{"model_style": "style.safetensors"}'}
    with ShimProcess(variables, tmp_path / "shim") as shim:
        yield DocumentedCaller(shim.base_url, is_closed=True)


def use_every_route(caller: DocumentedCaller) -> None:
    """Call each route at least once, with a second page, an estimate and a finished job."""
    follow = caller.follow
    knight = base64.b64encode((ROOT / "examples" / "knight.png").read_bytes()).decode()
    uploaded = follow("POST /assets", {"name": "knight.png", "image": knight})["asset"]["id"]
    follow("POST /generate/txt2img", {**BODY, "modelId": MODEL}, "?dryRun=true")
    job_id = follow("POST /generate/txt2img", {**BODY, "modelId": MODEL})["job"]["jobId"]
    caller.ended(job_id)
    made = follow("GET /jobs/{jobId}", jobId=job_id)["job"]["metadata"]["assetIds"]
    refined = {**BODY, "modelId": MODEL, "image": uploaded, "strength": 0.5, "scheduler": "EulerDiscrete"}
    caller.ended(follow("POST /generate/img2img", refined)["job"]["jobId"])
    follow("POST /generate/custom/{modelId}", {"prompt": "a knight"}, modelId=MODEL)
    legacy = follow("POST /models/{modelId}/inferences", {"parameters": {**BODY, "type": "txt2img"}}, modelId=MODEL)
    legacy_id = legacy["job"]["jobId"]
    caller.ended(legacy_id)
    follow("GET /models/{modelId}/inferences/{inferenceId}", modelId=MODEL, inferenceId=legacy_id)
    follow("GET /models/{modelId}/inferences", modelId=MODEL, query="?pageSize=1")
    follow("POST /jobs/{jobId}/action", {"action": "cancel"}, jobId=job_id)
    for route in ("GET /jobs", "GET /assets", "GET /models", "GET /models/public"):
        page = follow(route, query="?pageSize=1")
        assert page["nextPaginationToken"]
    follow("POST /assets/get-bulk", {"assetIds": [uploaded, *made]})
    follow("GET /assets/{assetId}", assetId=made[0])
    follow("PUT /assets/{assetId}/tags", {"add": ["hero"]}, assetId=made[0])
    follow("POST /assets/{assetId}/download", {"targetFormat": "webp"}, assetId=made[0])
    follow("DELETE /assets", {"assetIds": made})
    use_uploads(caller)
    follow("POST /models/get-bulk", {"modelIds": [MODEL]})
    follow("GET /models/{modelId}", modelId=MODEL)
    follow("GET /shim/overview")
    token = follow("GET /shim/jobs", query="?pageSize=1")["changeToken"]
    again = follow("POST /shim/jobs/{jobId}/again", {"seed": "same"}, jobId=legacy_id)["job"]["jobId"]
    caller.ended(again)
    assert follow("GET /shim/jobs/changes", query=f"?since={token}")["matching"] == [again]
    follow("DELETE /shim/jobs/{jobId}", jobId=again)
    assert follow("GET /shim/usage")["totals"]


def use_uploads(caller: DocumentedCaller) -> None:
    """Upload one image in a part, and complete an upload that is not an image."""
    for data in ((ROOT / "examples" / "knight.png").read_bytes(), b"no image"):
        upload = caller.follow("POST /uploads", {"fileName": "knight.png", "parts": 1})["upload"]
        requests.put(upload["parts"][0]["url"], data=data, timeout=60).raise_for_status()
        ended = caller.follow("POST /uploads/{uploadId}/action", {"action": "complete"}, uploadId=upload["id"])
        assert ended["upload"]["status"] == ("failed" if data == b"no image" else "imported")
        caller.follow("GET /uploads/{uploadId}", uploadId=upload["id"])


def test_own_responses_have_the_documented_fields_and_no_others(own: DocumentedCaller) -> None:
    """Every route of the document is called. A field that the document lacks, or another type, fails the test."""
    use_every_route(own)

    assert own.used == {f"{route.method} {route.path}" for route in ROUTES}


def test_an_error_is_documented(own: DocumentedCaller) -> None:
    """400, 404 and 501 have the documented fields."""
    own.follow("POST /generate/txt2img", {"prompt": ""})
    own.follow("GET /jobs/{jobId}", jobId="job_missing")
    assert own.call("POST", "/generate/upscale", {}).status_code == 501
