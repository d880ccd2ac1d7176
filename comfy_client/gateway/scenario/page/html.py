"""Builds the web page at `/` from the files of this folder and of comfy_client/pages, and its CSP header."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from comfy_client.pages import CLIPBOARD, VIEWER, html_document, joined_script, read_text, shared_style, viewer

FOLDER = Path(__file__).parent
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
VIEWER_ACTIONS = """
<button class="input">Use as input</button><button class="copy-id">Copy id</button>
<button class="delete danger">Delete image</button>"""


@dataclass(frozen=True)
class HtmlPage:
    """The HTML of the web page, and its Content-Security-Policy."""

    html: str
    policy: str


@cache
def read_page() -> HtmlPage:
    """Return the web page. The policy allows its script and style by hash, and connections to the shim only."""
    style = shared_style() + read_text(FOLDER / "page.css")
    script = joined_script([CLIPBOARD, VIEWER, *(FOLDER / name for name in SCRIPTS)])
    body = read_text(FOLDER / "page.html").replace("<!-- viewer -->", viewer(VIEWER_ACTIONS))
    html = html_document(
        "Images from your own endpoint", body, style=style, script=script, body_class="one-caller one-side"
    )
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


def _hash(content: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"
