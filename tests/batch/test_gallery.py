"""The gallery of a batch in a real browser: full prompts, copies, the viewer, filters. It needs no server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, expect

from comfy_client.batch.gallery import gallery
from tests.browser import WIDTHS, browser, overflows

pytestmark = pytest.mark.slow
PROMPT = "a stout knight in dented blue armour, holding a round shield, " * 8 + 'and a "<b>banner</b>"'
FIELDS = {"file": None, "seed": None, "width": None, "height": None, "from": None, "error": None}
MANIFEST: dict[str, Any] = {
    "title": "The <Castle>",
    "cost_usd": None,
    "assets": [
        {"id": "ui/coin", "group": "ui", "type": "ui", "state": "ready", "prompt": "a coin", "file": "coin.png"},
        {"id": "a/knight", "group": "a", "type": "entity", "state": "ready", "prompt": PROMPT, "file": "knight.png"},
        {"id": "a/king", "group": "a", "type": "entity", "state": "failed", "prompt": "a king"},
    ],
}
MANIFEST["assets"] = [FIELDS | asset for asset in MANIFEST["assets"]]
MANIFEST["assets"][1] |= {"seed": 7, "width": 64, "height": 32, "from": "ui/coin"}
MANIFEST["assets"][2]["error"] = {"message": "The GPU was full. Request a smaller size."}


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """One browser for all tests."""
    with browser() as chromium:
        yield chromium


@pytest.fixture(params=WIDTHS)
def page(request: pytest.FixtureRequest, chromium: Browser, tmp_path: Path) -> Iterator[Page]:
    """The gallery of MANIFEST as a local file, in a window of each width.

    A script error, content wider than the window, and a request to a server fail the test.
    """
    for name in ("coin.png", "knight.png"):
        Image.new("RGB", (64, 32)).save(tmp_path / name)
    (tmp_path / "index.html").write_text(gallery(MANIFEST), encoding="utf-8")
    loaded: list[str] = []
    problems: list[str] = []
    window = chromium.new_page(viewport={"width": request.param, "height": 900})
    window.on("request", lambda sent: loaded.append(sent.url))
    window.on("pageerror", lambda error: problems.append(str(error)))
    window.goto((tmp_path / "index.html").as_uri())
    yield window
    assert not overflows(window)
    assert problems == []
    assert {url.partition(":")[0] for url in loaded} <= {"file", "data"}
    window.close()


def test_the_order_is_that_of_the_manifest(page: Page) -> None:
    """Groups and filters have the order of the manifest, which is that of assets.toml."""
    expect(page.get_by_role("heading", level=1)).to_have_text("The <Castle>")
    expect(page.get_by_role("heading", level=2)).to_have_text(["ui", "a"])
    expect(page.locator("nav label")).to_have_text(["ui", "entity"])


def test_a_filter_hides_a_type(page: Page) -> None:
    """An unchecked type is hidden, also in the viewer."""
    page.get_by_label("entity").uncheck()

    expect(page.locator("figure:visible")).to_have_count(1)
    page.get_by_role("link", name="a coin").click()
    expect(page.get_by_role("button", name="Next image")).to_be_disabled()


def test_a_long_prompt_can_be_read_and_copied(page: Page) -> None:
    """A long prompt is cut, and a click shows all of it, as text. Its button copies it."""
    prompt = page.locator("summary").nth(1)
    height = "element => element.clientHeight < element.scrollHeight"
    assert prompt.evaluate(height)
    prompt.click()
    assert not prompt.evaluate(height)
    expect(prompt).to_have_text(PROMPT)

    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.get_by_role("button", name="Copy prompt").nth(1).click()
    expect(page.get_by_role("button", name="Copied")).to_be_visible()
    assert page.evaluate("navigator.clipboard.readText()") == PROMPT
    page.get_by_role("button", name="Copy seed").click()
    expect(page.get_by_role("button", name="Copied")).to_have_count(2)
    assert page.evaluate("navigator.clipboard.readText()") == "7"


def test_the_viewer_follows_the_arrow_keys(page: Page) -> None:
    """A click opens an image at full size with its prompt and facts; → and ← change the image, and Esc closes it."""
    page.get_by_role("link", name="a coin").click()
    viewer = page.get_by_role("dialog", name="Image")
    expect(viewer.locator(".prompt")).to_have_text("a coin")
    expect(viewer.get_by_role("button", name="Previous image")).to_be_disabled()
    page.keyboard.press("ArrowRight")
    expect(viewer.locator(".prompt")).to_have_text(PROMPT)
    expect(viewer.locator(".fact")).to_have_text("knight · seed 7 · 64 x 32 · from coin")
    assert viewer.locator("img").evaluate("image => image.decode().then(() => image.naturalWidth)") == 64
    expect(viewer.get_by_role("link", name="Download")).to_have_attribute("href", "knight.png")
    expect(viewer.get_by_role("button", name="Next image")).to_be_disabled()
    page.keyboard.press("ArrowLeft")
    expect(viewer.locator(".prompt")).to_have_text("a coin")
    page.keyboard.press("Escape")
    expect(viewer).to_be_hidden()


def test_a_failed_image_shows_its_error(page: Page) -> None:
    """An image that was not generated shows the error and its remedy."""
    expect(page.locator("figure").nth(2)).to_contain_text("The GPU was full. Request a smaller size.")
