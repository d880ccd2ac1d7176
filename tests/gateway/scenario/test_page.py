"""The shim's page in a real browser: keys, jobs, images and errors; and protection of a shim without keys."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests
from playwright.sync_api import Browser, Page, expect

from bench.shim_process import KEY, SECRET, ShimProcess
from simulators.http_server import HttpHandler, HttpServer
from simulators.runpod.queue_api import RunPodPlatform
from simulators.runpod.scripted_worker import Body, ScriptedWorker, image_result
from tests.browser import WIDTHS, browser, overflows

pytestmark = pytest.mark.slow
WAIT_MS = 20_000


def respond(job: Body) -> Body:
    """Return an image, or out_of_memory if the prompt contains `fails`."""
    if "fails" in job["input"]["prompt"]:
        return {
            "error": '{"code": "out_of_memory", "message": "The GPU was full. Request a smaller size.", "details": {}}'
        }
    return image_result(job)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """One browser for all tests of this module."""
    with browser() as chromium:
        yield chromium


@pytest.fixture(scope="module")
def platform() -> Iterator[RunPodPlatform]:
    """An endpoint whose worker responds with `respond`."""
    with RunPodPlatform(long_poll_s=0.5) as platform, ScriptedWorker(platform, respond):
        yield platform


@pytest.fixture(params=WIDTHS)
def page(request: pytest.FixtureRequest, chromium: Browser, shim: ShimProcess) -> Iterator[Page]:
    """The page in a window of each width, with the key entered.

    A script error, and content wider than the window, fail the test.
    """
    problems: list[str] = []
    window = open_page(chromium, shim, request.param, problems)
    yield window
    assert not overflows(window)
    assert problems == []
    window.close()


def open_page(chromium: Browser, shim: ShimProcess, width: int, problems: list[str] | None = None) -> Page:
    """Open the page in a window of `width` and enter the key; return the page.

    Errors of the page's scripts are added to `problems`.
    """
    found: list[str] = [] if problems is None else problems
    window = chromium.new_page(viewport={"width": width, "height": 900})
    window.on("pageerror", lambda error: found.append(str(error)))
    window.on("console", lambda message: found.append(message.text) if "Content Security" in message.text else None)
    window.goto(f"{shim.url}/")
    window.get_by_label("Key", exact=True).fill(KEY)
    window.get_by_label("Secret").fill(SECRET)
    window.get_by_role("button", name="Continue").click()
    return window


def generate(page: Page, prompt: str) -> None:
    """Fill in the prompt and a seed, and press Generate."""
    page.get_by_label("Prompt").fill(prompt)
    page.get_by_label("Seed").fill("42")
    page.get_by_role("button", name="Generate").click()


def test_the_page_without_jobs(page: Page) -> None:
    """The page states that there are no jobs, and shows the endpoint's health and no cost."""
    expect(page.get_by_text("No jobs yet")).to_be_visible()
    expect(page.get_by_role("status")).to_contain_text("worker", timeout=WAIT_MS)
    expect(page.get_by_text("$0.0000")).to_be_visible(timeout=WAIT_MS)


def test_a_prompt_becomes_an_image(page: Page) -> None:
    """The job's image is shown with its prompt and seed, and its file is loaded."""
    generate(page, "a pixel art knight")
    image = page.get_by_role("img", name="a pixel art knight")

    expect(image).to_be_visible(timeout=WAIT_MS)
    expect(page.locator("figcaption")).to_contain_text("seed 42")
    assert image.evaluate("image => image.decode().then(() => image.naturalWidth)") == 8


def test_a_failed_job_shows_its_error(page: Page) -> None:
    """A failed job shows the remedy of its error."""
    generate(page, "this fails")

    expect(page.locator("[data-status=failure]")).to_contain_text("Request a smaller size", timeout=WAIT_MS)


def test_a_rejected_call_shows_its_error(page: Page) -> None:
    """The error of a rejected call is shown as an alert, and the form can be used again."""
    page.get_by_label("Steps").evaluate("field => { field.max = 1000 }")
    page.get_by_label("Steps").fill("500")
    generate(page, "a knight")

    expect(page.get_by_role("alert").filter(has_text="numInferenceSteps")).to_be_visible(timeout=WAIT_MS)
    expect(page.get_by_role("button", name="Generate")).to_be_enabled()


def test_a_prompt_is_shown_as_text(page: Page) -> None:
    """HTML in a prompt is shown as text."""
    generate(page, "<img src=x onerror=alert(1)><b>bold</b>")

    expect(page.locator(".prompt")).to_have_text("<img src=x onerror=alert(1)><b>bold</b>", timeout=WAIT_MS)


def test_a_wrong_key_can_be_corrected(chromium: Browser, shim: ShimProcess) -> None:
    """With a wrong secret the page shows an error, and then the right secret opens the page."""
    window = chromium.new_page()
    window.goto(f"{shim.url}/")
    for secret in ("wrong", SECRET):
        window.get_by_label("Key", exact=True).fill(KEY)
        window.get_by_label("Secret").fill(secret)
        window.get_by_role("button", name="Continue").click()
        if secret != SECRET:
            expect(window.get_by_text("The key is wrong")).to_be_visible(timeout=WAIT_MS)
    expect(window.get_by_role("status")).to_contain_text("worker", timeout=WAIT_MS)
    window.close()


def test_a_token_opens_the_page(chromium: Browser, platform: RunPodPlatform, tmp_path: Path) -> None:
    """With SCENARIO_SHIM_TOKENS and no accounts, the token is entered as Secret, without a key."""
    tokens = {"SCENARIO_SHIM_ACCOUNTS": "", "SCENARIO_SHIM_TOKENS": "a-long-token"}
    with ShimProcess({**platform.client_env(), **tokens}, tmp_path) as shim:
        window = chromium.new_page()
        window.goto(f"{shim.url}/")
        window.get_by_label("Secret").fill("a-long-token")
        window.get_by_role("button", name="Continue").click()
        expect(window.get_by_role("status")).to_contain_text("worker", timeout=WAIT_MS)
        window.close()


def test_every_job_is_shown_and_updated(page: Page, shim: ShimProcess, platform: RunPodPlatform) -> None:
    """Of 45 jobs all are shown and updated until they end, the newest first, and not only 30."""
    expect(page.get_by_text("No jobs yet")).to_be_visible(timeout=WAIT_MS)
    platform.faults.cold_start(3)
    url = f"{shim.base_url}/generate/custom/model_bfl-flux-1-dev"
    for number in range(45):
        body = {"prompt": f"knight {number}", "width": 64, "height": 64}
        assert requests.post(url, json=body, auth=(KEY, SECRET), timeout=30).status_code == 200

    expect(page.locator("#jobs > article")).to_have_count(45, timeout=WAIT_MS)
    expect(page.locator("[data-status=success]")).to_have_count(45, timeout=3 * WAIT_MS)
    expect(page.get_by_role("img")).to_have_count(45, timeout=WAIT_MS)
    expect(page.locator(".prompt").first).to_have_text("knight 44")
    expect(page.locator(".prompt").last).to_have_text("knight 0")
    platform.faults.clear()


def test_older_jobs_are_listed_on_demand(chromium: Browser, shim: ShimProcess) -> None:
    """With 35 jobs the page shows 30, and the others on request."""
    url = f"{shim.base_url}/generate/custom/model_bfl-flux-1-dev"
    for number in range(35):
        requests.post(
            url, json={"prompt": f"knight {number}", "width": 64, "height": 64}, auth=(KEY, SECRET), timeout=30
        )
    window = open_page(chromium, shim, 1400)
    expect(window.locator("#jobs > article")).to_have_count(30, timeout=WAIT_MS)
    window.get_by_role("button", name="Older jobs").click()

    expect(window.locator("#jobs > article")).to_have_count(35, timeout=WAIT_MS)
    expect(window.locator(".prompt").last).to_have_text("knight 0")
    window.close()


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

    expect(window.get_by_role("img", name="a pixel art knight")).to_be_visible(timeout=WAIT_MS)
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

    jobs = requests.get(f"{open_shim.base_url}/jobs", timeout=30).json()["jobs"]
    assert jobs == []
    assert platform.submissions == before
    assert open_shim.log.count("403") >= 4


def test_a_rebound_name_is_rejected(open_shim: ShimProcess) -> None:
    """A request with another Host header, as after DNS rebinding, gets 403 from each route."""
    for path in ("/", "/v1/jobs", "/openapi.json", "/health"):
        response = requests.get(open_shim.url + path, headers={"Host": "evil.example"}, timeout=30)
        assert response.status_code == 403
        assert "localhost" in response.json()["reason"]


def test_a_body_needs_the_content_type_of_json_without_keys(open_shim: ShimProcess) -> None:
    """Without keys a body with another content type gets 400 with the remedy; one with JSON's type is accepted."""
    url = f"{open_shim.base_url}/generate/txt2img"
    body = '{"prompt": "a knight", "modelId": "flux.1-dev", "width": 64, "height": 64}'
    rejected = requests.post(url, data=body, headers={"Content-Type": "text/plain"}, timeout=30)

    assert rejected.status_code == 400
    assert "Content-Type: application/json" in rejected.json()["reason"]
    assert requests.post(url, data=body, headers={"Content-Type": "application/json"}, timeout=30).status_code == 200


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
    page.get_by_role("button", name="Cancel").click(timeout=WAIT_MS)

    expect(page.locator("[data-status=canceled]")).to_be_visible(timeout=WAIT_MS)
    platform.faults.clear()
