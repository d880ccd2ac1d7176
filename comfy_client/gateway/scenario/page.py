"""The page at `/`: one file, and the policy that lets a browser run nothing else."""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path


@dataclass(frozen=True)
class Page:
    """The page, and its Content-Security-Policy."""

    html: str
    policy: str


@cache
def read_page() -> Page:
    """Return the page. Its script and its style are allowed by their hashes; it talks to the shim alone."""
    html = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    return Page(
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
