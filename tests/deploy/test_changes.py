"""Property test without sockets: a deployment that is changed to another description then equals that description."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from comfy_client.deploy.description import FLASHBOOT, find_faults, make_description
from comfy_client.deploy.desired import ResourceIds, endpoint_creation, make_endpoint, make_template, template_creation
from comfy_client.deploy.diff import changes_of, patch_of
from comfy_core.prices import POOLS
from simulators.runpod.rest import Account
from simulators.runpod.rest.shapes import CATALOGUE

PRICED_POOLS = sorted({gpu["pool"] for gpu in CATALOGUE} & set(POOLS))
TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=5)
VERSIONS = st.sampled_from(["", "12.8", "13.0"])


@st.composite
def descriptions(draw: st.DrawFn) -> dict[str, Any]:
    """Generate the content of a valid deploy.toml."""
    max_workers = draw(st.integers(1, 9))
    pools = draw(st.lists(st.sampled_from(PRICED_POOLS), min_size=1, max_size=4, unique=True))
    available = [gpu["id"] for gpu in CATALOGUE if gpu["pool"] in pools]
    return {
        "name": "flux",
        "image": f"ghcr.io/me/worker:{draw(st.integers(0, 3))}",
        "disk_gb": draw(st.integers(5, 99)),
        "gpu": {
            "pools": pools,
            "excluded": draw(st.lists(st.sampled_from(available), unique=True, max_size=2)),
            "min_cuda_version": draw(VERSIONS),
        },
        "workers": {
            "min": draw(st.integers(0, max_workers)),
            "max": max_workers,
            "idle_timeout_s": draw(st.integers(1, 3600)),
            "queue_delay_s": draw(st.floats(0.5, 60)),
            "flashboot": draw(st.sampled_from(FLASHBOOT)),
            "execution_timeout_s": draw(st.integers(5, 9999)),
        },
        "storage": draw(st.sampled_from([{}, {"data_centers": []}, {"data_centers": ["US-KS-2", "EU-RO-1"]}])),
        "env": draw(st.dictionaries(st.sampled_from(["A", "B", "C"]), TEXTS, max_size=3)),
    }


@given(descriptions(), descriptions(), st.sampled_from(["", "reg1"]), st.sampled_from(["", "vol1"]))
def test_a_change_leads_from_any_description_to_any_other(
    first: dict[str, Any], then: dict[str, Any], registry: str, volume: str
) -> None:
    """The simulated RunPod accepts each create and each patch, and no difference is left afterwards."""
    assert find_faults(first) == find_faults(then) == []
    account = Account()
    old, new = make_description(first), make_description(then)
    template_id = account.create_template(template_creation("flux", make_template(old, ResourceIds())))["id"]
    body = make_endpoint(old, ResourceIds(), old.gpu_pools, {"SECRET_KEY": "1"})
    endpoint_id = account.create_endpoint(endpoint_creation("flux", body, template_id))["id"]
    assert changes_of(body, account.endpoints[endpoint_id], ()) == ()

    resource_ids = ResourceIds(registry, volume)
    for wanted, existing, update in (
        (make_template(new, resource_ids), account.templates[template_id], account.update_template),
        (make_endpoint(new, resource_ids, new.gpu_pools, {}), account.endpoints[endpoint_id], account.update_endpoint),
    ):
        changed = update(existing["id"], patch_of(wanted, existing))
        assert changes_of(wanted, changed, ()) == ()
        assert patch_of(wanted, changed) == {}
