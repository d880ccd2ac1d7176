"""A picture by URL, for a server that fetches what strangers name: the bytes, or one JobError. It decodes nothing.

Every address that a host resolves to must be public, and the connection goes to an address that was checked, so that a
second answer of the DNS changes nothing; TLS still proves the host's name. Each redirect is checked as if it were the
first URL. Nothing of the environment (proxies, netrc) counts, and no credential is sent: the request is the bytes that
`_request` returns. A URL is a secret, since it may be signed: errors name its host alone.
"""

from __future__ import annotations

import contextlib
import functools
import http.client
import io
import queue
import re
import socket
import ssl
import string
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_address
from typing import Any
from urllib.parse import quote, urljoin, urlsplit

from requests.utils import DEFAULT_CA_BUNDLE_PATH

from comfy_core.contract import ErrorCode
from comfy_core.errors import JobError
from comfy_core.images.codec import MAX_BYTES
from comfy_core.public_addresses import is_public, unwrapped

CONNECT_TIMEOUT_S = 5.0
"""For one address; a host with an unreachable one (IPv6 on a network without it) has time left for its others."""

_LONGEST_WAIT_S = 1.0
"""For one read, before it is asked again whether anybody still waits for the picture."""
_MAX_URL = 8192
_PIECE = 64 * 1024
_PORTS = {"https": 443, "http": 80}
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_HOST = re.compile(r"[A-Za-z0-9._:%-]{1,253}")
Resolve = Callable[[str, int], Sequence[str]]
"""From host and port to all addresses. May raise OSError or ValueError, and may block."""


@dataclass(frozen=True)
class FetchRules:
    """What may be fetched; the default suits pictures of the open internet.

    Attributes:
        allow_http: whether http counts, on port 80. A redirect from https to http never does.
        allowed_networks: where to fetch from although it is not public, such as a store in one's own network.
        extra_ports: ports beside the scheme's own.
        max_bytes: of the picture.
        timeout_s: from the first look-up to the last byte, redirects included.
        all_s: for all pictures of one request.
        max_redirects: how many are followed.
        tls: whom to trust instead of the authorities that requests brings.
    """

    allow_http: bool = False
    allowed_networks: tuple[IPv4Network | IPv6Network, ...] = ()
    extra_ports: frozenset[int] = frozenset()
    max_bytes: int = MAX_BYTES
    timeout_s: float = 20.0
    all_s: float = 60.0
    max_redirects: int = 3
    tls: ssl.SSLContext | None = None


def resolve_host(host: str, port: int) -> Sequence[str]:
    """Return all addresses of `host`, as the system resolves it. Raises OSError or ValueError."""
    return [str(found[4][0]) for found in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


def fetch_picture(
    url: str,
    path: str,
    rules: FetchRules,
    *,
    resolve: Resolve = resolve_host,
    clock: Callable[[], float] = time.monotonic,
    given_up: threading.Event | None = None,
) -> bytes:
    """Return what `url` answers, which may be no picture at all. Blocks for at most `rules.timeout_s`.

    Once `given_up` is set, it ends as if its time were over, within a second where the server only sends slowly.

    Raises JobError (invalid_image) that names `path`, the request's key that held the URL, and the host at fault.
    """
    deadline = _Deadline(clock() + rules.timeout_s, clock, given_up or threading.Event())
    host = ""
    try:
        target = _read_url(url, rules)
        for _ in range(rules.max_redirects + 1):
            host = target.host
            answer = _get(target, rules, resolve, deadline)
            if isinstance(answer, bytes):
                return answer
            target = _read_url(answer.location, rules, target)
        problem = f"it redirects more than {rules.max_redirects} times; send the address that it ends at"
    except _FetchError as error:
        problem = str(error)
    except TimeoutError:
        problem = f"it did not answer whole within {rules.timeout_s:g} s; send the picture itself, as base64"
    except ssl.SSLCertVerificationError as error:
        problem = f"its certificate is not valid ({error.verify_message}); send the picture itself, as base64"
    except (OSError, http.client.HTTPException, ValueError) as error:
        # Only the error's name: http.client quotes what the server sent, and that may quote the URL.
        problem = f"the connection failed ({type(error).__name__}); try the address, or send the picture itself"
    source = f" from {host}" if host else ""
    raise JobError.because(ErrorCode.INVALID_IMAGE, f"{path} was not fetched{source}: {problem}.", path=path)


def is_public_host(host: str, port: int, *, resolve: Resolve = resolve_host, timeout_s: float = 5.0) -> bool:
    """Return whether `host` is found in time, and all its addresses are public.

    For a connection that someone else makes, who looks the host up again: a second answer of the DNS is not covered.
    """
    try:
        addresses = [ip_address(address) for address in _resolved(host, port, resolve, timeout_s)]
    except (TimeoutError, ValueError):
        return False
    return bool(addresses) and all(is_public(address) for address in addresses)


class _FetchError(Exception):
    """Why a picture is not fetched: a sentence with the remedy, without path and host."""


@dataclass(frozen=True)
class _Deadline:
    at: float
    clock: Callable[[], float]
    given_up: threading.Event

    def left(self) -> float:
        """Return the seconds left, more than 0. Raises TimeoutError."""
        left = self.at - self.clock()
        if left <= 0 or self.given_up.is_set():
            raise TimeoutError
        return left


@dataclass(frozen=True)
class _Target:
    """A URL that the rules take: `host` in ASCII, `resource` as the request's first line has it."""

    url: str
    scheme: str
    host: str
    port: int
    resource: str


@dataclass(frozen=True)
class _Redirect:
    location: str


def _read_url(url: str, rules: FetchRules, previous: _Target | None = None) -> _Target:
    """Return the target of `url`, or of the redirect to `url` from `previous`. Raises _FetchError."""
    which = "the address that it redirects to" if previous else "its address"
    if len(url) > _MAX_URL or re.search(r"[\x00-\x20\x7f]", url):
        raise _FetchError(f"{which} has spaces, or more than {_MAX_URL} characters; write a space as %20")
    try:
        whole = urljoin(previous.url, url) if previous else url
        parts = urlsplit(whole)
        host = (parts.hostname or "").encode("idna").decode("ascii")
        port = parts.port
        resource = quote((parts.path or "/") + (f"?{parts.query}" if parts.query else ""), safe=string.punctuation)
    except ValueError:
        raise _FetchError(f"{which} is no URL; write https://host/picture.png") from None
    if previous and previous.scheme == "https" and parts.scheme == "http":
        raise _FetchError("it redirects from https to http; send an address that stays on https")
    if parts.scheme != "https" and not (parts.scheme == "http" and rules.allow_http):
        raise _FetchError(f"{which} is not https; send an https address, or the picture itself as base64")
    if "@" in parts.netloc:
        raise _FetchError(f"{which} holds a user name; send an address that needs none, such as a signed one")
    if not _HOST.fullmatch(host):
        raise _FetchError(f"{which} names no host; write https://host/picture.png")
    usual = _PORTS[parts.scheme]
    port = usual if port is None else port
    if port != usual and port not in rules.extra_ports:
        raise _FetchError(f"{which} has a port other than {usual}; send one without a port")
    return _Target(whole, parts.scheme, host, port, resource)


def _get(target: _Target, rules: FetchRules, resolve: Resolve, deadline: _Deadline) -> bytes | _Redirect:
    addresses = _checked_addresses(target, rules, resolve, deadline)
    with _connected(addresses, target.port, deadline) as plain, _secured(plain, target, rules, deadline) as sock:
        sock.settimeout(deadline.left())
        sock.sendall(_request(target))
        wire = _Wire(sock, deadline, limit=2 * rules.max_bytes + 2**20)
        with http.client.HTTPResponse(wire, method="GET") as response:  # type: ignore[arg-type] # asks for makefile alone
            response.begin()
            location = response.getheader("Location")
            if response.status in _REDIRECTS and location:
                # Headers are read as Latin-1: so the escapes are the bytes that came.
                return _Redirect(quote(location, safe=string.punctuation, encoding="latin-1"))
            return _body(response, rules.max_bytes)


def _checked_addresses(target: _Target, rules: FetchRules, resolve: Resolve, deadline: _Deadline) -> Sequence[str]:
    """Return the addresses of the target's host, once every one of them is allowed."""
    addresses = _resolved(target.host, target.port, resolve, deadline.left())
    if not addresses:
        raise _FetchError("no such host was found; correct the address, or send the picture itself as base64")
    for address in map(ip_address, addresses):
        allowed = any(unwrapped(address) in network for network in rules.allowed_networks)
        if not (allowed or is_public(address)):
            raise _FetchError("that host is not on the public internet; send the picture itself, as base64")
    return addresses


def _resolved(host: str, port: int, resolve: Resolve, timeout_s: float) -> Sequence[str]:
    """Return the addresses of `host`, none where it is not found. Raises TimeoutError."""
    answers: queue.SimpleQueue[Sequence[str]] = queue.SimpleQueue()

    def ask() -> None:
        try:
            answers.put(resolve(host, port))
        except (OSError, ValueError):
            answers.put([])

    # The system's resolver knows no deadline: a thread that waits for it is left behind, and ends when it does.
    threading.Thread(target=ask, name="resolve", daemon=True).start()
    try:
        return answers.get(timeout=timeout_s)
    except queue.Empty:
        raise TimeoutError from None


def _connected(addresses: Sequence[str], port: int, deadline: _Deadline) -> socket.socket:
    failure = OSError()
    for address in addresses:
        timeout_s = min(CONNECT_TIMEOUT_S, deadline.left())
        try:
            return socket.create_connection((address, port), timeout_s)
        except OSError as error:
            failure = error
    deadline.left()
    raise _FetchError(f"it was not reached ({type(failure).__name__}); try the address, or send the picture itself")


def _secured(plain: socket.socket, target: _Target, rules: FetchRules, deadline: _Deadline) -> socket.socket:
    if target.scheme == "http":
        return plain
    plain.settimeout(deadline.left())
    return (rules.tls or _public_authorities()).wrap_socket(plain, server_hostname=target.host.rstrip("."))


@functools.cache
def _public_authorities() -> ssl.SSLContext:
    return ssl.create_default_context(cafile=DEFAULT_CA_BUNDLE_PATH)


def _request(target: _Target) -> bytes:
    host = target.host.rstrip(".")
    authority = f"[{host}]" if ":" in host else host
    if target.port != _PORTS[target.scheme]:
        authority += f":{target.port}"
    lines = [
        f"GET {target.resource} HTTP/1.1",
        f"Host: {authority}",
        "User-Agent: comfy-client",
        "Accept: image/*",
        "Accept-Encoding: identity",
        "Connection: close",
    ]
    return "".join(f"{line}\r\n" for line in [*lines, ""]).encode("ascii")


class _Wire(io.RawIOBase):
    """What comes in on a socket. Every read ends at the deadline, and all of them together after `limit` bytes.

    So slow headers and chunks without end are bounded as well, wherever http.client reads them.
    """

    def __init__(self, sock: socket.socket, deadline: _Deadline, *, limit: int) -> None:
        self._sock = sock
        self._deadline = deadline
        self._bytes_left = limit

    def makefile(self, _mode: str) -> io.BufferedReader:
        """Return what http.client reads from; it takes this object for a socket."""
        return io.BufferedReader(self)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:  # noqa: ANN401 - any writable buffer; it has a name from Python 3.12 on
        count = self._received(buffer)
        self._bytes_left -= count
        if self._bytes_left < 0:
            raise _FetchError("it sends without end; send the picture itself, as base64")
        return count

    def _received(self, buffer: Any) -> int:  # noqa: ANN401 - as above
        while True:
            self._sock.settimeout(min(_LONGEST_WAIT_S, self._deadline.left()))
            with contextlib.suppress(TimeoutError):  # the deadline decides
                return self._sock.recv_into(buffer)


def _body(response: http.client.HTTPResponse, max_bytes: int) -> bytes:
    if response.status != http.client.OK:
        raise _FetchError(f"it answered {response.status}; send an address that answers 200 without a login")
    if response.getheader("Content-Encoding", "identity").lower() != "identity":
        raise _FetchError("it answered compressed although asked not to; send the picture itself, as base64")
    too_large = _FetchError(f"it has more than the {max_bytes:,} bytes that are taken; send it smaller, or as JPEG")
    if response.length is not None and response.length > max_bytes:
        raise too_large
    body = bytearray()
    while piece := response.read(_PIECE):
        body += piece
        if len(body) > max_bytes:
            raise too_large
    if response.length:
        raise _FetchError(f"it ended {response.length:,} bytes early; try the address, or send the picture itself")
    return bytes(body)
