"""Checks configured URLs and hosts, and formats URLs for error messages. Pure."""

from __future__ import annotations

import re
from ipaddress import ip_address
from urllib.parse import urlsplit

HUGGING_FACE = "https://huggingface.co"


def is_base_url(text: str) -> bool:
    """Return whether `text` is an http or https URL to which the path of a request can be appended.

    A URL with a user name, a password, a query or a fragment is rejected: a path cannot follow a query, and URLs are
    logged.
    """
    try:
        parts = urlsplit(text)
        host, _ = parts.hostname, parts.port
    except ValueError:
        return False
    is_plain = not re.search(r"[\s@?#]", text)
    return is_plain and parts.scheme in {"http", "https"} and bool(host)


def may_have_password(text: str) -> bool:
    """Return whether a URL may contain a password or a token."""
    return bool(re.search("[@?#]", text))


def url_for_message(text: str) -> str:
    """Return a URL for an error message, or `the given URL` if the URL may contain a password."""
    return "the given URL" if may_have_password(text) else repr(text)


def is_loopback(host: str) -> bool:
    """Return whether `host` is `localhost` or a loopback IP address."""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False
