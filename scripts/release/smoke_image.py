"""Tests a built image: a job through RunPod's local API with the simulator as ComfyUI, then its own ComfyUI on a CPU.

It needs a Docker engine and only Python's standard library. If a check fails, it exits with status 1 and prints the
container's log.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import json
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

ROOT = Path(__file__).resolve().parent.parent.parent
STRICT_OPTIONS = (
    "--read-only",
    "--tmpfs=/tmp:exec,mode=1777",
    "--cap-drop=ALL",
    "--security-opt=no-new-privileges:true",
)
SMALL_INPUTS = {"width": 256, "height": 256, "steps": 2}
SIMULATOR = "simulator"
PNG = b"\x89PNG\r\n\x1a\n"
DOCKER_TIMEOUT_S = 120.0
API_START_TIMEOUT_S = 60.0
BOOT_TIMEOUT_S = 300.0
STOP_TIMEOUT_S = 30
LOG_LINES = 40
_Found = TypeVar("_Found")


class SmokeError(Exception):
    """The image failed a check. The message describes the failure, with the container's log if there is one."""


def docker(*arguments: str) -> str:
    """Return the output of a docker command. Raises SmokeError with its output if it fails."""
    completed = _run_docker(*arguments)
    if completed.returncode:
        raise SmokeError(f"docker {arguments[0]} failed: {completed.stderr.strip()}")
    return completed.stdout.strip()


def _run_docker(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["docker", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=DOCKER_TIMEOUT_S, check=False)  # noqa: S603 - our own arguments


@contextlib.contextmanager
def network() -> Iterator[str]:
    """Yield the name of a new network; it is removed afterwards."""
    name = f"smoke-{uuid.uuid4().hex[:12]}"
    docker("network", "create", name)
    try:
        yield name
    finally:
        docker("network", "rm", name)


@contextlib.contextmanager
def container(image: str, *options: str, command: Sequence[str] = ()) -> Iterator[str]:
    """Yield the id of a running container with the strictest settings; it is removed afterwards."""
    name = docker("run", "--detach", *STRICT_OPTIONS, *options, image, *command)
    try:
        yield name
    finally:
        docker("rm", "--force", "--volumes", name)


def check_metadata(image: str) -> None:
    """Raise SmokeError if an image has no label for version, commit or licence, no health check, or runs as root."""
    [facts] = json.loads(docker("image", "inspect", image))
    config = facts["Config"]
    labels = config.get("Labels") or {}
    missing = [
        name
        for name in ("version", "revision", "licenses")
        if labels.get(f"org.opencontainers.image.{name}") in (None, "", "0", "unknown")
    ]
    if missing:
        raise SmokeError(f"{image} has no label for its {', '.join(missing)}. Build it with scripts/build")
    if not config.get("Healthcheck"):
        raise SmokeError(f"{image} has no health check")
    if config.get("User", "").partition(":")[0] in ("", "0", "root"):
        raise SmokeError(f"{image} runs as root")


def wait_for_value(name: str, read: Callable[[], _Found | None], event: str, timeout_s: float) -> _Found:
    """Call `read` until its result is not None, and return that.

    Raises SmokeError at the timeout, or if the container exits.

    `event` describes the awaited event for the error message, such as "its API was served".
    """
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if (found := read()) is not None:
            return found
        if docker("inspect", "--format", "{{.State.Running}}", name) != "true":
            raise SmokeError(f"the container ended before {event}\n{log_of(name)}")
        time.sleep(0.5)
    raise SmokeError(f"{event}: not within {timeout_s:g} s\n{log_of(name)}")


def log_of(name: str) -> str:
    """Return the last lines of a container's log."""
    completed = _run_docker("logs", "--tail", str(LOG_LINES), name)
    return completed.stdout + completed.stderr


def address_of(name: str) -> str:
    """Return the URL of a container's local API on this machine."""
    return f"http://{docker('port', name, '8000/tcp').splitlines()[0]}"


def is_served(url: str) -> bool | None:
    """Return True if the local API responds, else None."""
    try:
        with urllib.request.urlopen(f"{url}/docs", timeout=5):  # noqa: S310 - http by construction
            return True
    except (urllib.error.URLError, OSError):
        return None


def run_job(url: str) -> dict[str, Any]:
    """Run the job of test_input.json with a small image; return the response of /runsync."""
    job = json.loads((ROOT / "test_input.json").read_text())
    job["input"] |= SMALL_INPUTS
    request = urllib.request.Request(  # noqa: S310 - http by construction
        f"{url}/runsync", json.dumps(job).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=API_START_TIMEOUT_S) as response:  # noqa: S310
        content: dict[str, Any] = json.load(response)
    return content


def check_image(response: dict[str, Any]) -> None:
    """Raise SmokeError if a response has no PNG."""
    match response:
        case {"status": "COMPLETED", "output": {"images": [{"data": str(data)}, *_]}}:
            if base64.b64decode(data).startswith(PNG):
                return
    raise SmokeError(f"the job of test_input.json returned no image: {json.dumps(response)[:2000]}")


def stop(name: str) -> None:
    """Stop a container as RunPod does. Raises SmokeError if it does not exit with status 0."""
    docker("stop", "--time", str(STOP_TIMEOUT_S), name)
    status = docker("inspect", "--format", "{{.State.ExitCode}}", name)
    if status != "0":
        raise SmokeError(f"SIGTERM: the worker ended with status {status}\n{log_of(name)}")


def check_job(image: str, simulator: str) -> None:
    """Run test_input.json on `image`, with a container of `simulator` as its ComfyUI. Raises SmokeError."""
    with network() as net:
        alias = (f"--network={net}", f"--network-alias={SIMULATOR}", "--entrypoint=/usr/bin/tini")
        listen = ("--", "python", "-m", "simulators.comfyui", "--listen")
        env = ("--env=SERVE_API_LOCALLY=true", f"--env=COMFYUI_URL=http://{SIMULATOR}:8188")
        with (
            container(simulator, *alias, command=listen),
            container(image, f"--network={net}", "--publish=127.0.0.1::8000", *env) as worker,
        ):
            url = address_of(worker)
            wait_for_value(worker, lambda: is_served(url), "its API was served", API_START_TIMEOUT_S)
            check_image(run_job(url))
            stop(worker)


def check_own_comfyui(image: str) -> None:
    """Boot the image's own ComfyUI without a GPU, with sparse files as models, because no model is loaded."""
    with tempfile.TemporaryDirectory() as folder:
        models = Path(folder)
        models.chmod(0o755)
        write_sparse_models(models)
        env = ("SERVE_API_LOCALLY=true", "WORKER_WARMUP=false", "COMFYUI_ARGS=--cpu", "WORKER_VOLUME_DIR=/volume")
        options = [f"--env={each}" for each in env] + [f"--volume={models}:/volume/models:ro"]
        with container(image, "--publish=127.0.0.1::8000", *options) as worker:
            url = address_of(worker)
            wait_for_value(worker, lambda: is_served(url), "its own ComfyUI was ready", BOOT_TIMEOUT_S)
            stop(worker)


def write_sparse_models(folder: Path) -> None:
    """Create a sparse file of the right size for each model of models.txt."""
    for line in (ROOT / "models.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            _, size, path, *_ = line.split()
            file = folder / path
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("wb") as content:
                content.truncate(int(size))


def main(arguments: list[str]) -> int:
    """Test the image; return the exit status."""
    parser = argparse.ArgumentParser(prog="scripts/release/smoke_image", description=__doc__)
    parser.add_argument("image", help="an image of the target worker or worker-flux1-dev-fp8")
    parser.add_argument("simulator", help="an image of the target simulator")
    parser.add_argument("--without-comfyui", action="store_true", help="do not boot the image's own ComfyUI")
    options = parser.parse_args(arguments)
    try:
        for image in (options.image, options.simulator):
            check_metadata(image)
        print("ok  labels, health check, user", flush=True)
        check_job(options.image, options.simulator)
        print("ok  a job with the simulator, and exit on SIGTERM", flush=True)
        if not options.without_comfyui:
            check_own_comfyui(options.image)
            print("ok  its own ComfyUI boots on the CPU", flush=True)
    except (SmokeError, subprocess.TimeoutExpired, OSError) as error:
        print(f"scripts/release/smoke_image: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
