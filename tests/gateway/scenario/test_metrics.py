"""`GET /metrics`: what it measures, who may read it, and what its labels contain."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import requests
import yaml  # type: ignore[import-untyped] # it has no types
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families

from bench.shim_process import KEY, SECRET, ShimProcess
from bench.worker_setup import ROOT
from comfy_client.gateway.scenario.metrics import ShimMetrics
from comfy_client.gateway.scenario.models import Phase, ShimAsset, ShimJob, Side
from comfy_client.gateway.scenario.store import Store
from comfy_client.providers.scenario_responses import Status
from comfy_core.error_codes import ErrorCode
from simulators.runpod.queue_api import RunPodPlatform
from simulators.scenario.api import ScenarioSimulator
from tests.gateway.scenario.bridge.caller import Caller
from tests.gateway.scenario.bridge.conftest import upstream_variables

TOKEN = "prometheus"  # noqa: S105 - of these tests
SMALL = {"modelId": "flux.1-dev", "width": 64, "height": 64}
PAGE = (ROOT / "docs" / "scenario.md").read_text(encoding="utf-8")
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def samples(text: str) -> Samples:
    """Return the value of each sample by its name and labels."""
    return {
        (each.name, frozenset(each.labels.items())): each.value
        for family in text_string_to_metric_families(text)
        for each in family.samples
    }


def value(found: Samples, name: str, **labels: str) -> float:
    """Return the value of a sample of the shim."""
    return found[f"scenario_shim_{name}", frozenset(labels.items())]


def scrape(shim: ShimProcess) -> str:
    """Return the response to a scrape with the metrics token."""
    response = requests.get(f"{shim.url}/metrics", headers={"Authorization": f"Bearer {TOKEN}"}, timeout=60)
    assert response.status_code == 200, response.text
    return response.text


@pytest.fixture
def shim(
    platform: RunPodPlatform, tmp_path: Path, released: threading.Event
) -> Iterator[tuple[ShimProcess, ScenarioSimulator]]:
    """A shim with a metrics token and the key of a simulated Scenario. Its endpoint responds at once."""
    released.set()
    with (
        ScenarioSimulator() as scenario,
        ShimProcess(
            {
                **platform.client_env(),
                **upstream_variables(scenario),
                "SCENARIO_SHIM_METRICS_TOKEN": TOKEN,
                "COMFY_CLIENT_GPU_USD_PER_S": "0.01",
            },
            tmp_path / "shim",
        ) as shim,
    ):
        yield shim, scenario


@pytest.mark.slow
def test_a_scrape_has_the_jobs_and_calls_of_both_sides(shim: tuple[ShimProcess, ScenarioSimulator]) -> None:
    """Jobs, their times and costs, calls to Scenario, and requests by route are counted for each side."""
    process, scenario = shim
    caller = Caller(process.base_url)
    caller.generate("txt2img", prompt="a knight", **SMALL)
    caller.generate("restyle", prompt="a knight")
    scenario.faults.fail_job("the mask is empty")
    caller.generate("restyle", prompt="a horse")
    caller.call("POST", "/generate/txt2img", {"modelId": "flux.1-dev"})
    found = samples(scrape(process))

    assert value(found, "jobs", side="own", status="success") == 1
    assert value(found, "jobs", side="scenario", status="failure") == 1
    assert value(found, "jobs_ended_total", side="own", status="success") == 1
    assert value(found, "jobs_ended_total", side="scenario", status="success") == 1
    assert value(found, "job_errors_total", side="scenario", code="execution_failed") == 1
    for name in ("job_queue_seconds", "job_execution_seconds"):
        assert value(found, f"{name}_count", side="own") == 1
        assert value(found, f"{name}_count", side="scenario") == 1
    assert value(found, "job_duration_seconds_count", side="scenario", status="failure") == 1
    assert value(found, "spend_usd_total") == 0.01
    assert value(found, "creative_units_total") == 10
    assert value(found, "upstream_requests_total", method="POST", status="200") == 2
    route = {"method": "POST", "route": "/generate/txt2img", "side": "own"}
    assert value(found, "http_requests_total", **route, status="200") == 1
    assert value(found, "http_requests_total", **route, status="400") == 1
    forwarded = {"method": "POST", "route": "/{path:path}", "side": "scenario", "status": "200"}
    assert value(found, "http_requests_total", **forwarded) == 2
    assert value(found, "assets", side="own") == 1
    assert value(found, "asset_bytes", side="own") > 0
    assert value(found, "endpoint_up") == 1


@pytest.mark.slow
def test_labels_have_no_ids_or_texts_of_callers(shim: tuple[ShimProcess, ScenarioSimulator]) -> None:
    """Paths, methods, ids, prompts and keys of callers are no labels, so that a caller cannot create time series."""
    process, _ = shim
    caller = Caller(process.base_url)
    job_id = caller.generate("txt2img", prompt="a knight", **SMALL)["jobId"]
    before = samples(scrape(process)).keys()
    for each in ("stranger", "stranger2"):
        caller.call("GET", f"/jobs/job_{each}")
        caller.call("GET", f"/{each}/{each}")
        requests.request(f"BREW{each}", f"{process.url}/jobs", timeout=60)
    scrape(process)
    text = scrape(process)

    assert not [secret for secret in (job_id, "knight", KEY, SECRET, TOKEN, "stranger", "BREW") if secret in text]
    more = samples(text).keys() - before
    new_requests = {dict(labels)["route"] for name, labels in more if name == "scenario_shim_http_requests_total"}
    assert new_requests <= {"/jobs", "/jobs/{jobId}", "/{path:path}", "/metrics", "other"}


@pytest.mark.slow
def test_only_the_metrics_token_opens_the_metrics(
    shim: tuple[ShimProcess, ScenarioSimulator], shared_shim: ShimProcess
) -> None:
    """A caller's key and a wrong token get 401. Without a configured token, every reader gets 403."""
    url = f"{shim[0].url}/metrics"

    assert requests.get(url, timeout=60).status_code == 401
    assert requests.get(url, auth=(KEY, SECRET), timeout=60).status_code == 401
    assert requests.get(url, headers={"Authorization": "Bearer wrong"}, timeout=60).status_code == 401
    closed = requests.get(f"{shared_shim.url}/metrics", auth=(KEY, SECRET), timeout=60)
    assert closed.status_code == 403
    assert "SCENARIO_SHIM_METRICS_TOKEN" in closed.json()["reason"]


def job(job_id: str, created_at: float, status: Status, **changes: object) -> ShimJob:
    """Return a job that was created and changed last at `created_at`."""
    fixed = {
        "owner": "proj_x",
        "route": "txt2img",
        "job_type": "inference",
        "task": "txt2img",
        "model_id": "flux.1-dev",
    }
    times = {"created_at": created_at, "updated_at": created_at, "scenario_request": {}, "worker_request": {}}
    return ShimJob(id=job_id, status=status, **{**fixed, **times, **changes})  # type: ignore[arg-type]


def test_the_gauges_are_read_from_the_database(tmp_path: Path) -> None:
    """Jobs of an earlier process count: by side and status, those that wait, and the age of the oldest of them."""
    with closing(Store(tmp_path)) as store:
        store.add(
            job("a", 1000.0, Status.QUEUED),
            job("b", 2000.0, Status.WARMING_UP),
            job("c", 500.0, Status.QUEUED, side=Side.SCENARIO, phase=Phase.FORWARDED),
            job("d", 100.0, Status.IN_PROGRESS),
            ShimAsset("asset_x", "proj_x", 0.0, 0.0, "0" * 64, "image/png", 8, 8, 321, "x.png", "uploaded", "uploaded"),
        )
        text = asyncio.run(ShimMetrics(store.file, now=lambda: 4000.0).text()).decode()
    found = samples(text)

    assert value(found, "jobs", side="own", status="queued") == 1
    assert value(found, "jobs", side="scenario", status="queued") == 1
    assert value(found, "jobs", side="own", status="failure") == 0
    assert value(found, "jobs_waiting") == 2
    assert value(found, "oldest_waiting_job_age_seconds") == 3000
    assert value(found, "asset_bytes", side="own") == 321
    assert value(found, "store_up") == 1


def test_the_other_metrics_remain_without_the_database(tmp_path: Path) -> None:
    """If the database cannot be read, `store_up` is 0 and the counters of the process are still there."""
    metrics = ShimMetrics(tmp_path / "missing.sqlite3")
    metrics.job_ended(job("a", 0.0, Status.FAILURE, error_code=ErrorCode.OUT_OF_MEMORY.value))
    found = samples(asyncio.run(metrics.text()).decode())

    assert value(found, "store_up") == 0
    assert value(found, "job_errors_total", side="own", code="out_of_memory") == 1


@pytest.fixture
def families(tmp_path: Path) -> list[Metric]:
    """All metrics of a new shim, without the creation times that `scenario serve` turns off."""
    with closing(Store(tmp_path)) as store:
        text = asyncio.run(ShimMetrics(store.file).text()).decode()
    return [each for each in text_string_to_metric_families(text) if not each.name.endswith("_created")]


def test_names_and_units_follow_prometheus(families: list[Metric]) -> None:
    """Each metric has a help text, a type, and base units: seconds and bytes; counters end with _total."""
    assert len({each.name for each in families}) == len(families)
    for family in families:
        assert family.documentation, family.name
        assert family.type in ("counter", "gauge", "histogram"), family.name
        assert not re.search(r"(milliseconds|_ms|minutes|hours|kilobytes|_mb|_s)$", family.name), family.name
        assert family.type != "histogram" or family.name.endswith("_seconds"), family.name
        assert family.type != "counter" or all(each.name.endswith("_total") for each in family.samples), family.name


def test_the_page_lists_every_metric(families: list[Metric]) -> None:
    """The table of docs/scenario.md has each metric of the shim with its type, and no other."""
    rows = re.findall(r"^\| `(scenario_shim_\w+)` \| (\w+) \|", PAGE, re.MULTILINE)

    ours = [each for each in families if each.name.startswith("scenario_shim_")]
    assert dict(rows) == {f"{each.name}{'_total' if each.type == 'counter' else ''}": each.type for each in ours}


def test_the_alert_rules_use_metrics_that_exist(families: list[Metric]) -> None:
    """Each metric in the alert rules of docs/scenario.md is one of the shim."""
    blocks = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)]
    [alerts] = [block["groups"][0]["rules"] for block in blocks if "groups" in block]
    suffixes = {"counter": ("_total",), "histogram": ("_bucket", "_count", "_sum"), "gauge": ("",)}
    names = {f"{each.name}{suffix}" for each in families for suffix in suffixes[each.type]}

    assert len(alerts) >= 5
    for alert in alerts:
        assert set(re.findall(r"scenario_shim_\w+", alert["expr"])) <= names, alert["alert"]
        assert alert["annotations"]["summary"]
