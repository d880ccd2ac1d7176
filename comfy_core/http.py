"""HTTP client for one JSON API: one session with keep-alive, timeouts, and RequestError for every failure.

Nothing is retried by default. The caller passes urllib3 retry policies by path prefix, because only the caller knows
which requests are safe to repeat.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, TypedDict, Unpack
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter
from urllib3.exceptions import ConnectTimeoutError
from urllib3.util.retry import Retry

from comfy_core.backoff import parse_retry_after
from comfy_core.errors import RequestError
from comfy_core.thread_call import run_outside_main_thread

CONNECT_TIMEOUT_S = 5.0
TRANSIENT = frozenset({408, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524, 530})
"""Statuses after which a retry may succeed. RunPod's own client retries most of them. Cloudflare, RunPod's proxy, sends
52x and 530."""
MAX_RETRY_AFTER_S = 30.0
_KEPT_CONNECTIONS = 8
_MAX_BODY_CHARACTERS = 2000
_MAX_MESSAGE_CHARACTERS = 300
_MAX_ERRORS = 10


class Retries(Retry):
    """A urllib3 retry policy that honours Retry-After up to MAX_RETRY_AFTER_S."""

    RETRY_AFTER_STATUS_CODES = frozenset()
    """Statuses that urllib3 retries in addition to the policy's own if the response has Retry-After: none."""

    def parse_retry_after(self, retry_after: str) -> float:
        """Return the seconds to wait. An invalid header gives 0, so that the backoff delay applies."""
        return min(MAX_RETRY_AFTER_S, parse_retry_after(retry_after) or 0.0)


def retries(times: int, *, statuses: frozenset[int] = TRANSIENT, is_repeatable: bool = True) -> Retries:
    """Return a policy of up to `times` retries: the first at once, the next after 1 s, 2 s, 4 s, and so on.

    A failed connect is always retried, because the request was not sent. A response with one of `statuses` is retried
    too. If the connection is lost after the request was sent, the request is retried only if `is_repeatable`.
    """
    return Retries(
        total=times,
        read=times if is_repeatable else False,
        other=0,
        redirect=None,
        status_forcelist=statuses,
        allowed_methods=None,
        backoff_factor=0.5,
        backoff_jitter=0.2,
        raise_on_status=False,
    )


class RequestContent(TypedDict, total=False):
    """Optional arguments of a call: the query, and the body as JSON or as a form with files."""

    params: Mapping[str, str] | None
    json: object
    data: Mapping[str, str]
    files: Mapping[str, tuple[str, bytes, str]]


class HttpApi:
    """One API at `base_url`. Safe to use from several threads, and after Ctrl-C has interrupted a call.

    Args:
        base_url: scheme, host and path prefix of every request.
        name: the API's name in error messages.
        headers: sent with every request.
        use_proxies: whether to use the proxies set in the environment. Use False for a server on this machine.
        policies: retry policies by path prefix; the longest matching prefix applies.
        connections: the size of the connection pool.
    """

    def __init__(
        self,
        base_url: str,
        *,
        name: str,
        headers: Mapping[str, str] | None = None,
        use_proxies: bool = True,
        policies: Mapping[str, Retry] | None = None,
        connections: int = _KEPT_CONNECTIONS,
    ) -> None:
        self.base_url = base_url.rstrip("/")
        self._name = name
        self._session = requests.Session()
        self._session.trust_env = use_proxies
        self._session.auth = _keep_headers  # otherwise requests replaces our header with credentials from ~/.netrc
        self._session.headers.update(headers or {})
        for prefix, policy in {"http://": 0, "https://": 0, **self._with_base_url(policies or {})}.items():
            adapter = HTTPAdapter(pool_connections=1, pool_maxsize=connections, max_retries=policy)
            self._session.mount(prefix, adapter)

    def _with_base_url(self, policies: Mapping[str, Retry]) -> dict[str, Any]:
        return {self.base_url + path: policy for path, policy in policies.items()}

    def call(
        self,
        method: str,
        path: str,
        *,
        timeout_s: float,
        **content: Unpack[RequestContent],
    ) -> requests.Response:
        """Return the whole response, if its status is below 400.

        `timeout_s` limits each wait for data. The connect is limited by the smaller of it and CONNECT_TIMEOUT_S. Raises
        RequestError. Its `.status` is None if there was no response, else 400 or above. Its `.body` is the start of the
        response body, or the whole body if the status is 400.
        """
        request_line = f"{method} {path.partition('?')[0]}"  # without the query, which may contain a signature

        def send() -> requests.Response:
            timeouts_s = (min(CONNECT_TIMEOUT_S, timeout_s), timeout_s)
            return self._session.request(method, self.base_url + path, timeout=timeouts_s, **content)

        try:
            response = run_outside_main_thread(send)
        except (requests.RequestException, ValueError) as error:  # requests does not wrap ValueErrors from urllib3
            raise RequestError(
                f"{self._name} did not respond ({request_line}: {_reason(error)})",
                is_transient=isinstance(error, _CONNECTION_ERRORS),
                is_unsent=_is_unsent(error),
            ) from error
        if response.status_code >= requests.codes.bad_request:
            raise RequestError(
                f"{self._name} returned {response.status_code} for {request_line}",
                status=response.status_code,
                body=response.text[:_MAX_BODY_CHARACTERS]
                if response.status_code != requests.codes.bad_request
                else response.text,
                is_transient=response.status_code in TRANSIENT,
                retry_after_s=Retries().parse_retry_after(response.headers.get("Retry-After", "0")) or None,
            )
        return response

    def json(
        self,
        method: str,
        path: str,
        *,
        timeout_s: float,
        **content: Unpack[RequestContent],
    ) -> Any:  # noqa: ANN401 - any JSON value
        """Return the response's JSON. Raises RequestError for a failed request or an invalid body."""
        return self.parsed(self.call(method, path, timeout_s=timeout_s, **content))

    def parsed(self, response: requests.Response) -> Any:  # noqa: ANN401 - any JSON value
        """Return the JSON of a response. Raises RequestError if its body is not JSON."""
        try:
            return response.json()
        except (ValueError, RecursionError) as error:
            request_line = f"{response.request.method} {urlsplit(response.url).path}"
            raise RequestError(
                f"{self._name} returned a body that is not JSON for {request_line}",
                status=response.status_code,
                body=response.text[:_MAX_BODY_CHARACTERS],
                is_transient=True,
            ) from error

    def close(self) -> None:
        """Close the pooled connections."""
        run_outside_main_thread(self._session.close)


def error_message(body: object) -> str:
    """Return the message in the body of an HTTP error, shortened; empty for an HTML page.

    The result includes the `errors` of RFC 9457, one for each invalid field, and Scenario's `trace_id`.
    """
    if isinstance(body, str):
        try:
            body = json.loads(body)
        except (ValueError, RecursionError):
            return "" if "<" in str(body)[:200] else _one_line(body)
    if not isinstance(body, dict):
        return ""
    messages = (_one_line(body[key]) for key in ("reason", "detail", "message", "error", "title") if body.get(key))
    errors = body.get("errors")
    fields = map(_one_line, errors[:_MAX_ERRORS]) if isinstance(errors, list) else ()
    trace = f"trace {_one_line(body['trace_id'])}" if body.get("trace_id") else ""
    return "; ".join(filter(None, [next(messages, "").rstrip("."), *fields, trace]))


def _one_line(value: object) -> str:
    match value:
        case str(text) | {"message": str(text)} | {"detail": str(text)}:
            return " ".join(text.split())[:_MAX_MESSAGE_CHARACTERS]
    return json.dumps(value)[:_MAX_MESSAGE_CHARACTERS]


_CONNECTION_ERRORS = (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError)


def _keep_headers(request: requests.PreparedRequest) -> requests.PreparedRequest:
    return request


def _is_unsent(error: Exception) -> bool:
    """Return whether the connect failed, so that nothing was sent."""
    reason = getattr(error.args[0] if error.args else None, "reason", None)
    return isinstance(error, requests.ConnectTimeout) or isinstance(reason, ConnectTimeoutError)


def _reason(error: Exception) -> str:
    """Return a short description of the error, without addresses and the names of objects."""
    if isinstance(error, requests.ConnectTimeout):
        return "connect timed out"
    if isinstance(error, requests.Timeout):
        return "no response in time"
    if isinstance(error, requests.exceptions.SSLError):
        return "TLS connection failed"
    if isinstance(error, requests.ConnectionError):
        return "connection refused or lost"
    return type(error).__name__
