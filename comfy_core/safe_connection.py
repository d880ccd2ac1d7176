"""Sends one HTTP request to an untrusted URL, protected against SSRF, and returns the response's head.

Every address that the host resolves to must be public. The connection is made to one of the checked addresses, so a
later DNS response has no effect (DNS rebinding); TLS still verifies the host name. Proxies and netrc of the environment
are ignored. Redirects are not followed. A URL may contain a signature, so errors never contain it.
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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network, ip_address
from typing import Any
from urllib.parse import quote, urljoin, urlsplit

from requests.utils import DEFAULT_CA_BUNDLE_PATH

from comfy_core.images.codec import MAX_BYTES
from comfy_core.public_addresses import is_public, unwrapped

CONNECT_TIMEOUT_S = 5.0
"""Connect timeout for one address, so that time is left for a host's other addresses (IPv6 may be unreachable)."""

_READ_TIMEOUT_S = 1.0
"""Timeout of one read, after which the deadline and `given_up` are checked again."""
_MAX_LENGTH = 8192
"""Maximum length of a URL, in characters."""
_PORTS = {"https": 443, "http": 80}
_HOST = re.compile(r"[A-Za-z0-9._:%-]{1,253}")
Resolve = Callable[[str, int], Sequence[str]]
"""Resolves a host and port to all addresses. May raise OSError or ValueError, and may block."""


@dataclass(frozen=True)
class FetchRules:
    """Limits of a download. The defaults are meant for images on the public internet.

    Attributes:
        allow_http: whether http on port 80 is allowed. A redirect from https to http never is.
        allowed_networks: networks that are allowed although they are not public, such as one's own file server.
        extra_ports: allowed ports in addition to the scheme's default port.
        max_bytes: maximum size of one image.
        timeout_s: timeout from the DNS lookup to the last byte, including redirects.
        total_timeout_s: timeout for all images of one request.
        max_redirects: maximum number of redirects to follow.
        tls: TLS context. Default: one that trusts the certificate authorities bundled with requests.
    """

    allow_http: bool = False
    allowed_networks: tuple[IPv4Network | IPv6Network, ...] = ()
    extra_ports: frozenset[int] = frozenset()
    max_bytes: int = MAX_BYTES
    timeout_s: float = 20.0
    total_timeout_s: float = 60.0
    max_redirects: int = 3
    tls: ssl.SSLContext | None = None


def resolve_host(host: str, port: int) -> Sequence[str]:
    """Return all addresses of `host` from the system's resolver. Raises OSError or ValueError."""
    return [str(found[4][0]) for found in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


def is_public_host(host: str, port: int, *, resolve: Resolve = resolve_host, timeout_s: float = 5.0) -> bool:
    """Return whether `host` resolves within the timeout and all its addresses are public.

    For connections made by other code, which resolves the host again. A different DNS response to that second lookup
    is not detected.
    """
    try:
        addresses = [ip_address(address) for address in _resolved(host, port, resolve, timeout_s)]
    except (TimeoutError, ValueError):
        return False
    return bool(addresses) and all(is_public(address) for address in addresses)


class FetchError(Exception):
    """A failed request. The message gives the problem and the remedy, but neither the URL nor the host."""


class RefusedHostError(FetchError):
    """The host has an address that is not public. Another attempt fails in the same way."""


FAILURES = (FetchError, OSError, http.client.HTTPException, ValueError)
"""Errors of a failed request. `problem_of` describes them."""


def problem_of(error: Exception, what: str, timeout_s: float) -> str:
    """Return the problem of a failed request without its URL. `what` is the request, such as "the download"."""
    match error:
        case FetchError():
            return str(error)
        case TimeoutError():
            return f"{what} took more than {timeout_s:g} s"
        case ssl.SSLCertVerificationError():
            return f"its TLS certificate is not valid ({error.verify_message})"
    # Only the error's class: the text of http.client's errors quotes the response, which may quote the URL.
    return f"the connection failed ({type(error).__name__})"


@dataclass(frozen=True)
class RequestDeadline:
    """The end of a request at `at`, on `clock`, or within about a second after `given_up` is set."""

    at: float
    clock: Callable[[], float]
    given_up: threading.Event

    def remaining_s(self) -> float:
        """Return the seconds left, more than 0. Raises TimeoutError if none are left or `given_up` is set."""
        remaining_s = self.at - self.clock()
        if remaining_s <= 0 or self.given_up.is_set():
            raise TimeoutError
        return remaining_s


@dataclass(frozen=True)
class CheckedUrl:
    """A URL that satisfies the rules: `host` in ASCII, `resource` as in the request line."""

    url: str
    scheme: str
    host: str
    port: int
    resource: str


def read_url(url: str, rules: FetchRules, previous: CheckedUrl | None = None) -> CheckedUrl:
    """Return the target of `url`, or of the redirect to `url` from `previous`. Raises FetchError."""
    which = "the redirect's URL" if previous else "the URL"
    if len(url) > _MAX_LENGTH or re.search(r"[\x00-\x20\x7f]", url):
        raise FetchError(f"{which} contains spaces or has more than {_MAX_LENGTH} characters; encode a space as %20")
    try:
        whole = urljoin(previous.url, url) if previous else url
        parts = urlsplit(whole)
        host = (parts.hostname or "").encode("idna").decode("ascii")
        port = parts.port
        resource = quote((parts.path or "/") + (f"?{parts.query}" if parts.query else ""), safe=string.punctuation)
    except ValueError:
        raise FetchError(f"{which} is not valid; write https://host/path") from None
    if previous and previous.scheme == "https" and parts.scheme == "http":
        raise FetchError("it redirects from https to http; send a URL that stays on https")
    if parts.scheme != "https" and not (parts.scheme == "http" and rules.allow_http):
        raise FetchError(f"{which} is not https")
    if "@" in parts.netloc:
        raise FetchError(f"{which} contains a user name; send a URL that needs none, such as a presigned URL")
    if not _HOST.fullmatch(host):
        raise FetchError(f"{which} has no valid host; write https://host/path")
    default_port = _PORTS[parts.scheme]
    port = default_port if port is None else port
    if port != default_port and port not in rules.extra_ports:
        raise FetchError(f"{which} has a port other than {default_port}; send a URL without a port")
    return CheckedUrl(whole, parts.scheme, host, port, resource)


@dataclass(frozen=True)
class HttpRequest:
    """One HTTP request. `headers` are sent in addition to Host, User-Agent, Content-Length and the like.

    Names and values of headers must not contain line breaks.
    """

    method: str
    target: CheckedUrl
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    body: bytes = field(default=b"", repr=False)

    def encoded(self) -> bytes:
        """Return the bytes to send."""
        host = self.target.host.rstrip(".")
        authority = f"[{host}]" if ":" in host else host
        if self.target.port != _PORTS[self.target.scheme]:
            authority += f":{self.target.port}"
        headers = {
            "Host": authority,
            "User-Agent": "comfy-client",
            **self.headers,
            "Accept-Encoding": "identity",
            "Connection": "close",
            **({"Content-Length": str(len(self.body))} if self.body else {}),
        }
        lines = [
            f"{self.method} {self.target.resource} HTTP/1.1",
            *(f"{name}: {value}" for name, value in headers.items()),
        ]
        return "".join(f"{line}\r\n" for line in [*lines, ""]).encode("ascii") + self.body


@contextlib.contextmanager
def exchange(
    request: HttpRequest, rules: FetchRules, resolve: Resolve, deadline: RequestDeadline, *, limit: int
) -> Iterator[http.client.HTTPResponse]:
    """Send a request and yield the response, whose head was read. At most `limit` bytes are received.

    Raises an error of FAILURES.
    """
    target = request.target
    addresses = _checked_addresses(target, rules, resolve, deadline)
    with _connected(addresses, target.port, deadline) as plain, _secured(plain, target, rules, deadline) as sock:
        sock.settimeout(deadline.remaining_s())
        sock.sendall(request.encoded())
        wire = _Wire(sock, deadline, limit=limit)
        with http.client.HTTPResponse(wire, method=request.method) as response:  # type: ignore[arg-type] # it only calls makefile
            response.begin()
            yield response


def _checked_addresses(
    target: CheckedUrl, rules: FetchRules, resolve: Resolve, deadline: RequestDeadline
) -> Sequence[str]:
    """Return the addresses of the target's host. Raises FetchError unless all of them are allowed."""
    addresses = _resolved(target.host, target.port, resolve, deadline.remaining_s())
    if not addresses:
        raise FetchError("the host was not found")
    for address in map(ip_address, addresses):
        allowed = any(unwrapped(address) in network for network in rules.allowed_networks)
        if not (allowed or is_public(address)):
            raise RefusedHostError("the host is not on the public internet")
    return addresses


def _resolved(host: str, port: int, resolve: Resolve, timeout_s: float) -> Sequence[str]:
    """Return the addresses of `host`; empty if it is not found. Raises TimeoutError."""
    results: queue.SimpleQueue[Sequence[str]] = queue.SimpleQueue()

    def look_up() -> None:
        try:
            results.put(resolve(host, port))
        except (OSError, ValueError):
            results.put([])

    # The system's resolver has no timeout, so it runs in a thread that is abandoned if it takes too long.
    threading.Thread(target=look_up, name="resolve", daemon=True).start()
    try:
        return results.get(timeout=timeout_s)
    except queue.Empty:
        raise TimeoutError from None


def _connected(addresses: Sequence[str], port: int, deadline: RequestDeadline) -> socket.socket:
    """Return a socket that is connected to the first of `addresses` that can be reached. Raises FetchError."""
    failure = OSError()
    for address in addresses:
        timeout_s = min(CONNECT_TIMEOUT_S, deadline.remaining_s())
        try:
            return socket.create_connection((address, port), timeout_s)
        except OSError as error:
            failure = error
    deadline.remaining_s()
    raise FetchError(f"it was not reached ({type(failure).__name__})")


def _secured(plain: socket.socket, target: CheckedUrl, rules: FetchRules, deadline: RequestDeadline) -> socket.socket:
    """Return a TLS socket over `plain` after the handshake, or `plain` itself for http."""
    if target.scheme == "http":
        return plain
    plain.settimeout(deadline.remaining_s())
    return (rules.tls or _public_authorities()).wrap_socket(plain, server_hostname=target.host.rstrip("."))


@functools.cache
def _public_authorities() -> ssl.SSLContext:
    return ssl.create_default_context(cafile=DEFAULT_CA_BUNDLE_PATH)


class _Wire(io.RawIOBase):
    """The receiving side of a socket. Enforces the deadline on every read, and a limit on the total bytes.

    This also bounds slow headers and endless chunks, which http.client reads by itself.
    """

    def __init__(self, sock: socket.socket, deadline: RequestDeadline, *, limit: int) -> None:
        self._sock = sock
        self._deadline = deadline
        self._bytes_left = limit

    def makefile(self, _mode: str) -> io.BufferedReader:
        """Return a buffered reader; http.client calls this as on a socket."""
        return io.BufferedReader(self)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:  # noqa: ANN401 - any writable buffer; its type exists from Python 3.12 on
        count = self._received(buffer)
        self._bytes_left -= count
        if self._bytes_left < 0:
            raise FetchError("the response is too long")
        return count

    def _received(self, buffer: Any) -> int:  # noqa: ANN401 - as above
        while True:
            self._sock.settimeout(min(_READ_TIMEOUT_S, self._deadline.remaining_s()))
            with contextlib.suppress(TimeoutError):  # the loop checks the deadline
                return self._sock.recv_into(buffer)
