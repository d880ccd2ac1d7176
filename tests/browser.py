"""Runs the installed Chromium with Playwright. Without Chromium a test is skipped with a notice; in CI it fails."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Browser, Page, sync_playwright

from tests.needs import skip_visibly

WIDTHS = (400, 1400)
"""Widths of a narrow and of a wide window, in pixels."""
PROGRAM_NAMES = ("chromium", "chromium-browser", "google-chrome")
"""Names of Chromium's program on Debian and on GitHub's runners."""
_FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@contextmanager
def browser() -> Iterator[Browser]:
    """Yield a headless Chromium."""
    program = next(filter(None, map(shutil.which, PROGRAM_NAMES)), None)
    if program is None:
        skip_visibly("THE PAGES WERE NOT TESTED: chromium is not installed; ./scripts/browser installs it on Debian")
    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=program, args=list(_FLAGS))


def overflows(page: Page) -> bool:
    """Return whether a page is wider than its window."""
    return bool(page.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth"))
