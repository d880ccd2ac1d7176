"""The report of `scripts/validate_endpoint` as a page: each case with its images, request and result."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
from PIL import Image

from comfy_client import __version__
from comfy_client.pages import read_text, static_page
from comfy_core.comfyui.responses import is_simulator

PREVIEW_SIDE = 512
"""Longer side of the small copies in the page, in pixels. The page with them can be sent without the folder."""
TEMPLATE = Path(__file__).with_suffix(".html")


@dataclass(frozen=True)
class CaseImage:
    """An image of a case: the name of its file, and a small copy as a data URL, which is in the page itself."""

    name: str
    preview: str


def case_image(file: Path) -> CaseImage:
    """Return an image file of a case with its small copy."""
    copy = io.BytesIO()
    with Image.open(file) as image:
        image.thumbnail((PREVIEW_SIDE, PREVIEW_SIDE))
        image.save(copy, "WEBP", quality=85)
    return CaseImage(file.name, f"data:image/webp;base64,{base64.b64encode(copy.getvalue()).decode()}")


@dataclass
class EndpointCase:
    """One job: the request, the expected and the actual outcome, and the problem if the outcome is wrong.

    Attributes:
        name: the name of the case, and of its files.
        expected: what must happen, as a sentence without a full stop.
        images: the images, whose files are in the report's folder.
        took_s: seconds from the request to the outcome; None before the case has run.
    """

    name: str
    expected: str
    request: dict[str, Any]
    outcome: dict[str, Any] = field(default_factory=dict)
    images: list[CaseImage] = field(default_factory=list)
    took_s: float | None = None
    problem: str = ""

    @property
    def verdict(self) -> str:
        """`passed`, `failed` or `not run`."""
        return "not run" if self.took_s is None else "failed" if self.problem else "passed"

    @property
    def prompt(self) -> str:
        """The prompt of the request; the name of the case for a graph."""
        return str(self.request.get("prompt", self.name))


@dataclass(frozen=True)
class EndpointRun:
    """A test of an endpoint.

    Attributes:
        endpoint: what was tested, such as `endpoint abc at RunPod`.
        begun_at: date and time of the start.
        inputs: width, height, steps and seed of the images.
        cases: the cases, including those that have not run yet.
    """

    endpoint: str
    begun_at: str
    inputs: Mapping[str, int]
    cases: Sequence[EndpointCase]

    @property
    def facts(self) -> dict[str, str]:
        """What was tested, when, with which versions, and what it cost, by label. Unknown facts are omitted."""
        outcomes = [case.outcome for case in self.cases]
        versions: dict[str, str] = next((outcome["versions"] for outcome in outcomes if outcome.get("versions")), {})
        gpu = next((outcome["gpu"] for outcome in outcomes if outcome.get("gpu")), "")
        costs = [outcome["cost"] for outcome in outcomes if outcome.get("cost") is not None]
        took_s = sum(case.took_s or 0 for case in self.cases)
        facts = {
            "Endpoint": self.endpoint,
            "Date": self.begun_at,
            "Duration": f"{took_s:.1f} s",
            "Cost": f"${sum(costs):.4f} of GPU time" if costs else "",
            "GPU": gpu,
            "Images": "{width} x {height}, {steps} steps, seed {seed}".format_map(self.inputs),
            "Versions": ", ".join(f"{name} {value}" for name, value in {"client": __version__, **versions}.items()),
        }
        return {label: value for label, value in facts.items() if value}

    @property
    def is_simulated(self) -> bool:
        """Whether the ComfyUI of the endpoint is the simulator."""
        return any(is_simulator(case.outcome.get("versions", {}).get("comfyui", "")) for case in self.cases)

    def count(self, verdict: str) -> int:
        """Return the number of cases with this verdict."""
        return sum(case.verdict == verdict for case in self.cases)


def report_page(run: EndpointRun) -> str:
    """Return the report as an HTML page, for the folder with the images and JSON files of its cases."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["json"] = lambda value: json.dumps(value, indent=2, ensure_ascii=False)
    return static_page("Endpoint report", environment.from_string(read_text(TEMPLATE)).render(run=run))
