"""Formats benchmarks: tables for the terminal, and an HTML page that contains the plots."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2

from bench.endpoint.figures import EMPTY_CELL, STAGES, cost_per_image, duration, duration_pair, is_simulated
from comfy_client.pages import read_text, static_page

if TYPE_CHECKING:
    from bench.endpoint.plots import Plot  # imports matplotlib, which is slow

PAGE_TEMPLATE = Path(__file__).with_name("report.html")


def cents(usd: float | None) -> str:
    """Return a cost per image, in cents, for a table cell."""
    return EMPTY_CELL if usd is None else f"{100 * usd:.3f} ¢"


def images_per_minute(value: float | None) -> str:
    """Return images per minute for a table cell."""
    return EMPTY_CELL if value is None else f"{value:.1f}"


def level_rows(run: Mapping[str, Any]) -> list[list[str]]:
    """Return the rows of the table of levels; the first row is the header."""
    rows = [["concurrent", "jobs", "ok", "failed", "not run", "p50", "p95", "images/min", "¢/image", "workers"]]
    for level in run["levels"]:
        total = level["total"] or {}
        rows.append(
            [
                str(level["concurrency"]),
                str(level["jobs"]),
                str(level["done"]),
                str(level["failed"]),
                str(level["cancelled"] + level["not_run"]),
                duration(total.get("p50")),
                duration(total.get("p95")),
                images_per_minute(level["images_per_min"]),
                cents(cost_per_image(level)),
                str(level["workers"] or EMPTY_CELL),
            ]
        )
    return rows


def stage_rows(run: Mapping[str, Any]) -> list[list[str]]:
    """Return the rows of the table of stages: p50 and p95 at each level."""
    rows = [["p50 / p95", *(f"{level['concurrency']} concurrent" for level in run["levels"])]]
    for name, label in STAGES.items():
        cells = [level["stages"].get(name) for level in run["levels"]]
        if any(cells):
            formatted_cells = (duration_pair(cell["p50"], cell["p95"]) if cell else EMPTY_CELL for cell in cells)
            rows.append([label, *formatted_cells])
    return rows


def table(rows: Sequence[Sequence[str]]) -> str:
    """Return rows as aligned text: the first column to the left, the others to the right."""
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
    """Return the outcome of the first job in sentences, including why it waited."""
    first = run["first_job"]
    if first is None:
        return "The first job did not end."
    health = f"Before it: {first['health']['sentence'] or first['health']['why']}."
    if first["error"]:
        return f"The first job failed: {first['error'][1].rstrip('.')}. {health}"
    took = f"{duration(first['to_running_s'])} to a worker, {duration(first['to_result_s'])} to its image"
    kind = "Cold start" if first["was_cold"] else "First job (no cold start)"
    waits = "".join(f" After {at:.0f} s: {sentence}." for at, sentence in first["waits"])
    return f"{kind}: {took}. {health}{waits}"


def problems(run: Mapping[str, Any]) -> list[str]:
    """Return the problems of a benchmark: an early stop, and failed jobs by level and error code."""
    found = [f"Not complete: {run['ended_because']}."] if run["ended_because"] else []
    for level in run["levels"]:
        for prefix, kinds in (("", level["failures"]), ("warm-up, ", level["warmup_failures"])):
            found += [
                f"{prefix}{level['concurrency']} concurrent: {kind['count']} times {kind['code']}: {kind['message']}"
                for kind in kinds
            ]
    return found


def text(run: Mapping[str, Any]) -> str:
    """Return the report of one benchmark for the terminal."""
    fact_lines = "\n".join(f"{label:10}{value}" for label, value in facts(run).items())
    parts = [fact_lines, cold_start_line(run), table(level_rows(run)), table(stage_rows(run)), *problems(run)]
    return "\n\n".join(parts)


def facts(run: Mapping[str, Any]) -> dict[str, str]:
    """Return what was measured, when, with which inputs and versions, and the price, by label."""
    price = run["price"]
    pool = f"{price['pool']}, " if price["pool"] else ""
    costs = f"${price['usd_per_s']:.5f} per second ({pool}{price['source']})" if price["usd_per_s"] else price["source"]
    found = {
        "Provider": run["provider"],
        "GPU": "none: a simulator" if is_simulated(run) else run.get("gpu"),
        "Date": run["made_at"],
        "Images": ", ".join(f"{name} {value}" for name, value in run["inputs"].items() if name != "prompt"),
        "Versions": ", ".join(f"{name} {value}" for name, value in run["versions"].items()),
        "Price": costs,
    }
    return {label: value for label, value in found.items() if value}


def page(runs: Sequence[Mapping[str, Any]], names: Sequence[str], plots: Iterable[Plot]) -> str:
    """Return the HTML report of one or several benchmarks with their plots."""
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
        }
        for name, run in zip(names, runs, strict=True)
    ]
    simulated = [name for name, run in zip(names, runs, strict=True) if is_simulated(run)]
    title = f"Benchmark: {' and '.join(names)}" if len(runs) > 1 else "Benchmark"
    body = environment.from_string(read_text(PAGE_TEMPLATE)).render(
        title=title,
        simulators=""
        if not simulated
        else "simulator, no GPU" + (f": {', '.join(simulated)}" if len(runs) > 1 else ""),
        runs=shown,
        plots=[{"title": each.title, "description": each.description, "url": _data_url(each.path)} for each in plots],
    )
    return static_page(title, body, style=read_text(PAGE_TEMPLATE.with_suffix(".css")))


def _data_url(svg: Path) -> str:
    return f"data:image/svg+xml;base64,{base64.b64encode(svg.read_bytes()).decode()}"
