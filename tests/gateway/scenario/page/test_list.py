"""The list of the shim's page in a real browser: filters, live updates, actions on a job, and the keyboard."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from playwright.sync_api import Browser, Page, expect

from bench.shim_process import KEY, OTHER_KEY, OTHER_SECRET, SECRET, ShimProcess
from comfy_client.gateway.scenario.auth import owner_of
from comfy_client.gateway.scenario.models import Phase, ShimJob
from comfy_client.providers.scenario_responses import Status
from simulators.runpod.queue_api import RunPodPlatform
from tests.browser import WIDTHS, overflows
from tests.gateway.scenario.page.stored import ended_job, fill, forwarded_job
from tests.gateway.scenario.page.windows import WAIT_MS, generate, open_details, open_page, prompts, rows

pytestmark = pytest.mark.slow
OWNER, OTHER = owner_of(KEY), owner_of(OTHER_KEY)
LONG = "a long prompt of a hero banner, " * 40
NEW_JOBS = 60


def stored_jobs() -> Iterator[ShimJob]:
    """Yield an old job that waits for a worker, NEW_JOBS newer ones, and at last a failed one and one of Scenario."""
    waiting = ended_job(1, "the oldest job", OWNER)
    yield ended_job(1, "the oldest job", OWNER, phase=Phase.STORED, status=Status.QUEUED, history=waiting.history[:1])
    for number in range(2, NEW_JOBS + 2):
        yield ended_job(number, f"knight {number}", OWNER)
    yield ended_job(90, LONG, OWNER, status=Status.FAILURE, error="No <memory>.", error_code="out_of_memory")
    yield forwarded_job(91, "a sheet by Scenario", owner=OWNER)
    yield ended_job(92, "a castle of another caller", OTHER)


@pytest.fixture(scope="module")
def full_shim(platform: RunPodPlatform, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ShimProcess]:
    """A shim with `stored_jobs`. Each test uses jobs of its own."""
    folder = tmp_path_factory.mktemp("shim")
    fill(folder, stored_jobs(), with_images=True)
    with ShimProcess(platform.client_env(), folder) as shim:
        yield shim


@pytest.fixture(params=WIDTHS)
def page(request: pytest.FixtureRequest, chromium: Browser, full_shim: ShimProcess) -> Iterator[Page]:
    """The page of that shim in a window of each width. A script error or an overflow fails the test."""
    yield from checked_window(chromium, full_shim, request.param)


@pytest.fixture
def wide_page(chromium: Browser, full_shim: ShimProcess) -> Iterator[Page]:
    """The page in a wide window."""
    yield from checked_window(chromium, full_shim, WIDTHS[-1])


@pytest.fixture
def waiting_shim(platform: RunPodPlatform, tmp_path: Path) -> Iterator[ShimProcess]:
    """A shim with `stored_jobs` and an administrator. Its endpoint has no worker until the test clears that fault."""
    fill(tmp_path, stored_jobs(), with_images=True)
    platform.faults.cold_start(600)
    with ShimProcess({**platform.client_env(), "SCENARIO_SHIM_ADMIN_KEYS": OTHER_KEY}, tmp_path) as shim:
        yield shim
    platform.faults.clear()


def checked_window(chromium: Browser, shim: ShimProcess, width: int) -> Iterator[Page]:
    """Yield the page of a shim, and check at the end that it has no script error and is not wider than its window."""
    problems: list[str] = []
    window = open_page(chromium, shim, width, problems)
    expect(rows(window).first).to_be_visible(timeout=WAIT_MS)
    yield window
    assert not overflows(window)
    assert problems == []
    window.close()


def submitted_inputs(platform: RunPodPlatform) -> list[Any]:
    """Return the inputs of the jobs that the endpoint got."""
    return [job.input for job in platform.jobs.values()]


def test_an_older_job_is_updated(chromium: Browser, platform: RunPodPlatform, waiting_shim: ShimProcess) -> None:
    """A job that "Older jobs" loaded is updated when it ends, also while a filter hides newer jobs."""
    page = open_page(chromium, waiting_shim)
    expect(rows(page)).to_have_count(50, timeout=WAIT_MS)
    page.get_by_role("button", name="Older jobs").click()
    expect(rows(page)).to_have_count(NEW_JOBS + 3, timeout=WAIT_MS)
    expect(prompts(page).first).to_have_text("a sheet by Scenario")
    expect(prompts(page).last).to_have_text("the oldest job")
    page.get_by_label("State").select_option("unfinished")
    expect(rows(page)).to_have_count(1, timeout=WAIT_MS)
    platform.faults.clear()

    expect(rows(page).last).to_have_attribute("data-status", "success", timeout=2 * WAIT_MS)
    expect(rows(page).last.locator("img.thumb")).to_be_visible()
    page.close()


def test_filters_are_in_the_address(wide_page: Page) -> None:
    """Search, state and side select jobs, the address has them, and a page opened with that address has the same."""
    wide_page.get_by_role("searchbox").fill("SHEET scenario")
    expect(prompts(wide_page)).to_have_text(["a sheet by Scenario"], timeout=WAIT_MS)
    wide_page.get_by_role("searchbox").fill("hero")
    wide_page.get_by_label("State").select_option("failure")
    wide_page.get_by_label("Side").select_option("own")
    expect(prompts(wide_page)).to_have_text([LONG.strip()], timeout=WAIT_MS)
    assert wide_page.url.endswith("#search=hero&status=failure&side=own")
    wide_page.get_by_role("button", name="Clear").click()
    expect(rows(wide_page)).to_have_count(50, timeout=WAIT_MS)
    wide_page.evaluate("location.hash = '#search=job_005'")

    expect(prompts(wide_page)).to_have_text(["knight 5"], timeout=WAIT_MS)
    expect(wide_page.get_by_role("searchbox")).to_have_value("job_005")


def test_a_row_and_its_details(wide_page: Page) -> None:
    """Scenario's job has its side and creative units; a failed job has its error as text and the remedy of its code."""
    row = rows(wide_page).filter(has_text="a sheet by Scenario")
    details = open_details(wide_page.locator("[data-status=failure]"))

    expect(row.locator(".origin")).to_contain_text("Scenario")
    expect(row.locator(".cost")).to_contain_text("5 units")
    expect(details.locator(".error")).to_have_text(re.compile("No <memory>.*Request a smaller size"))


def test_a_job_runs_again_with_its_seed(wide_page: Page, platform: RunPodPlatform) -> None:
    """A new row appears at the top, and the endpoint gets the inputs of the first job."""
    before = len(submitted_inputs(platform))
    open_details(rows(wide_page).filter(has_text="knight 61")).get_by_role("button", name="same seed").click()

    expect(prompts(wide_page).first).to_have_text("knight 61", timeout=WAIT_MS)
    expect(rows(wide_page).first).to_have_attribute("data-status", "success", timeout=WAIT_MS)
    again = [each for each in submitted_inputs(platform)[before:] if each["prompt"] == "knight 61"]
    assert [each["seed"] for each in again] == [61]


def test_an_image_becomes_the_input_of_a_new_job(page: Page, platform: RunPodPlatform) -> None:
    """The button "Use as input" makes the image the start image of the form, and the new job is img2img."""
    open_details(rows(page).filter(has_text="knight 60")).get_by_role("button", name="Use as input").click()
    expect(page.locator("#start-image")).to_contain_text("asset_060")
    prompt = f"an oil painting, {page.viewport_size}"
    generate(page, prompt)

    expect(prompts(page).first).to_have_text(prompt, timeout=WAIT_MS)
    expect(rows(page).first).to_have_attribute("data-status", "success", timeout=WAIT_MS)
    [sent] = [each for each in submitted_inputs(platform) if each["prompt"] == prompt]
    assert (sent["workflow"], sent["strength"], bool(sent["image"])) == ("img2img", 0.8, True)


def test_a_job_is_deleted_with_its_image(wide_page: Page) -> None:
    """After a question the row and the image are gone, and a page that is opened later does not have them."""
    row = rows(wide_page).filter(has_text="knight 59")
    image = open_details(row).get_by_role("link", name="Download").get_attribute("href")
    assert image is not None
    row.locator(".more > .actions").get_by_role("button", name="Delete").click()
    expect(wide_page.locator("#confirm")).to_contain_text("this job and its image")
    wide_page.locator("#confirm").get_by_role("button", name="Delete").click()
    expect(row).to_have_count(0, timeout=WAIT_MS)
    wide_page.reload()
    expect(rows(wide_page)).to_have_count(50, timeout=WAIT_MS)

    expect(row).to_have_count(0)
    origin = wide_page.evaluate("location.origin")
    assert requests.get(origin + image, timeout=60).status_code == 404


def test_the_full_view_is_used_with_the_keyboard(wide_page: Page) -> None:
    """Enter opens the image, the arrow keys show the next and the previous one, Esc closes, and the focus returns."""
    details = open_details(rows(wide_page).filter(has_text="knight 45"))
    details.get_by_role("button", name="Full size").focus()
    wide_page.keyboard.press("Enter")
    viewer = wide_page.get_by_role("dialog", name="Image")
    image = viewer.get_by_role("img")
    expect(image).to_have_attribute("alt", "knight 45")
    assert image.evaluate("image => image.decode().then(() => image.naturalWidth)") == 8
    wide_page.keyboard.press("ArrowRight")
    expect(image).to_have_attribute("alt", "knight 44")
    wide_page.keyboard.press("ArrowLeft")
    expect(image).to_have_attribute("alt", "knight 45")
    wide_page.keyboard.press("Escape")

    expect(viewer).to_be_hidden()
    expect(details.get_by_role("button", name="Full size")).to_be_focused()


def test_a_lost_connection_is_shown_and_ends(wide_page: Page) -> None:
    """Without a connection there is an alert with the next attempt. With one, the alert is gone."""
    wide_page.context.set_offline(True)
    expect(wide_page.get_by_role("alert").filter(has_text="Trying again in")).to_be_visible(timeout=WAIT_MS)
    wide_page.context.set_offline(False)

    expect(wide_page.locator("#connection")).to_be_hidden(timeout=WAIT_MS)


def test_an_administrator_acts_for_another_caller(chromium: Browser, waiting_shim: ShimProcess) -> None:
    """The page of an administrator has the jobs of all callers by name, with a filter, and cancels one of them."""
    window = open_page(chromium, waiting_shim, key=OTHER_KEY, secret=OTHER_SECRET, fragment="#status=unfinished")
    row = rows(window).filter(has_text="the oldest job")
    expect(row.locator(".caller")).to_contain_text(KEY, timeout=WAIT_MS)
    open_details(row).get_by_role("button", name="Cancel").click()
    expect(row).to_have_attribute("data-status", "canceled", timeout=WAIT_MS)
    window.get_by_role("button", name="Clear").click()
    window.get_by_label("Caller").select_option(OTHER_KEY)
    expect(prompts(window)).to_have_text(["a castle of another caller"], timeout=WAIT_MS)
    window.close()
    url, headers = f"{waiting_shim.base_url}/jobs", {"X-Shim-Caller": OTHER}

    assert requests.get(url, auth=(KEY, SECRET), headers=headers, timeout=60).status_code == 403
