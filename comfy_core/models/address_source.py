"""Requests the files at addresses of model files, over connections that are protected against SSRF.

The host must be in the list of allowed hosts, also after each redirect. A token is sent only to its host, only over
https, and never after a redirect has left that host. Errors name hosts, because the URLs of CDNs are signed.

Facts (checked in public sources on 2026-11-29):

- Hugging Face redirects to hosts below hf.co; the redirect has the file's sha256 as `X-Linked-ETag`, and its size.
- Civitai redirects to b2.civitai.com or to a bucket at r2.cloudflarestorage.com. These refuse requests with a token,
  and Civitai does not handle HEAD requests with a token.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import string
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from http.client import HTTPException, HTTPResponse
from ssl import SSLCertVerificationError
from urllib.parse import quote, urlsplit

from comfy_core.backoff import parse_retry_after
from comfy_core.models.listing import ModelError, WantedFile
from comfy_core.models.safetensors import LENGTH_BYTES, start_problem
from comfy_core.models.source import Hub, RetryableDownloadError, Stream, checked_start
from comfy_core.request.model_address import CIVITAI, ModelAddress
from comfy_core.safe_connection import (
    CheckedUrl,
    FetchError,
    FetchRules,
    HttpRequest,
    RefusedHostError,
    RequestDeadline,
    Resolve,
    exchange,
    read_url,
    resolve_host,
)
from comfy_core.urls import HUGGING_FACE

DEFAULT_HOSTS = (
    "huggingface.co,*.huggingface.co,hf.co,*.hf.co,civitai.com,*.civitai.com,"
    "civitai-delivery-worker-prod.5ac0637cfd0766c97916cefa3764fbdf.r2.cloudflarestorage.com"
)
SILENCE_S = 30.0
"""Seconds without a byte after which a connection counts as lost."""
_MAX_REDIRECTS = 5
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_RETRYABLE_STATUSES = frozenset({408, 425, 429})
_CHUNK_BYTES = 256 * 1024
_SHA256_ETAG = re.compile(r'"?([0-9a-f]{64})"?')
_MAX_OVERHEAD_BYTES = 16 * 1024 * 1024
"""Bytes of a response in addition to the file: its head, and a part of a body that is too long."""
_MAX_LENGTH_DIGITS = 18
_TRY_LATER = "Try again later"


@dataclass(frozen=True)
class ModelHosts:
    """The hosts from which models may be downloaded, and the tokens for them that are used without one in the request.

    Attributes:
        allowed: host names; `*.example.com` stands for all hosts below example.com.
        hub: Hugging Face or its mirror, with the token.
        civitai_token: the token for Civitai.
        civitai: the URL of Civitai.
        rules: limits of each connection.
        resolve: resolves host names.
        silence_s: see SILENCE_S.
        variable: the environment variable that has the allowed hosts, for errors.
    """

    allowed: tuple[str, ...] = tuple(DEFAULT_HOSTS.split(","))
    hub: Hub = field(default_factory=Hub)
    civitai_token: str = field(default="", repr=False)
    civitai: str = CIVITAI
    rules: FetchRules = field(default_factory=FetchRules)
    resolve: Resolve = resolve_host
    silence_s: float = SILENCE_S
    variable: str = "WORKER_MODEL_HOSTS"

    def is_allowed(self, host: str) -> bool:
        """Return whether models may be downloaded from `host`. A mirror is allowed if the original is."""
        originals = {original for original, mirror in self._mirrors().items() if mirror == host}
        return any(fnmatchcase(each, pattern.lower()) for each in {host, *originals} for pattern in self.allowed)

    def _mirrors(self) -> dict[str, str]:
        """Return the host that is used in place of Hugging Face's and Civitai's, by theirs."""
        urls = {HUGGING_FACE: self.hub.endpoint, CIVITAI: self.civitai}
        return {urlsplit(url).hostname or "": urlsplit(mirror).hostname or "" for url, mirror in urls.items()}

    def problem(self, address: ModelAddress) -> str:
        """Return the reason why an address is not accepted, or an empty string."""
        try:
            host = read_url(self.url(address), self.rules).host
        except FetchError as error:
            return str(error)
        if self.is_allowed(host):
            return ""
        return f"is at {host}, {self.not_allowed}"

    @property
    def not_allowed(self) -> str:
        """The part of an error that follows a host which is not allowed."""
        return f"a host that is not in {self.variable} ({', '.join(self.allowed)})"

    def url(self, address: ModelAddress) -> str:
        """Return the download URL, with the mirror in place of Hugging Face."""
        url = self.hub.download_url(address.url)
        return self.civitai + url.removeprefix(CIVITAI) if url.startswith(f"{CIVITAI}/") else url

    def tokens(self, given: Mapping[str, str]) -> dict[str, str]:
        """Return the token for each host: those of the request, else the worker's own."""
        mirrors = self._mirrors()
        own = dict(zip(mirrors.values(), (self.hub.token, self.civitai_token), strict=True))
        # The request names the original hosts, and means their mirrors.
        mirrored = {mirrors.get(host, host): token for host, token in given.items()}
        return {host: token for host, token in {**own, **mirrored}.items() if token}


@dataclass(frozen=True)
class RemoteFile:
    """What a server says about the file at an address.

    Attributes:
        size: number of bytes.
        sha256: the hash that the server states; empty if it states none.
        version: a text that changes with the content, if the server sends one (its ETag); else empty.
    """

    size: int
    sha256: str = ""
    version: str = ""

    def key(self, url: str) -> str:
        """Return a name for this version of the file at `url`, which does not contain the URL."""
        return hashlib.sha256(f"{url}\n{self.size}\n{self.version}".encode()).hexdigest()


@dataclass(frozen=True)
class AddressedFile:
    """The file at an address, as a WantedFile. `path` is the address without a query."""

    path: str
    size: int
    sha256: str
    url: str = field(repr=False)


class _Stopwatch:
    """A clock that counts from the last restart, so that a deadline on it limits the time without a byte."""

    def __init__(self) -> None:
        self._begun_at = time.monotonic()

    def restart(self) -> None:
        """Start again at 0."""
        self._begun_at = time.monotonic()

    def __call__(self) -> float:
        return time.monotonic() - self._begun_at


@dataclass(frozen=True)
class _Response:
    """The response after all redirects. `linked` are the headers of Hugging Face's own response."""

    http: HTTPResponse
    host: str
    linked: Mapping[str, str]


class AddressSource:
    """Requests one job's model files. Does not retry. Thread-safe.

    Args:
        hosts: the allowed hosts.
        tokens: the token for each host.
        stop: set it to end the requests within about a second.
    """

    def __init__(self, hosts: ModelHosts, tokens: Mapping[str, str], stop: threading.Event) -> None:
        self._hosts = hosts
        self._tokens = hosts.tokens(tokens)
        self._stop = stop

    def url(self, address: ModelAddress) -> str:
        """Return the download URL of an address."""
        return self._hosts.url(address)

    def describe(self, address: ModelAddress) -> RemoteFile:
        """Return what the server says about a file, without its content. Raises the errors of `open`."""
        file = AddressedFile(address.source, 0, "", self.url(address))
        with self._without_tokens(file), self._response(file, 0, _Stopwatch()) as response:
            headers = response.http.headers
            length = headers.get("Content-Length", "")
            if (
                not (length.isdecimal() and len(length) <= _MAX_LENGTH_DIGITS)
                or headers.get("Content-Encoding", "identity") != "identity"
            ):
                raise ModelError(file, f"{response.host} does not state the file's size (Content-Length)")
            linked = _SHA256_ETAG.fullmatch(response.linked.get("X-Linked-ETag", ""))
            version = headers.get("ETag") or headers.get("Last-Modified") or ""
            return RemoteFile(int(length), linked[1] if linked else "", version)

    @contextlib.contextmanager
    def open(self, model: WantedFile, offset: int) -> Iterator[Stream]:
        """Request a file from `offset`. The server may still start at byte 0.

        Raises RetryableDownloadError, or ModelError for a permanent failure, a size that is not the model's, or a file
        that does not begin like a safetensors file.
        """
        stopwatch = _Stopwatch()
        with self._without_tokens(model), self._response(model, offset, stopwatch) as response:
            begin = checked_start(model, response.http.status, response.http.headers, offset, response.host)
            yield Stream(begin, self._chunks(model, response, begin, stopwatch))

    @contextlib.contextmanager
    def _without_tokens(self, model: WantedFile) -> Iterator[None]:
        """Replace an error that contains a token: a hostile server can repeat it in the host of a redirect, say."""
        try:
            yield
        except (ModelError, RetryableDownloadError) as error:
            if any(token.lower() in str(error).lower() for token in self._tokens.values()):
                raise ModelError(model, "its server repeats the request's token, so it is not trusted") from None
            raise

    def _chunks(self, model: WantedFile, response: _Response, begin: int, stopwatch: _Stopwatch) -> Iterator[bytes]:
        with _converted_errors(model, response.host):
            if begin == 0:
                start = response.http.read(LENGTH_BYTES)
                if problem := start_problem(start, model.size):
                    raise ModelError(model, f"{problem}. Nothing of it was kept")
                yield start
            while chunk := response.http.read1(_CHUNK_BYTES):
                stopwatch.restart()
                yield chunk

    @contextlib.contextmanager
    def _response(self, model: WantedFile, offset: int, stopwatch: _Stopwatch) -> Iterator[_Response]:
        """Yield the response after all redirects. Its status is 200, 206 or 416."""
        target = first = self._checked_url(model, model.url)
        deadline = RequestDeadline(self._hosts.silence_s, stopwatch, self._stop)
        may_send_token = True
        linked: dict[str, str] = {}
        with contextlib.ExitStack() as stack:
            for _ in range(_MAX_REDIRECTS + 1):
                may_send_token = may_send_token and target.host == first.host
                token = self._tokens.get(target.host, "") if may_send_token else ""
                request = HttpRequest("GET", target, _headers(token, offset))
                with _converted_errors(model, target.host):
                    limit = model.size + _MAX_OVERHEAD_BYTES
                    rules, resolve = self._hosts.rules, self._hosts.resolve
                    response = stack.enter_context(exchange(request, rules, resolve, deadline, limit=limit))
                if self._hosts.hub.is_at(target.url):
                    linked |= {name: value for name, value in response.headers.items() if name.startswith("X-Linked-")}
                location = response.getheader("Location")
                if response.status not in _REDIRECTS or not location:
                    _check_status(model, response, target.host, token)
                    yield _Response(response, target.host, linked)
                    return
                stack.close()
                # http.client decodes headers as Latin-1; encoding them as Latin-1 restores the original bytes.
                location = quote(location, safe=string.punctuation, encoding="latin-1")
                target = self._checked_url(model, location, target)
        raise ModelError(model, f"{first.host} redirects more than {_MAX_REDIRECTS} times")

    def _checked_url(self, model: WantedFile, url: str, previous: CheckedUrl | None = None) -> CheckedUrl:
        """Return the target of `url`, or of the redirect to it. Raises ModelError if it is not allowed."""
        try:
            target = read_url(url, self._hosts.rules, previous)
        except FetchError as error:
            raise ModelError(model, str(error)) from error
        if not self._hosts.is_allowed(target.host):
            whose = f"{previous.host} redirects to {target.host}" if previous else f"it is at {target.host}"
            raise ModelError(model, f"{whose}, {self._hosts.not_allowed}")
        return target


def _headers(token: str, offset: int) -> dict[str, str]:
    return {
        "Accept": "*/*",
        **({"Range": f"bytes={offset}-"} if offset else {}),
        **({"Authorization": f"Bearer {token}"} if token else {}),
    }


@contextlib.contextmanager
def _converted_errors(model: WantedFile, host: str) -> Iterator[None]:
    """Convert errors of a connection: temporary ones to RetryableDownloadError, permanent ones to ModelError."""
    try:
        yield
    except RefusedHostError as error:
        raise ModelError(model, f"{host}: {error}") from error
    except SSLCertVerificationError as error:
        raise ModelError(model, f"the TLS certificate of {host} is not valid ({error.verify_message})") from error
    except TimeoutError as error:
        raise RetryableDownloadError(f"{host} sent no data in time", _TRY_LATER) from error
    except (FetchError, OSError, HTTPException, ValueError) as error:
        reason = str(error) if isinstance(error, FetchError) else f"the connection failed ({type(error).__name__})"
        raise RetryableDownloadError(f"{host}: {reason}", _TRY_LATER) from error


def _check_status(model: WantedFile, response: HTTPResponse, host: str, token: str) -> None:
    status = response.status
    if status in {200, 206, 416}:
        return
    if status in {401, 403}:
        why = (
            f"the token for {host} has no access to it. Accept its licence with the token's account, or use another"
            if token
            else f"no token was sent, and it needs one. Send the token for {host} in `model_tokens`"
        )
        raise ModelError(model, f"{host} returned {status}: {why}")
    if status in {404, 410}:
        raise ModelError(model, f"{host} returned {status}: the file, its revision or its repository does not exist")
    if status in _RETRYABLE_STATUSES or status >= 500:  # noqa: PLR2004 - server errors
        retry_after_s = parse_retry_after(response.getheader("Retry-After"))
        raise RetryableDownloadError(f"{host} returned {status}", _TRY_LATER, retry_after_s=retry_after_s)
    raise ModelError(model, f"{host} returned {status} instead of 200")
