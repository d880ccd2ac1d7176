"""The tools of `comfy-client mcp`, called by the client of the mcp package."""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import pytest
from mcp import Client
from mcp.types import CallToolResult, ImageContent, TextContent
from PIL import Image

from comfy_client.aio import AsyncClient
from comfy_client.cli.call import Call
from comfy_client.cli.mcp_server import PREVIEW_SIDE, Tools, make_server
from comfy_client.cli.output import prepare_output
from comfy_client.cli.screen import Screen
from comfy_client.profiles import Settings
from comfy_core.workflows import Workflow
from simulators.comfyui import Simulator
from simulators.runpod.queue_api import RunPodPlatform
from simulators.runpod.scripted_worker import ScriptedWorker, image_result, png
from tests.cli.conftest import Shell

_T = TypeVar("_T")
SMALL = {"width": 64, "height": 64, "steps": 1}


def value_of(result: CallToolResult) -> Any:  # noqa: ANN401 - any JSON value
    """Return the JSON value in the first block of a result."""
    [text, *_] = result.content
    assert isinstance(text, TextContent)
    return json.loads(text.text)


def size_of(image: bytes) -> tuple[int, int]:
    """Return the width and height of an image."""
    with Image.open(io.BytesIO(image)) as opened:
        return opened.size


class Agent:
    """An agent whose MCP client is connected to the tools in this process."""

    def __init__(self, environment: Mapping[str, str], workflows: Mapping[str, Workflow], folder: Path) -> None:
        self.err = io.StringIO()
        screen = Screen(self.err, self.err)
        self._call = Call(argparse.Namespace(), screen, Settings(environment), workflows)
        self._output = prepare_output(f"{folder}/", screen)

    def in_session(self, use: Callable[[Client], Awaitable[_T]]) -> _T:
        """Return what `use` returns for a connected client."""

        async def session() -> _T:
            async with (
                AsyncClient(self._call.client()) as client,
                Client(make_server(Tools(self._call, client, self._output))) as connected,
            ):
                return await use(connected)

        return asyncio.run(session())

    def __call__(self, tool: str, **arguments: object) -> CallToolResult:
        """Call a tool in a new session."""
        return self.in_session(lambda client: client.call_tool(tool, arguments))


@pytest.fixture
def log(tmp_path: Path) -> dict[str, str]:
    """The variable with the path of the log of jobs."""
    return {"COMFY_CLIENT_JOB_LOG": str(tmp_path / "jobs.sqlite3"), "COMFY_CLIENT_GPU_USD_PER_S": "0.5"}


@pytest.fixture
def agent(log: Mapping[str, str], workflows: Mapping[str, Workflow], tmp_path: Path) -> Iterator[Agent]:
    """An agent with a simulated ComfyUI."""
    with Simulator() as simulator:
        yield Agent({"COMFYUI_ENDPOINT": simulator.url, **log}, workflows, tmp_path / "images")


@pytest.fixture
def idle_platform() -> Iterator[RunPodPlatform]:
    """A platform of RunPod without a worker: jobs stay queued."""
    with RunPodPlatform(long_poll_s=0.1) as platform:
        yield platform


@pytest.fixture
def runpod_agent(
    idle_platform: RunPodPlatform, log: Mapping[str, str], workflows: Mapping[str, Workflow], tmp_path: Path
) -> Agent:
    """An agent with a simulated endpoint that has no worker yet."""
    return Agent({**idle_platform.client_env(), **log}, workflows, tmp_path / "images")


def test_an_image_is_saved_and_shown(agent: Agent, tmp_path: Path) -> None:
    """make_image saves each image as a file of full size, and returns the paths, seeds and a small preview of each."""
    inputs = {"width": 1024, "height": 512, "steps": 1, "num_images": 2, "seed": 7}
    result = agent("make_image", prompt="a knight", inputs=inputs)
    value = value_of(result)
    previews = [block for block in result.content if isinstance(block, ImageContent)]

    assert not result.is_error
    assert [(each["path"], each["seed"]) for each in value["images"]] == [
        (str(tmp_path / "images" / f"flux-dev-txt2img-{seed}.png"), seed) for seed in (7, 8)
    ]
    assert [size_of(Path(each["path"]).read_bytes()) for each in value["images"]] == [(1024, 512)] * 2
    sizes = [size_of(base64.b64decode(block.data)) for block in previews]
    assert sizes == [(PREVIEW_SIDE, PREVIEW_SIDE // 2)] * 2


@pytest.mark.parametrize(
    ("arguments", "workflow"),
    [
        ({"prompt": "a king", "inputs": {"steps": 1}}, "flux-dev-img2img"),
        ({"prompt": "a king", "mask": "mask.png", "inputs": {"steps": 1}}, "flux-dev-inpaint"),
        ({"workflow": "upscale", "inputs": {"steps": 1}}, "flux-dev-upscale"),
    ],
)
def test_an_image_is_edited(agent: Agent, tmp_path: Path, arguments: dict[str, Any], workflow: str) -> None:
    """edit_image reads files, and selects img2img, inpaint if there is a mask, or the workflow that is named."""
    (tmp_path / "in.png").write_bytes(png(64))
    Image.new("L", (64, 64), 255).save(tmp_path / "mask.png")
    if "mask" in arguments:
        arguments = {**arguments, "mask": str(tmp_path / "mask.png")}
    result = agent("edit_image", image=str(tmp_path / "in.png"), **arguments)

    assert value_of(result)["workflow"] == workflow
    assert not result.is_error


def test_a_job_outlives_the_session(runpod_agent: Agent, idle_platform: RunPodPlatform) -> None:
    """A job that does not end in time is `running`. A later session finds it in the log and gets its images once."""
    started = value_of(runpod_agent("make_image", prompt="a knight", inputs=SMALL, wait_s=0))
    [job] = value_of(runpod_agent("list_jobs"))["jobs"]
    with ScriptedWorker(idle_platform, image_result):
        ended = value_of(runpod_agent("wait_for_job", job_id=job["job_id"]))
    [logged] = value_of(runpod_agent("list_jobs"))["jobs"]

    assert (started["state"], started["job_id"]) == ("running", job["job_id"])
    assert ended["state"] == "succeeded"
    assert len(idle_platform.jobs) == 1
    assert logged["files"] == [each["path"] for each in ended["images"]]
    assert value_of(runpod_agent("cost"))["cost"] == ended["cost"] > 0


def test_a_job_is_cancelled(runpod_agent: Agent) -> None:
    """cancel_job cancels a queued job, and wait_for_job then returns the error `cancelled`."""
    job_id = value_of(runpod_agent("make_image", prompt="a knight", inputs=SMALL, wait_s=0))["job_id"]
    cancelled = value_of(runpod_agent("cancel_job", job_id=job_id))
    waited = runpod_agent("wait_for_job", job_id=job_id)

    assert cancelled == {"job_id": job_id, "state": "cancelled"}
    assert waited.is_error
    assert (value_of(waited)["code"], value_of(waited)["job_id"]) == ("cancelled", job_id)


@pytest.mark.parametrize(
    ("inputs", "code", "word"),
    [
        ({"steps": 0}, "invalid_input", "steps"),
        ({"stepz": 4}, "invalid_input", 'did you mean "steps"'),
        ({"webhook": {"url": "https://example.com"}}, "invalid_input", "webhook"),
        ({"images": [{"name": "x", "image": "/etc/passwd"}]}, "invalid_input", "images"),
    ],
)
def test_an_invalid_input_is_an_error_with_its_code(
    runpod_agent: Agent, idle_platform: RunPodPlatform, inputs: dict[str, Any], code: str, word: str
) -> None:
    """The tool's error has our code, the input's name and the remedy. Webhooks and other files are refused."""
    result = runpod_agent("make_image", prompt="a knight", inputs=inputs, wait_s=0)

    assert result.is_error
    assert (value_of(result)["code"], value_of(result)["retry"]) == (code, "no")
    assert word in value_of(result)["message"]
    assert not idle_platform.jobs


def test_a_file_that_is_no_image_is_not_sent(
    runpod_agent: Agent, idle_platform: RunPodPlatform, tmp_path: Path
) -> None:
    """edit_image refuses a file that is not an image, and its error does not contain the file's content."""
    (tmp_path / "key.txt").write_text("SECRET" * 20)
    result = runpod_agent("edit_image", image=str(tmp_path / "key.txt"), prompt="x", wait_s=0)

    assert value_of(result)["code"] == "invalid_image"
    assert "SECRET" not in str(result)
    assert not idle_platform.jobs


def test_workflows_are_listed_with_their_inputs(agent: Agent) -> None:
    """list_workflows has each workflow, and the ranges of its inputs."""
    found = value_of(agent("list_workflows"))["workflows"]

    assert {"flux-dev-txt2img", "flux-dev-img2img", "flux-dev-inpaint", "flux-dev-upscale"} <= found.keys()
    [steps] = [line for line in found["flux-dev-txt2img"]["inputs"] if line.startswith("steps")]
    assert "1 to 100" in steps


def test_an_invalid_age_is_an_error(agent: Agent) -> None:
    """The error of cost shows a valid date and a valid age."""
    result = agent("cost", since="yesterday")

    assert result.is_error
    assert "2026-11-01, or an age such as 12h or 7d" in str(result.content)


def test_progress_is_reported(log: Mapping[str, str], workflows: Mapping[str, Workflow], tmp_path: Path) -> None:
    """A client that wants progress gets the percentage while the job still runs."""
    seen: list[float] = []

    async def note(progress: float, total: float | None, message: str | None) -> None:  # noqa: ARG001 - called by name
        assert total == 100
        seen.append(progress)
        simulator.faults.release()

    async def use(client: Client) -> CallToolResult:
        arguments = {"prompt": "a knight", "inputs": {**SMALL, "steps": 4}}
        return await client.call_tool("make_image", arguments, progress_callback=note)

    with Simulator() as simulator:
        simulator.faults.hang_sampling(at_step=2)
        agent = Agent({"COMFYUI_ENDPOINT": simulator.url, **log}, workflows, tmp_path / "images")
        assert not agent.in_session(use).is_error

    assert seen == sorted(seen)
    assert 0 < seen[0] < 100


def test_the_folder_is_checked_at_start(shell: Shell, tmp_path: Path) -> None:
    """A folder that cannot be created ends the command with status 2 before it serves."""
    (tmp_path / "file").write_text("x")
    ended = shell("mcp", "-o", str(tmp_path / "file" / "images"))

    assert ended.status == 2
    assert "cannot be written" in ended.err
