"""Downloads over real sockets: content, retries, errors, tokens, disks, locks, markers, and verification."""

from __future__ import annotations

import datetime as dt
import email.utils
import errno
import os
import re
import socket
import ssl
import stat
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from comfy_core.models.download import DownloadRetryPolicy, check_models, fetch_models
from comfy_core.models.files import locked_part
from comfy_core.models.listing import ModelError, ModelFile, ModelsError
from comfy_core.models.source import Hub, ModelSource, RetryableDownloadError
from simulators.http_server import free_port
from simulators.hugging_face import ModelResponse
from simulators.waiting import until
from tests.core.models.conftest import SIZE, ModelSetup, Served
from tests.needs import skip_visibly

pytestmark = pytest.mark.slow
QUICK = DownloadRetryPolicy(first_s=0.001)
CUT = SIZE * 3 // 10
PIECE = 256 * 1024
TOKEN = "hf_secret"  # noqa: S105 - not a real secret


class Pauses(threading.Event):
    """A stop event that is never set; it records the waits and does not block."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: list[float] = []

    def wait(self, timeout: float | None = None) -> bool:
        """Record the timeout."""
        self.seconds.append(timeout or 0.0)
        return False


def failure(
    models: ModelSetup, folder: Path, *served: Served, hub: Hub | None = None, retry_policy: DownloadRetryPolicy = QUICK
) -> str:
    """Run a download that must fail for exactly one model; return the error of that model."""
    with pytest.raises(ModelsError) as info:
        fetch_models([each.model for each in served], folder, hub or models.hub, retry_policy=retry_policy)
    [error] = info.value.errors
    return str(error)


def files_in(folder: Path) -> list[str]:
    """Return the paths of all files in `folder`, relative and sorted."""
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())


# Successful downloads and existing files


def test_all_models_are_downloaded(models: ModelSetup, tmp_path: Path) -> None:
    """Each model is requested once. Only models and their markers are left, and no model is writable by others."""
    served = [models.put(f"loras/{number}.safetensors", 300_000 + number) for number in range(6)]

    fetch_models([each.model for each in served], tmp_path, models.hub, jobs=3)

    for each in served:
        assert (tmp_path / each.model.path).read_bytes() == each.content
        assert (tmp_path / each.model.path).stat().st_mode & 0o777 == 0o644
        assert len(models.server.requests(each.path)) == 1
    assert files_in(tmp_path) == sorted(f"{each.model.path}{end}" for each in served for end in ("", ".verified"))


def test_an_existing_model_is_not_requested(models: ModelSetup, tmp_path: Path) -> None:
    """A second run requests and hashes nothing, because the marker, size and modification time match."""
    served = models.put()
    read: list[int] = []
    fetch_models([served.model], tmp_path, models.hub)

    fetch_models([served.model], tmp_path, models.hub, progress=lambda _, size: read.append(size))

    assert len(models.server.received) == 1
    assert read == []


def test_a_file_without_a_marker_is_hashed_once(models: ModelSetup, tmp_path: Path) -> None:
    """A correct file without a marker is hashed by the first run only, and not downloaded."""
    served = models.put()
    target = tmp_path / served.model.path
    target.parent.mkdir()
    target.write_bytes(served.content)
    read: list[int] = []

    for _ in range(2):
        fetch_models([served.model], tmp_path, models.hub, progress=lambda _, size: read.append(size))

    assert read == [SIZE]
    assert models.server.received == []


@pytest.mark.parametrize("content", [b"short", bytes(SIZE)], ids=["wrong size", "wrong bytes"])
def test_a_file_with_other_content_is_replaced(models: ModelSetup, tmp_path: Path, content: bytes) -> None:
    """A file of another size or content at a model's path is replaced."""
    served = models.put()
    target = tmp_path / served.model.path
    target.parent.mkdir()
    target.write_bytes(content)

    fetch_models([served.model], tmp_path, models.hub)

    assert target.read_bytes() == served.content


def test_a_failed_download_keeps_the_existing_file(models: ModelSetup, tmp_path: Path) -> None:
    """If the download fails, the existing file is kept, although its content is wrong."""
    served = models.put(served=b"also wrong")
    target = tmp_path / served.model.path
    target.parent.mkdir()
    target.write_bytes(b"wrong")

    failure(models, tmp_path, served)

    assert target.read_bytes() == b"wrong"


def test_a_file_that_is_newer_than_its_marker_is_hashed(models: ModelSetup, tmp_path: Path) -> None:
    """If a file's modification time differs from the marker's, the file is hashed; wrong content is replaced."""
    served = models.put()
    fetch_models([served.model], tmp_path, models.hub)
    target = tmp_path / served.model.path
    target.write_bytes(bytes(SIZE))
    os.utime(target, (1, 1))

    fetch_models([served.model], tmp_path, models.hub)

    assert target.read_bytes() == served.content


# Interrupted, resumed and restarted downloads


def test_an_interrupted_download_resumes(models: ModelSetup, tmp_path: Path) -> None:
    """After a cut at 30 %, only the rest is requested, and at most one piece that was in transit."""
    served = models.put()
    models.server.cut(served.path, CUT)

    fetch_models([served.model], tmp_path, models.hub, retry_policy=QUICK)

    first, second = models.server.requests(served.path)
    assert first.offset == 0
    assert CUT - PIECE < second.offset <= CUT
    assert (tmp_path / served.model.path).read_bytes() == served.content


def test_a_server_without_ranges_sends_the_whole_file(models: ModelSetup, tmp_path: Path) -> None:
    """If the server responds to a request for a range with the whole file, the download succeeds."""
    served = models.put()
    models.server.cut(served.path, CUT)
    models.server.ignore_ranges(served.path)

    fetch_models([served.model], tmp_path, models.hub, retry_policy=QUICK)

    assert models.server.requests(served.path)[1].offset > 0
    assert (tmp_path / served.model.path).read_bytes() == served.content


@pytest.mark.parametrize(
    "response",
    [
        ModelResponse(416),
        ModelResponse(206, {"Content-Range": f"bytes 0-9/{SIZE}"}, bytes(10)),
        ModelResponse(206, {"Content-Range": "nonsense"}, bytes(10)),
    ],
    ids=["416", "206 from elsewhere", "206 without a range"],
)
def test_a_response_with_another_range_is_discarded(
    models: ModelSetup, tmp_path: Path, response: ModelResponse
) -> None:
    """A response that does not continue at the part's end is discarded, and the download starts over."""
    served = models.put()
    write_part(tmp_path, served, served.content[:CUT])
    models.server.respond(served.path, response)

    fetch_models([served.model], tmp_path, models.hub, retry_policy=QUICK)

    assert [request.offset for request in models.server.requests(served.path)] == [CUT, 0]
    assert (tmp_path / served.model.path).read_bytes() == served.content


def write_part(folder: Path, served: Served, content: bytes) -> Path:
    """Create the part file that an earlier run would have left; return its path."""
    part = folder / f"{served.model.path}.part"
    part.parent.mkdir(parents=True, exist_ok=True)
    part.write_bytes(content)
    return part


def test_a_complete_part_is_not_requested_again(models: ModelSetup, tmp_path: Path) -> None:
    """A part with all bytes is hashed and moved into place, without a request."""
    served = models.put()
    write_part(tmp_path, served, served.content)

    fetch_models([served.model], tmp_path, models.hub)

    assert models.server.received == []
    assert (tmp_path / served.model.path).read_bytes() == served.content


@pytest.mark.parametrize(
    ("content", "offsets"),
    [(bytes(CUT), [CUT, 0]), (bytes(SIZE), [0]), (bytes(SIZE + 1), [0])],
    ids=["wrong start", "wrong whole", "too long"],
)
def test_a_corrupt_part_restarts_the_download(
    models: ModelSetup, tmp_path: Path, content: bytes, offsets: list[int]
) -> None:
    """A part with wrong bytes (after a power failure) is detected, and the model is downloaded from the start, once."""
    served = models.put()
    write_part(tmp_path, served, content)

    fetch_models([served.model], tmp_path, models.hub)

    assert [request.offset for request in models.server.requests(served.path)] == offsets
    assert (tmp_path / served.model.path).read_bytes() == served.content


# Wrong content or size


def test_wrong_content_is_rejected(models: ModelSetup, tmp_path: Path) -> None:
    """Wrong content of the right size leaves no file, and is not requested again. The error has the expected hash."""
    served = models.put(served=bytes(SIZE))

    message = failure(models, tmp_path, served)

    assert message.startswith(f"vae/ae.safetensors: wrong bytes: sha256 {served.model.sha256} was expected, ")
    assert "the expected hash is wrong" in message
    assert files_in(tmp_path) == []
    assert len(models.server.received) == 1


def test_a_wrong_size_is_rejected(models: ModelSetup, tmp_path: Path) -> None:
    """If the server reports another size, the download is rejected, and an earlier part is kept."""
    served = models.put(served=bytes(SIZE - 1))
    write_part(tmp_path, served, served.content[:CUT])
    models.server.ignore_ranges(served.path)

    message = failure(models, tmp_path, served)

    assert f"wrong size: {SIZE:,} bytes were expected, 127.0.0.1 has {SIZE - 1:,}" in message
    assert files_in(tmp_path) == ["vae/ae.safetensors.part"]


def test_a_wrong_size_in_a_416_response_is_rejected(models: ModelSetup, tmp_path: Path) -> None:
    """A 416 response has the size of the server's file: if the size is wrong, the download is rejected."""
    served = models.put(served=bytes(CUT))
    write_part(tmp_path, served, served.content[:CUT])

    assert f"{SIZE:,} bytes were expected, 127.0.0.1 has {CUT:,}" in failure(models, tmp_path, served)


def test_a_body_that_is_too_long_is_rejected(models: ModelSetup, tmp_path: Path) -> None:
    """A body without a Content-Length that is too long is rejected, and nothing is kept."""
    served = models.put()
    models.server.respond(served.path, ModelResponse(200, {}, served.content + b"!", has_length=False))

    assert "wrong size: 1,000,000 bytes were expected, more were received" in failure(models, tmp_path, served)
    assert files_in(tmp_path) == []


def test_a_body_that_is_too_short_is_resumed(models: ModelSetup, tmp_path: Path) -> None:
    """If a body without a Content-Length ends early, the rest is requested."""
    served = models.put()
    models.server.respond(served.path, ModelResponse(200, {}, served.content[:CUT], has_length=False))

    fetch_models([served.model], tmp_path, models.hub, retry_policy=QUICK)

    assert [request.offset for request in models.server.requests(served.path)] == [0, CUT]


# Error responses and busy servers


@pytest.mark.parametrize(
    ("status", "token", "remedy"),
    [
        (401, "", "Accept the licence at https://huggingface.co/org/repo, create a token at"),
        (403, "", "set HF_TOKEN"),
        (401, TOKEN, "the token in HF_TOKEN has no access"),
        (403, TOKEN, "Accept the licence at https://huggingface.co/org/repo with the token's account"),
        (
            404,
            "",
            "its revision or the file does not exist. Correct the URL in the list: https://huggingface.co/org/repo",
        ),
        (404, TOKEN, "its revision or the file does not exist"),
        (418, "", "returned 418 instead of 200"),
    ],
)
def test_a_permanent_error_is_not_retried(
    models: ModelSetup, tmp_path: Path, status: int, token: str, remedy: str
) -> None:
    """After a permanent error there is no second request. The message has a remedy, and not the token."""
    served = models.put()
    models.server.respond(served.path, ModelResponse(status, {}, b"no"))

    message = failure(models, tmp_path, served, hub=Hub(models.server.url, token))

    assert f"vae/ae.safetensors: 127.0.0.1 returned {status}" in message
    assert remedy in message
    assert TOKEN not in message
    assert len(models.server.received) == 1
    assert files_in(tmp_path) == []


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_a_temporary_error_is_retried(models: ModelSetup, tmp_path: Path, status: int) -> None:
    """After two temporary errors the download succeeds."""
    served = models.put()
    models.server.respond(served.path, ModelResponse(status), ModelResponse(status))

    fetch_models([served.model], tmp_path, models.hub, retry_policy=QUICK)

    assert len(models.server.received) == 3
    assert (tmp_path / served.model.path).read_bytes() == served.content


def test_retry_after_is_honoured(models: ModelSetup, tmp_path: Path) -> None:
    """The pause is that of Retry-After, in seconds or as a date; for invalid values it is the usual short one."""
    served = models.put()
    date = email.utils.formatdate(time.time() + 100, usegmt=True)
    for text in ("7", date, "soon", "Mon, 99 Foo"):
        models.server.respond(served.path, ModelResponse(429, {"Retry-After": text}))
    pauses = Pauses()

    fetch_models([served.model], tmp_path, models.hub, retry_policy=QUICK, stop=pauses)

    assert pauses.seconds[0] == 7
    assert 97 < pauses.seconds[1] <= 100
    assert all(seconds <= 0.008 for seconds in pauses.seconds[2:])


def test_a_long_retry_after_ends_the_download(models: ModelSetup, tmp_path: Path) -> None:
    """A Retry-After of an hour ends the download after one attempt, and is in the error."""
    served = models.put()
    models.server.respond(served.path, ModelResponse(429, {"Retry-After": "3600"}))

    message = failure(models, tmp_path, served)

    assert "127.0.0.1 returned 429 with Retry-After 3600 s; given up after 1 attempts. Try again later" in message


def test_six_failures_end_the_download(models: ModelSetup, tmp_path: Path) -> None:
    """After six failures in a row the download fails, and the existing part is kept."""
    served = models.put()
    part = write_part(tmp_path, served, served.content[:CUT])
    models.server.respond(served.path, *[ModelResponse(503)] * 20)

    message = failure(models, tmp_path, served)

    assert len(models.server.received) == 6
    assert part.read_bytes() == served.content[:CUT]
    assert "127.0.0.1 returned 503; given up after 6 attempts. Try again later, or from a mirror" in message


def test_progress_resets_the_failure_count(models: ModelSetup, tmp_path: Path) -> None:
    """If each attempt delivers bytes, `max_in_a_row` is never reached; `max_total` still limits the attempts."""
    served = models.put(size=6 * PIECE)
    models.server.cut(served.path, *[PIECE] * 5)
    fetch_models([served.model], tmp_path, models.hub, retry_policy=replace(QUICK, max_in_a_row=2))
    assert len(models.server.received) == 6

    other = models.put("vae/other.safetensors", 6 * PIECE)
    models.server.cut(other.path, *[PIECE] * 5)
    message = failure(models, tmp_path, other, retry_policy=replace(QUICK, max_total=4))

    assert "the connection to 127.0.0.1 was refused or lost; given up after 4 attempts" in message
    assert f"The {4 * PIECE:,} received bytes are kept" in message
    assert "vae/other.safetensors.part" in files_in(tmp_path)


# Connection errors


def test_a_refused_connection_is_retried_six_times(models: ModelSetup, tmp_path: Path) -> None:
    """A refused connection is an error after six attempts, with the cause and the remedy."""
    message = failure(models, tmp_path, models.put(), hub=Hub(f"http://127.0.0.1:{free_port()}"))

    assert "the connection to 127.0.0.1 was refused or lost; given up after 6 attempts" in message
    assert "Check the network and its proxies (HTTPS_PROXY), or set HF_ENDPOINT to a mirror" in message


def test_an_unknown_host_name_is_reported(models: ModelSetup, tmp_path: Path) -> None:
    """The error says that the host name could not be resolved."""
    message = failure(models, tmp_path, models.put(), hub=Hub("https://nowhere.invalid"))

    assert "the host name nowhere.invalid could not be resolved" in message


def test_an_unreachable_proxy_is_reported(models: ModelSetup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names an unreachable proxy. Requests to this machine do not use the proxy."""
    monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{free_port()}")
    served = models.put()

    message = failure(models, tmp_path, served, hub=Hub("https://nowhere.invalid"))

    assert "the proxy for nowhere.invalid could not be reached" in message
    fetch_models([served.model], tmp_path, models.hub)


def test_a_silent_server_times_out(models: ModelSetup) -> None:
    """A server that accepts the connection and sends nothing is an error that may be retried."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        source = ModelSource(Hub(f"http://127.0.0.1:{server.getsockname()[1]}"), silence_s=0.05)

        with pytest.raises(RetryableDownloadError, match=r"127\.0\.0\.1 sent no data in time"):
            source.open(models.put().model, 0).__enter__()


def test_a_failed_tls_handshake_is_a_lost_connection(models: ModelSetup, tmp_path: Path) -> None:
    """A TLS handshake with a server without TLS counts as a lost connection, and is tried six times."""
    hub = Hub(models.server.url.replace("http", "https"))

    assert "was refused or lost; given up after 6 attempts" in failure(models, tmp_path, models.put(), hub=hub)


def test_a_certificate_that_is_not_trusted_is_final(
    models: ModelSetup, tmp_path: Path, untrusted_tls: ssl.SSLContext
) -> None:
    """For an untrusted certificate the error names REQUESTS_CA_BUNDLE. The server accepts only one connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=accept_one_connection, args=(listener, untrusted_tls))
        thread.start()
        hub = Hub(f"https://127.0.0.1:{listener.getsockname()[1]}")

        message = failure(models, tmp_path, models.put(), hub=hub)

        thread.join()
    assert "the certificate of 127.0.0.1 is not trusted" in message
    assert "REQUESTS_CA_BUNDLE" in message


def accept_one_connection(listener: socket.socket, tls: ssl.SSLContext) -> None:
    """Accept one connection and expect that the client rejects the certificate."""
    connection, _ = listener.accept()
    with connection, pytest.raises(ssl.SSLError):
        tls.wrap_socket(connection, server_side=True)


@pytest.fixture
def untrusted_tls(tmp_path: Path) -> ssl.SSLContext:
    """The TLS context of a server with a self-signed certificate."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "nobody")])
    now = dt.datetime.now(dt.UTC)
    signed = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    pem = tmp_path / "server.pem"
    pem.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + signed.public_bytes(serialization.Encoding.PEM)
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    return context


# The token, and redirects


def test_the_token_is_not_sent_to_another_host(models: ModelSetup, tmp_path: Path) -> None:
    """The token is sent to the hub, but not to another host to which the hub redirects."""
    served = models.put()
    models.server.put("/cdn", served.content)
    models.server.respond(served.path, ModelResponse(302, {"Location": f"{models.server.other_url}/cdn?signature=1"}))

    fetch_models([served.model], tmp_path, Hub(models.server.url, TOKEN))

    first, second = models.server.received
    assert (first.host, first.token) == ("127.0.0.1", TOKEN)
    assert (second.host, second.path, second.token) == ("localhost", "/cdn", "")
    assert "Authorization" not in second.headers
    assert (tmp_path / served.model.path).read_bytes() == served.content


def test_a_redirect_back_gets_no_token(models: ModelSetup, tmp_path: Path) -> None:
    """A redirect within the hub keeps the token. After a redirect to another host, one back to the hub has no token."""
    served = models.put()
    models.server.put("/last", served.content)
    models.server.respond(served.path, ModelResponse(307, {"Location": "/moved"}))
    models.server.respond("/moved", ModelResponse(302, {"Location": f"{models.server.other_url}/away"}))
    models.server.respond("/away", ModelResponse(302, {"Location": f"{models.server.url}/last"}))

    fetch_models([served.model], tmp_path, Hub(models.server.url, TOKEN))

    assert [request.token for request in models.server.received] == [TOKEN, TOKEN, "", ""]


def test_other_urls_of_the_list_get_no_token(
    models: ModelSetup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request to a URL that is not the hub's has no token and no login from .netrc; an error says so."""
    served = models.put()
    model = replace(served.model, url=f"{models.server.other_url}{served.path}?key=shown")
    netrc = tmp_path / "netrc"
    netrc.write_text(f"default login somebody password {TOKEN}\n")
    monkeypatch.setenv("NETRC", str(netrc))
    hub = Hub(models.server.url, TOKEN)

    fetch_models([model], tmp_path, hub)

    [request] = models.server.received
    assert (request.host, request.token, "Authorization" in request.headers) == ("localhost", "", False)

    models.server.respond(served.path, ModelResponse(403))
    message = failure(models, tmp_path / "again", replace(served, model=model), hub=hub)
    assert "localhost returned 403: no token is sent to that host. Use a public URL" in message
    assert "shown" not in message


@pytest.mark.parametrize("target", ["ftp://localhost/x", "https://", "https://[", "http://localhost:port/"])
def test_a_redirect_to_an_invalid_url_is_an_error(models: ModelSetup, tmp_path: Path, target: str) -> None:
    """A redirect to an invalid URL is an error with the remedy, after one request."""
    served = models.put()
    models.server.respond(served.path, ModelResponse(302, {"Location": target}))

    message = failure(models, tmp_path, served)

    assert "Correct the URL in the list" in message
    assert len(models.server.received) == 1


def test_a_redirect_loop_is_an_error(models: ModelSetup, tmp_path: Path) -> None:
    """More than five redirects are an error, without a retry."""
    served = models.put()
    models.server.respond(served.path, *[ModelResponse(302, {"Location": served.path})] * 10)

    assert "127.0.0.1 redirects more than 5 times" in failure(models, tmp_path, served)
    assert len(models.server.received) == 6


# Disk errors


def test_free_space_is_checked_before_the_download(models: ModelSetup, tmp_path: Path) -> None:
    """If the models need more space than is free, nothing is requested; the error has the needed and free bytes."""
    served = models.put()
    model = replace(served.model, size=10**17)
    small = models.put("vae/small.safetensors", 10)

    message = failure(models, tmp_path, small, replace(served, model=model))

    assert f"{10**17 + 10:,} bytes are needed" in message
    assert " are free. Free some space" in message
    assert models.server.received == []


def test_a_folder_that_is_a_file_is_named(models: ModelSetup, tmp_path: Path) -> None:
    """If a file has the name of a model's folder, the error names its path."""
    (tmp_path / "vae").write_text("no folder")

    message = failure(models, tmp_path, models.put())

    assert f"its file cannot be read or written (File exists: {tmp_path}/vae)" in message


# Concurrent downloads, and stopping


def test_three_threads_download_one_model_once(models: ModelSetup, tmp_path: Path) -> None:
    """Three threads download the same model: all succeed, with one request."""
    served = models.put()
    hold = models.server.hold(served.path, CUT)
    finished: list[int] = []

    def fetch() -> None:
        fetch_models([served.model], tmp_path, models.hub)
        finished.append(1)

    threads = [threading.Thread(target=fetch) for _ in range(3)]
    for thread in threads:
        thread.start()
    assert hold.reached.wait(60)
    hold.release()
    for thread in threads:
        thread.join()

    assert len(finished) == 3
    assert len(models.server.received) == 1


def test_a_process_that_locks_a_part_without_progress_is_named(models: ModelSetup, tmp_path: Path) -> None:
    """If another holder of a part file makes no progress until the timeout, the wait ends with an error."""
    served = models.put()
    target = tmp_path / served.model.path
    target.parent.mkdir()
    stop = threading.Event()
    message = "another process holds its .part file and has written nothing for 0.05 s. End that process"

    with (
        locked_part(served.model, target, stop),
        pytest.raises(ModelError, match=re.escape(message)),
        locked_part(served.model, target, stop, lock_timeout_s=0.05),
    ):
        pytest.fail("the part file was locked twice")


def test_stop_ends_all_downloads(models: ModelSetup, tmp_path: Path) -> None:
    """On stop, the running download keeps its part, the one that waits for it ends, and others are not started."""
    served = models.put()
    other = models.put("vae/other.safetensors")
    hold = models.server.hold(served.path, CUT)
    stop = threading.Event()
    errors: list[ModelsError] = []

    def fetch(*wanted: ModelFile) -> None:
        try:
            fetch_models(wanted, tmp_path, models.hub, jobs=1, stop=stop)
        except ModelsError as error:
            errors.append(error)

    threads = [threading.Thread(target=fetch, args=(served.model, other.model)) for _ in range(2)]
    for thread in threads:
        thread.start()
    part = tmp_path / f"{served.model.path}.part"
    assert until(lambda: part.exists() and part.stat().st_size > 0)
    stop.set()
    hold.release()
    for thread in threads:
        thread.join()

    assert [len(error.errors) for error in errors] == [2, 2]
    assert "was stopped; the partial download is kept" in str(errors[0])
    assert models.server.requests(other.path) == []
    assert files_in(tmp_path) == ["vae/ae.safetensors.part"]


def test_stop_ends_a_pause(models: ModelSetup, tmp_path: Path) -> None:
    """On stop during the pause between two attempts, there is no further request."""
    served = models.put()
    models.server.respond(served.path, *[ModelResponse(503)] * 3)

    class StopAtOnce(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            self.set()
            return super().wait(timeout)

    with pytest.raises(ModelsError, match="was stopped"):
        fetch_models([served.model], tmp_path, models.hub, stop=StopAtOnce())

    assert len(models.server.received) == 1


def test_stop_ends_hashing(models: ModelSetup, tmp_path: Path) -> None:
    """On stop, hashing an existing file ends with an error."""
    served = models.put()
    target = tmp_path / served.model.path
    target.parent.mkdir()
    target.write_bytes(served.content)
    stop = threading.Event()
    stop.set()

    with pytest.raises(ModelsError, match="was stopped"):
        check_models([served.model], tmp_path, stop=stop)


def test_a_volume_without_locks_is_an_error(models: ModelSetup, tmp_path: Path) -> None:
    """On a volume without file locks, locking a part is an error with the remedy; an existing part is not changed."""
    served = models.put()
    existing_part = write_part(tmp_path, served, b"theirs")

    def flock(_fd: int, _operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    with (
        pytest.raises(ModelError, match=r"has no file locks \(No locks available\).* Use a folder on another disk"),
        locked_part(served.model, tmp_path / served.model.path, threading.Event(), flock=flock),
    ):
        pass

    assert existing_part.read_bytes() == b"theirs"


def test_another_lock_error_is_an_error(models: ModelSetup, tmp_path: Path) -> None:
    """Another OSError of the lock is raised unchanged."""
    served = models.put()
    target = tmp_path / served.model.path
    target.parent.mkdir()

    def flock(_fd: int, _operation: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with (
        pytest.raises(OSError, match="Input/output error"),
        locked_part(served.model, target, threading.Event(), flock=flock),
    ):
        pass


def test_a_part_that_is_removed_during_the_wait_is_created_again(models: ModelSetup, tmp_path: Path) -> None:
    """If the part file is removed during the wait for its lock, a new one is opened and locked."""
    served = models.put()
    target = tmp_path / served.model.path
    target.parent.mkdir()
    path = tmp_path / f"{served.model.path}.part"
    calls: list[int] = []

    def flock(_fd: int, operation: int) -> None:
        calls.append(operation)
        if len(calls) == 1:
            path.unlink()

    with locked_part(served.model, target, threading.Event(), flock=flock) as part:
        part.append(b"x")

    assert len(calls) == 2
    assert path.read_bytes() == b"x"


# Other users of the same volume


def test_a_part_is_never_opened_through_a_link(models: ModelSetup, tmp_path: Path) -> None:
    """A symbolic or hard link at the part's path is replaced, and the file that it links to is not changed."""
    for number, link in enumerate((Path.symlink_to, Path.hardlink_to)):
        served = models.put(f"vae/{number}.safetensors")
        elsewhere = tmp_path / f"precious-{number}"
        elsewhere.write_bytes(b"precious")
        target = tmp_path / "models" / served.model.path
        target.parent.mkdir(parents=True, exist_ok=True)
        link(target.with_name(target.name + ".part"), elsewhere)

        fetch_models([served.model], tmp_path / "models", models.hub)

        assert elsewhere.read_bytes() == b"precious"
        assert target.read_bytes() == served.content
        assert not target.is_symlink()


@pytest.mark.parametrize("kind", ["file", "pipe"])
def test_a_part_that_others_can_write_is_discarded(models: ModelSetup, tmp_path: Path, kind: str) -> None:
    """A part that other users can write is replaced, because they could change it after the verification.

    A pipe at the part's path is replaced too, and does not block.
    """
    served = models.put()
    target = tmp_path / served.model.path
    target.parent.mkdir(parents=True)
    part = target.with_name(target.name + ".part")
    if kind == "pipe":
        os.mkfifo(part)
    else:
        part.write_bytes(served.content[:CUT])
        part.chmod(0o666)

    fetch_models([served.model], tmp_path, models.hub)

    assert target.read_bytes() == served.content
    assert stat.S_IMODE(target.stat().st_mode) & 0o022 == 0


def test_a_marker_is_never_written_through_a_link(models: ModelSetup, tmp_path: Path) -> None:
    """A link at the marker's path is replaced, after a download and after hashing; the link's target is not changed."""
    served = models.put()
    elsewhere = tmp_path / "precious"
    elsewhere.write_bytes(b"precious")
    target = tmp_path / "models" / served.model.path
    marker = target.with_name(target.name + ".verified")
    for _ in range(2):
        target.parent.mkdir(parents=True, exist_ok=True)
        marker.unlink(missing_ok=True)
        marker.symlink_to(elsewhere)

        fetch_models([served.model], tmp_path / "models", models.hub)

        assert elsewhere.read_bytes() == b"precious"
        assert marker.is_file()
        assert not marker.is_symlink()


def put_forged_marker(models: ModelSetup, tmp_path: Path) -> tuple[Served, Path, Path]:
    """Create a wrong file at a model's path, and a marker that says it was verified.

    Return the served model, the file's path and the marker's path.
    """
    served = models.put()
    target = tmp_path / served.model.path
    target.parent.mkdir(parents=True)
    target.write_bytes(bytes(len(served.content)))
    marker = target.with_name(target.name + ".verified")
    status = target.stat()
    marker.write_text(f"{served.model.sha256} {status.st_size} {int(status.st_mtime)}\n")
    return served, target, marker


@pytest.mark.parametrize("writable", ["marker", "model", "folder", "linked marker", "linked model"])
def test_a_marker_that_others_can_write_is_not_trusted(models: ModelSetup, tmp_path: Path, writable: str) -> None:
    """If others can write marker, model or folder, or one is a link, the marker is ignored."""
    served, target, marker = put_forged_marker(models, tmp_path)
    match writable:
        case "marker":
            marker.chmod(0o666)
        case "model":
            target.chmod(0o666)
        case "folder":
            target.parent.chmod(0o777)
        case "linked marker":
            marker.rename(tmp_path / "elsewhere")
            marker.symlink_to(tmp_path / "elsewhere")
        case _:
            target.rename(tmp_path / "elsewhere")
            target.symlink_to(tmp_path / "elsewhere")

    fetch_models([served.model], tmp_path, models.hub)

    assert target.read_bytes() == served.content
    assert not target.is_symlink()


@pytest.mark.parametrize("foreign", ["marker", "model", "folder"])
def test_a_marker_of_another_user_is_not_trusted(models: ModelSetup, tmp_path: Path, foreign: str) -> None:
    """If marker, model or folder belongs to another user, the marker is ignored: a wrong file is replaced."""
    served, target, marker = put_forged_marker(models, tmp_path)
    if os.geteuid() != 0:
        skip_visibly("NOT TESTED: a file of another user: giving one away takes root")
    os.chown({"marker": marker, "model": target, "folder": target.parent}[foreign], 12345, 12345)

    fetch_models([served.model], tmp_path, models.hub)

    assert target.read_bytes() == served.content


def test_a_trusted_marker_saves_hashing(models: ModelSetup, tmp_path: Path) -> None:
    """If no other user can write there, a matching marker is trusted: the file is not hashed, although it is wrong."""
    served, target, _ = put_forged_marker(models, tmp_path)

    fetch_models([served.model], tmp_path, models.hub)

    assert target.read_bytes() != served.content
    assert models.server.received == []


# Verification


def test_check_hashes_all_models_and_downloads_nothing(models: ModelSetup, tmp_path: Path) -> None:
    """check_models reports wrong content (one flipped bit), a wrong size and a missing file, and requests nothing."""
    right, flipped, short, missing = (models.put(f"vae/{name}.safetensors") for name in "abcd")
    fetch_models([right.model, flipped.model, short.model], tmp_path, models.hub)
    target = tmp_path / flipped.model.path
    before = target.stat()
    with target.open("r+b") as file:
        file.seek(SIZE // 2)
        file.write(bytes([flipped.content[SIZE // 2] ^ 1]))
    os.utime(target, ns=(before.st_atime_ns, before.st_mtime_ns))
    (tmp_path / short.model.path).write_bytes(b"short")
    requests = len(models.server.received)

    with pytest.raises(ModelsError) as info:
        check_models([each.model for each in (right, flipped, short, missing)], tmp_path)

    messages = [str(error) for error in info.value.errors]
    assert f"vae/b.safetensors: wrong bytes: sha256 {flipped.model.sha256} was expected, {target} has " in messages[0]
    assert f"vae/c.safetensors: wrong size: {SIZE:,} bytes were expected" in messages[1]
    assert "vae/d.safetensors: does not exist" in messages[2]
    assert len(messages) == 3
    assert len(models.server.received) == requests

    fetch_models([flipped.model], tmp_path, models.hub)
    assert target.read_bytes() == flipped.content
