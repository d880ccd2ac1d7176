"""The simulator of RunPod's management API. A fault in the simulator could hide a fault in `comfy_client/deploy`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import requests

from simulators.runpod.rest import RunPodAccount

TEMPLATE = {"name": "t", "image": "a/b:1", "serverless": True, "disk": 40, "env": {"A": "1", "B": "2"}}
ENDPOINT = {
    "name": "e",
    "type": "QUEUE",
    "image": "a/b:1",
    "gpu": {"pools": ["ADA_24"]},
    "scaling": {"type": "QUEUE_DELAY", "queueDelay": 4},
}


@pytest.fixture
def account() -> Iterator[RunPodAccount]:
    """An empty account."""
    with RunPodAccount() as account:
        yield account


def call(account: RunPodAccount, method: str, path: str, body: object = None) -> requests.Response:
    """Send a request with the account's key; return the response."""
    url = account.environment()["RUNPOD_REST_BASE_URL"] + path
    headers = {"Authorization": f"Bearer {account.api_key}"}
    return requests.request(method, url, json=body, headers=headers, timeout=60)


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/templates", {**TEMPLATE, "imageName": "x"}, "imageName"),
        ("/templates", {"name": "t"}, "image"),
        ("/serverless", {**ENDPOINT, "modelReferences": []}, "modelReferences"),
        ("/serverless", {**ENDPOINT, "gpu": {}}, "pools"),
        ("/serverless", {**ENDPOINT, "gpu": {"pools": ["ADA_24"], "minCudaVersion": ""}}, "minCudaVersion"),
        ("/serverless", {**ENDPOINT, "workers": {"idleTimeout": 0}}, "idleTimeout"),
        ("/serverless", {**ENDPOINT, "flashboot": True}, "flashboot"),
        ("/serverless", {key: value for key, value in ENDPOINT.items() if key != "image"}, "image"),
    ],
)
def test_an_invalid_body_is_a_422_with_its_field(account: RunPodAccount, path: str, body: object, field: str) -> None:
    """The response is a problem of RFC 9457 with a list of errors; nothing is created."""
    response = call(account, "POST", path, body)

    assert response.status_code == 422
    assert response.headers["Content-Type"] == "application/problem+json"
    assert field in str(response.json()["errors"])
    assert not account.templates
    assert not account.endpoints


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"gpu": {"pools": ["NONE"]}}, 400),
        ({"gpu": {"minCudaVersion": "13.0", "allowedCudaVersions": ["12.8"]}}, 400),
        ({"gpu": {"excludedTypes": ["NVIDIA L40"]}}, 422),
        ({"gpu": {"pools": ["ADA_24"], "excludedTypes": ["NVIDIA L40"]}}, 400),
        ({"type": "QUEUE"}, 422),
    ],
)
def test_contradicting_fields_are_rejected(account: RunPodAccount, change: dict[str, Any], status: int) -> None:
    """PATCH and POST reject fields that contradict each other by the rules of RunPod's documentation."""
    endpoint_id = call(account, "POST", "/serverless", ENDPOINT).json()["id"]

    assert call(account, "PATCH", f"/serverless/{endpoint_id}", change).status_code == status


def test_a_template_is_copied_once(account: RunPodAccount) -> None:
    """A new endpoint gets the template's container settings and variables, except those that the request sets.

    Later changes of the template do not change the endpoint.
    """
    template_id = call(account, "POST", "/templates", TEMPLATE).json()["id"]
    body = {**ENDPOINT, "templateId": template_id, "env": {"B": "mine"}}
    endpoint = call(account, "POST", "/serverless", body).json()
    call(account, "PATCH", f"/templates/{template_id}", {"disk": 99})

    assert (endpoint["disk"], endpoint["env"]) == (40, {"A": "1", "B": "mine"})
    assert account.endpoints[endpoint["id"]]["disk"] == 40
    assert "templateId" not in endpoint


def test_an_endpoint_with_workers_is_not_deleted(account: RunPodAccount) -> None:
    """The workers must be set to 0 first. The bound template is deleted with the endpoint, not before."""
    endpoint_id = call(account, "POST", "/serverless", ENDPOINT).json()["id"]
    [bound] = account.templates
    assert call(account, "DELETE", f"/templates/{bound}").status_code == 400
    assert call(account, "DELETE", f"/serverless/{endpoint_id}").status_code == 400
    call(account, "PATCH", f"/serverless/{endpoint_id}", {"workers": {"min": 0, "max": 0}})

    assert call(account, "DELETE", f"/serverless/{endpoint_id}").status_code == 204
    assert not account.templates
    assert call(account, "DELETE", f"/serverless/{endpoint_id}").status_code == 404


def test_graphql_replaces_an_endpoint(account: RunPodAccount) -> None:
    """`saveEndpoint` sets the cached models and the defaults of omitted fields. An unknown field is an error."""
    body = {**ENDPOINT, "workers": {"max": 9}, "timeout": 600_000}
    endpoint_id = call(account, "POST", "/serverless", body).json()["id"]
    url = account.environment()["RUNPOD_GRAPHQL_URL"]
    headers = {"Authorization": f"Bearer {account.api_key}"}
    given = {"id": endpoint_id, "name": "e", "gpuIds": "ADA_24", "modelReferences": ["m"]}
    query = "mutation { saveEndpoint }"
    for more in ({"nonsense": 1}, {}):
        response = requests.post(
            url, json={"query": query, "variables": {"input": given | more}}, headers=headers, timeout=60
        ).json()
        assert ("errors" in response) == bool(more)

    assert account.endpoints[endpoint_id]["workers"]["max"] == 3
    assert account.endpoints[endpoint_id]["timeout"] == 0
    assert account.cached_models[endpoint_id] == ["m"]


def test_a_key_is_needed(account: RunPodAccount) -> None:
    """A missing or wrong key is 401; a valid key gets rate limits."""
    url = account.environment()["RUNPOD_REST_BASE_URL"] + "/templates"

    assert requests.get(url, timeout=60).status_code == 401
    assert requests.get(url, headers={"Authorization": account.api_key}, timeout=60).status_code == 401
    assert "RateLimit" in call(account, "GET", "/templates").headers


def test_availability_needs_a_product(account: RunPodAccount) -> None:
    """The catalogue's availability can only be requested for a product. A method that is not simulated gets 501."""
    assert call(account, "GET", "/catalog/gpus?include=AVAILABILITY").status_code == 400
    assert "availability" not in call(account, "GET", "/catalog/gpus").json()["gpus"][0]
    assert call(account, "PUT", "/templates/x").status_code == 501
