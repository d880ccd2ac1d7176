"""What goes wrong between the provider `scenario` and Scenario: over real sockets, by the verbs of the stand-in."""

from __future__ import annotations

from typing import Any

import pytest

from comfy_client.client import Client
from comfy_client.job import ProviderUnavailable
from comfy_core.error_codes import ErrorCode
from comfy_core.errors import ComfyClientError, JobError, RequestError, Unauthorized
from simulators.scenario import MODEL, ScenarioStandIn
from tests.fakes.gate import Gate
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
"""All that the SDK has an exception of its own for, and more."""


@pytest.mark.parametrize("status", STATUSES)
def test_a_submit_that_is_answered_badly_is_never_sent_again(
    scenario: ScenarioStandIn, at_scenario: Client, status: int
) -> None:
    """Whatever the status, there is one call, and an error of ours with Scenario's words and the trace in it."""
    scenario.faults.respond("generate", status)
    kind, code = STATUSES[status]
    with pytest.raises(kind, match=rf"{status} \(internal error; trace trace_") as info:
        at_scenario.submit(prompt="x")

    assert info.value.code is code
    assert scenario.calls == [GENERATE]
    if code is ErrorCode.NETWORK:
        assert info.value.report.details["may_run"] is (status >= 500)


@pytest.mark.parametrize("is_handled", [True, False])
def test_a_submit_without_an_answer_may_run(
    scenario: ScenarioStandIn, at_scenario: Client, *, is_handled: bool
) -> None:
    """A connection that is lost leaves it open whether a job runs: it is said, and not sent again."""
    before = scenario.submissions
    scenario.faults.drop_connection("generate", after_handling=is_handled)
    with pytest.raises(RequestError, match="not sent again") as info:
        at_scenario.submit(prompt="x", **SMALL)

    assert info.value.report.details["may_run"] is True
    assert scenario.submissions - before == is_handled
    assert scenario.calls == [GENERATE]


def test_where_nobody_listens_nothing_may_run(scenario: ScenarioStandIn) -> None:
    """No connection was made: the job surely does not run."""
    with (
        Gate(scenario.url) as gate,
        scenario_client(scenario, SCENARIO_BASE_URL=gate.url) as client,
        pytest.raises(RequestError) as info,
    ):
        client.submit(prompt="x")

    assert info.value.is_unsent
    assert info.value.report.details["may_run"] is False


def test_an_answer_that_is_no_json_is_told(scenario: ScenarioStandIn, at_scenario: Client) -> None:
    """A page in place of an answer names the address; the submit may have arrived."""
    scenario.faults.respond("generate", 200, body="<html>hello</html>")
    with pytest.raises(RequestError, match="http://127") as info:
        at_scenario.submit(prompt="x")

    assert info.value.report.details["may_run"] is True


def test_too_many_requests_say_how_long(scenario: ScenarioStandIn, at_scenario: Client) -> None:
    """`remainingSeconds` of a 429 is there for who sends again, at most half a minute."""
    waits = []
    for seconds in (12, 3600):
        scenario.faults.throttle(seconds)
        with pytest.raises(RequestError) as info:
            at_scenario.submit(prompt="x")
        waits.append(info.value.retry_after_s)

    assert waits == [12, 30]
    assert info.value.is_transient


def test_questions_are_asked_again(scenario: ScenarioStandIn, at_scenario: Client) -> None:
    """A job is followed past 503 and lost connections; its asset and its picture are fetched past them too."""
    job = at_scenario.submit(prompt="x", **SMALL)
    scenario.faults.respond("job", 503)
    scenario.faults.drop_connection("job")
    scenario.faults.respond("asset", 500)
    scenario.faults.respond("image", 503)
    told = [type(event) for event in job.events()]

    assert told.count(ProviderUnavailable) >= 2
    assert scenario.calls.count(GENERATE) == 1
    assert job.result().images


def test_a_job_that_failed_says_why(scenario: ScenarioStandIn, at_scenario: Client) -> None:
    """Scenario's sentence and hint are the error's."""
    scenario.faults.fail_job("The prompt was moderated", "Change it")
    with pytest.raises(JobError, match=r"The prompt was moderated \(Change it\)") as info:
        at_scenario.txt2img("x", **SMALL)

    assert info.value.code is ErrorCode.EXECUTION_FAILED


def test_a_job_without_a_picture_is_no_output(scenario: ScenarioStandIn, at_scenario: Client) -> None:
    """It ended well and has nothing."""
    scenario.faults.lose_assets()
    with pytest.raises(JobError) as info:
        at_scenario.txt2img("x", **SMALL)

    assert info.value.code is ErrorCode.NO_OUTPUT


def test_a_damaged_picture_is_fetched_again(scenario: ScenarioStandIn, at_scenario: Client) -> None:
    """Half a picture is none: it is fetched once more, and then lost."""
    scenario.faults.cut_image()
    assert at_scenario.txt2img("x", **SMALL).image.pil().size == (128, 128)
    scenario.faults.cut_image(times=2)
    with pytest.raises(JobError, match="damaged") as info:
        at_scenario.txt2img("x", **SMALL)

    assert info.value.code is ErrorCode.RESULT_LOST


@pytest.mark.parametrize(("route", "status"), [("asset", 404), ("image", 403)])
def test_a_picture_that_is_gone_is_lost(
    scenario: ScenarioStandIn,
    at_scenario: Client,
    route: Any,  # noqa: ANN401 - a Literal
    status: int,
) -> None:
    """An asset that was deleted, and an address that has expired, are result_lost."""
    scenario.faults.respond(route, status)
    with pytest.raises(JobError, match="does not exist any more") as info:
        at_scenario.txt2img("x", **SMALL)

    assert info.value.code is ErrorCode.RESULT_LOST
