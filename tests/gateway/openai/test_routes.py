"""Which API responds to a request: by path, by the scheme of its key, and by `--api`."""

from __future__ import annotations

from pathlib import Path

import pytest
import requests

from bench.shim_process import KEY, NO_ENDPOINT, OTHER_KEY, OTHER_SECRET, SECRET, ShimProcess

pytestmark = pytest.mark.slow
BASIC = (KEY, SECRET)
BEARER = {"Authorization": f"Bearer {KEY}:{SECRET}"}


def keys(response: requests.Response) -> set[str]:
    """Return the keys of a response's JSON."""
    return set(response.json())


def test_a_bearer_token_selects_openai_s_models(server: ShimProcess) -> None:
    """`/v1/models` has OpenAI's list for a bearer token, else Scenario's. `/openai/v1` has OpenAI's, `/models` not."""
    url = server.url

    assert keys(requests.get(f"{url}/v1/models", headers=BEARER, timeout=60)) == {"object", "data"}
    assert keys(requests.get(f"{url}/openai/v1/models", auth=BASIC, timeout=60)) == {"object", "data"}
    assert "models" in keys(requests.get(f"{url}/v1/models", auth=BASIC, timeout=60))
    assert "models" in keys(requests.get(f"{url}/models", headers=BEARER, timeout=60))
    assert "models" in keys(requests.get(f"{url}/v1/models/public", auth=BASIC, timeout=60))
    assert keys(requests.get(f"{url}/v1/models/flux.1-dev", auth=BASIC, timeout=60)) == {"model"}
    assert requests.get(f"{url}/v1/models/flux-dev-txt2img", headers=BEARER, timeout=60).json()["object"] == "model"


def test_an_error_has_the_format_of_its_api(server: ShimProcess) -> None:
    """An unknown route below /v1 has OpenAI's error for a bearer token, else Scenario's."""
    for path, headers, auth, kind in (
        ("/v1/chat/completions", BEARER, None, "error"),
        ("/v1/models", BEARER, None, "error"),
        ("/openai/v1/anything", {}, BASIC, "error"),
        ("/v1/anything", {}, BASIC, "reason"),
        ("/anything", BEARER, None, "reason"),
    ):
        assert kind in keys(requests.post(f"{server.url}{path}", headers=headers, auth=auth, timeout=60)), path


def test_an_account_is_one_caller_in_both_apis(server: ShimProcess) -> None:
    """A job that was created with a bearer token belongs to its account, and to no other one."""
    call = {"prompt": "a knight", "size": "64x64", "steps": 1}
    made = requests.post(f"{server.base_url}/images/generations", json=call, headers=BEARER, timeout=300)
    job_id = made.json()["job_id"]
    url = f"{server.base_url}/jobs/{job_id}"

    assert requests.get(url, auth=BASIC, timeout=60).json()["job"]["jobId"] == job_id
    assert requests.get(url, auth=(OTHER_KEY, OTHER_SECRET), timeout=60).status_code == 404


def test_openai_s_api_alone(tmp_path: Path) -> None:
    """With `--api openai`, Scenario's routes have no prefix, for the web page, and every key gets OpenAI's models."""
    with ShimProcess(NO_ENDPOINT, tmp_path, "--api=openai", command=("serve",)) as server:
        assert keys(requests.get(f"{server.url}/v1/models", auth=BASIC, timeout=60)) == {"object", "data"}
        assert requests.get(f"{server.url}/v1/jobs", headers=BEARER, timeout=60).status_code == 404
        assert requests.get(f"{server.url}/jobs", auth=BASIC, timeout=60).status_code == 200
        assert requests.get(f"{server.url}/shim/jobs", auth=BASIC, timeout=60).status_code == 200
        assert "OPENAI_BASE_URL" in server.log
        assert "SCENARIO_BASE_URL" not in server.log


@pytest.mark.parametrize("command", [("serve", "--api=scenario"), ("scenario", "serve")])
def test_scenario_s_api_alone(tmp_path: Path, command: tuple[str, ...]) -> None:
    """`serve --api scenario` and `scenario serve` have no route of OpenAI."""
    with ShimProcess(NO_ENDPOINT, tmp_path, command=command) as server:
        assert "models" in keys(requests.get(f"{server.url}/v1/models", headers=BEARER, timeout=60))
        assert requests.post(f"{server.url}/v1/images/generations", headers=BEARER, timeout=60).status_code == 501
        assert "OPENAI_BASE_URL" not in server.log


def test_without_keys_only_this_machine_is_served(tmp_path: Path) -> None:
    """With `--insecure-local`, any key is accepted, and a call from a page of another site is refused."""
    with ShimProcess(
        {**NO_ENDPOINT, "SCENARIO_SHIM_ACCOUNTS": ""}, tmp_path, "--insecure-local", command=("serve",)
    ) as server:
        url = f"{server.base_url}/images/generations"
        foreign = {"Authorization": "Bearer none", "Origin": "https://evil.example"}
        refused = requests.post(url, json={"prompt": "a knight"}, headers=foreign, timeout=60)
        listed = requests.get(f"{server.base_url}/models", headers={"Authorization": "Bearer none"}, timeout=60)

    assert (refused.status_code, refused.json()["error"]["type"]) == (403, "permission_error")
    assert listed.json()["object"] == "list"
