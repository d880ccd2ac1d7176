"""Which browser requests a shim without keys (`--insecure-local`) refuses: those of other pages. Pure.

Two attacks reach a loopback address from a page in the owner's browser. A page of another origin can send a POST whose
content type is not JSON without asking first; the browser names its origin in `Origin`. After DNS rebinding a page has
the shim's origin, but its requests still have the name of the page's host in `Host`.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from urllib.parse import SplitResult, urlsplit


def refusal(method: str, headers: Mapping[str, str], public_url: str = "") -> str:
    """Return why a request is refused, or nothing. `public_url` is the shim's address if it is configured."""
    host = headers.get("host", "")
    if not host or not (is_loopback(_parts(f"//{host}").hostname or "") or host == _parts(public_url).netloc):
        return f"Host is {host[:80]!r}. With --insecure-local the shim answers to localhost and 127.0.0.1 alone"
    origin = headers.get("origin")
    if origin is not None and _parts(origin).netloc != host:
        return f"The request is from a page of {origin[:80]!r}. With --insecure-local other pages may not call the shim"
    if method not in {"GET", "HEAD"} and headers.get("sec-fetch-site", "none") not in {"same-origin", "none"}:
        return "The request is from a page of another site. With --insecure-local other pages may not call the shim"
    return ""


def is_json(content_type: str) -> bool:
    """Return whether a content type is JSON's. A page of another origin cannot send that without asking first."""
    kind = content_type.partition(";")[0].strip().lower()
    return kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json"))


def is_loopback(name: str) -> bool:
    """Return whether a host's name or address is this machine's loopback."""
    try:
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _parts(url: str) -> SplitResult:
    try:
        return urlsplit(url)
    except ValueError:
        return urlsplit("")
