"""Rejects browser requests from other sites when the shim runs without keys (`--insecure-local`). Pure.

Two attacks can reach a loopback address from a web page in the user's browser:

- Cross-origin requests: a page can send a POST without a CORS preflight if its content type is not JSON. The browser
  sends the page's origin in `Origin`.
- DNS rebinding: the page has the shim's origin, but `Host` still has the page's host name.
"""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import SplitResult, urlsplit

from comfy_core.urls import is_loopback


def rejection_reason(method: str, headers: Mapping[str, str], public_url: str = "") -> str:
    """Return why a request is rejected, or an empty string. `public_url` is the shim's configured URL, if any."""
    host = headers.get("host", "")
    if not host or not (is_loopback(_parts(f"//{host}").hostname or "") or host == _parts(public_url).netloc):
        return f"Host is {host[:80]!r}. With --insecure-local the shim only accepts localhost and 127.0.0.1"
    origin = headers.get("origin")
    if origin is not None and _parts(origin).netloc != host:
        return f"The request is from a page of {origin[:80]!r}. With --insecure-local the shim rejects other sites"
    if method not in {"GET", "HEAD"} and headers.get("sec-fetch-site", "none") not in {"same-origin", "none"}:
        return "The request is from a page of another site. With --insecure-local the shim rejects other sites"
    return ""


def is_json(content_type: str) -> bool:
    """Return whether a content type is JSON. Cross-origin pages cannot send JSON types without a CORS preflight."""
    kind = content_type.partition(";")[0].strip().lower()
    return kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json"))


def _parts(url: str) -> SplitResult:
    try:
        return urlsplit(url)
    except ValueError:
        return urlsplit("")
