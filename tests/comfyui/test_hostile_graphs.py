"""Requests that try to access files outside their job's folders, on the simulator or on a real ComfyUI.

`COMFYUI_HOSTILE_GRAPHS` is the number of requests, 60 by default. For a real ComfyUI set `COMFYUI_URL`,
`COMFYUI_DATA_DIR` (the folder that contains its folders input, output and temp), and `COMFYUI_FILE_TRACE`, a log of
strace for its process (`file_trace`).
"""

from __future__ import annotations

import base64
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import requests

from comfy_client.providers.direct import DirectProvider
from comfy_client.providers.interface import GenerationRequest
from comfy_core.comfyui.server import ComfyServer
from comfy_core.errors import JobError
from comfy_core.workflows import Workflow
from simulators.comfyui import Simulator
from simulators.waiting import until
from tests.comfyui.canaries import Canaries, leaks
from tests.comfyui.file_trace import strays
from tests.comfyui.hostile_graphs import Attack, Generator
from tests.conftest import COMFYUI_URL
from worker.jobs import Control, Worker, run_job
from worker.settings import Settings

pytestmark = pytest.mark.slow
DATA_DIRECTORY = os.environ.get("COMFYUI_DATA_DIR")
FILE_TRACE = os.environ.get("COMFYUI_FILE_TRACE")
COUNT = int(os.environ.get("COMFYUI_HOSTILE_GRAPHS", "60"))
SEED = int(os.environ.get("COMFYUI_HOSTILE_SEED", "11"))
JOB_TIMEOUT_S = 60.0

Send = Callable[[dict[str, Any]], Mapping[str, Any]]


@pytest.fixture(scope="module")
def comfyui(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path | None]]:
    """The URL of a ComfyUI, and its base folder if this process can access it."""
    if COMFYUI_URL:
        yield COMFYUI_URL, Path(DATA_DIRECTORY).resolve() if DATA_DIRECTORY else None
        return
    directory = tmp_path_factory.mktemp("comfyui")
    with Simulator(base_directory=directory) as simulator:
        yield simulator.url, directory.resolve()


@pytest.fixture
def canaries(comfyui: tuple[str, Path | None], tmp_path: Path) -> Iterator[Canaries]:
    """Files that no job may reach."""
    planted = Canaries(comfyui[1], tmp_path.resolve())
    yield planted
    planted.remove()


@pytest.fixture(params=["worker", "direct"])
def send(
    request: pytest.FixtureRequest, comfyui: tuple[str, Path | None], workflows: Mapping[str, Workflow]
) -> Iterator[Send]:
    """Yield a function that runs a request through the worker or the direct provider."""
    url, directory = comfyui
    if request.param == "worker":
        server = ComfyServer(url, directory=directory)
        worker = Worker(server, workflows, Settings(job_timeout_s=JOB_TIMEOUT_S, max_result_bytes=64 << 20))
        yield lambda job_input: run_job(worker, {"id": "hostile", "input": job_input}, Control())
        server.close()
        return
    provider = DirectProvider(url, workflows, directory=directory)

    def send_directly(job_input: dict[str, Any]) -> Mapping[str, Any]:
        status = provider.submit(GenerationRequest({**job_input, "timeout_s": JOB_TIMEOUT_S}), wait_s=4 * JOB_TIMEOUT_S)
        result = provider.result(status)
        files = [{"filename": each.filename, "data": base64.b64encode(each.bytes).decode()} for each in result.images]
        files += [{"filename": each.filename, "data": base64.b64encode(each.bytes).decode()} for each in result.files]
        return {"images": files, "texts": result.texts, "warnings": result.warnings, "inputs": result.inputs}

    yield send_directly
    provider.close()


def response_to(send: Send, attack: Attack) -> Mapping[str, Any]:
    """Send an attack; return its result, or its error report."""
    try:
        return send(attack.job_input)
    except JobError as error:
        return {"error": error.report.to_json()}


@pytest.mark.timeout(120 + 2 * COUNT)
def test_no_graph_reaches_a_file_of_others(send: Send, comfyui: tuple[str, Path | None], canaries: Canaries) -> None:
    """No result has the content or the name of a planted file, and no job adds, changes or removes a file.

    If there is a trace, ComfyUI also accessed no path that a job must not reach.
    """
    url, directory = comfyui
    node_types = requests.get(f"{url}/object_info", timeout=60).json()
    generator = Generator(node_types, str(directory or "/comfyui"), canaries.targets, SEED)
    started_at = time.time()
    reached, sent = [], []
    for attack in generator.attacks(COUNT):
        sent_at = time.time()
        response = response_to(send, attack)
        sent.append((sent_at, attack))
        reached += [f"{attack}: {leak}" for leak in leaks(response)]
    if FILE_TRACE and directory is not None:
        reached += _stray_accesses(Path(FILE_TRACE), directory, canaries, started_at, sent)

    assert not reached, "\n".join(reached)
    assert until(lambda: not canaries.changes()), "\n".join(canaries.changes())


def _stray_accesses(
    trace: Path, directory: Path, canaries: Canaries, started_at: float, sent: list[tuple[float, Attack]]
) -> list[str]:
    """Return the accesses of ComfyUI's process that no job may cause, each with the attack that ran at the time."""
    with trace.open(encoding="utf-8", errors="replace") as lines:
        found = list(strays(lines, directory, canaries.is_forbidden, started_at, [directory / "user"]))
    assert trace.stat().st_mtime >= started_at, "the trace has ended; start ComfyUI under strace"
    return [
        f"{max((each for each in sent if each[0] <= stray.at), key=lambda each: each[0])[1]}: {stray}"
        for stray in found
    ]
