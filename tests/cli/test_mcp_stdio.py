"""`comfy-client mcp` as an MCP client starts it: a process with the protocol on stdin and stdout."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TextIO

import psutil
import pytest
from mcp import Client, StdioServerParameters, stdio_client

from simulators.runpod.queue_api import QueueJobState, RunPodPlatform
from simulators.runpod.scripted_worker import ScriptedWorker, image_result
from simulators.waiting import until
from tests.cli.test_mcp import SMALL, value_of

pytestmark = pytest.mark.slow


def test_a_job_outlives_the_process(tmp_path: Path) -> None:
    """If the client closes stdin during a job, the process ends and the job stays; a new process saves its image.

    The process writes nothing to stderr, so it had no error, and nothing but the protocol to stdout.
    """
    with RunPodPlatform(long_poll_s=0.1) as platform, (tmp_path / "err").open("w") as err:
        environment = {**platform.client_env(), "COMFY_CLIENT_JOB_LOG": str(tmp_path / "jobs.sqlite3")}
        asyncio.run(_start_a_job(platform, _server(environment, tmp_path), err))
        [job] = platform.jobs.values()
        assert job.state is QueueJobState.IN_QUEUE
        assert until(lambda: not _servers(tmp_path), 60)
        with ScriptedWorker(platform, image_result):
            ended = asyncio.run(_wait_for_the_last_job(_server(environment, tmp_path), err))

    assert ended == [str(path) for path in (tmp_path / "images").iterdir()]
    assert (tmp_path / "err").read_text() == ""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_process(tmp_path: Path, number: signal.Signals) -> None:
    """Ctrl-C and SIGTERM end the process while stdin is open, with the status of the other commands."""
    with RunPodPlatform() as platform:
        server = _server(platform.client_env(), tmp_path)
        process = subprocess.Popen(
            [server.command, *server.args],
            env={**os.environ, **(server.env or {}), "COMFY_CLIENT_JOB_LOG": "off"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        with process:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(b'{"jsonrpc": "2.0", "id": 1, "method": "ping"}\n')
            process.stdin.flush()
            assert b'"id":1' in process.stdout.readline()
            process.send_signal(number)
            assert process.wait(60) == 128 + number


def _server(environment: Mapping[str, str], folder: Path) -> StdioServerParameters:
    arguments = ["-m", "comfy_client.cli.main", "mcp", "-o", str(folder / "images")]
    return StdioServerParameters(command=sys.executable, args=arguments, env=dict(environment))


def _servers(folder: Path) -> list[psutil.Process]:
    """Return the processes of `_server` that run."""
    images = str(folder / "images")
    return [each for each in psutil.process_iter(["cmdline"]) if images in (each.info["cmdline"] or ())]


async def _start_a_job(platform: RunPodPlatform, server: StdioServerParameters, err: TextIO) -> None:
    """Close the session while the tool waits for the job."""
    async with Client(stdio_client(server, err)) as client:
        names = {tool.name for tool in (await client.list_tools()).tools}
        assert {"make_image", "edit_image", "wait_for_job", "list_workflows", "cost"} <= names
        arguments = {"prompt": "a knight", "inputs": SMALL, "wait_s": 600}
        call = asyncio.ensure_future(client.call_tool("make_image", arguments))
        assert await asyncio.to_thread(until, lambda: platform.jobs, 60)
        call.cancel()


async def _wait_for_the_last_job(server: StdioServerParameters, err: TextIO) -> list[str]:
    """Return the paths of the job's images."""
    async with Client(stdio_client(server, err)) as client:
        [job] = value_of(await client.call_tool("list_jobs", {"limit": 1}))["jobs"]
        ended = value_of(await client.call_tool("wait_for_job", {"job_id": job["job_id"]}))
        return [each["path"] for each in ended["images"]]
