"""Fetching image URLs, over real sockets on loopback. No test reaches another machine."""

from __future__ import annotations

import contextlib
import io
import itertools
import queue
import select
import socket
import socketserver
import ssl
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from comfy_core.error_codes import ErrorCode
from comfy_core.errors import JobError
from comfy_core.public_addresses import is_public
from comfy_core.safe_connection import FetchRules, resolve_host
from comfy_core.safe_fetch import fetch_image
from simulators.http_server import InThread
from tests.fakes.certificate import write_certificate

LOOPBACK = "127.0.0.1"
OTHER_ADDRESS = "127.0.0.2"
"""A second loopback address, which the tests' rules do not allow."""

CERTIFIED_HOST = "images.example"
GRACE_S = 20.0
_TLS_HELLO = b"\x16"


def _png() -> bytes:
    encoded = io.BytesIO()
    Image.new("RGB", (8, 8), "teal").save(encoded, "PNG")
    return encoded.getvalue()


PNG = _png()

Response = Callable[[], Iterable[bytes]]


def reply(body: bytes = PNG, *, status: str = "200 OK", length: int | None = None, extra: str = "") -> Response:
    """Return a response whose Content-Length is `length`, which may be false, or by default the length of `body`."""
    size = len(body) if length is None else length
    return lambda: [f"HTTP/1.1 {status}\r\nContent-Length: {size}\r\n{extra}\r\n".encode("latin-1"), body]


def redirect(location: str, status: str = "302 Found") -> Response:
    """Return a redirect."""
    return reply(b"", status=status, extra=f"Location: {location}\r\n")


def raw_response(*pieces: bytes) -> Response:
    """Return a response that consists of these bytes only."""
    return lambda: pieces


def dripping_response(head: bytes, drop: bytes, drops: int = 400) -> Response:
    """Return a response that sends `drop` every 20 ms, `drops` times or until the client disconnects."""
    pause = threading.Event()

    def pieces() -> Iterator[bytes]:
        yield head
        for _ in range(drops):
            pause.wait(0.02)
            yield drop

    return pieces


class ImageServer(InThread, socketserver.ThreadingTCPServer):
    """A web server with a response per path, which counts connections and records requests."""

    allow_reuse_address = True
    block_on_close = True
    daemon_threads = False

    def __init__(self, address: str, port: int = 0, tls: ssl.SSLContext | None = None) -> None:
        super().__init__((address, port), _ImageHandler)
        self.tls = tls
        self.responses: dict[str, Response] = {}
        self.requests: list[str] = []
        self._accepted: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._visits = 0

    @property
    def port(self) -> int:
        """The port that the server listens on."""
        return int(self.server_address[1])

    def verify_request(self, _request: object, client_address: tuple[str, int]) -> bool:
        """Record each connection, in the order of the backlog."""
        self._accepted.put(client_address[1])
        return True

    def visits(self) -> int:
        """Return the number of connections so far, without the probe that this method makes."""
        with socket.create_connection(
            (LOOPBACK if self.server_address[0] == LOOPBACK else OTHER_ADDRESS, self.port)
        ) as probe:
            probe_port = probe.getsockname()[1]
            self._visits += sum(1 for _ in iter(lambda: self._accepted.get(timeout=60), probe_port))
        return self._visits


class _ImageHandler(socketserver.BaseRequestHandler):
    server: ImageServer
    request: socket.socket

    def handle(self) -> None:
        with contextlib.suppress(OSError):
            if self.server.tls is None:
                self._respond(self.request)
            else:
                with self.server.tls.wrap_socket(self.request, server_side=True) as secured:
                    self._respond(secured)

    def _respond(self, connection: socket.socket) -> None:
        head = b""
        while not head.startswith(_TLS_HELLO) and b"\r\n\r\n" not in head:
            received = connection.recv(65536)
            if not received:
                return
            head += received
        if head.startswith(_TLS_HELLO):
            connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            return
        self.server.requests.append(head.decode("ascii"))
        path = head.split(b" ")[1].decode("ascii").partition("?")[0]
        for piece in self.server.responses.get(path, reply(b"", status="404 Not Found"))():
            if select.select([connection], [], [], 0)[0]:  # the client has disconnected
                return
            connection.sendall(piece)


@pytest.fixture
def server() -> Iterator[ImageServer]:
    """A plain server at an address that the tests' rules allow, with an image at /cat.png."""
    with ImageServer(LOOPBACK) as running:
        running.responses["/cat.png"] = reply()
        yield running


@pytest.fixture
def private_server(server: ImageServer) -> Iterator[ImageServer]:
    """A server on the port of `server`, at an address that `rules` do not allow. It also has an image at /cat.png."""
    with ImageServer(OTHER_ADDRESS, server.port) as running:
        running.responses["/cat.png"] = reply()
        yield running


@pytest.fixture
def rules(server: ImageServer) -> FetchRules:
    """Rules that allow `server`, and no other private address."""
    return FetchRules(
        allow_http=True,
        allowed_networks=(ip_network(LOOPBACK),),
        extra_ports=frozenset({server.port}),
        timeout_s=60,
        max_bytes=100_000,
    )


class Resolver:
    """A fake resolver. Each call returns the next addresses; the last ones are repeated. `hosts` records the names."""

    def __init__(self, *addresses: Sequence[str]) -> None:
        self.hosts: list[str] = []
        self._addresses = itertools.chain(addresses, itertools.repeat(addresses[-1]))

    def __call__(self, host: str, _port: int) -> Sequence[str]:
        """Return the next addresses."""
        self.hosts.append(host)
        return next(self._addresses)


def refusal(
    url: str, rules: FetchRules, resolve: Callable[[str, int], Sequence[str]] = resolve_host, field: str = "image"
) -> str:
    """Return the problem in the error for `url`, after a check of the error's code, details and secrecy."""
    with pytest.raises(JobError) as info:
        fetch_image(url, field, rules, resolve=resolve)
    assert info.value.code is ErrorCode.INVALID_IMAGE
    assert info.value.report.details == {"path": field}
    problem, _, _ = info.value.report.message.partition(f" {ErrorCode.INVALID_IMAGE.remedy}")
    assert problem.startswith(f"{field} was not fetched")
    assert "SECRET" not in "".join(traceback.format_exception(info.value))
    return problem


def url_of(server: ImageServer, resource: str = "/cat.png", host: str = LOOPBACK) -> str:
    """Return the URL of a resource on `server`."""
    return f"http://{host}:{server.port}{resource}"


# Successful fetches


def test_an_image_is_fetched(server: ImageServer, rules: FetchRules) -> None:
    """The bytes are returned as the server sent them."""
    assert fetch_image(url_of(server), "image", rules) == PNG


def test_the_request_has_no_extra_headers(server: ImageServer, rules: FetchRules) -> None:
    """The request does not identify the worker; path and query are escaped if needed."""
    lines = [
        "GET /cat.png?sig=a%2Fb&name=b%C3%BCcher HTTP/1.1",
        f"Host: {LOOPBACK}:{server.port}",
        "User-Agent: comfy-client",
        "Accept: image/*",
        "Accept-Encoding: identity",
        "Connection: close",
        "\r\n",
    ]

    fetch_image(url_of(server, "/cat.png?sig=a%2Fb&name=bücher#part"), "image", rules)

    assert server.requests == ["\r\n".join(lines)]


@pytest.mark.parametrize(
    "response",
    [
        raw_response(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\n",
            PNG[:4],
            b"\r\n1\r\n",
            PNG[4:5],
            b"\r\n0\r\n\r\n",
        ),
        raw_response(b"HTTP/1.0 200 OK\r\n\r\n", PNG[:5]),
        reply(PNG[:5], extra="Content-Encoding: Identity\r\n"),
    ],
    ids=["chunked", "until the end of the connection", "identity"],
)
def test_bodies_of_every_kind(server: ImageServer, rules: FetchRules, response: Response) -> None:
    """A body is complete in every transfer encoding."""
    server.responses["/cat.png"] = response

    assert fetch_image(url_of(server), "image", rules) == PNG[:5]


def test_an_image_of_the_largest_size(server: ImageServer, rules: FetchRules) -> None:
    """An image of exactly the allowed size is accepted."""
    server.responses["/cat.png"] = reply(b"x" * rules.max_bytes)

    assert len(fetch_image(url_of(server), "image", rules)) == rules.max_bytes


def test_environment_is_ignored(
    server: ImageServer, private_server: ImageServer, rules: FetchRules, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Neither the environment's proxies nor ~/.netrc change the request or its destination."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, url_of(private_server, "", OTHER_ADDRESS))
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".netrc").write_text(f"machine {LOOPBACK} login somebody password SECRET\n")
    (tmp_path / ".netrc").chmod(0o600)

    assert fetch_image(url_of(server), "image", rules) == PNG
    assert "authorization" not in server.requests[0].lower()
    assert private_server.visits() == 0


def test_cookies_are_not_kept(server: ImageServer, rules: FetchRules) -> None:
    """A cookie that a redirect sets is not sent."""
    server.responses["/old"] = reply(b"", status="302 Found", extra="Location: /cat.png\r\nSet-Cookie: a=b\r\n")

    assert fetch_image(url_of(server, "/old"), "image", rules) == PNG
    assert "cookie" not in server.requests[1].lower()


# Destinations


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "127.1",
        "0x7f.1",
        "0x7f000001",
        "2130706433",
        "0177.0.0.1",
        "017700000001",
        "0",
        "0.0.0",
        "127。0。0。1",
        "①②⑦.0.0.1",
        "LOCALHOST",
        "[::1]",
        "[::]",
        "[::127.0.0.1]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
    ],
)  # fmt: skip
def test_this_machine_is_rejected_in_every_spelling(server: ImageServer, host: str) -> None:
    """Every spelling of this machine's address is rejected before a connection is made."""
    strict = FetchRules(allow_http=True, extra_ports=frozenset({server.port}))

    assert "not on the public internet" in refusal(url_of(server, host=host), strict)
    assert server.visits() == 0


@pytest.mark.parametrize(
    "address",
    [
        "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "100.100.100.200", "192.0.0.192",
        "168.63.129.16", "192.0.2.1", "192.88.99.1", "198.18.0.1", "224.0.0.1", "239.255.255.250", "240.0.0.1",
        "255.255.255.255", "fe80::1", "fe80::1%lo", "fc00::1", "fd00:ec2::254", "fec0::1", "ff02::1", "2001:db8::1",
        "3fff::1", "5f00::1", "100::1", "::ffff:10.0.0.1", "::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe",
        "64:ff9b::7f00:1", "64:ff9b:1::a00:1", "2002:a00:1::", "2002:7f00:1::1", "2001:0:a00:1::1",
        "2001:0:4136:e378:8000:63bf:f5ff:fffe",
    ],
)  # fmt: skip
def test_private_addresses(address: str) -> None:
    """A host that resolves to a private address is rejected; the error does not contain the address."""
    message = refusal("https://images.example/cat.png", FetchRules(), Resolver([address]))

    assert message == "image was not fetched from images.example: the host is not on the public internet."


@pytest.mark.parametrize(
    "address",
    ["1.1.1.1", "93.184.216.34", "2606:4700::1111", "2a00:1450:4001::1", "::ffff:1.1.1.1", "64:ff9b::101:101"],
)
def test_public_addresses(address: str) -> None:
    """Hosts of the open internet are public, also through NAT64."""
    assert is_public(ip_address(address))


@pytest.mark.parametrize("addresses", [["1.1.1.1", "10.0.0.1"], ["10.0.0.1", "1.1.1.1"], ["1.1.1.1", "::1"]])
def test_mixed_addresses(addresses: list[str]) -> None:
    """One private address among a host's addresses is enough to reject the host."""
    assert "not on the public internet" in refusal("https://images.example/", FetchRules(), Resolver(addresses))


def test_a_resolver_s_invalid_address() -> None:
    """No connection is made to an invalid address that a resolver returns."""
    assert "the connection failed" in refusal("https://images.example/", FetchRules(), Resolver(["127.1"]))


def test_rebinding(server: ImageServer, private_server: ImageServer, rules: FetchRules) -> None:
    """The connection goes to the address that was checked, whatever DNS returns later."""
    resolve = Resolver([LOOPBACK], [OTHER_ADDRESS])

    assert fetch_image(url_of(server, host="rebind.example"), "image", rules, resolve=resolve) == PNG
    assert resolve.hosts == ["rebind.example"]
    assert private_server.visits() == 0


def test_rebinding_between_redirects(server: ImageServer, private_server: ImageServer, rules: FetchRules) -> None:
    """A redirect to the same host is resolved and checked again."""
    server.responses["/old"] = redirect("/cat.png")
    url = url_of(server, "/old", "rebind.example")

    assert "not on the public internet" in refusal(url, rules, Resolver([LOOPBACK], [OTHER_ADDRESS]))
    assert private_server.visits() == 0


def test_the_next_address_is_tried(server: ImageServer, rules: FetchRules) -> None:
    """If a host's first address does not respond, the second one is used."""
    both = replace(rules, allowed_networks=(ip_network("127.0.0.0/8"),))

    assert fetch_image(url_of(server), "image", both, resolve=Resolver([OTHER_ADDRESS, LOOPBACK])) == PNG


@pytest.mark.parametrize(
    ("written", "resolved"),
    [
        ("bücher.example", "xn--bcher-kva.example"),
        ("Images.Example.", "images.example."),
        ("[::1%25lo]", "::1%25lo"),
    ],
)
def test_host_names(written: str, resolved: str) -> None:
    """A host is resolved in its ASCII form."""
    resolve = Resolver(["10.0.0.1"])

    refusal(f"https://{written}/", FetchRules(), resolve)

    assert resolve.hosts == [resolved]


def test_an_ipv6_host_is_written_in_brackets(server: ImageServer, rules: FetchRules) -> None:
    """The Host header has an IPv6 address in brackets."""
    fetch_image(url_of(server, host="[2606:4700::1111]"), "image", rules, resolve=Resolver([LOOPBACK]))

    assert f"\r\nHost: [2606:4700::1111]:{server.port}\r\n" in server.requests[0]


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("", "is not https"),
        ("cat.png", "is not https"),
        ("file:///etc/passwd", "is not https"),
        ("gopher://images.example/", "is not https"),
        ("http://images.example/", "is not https"),
        ("https:///cat.png?sig=SECRET", "has no valid host"),
        ("https://a;sig=SECRET/cat.png", "has no valid host"),
        ("https://" + "a." * 200 + "example/", "has no valid host"),
        ("https://a..b/", "is not valid"),
        ("https://[::1/", "is not valid"),
        ("https://images.example:SECRET/", "is not valid"),
        ("https://images.example/\ud800", "is not valid"),
        ("https://images.example/a b", "contains spaces"),
        ("https://images.example/\r\nHost: internal", "contains spaces"),
        (" https://images.example/", "contains spaces"),
        ("https://images.example/" + "a" * 9000, "contains spaces or has more than 8192 characters"),
        ("https://user:SECRET@images.example/", "contains a user name"),
        ("https://@images.example/", "contains a user name"),
        ("https://images.example\\@10.0.0.1/", "contains a user name"),
        ("https://images.example:22/", "has a port other than 443"),
        ("https://images.example:0/", "has a port other than 443"),
        ("https://images.example:80/", "has a port other than 443"),
    ],
)
def test_forbidden_urls(url: str, problem: str) -> None:
    """A URL that the rules forbid is rejected before its host is resolved, and is not quoted."""
    resolve = Resolver(["10.0.0.1"])

    assert problem in refusal(url, FetchRules(), resolve)
    assert resolve.hosts == []


# Redirects


@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "303 See Other", "307 Temporary", "308 Permanent"])
def test_redirects_are_followed(server: ImageServer, rules: FetchRules, status: str) -> None:
    """An image that has moved is fetched from its new URL."""
    server.responses["/old"] = redirect("/cat.png", status)

    assert fetch_image(url_of(server, "/old"), "image", rules) == PNG


def test_a_redirect_keeps_its_bytes(server: ImageServer, rules: FetchRules) -> None:
    """Bytes outside ASCII in a redirect are requested unchanged."""
    server.responses["/old"] = redirect("/cat.png?name=" + "ü".encode().decode("latin-1"))

    fetch_image(url_of(server, "/old"), "image", rules)

    assert server.requests[1].startswith("GET /cat.png?name=%C3%BC HTTP/1.1\r\n")


def test_redirect_to_a_private_address(server: ImageServer, private_server: ImageServer, rules: FetchRules) -> None:
    """A redirect to a private address is rejected before a connection is made; the error names the redirect's host."""
    server.responses["/old"] = redirect(url_of(private_server, "/cat.png?sig=SECRET", OTHER_ADDRESS))

    message = refusal(url_of(server, "/old"), rules)

    assert message.startswith(f"image was not fetched from {OTHER_ADDRESS}: the host is not on the public internet")
    assert private_server.visits() == 0


@pytest.mark.parametrize(
    ("location", "problem"),
    [
        ("http://169.254.169.254/latest/meta-data/", "from 169.254.169.254: the host is not on the public internet"),
        ("http://images.example:22/", "the redirect's URL has a port other than 80"),
        ("http://user:SECRET@images.example/", "the redirect's URL contains a user name"),
        ("file:///etc/passwd", "the redirect's URL is not https"),
        ("http://[SECRET/", "the redirect's URL is not valid"),
        ("", "it returned 302"),
    ],
)
def test_redirects_that_are_not_followed(server: ImageServer, rules: FetchRules, location: str, problem: str) -> None:
    """A redirect must meet the rules of a first URL."""
    server.responses["/old"] = redirect(location)

    assert problem in refusal(url_of(server, "/old"), rules)


def test_redirect_loop(server: ImageServer, rules: FetchRules) -> None:
    """A redirect to itself ends after the allowed number of redirects."""
    server.responses["/loop"] = redirect("/loop")

    assert "more than 3 redirects" in refusal(url_of(server, "/loop"), rules)
    assert len(server.requests) == 4


# Limits


def test_too_large_by_its_header(server: ImageServer, rules: FetchRules) -> None:
    """A body with a Content-Length above the limit is rejected before it is read."""
    server.responses["/cat.png"] = reply(b"", length=100_001)

    assert "the image is larger than 100,000 bytes" in refusal(url_of(server), rules)


@pytest.mark.parametrize(
    ("head", "drop"),
    [
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"ffff\r\n" + b"x" * 0xFFFF + b"\r\n"),
        (b"HTTP/1.1 200 OK\r\n\r\n", b"x" * 0xFFFF),
        (b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n", b"x" * 0xFFFF),
    ],
    ids=["chunked", "no length", "an invalid length"],
)
def test_too_large_without_a_header(server: ImageServer, rules: FetchRules, head: bytes, drop: bytes) -> None:
    """A body without a length is aborted when it exceeds the limit."""
    server.responses["/cat.png"] = dripping_response(head, drop)

    assert "the image is larger than 100,000 bytes" in refusal(url_of(server), rules)


def test_a_chunk_of_negative_length(server: ImageServer, rules: FetchRules) -> None:
    """http.client would read such a chunk until the end of the stream; here the size is limited."""
    endless = dripping_response(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n", b"x" * 2**17)
    server.responses["/cat.png"] = endless

    assert "the response is too long" in refusal(url_of(server), rules)


@pytest.mark.parametrize(
    ("head", "drop"),
    [
        (b"", b""),
        (b"HTTP/1.1 2", b"0"),
        (b"HTTP/1.1 200 OK\r\nX-Slow: ", b"x"),
        (b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 100 Continue\r\n\r\n"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n", b"x"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
    ],
    ids=["silence", "status", "header", "continue", "body", "chunks"],
)
def test_a_slow_response_ends_at_the_deadline(server: ImageServer, rules: FetchRules, head: bytes, drop: bytes) -> None:
    """However a server delays its response, the wait ends at the deadline."""
    server.responses["/cat.png"] = dripping_response(head, drop, drops=3000)
    started = time.monotonic()

    assert "the download took more than 0.3 s" in refusal(url_of(server), replace(rules, timeout_s=0.3))
    assert 0.3 <= time.monotonic() - started < 0.3 + GRACE_S


def test_redirects_share_the_deadline(server: ImageServer, rules: FetchRules) -> None:
    """Slow redirects count towards one deadline."""
    server.responses["/loop"] = dripping_response(
        b"HTTP/1.1 302 Found\r\nLocation: /loop\r\n", b"A: b\r\n\r\n", drops=1
    )
    started = time.monotonic()
    patient = replace(rules, timeout_s=0.5, max_redirects=100_000)

    assert "the download took more than 0.5 s" in refusal(url_of(server, "/loop"), patient)
    assert time.monotonic() - started < 0.5 + GRACE_S


def test_a_slow_resolver_ends_at_the_deadline() -> None:
    """A DNS that does not respond is not waited for longer than the deadline."""
    end = threading.Event()

    def silent(_host: str, _port: int) -> Sequence[str]:
        end.wait(60)
        return []

    started = time.monotonic()
    message = refusal("https://images.example/", FetchRules(timeout_s=0.2), silent)
    took = time.monotonic() - started
    end.set()

    assert "the download took more than 0.2 s" in message
    assert took < 0.2 + GRACE_S


@pytest.mark.parametrize("ticks", range(1, 9))
def test_the_deadline_is_checked_at_every_step(server: ImageServer, rules: FetchRules, ticks: int) -> None:
    """A deadline that passes between any two steps ends the fetch."""
    times = itertools.chain(itertools.repeat(0.0, ticks), itertools.repeat(100.0))
    server.responses["/old"] = redirect("/cat.png")

    with pytest.raises(JobError, match="the download took more than 60 s"):
        fetch_image(url_of(server, "/old"), "image", rules, clock=lambda: next(times))


# Invalid or missing responses


def test_other_statuses(server: ImageServer, rules: FetchRules) -> None:
    """A status other than 200 is in the error."""
    assert refusal(url_of(server, "/gone?sig=SECRET"), rules, field="images[1].image") == (
        f"images[1].image was not fetched from {LOOPBACK}: it returned 404; "
        "send a URL that returns 200 without a login."
    )


@pytest.mark.parametrize(
    ("response", "problem"),
    [
        (reply(extra="Content-Encoding: gzip\r\n"), "it sent a compressed response"),
        (reply(PNG[:20], length=30), "the response ended 10 bytes early"),
        (reply(PNG, status="206 Partial Content"), "it returned 206"),
        (raw_response(), "the connection failed (RemoteDisconnected)"),
        (raw_response(b"SECRET\r\n\r\n"), "the connection failed (BadStatusLine)"),
        (
            raw_response(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nSECRET\r\n"),
            "the connection failed (Incompl",
        ),
        (
            raw_response(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\n"),
            "the connection failed (ValueError)",
        ),
        (raw_response(b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 200 + b"\r\n"), "the connection failed (HTTPException)"),
        (raw_response(b"HTTP/1.1 200 OK\r\nA: " + b"b" * 70_000), "the connection failed (LineTooLong)"),
    ],
)
def test_invalid_responses(server: ImageServer, rules: FetchRules, response: Response, problem: str) -> None:
    """An invalid response is rejected with the reason and without its text."""
    server.responses["/cat.png"] = response

    assert problem in refusal(url_of(server, "/cat.png?sig=SECRET"), rules)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    status=st.sampled_from([b"HTTP/1.1 200 OK\r\n", b"HTTP/1.0 200 \r\n", b"HTTP/1.1 302 Found\r\n", b""]),
    headers=st.lists(
        st.sampled_from([b"Transfer-Encoding: chunked\r\n", b"Content-Length: 3\r\n", b"Location: //\r\n", b": \r\n"])
        | st.binary(max_size=20)
    ),
    body=st.lists(st.sampled_from([b"\r\n", b"3\r\nabc\r\n", b"-1\r\n", b"0\r\n", b"abc"]) | st.binary(max_size=20)),
)
def test_any_response_results_in_bytes_or_a_job_error(
    server: ImageServer, rules: FetchRules, status: bytes, headers: list[bytes], body: list[bytes]
) -> None:
    """Whatever bytes a server sends, the fetch returns bytes or raises a JobError."""
    server.responses["/cat.png"] = raw_response(status + b"".join(headers) + b"\r\n" + b"".join(body))

    with contextlib.suppress(JobError):
        assert isinstance(fetch_image(url_of(server), "image", rules), bytes)


@given(st.text() | st.builds("https://{}/{}".format, st.text(), st.text()))
def test_any_url_results_in_a_job_error(url: str) -> None:
    """Any text in place of a public URL raises a JobError of the expected form."""
    refusal(url, FetchRules(), Resolver(["10.0.0.1"]))


def test_connection_refused(server: ImageServer, rules: FetchRules) -> None:
    """The error of a refused connection names the host and the reason."""
    with socket.create_server((LOOPBACK, 0)) as taken:
        free = taken.getsockname()[1]
    url = f"http://{LOOPBACK}:{free}/cat.png?sig=SECRET"

    message = refusal(url, replace(rules, extra_ports=frozenset({free})))

    assert message.startswith(f"image was not fetched from {LOOPBACK}: it was not reached (ConnectionRefusedError)")
    assert server.visits() == 0


@pytest.mark.parametrize("error", [socket.gaierror(-2, "Name or service not known"), UnicodeError("label too long")])
def test_dns_failure(error: Exception) -> None:
    """The error of a failed look-up says that the host was not found."""

    def failing(_host: str, _port: int) -> Sequence[str]:
        raise error

    assert "from images.example: the host was not found" in refusal("https://images.example/", FetchRules(), failing)


# TLS


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with a key and a self-signed certificate of `CERTIFIED_HOST`."""
    return write_certificate(tmp_path_factory.mktemp("tls") / "server.pem", CERTIFIED_HOST)


class SecureServer:
    """An https server with the name `CERTIFIED_HOST`, the rules that trust it, and the SNI names of its connections."""

    def __init__(self, server: ImageServer, rules: FetchRules, names: list[str | None]) -> None:
        self.server = server
        self.rules = rules
        self.names = names

    def url(self, resource: str = "/cat.png", host: str = CERTIFIED_HOST) -> str:
        """Return the URL of a resource on this server."""
        return f"https://{host}:{self.server.port}{resource}"


@pytest.fixture
def secure_server(certificate: Path) -> Iterator[SecureServer]:
    """An https server with an image."""
    names: list[str | None] = []
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    context.sni_callback = lambda _socket, name, _context: names.append(name)
    with ImageServer(LOOPBACK, tls=context) as server:
        server.responses["/cat.png"] = reply()
        rules = FetchRules(
            allowed_networks=(ip_network(LOOPBACK),),
            extra_ports=frozenset({server.port}),
            timeout_s=60,
            tls=ssl.create_default_context(cafile=str(certificate)),
        )
        yield SecureServer(server, rules, names)


@pytest.mark.parametrize("host", [CERTIFIED_HOST, "Images.Example."])
def test_an_image_over_tls(secure_server: SecureServer, host: str) -> None:
    """The certificate is checked for the host's name, although the connection goes to an address."""
    assert fetch_image(secure_server.url(host=host), "image", secure_server.rules, resolve=Resolver([LOOPBACK])) == PNG
    assert secure_server.names == [CERTIFIED_HOST]
    assert f"\r\nHost: {CERTIFIED_HOST}:{secure_server.server.port}\r\n" in secure_server.server.requests[0]


@pytest.mark.parametrize("host", ["other.example", LOOPBACK])
def test_the_certificate_of_another_host(secure_server: SecureServer, host: str) -> None:
    """A server whose certificate has another name gets no request."""
    message = refusal(secure_server.url("/cat.png?sig=SECRET", host), secure_server.rules, Resolver([LOOPBACK]))

    assert message.startswith(f"image was not fetched from {host}: its TLS certificate is not valid (")
    assert secure_server.server.requests == []


def test_an_unknown_authority(secure_server: SecureServer) -> None:
    """Rules without a TLS context trust only public certificate authorities."""
    message = refusal(secure_server.url(), replace(secure_server.rules, tls=None), Resolver([LOOPBACK]))

    assert "its TLS certificate is not valid (self-signed certificate)" in message
    assert secure_server.server.requests == []


def test_a_server_without_tls(server: ImageServer, rules: FetchRules) -> None:
    """An https URL is never fetched without TLS."""
    server.responses["/"] = reply()

    assert "the connection failed (SSLError)" in refusal(f"https://{LOOPBACK}:{server.port}/?sig=SECRET", rules)
    assert server.requests == []


def test_a_handshake_that_never_ends(rules: FetchRules) -> None:
    """A server that accepts and sends nothing is abandoned at the deadline."""
    with socket.create_server((LOOPBACK, 0)) as silent:
        port = silent.getsockname()[1]
        hasty = replace(rules, extra_ports=frozenset({port}), timeout_s=0.2)
        started = time.monotonic()

        assert "the download took more than 0.2 s" in refusal(f"https://{LOOPBACK}:{port}/", hasty)
        assert time.monotonic() - started < 0.2 + GRACE_S


def test_downgrade(secure_server: SecureServer, server: ImageServer) -> None:
    """A redirect from https to http is rejected even if http is allowed."""
    secure_server.server.responses["/old"] = redirect(url_of(server))
    lenient = replace(
        secure_server.rules, allow_http=True, extra_ports=frozenset({secure_server.server.port, server.port})
    )

    message = refusal(secure_server.url("/old"), lenient, Resolver([LOOPBACK]))

    assert message.startswith(f"image was not fetched from {CERTIFIED_HOST}: it redirects from https to http")
    assert server.visits() == 0


# All addresses


def _textual_forms(address: IPv4Address) -> list[str]:
    """Return spellings of `address` that the system's resolver accepts."""
    number = int(address)
    a, b, c, d = address.packed
    return [
        str(address),
        str(number),
        hex(number),
        f"0{number:o}",
        f"{a}.{number & 0xFFFFFF}",
        f"{a}.{b}.{number & 0xFFFF}",
        f"0x{a:x}.0x{b:x}.0x{c:x}.0x{d:x}",
        f"0{a:o}.0{b:o}.0{c:o}.0{d:o}",
        str(address).replace(".", "\u3002"),
        str(address).translate({ord("0") + digit: 0xFF10 + digit for digit in range(10)}),
    ]


def _wrapped_forms(address: IPv4Address) -> list[IPv6Address]:
    """Return the IPv6 addresses that embed `address`."""
    number = int(address)
    return [
        IPv6Address(number),
        IPv6Address(0xFFFF << 32 | number),
        IPv6Address(0x64FF9B << 96 | number),
        IPv6Address(0x64FF9B0001 << 80 | number),
        IPv6Address(0x2002 << 112 | number << 80 | 1),
        IPv6Address(0x20010000 << 96 | number << 64 | 1),
        IPv6Address(0x20010000 << 96 | 0x08080808 << 64 | number ^ 0xFFFFFFFF),
    ]


def _is_one_public_host(address: IPv4Address | IPv6Address) -> bool:
    return address.is_global and not address.is_multicast


def _must_be_rejected(address: IPv4Address | IPv6Address) -> bool:
    """Return whether `address` is not public. False for an IPv4-mapped address, which counts as the IPv4 address."""
    mapped = isinstance(address, IPv6Address) and address.ipv4_mapped is not None
    return not (mapped or _is_one_public_host(address))


@given(address=st.ip_addresses(v=4).filter(_must_be_rejected), data=st.data())
@example(address=IPv4Address("127.0.0.1"), data=None)
@example(address=IPv4Address("169.254.169.254"), data=None)
def test_private_ipv4_addresses_are_rejected(address: IPv4Address, data: st.DataObject | None) -> None:
    """An IPv4 address that is not global is rejected in every form that the system's resolver accepts."""
    wrapped = [f"[{form}]" for form in _wrapped_forms(address)]
    forms = [*_textual_forms(address), *wrapped]

    for host in forms if data is None else [data.draw(st.sampled_from(forms))]:
        assert "not on the public internet" in refusal(f"https://{host}/", FetchRules())


@given(st.ip_addresses(v=6).filter(_must_be_rejected))
def test_private_ipv6_addresses_are_rejected(address: IPv6Address) -> None:
    """An IPv6 address that is not global is rejected, short or written out."""
    for text in (address.compressed, address.exploded):
        assert "not on the public internet" in refusal(f"https://[{text}]/", FetchRules())


@given(st.ip_addresses())
def test_public_addresses_are_global(address: IPv4Address | IPv6Address) -> None:
    """An address counts as public only if the registry calls it global, or if it contains an IPv4 address."""
    translated = isinstance(address, IPv6Address) and (
        address.ipv4_mapped is not None or address in ip_network("64:ff9b::/96")
    )

    assert not is_public(address) or translated or _is_one_public_host(address)
