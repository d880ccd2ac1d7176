"""The page at `/` in a real browser: it makes pictures, shows them, and says what went wrong."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.browser import WIDTHS, browser, overflows
from tests.fakes.runpod_platform import RunPodPlatform
from tests.fakes.scripted_worker import Body, ScriptedWorker, pictured
from tests.scenario.shim_process import KEY, SECRET, ShimProcess

WAIT_MS = 20_000


def answer(job: Body) -> Body:
    """Make a picture; fail where the prompt says so."""
    if "fails" in job["input"]["prompt"]:
        return {
            "error": '{"code": "out_of_memory", "message": "The GPU was full. Ask for a smaller size.", "details": {}}'
        }
    return pictured(job)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """One browser for all tests."""
    with browser() as chromium:
        yield chromium


@pytest.fixture(scope="module")
def platform() -> Iterator[RunPodPlatform]:
    """An endpoint."""
    with RunPodPlatform(long_poll_s=0.5) as platform, ScriptedWorker(platform, answer):
        yield platform


@pytest.fixture
def shim(platform: RunPodPlatform, tmp_path: Path) -> Iterator[ShimProcess]:
    """A shim that has nothing yet."""
    with ShimProcess(platform.client_env(), tmp_path) as shim:
        yield shim


@pytest.fixture(params=WIDTHS)
def page(request: pytest.FixtureRequest, chromium: Browser, shim: ShimProcess) -> Iterator[Page]:
    """The page in a window of that width, with the key typed in. No script of it may fail."""
    window = chromium.new_page(viewport={"width": request.param, "height": 900})
    problems: list[str] = []
    window.on("pageerror", lambda error: problems.append(str(error)))
    window.on("console", lambda message: problems.append(message.text) if "Content Security" in message.text else None)
    window.goto(f"{shim.url}/")
    window.get_by_label("Key", exact=True).fill(KEY)
    window.get_by_label("Secret").fill(SECRET)
    window.get_by_role("button", name="Go on").click()
    yield window
    assert not overflows(window)
    assert problems == []
    window.close()


def make(page: Page, prompt: str) -> None:
    """Ask for a picture."""
    page.get_by_label("Prompt").fill(prompt)
    page.get_by_label("Seed").fill("42")
    page.get_by_role("button", name="Make it").click()


def test_without_jobs_it_says_what_to_do(page: Page) -> None:
    """It shows that there are none, the endpoint's health, and no cost yet."""
    expect(page.get_by_text("No jobs yet")).to_be_visible()
    expect(page.get_by_role("status")).to_contain_text("worker", timeout=WAIT_MS)
    expect(page.get_by_text("$0.0000")).to_be_visible(timeout=WAIT_MS)


def test_a_prompt_becomes_a_picture(page: Page) -> None:
    """The job appears, ends, and shows its picture with prompt and seed; the picture has really loaded."""
    make(page, "a pixel art knight")
    picture = page.get_by_role("img", name="a pixel art knight")

    expect(picture).to_be_visible(timeout=WAIT_MS)
    expect(page.locator("figcaption")).to_contain_text("seed 42")
    assert picture.evaluate("image => image.decode().then(() => image.naturalWidth)") == 8


def test_a_failed_job_says_why(page: Page) -> None:
    """The error and its remedy stand in the job."""
    make(page, "this fails")

    expect(page.locator("[data-status=failure]")).to_contain_text("Ask for a smaller size", timeout=WAIT_MS)


def test_a_call_that_is_refused_says_why(page: Page) -> None:
    """What the shim refuses is told beside the form, and the form may be used again."""
    page.get_by_label("Steps").evaluate("field => { field.max = 1000 }")
    page.get_by_label("Steps").fill("500")
    make(page, "a knight")

    expect(page.get_by_role("alert").filter(has_text="numInferenceSteps")).to_be_visible(timeout=WAIT_MS)
    expect(page.get_by_role("button", name="Make it")).to_be_enabled()


def test_a_prompt_is_text_and_no_html(page: Page) -> None:
    """What is typed is shown as it is."""
    make(page, "<img src=x onerror=alert(1)><b>bold</b>")

    expect(page.locator(".prompt")).to_have_text("<img src=x onerror=alert(1)><b>bold</b>", timeout=WAIT_MS)


def test_a_wrong_key_is_asked_for_again(chromium: Browser, shim: ShimProcess) -> None:
    """A key that is none is refused with a sentence, and the right one opens the page."""
    window = chromium.new_page()
    window.goto(f"{shim.url}/")
    for secret in ("wrong", SECRET):
        window.get_by_label("Key", exact=True).fill(KEY)
        window.get_by_label("Secret").fill(secret)
        window.get_by_role("button", name="Go on").click()
        if secret != SECRET:
            expect(window.get_by_text("not one of the shim's")).to_be_visible(timeout=WAIT_MS)
    expect(window.get_by_role("status")).to_contain_text("worker", timeout=WAIT_MS)
    window.close()


def test_a_job_is_cancelled(page: Page, platform: RunPodPlatform) -> None:
    """The button ends a job that waits."""
    platform.faults.cold_start(60)
    make(page, "a knight")
    page.get_by_role("button", name="Cancel").click(timeout=WAIT_MS)

    expect(page.locator("[data-status=canceled]")).to_be_visible(timeout=WAIT_MS)
    platform.faults.clear()
