"""Runs the machine's Chromium with Playwright. Without one its tests are skipped with a notice; in CI they fail."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Browser, Page, sync_playwright

from tests.needs import skip_visibly

WIDTHS = (400, 1400)
NAMES = ("chromium", "chromium-browser", "google-chrome")
"""Names of the program on Debian and on GitHub's runners."""
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
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        skip_visibly("THE PAGES WERE NOT TESTED: chromium is not installed; ./scripts/browser installs it on Debian")
    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=found, args=list(_FLAGS))


def overflows(page: Page) -> bool:
    """Return whether a page is wider than its window."""
    return bool(page.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth"))
