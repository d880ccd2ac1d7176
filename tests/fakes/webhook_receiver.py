"""A receiver of webhooks that verifies each request with the library `standardwebhooks`."""

from __future__ import annotations

import base64
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from standardwebhooks.webhooks import Webhook

from comfy_core.environment import read
from simulators.http_server import HttpHandler, HttpServer
from simulators.waiting import until
from worker.webhook_settings import WebhookSettings

SECRET = "whsec_" + base64.b64encode(b"0123456789abcdef0123456789abcdef").decode()
OTHER_SECRET = "whsec_" + base64.b64encode(b"abcdef0123456789abcdef0123456789").decode()
SECRETS = f'{{"default": "{SECRET}"}}'
"""The value of WORKER_WEBHOOK_SECRETS."""


@dataclass(frozen=True)
class ReceivedWebhook:
    """A request: `headers` in lower case, `body` as it was sent, and the verified event."""

    headers: dict[str, str]
    body: bytes = field(repr=False)
    event: dict[str, Any]
    at: float

    @property
    def id(self) -> str:
        """The event's id."""
        return self.headers["webhook-id"]


class _ReceiverHandler(HttpHandler):
    server: WebhookReceiver

    def do_POST(self) -> None:
        """Verify the request, and send the next response."""
        body, headers = self.body(), {name.lower(): value for name, value in self.headers.items()}
        event = Webhook(self.server.secret).verify(body, headers)
        with self.server.lock:
            self.server.received.append(ReceivedWebhook(headers, body, event, time.monotonic()))
            status, more = self.server.responses.pop(0) if self.server.responses else (204, {})
        self.server.released.wait(30)
        self.respond(status, headers=more)


class WebhookReceiver(HttpServer):
    """A receiver on a free port.

    Attributes:
        responses: status and headers of the next responses; after these it is 204.
        received: the verified requests.
        released: responses are sent only while it is set.
    """

    def __init__(self, secret: str = SECRET, port: int = 0) -> None:
        super().__init__(_ReceiverHandler, port=port)
        self.secret = secret
        self.responses: list[tuple[int, Mapping[str, str]]] = []
        self.received: list[ReceivedWebhook] = []
        self.released = threading.Event()
        self.released.set()
        self.lock = threading.Lock()

    def __exit__(self, *exception: object) -> None:
        self.released.set()
        super().__exit__(*exception)

    def await_events(self, count: int) -> list[ReceivedWebhook]:
        """Return the requests once there are `count`."""
        assert until(lambda: len(self.received) >= count), f"only {self.received}"
        return list(self.received)


def webhook_settings(*urls: str, secrets: str = SECRETS, default: str = "") -> WebhookSettings:
    """Return settings that allow webhooks to the hosts of `urls`, such as receivers on loopback."""
    hosts = ",".join(url.partition("://")[2].partition("/")[0] for url in urls)
    variables = {"WORKER_WEBHOOK_SECRETS": secrets, "WORKER_WEBHOOK_PRIVATE_HOSTS": hosts, "WORKER_WEBHOOK": default}
    return read(WebhookSettings, variables)
