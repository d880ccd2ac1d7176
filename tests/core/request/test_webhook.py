"""The key `webhook` of a request: its values, its faults, and where it is found in an invalid request."""

from __future__ import annotations

import json
from collections.abc import Mapping

import pytest

from comfy_core.contract import JsonObject
from comfy_core.errors import JobError
from comfy_core.request.reading import read_request
from comfy_core.request.webhook import Webhook, requested_webhook
from comfy_core.workflows import Workflow

URL = "https://hooks.example/SECRET"
WEBHOOK = Webhook(URL, "default", frozenset({"completed", "failed"}))
GRAPH = {
    "1": {"class_type": "EmptyImage", "inputs": {}},
    "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0]}},
}


@pytest.mark.parametrize("beside", [{"prompt": "a knight"}, {"workflow": GRAPH}], ids=["template", "graph"])
@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"url": URL}, WEBHOOK),
        ({"url": URL, "secret_id": None, "events": None}, WEBHOOK),
        ({"url": URL, "secret_id": "a", "events": ["progress"]}, Webhook(URL, "a", frozenset({"progress"}))),
        (None, None),
    ],
)
def test_a_webhook_is_read(
    workflows: Mapping[str, Workflow], beside: JsonObject, value: object, expected: Webhook | None
) -> None:
    """The secret id and the events have defaults; null is absent. The repr of the request hides the URL."""
    request = read_request({**beside, "webhook": value}, workflows)

    assert request.webhook == expected
    assert "SECRET" not in repr(request)
    assert not any("webhook" in warning for warning in request.warnings)


@pytest.mark.parametrize(
    ("value", "path", "message"),
    [
        (URL, "webhook", "RunPod's own webhook, a URL, belongs next to `input`"),
        ({}, "webhook.url", "is missing"),
        ({"url": 5}, "webhook.url", "must be an https URL"),
        ({"url": "ftp://hooks.example/SECRET"}, "webhook.url", "must be an https URL"),
        ({"url": URL, "secret": "x"}, "webhook.secret", 'did you mean "secret_id"?'),
        ({"url": URL, "secret_id": ""}, "webhook.secret_id", "must not be empty"),
        ({"url": URL, "events": ["complete"]}, "webhook.events[0]", 'did you mean "completed"?'),
        ({"url": URL, "events": []}, "webhook.events", "must not be empty"),
    ],
)
def test_an_invalid_webhook_is_a_fault(
    workflows: Mapping[str, Workflow], value: object, path: str, message: str
) -> None:
    """The fault has the path and the remedy, and never the URL."""
    with pytest.raises(JobError) as info:
        read_request({"prompt": "a knight", "webhook": value}, workflows)

    [fault] = info.value.report.details["faults"]
    assert fault["path"] == path
    assert message in fault["message"]
    assert "SECRET" not in info.value.report.to_json()


@pytest.mark.parametrize(
    "raw",
    [
        {"webhook": {"url": URL}},
        {"prompt": 5, "steps": "many", "webhook": {"url": URL, "events": None}},
        json.dumps({"webhook": {"url": URL}}),
        {"input": {"webhook": {"url": URL}}},
        {"workflow": {"prompt": GRAPH, "webhook": {"url": URL}}},
        {"workflow": json.dumps({"prompt": GRAPH, "webhook": {"url": URL}})},
    ],
    ids=str,
)
def test_the_webhook_of_an_invalid_request_is_found(raw: object) -> None:
    """A webhook is found beside invalid inputs and in every wrapper, so that it gets the event `failed`."""
    assert requested_webhook(raw) == WEBHOOK


@pytest.mark.parametrize(
    "raw", [None, 5, [], "text", {}, {"webhook": URL}, {"webhook": {"url": "\0"}}, {"webhook": {"url": [URL]}}], ids=str
)
def test_an_invalid_webhook_is_not_called(raw: object) -> None:
    """There is no webhook if the input, or the value of the key, is invalid."""
    assert requested_webhook(raw) is None
