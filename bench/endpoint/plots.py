"""Draws the plots of one benchmark, or of several, as PNG files. The colours suit colour-blind readers (Okabe, Ito)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullFormatter, NullLocator

from bench.endpoint.figures import DONE, STAGES

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLES = ("-", "--", ":", "-.")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DPI = 150
STYLE: dict[Any, Any] = {
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddde6",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
}
Run = Mapping[str, Any]
Plot = tuple[str, str, Path]


def draw_all(runs: Sequence[Run], names: Sequence[str], folder: Path) -> list[Plot]:
    """Draw every plot into `folder`; return each with its title, description and path."""
    plots = []
    for name, (title, drawer, columns, alt) in DRAWERS.items():
        with mpl.rc_context(STYLE):
            figure = Figure(figsize=(11, 5.2))
            drawer(list(figure.subplots(1, columns, squeeze=False)[0]), runs, names)
            path = folder / f"{name}.png"
            figure.savefig(path, dpi=DPI)
        plots.append((title, alt, path))
    return plots


def add_legend(axis: Axes, **place: Any) -> None:  # noqa: ANN401 - matplotlib's own arguments
    """Add a legend if the axis has labelled lines."""
    if axis.get_legend_handles_labels()[0]:
        axis.legend(fontsize=9, **place)


def latency(axes: Sequence[Axes], runs: Sequence[Run], names: Sequence[str]) -> None:
    """Draw the distribution of the job duration at each level, and the stages at the lowest level with results."""
    left, right = axes
    concurrencies = sorted({level["concurrency"] for run in runs for level in run["levels"]})
    for number, (run, name) in enumerate(zip(runs, names, strict=True)):
        for level in run["levels"]:
            index = concurrencies.index(level["concurrency"]) % len(COLOURS)
            took = sorted(each["ended_s"] - each["begun_s"] for each in level["samples"] if each["end"] == DONE)
            if took:
                label = f"{level['concurrency']} concurrent (n = {len(took)})"
                label = f"{name}: {label}" if len(runs) > 1 else label
                style = STYLES[number if len(runs) > 1 else index % len(STYLES)]
                left.ecdf(took, color=COLOURS[index], linestyle=style, linewidth=2, label=label)
    for share in (0.5, 0.95):
        left.axhline(share, color="#777788", linewidth=0.8)
        left.text(1.01, share, f"p{share * 100:.0f}", transform=left.get_yaxis_transform(), va="center", fontsize=9)
    left.set(title="All stages", xlabel="seconds", ylabel="share of the jobs", ylim=(0, 1.03))
    left.set_xlim(left=0)
    add_legend(left, loc="upper left", bbox_to_anchor=(0, -0.15), ncols=max(2, len(runs)))
    stages(right, runs, names)


def stages(axis: Axes, runs: Sequence[Run], names: Sequence[str]) -> None:
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
            axis.plot([p50, p95], [y, y], color="black", linewidth=1.2)
            axis.plot([p95], [y], marker="|", color="black", markersize=9)
            axis.annotate(
                f"{p50:.2f} / {p95:.2f}",
                (max(p50, p95), y),
                xytext=(6, 0),
                textcoords="offset points",
                va="center",
                fontsize=9,
            )
    concurrencies = {level["concurrency"] for level in lowest_levels if level}
    axis.set(
        title=f"By stage, {' and '.join(map(str, sorted(concurrencies)))} concurrent: p50 / p95",
        xlabel="seconds",
        xlim=(0, longest * 1.35 or 1.0),
        yticks=range(len(shown_stages)),
        yticklabels=[STAGES[stage] for stage in shown_stages],
    )
    axis.invert_yaxis()
    axis.grid(visible=False, axis="y")
    if len(runs) > 1:
        add_legend(axis, loc="lower right")


def throughput(axes: Sequence[Axes], runs: Sequence[Run], names: Sequence[str]) -> None:
    """Draw the images per minute, and the job duration (p50 and p95), by concurrency."""
    left, right = axes
    for number, (run, name) in enumerate(zip(runs, names, strict=True)):
        levels = [level for level in run["levels"] if level["images_per_min"]]
        if not levels:
            continue
        concurrencies = [level["concurrency"] for level in levels]
        colour, prefix = COLOURS[number], f"{name}, " if len(runs) > 1 else ""
        per_minute = [level["images_per_min"] for level in levels]
        left.plot(concurrencies, per_minute, marker=MARKERS[number], color=colour, linewidth=2, label=name)
        linear = [per_minute[0] * each / concurrencies[0] for each in concurrencies]
        left.plot(concurrencies, linear, color=colour, linestyle=":", linewidth=1.2, zorder=1)
        for x, y in zip(concurrencies, per_minute, strict=True) if len(runs) == 1 else ():
            left.annotate(f"{y:.3g}", (x, y), xytext=(0, -15), textcoords="offset points", ha="center", fontsize=9)
        left.set_ylim(0, max(*per_minute, left.get_ylim()[1] if number else 0, 1e-9) * 1.25)
        for which, style, marker in (("p50", "-", "o"), ("p95", "--", "^")):
            took = [level["total"][which] for level in levels]
            right.plot(
                concurrencies, took, linestyle=style, marker=marker, color=colour, linewidth=2, label=f"{prefix}{which}"
            )
    ticks = sorted({level["concurrency"] for run in runs for level in run["levels"]})
    for axis in axes:
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_locator(FixedLocator(ticks))
        axis.xaxis.set_minor_locator(NullLocator())
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.set_xticks(ticks, [str(tick) for tick in ticks])
        axis.set(xlabel="concurrent jobs")
    left.set(title="Throughput", ylabel="images per minute")
    right.set(title="Latency", ylabel="seconds per job")
    right.set_ylim(bottom=0)
    add_legend(right, loc="upper left")
    if len(runs) > 1:
        add_legend(left, loc="upper left")


def cost(axes: Sequence[Axes], runs: Sequence[Run], names: Sequence[str]) -> None:
    """Draw the cost per image at each level, computed in both ways, as bars."""
    [axis] = axes
    ticks = sorted({level["concurrency"] for run in runs for level in run["levels"]})
    kinds = (("by_time", "time of all workers", ""), ("by_execution", "execution of the jobs", "//"))
    width = 0.8 / (len(runs) * len(kinds))
    highest = 0.0
    for number, (run, name) in enumerate(zip(runs, names, strict=True)):
        for index, (key, basis, hatch) in enumerate(kinds):
            slot = number * len(kinds) + index
            label = f"{name}: {basis}" if len(runs) > 1 else basis
            for level in run["levels"]:
                usd = (level["cost"] or {}).get(key)
                if usd is None:
                    continue
                x = ticks.index(level["concurrency"]) + (slot - (len(runs) * len(kinds) - 1) / 2) * width
                colour = COLOURS[number]
                face = colour if not hatch else "white"
                axis.bar(x, 100 * usd, width * 0.92, color=face, edgecolor=colour, hatch=hatch, label=label or None)
                axis.annotate(
                    f"{100 * usd:.3f}",
                    (x, 100 * usd),
                    xytext=(0, 3),
                    textcoords="offset points",
                    ha="center",
                    fontsize=9,
                )
                highest, label = max(highest, 100 * usd), ""
    axis.set(
        title="Cost per image on busy workers",
        xlabel="concurrent jobs",
        ylabel="US cents per image",
        xticks=range(len(ticks)),
        xticklabels=[str(tick) for tick in ticks],
        ylim=(0, highest * 1.3 or 1.0),
    )
    axis.grid(visible=False, axis="x")
    if highest:
        add_legend(axis, loc="upper right", ncols=2)
    else:
        axis.text(0.5, 0.5, "The provider does not report execution times", transform=axis.transAxes, ha="center")


DRAWERS = {
    "latency": (
        "How long a job takes",
        latency,
        2,
        "Left: the share of jobs that took at most that long. Right: p50 of each stage (bar) and its p95 (line).",
    ),
    "throughput": (
        "Throughput and latency by concurrency",
        throughput,
        2,
        "Left: images per minute; dotted: linear scaling of the first level. Right: how long a job takes.",
    ),
    "cost": (
        "Cost per image",
        cost,
        1,
        "From the time of all workers that ran, and from the execution time of each job, rounded up to seconds.",
    ),
}
"""The plots by file name: title, function, number of panels, and description."""
