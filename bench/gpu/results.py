"""The results: values, results.json and the Markdown table. No I/O."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from enum import StrEnum
from typing import Any, TypeAlias

from bench.gpu.flag_sets import FlagSet, Plan

FORMAT = 1
"""The version of the format of results.json."""
JsonObject: TypeAlias = dict[str, Any]
NOT_MEASURED = "not yet measured"
NOT_AVAILABLE = "not available"
MIB_PER_GIB = 1024


class Status(StrEnum):
    """How the measurement of a flag set ended."""

    MEASURED = "measured"
    FAILED = "failed"
    TIMED_OUT = "timed out"
    NOT_MEASURED = "not measured"


def figure(meaning: str) -> Any:  # noqa: ANN401 - a field, typed where it is declared
    """Return a field of Figures that is None until it is measured. results.json contains its meaning."""
    return field(default=None, metadata={"meaning": meaning})


@dataclass(frozen=True)
class Figures:
    """What was measured with one flag set. Each field describes itself."""

    command_line: tuple[str, ...] | None = figure("ComfyUI's arguments, as ComfyUI reports them.")
    page_cache: str | None = figure("Where the model files were before the boot: cold (on the disk), cached, partly.")
    boot_s: float | None = figure("Seconds from the query of the flags to a ComfyUI that lists the models.")
    first_step_s: float | None = figure("Seconds from the submission of the first image to the end of its first step.")
    first_image_s: float | None = figure("Seconds from the submission of the first image to its result.")
    load_s: float | None = figure("first_step_s without that of a later image: loading models, and compiling if set.")
    step_s: float | None = figure("Median seconds of a sampling step of the later images.")
    image_s: float | None = figure("Median seconds from the submission of a later image to its result, as base64.")
    peak_vram_mib: int | None = figure("Peak of the GPU's used memory in MiB, of all processes, by nvidia-smi.")


@dataclass(frozen=True)
class SetResult:
    """The result of one flag set.

    Attributes:
        flag_set: the flags.
        status: how the measurement ended. Figures that were measured before a failure are kept.
        figures: the figures.
        problem: why the status is not MEASURED.
        duration_s: seconds that the measurement took, including the start and end of ComfyUI.
    """

    flag_set: FlagSet
    status: Status
    figures: Figures = Figures()
    problem: str = ""
    duration_s: float = 0.0


@dataclass(frozen=True)
class Report:
    """All results of one call.

    Attributes:
        machine: the GPU, its driver, the CPU and the system.
        versions: ComfyUI, and the packages of its environment.
        plan: what was generated.
        models: where the model files are from, their size, and how long it took to write them.
        budget_s: maximum seconds of the whole call.
        used_s: seconds since the start of the call.
        sets: the results, in the order of the flag sets.
    """

    machine: Mapping[str, Any]
    versions: Mapping[str, str]
    plan: Plan
    models: Mapping[str, Any]
    budget_s: float
    used_s: float = 0.0
    sets: tuple[SetResult, ...] = ()

    def with_set(self, result: SetResult, used_s: float) -> Report:
        """Return the report with one more flag set."""
        return replace(self, sets=(*self.sets, result), used_s=used_s)

    def to_json(self) -> JsonObject:
        """Return the content of results.json. `fields` describes the figures of each set."""
        meanings = {each.name: each.metadata["meaning"] for each in fields(Figures)}
        return {"format": FORMAT, "fields": meanings, **asdict(self)}


HEADER = (
    "flag set",
    "flags",
    "s a step",
    "s an image",
    "peak VRAM",
    "boot",
    "load",
    "first image after",
)


def markdown_table(results: Sequence[SetResult]) -> str:
    """Return the table for docs/performance.md. A figure that does not exist is said to be so."""
    rows = [HEADER, ("---",) * len(HEADER), *(_row(result) for result in results)]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _row(result: SetResult) -> tuple[str, ...]:
    flag_set, figures = result.flag_set, result.figures
    flags = " ".join(flag_set.flags)
    first_s = (
        None if figures.boot_s is None or figures.first_image_s is None else figures.boot_s + figures.first_image_s
    )
    missing = {
        Status.MEASURED: NOT_AVAILABLE,
        Status.NOT_MEASURED: NOT_MEASURED,
    }.get(result.status, str(result.status))
    peak_mib = figures.peak_vram_mib
    load = _seconds(figures.load_s, missing, "{:.1f} s") + (f" ({figures.page_cache})" if figures.load_s else "")
    return (
        f"`{flag_set.name}`",
        (f"`{flags}`" if flags else "") + (" TorchCompileModel" if flag_set.is_compiled else ""),
        _seconds(figures.step_s, missing, "{:.3f}"),
        _seconds(figures.image_s, missing, "{:.2f}"),
        missing if peak_mib is None else f"{peak_mib / MIB_PER_GIB:.1f} GiB",
        _seconds(figures.boot_s, missing, "{:.1f} s"),
        load,
        _seconds(first_s, missing, "{:.1f} s"),
    )


def _seconds(value: float | None, missing: str, form: str) -> str:
    return missing if value is None else form.format(value)
