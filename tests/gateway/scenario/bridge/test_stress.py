"""Scenario is slow, cuts responses, refuses calls or is gone while own jobs run, and the shim is killed meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from bench.shim_process import ShimProcess
from comfy_client.gateway.scenario.bridge.upstream import Upstream, UpstreamCall
from comfy_client.gateway.scenario.errors import ShimError
from simulators.runpod.queue_api import RunPodPlatform
from simulators.scenario.api import KEY, SECRET, ScenarioSimulator
from simulators.waiting import until
from tests.gateway.scenario.bridge.caller import Caller

pytestmark = pytest.mark.slow
RETRY = {"x-stainless-retry-count": "1"}


def own_job_status(caller: Caller, seed: int) -> str:
    """Run a job on the shim's own endpoint, and return the status in which it ended."""
    made = caller.generate("txt2img", modelId="flux.1-dev", prompt="a knight", width=64, height=64, seed=str(seed))
    return str(made["status"])


def test_own_jobs_do_not_wait_for_a_slow_scenario(
    caller: Caller, scenario: ScenarioSimulator, platform: RunPodPlatform
) -> None:
    """While ten forwarded calls wait for Scenario, ten own jobs succeed; then each forwarded call gets its response."""
    scenario.faults.stall("generate", times=10)
    with ThreadPoolExecutor(10) as pool:
        slow = [pool.submit(caller.call, "POST", "/generate/restyle", {"prompt": str(each)}) for each in range(10)]
        assert until(lambda: scenario.submissions == 10)
        own = [own_job_status(caller, seed) for seed in range(10)]
        still_waiting = [each for each in slow if not each.done()]
        scenario.faults.clear()
        statuses = [each.result().status_code for each in slow]

    assert own == ["success"] * 10
    assert len(still_waiting) == 10
    assert statuses == [200] * 10
    assert (scenario.submissions, len(platform.jobs)) == (10, 10)


def test_a_response_that_does_not_come_is_an_error(scenario: ScenarioSimulator) -> None:
    """After the read timeout, a call that Scenario may have accepted is 502, and was sent once."""
    scenario.faults.stall("generate")

    async def send() -> None:
        upstream = Upstream(scenario.url, KEY, SECRET, read_timeout_s=0.2)
        try:
            await upstream.json(UpstreamCall("POST", "/generate/restyle", "", b"{}", "application/json"))
        finally:
            await upstream.close()

    with pytest.raises(ShimError, match="may have accepted it") as raised:
        asyncio.run(send())
    assert raised.value.status == 502
    assert scenario.submissions == 1


FAULTS: dict[str, tuple[Callable[[ScenarioSimulator], None], int]] = {
    "cut": (lambda scenario: scenario.faults.cut_response("generate", 5), 502),
    "dropped": (lambda scenario: scenario.faults.drop_connection("generate", 5, after_handling=True), 502),
    "throttled": (lambda scenario: scenario.faults.throttle(3, 5), 429),
    "failed": (lambda scenario: scenario.faults.respond("generate", 500, 5), 500),
    "gone": (lambda scenario: scenario.stop(), 502),
}
"""A fault for the next five calls, and the status that their callers get."""


@pytest.mark.parametrize("fault", FAULTS)
def test_own_jobs_succeed_during_a_fault(
    caller: Caller, scenario: ScenarioSimulator, platform: RunPodPlatform, fault: str
) -> None:
    """Five own jobs succeed while five forwarded calls fail with an error of Scenario's shape; each is sent once."""
    inject, status = FAULTS[fault]
    inject(scenario)
    with ThreadPoolExecutor(10) as pool:
        forwarded = [pool.submit(caller.call, "POST", "/generate/restyle", {"prompt": str(each)}) for each in range(5)]
        own = list(pool.map(lambda seed: own_job_status(caller, seed), range(5)))
    responses = [each.result() for each in forwarded]

    assert own == ["success"] * 5
    assert len(platform.jobs) == 5
    assert [each.status_code for each in responses] == [status] * 5
    for each in responses:
        assert each.json()["reason"]
        assert each.json()["trace_id"]
    assert scenario.calls.count("POST /v1/generate/restyle") == (0 if fault == "gone" else 5)


def test_a_cut_generate_response_is_not_sent_again(caller: Caller, scenario: ScenarioSimulator) -> None:
    """The SDK's retry of a call whose response was cut is refused, and Scenario has one job."""
    scenario.faults.cut_response("generate")
    cut = caller.call("POST", "/generate/restyle", {"prompt": "x"})
    retried = caller.call("POST", "/generate/restyle", {"prompt": "x"}, **RETRY)

    assert (cut.status_code, retried.status_code) == (502, 502)
    assert "was not sent again" in retried.json()["reason"]
    assert scenario.submissions == 1


@pytest.mark.parametrize("cut", ["cut_image", "cut_response"])
def test_a_cut_image_is_not_kept(caller: Caller, scenario: ScenarioSimulator, cut: str) -> None:
    """A copy of which half of the image arrived is 502, and the next call copies the whole image."""
    scenario.add_images(1)
    [(asset_id, asset)] = scenario.assets.items()
    if cut == "cut_image":
        scenario.faults.cut_image()
    else:
        scenario.faults.cut_response("image")
    failed = caller.call("GET", f"/assets/{asset_id}")

    assert failed.status_code == 502
    assert caller.image(asset_id) == asset.data


def test_a_kill_during_a_forwarded_call_sends_nothing_twice(
    caller: Caller, shim: ShimProcess, scenario: ScenarioSimulator
) -> None:
    """The shim is killed while Scenario handles a call: after the restart, the SDK's retry is refused."""
    caller.json("POST", "/generate/restyle", {"prompt": "answered"})
    scenario.faults.stall("generate")
    with ThreadPoolExecutor(1) as pool:
        lost = pool.submit(caller.call, "POST", "/generate/restyle", {"prompt": "x"})
        assert until(lambda: scenario.submissions == 2)
        shim.kill()
        assert isinstance(lost.exception(30), OSError)
    scenario.faults.clear()
    shim.start()
    restarted = Caller(shim.base_url)
    retried = restarted.call("POST", "/generate/restyle", {"prompt": "x"}, **RETRY)
    repeated = restarted.call("POST", "/generate/restyle", {"prompt": "answered"}, **RETRY)

    assert retried.status_code == 502
    assert "was not sent again" in retried.json()["reason"]
    assert repeated.status_code == 200
    assert scenario.submissions == 2
