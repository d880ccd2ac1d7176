"""Logic of a deployment without sockets: request bodies, differences, GPU offers with prices, and error messages."""

from __future__ import annotations

import json

import pytest

from comfy_client.deploy.description import SCHEMA, make_description
from comfy_client.deploy.desired import ResourceIds, endpoint_creation, make_endpoint, make_template
from comfy_client.deploy.diff import HIDDEN, changes_of, patch_of
from comfy_client.deploy.offers import make_offers
from comfy_client.deploy.responses import api_error
from comfy_core.error_codes import ErrorCode
from comfy_core.errors import ConfigError, RequestError, Unauthorized
from comfy_core.prices import AS_OF, POOLS
from simulators.runpod.rest.shapes import CATALOGUE, gpu

DESCRIPTION = make_description(
    {
        "name": "flux",
        "image": "a/b:1",
        "gpu": {"pools": ["ADA_24"]},
        "storage": {"data_centers": []},
        "env": {"A": "plain"},
        "secrets": ["B"],
    }
)
FULL_DESCRIPTION = make_description(
    {
        "name": "flux",
        "image": "a/b:1",
        "registry": "r",
        "gpu": {"pools": ["ADA_24"], "excluded": ["NVIDIA L4"], "min_cuda_version": "13.0"},
        "storage": {"data_centers": ["EU-RO-1"], "network_volume": "v"},
    }
)
ENDPOINT = make_endpoint(DESCRIPTION, ResourceIds(), DESCRIPTION.gpu_pools, {"B": "s3cret"})


def test_equal_endpoints_have_no_difference() -> None:
    """A field that RunPod omits or returns as null equals an empty value; RunPod's own fields are ignored."""
    response = {**ENDPOINT, "id": "ep", "createdAt": "now", "gpu": {**ENDPOINT["gpu"], "minCudaVersion": None}}
    for omitted in ("registry", "networkVolumes", "dataCenterIds"):
        response.pop(omitted)
    response["gpu"].pop("excludedTypes")

    assert changes_of(ENDPOINT, response, {"A"}) == ()


def test_secrets_are_only_in_the_endpoint() -> None:
    """The endpoint has the secrets. The template, which may be shared, has only the plain variables."""
    assert make_template(DESCRIPTION, ResourceIds())["env"] == {"A": "plain"}
    assert ENDPOINT["env"] == {"A": "plain", "B": "s3cret"}


def test_a_difference_hides_possible_secrets() -> None:
    """A difference shows new values of plain variables, but neither secrets nor old values of variables."""
    existing = {**ENDPOINT, "env": {"A": "old-text", "B": "old-s3cret", "GONE": "x-text"}, "disk": 20}
    lines = [change.line for change in changes_of(ENDPOINT, existing, {"A"})]

    assert lines == [
        "~ disk_gb: 20 -> 40",
        f"~ env.A: {HIDDEN} -> plain",
        f"~ env.B: {HIDDEN} -> {HIDDEN}",
        f"- env.GONE: {HIDDEN}",
    ]


def test_a_difference_has_the_keys_and_units_of_deploy_toml() -> None:
    """Changes have deploy.toml's keys and units. A field without a key is shown only if it was changed at RunPod."""
    tables = SCHEMA["properties"]
    keys = {f"{table}.{key}" for table, rule in tables.items() for key in rule.get("properties", {})} | tables.keys()
    wanted = {
        **make_template(FULL_DESCRIPTION, ResourceIds("r")),
        **make_endpoint(FULL_DESCRIPTION, ResourceIds("r", "v"), ["ADA_24"], {}),
    }
    created = {change.path: change.after for change in changes_of(wanted, None, {"A"}) if "env." not in change.path}
    existing = {**wanted, "timeout": 1_800_000, "startSsh": True, "scaling": {**wanted["scaling"], "queueDelay": 9}}
    changed = [change.line for change in changes_of(wanted, existing, {"A"})]

    assert created.keys() <= keys
    assert created["workers.execution_timeout_s"] == "600"
    assert changed == [
        "~ startSsh: true -> false",
        "~ workers.queue_delay_s: 9 -> 4",
        "~ workers.execution_timeout_s: 1800 -> 600",
    ]


def test_a_patch_only_has_the_changed_fields() -> None:
    """A patch has only changed fields. `gpu` is sent as a whole, because RunPod clears what a patch of `gpu` omits."""
    existing = {**ENDPOINT, "disk": 20, "gpu": {**ENDPOINT["gpu"], "allowedCudaVersions": ["12.8"]}}

    assert patch_of(ENDPOINT, existing) == {"disk": 40, "gpu": ENDPOINT["gpu"]}


def test_a_create_has_no_empty_constraint() -> None:
    """A create has no empty CUDA version, which RunPod accepts only in a PATCH; it has name, type and template."""
    body = endpoint_creation("flux", ENDPOINT, "tpl1")

    assert body["gpu"] == {"pools": ["ADA_24"], "count": 1}
    assert (body["name"], body["type"], body["templateId"]) == ("flux", "QUEUE", "tpl1")


def test_the_cheapest_pool_is_requested_first() -> None:
    """With `is_by_price` pools are ordered by the catalogue's prices, otherwise they stay in their order."""
    expensive_catalogue = [gpu("ADA_24", "RTX 4090", 24, 3.6), *CATALOGUE[1:]]
    pools = ["ADA_32_PRO", "ADA_48_PRO", "ADA_24", "AMPERE_48"]

    offers = make_offers(pools, expensive_catalogue, is_by_price=True)

    assert offers.names == ("AMPERE_48", "ADA_48_PRO", "ADA_24", "ADA_32_PRO")
    assert offers.pools[2].usd_per_s == pytest.approx(0.001)
    assert "now" in offers.source
    assert make_offers(pools, expensive_catalogue, is_by_price=False).names == tuple(pools)


def test_the_availability_of_a_pool_is_that_of_its_best_gpu() -> None:
    """A pool has the availability of its best GPU that is not excluded. A pool with too little memory says so."""
    [offer] = make_offers(["ADA_48_PRO"], CATALOGUE, is_by_price=True).pools
    [small_pool] = make_offers(["AMPERE_16"], CATALOGUE, is_by_price=True).pools
    [with_exclusion] = make_offers(["ADA_48_PRO"], CATALOGUE, is_by_price=True, excluded=["NVIDIA L40"]).pools

    assert (offer.gpus, offer.availability) == (("L40", "L40S"), "LOW")
    assert (with_exclusion.gpus, with_exclusion.availability) == (("L40S",), "NONE")
    assert "less than the 24 GB" in small_pool.sentence


def test_without_a_catalogue_the_dated_table_is_used() -> None:
    """Without a catalogue prices come from our dated table; availability and prices of new pools are unknown."""
    offers = make_offers(["ADA_48_PRO", "ADA_24", "NEW_POOL"], None, is_by_price=True)

    assert offers.names == ("ADA_24", "ADA_48_PRO", "NEW_POOL")
    assert offers.pools[0].usd_per_s == POOLS["ADA_24"].flex_usd_per_s
    assert AS_OF in offers.source
    assert offers.pools[0].availability is None
    assert "price unknown" in offers.pools[2].sentence


def test_an_unknown_pool_is_rejected() -> None:
    """The error for an unknown pool suggests the most similar one, and lists the pools."""
    with pytest.raises(ConfigError, match=r'gpu.pools: unknown pool ADA_25; did you mean "ADA_24"\? Pools.*AMPERE_48'):
        make_offers(["ADA_25"], CATALOGUE, is_by_price=True)


@pytest.mark.parametrize(
    ("status", "body", "code", "expected"),
    [
        (401, {"detail": "invalid api key"}, ErrorCode.AUTH_FAILED, "rejected the API key"),
        (403, {"detail": "access denied"}, ErrorCode.AUTH_FAILED, "may read and write Serverless"),
        (404, {"detail": "resource not found"}, ErrorCode.ENDPOINT_NOT_FOUND, "RUNPOD_REST_BASE_URL"),
        (422, {"detail": "failed.", "errors": ["body.x: unknown"]}, ErrorCode.NETWORK, "failed; body.x: unknown"),
        (429, {"detail": "rate limit exceeded"}, ErrorCode.RATE_LIMITED, "after 7 s"),
        (
            400,
            {"errors": [{"message": "one"}, "two", [3]]},
            ErrorCode.NETWORK,
            ": one; two; [3]. Correct the named fields in deploy.toml",
        ),
        (409, "taken", ErrorCode.NETWORK, "taken"),
        (500, "<html>oops</html>", ErrorCode.NETWORK, "Run the command again"),
        (503, {"title": "Unavailable"}, ErrorCode.NETWORK, "Unavailable"),
    ],
)
def test_an_error_names_what_failed_and_what_to_do(status: int, body: object, code: ErrorCode, expected: str) -> None:
    """For each status and body the error has its code, what failed, and RunPod's reason or a remedy."""
    text = body if isinstance(body, str) else json.dumps(body)
    error = api_error(RequestError("x", status=status, body=text, retry_after_s=7), "create the endpoint flux")

    assert error.code is code
    assert expected in str(error)
    assert "create the endpoint flux" in str(error)
    assert "<html>" not in str(error)
    assert isinstance(error, Unauthorized) == (status in {401, 403})


def test_an_error_never_repeats_a_secret() -> None:
    """Secrets that RunPod repeats in its response are in no part of the error."""
    credential = 'p4"ss\\wd'
    body = json.dumps({"detail": "bad value", "errors": [f"body.env.B: is {credential}", "key rpa_1"]})
    error = api_error(RequestError("x", status=422, body=body), "create", (credential, "rpa_1"))

    for text in (str(error), error.body, error.report.to_json()):
        assert "p4" not in text
        assert "rpa_1" not in text
