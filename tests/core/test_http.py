"""HTTP: every response becomes a value or a RequestError, and a missing response becomes a RequestError."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from comfy_core.errors import RequestError
from comfy_core.http import MAX_RETRY_AFTER_S, HttpApi, Retries, retries
from comfy_core.urls import is_base_url, url_for_message
from simulators.http_server import HttpHandler, HttpServer
from tests.interrupts import is_interrupted_at

TIMEOUT_S = 10.0
SHORT_TIMEOUT_S = 0.2

RAW_RESPONSES: dict[str, bytes] = {
    "/no-response": b"",
    "/garbage": b"hello world\r\n\r\n",
    "/bad-status": b"HTTP/1.1 abc OK\r\n\r\n",
    "/endless-header": b"HTTP/1.1 200 OK\r\nX: " + b"a" * 70_000 + b"\r\n\r\n",
    "/too-many-headers": b"HTTP/1.1 200 OK\r\n" + b"X: a\r\n" * 300 + b"\r\n",
    "/cut": b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc",
    "/bad-chunks": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nabc",
    "/no-gzip": b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 4\r\n\r\nabcd",
    "/loop": b"HTTP/1.1 302 Found\r\nLocation: /loop\r\nContent-Length: 0\r\n\r\n",
    "/to-ftp": b"HTTP/1.1 302 Found\r\nLocation: ftp://x/\r\nContent-Length: 0\r\n\r\n",
    "/to-bracket": b"HTTP/1.1 302 Found\r\nLocation: http://[::1\r\nContent-Length: 0\r\n\r\n",
    "/to-long-name": b"HTTP/1.1 302 Found\r\nLocation: http://" + b"a" * 70 + b".x/\r\nContent-Length: 0\r\n\r\n",
}
"""Responses of invalid HTTP or with an invalid redirect, by path. The connection is closed after each."""

BODIES_NOT_JSON: dict[str, bytes] = {
    "/html": b"<html>Bad gateway</html>",
    "/nothing": b"",
    "/half": b'{"a": ',
    "/binary": b"\xff\xfe\x00{",
    "/deep": b"[" * 200_000,
    "/long-number": b"9" * 5_000,
}
"""Bodies of status 200 that are not JSON, by path."""


class ApiHandler(HttpHandler):
    """Responds by path, and records the requests."""

    protocol_version = "HTTP/1.1"
    server: RecordingServer

    def setup(self) -> None:
        """Count the connection."""
        super().setup()
        self.server.connections += 1

    def handle_call(self) -> None:
        """Respond to one request."""
        self.server.requests.append((self.command, self.path, dict(self.headers), self.body()))
        path, _, number = self.path.partition("?")[0].rpartition("/")
        if self.path in RAW_RESPONSES:
            self.wfile.write(RAW_RESPONSES[self.path])
            self.close_connection = True
        elif self.path in BODIES_NOT_JSON:
            self.send(200, BODIES_NOT_JSON[self.path])
        elif path == "/status":
            self.send(int(number), b"because " + b"x" * 3000)
        elif self.path == "/busy":
            self.respond(503, b"{}", headers={"Retry-After": "0"})
        elif self.path == "/silent":
            self.server.released.wait(TIMEOUT_S)
            self.send(200, b"{}")
        elif self.path == "/stalls":
            self.send_response(200)
            self.send_header("Content-Length", "10")
            self.end_headers()
            self.wfile.write(b"abc")
            self.wfile.flush()
            self.server.released.wait(TIMEOUT_S)
            self.close_connection = True
        else:
            self.send(200, json.dumps({"größe": [1, None]}).encode())

    def send(self, status: int, body: bytes) -> None:
        """Send a complete response, if the client is still connected."""
        with contextlib.suppress(ConnectionError):
            self.respond(status, body)

    do_GET = do_POST = do_DELETE = handle_call


class RecordingServer(HttpServer):
    """A server in a thread that records its connections and requests."""

    request_queue_size = 32

    def __init__(self) -> None:
        super().__init__(ApiHandler)
        self.connections = 0
        self.requests: list[tuple[str, str, dict[str, str], bytes]] = []
        self.released = threading.Event()


@pytest.fixture
def server() -> Iterator[RecordingServer]:
    """A running RecordingServer."""
    with RecordingServer() as api:
        yield api
        api.released.set()


@pytest.fixture
def api(server: RecordingServer) -> Iterator[HttpApi]:
    """A client of the server."""
    client = HttpApi(f"{server.url}/", name="The server", use_proxies=False)
    yield client
    client.close()


def failure(api: HttpApi, path: str, **options: Any) -> RequestError:  # noqa: ANN401 - whatever `call` takes
    """Return the RequestError of a GET, after a check that the message has the server and the path."""
    with pytest.raises(RequestError) as info:
        api.json("GET", path, **{"timeout_s": TIMEOUT_S, **options})
    assert str(info.value).startswith("The server ")
    assert path in str(info.value)
    return info.value


def test_json_is_sent_and_received(api: HttpApi, server: RecordingServer) -> None:
    """A call posts JSON to the path below the base URL, and returns the response's JSON."""
    assert api.json("POST", "/prompt", timeout_s=TIMEOUT_S, json={"text": "größer"}) == {"größe": [1, None]}

    [(method, path, headers, body)] = server.requests
    assert (method, path) == ("POST", "/prompt")
    assert headers["Content-Type"] == "application/json"
    assert json.loads(body) == {"text": "größer"}


def test_files_forms_and_query_parameters_are_sent(api: HttpApi, server: RecordingServer) -> None:
    """A call may have files, a form, and query parameters."""
    response = api.call(
        "POST",
        "/upload",
        timeout_s=TIMEOUT_S,
        files={"image": ("a.png", b"\x89PNG", "image/png")},
        data={"overwrite": "true"},
        params={"type": "input folder"},
    )

    assert response.json() == {"größe": [1, None]}
    [(_, path, headers, body)] = server.requests
    assert path == "/upload?type=input+folder"
    assert headers["Content-Type"].startswith("multipart/form-data")
    for part in (b'name="image"; filename="a.png"', b"Content-Type: image/png", b"\x89PNG", b'name="overwrite"'):
        assert part in body


def test_headers_are_sent_with_every_call(server: RecordingServer) -> None:
    """Headers that are configured once, such as an API key, are in every request."""
    client = HttpApi(server.url, name="The server", headers={"Authorization": "Bearer abc"}, use_proxies=False)

    for path in ("/a", "/b"):
        client.json("GET", path, timeout_s=TIMEOUT_S)

    assert [headers["Authorization"] for _, _, headers, _ in server.requests] == ["Bearer abc"] * 2
    client.close()


@pytest.mark.parametrize("status", [200, 201, 204, 304, 399])
def test_a_status_below_400_is_returned(api: HttpApi, status: int) -> None:
    """A status below 400 is returned and does not raise an error."""
    assert api.call("GET", f"/status/{status}", timeout_s=TIMEOUT_S).status_code == status


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 429, 500, 502, 503, 599])
def test_a_status_from_400_is_an_error(api: HttpApi, status: int) -> None:
    """The error has the status and the start of the body; the body of a 400, which is parsed, is complete."""
    error = failure(api, f"/status/{status}")

    assert error.status == status
    assert str(error) == f"The server returned {status} for GET /status/{status}"
    assert error.body.startswith("because xxx")
    assert len(error.body) == (3008 if status == 400 else 2000)


@pytest.mark.parametrize("path", BODIES_NOT_JSON)
def test_a_body_that_is_not_json_is_an_error(api: HttpApi, path: str) -> None:
    """The error has the status and the start of the body."""
    error = failure(api, path)

    assert error.status == 200
    assert "not JSON" in str(error)
    assert len(error.body) <= 2000


@pytest.mark.parametrize("path", RAW_RESPONSES)
def test_a_response_that_is_not_http_is_an_error(api: HttpApi, path: str) -> None:
    """Invalid HTTP or an invalid redirect counts as no response; no exception of requests or urllib3 is raised."""
    error = failure(api, path)

    assert error.status is None
    assert "did not respond" in str(error)


@pytest.mark.parametrize("path", ["/silent", "/stalls"])
def test_a_silent_server_times_out(api: HttpApi, path: str) -> None:
    """A server that sends nothing, or stops in the middle, is abandoned after the caller's timeout."""
    assert failure(api, path, timeout_s=SHORT_TIMEOUT_S).status is None


def test_a_timeout_is_reported_as_such(api: HttpApi) -> None:
    """A timeout is distinguished from a refused connection."""
    assert "no response in time" in str(failure(api, "/silent", timeout_s=SHORT_TIMEOUT_S))


def test_a_refused_connection_is_an_error() -> None:
    """The error is short and contains no memory addresses."""
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    api = HttpApi(f"http://127.0.0.1:{port}", name="The server", use_proxies=False)

    error = failure(api, "/x")

    assert error.status is None
    assert str(error) == "The server did not respond (GET /x: connection refused or lost)"
    api.close()


def test_a_full_backlog_times_out() -> None:
    """If the connection is not even accepted, the error says that there was no response in time."""
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        waiting = []
        for _ in range(4):
            client = socket.socket()
            client.setblocking(False)
            client.connect_ex(full.getsockname())
            waiting.append(client)
        api = HttpApi(f"http://127.0.0.1:{full.getsockname()[1]}", name="The server", use_proxies=False)

        error = failure(api, "/x", timeout_s=SHORT_TIMEOUT_S)

        assert "connect timed out" in str(error)
        for client in waiting:
            client.close()
        api.close()


@pytest.mark.parametrize(
    "address",
    ["nope", "http://", "http://[::1", "http://a b", f"http://{'a' * 70}.x", "http://127.0.0.1:99999", "ftp://x"],
)
def test_an_invalid_url_is_an_error(address: str) -> None:
    """An invalid URL is a RequestError of the first call, whatever urllib3 raises."""
    api = HttpApi(address, name="The server", use_proxies=False)

    assert failure(api, "/x").status is None
    api.close()


def test_nan_is_not_sent(api: HttpApi, server: RecordingServer) -> None:
    """NaN is not JSON: the call fails before anything is sent."""
    assert failure(api, "/x", json={"a": float("nan")}).status is None
    assert server.requests == []


def test_a_connection_is_reused(api: HttpApi, server: RecordingServer) -> None:
    """Successive calls use one connection, also after errors; `close` closes it."""
    for path in ("/a", "/status/404", "/b", "/html", "/c"):
        if path in ("/status/404", "/html"):
            failure(api, path)
        else:
            api.json("GET", path, timeout_s=TIMEOUT_S)
    assert server.connections == 1

    api.close()
    api.json("GET", "/d", timeout_s=TIMEOUT_S)

    assert server.connections == 2


def test_a_call_is_not_repeated(api: HttpApi, server: RecordingServer) -> None:
    """A call whose connection was lost is not sent again: only the caller knows whether that is safe."""
    failure(api, "/no-response")

    assert len(server.requests) == 1


def test_proxies_of_the_environment_are_used_if_enabled(
    server: RecordingServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Calls use the environment's proxy, unless `use_proxies` is false."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("no_proxy", "")
    proxied = HttpApi(server.url, name="The server")
    direct = HttpApi(server.url, name="The server", use_proxies=False)

    assert direct.json("GET", "/x", timeout_s=TIMEOUT_S) == {"größe": [1, None]}
    assert failure(proxied, "/x").status is None
    proxied.close()
    direct.close()


def test_several_threads_share_one_api(api: HttpApi, server: RecordingServer) -> None:
    """Concurrent calls get their own responses, with at most one connection per thread."""
    responses: list[Any] = []
    threads = [
        threading.Thread(target=lambda: responses.append(api.json("GET", "/x", timeout_s=TIMEOUT_S))) for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(TIMEOUT_S)

    assert responses == [{"größe": [1, None]}] * 6
    assert server.connections <= 6


def test_a_password_of_netrc_does_not_replace_the_key(
    server: RecordingServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The configured header is sent; otherwise the library requests would send the password in .netrc instead."""
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login someone password else\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    api = HttpApi(server.url, name="The server", headers={"Authorization": "Bearer key"})
    api.json("GET", "/x", timeout_s=TIMEOUT_S)
    api.close()

    assert [headers["Authorization"] for _, _, headers, _ in server.requests] == ["Bearer key"]


@pytest.mark.parametrize(("prefix", "requests"), [("/status", 3), ("/other", 1)])
def test_a_retry_policy_applies_to_the_paths_below_it(server: RecordingServer, prefix: str, requests: int) -> None:
    """A failed call below the policy's prefix is made three times, any other call once."""
    api = HttpApi(server.url, name="The server", use_proxies=False, policies={prefix: retries(2)})

    assert failure(api, "/status/503").is_transient
    assert len(server.requests) == requests
    api.close()


@pytest.mark.parametrize(("is_repeatable", "requests"), [(True, 2), (False, 1)])
def test_a_lost_call_is_repeated_if_the_policy_allows_it(
    server: RecordingServer, is_repeatable: bool, requests: int
) -> None:
    """The server may have received a call whose connection was lost, so only a repeatable call is sent again."""
    policies = {"": retries(1, is_repeatable=is_repeatable)}
    api = HttpApi(server.url, name="The server", use_proxies=False, policies=policies)

    error = failure(api, "/no-response")
    assert (error.is_transient, error.is_unsent, len(server.requests)) == (True, False, requests)
    api.close()


def test_retry_after_causes_no_retry_that_the_policy_does_not_allow(server: RecordingServer) -> None:
    """A policy that retries 429 only does not retry a 503 with Retry-After: a second submit may be a second job."""
    policies = {"": retries(3, statuses=frozenset({429}))}
    api = HttpApi(server.url, name="The server", use_proxies=False, policies=policies)

    assert failure(api, "/busy").status == 503
    assert len(server.requests) == 1
    api.close()


@pytest.mark.parametrize(("header", "seconds"), [("3", 3.0), ("7200", MAX_RETRY_AFTER_S), ("soon", 0.0)])
def test_retry_after_has_a_maximum(header: str, seconds: float) -> None:
    """An invalid header counts as no delay."""
    assert Retries().parse_retry_after(header) == seconds


def test_an_error_does_not_show_the_query(api: HttpApi) -> None:
    """The query may contain a signature, so no error shows it."""
    with pytest.raises(RequestError) as info:
        api.call("GET", "/status/403?signature=secret", timeout_s=TIMEOUT_S)

    assert "secret" not in str(info.value)


def test_a_refused_connection_is_known_to_have_sent_nothing() -> None:
    """After a refused connection any call may be repeated, because nothing was sent."""
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    api = HttpApi(f"http://127.0.0.1:{port}", name="The server", use_proxies=False)

    error = failure(api, "/x")
    assert (error.is_unsent, error.is_transient) == (True, True)
    api.close()


@pytest.mark.parametrize(
    ("text", "is_valid"),
    [
        ("http://127.0.0.1:8188", True),
        ("https://host.example/comfy/", True),
        ("http://[::1]:8188", True),
        ("127.0.0.1:8188", False),
        ("ftp://host", False),
        ("http://", False),
        ("http://[::1", False),
        ("http://host:99999", False),
        ("http://host:port", False),
        ("http://user:s3cret@host", False),
        ("http://host?token=s3cret", False),
        ("http://host/#s3cret", False),
        ("http://ho st", False),
    ],
)
def test_base_urls_are_validated(text: str, is_valid: bool) -> None:
    """A base URL has a scheme and a host, but no password, query or fragment. `url_for_message` shows no secret."""
    assert is_base_url(text) is is_valid
    assert "s3cret" not in url_for_message(text)


def test_ctrl_c_at_any_moment_of_a_call_blocks_no_later_call(api: HttpApi) -> None:
    """A handler that raises within a Condition leaves its lock locked, and the pool's queue of connections has one."""
    moments = 0
    while is_interrupted_at(moments, lambda: api.call("GET", "/", timeout_s=TIMEOUT_S)):
        later = threading.Thread(target=api.call, args=("GET", "/"), kwargs={"timeout_s": TIMEOUT_S}, daemon=True)
        later.start()
        later.join(TIMEOUT_S)
        assert not later.is_alive(), f"blocked after an interrupt at moment {moments}"
        moments += 1

    assert moments
