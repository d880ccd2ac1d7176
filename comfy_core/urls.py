"""Checks URLs that are configured, and shows them in errors. Pure functions."""

from __future__ import annotations

import re
from ipaddress import ip_address
from urllib.parse import urlsplit


def is_base_url(text: str) -> bool:
    """Return whether `text` is an http or https URL to which the path of a request can be appended.

    A user name, a password or a query is rejected: it would not be sent, and URLs are logged.
    """
    try:
        parts = urlsplit(text)
        host, _ = parts.hostname, parts.port
    except ValueError:
        return False
    is_plain = not re.search(r"[\s@?#]", text)
    return is_plain and parts.scheme in {"http", "https"} and bool(host)


def quoted_url(text: str) -> str:
    """Return a URL for an error message. A URL that may contain a password is not shown."""
    return repr(text) if not re.search("[@?#]", text) else "the given URL"


def is_loopback(host: str) -> bool:
    """Return whether a host name or an IP address is this machine's loopback address."""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False
