"""The images on a developer's machine: RunPod's local API on a mapped port, and compose.yaml without a GPU."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator

import docker
import pytest
import requests
from playwright.sync_api import expect

from bench.container import STRICT_OPTIONS
from bench.worker_setup import ROOT, SMALL_JOB
from simulators.http_server import free_port
from simulators.waiting import until
from tests.browser import browser
from tests.gateway.scenario.page.windows import WAIT_MS, generate, open_details, rows
from tests.image.conftest import SIMULATOR, WITH_WEIGHTS

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("images")]


def _responds(port: int) -> bool:
    try:
        return requests.get(f"http://127.0.0.1:{port}/docs", timeout=2).ok
    except requests.RequestException:
        return False


def _run_job(port: int, **inputs: object) -> dict[str, object]:
    response = requests.post(f"http://127.0.0.1:{port}/runsync", json={"input": {**SMALL_JOB, **inputs}}, timeout=60)
    job: dict[str, object] = response.json()
    return job


def test_the_local_api_responds_on_a_mapped_port(engine: docker.DockerClient) -> None:
    """With SERVE_API_LOCALLY=true, POST /runsync returns a result, and SIGTERM stops the container with status 0."""
    port = free_port()
    ports = {"8000/tcp": ("127.0.0.1", port)}
    environment = {"SERVE_API_LOCALLY": "true"}
    container = engine.containers.run(WITH_WEIGHTS, detach=True, environment=environment, ports=ports, **STRICT_OPTIONS)
    try:
        assert until(lambda: _responds(port), 60), container.logs().decode()

        response = _run_job(port, seed=5)

        assert response["status"] == "COMPLETED", response
        assert isinstance(response["output"], dict)
        assert response["output"]["seed"] == 5
        container.kill("SIGTERM")
        assert container.wait(timeout=60)["StatusCode"] == 0
    finally:
        container.remove(force=True)


def compose(environment: dict[str, str], *arguments: str) -> str:
    """Run docker compose; return its output."""
    ended = subprocess.run(
        ["docker", "compose", *arguments],  # noqa: S607
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


@pytest.fixture
def project() -> Iterator[dict[str, str]]:
    """The variables of a separate compose project, which is removed afterwards."""
    name, version = SIMULATOR.removesuffix("-simulator").split(":")
    variables = {
        "COMPOSE_PROJECT_NAME": "comfy-client-test",
        "IMAGE": name,
        "VERSION": version,
        "PORT": str(free_port()),
        "PAGE_PORT": str(free_port()),
    }
    yield variables
    compose(variables, "--profile", "cpu", "down", "--volumes", "--timeout", "20")


def test_compose_runs_without_a_gpu(project: dict[str, str]) -> None:
    """`docker compose --profile cpu up` starts three healthy containers, and a job at the local API succeeds."""
    compose(project, "--profile", "cpu", "up", "--no-build", "--detach", "--wait", "--wait-timeout", "60")

    response = _run_job(int(project["PORT"]))

    assert response["status"] == "COMPLETED", response
    states = [json.loads(line) for line in compose(project, "ps", "--format", "json").splitlines()]
    assert {(each["Service"], each["Health"]) for each in states} == {
        ("worker-cpu", "healthy"),
        ("simulator", "healthy"),
        ("page", "healthy"),
    }


def test_compose_prints_the_address_of_a_page(project: dict[str, str]) -> None:
    """The last line of the page's container has an address, whose page generates an image in a browser."""
    compose(project, "--profile", "cpu", "up", "--no-build", "--detach", "--wait", "--wait-timeout", "60")
    last_line = compose(project, "logs", "--no-log-prefix", "page").splitlines()[-1]
    address = re.search(rf"http://127\.0\.0\.1:{project['PAGE_PORT']}/\S*", last_line)

    assert address, last_line
    with browser() as chromium:
        window = chromium.new_page(viewport={"width": 1400, "height": 900})
        window.goto(address[0])
        generate(window, "a pixel art knight")
        image = open_details(rows(window)).get_by_role("img", name="a pixel art knight")
        expect(image).to_be_visible(timeout=WAIT_MS)
        assert image.evaluate("image => image.decode().then(() => image.naturalWidth)") > 0


def test_health_follows_an_external_comfyui(project: dict[str, str]) -> None:
    """A worker whose external ComfyUI stops becomes unhealthy."""
    compose(project, "--profile", "cpu", "up", "--no-build", "--detach", "--wait", "--wait-timeout", "60")
    check = ["exec", "-T", "worker-cpu", "python", "-m", "worker.health"]
    compose(project, *check)

    compose(project, "stop", "--timeout", "5", "simulator")

    with pytest.raises(AssertionError):
        compose(project, *check)


def test_compose_uses_a_gpu_by_default(project: dict[str, str]) -> None:
    """Without a profile compose starts only the worker, with the machine's GPU and the local API."""
    plan = json.loads(compose(project, "config", "--format", "json"))

    assert list(plan["services"]) == ["worker"]
    worker = plan["services"]["worker"]
    assert worker["build"]["target"] == "worker"
    assert worker["environment"]["SERVE_API_LOCALLY"] == "true"
    assert worker["deploy"]["resources"]["reservations"]["devices"][0]["capabilities"] == ["gpu"]
