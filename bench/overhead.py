"""Measures what a job takes besides sampling on a real ComfyUI, beside the stock worker's handler in the same run."""

from __future__ import annotations

import argparse
import copy
import importlib
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from comfy_core.comfyui.server import ComfyServer
from comfy_core.graphs import Graph
from comfy_core.workflows import default_directory, load_workflows, render
from worker.jobs import Control, Worker, run_job
from worker.settings import Settings

_INPUTS = {"prompt": "a knight", "seed": 5, "steps": 1, "width": 256, "height": 256}
_SIDE = 1024

RunJob = Callable[[Graph, int], Mapping[str, Any]]


def add_options(parser: argparse.ArgumentParser, on_simulator: Callable[[argparse.Namespace], None]) -> None:
    """Add the options. Without --comfyui, `on_simulator` is run instead of `beside_stock`."""
    parser.add_argument("--comfyui", help="URL of a real ComfyUI to measure on, instead of the simulator")
    parser.add_argument("--stock", help="folder with worker-comfyui's handler.py, to measure beside it")
    parser.add_argument("--jobs", type=int, default=15, help="jobs of each worker with --comfyui; %(default)s")
    parser.set_defaults(run=lambda options: (beside_stock if options.comfyui else on_simulator)(options))


def beside_stock(options: argparse.Namespace) -> None:
    """Print the time of a job whose image is in ComfyUI's cache, so that only the save node runs, for both workers.

    The image is sampled at 256 x 256 and scaled to 1024 x 1024 in the first job, which is not counted.
    """
    workflows = load_workflows(default_directory())
    [graph] = render(workflows["flux-dev-txt2img"], _INPUTS)
    [saver] = [node for node in graph.values() if node["class_type"] == "SaveImage"]
    size = {"width": _SIDE, "height": _SIDE, "upscale_method": "lanczos", "crop": "disabled"}
    graph["scale"] = {"class_type": "ImageScale", "inputs": {"image": saver["inputs"]["images"], **size}}
    saver["inputs"]["images"] = ["scale", 0]
    server = ComfyServer(options.comfyui)
    worker = Worker(server, workflows, Settings(job_timeout_s=600))
    runs: dict[str, RunJob] = {
        "this worker": lambda graph, number: run_job(
            worker, {"id": str(number), "input": {"workflow": graph}}, Control()
        )
    }
    if options.stock:
        runs["stock worker"] = _stock(options.stock, options.comfyui)
    totals: dict[str, list[float]] = {name: [] for name in runs}
    parts: dict[str, list[float]] = {}
    for number in range(options.jobs + 1):
        for name, run in runs.items():
            begun = time.monotonic()
            result = run(copy.deepcopy(graph), number)
            total_s = time.monotonic() - begun
            if not result.get("images"):
                sys.exit(f"scripts/bench: the job of the {name} failed: {result}")
            if number:
                totals[name].append(1000 * total_s)
                for part, seconds in result.get("timings", {}).items():
                    parts.setdefault(part, []).append(1000 * seconds)
    server.close()
    print(f"1024 x 1024 PNG on {options.comfyui}, only the save node runs, median of {options.jobs} jobs, ms")
    for name, values in {**totals, **parts}.items():
        print(f"  {name:40} {statistics.median(values):8.1f}   (minimum {min(values):.1f})")
    if options.stock:
        ours, stock = (statistics.median(totals[name]) for name in runs)
        print(f"  ratio                                    {ours / stock:8.2f}")


def _stock(folder: str, url: str) -> RunJob:
    """Import worker-comfyui's handler from `folder`; return a function that runs a job with it."""
    sys.path.insert(0, folder)
    module = importlib.import_module("handler")
    vars(module)["COMFY_HOST"] = url.removeprefix("http://")

    def run(graph: Graph, number: int) -> Mapping[str, Any]:
        # Another prefix in each job: ComfyUI would return the file of the job before.
        [saver] = [node for node in graph.values() if node["class_type"] == "SaveImage"]
        saver["inputs"]["filename_prefix"] = f"stock-{time.time_ns()}"
        result: Mapping[str, Any] = module.handler({"id": str(number), "input": {"workflow": graph}})
        return result

    return run
