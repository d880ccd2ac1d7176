"""The worker's webhooks, with a receiver on loopback that verifies them with the library `standardwebhooks`."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import logging
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from standardwebhooks.webhooks import Webhook as Verifier
from standardwebhooks.webhooks import WebhookVerificationError

from comfy_core.contract import ErrorReport
from comfy_core.error_codes import ErrorCode
from comfy_core.errors import ConfigError
from comfy_core.safe_connection import Resolve, resolve_host
from simulators.http_server import free_port
from simulators.waiting import until
from tests.fakes.webhook_receiver import OTHER_SECRET, SECRET, SECRETS, WebhookReceiver, webhook_settings
from worker import webhooks
from worker.settings import Settings
from worker.webhook_events import MAX_BODY_BYTES, WebhookEvent, outcome_event, progress_event
from worker.webhooks import JobEvents, Webhooks

RESULT = {"images": [{"filename": "a.png", "type": "base64", "data": "iVBOR", "seed": 1}], "seed": 1, "warnings": []}
FAILURE = {"error": ErrorReport.because(ErrorCode.OUT_OF_MEMORY).to_json()}
SAMPLING = {"images": [], "stage": "sampling", "step": 7, "steps": 20, "percent": 35, "preview": "/9j/"}


@pytest.fixture
def receiver() -> Iterator[WebhookReceiver]:
    """A receiver that accepts every event."""
    with WebhookReceiver() as running:
        yield running


def deliverer(*urls: str, retry_for_s: float = 30, resolve: Resolve = resolve_host, **more: Any) -> Webhooks:  # noqa: ANN401 - see webhook_settings
    """Return webhooks that may reach `urls` and wait 2 ms before the first retry."""
    return Webhooks(webhook_settings(*urls, **more), retry_for_s, resolve=resolve, first_retry_s=0.002)


def events_of(sender: Webhooks, url: str, **webhook: object) -> JobEvents:
    """Return the events of a job whose webhook is `url`."""
    return sender.events_of({"id": "job-1", "input": {"prompt": "x", "webhook": {"url": url, **webhook}}})


def end(events: JobEvents, outcome: dict[str, Any] = RESULT) -> None:
    """End the job, and return when its result may be returned."""
    asyncio.run(events.end(outcome))


# --- the message


def test_a_signature_is_that_of_the_specification() -> None:
    """The signature is the HMAC-SHA256 of id, timestamp and body, computed here without the library."""
    event = WebhookEvent("completed", '{"é": 1}', "msg_1")

    headers = event.headers([SECRET], datetime.fromtimestamp(1_764_384_185.7, UTC))

    key = base64.b64decode(SECRET.removeprefix("whsec_"))
    expected = hmac.new(key, 'msg_1.1764384185.{"é": 1}'.encode(), hashlib.sha256).digest()
    assert headers == {
        "Content-Type": "application/json",
        "webhook-id": "msg_1",
        "webhook-timestamp": "1764384185",
        "webhook-signature": f"v1,{base64.b64encode(expected).decode()}",
    }


def test_an_old_or_a_changed_request_is_refused_by_the_library() -> None:
    """A request that is replayed after more than five minutes, or whose timestamp was renewed, does not verify."""
    event = progress_event("job-1", SAMPLING)
    old = event.headers([SECRET], datetime.now(UTC) - timedelta(minutes=6))
    renewed = old | {"webhook-timestamp": str(int(time.time()))}

    with pytest.raises(WebhookVerificationError, match="too old"):
        Verifier(SECRET).verify(event.body, old)
    with pytest.raises(WebhookVerificationError, match="No matching signature"):
        Verifier(SECRET).verify(event.body, renewed)


def test_both_secrets_sign_during_a_change() -> None:
    """With two secrets for an id, receivers with either of them verify the event."""
    secrets = webhook_settings(secrets=json.dumps({"default": f"{SECRET} {OTHER_SECRET}"})).secrets["default"]
    event = progress_event("job-1", SAMPLING)

    for secret in (SECRET, OTHER_SECRET):
        Verifier(secret).verify(event.body, event.headers(secrets, datetime.now(UTC)))


def test_a_result_has_urls_but_no_bytes() -> None:
    """`data` of an image is its URL in the bucket; base64 is left out, under every key of WORKER_IMAGE_FIELD."""
    stored = {"filename": "b.png", "type": "s3_url", "data": "https://s3/b.png"}
    inline = {"filename": "c.flac", "type": "base64", "data": "AAAA", "image": "AAAA"}

    event = json.loads(outcome_event("job-1", {**RESULT, "images": [stored], "files": [inline]}).body)

    assert event["data"]["status"] == "COMPLETED"
    assert event["data"]["result"]["images"] == [stored]
    assert event["data"]["result"]["files"] == [{"filename": "c.flac", "type": "base64"}]


def test_a_large_result_is_cut() -> None:
    """A body has at most MAX_BODY_BYTES: the largest parts that a receiver can do without are left out and named."""
    outcome = {**RESULT, "texts": ["é" * MAX_BODY_BYTES], "inputs": {"prompt": "x" * MAX_BODY_BYTES}}

    body = outcome_event("job-1", outcome).body
    data = json.loads(body)["data"]

    assert len(body.encode()) <= MAX_BODY_BYTES
    assert data["omitted"] == ["texts", "inputs"]
    assert data["result"] == {"images": [{"filename": "a.png", "type": "base64", "seed": 1}], "seed": 1, "warnings": []}


def test_a_long_list_of_models_is_left_out() -> None:
    """The list of a job of the task `models` may have thousands of files."""
    outcome = {"task": "models", "models": [{"folder": "loras", "name": "x" * 100}] * 2000, "left_out": 0}

    data = json.loads(outcome_event("job-1", outcome).body)["data"]

    assert (data["result"], data["omitted"]) == ({"task": "models", "left_out": 0}, ["models"])


def test_the_largest_error_report_fits() -> None:
    """An error report of the maximum size is sent whole."""
    report = ErrorReport.because(ErrorCode.EXECUTION_FAILED, "x" * 100_000, log_tail=["é" * 300] * 200)

    body = outcome_event("job-1", {"error": report.to_json()}).body

    assert len(body.encode()) <= MAX_BODY_BYTES
    assert json.loads(body)["data"]["error"] == json.loads(report.to_json())


# --- delivery


def test_a_completed_job_is_reported(receiver: WebhookReceiver) -> None:
    """The event has type, timestamp, job id, status and result. It has arrived when the result is returned."""
    end(events_of(deliverer(receiver.url), f"{receiver.url}/hook?token=1"))

    [received] = receiver.received
    assert received.event["type"] == "completed"
    assert datetime.fromisoformat(received.event["timestamp"]).tzinfo is not None
    assert received.event["data"] == {
        "job_id": "job-1",
        "status": "COMPLETED",
        "result": {"images": [{"filename": "a.png", "type": "base64", "seed": 1}], "seed": 1, "warnings": []},
        "omitted": [],
    }
    assert received.headers["content-type"] == "application/json"


def test_a_failed_job_is_reported_with_its_error(receiver: WebhookReceiver) -> None:
    """The event `failed` has the error report as an object."""
    end(events_of(deliverer(receiver.url), receiver.url), FAILURE)

    [received] = receiver.received
    assert received.event["type"] == "failed"
    assert received.event["data"] == {"job_id": "job-1", "status": "FAILED", "error": json.loads(FAILURE["error"])}


def test_a_cancelled_job_is_reported_once(receiver: WebhookReceiver) -> None:
    """A cancelled job is `failed` with the code `cancelled`; a cancel after the end changes nothing."""
    sender = deliverer(receiver.url)
    cancelled, ended = events_of(sender, receiver.url), events_of(sender, receiver.url)
    cancelled.cancel()
    end(ended)
    ended.cancel()
    sender.end()

    events = [received.event for received in receiver.received]
    assert sorted(event["type"] for event in events) == ["completed", "failed"]
    assert [event["data"]["error"]["code"] for event in events if event["type"] == "failed"] == ["cancelled"]


def test_only_requested_events_are_sent(receiver: WebhookReceiver) -> None:
    """A webhook for `failed` gets no `completed` and no `progress`."""
    sender = deliverer(receiver.url)
    events = events_of(sender, receiver.url, events=["failed"])
    events.report(SAMPLING)
    end(events)
    sender.end()

    assert receiver.received == []


def test_a_job_without_a_webhook_uses_the_worker_s(receiver: WebhookReceiver) -> None:
    """WORKER_WEBHOOK is the webhook of jobs that have none, also of jobs without a valid input."""
    sender = deliverer(receiver.url, default=json.dumps({"url": receiver.url}))
    end(sender.events_of({"id": "job-2", "input": None}), FAILURE)

    [received] = receiver.received
    assert received.event["data"]["job_id"] == "job-2"


def test_a_failed_attempt_is_repeated_and_an_accepted_event_is_not(receiver: WebhookReceiver) -> None:
    """After 500, a redirect and 404 the same event is sent again with its id and body, and not after a 200."""
    redirect = {"Location": "http://169.254.169.254/latest/meta-data/"}
    receiver.responses += [(500, {}), (307, redirect), (404, {}), (200, {})]
    sender = deliverer(receiver.url)
    end(events_of(sender, receiver.url))
    receiver.await_events(4)
    sender.end()

    assert len({(received.id, received.body) for received in receiver.received}) == 1
    assert len(receiver.received) == 4


def test_410_ends_the_events_of_a_job(receiver: WebhookReceiver) -> None:
    """After 410 for `progress`, neither is that event sent again, nor is the job's end."""
    receiver.responses += [(410, {})]
    sender = deliverer(receiver.url)
    events = events_of(sender, receiver.url, events=["progress", "completed"])
    events.report(SAMPLING)
    receiver.await_events(1)
    end(events)
    sender.end()

    assert [received.event["type"] for received in receiver.received] == ["progress"]


def test_retry_after_is_waited_for(receiver: WebhookReceiver) -> None:
    """After 429 with Retry-After: 1 the next attempt follows at least one second later, although 2 ms is the rule."""
    receiver.responses += [(429, {"Retry-After": "1"})]
    end(events_of(deliverer(receiver.url), receiver.url))
    first, second = receiver.await_events(2)

    assert second.at - first.at >= 0.99


@pytest.mark.parametrize("limit", ["attempts", "time", "Retry-After"])
def test_the_retries_are_limited(receiver: WebhookReceiver, caplog: pytest.LogCaptureFixture, limit: str) -> None:
    """A delivery ends after MAX_ATTEMPTS, at the end of its time, or if the receiver asks for a later time."""
    receiver.responses += [(503, {"Retry-After": "3600"} if limit == "Retry-After" else {})] * 50
    sender = deliverer(receiver.url, retry_for_s=0.5 if limit == "time" else 30)
    end(events_of(sender, receiver.url))

    assert until(lambda: "was not delivered in" in caplog.text)
    sender.end()
    expected = {"attempts": webhooks.MAX_ATTEMPTS, "Retry-After": 1}
    assert len(receiver.received) == expected.get(limit, len(receiver.received))
    assert len(receiver.received) <= webhooks.MAX_ATTEMPTS


class FixedResolver:
    """A resolver that returns the same addresses for every host, and counts its calls."""

    def __init__(self, addresses: Sequence[str]) -> None:
        self._addresses = addresses
        self.calls = 0

    def __call__(self, _host: str, _port: int) -> Sequence[str]:
        """Return the addresses."""
        self.calls += 1
        return self._addresses


def test_a_host_with_a_private_address_is_not_contacted(caplog: pytest.LogCaptureFixture) -> None:
    """If a host resolves to the metadata service, no attempt connects. The log names the host but not the URL."""
    resolve = FixedResolver(["169.254.169.254"])
    sender = deliverer(retry_for_s=0, resolve=resolve)
    end(events_of(sender, "https://hooks.example/SECRET"))
    sender.end()

    assert resolve.calls == 1
    assert "hooks.example: the host is not on the public internet" in caplog.text
    assert "SECRET" not in caplog.text


def test_a_redirect_is_not_followed(receiver: WebhookReceiver, caplog: pytest.LogCaptureFixture) -> None:
    """A receiver that redirects, here to an allowed host, gets the event; the other host gets nothing."""
    with WebhookReceiver() as other:
        receiver.responses += [(307, {"Location": f"{other.url}/SECRET"})] * 20
        sender = deliverer(receiver.url, other.url, retry_for_s=0)
        end(events_of(sender, receiver.url))
        sender.end()

        assert other.received == []
    assert "127.0.0.1 returned 307; redirects are not followed" in caplog.text
    assert "SECRET" not in caplog.text


def test_a_slow_receiver_does_not_hold_the_result(receiver: WebhookReceiver) -> None:
    """A result is returned while the receiver still has not responded. The event was accepted once, and sent once."""
    receiver.released.clear()
    sender = deliverer(receiver.url)
    end(events_of(sender, receiver.url))
    assert not receiver.released.is_set()
    receiver.await_events(1)
    receiver.released.set()
    sender.end()

    assert len(receiver.received) == 1


def test_a_receiver_that_was_down_gets_the_event(caplog: pytest.LogCaptureFixture) -> None:
    """An event whose first attempt found no receiver is delivered once the receiver runs."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    sender = deliverer(url)
    end(events_of(sender, url))
    assert until(lambda: "was not reached" in caplog.text)
    with WebhookReceiver(port=port) as receiver:
        receiver.await_events(1)
        sender.end()

        assert len(receiver.received) == 1


def test_a_shutdown_attempts_once_more(receiver: WebhookReceiver) -> None:
    """When the worker ends, an event that waits for its next attempt is sent at once, and not again after that."""
    receiver.responses += [(500, {"Retry-After": "20"})] * 20
    sender = deliverer(receiver.url)
    end(events_of(sender, receiver.url))
    receiver.await_events(1)
    sender.end()

    assert len(receiver.received) == 2


def test_progress_is_throttled_and_not_repeated(receiver: WebhookReceiver) -> None:
    """Of many reports, the first is sent, without a preview; it is not repeated after a 500. The job's end follows."""
    receiver.responses += [(500, {})]
    sender = deliverer(receiver.url)
    events = events_of(sender, receiver.url, events=["progress", "completed"])
    for step in range(1, 20):
        events.report({**SAMPLING, "step": step})
    receiver.await_events(1)
    end(events)
    events.report(SAMPLING)
    sender.end()

    first, last = receiver.received
    assert first.event["data"] == {
        "job_id": "job-1",
        "status": "IN_PROGRESS",
        "progress": {"stage": "sampling", "step": 1, "steps": 20, "percent": 35},
    }
    assert last.event["type"] == "completed"


def test_the_end_does_not_wait_for_slow_progress(receiver: WebhookReceiver) -> None:
    """If the receiver is still silent about `progress` when the job ends, that request is given up."""
    receiver.released.clear()
    sender = deliverer(receiver.url)
    events = events_of(sender, receiver.url, events=["progress", "completed"])
    events.report(SAMPLING)
    receiver.await_events(1)
    end(events)
    receiver.await_events(2)
    receiver.released.set()
    sender.end()

    assert [received.event["type"] for received in receiver.received] == ["progress", "completed"]


def test_the_log_has_no_secret(receiver: WebhookReceiver, caplog: pytest.LogCaptureFixture) -> None:
    """Neither a secret nor the URL's path and query is logged, whether a delivery fails or succeeds."""
    caplog.set_level(logging.DEBUG)
    receiver.responses += [(500, {})]
    sender = deliverer(receiver.url)
    end(events_of(sender, f"{receiver.url}/PATH-SECRET?token=QUERY-SECRET"))
    receiver.await_events(2)
    sender.end()

    assert "webhook: completed delivered, attempt 2" in caplog.text
    assert not [word for word in ("PATH-SECRET", "QUERY-SECRET", SECRET[6:]) if word in caplog.text]


# --- settings


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        (
            {"WORKER_WEBHOOK_SECRETS": '{"default": "TOP-SECRET"}'},
            "WORKER_WEBHOOK_SECRETS=(not shown): each value must",
        ),
        ({"WORKER_WEBHOOK_SECRETS": '{"default": "whsec_VE9QLVNFQ1JFVA=="}'}, "must be whsec_ and 24 to 64 bytes"),
        ({"WORKER_WEBHOOK_SECRETS": "TOP-SECRET"}, "must be a JSON object"),
        ({"WORKER_WEBHOOK": '{"url": "TOP-SECRET"}'}, "WORKER_WEBHOOK=(not shown): must be an object as in docs"),
        ({"WORKER_WEBHOOK": '{"url": "https://a.example/TOP-SECRET"}'}, "WORKER_WEBHOOK: webhook.secret_id is not the"),
        (
            {
                "WORKER_WEBHOOK": '{"url": "http://a/TOP-SECRET"}',
                "WORKER_WEBHOOK_SECRETS": SECRETS,
            },
            "WORKER_WEBHOOK: webhook.url is not allowed: the URL is not https",
        ),
    ],
)
def test_an_invalid_setting_ends_the_boot(variables: dict[str, str], expected: str) -> None:
    """A secret that is too short, or a webhook that could never be delivered, is an error without the secret."""
    with pytest.raises(ConfigError) as info:
        Settings.from_env({"COMFYUI_URL": "http://127.0.0.1:1", **variables})

    assert expected in str(info.value)
    assert "TOP-SECRET" not in str(info.value)


def test_settings_and_webhooks_hide_their_secrets() -> None:
    """The repr of the settings has neither a secret nor a URL."""
    webhook = json.dumps({"url": "https://hooks.example/TOP-SECRET"})
    variables = {"WORKER_WEBHOOK_SECRETS": SECRETS, "WORKER_WEBHOOK": webhook}
    settings = Settings.from_env({"COMFYUI_URL": "http://127.0.0.1:1", **variables})

    assert settings.webhooks.default is not None
    assert not [word for word in ("TOP-SECRET", SECRET[6:]) if word in repr(settings) + repr(settings.webhooks.default)]
