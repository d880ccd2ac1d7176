"""Downloads a model over HTTP, resuming at an offset. Does not retry. Only this module of the package uses requests.

The token is sent only to Hugging Face (or the mirror in HF_ENDPOINT), only over https or to this machine, and never
after a redirect has left that host. Logins in .netrc files are ignored. Errors contain host names instead of redirect
URLs, because those are signed and therefore secret.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol
from urllib.parse import urljoin, urlsplit

import requests
from requests.auth import AuthBase

from comfy_core.backoff import parse_retry_after
from comfy_core.environment import base_url, optional, read, variable
from comfy_core.errors import ConfigError
from comfy_core.models.listing import ModelError, WantedFile
from comfy_core.urls import HUGGING_FACE, is_loopback

TOKENS_PAGE = "https://huggingface.co/settings/tokens"

DOWNLOAD_CONNECT_TIMEOUT_S = 10.0
_MAX_REDIRECTS = 5
# A lost connection loses the current chunk. Smaller chunks are 20 % slower, larger ones hardly faster.
_CHUNK_BYTES = 256 * 1024
_PORTS = {"https": 443, "http": 80}
_RETRYABLE_STATUSES = frozenset({408, 425, 429})


class Headers(Protocol):
    """The headers of a response, by name in any case."""

    def get(self, name: str, default: str, /) -> str:
        """Return a header's value, or `default`."""


class RetryableDownloadError(Exception):
    """A temporary failure: the server is busy, or the connection was lost.

    Attributes:
        remedy: advice if all retries fail.
        retry_after_s: the server's Retry-After, None if it sent none.
        must_restart: whether the next attempt must begin at byte 0.
    """

    def __init__(
        self, reason: str, remedy: str, *, retry_after_s: float | None = None, must_restart: bool = False
    ) -> None:
        super().__init__(reason)
        self.remedy = remedy
        self.retry_after_s = retry_after_s
        self.must_restart = must_restart


@dataclass(frozen=True)
class Hub:
    """The Hugging Face server, and the token for gated files. `token_name` is the variable that the token came from."""

    endpoint: str = variable(
        "HF_ENDPOINT", base_url, "URL of a mirror of Hugging Face, which replaces it in the list's URLs.", HUGGING_FACE
    )
    token: str = variable(
        "HF_TOKEN",
        str,
        "Token for gated files. Sent only to HF_ENDPOINT, only over https, and never after a redirect to another host.",
        secret=True,
    )
    token_file: Path | None = variable(
        "HF_TOKEN_FILE",
        optional(Path),
        "File that contains the token, such as `/run/secrets/hf_token` in a build. It may be missing.",
    )
    token_name: str = "HF_TOKEN"  # noqa: S105 - its name

    @staticmethod
    def from_env(env: Mapping[str, str]) -> Hub:
        """Return the hub from HF_ENDPOINT, HF_TOKEN and HF_TOKEN_FILE. Raises ConfigError for an invalid variable."""
        hub = read(Hub, env)
        if hub.token_file and not hub.token:
            hub = replace(hub, token=_token_in(hub.token_file), token_name=f"HF_TOKEN_FILE ({hub.token_file})")
        if not re.fullmatch(r"[!-~]*", hub.token):
            raise ConfigError(f"{hub.token_name}: not a valid token (one ASCII word). Create one at {TOKENS_PAGE}")
        if hub.token and not _is_safe(hub.endpoint):
            raise ConfigError(
                f"HF_ENDPOINT is http, and the token in {hub.token_name} is only sent over https. Unset one of them"
            )
        return hub

    def download_url(self, url: str) -> str:
        """Return `url`, a URL of the list, with the mirror in place of Hugging Face."""
        return self.endpoint + url[len(HUGGING_FACE) :] if url.startswith(HUGGING_FACE + "/") else url

    def is_at(self, url: str) -> bool:
        """Return whether `url` has the hub's scheme, host and port."""
        return _origin(url) == _origin(self.endpoint)


@dataclass(frozen=True)
class Stream:
    """A response body: the model's bytes from `start`.

    The iteration of `chunks` raises RetryableDownloadError if the connection is lost.
    """

    start: int
    chunks: Iterator[bytes]


class ModelSource:
    """Opens model downloads. Thread-safe.

    Args:
        hub: Hugging Face, or a mirror.
        silence_s: read timeout of the connection, in seconds.
    """

    def __init__(self, hub: Hub, *, silence_s: float = 60.0) -> None:
        self._hub = hub
        self._timeout_s = (DOWNLOAD_CONNECT_TIMEOUT_S, silence_s)

    @contextlib.contextmanager
    def open(self, model: WantedFile, offset: int) -> Iterator[Stream]:
        """Request a model from `offset`. The server may still start at byte 0.

        The header If-Range is not sent. The list identifies the content by its sha256, but copies on a CDN have
        different ETags, and a different ETag would discard gigabytes of correct data.

        Raises RetryableDownloadError, or ModelError for a permanent failure or a size that is not the list's.
        """
        with requests.Session() as session:
            response, url, token_sent = self._follow(session, model, offset)
            with response:
                self._check_status(model, response, url, token_sent=token_sent)
                start = checked_start(model, response.status_code, response.headers, offset, _host(url))
                yield Stream(start, _chunks(response, _host(url)))

    def _follow(self, session: requests.Session, model: WantedFile, offset: int) -> tuple[requests.Response, str, bool]:
        """Follow redirects; return the final response, its URL, and whether the token was sent to it."""
        headers = {"Accept-Encoding": "identity", "User-Agent": "flux-comfyui-worker"}
        if offset:
            headers["Range"] = f"bytes={offset}-"
        url = self._hub.download_url(model.url)
        may_see_token = True
        for _ in range(_MAX_REDIRECTS + 1):
            may_see_token = may_see_token and self._hub.is_at(url)
            # Requests to this machine bypass proxies from the environment.
            session.trust_env = not is_loopback(_host(url))
            sends_token = may_see_token and bool(self._hub.token)
            auth = _Token(self._hub.token if sends_token else "")
            with _requests_errors(model, _host(url)):
                response = session.get(
                    url, headers=headers, auth=auth, stream=True, allow_redirects=False, timeout=self._timeout_s
                )
                target = session.get_redirect_target(response)
                location = urljoin(url, target) if target else ""
            if not location:
                return response, url, sends_token
            response.close()
            _require_safe(model, url, location)
            url = location
        raise ModelError(model, f"{_host(url)} redirects more than {_MAX_REDIRECTS} times. Correct the URL in the list")

    def _check_status(self, model: WantedFile, response: requests.Response, url: str, *, token_sent: bool) -> None:
        status, problem = response.status_code, f"{_host(url)} returned {response.status_code}"
        if status in {200, 206, 416}:
            return
        if status in {401, 403}:
            raise ModelError(model, f"{problem}: {self._login_remedy(model, url, token_sent=token_sent)}")
        if status in {404, 410}:
            raise ModelError(
                model,
                f"{problem}: the repository, its revision or the file does not exist. Correct the URL in the list: "
                f"{_list_url(model)}",
            )
        if status in _RETRYABLE_STATUSES or status >= 500:  # noqa: PLR2004 - server errors
            retry_after_s = parse_retry_after(response.headers.get("Retry-After"))
            raise RetryableDownloadError(
                problem, "Try again later, or from a mirror (HF_ENDPOINT)", retry_after_s=retry_after_s
            )
        raise ModelError(model, f"{problem} instead of 200. Correct the URL in the list: {_list_url(model)}")

    def _login_remedy(self, model: WantedFile, url: str, *, token_sent: bool) -> str:
        page = _list_url(model).partition("/resolve/")[0]
        if token_sent:
            return (
                f"the token in {self._hub.token_name} has no access. Accept the licence at {page} with the token's "
                f"account, and allow the token to read gated repositories ({TOKENS_PAGE})"
            )
        if self._hub.is_at(url) and not self._hub.token:
            return (
                f"it is gated, or its repository does not exist. Accept the licence at {page}, create a token at "
                f"{TOKENS_PAGE}, and set HF_TOKEN, or HF_TOKEN_FILE to a file with it (in a build: --secret "
                "id=hf_token,env=HF_TOKEN)"
            )
        return f"no token is sent to that host. Use a public URL in the list instead of {_list_url(model)}"


class _Token(AuthBase):
    """Adds the token, if there is one, to a request. Also keeps the library requests from using a login in .netrc."""

    def __init__(self, token: str) -> None:
        self._token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self._token:
            request.headers["Authorization"] = f"Bearer {self._token}"
        return request


@contextlib.contextmanager
def _requests_errors(model: WantedFile, host: str) -> Iterator[None]:
    """Convert exceptions of requests: temporary ones to RetryableDownloadError, permanent ones to ModelError."""
    try:
        yield
    except requests.exceptions.SSLError as error:
        if "CERTIFICATE" not in str(error):
            raise _connection_error(host, error) from error
        raise ModelError(
            model,
            f"the certificate of {host} is not trusted. Check the clock, or set REQUESTS_CA_BUNDLE to the "
            "certificates of your network",
        ) from error
    except (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError) as error:
        raise _connection_error(host, error) from error
    except (requests.RequestException, ValueError) as error:  # requests passes on ValueErrors of urllib3
        raise ModelError(
            model,
            f"the request to {host} failed ({type(error).__name__}). Correct the URL in the list: {_list_url(model)}",
        ) from error


def _connection_error(host: str, error: Exception) -> RetryableDownloadError:
    """Return the error for a connection that failed or was lost, without URLs."""
    text = str(error)
    if isinstance(error, requests.exceptions.ProxyError):
        reason = f"the proxy for {host} could not be reached"
    elif "Failed to resolve" in text:
        reason = f"the host name {host} could not be resolved"
    elif isinstance(error, requests.ConnectTimeout):
        reason = f"the connection to {host} timed out"
    elif isinstance(error, requests.Timeout) or "timed out" in text:
        reason = f"{host} sent no data in time"
    else:
        reason = f"the connection to {host} was refused or lost"
    return RetryableDownloadError(
        reason, "Check the network and its proxies (HTTPS_PROXY), or set HF_ENDPOINT to a mirror"
    )


def _chunks(response: requests.Response, host: str) -> Iterator[bytes]:
    try:
        yield from response.iter_content(_CHUNK_BYTES)
    except requests.RequestException as error:
        raise _connection_error(host, error) from error


def checked_start(model: WantedFile, status: int, headers: Headers, offset: int, host: str) -> int:
    """Return the offset at which a response begins, after checking the total size that it reports.

    Raises ModelError for another size than the model's, RetryableDownloadError for another range than requested.
    """
    if status == requests.codes.ok:
        reported = headers.get("Content-Length", "")
        is_plain = headers.get("Content-Encoding", "identity") == "identity"
        _check_size(model, reported if is_plain else "", host)
        return 0
    reported = headers.get("Content-Range", "")
    found = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)", reported)
    _check_size(model, found[2] if found else "", host)
    if not found or found[1] is None or int(found[1]) != offset:
        raise RetryableDownloadError(
            f"{host} returned {status} ({reported[:80]!r}) for a request from byte {offset:,}",
            "Try again later, or from a mirror (HF_ENDPOINT)",
            must_restart=True,
        )
    return offset


def _check_size(model: WantedFile, reported: str, host: str) -> None:
    if reported.isdigit() and int(reported) != model.size:
        raise ModelError(
            model,
            f"wrong size: {model.size:,} bytes were expected, {host} has {int(reported):,}. Nothing was "
            "downloaded. The file on the server is a different one, or the expected size is wrong",
        )


def _require_safe(model: WantedFile, url: str, location: str) -> None:
    """Reject a redirect from https to http, or to something that is not a server's URL."""
    if _origin(location) is None or (_is_safe(url) and not _is_safe(location)):
        raise ModelError(
            model,
            f"{_host(url)} redirects to a URL that is not https. Correct the URL in the list",
        )


def _token_in(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"HF_TOKEN_FILE: {file} cannot be read ({type(error).__name__}). Set it to a file with the token"
        ) from error


def _origin(url: str) -> tuple[str, str, int] | None:
    """Return scheme, host and port; None if it is not a server's URL."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return None
    if parts.scheme not in _PORTS or not parts.hostname:
        return None
    return parts.scheme, parts.hostname, port or _PORTS[parts.scheme]


def _is_safe(url: str) -> bool:
    """Return whether a token may be sent to `url`: over https, or on this machine."""
    return url.startswith("https://") or is_loopback(_host(url))


def _host(url: str) -> str:
    return urlsplit(url).hostname or ""


def _list_url(model: WantedFile) -> str:
    """Return the list's URL without its query."""
    return model.url.partition("?")[0]
