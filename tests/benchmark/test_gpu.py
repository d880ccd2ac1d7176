"""The GPU benchmark: its time budget, its results, and a whole run at toy size on the simulator of ComfyUI."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.gpu.command import selected
from bench.gpu.flag_sets import FLAG_SETS, FlagSet, Plan
from bench.gpu.results import Figures, Report, SetResult, Status, markdown_table
from bench.gpu.runner import STOP_S, Budget, measured_sets
from bench.worker_setup import ROOT, make_comfyui, put_models
from comfy_core.error_codes import ErrorCode
from comfy_core.errors import JobError

SETS = tuple(FlagSet(name, "a test") for name in "abcd")
FIGURES = Figures(page_cache="cold", boot_s=10.0, first_image_s=30.5, load_s=12.0, step_s=0.25, image_s=5.5)

NVIDIA_SMI = """#!/bin/sh
case "$1" in
    *=memory.used) echo 20480 ;;
    *) echo "NVIDIA Test, 580.1, 24564 MiB, 450.00 W, 8.9" ;;
esac
"""
"""Prints what nvidia-smi prints for the two queries of bench.gpu.machine."""


class Measurement:
    """A measurement that takes `seconds` on a clock of its own, and ends with the error for its flag set, if any."""

    def __init__(self, seconds: float, errors: dict[str, Exception] | None = None) -> None:
        self.now = 0.0
        self.seconds = seconds
        self.errors = errors or {}
        self.limits: list[float] = []

    def __call__(self, flag_set: FlagSet, limit_s: float) -> Iterator[Figures]:
        """Yield two figures."""
        self.limits.append(limit_s)
        self.now += self.seconds
        yield Figures(boot_s=1.0)
        if flag_set.name in self.errors:
            raise self.errors[flag_set.name]
        yield Figures(boot_s=1.0, step_s=2.0)


def run(measurement: Measurement, total_s: float = 1000.0, set_limit_s: float = 180.0) -> list[SetResult]:
    """Return the results of all sets, with `total_s` for the measurements."""
    budget = Budget(total_s + STOP_S, set_limit_s, lambda: measurement.now, begun_at=0.0)
    return list(measured_sets(SETS, measurement, budget))


def test_a_flag_set_that_fails_keeps_its_first_figures_and_does_not_affect_the_others() -> None:
    """The second flag set fails after its boot; the other three are measured."""
    error = JobError.because(ErrorCode.OUT_OF_MEMORY, "no memory")

    results = run(Measurement(10, {"b": error}))

    assert [result.status for result in results] == ["measured", "failed", "measured", "measured"]
    assert results[1].figures == Figures(boot_s=1.0)
    assert "no memory" in results[1].problem


def test_a_flag_set_that_exceeds_its_time_limit_is_timed_out() -> None:
    """The error deadline_exceeded becomes the status `timed out`."""
    late = JobError.because(ErrorCode.DEADLINE_EXCEEDED)

    assert run(Measurement(10, {"a": late}))[0].status is Status.TIMED_OUT


def test_flag_sets_that_do_not_fit_into_the_budget_are_not_measured() -> None:
    """Of 100 s three sets take 40 s, 40 s and none: 20 s are less than the fastest set took."""
    results = run(Measurement(40), total_s=100)

    assert [result.status for result in results] == ["measured", "measured", "not measured", "not measured"]
    assert [result.duration_s for result in results] == [40, 40, 0, 0]
    assert results[2].problem.startswith("20 s of ")


def test_a_flag_set_gets_the_rest_of_the_budget_at_most() -> None:
    """The limits of sets that take 60 s are 100 s, then what is left of 180 s."""
    measurement = Measurement(60)

    run(measurement, total_s=180, set_limit_s=100)

    assert measurement.limits == [100, 100]  # 60 s are left for the third set, not more than the others took


def test_the_table_says_what_was_not_measured_and_why() -> None:
    """Each status has its own words; a figure that this machine does not report is not available."""
    results = [
        SetResult(FLAG_SETS[0], Status.MEASURED, FIGURES),
        SetResult(FLAG_SETS[3], Status.NOT_MEASURED),
        SetResult(FLAG_SETS[1], Status.FAILED, Figures(boot_s=9.0, peak_vram_mib=20480)),
    ]

    lines = markdown_table(results).splitlines()

    assert lines[2] == "| `default` |  | 0.250 | 5.50 | not available | 10.0 s | 12.0 s (cold) | 40.5 s |"
    assert lines[3].startswith(
        "| `fp8-matmul-compiler` | `--fast fp8_matrix_mult` TorchCompileModel | not yet measured |"
    )
    assert lines[4].endswith("| failed | failed | 20.0 GiB | 9.0 s | failed | failed |")


def test_the_results_describe_each_figure() -> None:
    """results.json needs no other document: `fields` has the meaning of each figure of a flag set."""
    report = Report({}, {}, Plan(), {}, 540.0).with_set(SetResult(FLAG_SETS[0], Status.MEASURED, FIGURES), 60.0)

    content = json.loads(json.dumps(report.to_json()))

    assert content["fields"].keys() == content["sets"][0]["figures"].keys()
    assert all(content["fields"].values())
    assert content["sets"][0]["flag_set"]["name"] == "default"


def test_an_unknown_flag_set_is_refused_with_the_known_ones() -> None:
    """--sets with a wrong name ends the command before anything is written."""
    assert [each.name for each in selected("compiler,default")] == ["default", "compiler"]
    with pytest.raises(SystemExit, match=r"no flag set fast.*fp8-matmul"):
        selected("fast")


def test_the_page_about_performance_has_a_row_for_each_flag_set() -> None:
    """A new flag set needs a row in docs/performance.md, measured or not."""
    page = (ROOT / "docs" / "performance.md").read_text()

    assert [each.name for each in FLAG_SETS if f"| `{each.name}` |" not in page] == []


@pytest.mark.slow
def test_the_whole_benchmark_at_toy_size(tmp_path: Path) -> None:
    """The default flags are measured on the simulator; the pinned ComfyUI's simulator does not know --fast."""
    comfyui, models, out = tmp_path / "comfyui", tmp_path / "models", tmp_path / "out"
    (comfyui / "comfy/text_encoders").mkdir(parents=True)
    (comfyui / "comfy/text_encoders/t5_config_xxl.json").write_text('{"num_layers": 24}')
    (comfyui / "comfyui_version.py").write_text('__version__ = "0.0.1"\n')
    make_comfyui(comfyui)
    put_models(models, size=1)
    nvidia_smi = tmp_path / "bin/nvidia-smi"
    nvidia_smi.parent.mkdir()
    nvidia_smi.write_text(NVIDIA_SMI)
    nvidia_smi.chmod(0o755)
    places = ["--comfyui", str(comfyui), "--python", sys.executable, "--models", str(models), "--out", str(out)]

    done = subprocess.run(
        [sys.executable, "-m", "bench.gpu", "--toy", "--sets", "default,fp8-matmul", *places],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PATH": f"{nvidia_smi.parent}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    assert done.returncode == 1, done.stderr  # one flag set failed
    results = json.loads((out / "results.json").read_text())
    default, fp8 = results["sets"]
    assert (default["status"], fp8["status"]) == ("measured", "failed")
    figures = default["figures"]
    assert 0 < figures["step_s"] < figures["image_s"] < results["used_s"]
    assert "--fast" in fp8["problem"] or "status 2" in fp8["problem"]
    assert figures["peak_vram_mib"] == 20480
    assert "--cache-classic" in figures["command_line"]  # a flag of the worker's own
    assert results["machine"]["gpu"]["driver_version"] == "580.1"
    assert results["versions"]["comfyui"] == "0.0.1"
    assert (out / "table.md").read_text() in done.stdout
    assert "--fast" in (out / "fp8-matmul.log").read_text()
