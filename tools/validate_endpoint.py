"""Tests an endpoint with five jobs. The requests, results, images and a report are written to debug-output/<date>/."""

from __future__ import annotations

import argparse
import datetime as dt
import json
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from comfy_client import Client, ErrorCode, JobCancelled, JobError, client_from_env
from comfy_client.job import Running, Sampling
from comfy_client.providers.interface import GenerationResult
from comfy_core.errors import ComfyClientError, ConfigError
from comfy_core.workflows import default_directory, load_workflows, render
from tools.endpoint_report import EndpointCase, EndpointRun, case_image, report_page

ROOT = Path(__file__).resolve().parent.parent
OUTPUT_FOLDER = ROOT / "debug-output"
INPUT_IMAGE = ROOT / "examples" / "knight.png"
MISSING_LORA = "this-lora-is-nowhere.safetensors"


@dataclass(frozen=True)
class Runner:
    """Runs the jobs with a client, and writes their images into a folder."""

    client: Client
    folder: Path
    inputs: Mapping[str, Any]

    def txt2img(self, case: EndpointCase) -> None:
        """Generate images from a prompt."""
        self._save_images(case, self.client.run(**case.request))

    def img2img(self, case: EndpointCase) -> None:
        """Generate an image from an image."""
        (self.folder / "in.png").write_bytes(INPUT_IMAGE.read_bytes())
        case.images.append(case_image(self.folder / "in.png"))
        self._save_images(case, self.client.run(image=INPUT_IMAGE, **case.request))

    def graph(self, case: EndpointCase) -> None:
        """Run a whole graph with one override."""
        self._save_images(case, self.client.run(**case.request))

    def bad_request(self, case: EndpointCase) -> None:
        """Request a LoRA that does not exist. The job must fail with `model_missing`."""
        try:
            self.client.run(**case.request)
        except JobError as error:
            case.outcome = json.loads(error.report.to_json())
            if error.code is not ErrorCode.MODEL_MISSING or MISSING_LORA not in error.report.to_json():
                case.problem = f"{error.code.value} instead of model_missing"
        else:
            case.problem = "an impossible job succeeded"

    def cancel(self, case: EndpointCase) -> None:
        """Cancel a job once it runs."""
        job = self.client.submit(**case.request)
        case.outcome = {"job_id": job.id}
        try:
            for event in job.events():
                if isinstance(event, Running | Sampling):
                    job.cancel()
        except JobCancelled as error:
            case.outcome |= json.loads(error.report.to_json())
        else:
            case.problem = "the job ended before it could be cancelled; use more --steps"

    def _save_images(self, case: EndpointCase, result: GenerationResult) -> None:
        for number, image in enumerate(result.images, 1):
            name = f"{case.name}-{number}{Path(image.filename).suffix}"
            case.images.append(case_image(image.save(self.folder / name)))
            if image.pil().getextrema() == ((0, 0),) * 3:
                case.problem = f"{name} is black"
        case.outcome = {
            "job_id": result.job_id,
            "seed": result.seed,
            "inputs": result.inputs,
            "images": [
                {"sha256": image.sha256, "size": image.size, "seed": image.seed, "bytes": len(image.bytes)}
                for image in result.images
            ],
            "timings": dict(result.timings),
            "delay_s": result.delay_s,
            "execution_s": result.execution_s,
            "worker_id": result.worker_id,
            "versions": dict(result.versions),
            "gpu": result.gpu,
            "cost": result.cost,
        }


def cases(inputs: Mapping[str, Any]) -> list[EndpointCase]:
    """Return the five cases; `inputs` are the default width, height, steps and seed of the images."""
    template = load_workflows(default_directory())["flux-dev-txt2img"]
    values = {name: rule["default"] for name, rule in template.inputs.items() if "default" in rule}
    [graph] = render(template, {**values, **inputs, "prompt": "a pixel art castle", "num_images": 1})
    seed = inputs["seed"] + 1
    knight = {"prompt": "a pixel art knight, game asset, plain background", **inputs}
    return [
        EndpointCase("txt2img", "a prompt becomes two images with their seeds", {**knight, "num_images": 2}),
        EndpointCase(
            "img2img",
            "an image and a prompt become an image",
            {**knight, "prompt": "as an oil painting", "strength": 0.6},
        ),
        EndpointCase("graph", "a whole graph runs", {"workflow": graph, "overrides": {"KSampler.seed": seed}}),
        EndpointCase("bad_request", "a missing model fails the job", {**knight, "loras": [{"name": MISSING_LORA}]}),
        EndpointCase("cancel", "a job that runs can be cancelled", {**knight, "steps": 100}),
    ]


def run_case(runner: Runner, case: EndpointCase) -> None:
    """Run one case, set its outcome, duration and problem, and write its request and outcome to files."""
    methods: dict[str, Callable[[EndpointCase], None]] = {
        "txt2img": runner.txt2img,
        "img2img": runner.img2img,
        "graph": runner.graph,
        "bad_request": runner.bad_request,
        "cancel": runner.cancel,
    }
    begun_at = time.monotonic()
    try:
        methods[case.name](case)
    except ComfyClientError as error:
        case.problem = str(error)
        case.outcome = json.loads(error.report.to_json())
    case.took_s = time.monotonic() - begun_at
    for kind, value in (("request", case.request), ("result", case.outcome)):
        (runner.folder / f"{case.name}.{kind}.json").write_text(f"{json.dumps(value, indent=2, ensure_ascii=False)}\n")


def main() -> int:
    """Run all cases and write the report; return the exit status, 0 only if all outcomes are correct."""
    parser = argparse.ArgumentParser(prog="scripts/validate_endpoint", description=__doc__)
    for name, default in (("width", 1024), ("height", 1024), ("steps", 20), ("seed", 42)):
        parser.add_argument(f"--{name}", type=int, default=default, help=f"the images' {name} ({default})")
    parser.add_argument("--output", type=Path, default=OUTPUT_FOLDER, help="output folder (debug-output)")
    options = parser.parse_args()
    inputs = {name: getattr(options, name) for name in ("width", "height", "steps", "seed")}
    now = dt.datetime.now(dt.UTC).astimezone()
    folder = options.output / now.strftime("%Y-%m-%d_%H%M%S")
    folder.mkdir(parents=True)
    try:
        client = client_from_env()
    except ConfigError as error:
        sys.stderr.write(f"scripts/validate_endpoint: {error}\n")
        return error.exit_status
    all_cases = cases(inputs)
    with client:
        run = EndpointRun(str(client.provider), f"{now:%Y-%m-%d %H:%M:%S %Z}", inputs, all_cases)
        for case in all_cases:
            run_case(Runner(client, folder, inputs), case)
            mark = "!!" if case.problem else "ok"
            print(f"{mark}  {case.name:12}{case.took_s:7.1f} s  {case.problem or case.expected}")
            (folder / "index.html").write_text(report_page(run))
    print(f"Report: {folder / 'index.html'}")
    return int(any(case.problem for case in all_cases))


if __name__ == "__main__":
    sys.exit(main())
