"""Builds the web page at `/` from the files of this folder, and its Content-Security-Policy."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

SCRIPTS = (
    "requests.js",
    "values.js",
    "rows.js",
    "details.js",
    "list.js",
    "overview.js",
    "viewer.js",
    "form.js",
    "start.js",
)
"""The files of the page's script, in their order in it."""


@dataclass(frozen=True)
class HtmlPage:
    """The HTML of the web page, and its Content-Security-Policy."""

    html: str
    policy: str


@cache
def read_page() -> HtmlPage:
    """Return the web page. The policy allows its script and style by hash, and connections to the shim only."""
    style = _read("page.css")
    script = '"use strict";\n' + "\n".join(map(_read, SCRIPTS))
    html = _read("page.html").replace("<style></style>", f"<style>{style}</style>")
    html = html.replace("<script></script>", f"<script>{script}</script>")
    policy = (
        "default-src 'none'",
        f"script-src {_hash(script)}",
        f"style-src {_hash(style)}",
        "img-src 'self' data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
    return HtmlPage(html, "; ".join(policy))


def _read(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def _hash(content: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"
