"""Calls that the shim does not serve reach Scenario once, and the caller gets Scenario's response."""

from __future__ import annotations

import pytest
import requests

from bench.shim_process import OTHER_KEY, OTHER_SECRET, ShimProcess
from simulators.runpod.queue_api import RunPodPlatform
from simulators.scenario.api import KEY, MODEL, SECRET, ScenarioSimulator
from simulators.scenario.records import noise_png
from simulators.waiting import until
from tests.gateway.scenario.bridge.caller import Caller

pytestmark = pytest.mark.slow


def test_a_chain_crosses_the_sides(caller: Caller, scenario: ScenarioSimulator, platform: RunPodPlatform) -> None:
    """The shim makes the image, Scenario removes its background, and the shim refines Scenario's image."""
    made = caller.generate("txt2img", modelId="flux.1-dev", prompt="a knight", width=64, height=64)
    [own_id] = made["metadata"]["assetIds"]
    cut = caller.generate("remove-background", image=own_id)
    [scenario_id] = cut["metadata"]["assetIds"]
    refined = caller.generate("img2img", modelId="flux.1-dev", prompt="a knight", image=scenario_id)

    assert [job["metadata"]["side"] for job in (made, cut, refined)] == ["own", "scenario", "own"]
    assert cut["metadata"]["input"]["image"] == own_id
    assert scenario.submissions == 1
    assert len(platform.jobs) == 2
    assert caller.image(scenario_id) == scenario.assets[scenario_id].data


def test_an_own_asset_is_uploaded_once(caller: Caller, scenario: ScenarioSimulator) -> None:
    """Two forwarded calls with the same own asset, in different places of the body, upload it once, with its tags."""
    made = caller.generate("txt2img", modelId="flux.1-dev", prompt="a knight", width=64, height=64)
    [own_id] = made["metadata"]["assetIds"]
    caller.json("PUT", f"/assets/{own_id}/tags", {"add": ["hero"]})
    caller.generate("remove-background", image=own_id)
    caller.generate("restyle", images=[{"id": own_id}])

    assert scenario.calls.count("POST /v1/assets") == 1
    [uploaded] = [asset for asset in scenario.assets.values() if asset.source == "uploaded"]
    assert uploaded.data == caller.image(own_id)
    assert uploaded.tags == ["hero"]


def test_an_asset_of_scenario_is_copied_once_under_its_id(caller: Caller, scenario: ScenarioSimulator) -> None:
    """After the first use, the copy is served although Scenario is gone: record, tags, image, list and bulk."""
    [asset_id] = caller.generate("restyle", prompt="x")["metadata"]["assetIds"]
    scenario.assets[asset_id].tags = ["old"]
    first = caller.json("GET", f"/assets/{asset_id}")["asset"]
    before = len(scenario.calls)

    assert (first["id"], first["tags"], first["metadata"]["side"]) == (asset_id, ["old"], "scenario")
    assert caller.image(asset_id) == scenario.assets[asset_id].data
    assert [each["id"] for each in caller.json("GET", "/assets")["assets"]] == [asset_id]
    [bulk] = caller.json("POST", "/assets/get-bulk", {"assetIds": [asset_id]})["assets"]
    assert bulk["id"] == asset_id
    assert len(scenario.calls) == before


def test_a_job_under_way_at_scenario_is_answered_until_it_ends(caller: Caller, scenario: ScenarioSimulator) -> None:
    """A job that was started at Scenario without the shim is polled, listed and found again after its end."""
    direct = Caller(scenario.url, auth=("api_standin", "sec_standin_0123456789"))
    job_id = direct.json("POST", f"/generate/custom/{MODEL}", {"prompt": "a knight"})["job"]["jobId"]

    ended = caller.ended(job_id)
    scenario.jobs.clear()

    assert ended["status"] == "success"
    assert caller.json("GET", f"/jobs/{job_id}")["job"]["metadata"] == ended["metadata"]
    assert [job["jobId"] for job in caller.json("GET", "/jobs")["jobs"]] == [job_id]


def test_a_field_or_model_that_the_shim_lacks_goes_to_scenario(caller: Caller, scenario: ScenarioSimulator) -> None:
    """controlImage, a model of the studio and its LoRA reach Scenario unchanged; a wrong value does not."""
    caller.generate("txt2img", modelId="flux.1-dev", prompt="a", controlImage="data:image/png;base64,AA==")
    caller.generate("txt2img", modelId="model_studio", prompt="a")
    caller.generate("txt2img", modelId="flux.1-dev", prompt="a", loras=["model_studio"])
    wrong = caller.call("POST", "/generate/txt2img", {"modelId": "flux.1-dev", "prompt": "a", "numSamples": 0})

    assert [job.body for job in scenario.jobs.values()] == [
        {"modelId": "flux.1-dev", "prompt": "a", "controlImage": "data:image/png;base64,AA=="},
        {"modelId": "model_studio", "prompt": "a"},
        {"modelId": "flux.1-dev", "prompt": "a", "loras": ["model_studio"]},
    ]
    assert wrong.status_code == 400


def test_the_responses_are_scenario_s(caller: Caller, scenario: ScenarioSimulator) -> None:
    """The status of an estimate, an unknown route and a wrong method arrive unchanged."""
    estimate = caller.call("POST", "/generate/upscale?dryRun=true", {"prompt": "x"})
    unknown = caller.call("GET", "/teams/x/limits?pageSize=3")
    wrong_method = caller.call("PATCH", "/models/model_x", {"name": "a"})

    assert (estimate.status_code, estimate.json()["creativeUnitsCost"]) == (269, 5)
    assert scenario.submissions == 0
    assert (unknown.status_code, wrong_method.status_code) == (404, 405)


def test_every_response_names_its_side(caller: Caller, scenario: ScenarioSimulator) -> None:
    """`x-shim-side` is scenario for each forwarded call, also of a route that the shim has and if it fails."""

    def side(method: str, path: str, body: object = None) -> str:
        return caller.call(method, path, body).headers["x-shim-side"]

    foreign = {"modelId": "model_studio", "prompt": "x"}
    job_id = caller.json("POST", "/generate/txt2img", foreign)["job"]["jobId"]
    forwarded = [
        side("POST", "/generate/txt2img", foreign),
        side("POST", "/generate/txt2img?dryRun=true", foreign),
        side("GET", f"/jobs/{job_id}"),
        side("GET", "/models/model_studio"),
        side("GET", "/teams/x"),
    ]
    scenario.faults.respond("generate", 500)
    forwarded.append(side("POST", "/generate/restyle", {}))
    own = [
        side("POST", "/generate/txt2img", {"modelId": "flux.1-dev"}),
        side("GET", "/jobs"),
        side("GET", "/models"),
    ]

    assert forwarded == ["scenario"] * 6
    assert own == ["own"] * 3


def test_other_callers_do_not_see_a_forwarded_job(caller: Caller, shim: ShimProcess) -> None:
    """A job that one key forwarded is 404 for another key."""
    job_id = caller.json("POST", "/generate/restyle", {"prompt": "x"})["job"]["jobId"]
    other = Caller(shim.base_url, auth=(OTHER_KEY, OTHER_SECRET))

    assert other.call("GET", f"/jobs/{job_id}").status_code == 404
    assert other.call("POST", f"/jobs/{job_id}/action", {"action": "cancel"}).status_code == 404
    assert requests.get(f"{shim.base_url}/teams", timeout=60).status_code == 401


def test_a_lost_response_is_not_sent_twice(caller: Caller, scenario: ScenarioSimulator) -> None:
    """Scenario accepted the call and the response was lost: the error says so, and the SDK's retry is refused."""
    scenario.faults.drop_connection("generate", after_handling=True)
    lost = caller.call("POST", "/generate/restyle", {"prompt": "x"})
    retried = caller.call("POST", "/generate/restyle", {"prompt": "x"}, **{"x-stainless-retry-count": "1"})

    assert (lost.status_code, retried.status_code) == (502, 502)
    assert lost.headers["x-should-retry"] == "false"
    assert "may have accepted it" in lost.json()["reason"]
    assert scenario.submissions == 1


def test_a_retry_gets_the_first_response(caller: Caller, scenario: ScenarioSimulator) -> None:
    """The SDK's retry of a call whose response reached the shim, but not the caller, starts no second job."""
    first = caller.json("POST", "/generate/restyle", {"prompt": "x"})
    again = caller.json("POST", "/generate/restyle", {"prompt": "x"}, **{"x-stainless-retry-count": "1"})

    assert again["job"]["jobId"] == first["job"]["jobId"]
    assert scenario.submissions == 1


def test_a_retry_prefers_the_call_whose_response_was_lost(caller: Caller, scenario: ScenarioSimulator) -> None:
    """Of two equal calls, the first was answered and the response to the second was lost: its retry is refused."""
    caller.json("POST", "/generate/restyle", {"prompt": "x"})
    scenario.faults.drop_connection("generate", after_handling=True)
    lost = caller.call("POST", "/generate/restyle", {"prompt": "x"})
    retried = caller.call("POST", "/generate/restyle", {"prompt": "x"}, **{"x-stainless-retry-count": "1"})

    assert (lost.status_code, retried.status_code) == (502, 502)
    assert scenario.submissions == 2


def test_an_idempotency_key_belongs_to_one_request(caller: Caller, scenario: ScenarioSimulator) -> None:
    """An equal request with the same key gets the first response; a different one gets 400 and is not sent."""
    key = {"Idempotency-Key": "k1"}
    first = caller.json("POST", "/generate/restyle", {"prompt": "x"}, **key)
    again = caller.json("POST", "/generate/restyle", {"prompt": "x"}, **key)
    other = caller.call("POST", "/generate/restyle", {"prompt": "y"}, **key)

    assert again["job"]["jobId"] == first["job"]["jobId"]
    assert other.status_code == 400
    assert "already used for a different request" in other.json()["reason"]
    assert scenario.submissions == 1


@pytest.mark.parametrize("status", [429, 500, 503])
def test_an_error_of_scenario_reaches_the_caller_once(caller: Caller, scenario: ScenarioSimulator, status: int) -> None:
    """The shim repeats no call. The body has Scenario's reason, and the next call of the caller is sent."""
    scenario.faults.respond("generate", status, body={"reason": "not now", "remainingSeconds": 3})
    refused = caller.call("POST", "/generate/restyle", {"prompt": "x"})
    again = caller.call("POST", "/generate/restyle", {"prompt": "x"}, **{"x-stainless-retry-count": "1"})

    assert refused.status_code == status
    assert (refused.json()["reason"], refused.json()["remainingSeconds"]) == ("not now", 3)
    assert again.status_code == 200
    assert scenario.calls.count("POST /v1/generate/restyle") == 2


def test_own_jobs_do_not_need_scenario(caller: Caller, scenario: ScenarioSimulator) -> None:
    """While Scenario is gone, own jobs succeed. A forwarded call fails, and the error says that nothing was sent."""
    scenario.stop()
    made = caller.generate("txt2img", modelId="flux.1-dev", prompt="a knight", width=64, height=64)
    gone = caller.call("POST", "/generate/restyle", {"prompt": "x"})

    assert made["status"] == "success"
    assert gone.status_code == 502
    assert "Nothing was sent" in gone.json()["reason"]
    assert until(lambda: caller.call("GET", "/jobs").status_code == 200)


def test_models_of_both_sides_are_found_by_id(caller: Caller) -> None:
    """A model that the shim does not have is read from Scenario, alone and in bulk."""
    bulk = caller.json("POST", "/models/get-bulk", {"modelIds": ["flux.1-dev", "model_ink", "model_none"]})["models"]

    assert caller.json("GET", "/models/model_ink")["model"]["name"] == "Ink"
    assert caller.call("GET", "/models/model_none").status_code == 404
    assert [each["id"] for each in bulk] == ["flux.1-dev", "model_ink"]


def test_the_oldest_routes_of_scenario_s_models_have_scenario_s_inferences(
    caller: Caller, scenario: ScenarioSimulator
) -> None:
    """A job of a model that the shim lacks is found by its inference id, whose images load, and in the model's list."""
    body = {"parameters": {"type": "txt2img", "prompt": "a knight", "numSamples": 1}}
    started = caller.json("POST", "/models/model_ink/inferences", body)
    inference_id, job_id = started["inference"]["id"], started["job"]["jobId"]
    path = "/models/model_ink/inferences"
    assert until(lambda: caller.json("GET", f"{path}/{inference_id}")["inference"]["status"] == "succeeded")
    inference = caller.json("GET", f"{path}/{inference_id}")["inference"]
    [listed] = caller.json("GET", f"{path}?pageSize=1")["inferences"]

    assert inference_id != job_id
    assert requests.get(inference["images"][0]["url"], timeout=60).status_code == 200
    assert listed["id"] == inference_id
    assert caller.ended(job_id)["metadata"]["side"] == "scenario"
    assert scenario.submissions == 1


def test_the_models_of_the_account_follow_the_shim_s(caller: Caller, scenario: ScenarioSimulator) -> None:
    """`GET /models` pages through own models and then Scenario's, each once; without Scenario it has the own ones."""
    found: list[str] = []
    token = ""
    while True:
        page = caller.json("GET", f"/models?pageSize=1&paginationToken={token}")
        found += [each["id"] for each in page["models"]]
        token = page.get("nextPaginationToken", "")
        if not token:
            break
    public = [each["id"] for each in caller.json("GET", "/models/public")["models"]]
    scenario.faults.respond("models", 503)
    alone = [each["id"] for each in caller.json("GET", "/models")["models"]]

    assert found == [*alone, "model_studio", "model_ink"]
    assert public == alone
    assert alone[0] == MODEL


def test_an_upload_that_was_started_at_scenario_ends_there(caller: Caller, scenario: ScenarioSimulator) -> None:
    """An upload whose parts were sent to Scenario before the switch is completed and found through the shim."""
    key = (KEY, SECRET)
    begun = requests.post(f"{scenario.url}/uploads", json={"fileName": "k.png", "parts": 1}, auth=key, timeout=60)
    upload = begun.json()["upload"]
    requests.put(upload["parts"][0]["url"], data=noise_png(8, 8, 1), timeout=60).raise_for_status()
    caller.json("POST", f"/uploads/{upload['id']}/action", {"action": "complete"})
    path = f"/uploads/{upload['id']}"
    assert until(lambda: caller.json("GET", path)["upload"]["status"] == "imported")

    assert caller.json("GET", path)["upload"]["entityId"] in scenario.assets
    assert caller.call("GET", "/uploads/upload_unknown").status_code == 404


def test_the_list_of_public_assets_is_scenario_s(caller: Caller, scenario: ScenarioSimulator) -> None:
    """`GET /assets/public` is a list of Scenario, not an asset with that id."""
    assert caller.call("GET", "/assets/public").headers["x-shim-side"] == "scenario"
    assert scenario.calls == ["GET /v1/assets/public"]
