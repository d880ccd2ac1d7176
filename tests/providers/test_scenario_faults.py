"""Faults between the provider `scenario` and Scenario, over real sockets, caused by the simulator."""

from __future__ import annotations

from typing import Any

import pytest

from comfy_client.client import Client
from comfy_client.job import ProviderUnavailable
from comfy_core.error_codes import ErrorCode
from comfy_core.errors import ComfyClientError, JobError, RequestError, Unauthorized
from simulators.scenario import MODEL, ScenarioSimulator
from tests.fakes.closed_port import ClosedPort
from tests.providers.provider_fixtures import scenario_client

pytestmark = pytest.mark.slow
SMALL: dict[str, Any] = {"width": 128, "height": 128, "steps": 4}
GENERATE = f"POST /v1/generate/custom/{MODEL}"


STATUSES: dict[int, tuple[type[ComfyClientError], ErrorCode]] = {
    400: (JobError, ErrorCode.INVALID_INPUT),
    401: (Unauthorized, ErrorCode.AUTH_FAILED),
    402: (RequestError, ErrorCode.AUTH_FAILED),
    403: (Unauthorized, ErrorCode.AUTH_FAILED),
    404: (RequestError, ErrorCode.ENDPOINT_NOT_FOUND),
    408: (RequestError, ErrorCode.NETWORK),
    409: (RequestError, ErrorCode.NETWORK),
    413: (RequestError, ErrorCode.PAYLOAD_TOO_LARGE),
    418: (RequestError, ErrorCode.NETWORK),
    422: (JobError, ErrorCode.INVALID_INPUT),
    429: (RequestError, ErrorCode.RATE_LIMITED),
    500: (RequestError, ErrorCode.NETWORK),
    503: (RequestError, ErrorCode.NETWORK),
}
"""Every status for which the SDK has its own exception, and others."""


@pytest.mark.parametrize("status", STATUSES)
def test_a_submit_with_an_error_response_is_not_repeated(
    scenario: ScenarioSimulator, client_of_scenario: Client, status: int
) -> None:
    """Every error status results in one call and one error of this client, with Scenario's message and trace id."""
    scenario.faults.respond("generate", status)
    kind, code = STATUSES[status]
    with pytest.raises(kind, match=rf"{status} \(internal error; trace trace_") as info:
        client_of_scenario.submit(prompt="x")

    assert info.value.code is code
    assert scenario.calls == [GENERATE]
    if code is ErrorCode.NETWORK:
        assert info.value.report.details["may_run"] is (status >= 500)


@pytest.mark.parametrize("is_handled", [True, False])
def test_a_submit_without_a_response_may_have_started_a_job(
    scenario: ScenarioSimulator, client_of_scenario: Client, *, is_handled: bool
) -> None:
    """The error reports that the job may run, and the submit is not repeated."""
    before = scenario.submissions
    scenario.faults.drop_connection("generate", after_handling=is_handled)
    with pytest.raises(RequestError, match="not sent again") as info:
        client_of_scenario.submit(prompt="x", **SMALL)

    assert info.value.report.details["may_run"] is True
    assert scenario.submissions - before == is_handled
    assert scenario.calls == [GENERATE]


def test_a_refused_connection_started_no_job(scenario: ScenarioSimulator) -> None:
    """The error says that no job runs."""
    with (
        ClosedPort(scenario.url) as closed_port,
        scenario_client(scenario, SCENARIO_BASE_URL=closed_port.url) as client,
        pytest.raises(RequestError) as info,
    ):
        client.submit(prompt="x")

    assert info.value.is_unsent
    assert info.value.report.details["may_run"] is False


def test_a_response_that_is_not_json_is_an_error(scenario: ScenarioSimulator, client_of_scenario: Client) -> None:
    """The error has the URL; the submit may have arrived."""
    scenario.faults.respond("generate", 200, body="<html>hello</html>")
    with pytest.raises(RequestError, match="http://127") as info:
        client_of_scenario.submit(prompt="x")

    assert info.value.report.details["may_run"] is True


def test_a_429_has_its_delay(scenario: ScenarioSimulator, client_of_scenario: Client) -> None:
    """`remainingSeconds` of a 429 is available for a retry, at most half a minute."""
    waits = []
    for seconds in (12, 3600):
        scenario.faults.throttle(seconds)
        with pytest.raises(RequestError) as info:
            client_of_scenario.submit(prompt="x")
        waits.append(info.value.retry_after_s)

    assert waits == [12, 30]
    assert info.value.is_transient


def test_polls_and_downloads_are_retried(scenario: ScenarioSimulator, client_of_scenario: Client) -> None:
    """After a 503 or a lost connection, polling a job and downloading its image continue."""
    job = client_of_scenario.submit(prompt="x", **SMALL)
    scenario.faults.respond("job", 503)
    scenario.faults.drop_connection("job")
    scenario.faults.respond("asset", 500)
    scenario.faults.respond("image", 503)
    kinds = [type(event) for event in job.events()]

    assert kinds.count(ProviderUnavailable) >= 2
    assert scenario.calls.count(GENERATE) == 1
    assert job.result().images


def test_a_failed_job_has_scenario_s_reason(scenario: ScenarioSimulator, client_of_scenario: Client) -> None:
    """The error has Scenario's message and hint."""
    scenario.faults.fail_job("The prompt was moderated", "Change it")
    with pytest.raises(JobError, match=r"The prompt was moderated \(Change it\)") as info:
        client_of_scenario.txt2img("x", **SMALL)

    assert info.value.code is ErrorCode.EXECUTION_FAILED


def test_a_job_without_an_image_is_no_output(scenario: ScenarioSimulator, client_of_scenario: Client) -> None:
    """A job that succeeded without an asset is reported as no_output."""
    scenario.faults.lose_assets()
    with pytest.raises(JobError) as info:
        client_of_scenario.txt2img("x", **SMALL)

    assert info.value.code is ErrorCode.NO_OUTPUT


def test_a_truncated_image_is_downloaded_again(scenario: ScenarioSimulator, client_of_scenario: Client) -> None:
    """A truncated image is downloaded once more, and then reported as lost."""
    scenario.faults.cut_image()
    assert client_of_scenario.txt2img("x", **SMALL).image.pil().size == (128, 128)
    scenario.faults.cut_image(times=2)
    with pytest.raises(JobError, match="damaged") as info:
        client_of_scenario.txt2img("x", **SMALL)

    assert info.value.code is ErrorCode.RESULT_LOST


@pytest.mark.parametrize(("route", "status"), [("asset", 404), ("image", 403)])
def test_a_deleted_or_expired_image_is_lost(
    scenario: ScenarioSimulator,
    client_of_scenario: Client,
    route: Any,  # noqa: ANN401 - a Literal
    status: int,
) -> None:
    """A deleted asset, and a URL that has expired, are result_lost."""
    scenario.faults.respond(route, status)
    with pytest.raises(JobError, match="does not exist any more") as info:
        client_of_scenario.txt2img("x", **SMALL)

    assert info.value.code is ErrorCode.RESULT_LOST
