"""Downloads an image from an untrusted URL, protected against SSRF. Returns the bytes without decoding them.

Every address that the host resolves to must be public. The connection is made to one of the checked addresses, so a
later DNS response has no effect (DNS rebinding); TLS still verifies the host name. Each redirect is checked like the
first URL. Proxies and netrc of the environment are ignored, and no credential is sent: the request consists of the
bytes that `_request` returns. A URL may contain a signature, so errors name only its host.
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

from comfy_core.images.codec import MAX_BYTES, invalid_image
from comfy_core.public_addresses import is_public, unwrapped

CONNECT_TIMEOUT_S = 5.0
"""Connect timeout for one address, so that time is left for a host's other addresses (IPv6 may be unreachable)."""

_READ_TIMEOUT_S = 1.0
"""Timeout of one read, after which the deadline and `given_up` are checked again."""
_MAX_LENGTH = 8192
"""Maximum length of a URL, in characters."""
_CHUNK_BYTES = 64 * 1024
_PORTS = {"https": 443, "http": 80}
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
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


def fetch_image(
    url: str,
    field_path: str,
    rules: FetchRules,
    *,
    resolve: Resolve = resolve_host,
    clock: Callable[[], float] = time.monotonic,
    given_up: threading.Event | None = None,
) -> bytes:
    """Return the body at `url`, which need not be an image. Blocks for at most `rules.timeout_s`.

    Setting `given_up` has the effect of a timeout within about a second, even if the server sends slowly.

    Raises JobError (invalid_image) with `field_path`, the URL's path in the request, and the host that failed.
    """
    deadline = _Deadline(clock() + rules.timeout_s, clock, given_up or threading.Event())
    host = ""
    try:
        target = _read_url(url, rules)
        for _ in range(rules.max_redirects + 1):
            host = target.host
            result = _get(target, rules, resolve, deadline)
            if isinstance(result, bytes):
                return result
            target = _read_url(result.location, rules, target)
        problem = f"more than {rules.max_redirects} redirects; send the final URL"
    except _FetchError as error:
        problem = str(error)
    except TimeoutError:
        problem = f"the download took more than {rules.timeout_s:g} s"
    except ssl.SSLCertVerificationError as error:
        problem = f"its TLS certificate is not valid ({error.verify_message})"
    except (OSError, http.client.HTTPException, ValueError) as error:
        # Only the error's class: the text of http.client's errors quotes the response, which may quote the URL.
        problem = f"the connection failed ({type(error).__name__})"
    source = f" from {host}" if host else ""
    raise invalid_image(field_path, f"was not fetched{source}: {problem}")


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


class _FetchError(Exception):
    """A failed download. The message gives the problem and the remedy, but neither the URL nor the host."""


@dataclass(frozen=True)
class _Deadline:
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
class _Target:
    """A URL that satisfies the rules: `host` in ASCII, `resource` as in the request line."""

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
    which = "the redirect's URL" if previous else "the URL"
    if len(url) > _MAX_LENGTH or re.search(r"[\x00-\x20\x7f]", url):
        raise _FetchError(f"{which} contains spaces or has more than {_MAX_LENGTH} characters; encode a space as %20")
    try:
        whole = urljoin(previous.url, url) if previous else url
        parts = urlsplit(whole)
        host = (parts.hostname or "").encode("idna").decode("ascii")
        port = parts.port
        resource = quote((parts.path or "/") + (f"?{parts.query}" if parts.query else ""), safe=string.punctuation)
    except ValueError:
        raise _FetchError(f"{which} is not valid; write https://host/image.png") from None
    if previous and previous.scheme == "https" and parts.scheme == "http":
        raise _FetchError("it redirects from https to http; send a URL that stays on https")
    if parts.scheme != "https" and not (parts.scheme == "http" and rules.allow_http):
        raise _FetchError(f"{which} is not https")
    if "@" in parts.netloc:
        raise _FetchError(f"{which} contains a user name; send a URL that needs none, such as a presigned URL")
    if not _HOST.fullmatch(host):
        raise _FetchError(f"{which} has no valid host; write https://host/image.png")
    default_port = _PORTS[parts.scheme]
    port = default_port if port is None else port
    if port != default_port and port not in rules.extra_ports:
        raise _FetchError(f"{which} has a port other than {default_port}; send a URL without a port")
    return _Target(whole, parts.scheme, host, port, resource)


def _get(target: _Target, rules: FetchRules, resolve: Resolve, deadline: _Deadline) -> bytes | _Redirect:
    addresses = _checked_addresses(target, rules, resolve, deadline)
    with _connected(addresses, target.port, deadline) as plain, _secured(plain, target, rules, deadline) as sock:
        sock.settimeout(deadline.remaining_s())
        sock.sendall(_request(target))
        wire = _Wire(sock, deadline, limit=2 * rules.max_bytes + 2**20)
        with http.client.HTTPResponse(wire, method="GET") as response:  # type: ignore[arg-type] # it only calls makefile
            response.begin()
            location = response.getheader("Location")
            if response.status in _REDIRECTS and location:
                # http.client decodes headers as Latin-1; encoding them as Latin-1 restores the original bytes.
                return _Redirect(quote(location, safe=string.punctuation, encoding="latin-1"))
            return _body(response, rules.max_bytes)


def _checked_addresses(target: _Target, rules: FetchRules, resolve: Resolve, deadline: _Deadline) -> Sequence[str]:
    """Return the addresses of the target's host. Raises _FetchError unless all of them are allowed."""
    addresses = _resolved(target.host, target.port, resolve, deadline.remaining_s())
    if not addresses:
        raise _FetchError("the host was not found")
    for address in map(ip_address, addresses):
        allowed = any(unwrapped(address) in network for network in rules.allowed_networks)
        if not (allowed or is_public(address)):
            raise _FetchError("the host is not on the public internet")
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


def _connected(addresses: Sequence[str], port: int, deadline: _Deadline) -> socket.socket:
    """Return a socket that is connected to the first of `addresses` that can be reached. Raises _FetchError."""
    failure = OSError()
    for address in addresses:
        timeout_s = min(CONNECT_TIMEOUT_S, deadline.remaining_s())
        try:
            return socket.create_connection((address, port), timeout_s)
        except OSError as error:
            failure = error
    deadline.remaining_s()
    raise _FetchError(f"it was not reached ({type(failure).__name__})")


def _secured(plain: socket.socket, target: _Target, rules: FetchRules, deadline: _Deadline) -> socket.socket:
    """Return a TLS socket over `plain` after the handshake, or `plain` itself for http."""
    if target.scheme == "http":
        return plain
    plain.settimeout(deadline.remaining_s())
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
    """The receiving side of a socket. Enforces the deadline on every read, and a limit on the total bytes.

    This also bounds slow headers and endless chunks, which http.client reads by itself.
    """

    def __init__(self, sock: socket.socket, deadline: _Deadline, *, limit: int) -> None:
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
            raise _FetchError("the response is too long")
        return count

    def _received(self, buffer: Any) -> int:  # noqa: ANN401 - as above
        while True:
            self._sock.settimeout(min(_READ_TIMEOUT_S, self._deadline.remaining_s()))
            with contextlib.suppress(TimeoutError):  # the loop checks the deadline
                return self._sock.recv_into(buffer)


def _body(response: http.client.HTTPResponse, max_bytes: int) -> bytes:
    if response.status != http.client.OK:
        raise _FetchError(f"it returned {response.status}; send a URL that returns 200 without a login")
    if response.getheader("Content-Encoding", "identity").lower() != "identity":
        raise _FetchError("it sent a compressed response although identity was requested")
    too_large = _FetchError(f"the image is larger than {max_bytes:,} bytes")
    if response.length is not None and response.length > max_bytes:
        raise too_large
    body = bytearray()
    while chunk := response.read(_CHUNK_BYTES):
        body += chunk
        if len(body) > max_bytes:
            raise too_large
    if response.length:
        raise _FetchError(f"the response ended {response.length:,} bytes early")
    return bytes(body)
