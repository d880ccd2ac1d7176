"""scripts/release/smoke_image: which images it accepts, with a fake docker. tests/image runs it on real images."""

from __future__ import annotations

import base64
import json
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from bench.worker_setup import ROOT
from simulators.http_server import HttpHandler, HttpServer
from tests.fakes.commands import FakeCommands

pytestmark = pytest.mark.slow
PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n...").decode()
VALID = {"status": "COMPLETED", "output": {"images": [{"data": PNG}]}}
LABELS = {f"org.opencontainers.image.{name}": "1" for name in ("version", "revision", "licenses")}
CONFIG = {"Labels": LABELS, "Healthcheck": {"Test": ["CMD"]}, "User": "1000:1000"}


class LocalApi(HttpServer):
    """Responds like RunPod's local API in a container, with `response` for every job; records the `jobs`."""

    def __init__(self) -> None:
        super().__init__(_LocalApiHandler)
        self.response: object = VALID
        self.jobs: list[object] = []


class _LocalApiHandler(HttpHandler):
    server: LocalApi

    def do_GET(self) -> None:
        self.respond(200, b'"docs"')

    def do_POST(self) -> None:
        self.server.jobs.append(json.loads(self.body()))
        self.respond(200, json.dumps(self.server.response).encode())


@pytest.fixture
def api() -> Iterator[LocalApi]:
    """The local API that every container has in these tests."""
    with LocalApi() as server:
        yield server


def smoke(
    port: int, folder: Path, config: Mapping[str, object] = CONFIG, **changes: str
) -> tuple[subprocess.CompletedProcess[str], FakeCommands]:
    """Run the script on an image with this configuration; return the ended process and the fake docker.

    `changes` replace values of the containers' state.
    """
    state = {"Running": "true", "ExitCode": "0", **changes}
    responses = {
        "docker image inspect": json.dumps([{"Config": config}]),
        "docker run": "a-container",
        "docker port": f"127.0.0.1:{port}\n",
        "docker logs": "the last line of its log",
        **{f"docker inspect --format {{{{.State.{key}}}}}": value for key, value in state.items()},
    }
    fakes = FakeCommands(folder, ("docker",), responses)
    ended = subprocess.run(
        [str(ROOT / "scripts" / "release" / "smoke_image"), "me/worker:1", "me/worker:1-simulator"],
        env={"PATH": fakes.path},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return ended, fakes


def test_a_valid_image_passes_and_nothing_is_left(api: LocalApi, tmp_path: Path) -> None:
    """The example job runs. The containers are restricted, and are removed afterwards together with their network."""
    ended, fakes = smoke(api.server_port, tmp_path)

    assert ended.returncode == 0, ended.stderr
    assert [line[:2] for line in ended.stdout.splitlines()] == ["ok"] * 3
    [job] = api.jobs
    assert isinstance(job, dict)
    assert job["input"]["workflow"] == "flux-dev-txt2img"
    runs = [call for call in fakes.calls if call.startswith("docker run")]
    assert len(runs) == 3
    assert all("--read-only" in run and "--cap-drop=ALL" in run for run in runs)
    assert sum(call.startswith("docker rm --force") for call in fakes.calls) == 3
    [network] = [call.split()[-1] for call in fakes.calls if call.startswith("docker network create")]
    assert f"docker network rm {network}" in fakes.calls


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({**CONFIG, "Labels": {**LABELS, "org.opencontainers.image.revision": "unknown"}}, "no label for its revision"),
        ({**CONFIG, "Labels": None}, "no label for its version, revision, licenses"),
        ({**CONFIG, "Healthcheck": None}, "no health check"),
        ({**CONFIG, "User": ""}, "runs as root"),
        ({**CONFIG, "User": "0:0"}, "runs as root"),
    ],
)
def test_an_image_without_metadata_fails(
    api: LocalApi, tmp_path: Path, config: dict[str, object], expected: str
) -> None:
    """The check fails before any container is started."""
    ended, fakes = smoke(api.server_port, tmp_path, config)

    assert ended.returncode == 1
    assert expected in ended.stderr
    assert not [call for call in fakes.calls if call.startswith("docker run")]


def test_a_job_without_an_image_fails(api: LocalApi, tmp_path: Path) -> None:
    """If the job fails, the script fails and prints the response, and the containers are removed."""
    api.response = {"status": "FAILED", "error": "no such model"}

    ended, fakes = smoke(api.server_port, tmp_path)

    assert ended.returncode == 1
    assert "no such model" in ended.stderr
    assert sum(call.startswith("docker rm --force") for call in fakes.calls) == 2


def test_a_worker_that_must_be_killed_fails(api: LocalApi, tmp_path: Path) -> None:
    """Status 137 means that SIGTERM did not end the container in time: the script fails and prints the log."""
    ended, _ = smoke(api.server_port, tmp_path, ExitCode="137")

    assert ended.returncode == 1
    assert "status 137" in ended.stderr
    assert "the last line of its log" in ended.stderr


def test_a_container_that_ends_at_its_boot_fails_at_once(tmp_path: Path) -> None:
    """The script fails and says that the container ended before its API was served."""
    with LocalApi() as silent:
        port = silent.server_port

    ended, _ = smoke(port, tmp_path, Running="false")

    assert ended.returncode == 1
    assert "the container ended before its API was served" in ended.stderr


def test_a_failure_of_docker_is_one_sentence(api: LocalApi, tmp_path: Path) -> None:
    """If docker fails, as for a missing image, the script fails with one sentence and sends no job."""
    fakes = FakeCommands(tmp_path, ("docker",), {"docker image inspect": "1:"})
    ended = subprocess.run(
        [str(ROOT / "scripts" / "release" / "smoke_image"), "a", "b"],
        env={"PATH": fakes.path},
        capture_output=True,
        text=True,
        check=False,
    )

    assert (ended.returncode, api.jobs) == (1, [])
    assert ended.stderr.startswith("scripts/release/smoke_image: docker image failed")
