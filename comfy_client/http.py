"""Requests to one HTTP API: one kept session, deadlines, JSON in and out. No foreign exception leaves here.

Nothing is retried unless the caller says so: only the caller knows whether its call is safe to repeat.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter

from comfy_client.errors import RequestError

CONNECT_TIMEOUT_S = 5.0
_KEPT_CONNECTIONS = 8
_SHOWN_BODY = 2000


class HttpApi:
    """One API at `base_url`. Safe to use from several threads.

    Args:
        base_url: scheme, host and path in front of every call's path.
        name: what the API is called in errors.
        headers: sent with every call.
        use_proxies: whether proxies and netrc of the environment count; not for a server of our own machine.
    """

    def __init__(
        self, base_url: str, *, name: str, headers: Mapping[str, str] | None = None, use_proxies: bool = True
    ) -> None:
        self.base_url = base_url.rstrip("/")
        self._name = name
        self._session = requests.Session()
        self._session.trust_env = use_proxies
        self._session.headers.update(headers or {})
        adapter = HTTPAdapter(pool_connections=1, pool_maxsize=_KEPT_CONNECTIONS, max_retries=0)
        self._session.mount("http://", adapter)
        self._session.mount("https://", adapter)

    def call(
        self,
        method: str,
        path: str,
        *,
        timeout_s: float,
        json: object = None,
        params: Mapping[str, str] | None = None,
        files: Mapping[str, tuple[str, bytes, str]] | None = None,
        form: Mapping[str, str] | None = None,
    ) -> requests.Response:
        """Return the whole answer, whatever 2xx or 3xx it is.

        `timeout_s` bounds the connect and each silence of the server. Raises RequestError: `.status` is None where no
        answer came, else the status of 400 or above, with the start of its body in `.body`.
        """
        try:
            response = self._session.request(
                method,
                self.base_url + path,
                timeout=(min(CONNECT_TIMEOUT_S, timeout_s), timeout_s),
                json=json,
                params=params,
                files=files,
                data=form,
            )
        except (requests.RequestException, ValueError) as error:  # requests lets ValueErrors of urllib3 through
            raise RequestError(f"{self._name} was not reached ({method} {path}: {_reason(error)})") from error
        if response.status_code >= requests.codes.bad_request:
            raise RequestError(
                f"{self._name} answered {response.status_code} to {method} {path}",
                status=response.status_code,
                body=response.text[:_SHOWN_BODY]
                if response.status_code != requests.codes.bad_request
                else response.text,
            )
        return response

    def json(self, method: str, path: str, *, timeout_s: float, json: object = None) -> Any:  # noqa: ANN401 - any JSON value
        """Return the answer's JSON. Raises RequestError, also where it is none."""
        return self.parsed(self.call(method, path, timeout_s=timeout_s, json=json))

    def parsed(self, response: requests.Response) -> Any:  # noqa: ANN401 - any JSON value
        """Return the JSON of an answer. Raises RequestError where it is none."""
        try:
            return response.json()
        except (ValueError, RecursionError) as error:
            asked = f"{response.request.method} {urlsplit(response.url).path}"
            raise RequestError(
                f"{self._name} answered {asked} with something that is not JSON",
                status=response.status_code,
                body=response.text[:_SHOWN_BODY],
            ) from error

    def close(self) -> None:
        """Close the kept connections."""
        self._session.close()


def _reason(error: Exception) -> str:
    """Return what went wrong in a few words, without addresses and object names."""
    if isinstance(error, requests.ConnectTimeout):
        return "no connection in time"
    if isinstance(error, requests.Timeout):
        return "no answer in time"
    if isinstance(error, requests.ConnectionError):
        return "connection refused or lost"
    return type(error).__name__
