"""Which requests a shim without keys accepts: from programs on this machine and from the shim's own page."""

from __future__ import annotations

import pytest

from comfy_client.gateway.scenario.origin import is_json, rejection_reason

SHIM_HOST = "127.0.0.1:8189"


@pytest.mark.parametrize(
    ("method", "headers"),
    [
        ("GET", {"host": SHIM_HOST}),
        ("POST", {"host": "localhost:8189"}),
        ("POST", {"host": "[::1]:8189"}),
        ("POST", {"host": SHIM_HOST, "origin": f"http://{SHIM_HOST}", "sec-fetch-site": "same-origin"}),
        ("GET", {"host": SHIM_HOST, "sec-fetch-site": "cross-site"}),
        ("POST", {"host": "shim.example", "origin": "https://shim.example"}),
    ],
)
def test_local_programs_and_the_shim_s_page_are_accepted(method: str, headers: dict[str, str]) -> None:
    """Requests to loopback names or the public URL, and from the shim's page, are accepted.

    So is a GET from another page, such as a link, because that page cannot read the response.
    """
    assert rejection_reason(method, headers, "https://shim.example") == ""


@pytest.mark.parametrize(
    ("method", "headers"),
    [
        ("GET", {}),
        ("GET", {"host": "evil.example"}),
        ("GET", {"host": "127.0.0.1.evil.example:8189"}),
        ("GET", {"host": "[::1"}),
        ("GET", {"host": "localhost@evil.example"}),
        ("POST", {"host": SHIM_HOST, "origin": "http://evil.example"}),
        ("POST", {"host": SHIM_HOST, "origin": "null"}),
        ("POST", {"host": SHIM_HOST, "origin": ""}),
        ("POST", {"host": SHIM_HOST, "origin": "http://[::1"}),
        ("POST", {"host": SHIM_HOST, "origin": "http://127.0.0.1:9000"}),
        ("POST", {"host": SHIM_HOST, "origin": "http://localhost:8189"}),
        ("POST", {"host": SHIM_HOST, "sec-fetch-site": "cross-site"}),
        ("DELETE", {"host": SHIM_HOST, "sec-fetch-site": "same-site"}),
    ],
)
def test_other_pages_are_rejected(method: str, headers: dict[str, str]) -> None:
    """Requests to another Host, or from another origin or port, are rejected with a reason that has the remedy."""
    assert "--insecure-local" in rejection_reason(method, headers)


@pytest.mark.parametrize(
    ("content_type", "expected"),
    [
        ("application/json", True),
        ("Application/JSON; charset=utf-8", True),
        ("application/vnd.api+json", True),
        ("text/plain", False),
        ("application/x-www-form-urlencoded", False),
        ("multipart/form-data; boundary=x", False),
        ("text/plain; application/json", False),
        ("", False),
    ],
)
def test_content_types_of_json(content_type: str, *, expected: bool) -> None:
    """Only JSON types count as JSON. Other pages may send the rejected ones without a preflight request."""
    assert is_json(content_type) == expected
