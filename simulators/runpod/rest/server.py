"""The simulated account as a context manager: a thread that runs one server, with controls and state for tests."""

from __future__ import annotations

import json
import socket
import threading
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Self
from urllib.parse import parse_qsl, urlsplit

from simulators.http_server import HttpHandler, HttpServer
from simulators.runpod.queue_api import RunPodPlatform

from .account import Account, RequestRefused
from .faults import RestDrop, RestFaults, RestResponse
from .graphql import respond
from .shapes import JsonObject


@dataclass(frozen=True)
class RestRequest:
    """A received request, and the status of its response; 0 without a response."""

    method: str
    path: str
    body: Any = field(repr=False)
    status: int = 0

    @property
    def line(self) -> str:
        """Method and path, such as `POST /serverless`."""
        return f"{self.method} {self.path}"


class RunPodAccount(Account):
    """A simulated RunPod account. With a `platform`, a created endpoint has the id and the queue of that platform."""

    def __init__(self, platform: RunPodPlatform | None = None, api_key: str = "rpa_stand_in") -> None:
        self._platform = platform
        super().__init__(
            (lambda: platform.endpoint_id) if platform else None,
            platform.base_url if platform else "https://api.runpod.ai/v2",
        )
        self.api_key = platform.api_key if platform else api_key
        self.faults = RestFaults()
        self.received: list[RestRequest] = []
        self.lock = threading.Lock()
        self._server = HttpServer(type("Handler", (_RestHandler,), {"account": self}))

    def __enter__(self) -> Self:
        self._server.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.__exit__()

    def environment(self) -> dict[str, str]:
        """Return the environment variables of a deployment to this account."""
        return {
            "RUNPOD_API_KEY": self.api_key,
            "RUNPOD_REST_BASE_URL": f"{self._server.url}/v2",
            "RUNPOD_GRAPHQL_URL": f"{self._server.url}/graphql",
        }

    def writes(self) -> list[str]:
        """Return the calls that change something, in order, including GraphQL's mutations."""
        return [
            each.line
            for each in self.received
            if each.method in {"PATCH", "DELETE"}
            or (each.method == "POST" and (each.path != "/graphql" or "mutation" in str(each.body)))
        ]

    def handle(self, method: str, path: str, query: dict[str, str], body: Any) -> tuple[int, Any]:  # noqa: ANN401 - any JSON value
        """Return the status and body of the response to a call. Raises RequestRefused."""
        if method != "GET" and path != "/graphql" and self.faults.forbids_writing:
            raise RequestRefused(403, "access denied")
        if path == "/graphql":
            return 200, respond(self, body)
        if not path.startswith("/v2/"):
            raise RequestRefused(404, "resource not found")
        kind, _, item_id = path.removeprefix("/v2/").partition("/")
        if method == "GET" and path == "/v2/catalog/gpus":
            return 200, self.catalogue(query)
        if method == "GET" and f"/{kind}" in self.lists() and not item_id:
            key, items = self.lists()[f"/{kind}"]
            return 200, {key: items}
        if method == "GET" and kind == "serverless" and item_id.endswith("/workers"):
            return 200, {"workers": self.workers, "summary": {"total": len(self.workers)}, "endpointVersion": 2}
        return self._write(method, kind, item_id, body)

    def _write(self, method: str, kind: str, item_id: str, body: JsonObject) -> tuple[int, Any]:
        match method, kind, item_id:
            case "POST", "templates", "":
                return 201, self.create_template(body)
            case "PATCH", "templates", _:
                return 200, self.update_template(item_id, body)
            case "DELETE", "templates", _:
                self.delete_template(item_id)
                return 204, None
            case "POST", "serverless", "":
                return 201, self.create_endpoint(body)
            case "PATCH", "serverless", _:
                changed = self.update_endpoint(item_id, body)
                if self.faults.forgets_models:
                    self.cached_models.pop(item_id, None)
                return 200, changed
            case "DELETE", "serverless", _:
                self.delete_endpoint(item_id)
                return 204, None
        raise RequestRefused(405, "method not allowed")


class _RestHandler(HttpHandler):
    """Handles requests: applies faults, then calls the account."""

    account: RunPodAccount
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Handle a request of any method."""
        self._handle()

    do_POST = do_PATCH = do_DELETE = do_GET

    def _handle(self) -> None:
        parts = urlsplit(self.path)
        raw = self.body()
        body = json.loads(raw) if raw else None
        path = parts.path.removeprefix("/v2")
        with self.account.lock:
            fault = self.account.faults.take_fault(f"{self.command} {path}")
            status, content = 0, None
            if fault is None or fault.after_handling:
                status, content = self._call_account(parts.path, dict(parse_qsl(parts.query)), body)
            headers = {"RateLimit": '"minute";r=99;t=60'} if status != HTTPStatus.UNAUTHORIZED else {}
            if isinstance(fault, RestResponse):
                status, content, headers = fault.status, fault.body, {**headers, **fault.headers}
            is_cut = isinstance(fault, RestDrop)
            self.account.received.append(RestRequest(self.command, path, body, 0 if is_cut else status))
        if is_cut:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
        else:
            self._send(status, content, headers)

    def _call_account(self, path: str, query: dict[str, str], body: Any) -> tuple[int, Any]:  # noqa: ANN401 - any JSON value
        try:
            self._check_key()
            return self.account.handle(self.command, path, query, body)
        except RequestRefused as refusal:
            problem = {"title": HTTPStatus(refusal.status).phrase, "status": refusal.status, "detail": refusal.detail}
            return refusal.status, {**problem, **({"errors": refusal.errors} if refusal.errors else {})}

    def _check_key(self) -> None:
        if self.headers.get("Authorization") != f"Bearer {self.account.api_key}":
            raise RequestRefused(
                401, "missing bearer token" if "Authorization" not in self.headers else "invalid api key"
            )

    def _send(self, status: int, content: object, headers: dict[str, str]) -> None:
        if isinstance(content, str):
            kind, data = "text/html", content.encode()
        else:
            is_problem = status >= HTTPStatus.BAD_REQUEST
            kind = "application/problem+json" if is_problem else "application/json"
            data = b"" if content is None else json.dumps(content).encode()
        self.respond(status, data, {**headers, "Content-Type": kind})
