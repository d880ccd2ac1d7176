"""Opens the shim's web page in Chromium and uses it as a person does."""

from __future__ import annotations

from playwright.sync_api import Browser, Locator, Page

from bench.shim_process import KEY, SECRET, ShimProcess

WAIT_MS = 60_000


def open_page(
    chromium: Browser,
    shim: ShimProcess,
    width: int = 1400,
    problems: list[str] | None = None,
    *,
    key: str = KEY,
    secret: str = SECRET,
    fragment: str = "",
) -> Page:
    """Open the page in a window of `width` and sign in; return the page.

    Errors of the page's scripts, and what the Content-Security-Policy refused, are added to `problems`.
    """
    found: list[str] = [] if problems is None else problems
    window = chromium.new_page(viewport={"width": width, "height": 900})
    window.on("pageerror", lambda error: found.append(str(error)))
    window.on("console", lambda message: found.append(message.text) if "Content Security" in message.text else None)
    window.goto(f"{shim.url}/{fragment}")
    sign_in(window, key, secret)
    return window


def sign_in(window: Page, key: str = KEY, secret: str = SECRET) -> None:
    """Enter a key and its secret."""
    window.get_by_label("Key", exact=True).fill(key)
    window.get_by_label("Secret", exact=True).fill(secret)
    window.get_by_role("button", name="Sign in").click()


def generate(window: Page, prompt: str) -> None:
    """Fill in the prompt and a seed, and press Generate. A narrow window shows the form on demand."""
    if not window.get_by_label("Prompt", exact=True).is_visible():
        window.get_by_text("New image").click()
    window.get_by_label("Prompt", exact=True).fill(prompt)
    window.get_by_label("Seed", exact=True).fill("42")
    window.get_by_role("button", name="Generate").click()


def rows(window: Page) -> Locator:
    """Return the rows of the list."""
    return window.locator("#jobs > li")


def prompts(window: Page) -> Locator:
    """Return the prompts of the rows."""
    return window.locator("#jobs summary > .prompt")


def open_details(row: Locator) -> Locator:
    """Show the details of a row, and return them."""
    row.locator("summary").click()
    return row.locator(".more")
