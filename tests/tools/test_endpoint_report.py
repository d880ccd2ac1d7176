"""The report of `scripts/validate_endpoint` in a real browser. tests/test_readme.py runs the script."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from playwright.sync_api import expect

from comfy_client import __version__
from tests.browser import WIDTHS, browser, overflows
from tools.endpoint_report import EndpointCase, EndpointRun, case_image, report_page

pytestmark = pytest.mark.slow
INPUTS = {"width": 64, "height": 32, "steps": 2, "seed": 42}
GRAPH = {str(number): {"class_type": "KSampler", "inputs": {"seed": number}} for number in range(200)}
"""A graph whose JSON is longer than 4,000 characters."""


def finished_run(comfyui: str, *files: Path) -> EndpointRun:
    """Return a run of which one case passed, one failed, and one has not run."""
    outcome: dict[str, Any] = {"versions": {"worker": "9.9.9", "comfyui": comfyui}, "gpu": "NVIDIA H200", "cost": 0.5}
    passed = EndpointCase("graph", "a whole graph runs", {"workflow": GRAPH}, outcome, [*map(case_image, files)], 1.25)
    failed = EndpointCase("txt2img", "a <prompt> becomes an image", {"prompt": "a knight"}, took_s=2.0, problem="boom")
    return EndpointRun(
        "endpoint ep at RunPod", "2026-11-29", INPUTS, [passed, failed, EndpointCase("c", "it ends", {})]
    )


@pytest.mark.parametrize("width", WIDTHS)
def test_the_report_shows_verdicts_facts_and_whole_json(width: int, tmp_path: Path) -> None:
    """The report fits its window, and has the verdicts, the tested endpoint and versions, images and complete JSON."""
    Image.new("RGB", (2048, 1024)).save(tmp_path / "graph-1.png")
    report = report_page(finished_run("0.1.0", tmp_path / "graph-1.png"))
    (tmp_path / "index.html").write_text(report, encoding="utf-8")
    loaded: list[str] = []
    with browser() as chromium:
        page = chromium.new_page(viewport={"width": width, "height": 900})
        page.on("request", lambda request: loaded.append(request.url))
        page.goto((tmp_path / "index.html").as_uri())

        expect(page.get_by_text("1 of 3 passed")).to_be_visible()
        expect(page.locator(".cards .badge")).to_have_text(["passed", "failed", "not run"])
        expect(page.get_by_role("heading", level=2).nth(1)).to_have_text("A <prompt> becomes an image")
        expect(page.locator("#txt2img .error")).to_have_text("boom")
        expect(page.locator("dl")).to_contain_text("endpoint ep at RunPod")
        expect(page.locator("dl")).to_contain_text("$0.5000 of GPU time")
        expect(page.locator("dl")).to_contain_text(f"client {__version__}, worker 9.9.9, comfyui 0.1.0")
        page.locator("#graph summary").first.click()
        assert page.locator("#graph pre").first.inner_text().count("KSampler") == 200
        assert not overflows(page)
        page.locator("#graph a.open").click()
        assert page.locator("#viewer img").evaluate("image => image.decode().then(() => image.naturalWidth)") == 2048
    assert {url.partition(":")[0] for url in loaded} <= {"file", "data"}


def test_the_report_shows_its_images_without_its_folder(tmp_path: Path) -> None:
    """The page has small copies of its images, also for the view at full size, so that it can be sent as one file."""
    Image.new("RGB", (2048, 1024)).save(tmp_path / "graph-1.png")
    report = report_page(finished_run("0.1.0", tmp_path / "graph-1.png"))
    (tmp_path / "sent.html").write_text(report, encoding="utf-8")
    (tmp_path / "graph-1.png").unlink()
    with browser() as chromium:
        page = chromium.new_page()
        page.goto((tmp_path / "sent.html").as_uri())
        page.locator("#graph a.open").click()

        expect(page.locator("#viewer img")).to_have_js_property("naturalWidth", 512)
        assert page.locator("#graph img").evaluate("image => image.decode().then(() => image.naturalWidth)") == 512


def test_the_report_of_a_simulator_says_so() -> None:
    """The page of a simulated ComfyUI says `simulator` beside its verdict, and that of a real one does not."""
    assert "simulator, no GPU" in report_page(finished_run("0.1.0+simulator"))
    assert "simulator, no GPU" not in report_page(finished_run("0.1.0"))
