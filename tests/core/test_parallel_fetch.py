"""Image URLs of one request: fetched concurrently, within one time limit, and abandoned on cancellation."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_network

import pytest

from comfy_core.error_codes import ErrorCode
from comfy_core.errors import JobError
from comfy_core.parallel_fetch import MAX_PARALLEL, fetch_images
from comfy_core.safe_connection import FetchRules
from simulators.waiting import until
from tests.core.test_safe_fetch import LOOPBACK, ImageServer, dripping_response, reply, url_of

SLOW_RESPONSE = dripping_response(b"HTTP/1.1 200 OK\r\n\r\n", b"x", drops=15_000)
"""A response that sends one byte every 20 ms, for five minutes."""


@pytest.fixture
def server() -> Iterator[ImageServer]:
    """A new server."""
    with ImageServer(LOOPBACK) as server:
        server.responses |= {"/cat.png": reply(), "/slow.png": SLOW_RESPONSE}
        yield server


@pytest.fixture
def rules(server: ImageServer) -> FetchRules:
    """Rules that allow `server`."""
    return FetchRules(
        allow_http=True, allowed_networks=(ip_network(f"{LOOPBACK}/32"),), extra_ports=frozenset({server.port})
    )


def image_urls(server: ImageServer, resource: str, count: int) -> list[tuple[str, str]]:
    """Return the URL of a resource `count` times, each with a path of its own in the request."""
    return [(url_of(server, resource), f"images[{number}].image") for number in range(count)]


def test_images_are_returned_in_order(server: ImageServer, rules: FetchRules) -> None:
    """The images are in the order of the URLs, also if there are more URLs than threads."""
    images = {f"/{number}.png": f"picture {number}".encode() for number in range(MAX_PARALLEL + 3)}
    server.responses |= {resource: reply(image) for resource, image in images.items()}
    addresses = [(url_of(server, resource), resource) for resource in images]

    assert fetch_images(addresses, rules, lambda: None) == list(images.values())
    assert fetch_images([], rules, lambda: None) == []


def test_sixteen_slow_urls_end_together(server: ImageServer, rules: FetchRules) -> None:
    """The time limit of each ends all slow URLs together, and the error names one."""
    with pytest.raises(JobError, match=r"images\[\d\]\.image was not fetched") as info:
        fetch_images(image_urls(server, "/slow.png", 16), replace(rules, timeout_s=1.0), lambda: None)

    assert info.value.code is ErrorCode.INVALID_IMAGE


def test_all_images_share_one_time_limit(server: ImageServer, rules: FetchRules) -> None:
    """The fetches of one request have a time limit in all, in addition to the limit of each."""
    with pytest.raises(
        JobError, match=r"images\[0\]\.image was not fetched: the request's URLs took more than 1 s in all"
    ):
        fetch_images(image_urls(server, "/slow.png", 16), replace(rules, total_timeout_s=1.0), lambda: None)


def test_a_cancellation_ends_the_wait_at_once(server: ImageServer, rules: FetchRules) -> None:
    """A cancellation ends the wait and the threads, while the server still sends."""

    def check() -> None:
        if len(server.requests) >= MAX_PARALLEL:
            raise JobError.because(ErrorCode.CANCELLED, "The job was cancelled.")

    with pytest.raises(JobError, match="cancelled"):
        fetch_images(image_urls(server, "/slow.png", 16), rules, check)

    assert until(lambda: not [thread for thread in threading.enumerate() if thread.name.startswith("fetch")])
    assert len(server.requests) == MAX_PARALLEL
