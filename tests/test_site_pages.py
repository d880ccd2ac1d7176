"""The built site in a real browser: its search finds the generated references, and its tables fit narrow windows."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.browser import WIDTHS, browser, overflows
from tools.site import build_site

pytestmark = pytest.mark.slow
DIAGRAMS = ("", "architecture/", "client/", "models/", "rollout/")
"""Pages with a diagram: the system, the states of a job, which provider, where models come from, and the rollout."""


class QuietHandler(SimpleHTTPRequestHandler):
    """Serves files without logging requests."""

    def log_message(self, *_: object) -> None:
        """Log nothing."""


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of the site, built from the working tree."""
    pages = build_site(tmp_path_factory.mktemp("site"))
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(QuietHandler, directory=str(pages)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """One browser for all tests."""
    with browser() as chromium:
        yield chromium


@pytest.fixture(params=WIDTHS)
def page(request: pytest.FixtureRequest, chromium: Browser, url: str) -> Iterator[Page]:
    """A window of each width that reaches only the site."""
    window = chromium.new_page(viewport={"width": request.param, "height": 900}, base_url=url)
    window.route(lambda address: not address.startswith(url), lambda route: route.abort())
    yield window
    window.close()


@pytest.mark.parametrize(
    ("name", "reference"),
    [("output_too_large", "errors/"), ("WORKER_MODEL_LIMIT_GB", "configure/"), ("negative_strength", "api/")],
)
def test_the_search_finds_names_of_the_references(page: Page, url: str, name: str, reference: str) -> None:
    """An error code, a variable and an input are each found as one word, on their generated page."""
    with page.expect_response("**/search.json"):
        page.goto("glossary/")
    field = page.get_by_placeholder("Search")
    field.wait_for(state="attached", timeout=60_000)  # the search is ready for its key
    page.keyboard.press("Control+k")
    field.fill(name)

    result = page.locator(f"a[href^='{url}{reference}']").filter(has=page.locator("mark", has_text=name)).first
    expect(result).to_be_attached(timeout=60_000)


@pytest.mark.parametrize("path", ["errors/", "configure/", "api/", "client/", "migrate/"])
def test_a_page_with_tables_fits_its_window(page: Page, path: str) -> None:
    """No page is wider than its window. In a narrow one each cell names its column. Names are not broken into lines."""
    page.goto(path)
    cell = page.locator("tbody tr td:nth-child(2)").first
    label = cell.evaluate("cell => getComputedStyle(cell, '::before').content")

    assert not overflows(page)
    assert (label != "none") == (page.evaluate("innerWidth") < 600)
    lines = page.locator("td:first-child > code:only-child").evaluate_all(
        "all => all.filter(each => each.textContent.length < 30).map(each => each.getClientRects().length)"
    )
    assert set(lines) == {1}


@pytest.mark.parametrize("path", DIAGRAMS)
def test_a_page_has_its_diagram(page: Page, path: str) -> None:
    """The page has a diagram for Mermaid, which the theme loads from unpkg.com."""
    source = page.request.get(path).text()  # a page without Mermaid's program shows the text of the diagram instead

    assert '<pre class="mermaid">' in source
