"""HTTP: what a server in a thread answers, or does not, becomes a value or a RequestError, and nothing else."""

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
from comfy_core.http import MAX_RETRY_AFTER_S, HttpApi, Retries, is_base_url, quoted_url, retries
from simulators.http_server import HttpHandler, HttpServer

PATIENCE_S = 10.0
SILENCE_S = 0.2

RAW: dict[str, bytes] = {
    "/no-answer": b"",
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
"""Answers that break HTTP, by path; the connection is closed behind each."""

NO_JSON: dict[str, bytes] = {
    "/html": b"<html>Bad gateway</html>",
    "/nothing": b"",
    "/half": b'{"a": ',
    "/binary": b"\xff\xfe\x00{",
    "/deep": b"[" * 200_000,
    "/long-number": b"9" * 5_000,
}
"""Bodies of status 200 that are no JSON, by path."""


class Answers(HttpHandler):
    """Answers by path, and tells what it was asked."""

    protocol_version = "HTTP/1.1"
    server: Api

    def setup(self) -> None:
        """Count the connection."""
        super().setup()
        self.server.connections += 1

    def answer(self) -> None:
        """Answer one request."""
        self.server.asked.append((self.command, self.path, dict(self.headers), self.body()))
        path, _, number = self.path.partition("?")[0].rpartition("/")
        if self.path in RAW:
            self.wfile.write(RAW[self.path])
            self.close_connection = True
        elif self.path in NO_JSON:
            self.send(200, NO_JSON[self.path])
        elif path == "/status":
            self.send(int(number), b"because " + b"x" * 3000)
        elif self.path == "/silent":
            self.server.released.wait(PATIENCE_S)
            self.send(200, b"{}")
        elif self.path == "/stalls":
            self.send_response(200)
            self.send_header("Content-Length", "10")
            self.end_headers()
            self.wfile.write(b"abc")
            self.wfile.flush()
            self.server.released.wait(PATIENCE_S)
            self.close_connection = True
        else:
            self.send(200, json.dumps({"größe": [1, None]}).encode())

    def send(self, status: int, body: bytes) -> None:
        """Send a whole answer, where the client is still there."""
        with contextlib.suppress(ConnectionError):
            self.respond(status, body)

    do_GET = do_POST = do_DELETE = answer


class Api(HttpServer):
    """A server that counts its connections and records its requests."""

    request_queue_size = 32

    def __init__(self) -> None:
        super().__init__(Answers)
        self.connections = 0
        self.asked: list[tuple[str, str, dict[str, str], bytes]] = []
        self.released = threading.Event()


@pytest.fixture
def server() -> Iterator[Api]:
    """A running server."""
    with Api() as api:
        yield api
        api.released.set()


@pytest.fixture
def api(server: Api) -> Iterator[HttpApi]:
    """The client of it."""
    client = HttpApi(f"{server.url}/", name="The server", use_proxies=False)
    yield client
    client.close()


def failure(api: HttpApi, path: str, **options: Any) -> RequestError:  # noqa: ANN401 - whatever `call` takes
    """Return the error of a call; any other exception fails the test."""
    with pytest.raises(RequestError) as info:
        api.json("GET", path, **{"timeout_s": PATIENCE_S, **options})
    assert str(info.value).startswith("The server ")
    assert path in str(info.value)
    return info.value


def test_json_goes_there_and_back(api: HttpApi, server: Api) -> None:
    """A call posts JSON to the path behind the address, and returns the answer's JSON."""
    assert api.json("POST", "/prompt", timeout_s=PATIENCE_S, json={"text": "größer"}) == {"größe": [1, None]}

    [(method, path, headers, body)] = server.asked
    assert (method, path) == ("POST", "/prompt")
    assert headers["Content-Type"] == "application/json"
    assert json.loads(body) == {"text": "größer"}


def test_files_and_forms_and_questions_are_sent(api: HttpApi, server: Api) -> None:
    """A call may carry files beside a form, and parameters behind the path."""
    response = api.call(
        "POST",
        "/upload",
        timeout_s=PATIENCE_S,
        files={"image": ("a.png", b"\x89PNG", "image/png")},
        data={"overwrite": "true"},
        params={"type": "input folder"},
    )

    assert response.json() == {"größe": [1, None]}
    [(_, path, headers, body)] = server.asked
    assert path == "/upload?type=input+folder"
    assert headers["Content-Type"].startswith("multipart/form-data")
    for part in (b'name="image"; filename="a.png"', b"Content-Type: image/png", b"\x89PNG", b'name="overwrite"'):
        assert part in body


def test_headers_go_with_every_call(server: Api) -> None:
    """What the API wants to see in each request, a key for one, is said once."""
    client = HttpApi(server.url, name="The server", headers={"Authorization": "Bearer abc"}, use_proxies=False)

    for path in ("/a", "/b"):
        client.json("GET", path, timeout_s=PATIENCE_S)

    assert [headers["Authorization"] for _, _, headers, _ in server.asked] == ["Bearer abc"] * 2
    client.close()


@pytest.mark.parametrize("status", [200, 201, 204, 304, 399])
def test_a_status_below_400_is_an_answer(api: HttpApi, status: int) -> None:
    """What is no error is returned."""
    assert api.call("GET", f"/status/{status}", timeout_s=PATIENCE_S).status_code == status


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 429, 500, 502, 503, 599])
def test_a_status_from_400_is_an_error(api: HttpApi, status: int) -> None:
    """An error has its status and the start of its body; that of a refusal, which is read, is whole."""
    error = failure(api, f"/status/{status}")

    assert error.status == status
    assert str(error) == f"The server answered {status} to GET /status/{status}"
    assert error.body.startswith("because xxx")
    assert len(error.body) == (3008 if status == 400 else 2000)


@pytest.mark.parametrize("path", NO_JSON)
def test_what_is_no_json_is_an_error(api: HttpApi, path: str) -> None:
    """A body that is no JSON is named, with its status and its start."""
    error = failure(api, path)

    assert error.status == 200
    assert "not JSON" in str(error)
    assert len(error.body) <= 2000


@pytest.mark.parametrize("path", RAW)
def test_what_is_no_http_is_an_error(api: HttpApi, path: str) -> None:
    """An answer that breaks HTTP, or leads nowhere, counts as none: no exception of requests or urllib3 leaves."""
    error = failure(api, path)

    assert error.status is None
    assert "was not reached" in str(error)


@pytest.mark.parametrize("path", ["/silent", "/stalls"])
def test_silence_ends_in_time(api: HttpApi, path: str) -> None:
    """A server that says nothing, or stops in the middle, is given up after the time that the caller sets."""
    assert failure(api, path, timeout_s=SILENCE_S).status is None


def test_a_silent_server_is_named_so(api: HttpApi) -> None:
    """No answer in time is told from a connection that was refused."""
    assert "no response in time" in str(failure(api, "/silent", timeout_s=SILENCE_S))


def test_a_refused_connection_is_an_error() -> None:
    """Where nothing listens, the error says so, in few words and without addresses of memory."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    api = HttpApi(f"http://127.0.0.1:{port}", name="The server", use_proxies=False)

    error = failure(api, "/x")

    assert error.status is None
    assert str(error) == "The server was not reached (GET /x: connection refused or lost)"
    api.close()


def test_a_full_queue_of_connections_ends_in_time() -> None:
    """Where a connection is not even accepted, the error says that there was none in time."""
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

        error = failure(api, "/x", timeout_s=SILENCE_S)

        assert "connect timed out" in str(error)
        for client in waiting:
            client.close()
        api.close()


@pytest.mark.parametrize(
    "address",
    ["nope", "http://", "http://[::1", "http://a b", f"http://{'a' * 70}.x", "http://127.0.0.1:99999", "ftp://x"],
)
def test_an_address_that_is_none_is_an_error(address: str) -> None:
    """A wrong address is a RequestError of the first call, whatever urllib3 thinks of it."""
    api = HttpApi(address, name="The server", use_proxies=False)

    assert failure(api, "/x").status is None
    api.close()


def test_a_number_that_is_no_json_is_an_error(api: HttpApi, server: Api) -> None:
    """NaN is not sent."""
    assert failure(api, "/x", json={"a": float("nan")}).status is None
    assert server.asked == []


def test_a_connection_is_kept(api: HttpApi, server: Api) -> None:
    """Calls one after another use one connection, errors among them; after `close` there is a new one."""
    for path in ("/a", "/status/404", "/b", "/html", "/c"):
        if path in ("/status/404", "/html"):
            failure(api, path)
        else:
            api.json("GET", path, timeout_s=PATIENCE_S)
    assert server.connections == 1

    api.close()
    api.json("GET", "/d", timeout_s=PATIENCE_S)

    assert server.connections == 2


def test_a_call_is_never_repeated(api: HttpApi, server: Api) -> None:
    """A call whose connection was lost is not sent again: only the caller knows whether that is safe."""
    failure(api, "/no-answer")

    assert len(server.asked) == 1


def test_proxies_of_the_environment_count_where_wanted(server: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server elsewhere is reached through the environment's proxy, one of our own machine directly."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("no_proxy", "")
    elsewhere = HttpApi(server.url, name="The server")
    own = HttpApi(server.url, name="The server", use_proxies=False)

    assert own.json("GET", "/x", timeout_s=PATIENCE_S) == {"größe": [1, None]}
    assert failure(elsewhere, "/x").status is None
    elsewhere.close()
    own.close()


def test_several_threads_share_one_api(api: HttpApi, server: Api) -> None:
    """Calls at the same time all get their own answers, over no more connections than threads."""
    answers: list[Any] = []
    threads = [
        threading.Thread(target=lambda: answers.append(api.json("GET", "/x", timeout_s=PATIENCE_S))) for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)

    assert answers == [{"größe": [1, None]}] * 6
    assert server.connections <= 6


def test_a_password_of_netrc_does_not_replace_the_key(
    server: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests would send it instead of the header that the API was given."""
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login someone password else\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    api = HttpApi(server.url, name="The server", headers={"Authorization": "Bearer key"})
    api.json("GET", "/x", timeout_s=PATIENCE_S)
    api.close()

    assert [headers["Authorization"] for _, _, headers, _ in server.asked] == ["Bearer key"]


@pytest.mark.parametrize(("prefix", "asked"), [("/status", 3), ("/other", 1)])
def test_a_policy_is_for_the_paths_below_it(server: Api, prefix: str, asked: int) -> None:
    """What is not named is asked once."""
    api = HttpApi(server.url, name="The server", use_proxies=False, policies={prefix: retries(2)})

    assert failure(api, "/status/503").is_transient
    assert len(server.asked) == asked
    api.close()


@pytest.mark.parametrize(("is_repeatable", "asked"), [(True, 2), (False, 1)])
def test_a_lost_call_is_repeated_where_that_is_said(server: Api, is_repeatable: bool, asked: int) -> None:
    """Behind a lost connection the call may have arrived."""
    policies = {"": retries(1, is_repeatable=is_repeatable)}
    api = HttpApi(server.url, name="The server", use_proxies=False, policies=policies)

    error = failure(api, "/no-answer")
    assert (error.is_transient, error.is_unsent, len(server.asked)) == (True, False, asked)
    api.close()


@pytest.mark.parametrize(("header", "seconds"), [("3", 3.0), ("7200", MAX_RETRY_AFTER_S), ("soon", 0.0)])
def test_retry_after_has_a_maximum(header: str, seconds: float) -> None:
    """An invalid header counts as no delay."""
    assert Retries().parse_retry_after(header) == seconds


def test_an_error_does_not_show_what_follows_the_path(api: HttpApi) -> None:
    """It may be a signature."""
    with pytest.raises(RequestError) as info:
        api.call("GET", "/status/403?signature=secret", timeout_s=PATIENCE_S)

    assert "secret" not in str(info.value)


def test_a_refused_connection_surely_brought_nothing() -> None:
    """So its call may be repeated, whatever it does."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    api = HttpApi(f"http://127.0.0.1:{port}", name="The server", use_proxies=False)

    error = failure(api, "/x")
    assert (error.is_unsent, error.is_transient) == (True, True)
    api.close()


@pytest.mark.parametrize(
    ("text", "is_one"),
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
def test_a_base_url_is_one_that_a_path_can_follow(text: str, is_one: bool) -> None:
    """Nothing is raised for any text, and an error about it shows no password."""
    assert is_base_url(text) is is_one
    assert "s3cret" not in quoted_url(text)
