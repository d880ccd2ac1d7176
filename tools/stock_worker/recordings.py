"""Reads the recorded responses of both workers to the requests of CASES, and compares them."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Any

STOCK_WORKER, THIS_WORKER = Path(__file__).parent / "stock.json", Path(__file__).parent / "ours.json"
Outcome = dict[str, Any]


class Verdict(StrEnum):
    """How this worker's response compares to worker-comfyui's."""

    SAME = "same"
    DIFFERENT = "different"
    ONLY_OURS = "only this worker accepts it"
    BOTH_FAIL = "both fail"


def recorded(file: Path) -> dict[str, Outcome]:
    """Return the outcomes of a recording, by request."""
    outcomes: dict[str, Outcome] = json.loads(file.read_text())["outcomes"]
    return outcomes


def source_of(file: Path) -> str:
    """Return the name and version of the worker whose responses a recording contains, and the date."""
    return str(json.loads(file.read_text())["about"])


def verdict(stock: Outcome, ours: Outcome) -> Verdict:
    """Return how two outcomes compare. Completed outcomes are the same if all their recorded parts are equal."""
    if stock["status"] == "FAILED":
        return Verdict.BOTH_FAIL if ours["status"] == "FAILED" else Verdict.ONLY_OURS
    return Verdict.SAME if stock == ours else Verdict.DIFFERENT
