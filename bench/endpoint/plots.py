"""Draws the plots of one benchmark, or of several, as SVG files, one plot in each.

The text and the ground of a plot have the colours of the pages, light or dark as the reader's system. The lines and
bars suit colour-blind readers (Okabe, Ito). A plot says what was measured, because it may be shown without its page.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullFormatter, NullLocator

from bench.endpoint.figures import DONE, STAGES, cost_per_image, duration_pair, is_simulated, measured_on
from comfy_client.pages import colours

PAGE_COLOURS: Mapping[str, str] = dict(re.findall(r"--([\w-]+): (#\w{6});", colours().partition("@media")[0]))
"""The light colours of the pages by CSS variable. In an SVG file each of them is replaced by its variable."""
TEXT, SOFT, LINE, CARD, WARNING = (PAGE_COLOURS[name] for name in ("text", "soft", "line", "card", "wait"))
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#999999")
STYLES = ("-", "--", ":", "-.")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
SIZE_INCHES = (5.6, 3.9)
"""Small, so that the text can be read when the plot is 360 pixels wide."""
TITLE_PT = 12
POINTS_PER_INCH = 72
STYLE: dict[Any, Any] = {
    "font.size": 10,
    "text.color": TEXT,
    "axes.labelcolor": TEXT,
    "axes.edgecolor": SOFT,
    "axes.facecolor": "none",
    "figure.facecolor": CARD,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.labelcolor": TEXT,
    "ytick.labelcolor": TEXT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": LINE,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.w_pad": 0.1,
    "figure.constrained_layout.h_pad": 0.1,
    "svg.fonttype": "none",
    "svg.hashsalt": "benchmark",
}
Run = Mapping[str, Any]
Drawer = Callable[[Axes, Sequence[Run], Sequence[str]], None]


@dataclass(frozen=True)
class Plot:
    """A plot: its title, a description for readers who do not see it, and its SVG file."""

    title: str
    description: str
    path: Path


def draw_all(runs: Sequence[Run], names: Sequence[str], folder: Path) -> list[Plot]:
    """Draw every plot into `folder` and return them."""
    plots = []
    for name, (title, drawer, description) in DRAWERS.items():
        path = folder / f"{name}.svg"
        with mpl.rc_context(STYLE):
            figure = Figure(figsize=SIZE_INCHES)
            axis = figure.subplots()
            drawer(axis, runs, names)
            _write_title(figure, title, _source_lines(runs, names), warns=any(map(is_simulated, runs)))
            figure.savefig(path, format="svg", metadata={"Date": None})
        path.write_text(_with_page_colours(path.read_text(encoding="utf-8")), encoding="utf-8")
        plots.append(Plot(title, description, path))
    return plots


def _source_lines(runs: Sequence[Run], names: Sequence[str]) -> list[str]:
    """Return what each run measured, for the plot: one line for each, with its name if there are several."""
    return [
        f"{name}: {measured_on(run)}" if len(runs) > 1 else measured_on(run)
        for run, name in zip(runs, names, strict=True)
    ]


def _write_title(figure: Figure, title: str, source_lines: Sequence[str], *, warns: bool) -> None:
    """Write the title at the top left, and below it the lines on what was measured, in bold if `warns`."""
    room_for_source = "\n" * len(source_lines)
    figure.suptitle(title + room_for_source, x=0.03, ha="left", fontsize=TITLE_PT, fontweight="bold")
    y = 1 - 2 * TITLE_PT / POINTS_PER_INCH / SIZE_INCHES[1]
    colour, weight = (WARNING, "bold") if warns else (SOFT, "normal")
    figure.text(0.03, y, "\n".join(source_lines), va="top", fontsize=9, color=colour, fontweight=weight)


def _with_page_colours(svg: str) -> str:
    """Return an SVG document whose page colours are CSS variables, with the style sheet that defines them."""
    for name, value in PAGE_COLOURS.items():
        svg = svg.replace(f": {value}", f": var(--{name})")
    return svg.replace("<defs>", f"<style>{colours()}</style>\n <defs>", 1)


def _add_legend(axis: Axes, **place: Any) -> None:  # noqa: ANN401 - matplotlib's own arguments
    """Add a legend if the axis has labelled lines."""
    if axis.get_legend_handles_labels()[0]:
        axis.legend(**place)


def draw_latency(axis: Axes, runs: Sequence[Run], names: Sequence[str]) -> None:
    """Draw the distribution of the job duration at each level."""
    concurrencies = _concurrencies(runs)
    for number, (run, name) in enumerate(zip(runs, names, strict=True)):
        for level in run["levels"]:
            index = concurrencies.index(level["concurrency"]) % len(COLOURS)
            took = sorted(each["ended_s"] - each["begun_s"] for each in level["samples"] if each["end"] == DONE)
            if took:
                label = f"{level['concurrency']} concurrent (n = {len(took)})"
                label = f"{name}: {label}" if len(runs) > 1 else label
                style = STYLES[number if len(runs) > 1 else index % len(STYLES)]
                axis.ecdf(took, color=COLOURS[index], linestyle=style, linewidth=2, label=label)
    for share in (0.5, 0.95):
        axis.axhline(share, color=SOFT, linewidth=0.8)
        axis.text(1.01, share, f"p{share * 100:.0f}", transform=axis.get_yaxis_transform(), va="center", fontsize=9)
    axis.set(xlabel="seconds", ylabel="share of the jobs", ylim=(0, 1.03))
    axis.set_xlim(left=0)
    _add_legend(axis, loc="upper left", bbox_to_anchor=(-0.1, -0.18), ncols=2)


def draw_stages(axis: Axes, runs: Sequence[Run], names: Sequence[str]) -> None:
    """Draw p50 and p95 of each stage, for each run at its first level with stages."""
    lowest_levels = [next((level for level in run["levels"] if level["stages"]), None) for run in runs]
    shown_stages = [stage for stage in STAGES if any(level and stage in level["stages"] for level in lowest_levels)]
    height = 0.72 / len(runs)
    longest = max(
        (level["stages"][stage]["p95"] for level in lowest_levels if level for stage in level["stages"]), default=1.0
    )
    for number, (level, name) in enumerate(zip(lowest_levels, names, strict=True)):
        for row, stage in enumerate(shown_stages):
            if level is None or stage not in level["stages"]:
                continue
            p50, p95 = level["stages"][stage]["p50"], level["stages"][stage]["p95"]
            y = row + (number - (len(runs) - 1) / 2) * height
            axis.barh(y, p50, height * 0.9, color=COLOURS[number], label=name if row == 0 and len(runs) > 1 else None)
            axis.plot([p50, p95], [y, y], color=TEXT, linewidth=1.2)
            axis.plot([p95], [y], marker="|", color=TEXT, markersize=9)
            axis.annotate(
                duration_pair(p50, p95),
                (max(p50, p95), y),
                xytext=(6, 0),
                textcoords="offset points",
                va="center",
                fontsize=9,
            )
    concurrencies = {level["concurrency"] for level in lowest_levels if level}
    axis.set(
        xlabel=f"seconds, {' and '.join(map(str, sorted(concurrencies)))} concurrent; p50 (bar) / p95 (line)",
        xlim=(0, longest * 1.5 or 1.0),
        yticks=range(len(shown_stages)),
        yticklabels=[STAGES[stage] for stage in shown_stages],
    )
    axis.invert_yaxis()
    axis.grid(visible=False, axis="y")
    if len(runs) > 1:
        _add_legend(axis, loc="lower right")


def draw_throughput(axis: Axes, runs: Sequence[Run], names: Sequence[str]) -> None:
    """Draw the images per minute by concurrency, and what they would be if more jobs cost no speed."""
    for number, (name, levels) in enumerate(_measured_levels(runs, names)):
        concurrencies = [level["concurrency"] for level in levels]
        per_minute = [level["images_per_min"] for level in levels]
        colour, prefix = COLOURS[number], f"{name}, " if len(runs) > 1 else ""
        label = f"{prefix}measured"
        axis.plot(concurrencies, per_minute, marker=MARKERS[number], color=colour, linewidth=2, label=label)
        linear = [per_minute[0] * each / concurrencies[0] for each in concurrencies]
        label = f"{prefix}linear from the first level"
        axis.plot(concurrencies, linear, color=colour, linestyle=":", linewidth=1.2, zorder=1, label=label)
        for x, y in zip(concurrencies, per_minute, strict=True) if len(runs) == 1 else ():
            axis.annotate(f"{y:.3g}", (x, y), xytext=(0, -15), textcoords="offset points", ha="center", fontsize=9)
        axis.set_ylim(0, max(*per_minute, axis.get_ylim()[1] if number else 0, 1e-9) * 1.4)
    _use_concurrencies(axis, _concurrencies(runs))
    axis.set(ylabel="images per minute")
    _add_legend(axis, loc="lower right")


def draw_duration(axis: Axes, runs: Sequence[Run], names: Sequence[str]) -> None:
    """Draw the job duration (p50 and p95) by concurrency."""
    for number, (name, levels) in enumerate(_measured_levels(runs, names)):
        prefix = f"{name}, " if len(runs) > 1 else ""
        for which, style, marker in (("p50", "-", "o"), ("p95", "--", "^")):
            axis.plot(
                [level["concurrency"] for level in levels],
                [level["total"][which] for level in levels],
                linestyle=style,
                marker=marker,
                color=COLOURS[number],
                linewidth=2,
                label=f"{prefix}{which}",
            )
    _use_concurrencies(axis, _concurrencies(runs))
    axis.set(ylabel="seconds per job")
    axis.set_ylim(bottom=0)
    _add_legend(axis, loc="upper left")


def draw_cost(axis: Axes, runs: Sequence[Run], names: Sequence[str]) -> None:
    """Draw the cost per image at each level as bars."""
    ticks = _concurrencies(runs)
    width = 0.8 / len(runs)
    highest = 0.0
    for number, (run, name) in enumerate(zip(runs, names, strict=True)):
        costs = {level["concurrency"]: usd for level in run["levels"] if (usd := cost_per_image(level)) is not None}
        places = [ticks.index(each) + (number - (len(runs) - 1) / 2) * width for each in costs]
        cents = [100 * usd for usd in costs.values()]
        bars = axis.bar(places, cents, width * 0.92, color=COLOURS[number], label=name if len(runs) > 1 else None)
        axis.bar_label(bars, fmt="%.3f", padding=3, fontsize=9)
        highest = max([highest, *cents])
    axis.set(
        xlabel="concurrent jobs",
        ylabel="US cents per image",
        xticks=range(len(ticks)),
        xticklabels=[str(tick) for tick in ticks],
        ylim=(0, highest * 1.3 or 1.0),
    )
    axis.grid(visible=False, axis="x")
    if not highest:
        axis.text(0.5, 0.5, "no price, or no execution times", transform=axis.transAxes, ha="center")
    elif len(runs) > 1:
        _add_legend(axis, loc="upper right", ncols=2)


def _concurrencies(runs: Sequence[Run]) -> list[int]:
    return sorted({level["concurrency"] for run in runs for level in run["levels"]})


def _measured_levels(runs: Sequence[Run], names: Sequence[str]) -> list[tuple[str, list[Mapping[str, Any]]]]:
    """Return the levels with images of each run that has some, with the run's name."""
    found = [
        (name, [level for level in run["levels"] if level["images_per_min"]])
        for run, name in zip(runs, names, strict=True)
    ]
    return [(name, levels) for name, levels in found if levels]


def _use_concurrencies(axis: Axes, ticks: Sequence[int]) -> None:
    """Make the number of concurrent jobs the x axis, with a tick for each level."""
    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_locator(FixedLocator(ticks))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.set_xticks(ticks, [str(tick) for tick in ticks])
    axis.set(xlabel="concurrent jobs")


DRAWERS: Mapping[str, tuple[str, Drawer, str]] = {
    "latency": (
        "How long a job takes",
        draw_latency,
        "The share of jobs that took at most that long, by the number of concurrent jobs.",
    ),
    "stages": ("Stages of a job", draw_stages, "p50 of each stage as a bar, and its p95 as a line."),
    "throughput": (
        "Images per minute",
        draw_throughput,
        "Images per minute by the number of concurrent jobs. Dotted: the first level's, times the number of jobs.",
    ),
    "duration": (
        "Duration by concurrency",
        draw_duration,
        "p50 and p95 of the duration of a job, by the number of concurrent jobs.",
    ),
    "cost": (
        "Cost per image on busy workers",
        draw_cost,
        "From the time of all workers that ran; from the execution times of the jobs if that is unknown.",
    ),
}
"""The plots by file name: title, function and description."""
