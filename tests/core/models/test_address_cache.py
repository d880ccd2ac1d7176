"""The cache of models by address: hostile servers, several jobs and workers, the size limit and full disks."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
import traceback
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from comfy_core.models.address_cache import AddressCache, Lease
from comfy_core.models.address_source import AddressSource
from comfy_core.models.download import DownloadRetryPolicy
from comfy_core.models.listing import ModelError
from comfy_core.request.model_address import parse_address
from simulators.hugging_face import ModelResponse, ModelServer
from simulators.waiting import until
from tests.core.models.addresses import HF, HF_PATH, LORA, QUICK_RETRIES, safetensors, sha256
from tests.worker.addressed import Addressed

TOKEN = "t0ps3cret"  # noqa: S105 - not real
HASHED = f"{HF}#sha256={sha256(LORA)}"


@pytest.fixture
def addressed(lora_server: ModelServer, tmp_path: Path) -> Addressed:
    """A server with a LoRA at HF_PATH, and the folder of a cache."""
    return Addressed(lora_server, tmp_path / "cache", tmp_path / "models")


def fetch(
    addressed: Addressed,
    address: str = HF,
    *,
    cache: AddressCache | None = None,
    stop: threading.Event | None = None,
    tokens: dict[str, str] | None = None,
) -> Lease:
    """Fetch one file as a job does."""
    stop = stop or threading.Event()
    fetcher = addressed.fetcher()
    source = AddressSource(fetcher.hosts, tokens or {}, stop)
    return (cache or fetcher.cache).fetch(parse_address(address), source, stop, lambda _done, _total: None)


def failure(addressed: Addressed, address: str = HF, cache: AddressCache | None = None) -> ModelError:
    """Return the error of a fetch."""
    with pytest.raises(ModelError) as info:
        fetch(addressed, address, cache=cache)
    return info.value


def files(addressed: Addressed) -> list[str]:
    """Return the names of the models and parts in the cache."""
    return sorted(path.name for path in addressed.cache.glob("*") if path.suffix in {".safetensors", ".part"})


# --- hostile servers


def with_header(header: bytes, content: bytes = b"") -> bytes:
    """Return a file with this header."""
    return len(header).to_bytes(8, "little") + header + content


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"PK\x03\x04" + bytes(5000), "is a pickle"),
        (b"\x80\x02}q\x00." + bytes(5000), "is a pickle"),
        (b"<!doctype html><title>Log in</title>", "is a web page"),
        (b'{"error": "Unauthorized"}', "is a web page or JSON"),
        (bytes(5000), "not a safetensors file"),
        (b"abc", "not a safetensors file"),
        ((10**9).to_bytes(8, "little") + bytes(5000), "its header would have 1,000,000,000 bytes"),
        (with_header(b"[" * 5000), "its header is not valid"),
        (with_header(b'{"w": {"data_offsets": [0, true]}}'), "its header is not valid"),
        (with_header(b'{"w": {"data_offsets": [0, 10]}}', bytes(5)), "is incomplete or damaged"),
        (with_header(b'{"w": {"data_offsets": [0, 10]}}', bytes(15)), "is incomplete or damaged"),
        (with_header(b'{"a": {"data_offsets": [0, 4]}, "b": {"data_offsets": [2, 6]}}', bytes(6)), "overlap"),
    ],
)
def test_a_file_that_is_no_safetensors_file_is_refused(addressed: Addressed, content: bytes, problem: str) -> None:
    """Pickles, web pages and damaged files are refused for good, with the reason, and nothing of them is kept."""
    addressed.server.put(HF_PATH, content)
    error = failure(addressed)

    assert problem in error.problem
    assert not error.is_temporary
    assert files(addressed) == []


def test_a_header_of_one_gigabyte_is_refused_at_its_first_bytes(addressed: Addressed, tmp_path: Path) -> None:
    """A file of two gigabytes whose header has one is refused before it is downloaded."""
    bomb = tmp_path / "bomb"
    with bomb.open("wb") as file:
        file.write((10**9).to_bytes(8, "little"))
        file.truncate(2 * 10**9)
    addressed.server.put(HF_PATH, bomb)
    error = failure(addressed, cache=addressed.fetcher(limit_bytes=10**10).cache)

    assert "has a header of 1,000,000,000 bytes; at most 20,000,000" in error.problem
    assert files(addressed) == []


@pytest.mark.parametrize(
    ("response", "problem"),
    [
        (ModelResponse(401), "no token was sent, and it needs one. Send the token for 127.0.0.1 in `model_tokens`"),
        (ModelResponse(403), "no token was sent"),
        (ModelResponse(404), "does not exist"),
        (ModelResponse(418), "returned 418 instead of 200"),
        (ModelResponse(200, body=b"endless", has_length=False), "does not state the file's size"),
        (ModelResponse(200, {"Content-Encoding": "gzip"}, b"x"), "does not state the file's size"),
        (ModelResponse(200, {"Content-Length": "9" * 5000}, has_length=False), "does not state the file's size"),
        (ModelResponse(302, {"Location": "http://169.254.169.254/latest/meta-data"}), "not in WORKER_MODEL_HOSTS"),
        (ModelResponse(302, {"Location": "https://evil.example/x"}), "redirects to evil.example"),
        (ModelResponse(302, {"Location": "file:///etc/passwd"}), "is not https"),
        (ModelResponse(302, {"Location": HF_PATH}), "redirects more than 5 times"),
    ],
)
def test_a_refusal_is_final(addressed: Addressed, response: ModelResponse, problem: str) -> None:
    """A refusal of the server, or a redirect to a host that is not allowed, is an error at once."""
    addressed.server.respond(HF_PATH, *[response] * 8)
    error = failure(addressed)

    assert problem in error.problem
    assert not error.is_temporary
    assert len(addressed.server.received) == (6 if "more than 5" in problem else 1)


@pytest.mark.parametrize(
    "responses",
    [
        [ModelResponse(302, {"Location": f"https://{TOKEN}.evil.example/"})],
        [ModelResponse(200, body=LORA), ModelResponse(206, {"Content-Range": TOKEN})],
    ],
)
def test_a_token_that_the_server_repeats_is_not_shown(
    addressed: Addressed, caplog: pytest.LogCaptureFixture, responses: list[ModelResponse]
) -> None:
    """A token that a server repeats in its response is in no error and no log, and the server is not asked again."""
    addressed.server.respond(HF_PATH, *responses)
    with caplog.at_level(logging.DEBUG), pytest.raises(ModelError) as info:
        fetch(addressed, tokens={"huggingface.co": TOKEN})

    assert TOKEN not in f"{''.join(traceback.format_exception(info.value))} {caplog.text}".lower()
    assert len(addressed.server.received) == len(responses)


def test_an_allowed_host_with_a_private_address_is_refused(addressed: Addressed) -> None:
    """The host must have public addresses only, even if it is in the list of allowed hosts."""
    rules = replace(addressed.hosts().rules, allowed_networks=())
    stop = threading.Event()
    source = AddressSource(addressed.hosts(rules=rules), {}, stop)
    with pytest.raises(ModelError, match="is not on the public internet") as info:
        addressed.fetcher().cache.fetch(parse_address(HF), source, stop, lambda _done, _total: None)

    assert not info.value.is_temporary
    assert addressed.server.received == []


def test_a_wrong_hash_is_final(addressed: Addressed) -> None:
    """A file with another hash than the request's is refused with both hashes, and nothing of it is kept."""
    expected = "0" * 64
    error = failure(addressed, f"{HF}#sha256={expected}")

    assert expected in error.problem
    assert sha256(LORA) in error.problem
    assert not error.is_temporary
    assert files(addressed) == []


def test_the_server_s_own_hash_is_compared_before_the_download(addressed: Addressed) -> None:
    """If the server states another hash (Hugging Face does), nothing is downloaded."""
    linked = ModelResponse(302, {"Location": "/cdn", "X-Linked-ETag": f'"{sha256(LORA)}"'})
    addressed.server.respond(HF_PATH, linked)
    addressed.server.put("/cdn", LORA)
    error = failure(addressed, f"{HF}#sha256={'0' * 64}")

    assert "its server has" in error.problem
    assert len(addressed.server.received) == 2


def test_a_size_that_changes_is_final(addressed: Addressed) -> None:
    """A server that announces one size and sends another ends the download."""
    addressed.server.respond(HF_PATH, ModelResponse(200, body=LORA[:-1]))
    error = failure(addressed)

    assert "wrong size" in error.problem
    assert files(addressed) == []


def test_a_cut_connection_is_resumed(addressed: Addressed) -> None:
    """A download that is cut twice resumes where it ended."""
    addressed.server.cut(HF_PATH, 10, 40_000, 30_000)
    fetch(addressed).release()

    assert [request.offset for request in addressed.server.received] == [0, 0, 40_000, 70_000]


def test_a_server_that_always_fails_is_temporary(addressed: Addressed) -> None:
    """Three failures without a byte in between end the fetch; the error says that it may succeed later."""
    addressed.server.respond(HF_PATH, *[ModelResponse(503)] * 3)
    error = failure(addressed)

    assert error.is_temporary
    assert "returned 503; given up after 3 attempts" in error.problem


def test_a_silent_server_is_temporary(addressed: Addressed) -> None:
    """A server that sends nothing for `silence_s` counts as lost; a later fetch succeeds."""
    hold = addressed.server.hold(HF_PATH, after=50_000)
    stop = threading.Event()
    source = AddressSource(addressed.hosts(silence_s=0.3), {}, stop)
    cache = AddressCache(addressed.cache, 10**9, DownloadRetryPolicy(max_in_a_row=1))
    with pytest.raises(ModelError, match="sent no data in time") as info:
        cache.fetch(parse_address(HF), source, stop, lambda _done, _total: None)

    assert info.value.is_temporary
    hold.release()
    fetch(addressed).release()


def test_a_slow_server_is_stopped(addressed: Addressed) -> None:
    """Setting `stop` ends a download within about a second, and the next one resumes it."""
    hold = addressed.server.hold(HF_PATH, after=50_000)
    stop = threading.Event()
    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(fetch, addressed, stop=stop)
        assert until(lambda: [path.stat().st_size for path in addressed.cache.glob("*.part")] == [50_000])
        stop.set()
        with pytest.raises(ModelError, match="was stopped"):
            running.result(10)
    hold.release()
    fetch(addressed).release()

    assert addressed.server.received[-1].offset == 50_000


# --- several jobs and workers


def test_two_workers_download_one_file_once(addressed: Addressed) -> None:
    """Of two workers that want one file at once, one downloads it and the other waits for it."""
    hold = addressed.server.hold(HF_PATH, after=50_000)
    with ThreadPoolExecutor(2) as threads:
        running = [threads.submit(fetch, addressed) for _ in range(2)]
        assert until(lambda: len(addressed.server.received) >= 3)
        hold.release()
        leases = [each.result(20) for each in running]

    assert len({lease.path for lease in leases}) == 1
    assert len(addressed.server.received) == 3, "each asks for the version, and one downloads"
    for lease in leases:
        lease.release()


def test_a_damaged_file_of_the_cache_is_downloaded_again(addressed: Addressed) -> None:
    """A file whose content changed on the disk is hashed, found wrong, and replaced."""
    lease = fetch(addressed, HASHED)
    lease.release()
    lease.path.write_bytes(b"damaged")
    fetch(addressed, HASHED).release()

    assert sha256(lease.path.read_bytes()) == sha256(LORA)


def test_a_withdrawn_token_gives_no_access(addressed: Addressed) -> None:
    """Without a hash, a file of the cache is only used if its server still gives it to the request's token."""
    fetch(addressed, tokens={"huggingface.co": "t"}).release()
    addressed.server.respond(HF_PATH, ModelResponse(403))

    assert "returned 403" in failure(addressed).problem


# --- the size limit


def put(addressed: Addressed, number: int) -> str:
    """Put a file of 100 kB on the server; return its address."""
    addressed.server.put(f"/o/r/resolve/main/{number}.safetensors", safetensors(seed=number))
    return f"hf:o/r/{number}.safetensors@main"


def limited(addressed: Addressed, files: float, free: int = 10**12) -> AddressCache:
    """Return a cache with room for this many files."""
    return AddressCache(addressed.cache, int(files * len(LORA)), QUICK_RETRIES, lambda _folder: free)


def test_the_least_recently_used_file_is_removed(addressed: Addressed) -> None:
    """A fourth file removes the file that was used longest ago, with its marker and its record."""
    cache = limited(addressed, 3)
    addresses = [put(addressed, number) for number in range(4)]
    leases = []
    for address in [*addresses[:3], addresses[0], addresses[3]]:
        leases.append(fetch(addressed, address, cache=cache))
        leases[-1].release()

    names = {lease.path.name for lease in (leases[0], leases[2], leases[4])}
    assert {path.name for path in addressed.cache.glob("*.safetensors")} == names
    assert len(list(addressed.cache.glob("*.verified"))) == 3
    assert len(list((addressed.cache / "addresses").iterdir())) == 3


def test_a_file_in_use_is_not_removed(addressed: Addressed) -> None:
    """If all files are in use, a further one is a temporary error; after a release it has room."""
    cache = limited(addressed, 2)
    first, second = (fetch(addressed, put(addressed, number), cache=cache) for number in range(2))
    error = failure(addressed, put(addressed, 2), cache)

    assert error.is_temporary
    assert "WORKER_MODEL_LIMIT_GB" in error.problem
    assert first.path.exists()
    first.release()
    fetch(addressed, put(addressed, 2), cache=cache).release()
    assert not first.path.exists()
    assert second.path.exists()
    second.release()


def test_a_file_larger_than_the_limit_is_final(addressed: Addressed) -> None:
    """A file that can never have room is refused before it is downloaded."""
    error = failure(addressed, cache=limited(addressed, 0.5))

    assert not error.is_temporary
    assert "this worker keeps at most" in error.problem
    assert len(addressed.server.received) == 1


def test_a_full_disk_is_a_temporary_error(addressed: Addressed) -> None:
    """If the disk has too little space and no file can be removed, nothing is downloaded."""
    error = failure(addressed, cache=limited(addressed, 9, free=64 * 1024 * 1024 + 1000))

    assert error.is_temporary
    assert "1,000 are free" in error.problem
    assert len(addressed.server.received) == 1


def test_an_abandoned_part_is_removed(addressed: Addressed) -> None:
    """The part of a download whose process died makes room for another file."""
    cache = limited(addressed, 1)
    addressed.cache.mkdir(parents=True)
    part = addressed.cache / f"{'a' * 64}.{len(LORA)}.part"
    part.write_bytes(b"x")
    os.utime(part, (1, 1))
    fetch(addressed, cache=cache).release()

    assert not part.exists()


def test_eviction_under_load(addressed: Addressed) -> None:
    """Eight threads that use twelve files in a cache for nine get each file complete, and the limit holds."""
    cache = limited(addressed, 9)
    addresses = [put(addressed, number) for number in range(12)]
    expected = {address: sha256(safetensors(seed=number)) for number, address in enumerate(addresses)}

    def use(number: int) -> bool:
        address = addresses[number % 12]
        lease = fetch(addressed, address, cache=cache)
        try:
            return sha256(lease.path.read_bytes()) == expected[address] == lease.sha256
        finally:
            lease.release()

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(use, range(96)))
    assert sum(path.stat().st_size for path in addressed.cache.glob("*.safetensors")) <= 9 * len(LORA)


def test_the_cache_has_no_url(addressed: Addressed) -> None:
    """No file of the cache contains the URL of a download, which may have a signature."""
    fetch(addressed, f"{addressed.server.url}{HF_PATH}?signature=SECRET").release()

    texts = [path.read_bytes() for path in addressed.cache.rglob("*") if path.is_file()]
    assert not any(b"SECRET" in text or HF_PATH.encode() in text for text in texts)
    assert not any("SECRET" in str(path) for path in addressed.cache.rglob("*"))


@pytest.mark.slow
def test_a_killed_worker_releases_its_files(addressed: Addressed) -> None:
    """A file that a killed process used can be removed again."""
    cache = limited(addressed, 1)
    lease = fetch(addressed, put(addressed, 0), cache=cache)
    lease.release()
    code = (
        f"import fcntl, time; f = open({str(lease.path)!r}); fcntl.flock(f, fcntl.LOCK_SH); print('held', flush=True)"
    )
    with subprocess.Popen([sys.executable, "-c", f"{code}; time.sleep(60)"], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        assert failure(addressed, put(addressed, 1), cache).is_temporary
        holder.kill()
    fetch(addressed, put(addressed, 1), cache=cache).release()

    assert not lease.path.exists()
