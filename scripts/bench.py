"""Benchmarks. Each prints medians and compares within one run: the machines are shared, and noisy."""

from __future__ import annotations

import argparse
import statistics
import sys
import time
import uuid

from comfy_client.comfyui.delivery import delivered
from comfy_client.comfyui.events import Addressed, Finished, Image, Started
from comfy_client.comfyui.server import ComfyServer
from comfy_client.request import read_request
from comfy_client.simulator import Simulator
from comfy_client.workflows import Graph, default_directory, load_workflows
from worker.jobs import Control, Worker, run_job

RUNS = 20


def overhead() -> None:
    """Print what one 1024 x 1024 PNG costs around ComfyUI's own execution."""
    workflows = load_workflows(default_directory())
    with Simulator() as simulator:
        server = ComfyServer(simulator.url)
        worker = Worker(server, workflows, 60, 8 * 1024 * 1024)
        parts: dict[str, list[float]] = {}

        def note(name: str, seconds: float) -> None:
            parts.setdefault(name, []).append(seconds * 1000)

        for seed in range(RUNS + 1):
            request = {"prompt": "a pixel art knight", "seed": seed, "steps": 1}
            begun = time.monotonic()
            [graph] = read_request(request, workflows).render(lambda: 0).graphs
            validate_s = time.monotonic() - begun
            bare_s = _bare(server, graph)
            begun = time.monotonic()
            job = {"id": "bench", "input": {**request, "seed": seed + 1000}}
            timings = run_job(worker, job, Control())["timings"]
            total_s = time.monotonic() - begun
            if seed == 0:
                continue  # connections and caches are made once a process
            note("ComfyUI alone: started to last frame", bare_s)
            note("validate and render", validate_s)
            note("queue: post to started", timings["queue_s"])
            note("wait: last frame to known outcome", timings["execute_s"] - bare_s)
            note("fetch", timings["fetch_s"])
            note("encode: text, base64, sha256", timings["encode_s"])
            note("whole job", total_s)
            note("whole job without ComfyUI's execution", total_s - bare_s)
        server.close()
    print(f"1024 x 1024 PNG on the simulator, median of {RUNS} (quartiles), ms")
    for name, values in parts.items():
        low, middle, high = statistics.quantiles(values, n=4)
        print(f"  {name:40} {middle:8.2f}   ({low:.2f} to {high:.2f})")


def _bare(server: ComfyServer, graph: Graph) -> float:
    """Return the seconds from the first to the last frame of a prompt, with nothing of ours around it."""
    prompt_id = str(uuid.uuid4())
    prompt = delivered(graph, "bench", over_websocket=True)
    with server.listen([prompt_id]) as notices:
        server.queue_prompt(prompt, prompt_id)
        times: dict[type, float] = {}
        while Finished not in times:
            match notices.get(timeout=10):
                case Addressed(event=event):
                    times.setdefault(type(event), time.monotonic())
    server.forget_prompts([prompt_id])
    if Image not in times:
        sys.exit("the bare run made no picture")
    return times[Finished] - times[Started]


def main() -> None:
    """Run the benchmark that is named."""
    benchmarks = {"overhead": overhead}
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument("benchmark", choices=benchmarks)
    benchmarks[parser.parse_args().benchmark]()


if __name__ == "__main__":
    main()
