"""What all web pages of this project share: the style sheet, the HTML document, the clipboard, the viewer of images.

A page is one file: its style and its script are in it, and it loads nothing from other servers. The Scenario shim's
page, the gallery of `comfy-client batch`, the report of `scripts/validate_endpoint` and that of `scripts/benchmark`
are built with this module.
"""

from __future__ import annotations

import string
from collections.abc import Iterable
from html import escape
from pathlib import Path

FOLDER = Path(__file__).parent
CLIPBOARD = FOLDER / "clipboard.js"
"""The script that copies a text and shows the result on a button."""
VIEWER = FOLDER / "viewer.js"
"""The script of `viewer`, which needs CLIPBOARD."""


def shared_style() -> str:
    """Return the style sheet of all pages: their colours, light and dark, and everything else."""
    return colours() + read_text(FOLDER / "style.css")


def colours() -> str:
    """Return the part of the style sheet that defines the colours as CSS variables, such as `--text`."""
    return read_text(FOLDER / "colours.css")


def html_document(title: str, body: str, *, style: str, script: str, body_class: str = "") -> str:
    """Return an HTML document with `style` and `script` inside it, unchanged. `body` is HTML, `title` is text."""
    frame = string.Template(read_text(FOLDER / "document.html"))
    return frame.substitute(title=escape(title), body=body, style=style, script=script, body_class=body_class)


def static_page(title: str, body: str, *, style: str = "", script: str = "") -> str:
    """Return a page that needs no server: `body`, the shared style, and the viewer of images as static.js uses it."""
    copy_prompt = '<button class="copy-prompt">Copy prompt</button>'
    body = f'<main class="page">\n{body}</main>\n{viewer(copy_prompt)}'
    shared_script = [CLIPBOARD, VIEWER, FOLDER / "static.js"]
    return html_document(title, body, style=shared_style() + style, script=joined_script(shared_script, script))


def viewer(actions: str) -> str:
    """Return the HTML of the dialog that shows images at full size. `actions` are the page's own buttons in it."""
    return string.Template(read_text(FOLDER / "viewer.html")).substitute(actions=actions)


def joined_script(files: Iterable[Path], extra: str = "") -> str:
    """Return one script in strict mode that consists of `files`, in their order, and of `extra`."""
    return "\n".join(['"use strict";', *map(read_text, files), extra])


def read_text(path: Path) -> str:
    """Return the text of a file of a page."""
    return path.read_text(encoding="utf-8")
