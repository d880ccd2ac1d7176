"""The shim's page in a real browser: sign-in, new jobs, images and errors; and protection of a shim without keys."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests
from playwright.sync_api import Browser, Page, expect

from bench.shim_process import SECRET, ShimProcess
from simulators.http_server import HttpHandler, HttpServer
from simulators.runpod.queue_api import RunPodPlatform
from tests.browser import WIDTHS, overflows
from tests.gateway.scenario.page.windows import WAIT_MS, generate, open_details, open_page, prompts, rows, sign_in

pytestmark = pytest.mark.slow


@pytest.fixture(params=WIDTHS)
def page(request: pytest.FixtureRequest, chromium: Browser, shim: ShimProcess) -> Iterator[Page]:
    """The page in a window of each width, signed in.

    A script error, and content wider than the window, fail the test.
    """
    problems: list[str] = []
    window = open_page(chromium, shim, request.param, problems)
    yield window
    assert not overflows(window)
    assert problems == []
    window.close()


def test_the_page_without_jobs(page: Page) -> None:
    """The page states that there are no jobs, and shows the endpoint's health and no cost."""
    expect(page.get_by_text("No jobs yet")).to_be_visible()
    expect(page.locator("#health")).to_contain_text("worker", timeout=WAIT_MS)
    expect(page.locator("#own-cost")).to_have_text("0 jobs, 0 s of GPU time", timeout=WAIT_MS)


def test_a_prompt_becomes_an_image(page: Page) -> None:
    """The job's image is shown with its prompt and seed, and its file is loaded."""
    generate(page, "a pixel art knight")
    details = open_details(rows(page))
    image = details.get_by_role("img", name="a pixel art knight")

    expect(image).to_be_visible(timeout=WAIT_MS)
    expect(details.locator("figcaption")).to_contain_text("seed 42")
    assert image.evaluate("image => image.decode().then(() => image.naturalWidth)") == 8


def test_a_failed_job_shows_its_error(page: Page) -> None:
    """A failed job shows the remedy of its error."""
    generate(page, "this fails")
    expect(page.locator("[data-status=failure]")).to_be_visible(timeout=WAIT_MS)

    expect(open_details(rows(page))).to_contain_text("Request a smaller size")


def test_a_rejected_call_shows_its_error(page: Page) -> None:
    """The error of a rejected call is shown as an alert, and the form can be used again."""
    page.locator("#new").evaluate("form => { form.open = true }")
    page.get_by_label("Steps").evaluate("field => { field.max = 1000 }")
    page.get_by_label("Steps").fill("500")
    generate(page, "a knight")

    expect(page.get_by_role("alert").filter(has_text="numInferenceSteps")).to_be_visible(timeout=WAIT_MS)
    expect(page.get_by_role("button", name="Generate")).to_be_enabled()


def test_a_prompt_is_shown_as_text(page: Page) -> None:
    """HTML in a prompt is shown as text, in the list and in the details."""
    generate(page, "<img src=x onerror=alert(1)><b>bold</b>")

    expect(prompts(page)).to_have_text("<img src=x onerror=alert(1)><b>bold</b>", timeout=WAIT_MS)
    expect(open_details(rows(page)).locator(".full-prompt")).to_have_text("<img src=x onerror=alert(1)><b>bold</b>")
    expect(page.locator("#jobs b, #jobs img[src=x]")).to_have_count(0)


def test_a_wrong_key_can_be_corrected(chromium: Browser, shim: ShimProcess) -> None:
    """With a wrong secret the page shows an error, and then the right secret opens the page."""
    window = chromium.new_page()
    window.goto(f"{shim.url}/")
    for secret in ("wrong", SECRET):
        sign_in(window, secret=secret)
        if secret != SECRET:
            expect(window.get_by_text("The key is missing or wrong")).to_be_visible(timeout=WAIT_MS)
    expect(window.locator("#health")).to_contain_text("worker", timeout=WAIT_MS)
    window.close()


def test_a_token_opens_the_page_until_the_sign_out(chromium: Browser, platform: RunPodPlatform, tmp_path: Path) -> None:
    """A token signs in, its name on the page is not the token, and after the sign-out it is needed again."""
    tokens = {"SCENARIO_SHIM_ACCOUNTS": "", "SCENARIO_SHIM_TOKENS": "a-long-token"}
    with ShimProcess({**platform.client_env(), **tokens}, tmp_path) as shim:
        window = chromium.new_page()
        window.goto(f"{shim.url}/")
        window.get_by_label("Token").check()
        window.get_by_label("Token").last.fill("a-long-token")
        window.get_by_role("button", name="Sign in").click()
        expect(window.locator("#caller")).to_have_text(re.compile("^token [0-9a-f]{6}$"), timeout=WAIT_MS)
        window.get_by_role("button", name="Sign out").click()

        expect(window.get_by_role("dialog", name="Sign in")).to_be_visible(timeout=WAIT_MS)
        expect(window.locator("#caller")).to_have_text("")
        window.close()


def test_the_printed_address_opens_the_page(chromium: Browser, platform: RunPodPlatform, tmp_path: Path) -> None:
    """`--page-token` prints an address last that signs in without the dialog, also after a restart.

    The token disappears from the address in the browser.
    """
    accounts = {"SCENARIO_SHIM_ACCOUNTS": ""}
    with ShimProcess({**platform.client_env(), **accounts}, tmp_path, "--page-token") as shim:
        address = shim.log.split()[-1]
        window = chromium.new_page()
        window.goto(address)

        expect(window.locator("#caller")).to_have_text(re.compile("^token [0-9a-f]{6}$"), timeout=WAIT_MS)
        assert window.url == f"{shim.url}/"
        window.close()
        shim.stop()
        shim.start()
        assert shim.log.split()[-1].partition("#")[2] == address.partition("#")[2]


# --- without keys


@pytest.fixture
def open_shim(platform: RunPodPlatform, tmp_path: Path) -> Iterator[ShimProcess]:
    """A shim that requires no key."""
    with ShimProcess({**platform.client_env(), "SCENARIO_SHIM_ACCOUNTS": ""}, tmp_path, "--insecure-local") as shim:
        yield shim


def test_the_shim_s_page_needs_no_key(chromium: Browser, open_shim: ShimProcess) -> None:
    """With --insecure-local the page opens without a key and generates an image."""
    window = chromium.new_page()
    window.goto(f"{open_shim.url}/")
    generate(window, "a pixel art knight")

    expect(window.locator("[data-status=success] img.thumb")).to_be_visible(timeout=WAIT_MS)
    window.close()


_REQUESTS_OF_ANOTHER_PAGE = """async (url) => {
  const body = JSON.stringify({prompt: "a knight", numOutputs: 8});
  for (const type of ["text/plain", "application/x-www-form-urlencoded", "application/json"])
    for (const mode of ["no-cors", "cors"])
      await fetch(url, {method: "POST", mode, body, headers: {"Content-Type": type}}).catch(() => {});
  navigator.sendBeacon(url, body);
  const form = Object.assign(document.createElement("form"), {action: url, method: "POST", enctype: "text/plain"});
  form.append(Object.assign(document.createElement("input"), {name: '{"prompt": "a knight", "x": "', value: '"}'}));
  document.body.append(form);
  form.submit();
}"""


def test_a_page_of_another_origin_starts_no_job(
    chromium: Browser, open_shim: ShimProcess, platform: RunPodPlatform
) -> None:
    """A shim without keys rejects fetch, beacon and form of a page of another origin, and no job starts."""
    before = platform.submissions
    with other_origin() as url:
        window = chromium.new_page()
        window.goto(url)
        with window.expect_navigation(timeout=WAIT_MS):
            window.evaluate(_REQUESTS_OF_ANOTHER_PAGE, f"{open_shim.base_url}/generate/custom/model_bfl-flux-1-dev")
        expect(window.locator("body")).to_contain_text("the shim rejects other sites")
        window.close()

    jobs = requests.get(f"{open_shim.base_url}/jobs", timeout=60).json()["jobs"]
    assert jobs == []
    assert platform.submissions == before
    assert open_shim.log.count("403") >= 4


def test_a_rebound_name_is_rejected(open_shim: ShimProcess) -> None:
    """A request with another Host header, as after DNS rebinding, gets 403 from each route."""
    for path in ("/", "/v1/jobs", "/openapi.json", "/health"):
        response = requests.get(open_shim.url + path, headers={"Host": "evil.example"}, timeout=60)
        assert response.status_code == 403
        assert "localhost" in response.json()["reason"]


def test_a_body_needs_the_content_type_of_json_without_keys(open_shim: ShimProcess) -> None:
    """Without keys a body with another content type gets 400 with the remedy; one with JSON's type is accepted."""
    url = f"{open_shim.base_url}/generate/txt2img"
    body = '{"prompt": "a knight", "modelId": "flux.1-dev", "width": 64, "height": 64}'
    rejected = requests.post(url, data=body, headers={"Content-Type": "text/plain"}, timeout=60)

    assert rejected.status_code == 400
    assert "Content-Type: application/json" in rejected.json()["reason"]
    assert requests.post(url, data=body, headers={"Content-Type": "application/json"}, timeout=60).status_code == 200


@contextmanager
def other_origin() -> Iterator[str]:
    """Serve an empty page of another origin; yield its URL."""

    class Empty(HttpHandler):
        def do_GET(self) -> None:
            self.respond(200, b"<body></body>", {"Content-Type": "text/html"})

    with HttpServer(Empty) as server:
        yield f"{server.url}/"


def test_a_job_is_cancelled(page: Page, platform: RunPodPlatform) -> None:
    """The Cancel button cancels a queued job."""
    platform.faults.cold_start(60)
    generate(page, "a knight")
    open_details(rows(page)).get_by_role("button", name="Cancel").click()

    expect(page.locator("[data-status=canceled]")).to_be_visible(timeout=WAIT_MS)
    platform.faults.clear()
