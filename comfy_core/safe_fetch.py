"""Downloads an image from an untrusted URL, protected against SSRF. Returns the bytes without decoding them.

Each redirect is checked like the first URL, and no credential is sent. Errors name only the URL's host.
"""

from __future__ import annotations

import http.client
import string
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import quote

from comfy_core.images.codec import invalid_image
from comfy_core.safe_connection import (
    FAILURES,
    CheckedUrl,
    FetchError,
    FetchRules,
    HttpRequest,
    RequestDeadline,
    Resolve,
    exchange,
    problem_of,
    read_url,
    resolve_host,
)

_CHUNK_BYTES = 64 * 1024
_REDIRECTS = frozenset({301, 302, 303, 307, 308})


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
    deadline = RequestDeadline(clock() + rules.timeout_s, clock, given_up or threading.Event())
    host = ""
    try:
        target = read_url(url, rules)
        for _ in range(rules.max_redirects + 1):
            host = target.host
            result = _get(target, rules, resolve, deadline)
            if isinstance(result, bytes):
                return result
            target = read_url(result.location, rules, target)
        problem = f"more than {rules.max_redirects} redirects; send the final URL"
    except FAILURES as error:
        problem = problem_of(error, "the download", rules.timeout_s)
    source = f" from {host}" if host else ""
    raise invalid_image(field_path, f"was not fetched{source}: {problem}")


@dataclass(frozen=True)
class _Redirect:
    location: str


def _get(target: CheckedUrl, rules: FetchRules, resolve: Resolve, deadline: RequestDeadline) -> bytes | _Redirect:
    request = HttpRequest("GET", target, {"Accept": "image/*"})
    with exchange(request, rules, resolve, deadline, limit=2 * rules.max_bytes + 2**20) as response:
        location = response.getheader("Location")
        if response.status in _REDIRECTS and location:
            # http.client decodes headers as Latin-1; encoding them as Latin-1 restores the original bytes.
            return _Redirect(quote(location, safe=string.punctuation, encoding="latin-1"))
        return _body(response, rules.max_bytes)


def _body(response: http.client.HTTPResponse, max_bytes: int) -> bytes:
    if response.status != http.client.OK:
        raise FetchError(f"it returned {response.status}; send a URL that returns 200 without a login")
    if response.getheader("Content-Encoding", "identity").lower() != "identity":
        raise FetchError("it sent a compressed response although identity was requested")
    too_large = FetchError(f"the image is larger than {max_bytes:,} bytes")
    if response.length is not None and response.length > max_bytes:
        raise too_large
    body = bytearray()
    while chunk := response.read(_CHUNK_BYTES):
        body += chunk
        if len(body) > max_bytes:
            raise too_large
    if response.length:
        raise FetchError(f"the response ended {response.length:,} bytes early")
    return bytes(body)
