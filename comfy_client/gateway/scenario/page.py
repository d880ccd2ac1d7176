"""The web page at `/`, and the Content-Security-Policy that only allows its own script and style."""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path


@dataclass(frozen=True)
class HtmlPage:
    """The HTML of the web page, and its Content-Security-Policy."""

    html: str
    policy: str


@cache
def read_page() -> HtmlPage:
    """Return the web page. The policy allows its script and style by hash, and connections to the shim only."""
    html = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    return HtmlPage(
        html,
        "; ".join(
            (
                "default-src 'none'",
                f"script-src {_hashes(html, 'script')}",
                f"style-src {_hashes(html, 'style')}",
                "img-src 'self' data:",
                "connect-src 'self'",
                "base-uri 'none'",
                "form-action 'none'",
                "frame-ancestors 'none'",
            )
        ),
    )


def _hashes(html: str, tag: str) -> str:
    contents = re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
    digests = [base64.b64encode(hashlib.sha256(content.encode()).digest()).decode() for content in contents]
    return " ".join(f"'sha256-{digest}'" for digest in digests)
