"""Reports of a benchmark: tables for the terminal, and one HTML page with its plots embedded."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from bench.endpoint.figures import STAGES

PAGE = Path(__file__).with_name("report.html")
NONE = "-"


def seconds(value: float | None) -> str:
    """Return seconds as a cell shows them: three digits."""
    if value is None:
        return NONE
    return f"{value:.0f} s" if value >= 100 else f"{value:.1f} s" if value >= 10 else f"{value:.2f} s"


def cents(usd: float | None) -> str:
    """Return a cost per image in cents."""
    return NONE if usd is None else f"{100 * usd:.3f} ¢"


def rate(value: float | None) -> str:
    """Return images per minute."""
    return NONE if value is None else f"{value:.1f}"


def level_rows(run: Mapping[str, Any]) -> list[list[str]]:
    """Return the rows of the table of levels; the first is its header."""
    rows = [["concurrent", "jobs", "ok", "failed", "not run", "p50", "p95", "images/min", "¢/image", "workers"]]
    for level in run["levels"]:
        total, cost = level["total"] or {}, level["cost"] or {}
        rows.append(
            [
                str(level["concurrency"]),
                str(level["asked"]),
                str(level["done"]),
                str(level["failed"]),
                str(level["cancelled"] + level["not_run"]),
                seconds(total.get("p50")),
                seconds(total.get("p95")),
                rate(level["images_per_min"]),
                cents(cost.get("by_time", cost.get("by_execution"))),
                str(level["workers"] or NONE),
            ]
        )
    return rows


def stage_rows(run: Mapping[str, Any]) -> list[list[str]]:
    """Return the rows of the table of stages: p50 and p95 at each level."""
    rows = [["p50 / p95 in s", *(f"{level['concurrency']} concurrent" for level in run["levels"])]]
    for name, words in STAGES.items():
        cells = [level["stages"].get(name) for level in run["levels"]]
        if any(cells):
            both = (f"{cell['p50']:.2f} / {cell['p95']:.2f}" if cell else NONE for cell in cells)
            rows.append([words, *both])
    return rows


def table(rows: Sequence[Sequence[str]]) -> str:
    """Return rows as text, the first column aligned left and the others right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        first, *others = (
            cell.ljust(width) if number == 0 else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        lines.append("  ".join([first, *others]).rstrip())
    return "\n".join(lines)


def cold_start_line(run: Mapping[str, Any]) -> str:
    """Return the outcome of the first job, in one or two sentences."""
    first = run["first_job"]
    if first is None:
        return "The first job did not end."
    health = f"Before it: {first['health']['sentence'] or first['health']['why']}."
    if first["error"]:
        return f"The first job failed: {first['error'][1].rstrip('.')}. {health}"
    took = f"{seconds(first['to_running_s'])} to a worker, {seconds(first['to_result_s'])} to its image"
    kind = "Cold start" if first["was_cold"] else "First job (no cold start)"
    said = "".join(f" After {at:.0f} s: {sentence}." for at, sentence in first["said"])
    return f"{kind}: {took}. {health}{said}"


def problems(run: Mapping[str, Any]) -> list[str]:
    """Return the warnings: failures by kind, and whether the benchmark was stopped early."""
    found = [f"Not complete: {run['ended_because']}."] if run["ended_because"] else []
    for level in run["levels"]:
        for where, kinds in (("", level["failures"]), ("warm-up, ", level["warmup_failures"])):
            found += [
                f"{where}{level['concurrency']} concurrent: {kind['count']} times {kind['code']}: {kind['message']}"
                for kind in kinds
            ]
    return found


def text(run: Mapping[str, Any]) -> str:
    """Return a benchmark for the terminal."""
    parts = [facts(run), cold_start_line(run), table(level_rows(run)), table(stage_rows(run)), *problems(run)]
    return "\n\n".join(parts)


def facts(run: Mapping[str, Any]) -> str:
    """Return one line with the provider, date, inputs, versions and price."""
    inputs = ", ".join(f"{name} {value}" for name, value in run["inputs"].items() if name != "prompt")
    versions = ", ".join(f"{name} {value}" for name, value in run["versions"].items())
    price = run["price"]
    pool = f"{price['pool']}, " if price["pool"] else ""
    costs = f"${price['usd_per_s']:.5f} per second ({pool}{price['source']})" if price["usd_per_s"] else price["source"]
    return f"{run['provider']}, {run['made_at']}. {inputs}. {versions}. {costs}."


def page(runs: Sequence[Mapping[str, Any]], names: Sequence[str], plots: Iterable[tuple[str, str, Path]]) -> str:
    """Return the report of one benchmark, or of several; each plot has a title, a description and a PNG."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    shown = [
        {
            "name": name,
            "facts": facts(run),
            "cold": cold_start_line(run),
            "problems": problems(run),
            "tables": [("By concurrency", level_rows(run)), ("By stage", stage_rows(run))],
            "json": json.dumps({key: value for key, value in run.items() if key != "levels"}, indent=1),
            "prompt": run["inputs"].get("prompt", ""),
        }
        for name, run in zip(names, runs, strict=True)
    ]
    figures = [
        {"title": title, "alt": alt, "data": base64.b64encode(path.read_bytes()).decode()} for title, alt, path in plots
    ]
    return environment.from_string(PAGE.read_text()).render(runs=shown, plots=figures)
