"""Generates two images with handler.py, through the local API of RunPod's SDK, and writes them to debug-output/.

Prints a line when a step begins. The logs of the worker and the simulator are in debug-output/ too.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests

from comfy_client.cli.terminal_images import image_protocol
from simulators.http_server import free_port

ROOT = Path(__file__).resolve().parent.parent
OUTPUT_FOLDER = ROOT / "debug-output"
INPUT_IMAGE = ROOT / "examples" / "knight.png"
DEMO_START_TIMEOUT_S = 330.0
"""Longer than the worker waits for its ComfyUI, so that the worker's own error is shown."""
DEMO_JOB_TIMEOUT_S = 600.0

IMAGE_COLUMNS = 30
"""Width of the images in a terminal that can show images."""
NEXT_STEPS = """
Next:
  ./scripts/demo --ui           # generate images on a web page
  . .venv/bin/activate          # makes comfy-client a command of this terminal
  comfy-client init             # use an endpoint on RunPod, a ComfyUI of yours, or the simulator
docs/deploy.md describes how to make an endpoint on RunPod."""


def main() -> None:
    """Run both jobs and print the paths of the images."""
    options = _arguments()
    with contextlib.ExitStack() as running:
        programs: list[Program] = []
        comfyui_url = os.environ.get("COMFYUI_URL", "")
        if not comfyui_url:
            programs.append(running.enter_context(_simulator()))
            comfyui_url = programs[0].url
        programs.append(running.enter_context(_worker(comfyui_url)))
        for program in programs:
            program.wait_until_responding()
        txt2img = json.loads((ROOT / "test_input.json").read_text())["input"]
        img2img = {
            "workflow": "flux-dev-img2img",
            "prompt": "the same knight as an oil painting",
            "image": base64.b64encode(INPUT_IMAGE.read_bytes()).decode(),
            "strength": 0.6,
            "seed": 43,
        }
        if options.prompt:
            txt2img["prompt"] = img2img["prompt"] = options.prompt
        flags = {name: getattr(options, name) for name in ("seed", "width", "height", "steps")}
        inputs_from_flags = {name: value for name, value in flags.items() if value is not None}
        for name, job_input in (("txt2img", txt2img), ("img2img", img2img)):
            _run_job(programs[-1].url, name, {**job_input, **inputs_from_flags})
        if options.ui:
            _serve_page(comfyui_url)
        else:
            print(NEXT_STEPS)


def _serve_page(comfyui_url: str) -> None:
    """Serve the web page until Ctrl-C, which the page's process receives too. It calls ComfyUI without the worker."""
    command = [sys.executable, "-m", "comfy_client.cli.main", "ui", f"--data={OUTPUT_FOLDER / 'ui'}"]
    environment = {**os.environ, "IMAGE_GENERATION_PROVIDER": "comfyui", "COMFYUI_ENDPOINT": comfyui_url}
    with subprocess.Popen(command, env=environment) as page:  # noqa: S603 - our own program
        while page.poll() is None:
            with contextlib.suppress(KeyboardInterrupt):
                page.wait()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/demo", description=__doc__)
    parser.add_argument("prompt", nargs="?", help="the prompt of both images")
    for name in ("seed", "width", "height", "steps"):
        parser.add_argument(f"--{name}", type=int, help=f"the request's {name}")
    parser.add_argument("--ui", action="store_true", help="then serve the web page, until Ctrl-C")
    return parser.parse_args()


@dataclass(frozen=True)
class Program:
    """A program of this repository that the demo started, with the address at which it will respond."""

    url: str
    log_file: Path
    process: subprocess.Popen[bytes]

    def wait_until_responding(self) -> None:
        """Wait until the address responds. If it does not, exit with the end of the program's log."""
        deadline = time.monotonic() + DEMO_START_TIMEOUT_S
        while time.monotonic() < deadline and self.process.poll() is None:
            with contextlib.suppress(requests.RequestException):
                requests.get(self.url, timeout=2)
                return
            time.sleep(0.05)
        code = self.process.poll()
        state = "did not respond in time" if code is None else f"exited with status {code}"
        end = self.log_file.read_text()[-2000:]
        sys.exit(f"scripts/demo: the {self.log_file.stem} {state}. The end of {self.log_file}:\n{end}")


@contextlib.contextmanager
def _running(name: str, arguments: list[str], port: int, environment: dict[str, str]) -> Iterator[Program]:
    """Start a program of this repository, and stop it afterwards."""
    OUTPUT_FOLDER.mkdir(exist_ok=True)
    log_file = OUTPUT_FOLDER / f"{name}.log"
    print(f"Starting the {name} at http://127.0.0.1:{port}; its log is {log_file.relative_to(ROOT)} ...", flush=True)
    with log_file.open("w") as log:
        command = [sys.executable, *arguments]
        process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, **environment}, stdout=log, stderr=log)  # noqa: S603 - our own programs
        try:
            yield Program(f"http://127.0.0.1:{port}", log_file, process)
        finally:
            process.terminate()
            process.wait(10)


def _simulator() -> contextlib.AbstractContextManager[Program]:
    print("No COMFYUI_URL is set: using the simulator, whose images are placeholders.", flush=True)
    port = free_port()
    return _running("simulator", ["-m", "simulators.comfyui", "--port", str(port), "--step-s", "0.02"], port, {})


def _worker(comfyui_url: str) -> contextlib.AbstractContextManager[Program]:
    port = free_port()
    arguments = ["handler.py", "--rp_serve_api", "--rp_api_port", str(port)]
    return _running("worker", arguments, port, {"COMFYUI_URL": comfyui_url})


def _run_job(worker_url: str, name: str, job_input: dict[str, Any]) -> None:
    """Run one job, write its images, print a line for each. If the job fails, exit with its error."""
    print(f"Sending the job {name} to the worker ...", flush=True)
    response = requests.post(f"{worker_url}/runsync", json={"input": job_input}, timeout=DEMO_JOB_TIMEOUT_S).json()
    match response:
        case {"output": {"images": [*images], "timings": {"total_s": total_s}}}:
            for image in images:
                path = OUTPUT_FOLDER / f"{name}-{image['seed']}.png"
                png = base64.b64decode(image["data"])
                path.write_bytes(png)
                size = f"{image['width']} x {image['height']}"
                print(f"{name}: {path.relative_to(ROOT)}  {size}  seed {image['seed']}  {total_s:.2f} s")
                if sys.stdout.isatty() and (sequences_of := image_protocol(os.environ)):
                    print(sequences_of(png, IMAGE_COLUMNS))
        case _:
            sys.exit(f"{name} failed: {response.get('error', response)}")


if __name__ == "__main__":
    main()
