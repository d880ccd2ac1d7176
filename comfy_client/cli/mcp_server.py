"""The MCP server of `comfy-client mcp`: its tools, their results and their errors.

A text that an agent reads can make it call a tool. The tools therefore accept templates but no graphs, and no field of
a request that has a secret, a URL that the worker calls, or a file that is not an image.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import os
import signal
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Any

from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.types import CallToolResult, ContentBlock, ImageContent, InputRequiredResult, TextContent
from pydantic import Field

from comfy_client import __version__
from comfy_client.aio import AsyncClient, AsyncJob
from comfy_client.cli.call import TERMINATING_SIGNALS, Call, Terminated, status_of
from comfy_client.cli.costs import cost_object, parse_since, required_log
from comfy_client.cli.job_list import job_object
from comfy_client.cli.output import OutputTarget, save_result
from comfy_client.cli.results import result_object
from comfy_client.cli.workflows import input_rows
from comfy_client.job import Done, Sampling
from comfy_client.job_log import LoggedJob
from comfy_client.providers.interface import GeneratedImage, GenerationResult
from comfy_core.contract import Fault, JsonObject, shortened
from comfy_core.errors import ComfyClientError, WaitTimeout, invalid_input
from comfy_core.validation import nearest
from comfy_core.workflows import find_workflow

COMMON_INPUTS = ("output_format", "output_quality", "metadata", "ai_mark", "timeout_s")
"""The fields of a request that the tools accept in `inputs`, in addition to the inputs of the workflow."""
MAX_PREVIEWS = 4
PREVIEW_SIDE = 512
"""Longest side of a preview in pixels.

The preview of random noise has 176 kB, so that a result with all previews is smaller than 1 MB in base64."""
MAX_ERROR_DETAILS = 4_000
"""Maximum length of an error's details in characters. Larger details are left out."""

INSTRUCTIONS = (
    "Generates images with Flux.1-dev on the user's own GPU endpoint. Each job may cost money: results have `cost` in "
    "US dollars. The images are saved as files; a result has their paths and small previews. If a result has the state "
    "`running`, the job continues: call wait_for_job with its id, and do not start it again. Call list_workflows for "
    "the names and ranges of `inputs`."
)

WaitS = Annotated[
    float, Field(ge=0, le=600, description="Seconds to wait for the images. The job continues after that.")
]
Inputs = Annotated[
    dict[str, Any] | None,
    Field(
        description="Other inputs of the workflow, such as width, height, steps, seed, num_images. See list_workflows."
    ),
]


@dataclass(frozen=True)
class Tools:
    """The tools. The docstring of each public method is its description for the agent."""

    call: Call
    client: AsyncClient
    output: OutputTarget

    async def make_image(
        self,
        prompt: Annotated[str, Field(description="What the image shows.")],
        context: Context,
        workflow: Annotated[str, Field(description="Name of a workflow.")] = "txt2img",
        inputs: Inputs = None,
        wait_s: WaitS = 50,
    ) -> CallToolResult:
        """Generate images from a prompt, save them, and return their paths, seeds, cost and previews."""
        return await self._run(workflow, {"prompt": prompt, **(inputs or {})}, wait_s, context)

    async def edit_image(
        self,
        image: Annotated[str, Field(description="Path or https URL of the image.")],
        context: Context,
        prompt: Annotated[str | None, Field(description="What the new image shows. Optional for upscale.")] = None,
        mask: Annotated[
            str | None, Field(description="Path or https URL of a mask: only its white area is generated again.")
        ] = None,
        workflow: Annotated[
            str | None,
            Field(description="Default: inpaint if there is a mask, else img2img. upscale doubles the size."),
        ] = None,
        inputs: Inputs = None,
        wait_s: WaitS = 50,
    ) -> CallToolResult:
        """Generate images from an image: change it (img2img), a part of it (inpaint), or enlarge it (upscale)."""
        given = {"image": image, "prompt": prompt, "mask": mask, **(inputs or {})}
        name = workflow or ("img2img" if mask is None else "inpaint")
        return await self._run(name, {key: value for key, value in given.items() if value is not None}, wait_s, context)

    async def wait_for_job(self, job_id: str, context: Context, wait_s: WaitS = 50) -> CallToolResult:
        """Wait for a job that make_image or edit_image started, also in an earlier session, and save its images."""
        return await self._ended(self.client.job(job_id), wait_s, context)

    async def cancel_job(self, job_id: str) -> CallToolResult:
        """Cancel a job. No effect on a job that has ended."""
        job = self.client.job(job_id)
        await job.cancel()
        return _json({"job_id": job.id, "state": (await job.status()).state.value})

    async def list_jobs(self, limit: Annotated[int, Field(ge=1, le=100)] = 10) -> CallToolResult:
        """List the last jobs of this machine, newest first, with their last known state, cost and files."""
        jobs = await asyncio.to_thread(self._logged, 0.0)
        return _json({"jobs": [job_object(job) for job in reversed(jobs[-limit:])]})

    async def cost(
        self, since: Annotated[str | None, Field(description="A date (2026-11-01), or an age (12h, 7d, 4w).")] = None
    ) -> CallToolResult:
        """Return what the jobs of this machine have cost, in US dollars. It sends nothing and starts no job."""
        try:
            begin = parse_since(since) if since else 0.0
        except argparse.ArgumentTypeError as error:
            raise ToolError(f"since: {error}") from error
        return _json(cost_object(await asyncio.to_thread(self._logged, begin)))

    async def list_workflows(self) -> CallToolResult:
        """List the workflows with their inputs: types, ranges and defaults."""
        found = {
            name: {
                "title": workflow.schema.get("title", ""),
                "inputs": [" ".join(row).strip() for row in input_rows(workflow.schema)],
            }
            for name, workflow in self.call.workflows.items()
        }
        return _json({"workflows": found, "inputs_of_all": COMMON_INPUTS})

    async def _run(self, name: str, inputs: JsonObject, wait_s: float, context: Context) -> CallToolResult:
        workflow = find_workflow(name, self.call.workflows)
        known = [*workflow.inputs, *COMMON_INPUTS]
        if faults := [Fault(key, f"is not an input{nearest(key, known)}") for key in inputs if key not in known]:
            raise invalid_input(faults)
        return await self._ended(await self.client.submit(workflow.name, **inputs), wait_s, context)

    async def _ended(self, job: AsyncJob, wait_s: float, context: Context) -> CallToolResult:
        """Return the result of a job, or the state `running` after `wait_s`. Raises JobError and RequestError."""
        try:
            async for event in job.events(wait_s):
                if isinstance(event, Sampling):
                    await context.report_progress(event.percent, 100)
                if isinstance(event, Done):
                    return await self._saved(event.result)
        except WaitTimeout as timeout:
            return _json({"job_id": job.id, "state": "running", "message": timeout.report.message})
        raise AssertionError("events end with Done, or raise")

    async def _saved(self, result: GenerationResult) -> CallToolResult:
        saved = await asyncio.to_thread(save_result, self.output, result, self.call.screen)
        await self.client.note_files(result.job_id, saved.paths)
        value = {"state": "succeeded", **result_object(result, saved.paths, saved.problem)}
        return _json(value, *await asyncio.to_thread(_previews, result))

    def _logged(self, since: float) -> list[LoggedJob]:
        log = required_log(self.call.environment)
        try:
            return log.jobs(since)
        finally:
            log.close()


class _Server(MCPServer[Any]):
    """An MCP server that returns an error of ours as JSON with its code, and whether the call may be repeated."""

    async def call_tool(
        self, name: str, arguments: dict[str, Any], context: Context[Any, Any] | None = None
    ) -> CallToolResult | InputRequiredResult:
        """Call a tool. Raises ToolError for errors that are not ours."""
        try:
            return await super().call_tool(name, arguments, context)
        except ToolError as error:
            if isinstance(error.__cause__, ComfyClientError):
                return _json(_error_object(error.__cause__), is_error=True)
            raise


def make_server(tools: Tools) -> MCPServer[Any]:
    """Return the MCP server with all tools."""
    server = _Server("comfy-client", version=__version__, instructions=INSTRUCTIONS, log_level="WARNING")
    for tool in (
        tools.make_image,
        tools.edit_image,
        tools.wait_for_job,
        tools.cancel_job,
        tools.list_jobs,
        tools.cost,
        tools.list_workflows,
    ):
        server.add_tool(tool, structured_output=False)
    return server


async def serve(call: Call, output: OutputTarget) -> None:
    """Serve the tools on stdin and stdout until stdin is closed. Jobs continue after that.

    A signal closes the client and then ends the process, because the thread that reads stdin cannot be interrupted.
    """
    async with AsyncClient(call.client()) as client:
        loop = asyncio.get_running_loop()
        stopped: asyncio.Future[int] = loop.create_future()
        for number in (signal.SIGINT, *TERMINATING_SIGNALS):
            with suppress(NotImplementedError):  # Windows
                loop.add_signal_handler(number, _set_once, stopped, number)
        serving = asyncio.ensure_future(make_server(Tools(call, client, output)).run_stdio_async())
        ends: list[asyncio.Future[Any]] = [serving, stopped]
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        if not stopped.done():
            await serving
            return
    os._exit(status_of(Terminated(stopped.result())))


def _set_once(stopped: asyncio.Future[int], number: int) -> None:
    if not stopped.done():
        stopped.set_result(number)


def _json(value: JsonObject, *more: ContentBlock, is_error: bool = False) -> CallToolResult:
    text = TextContent(type="text", text=json.dumps(value, ensure_ascii=False))
    return CallToolResult(content=[text, *more], is_error=is_error)


def _error_object(error: ComfyClientError) -> JsonObject:
    report, details = error.report, error.report.details
    if len(json.dumps(details, default=str)) > MAX_ERROR_DETAILS:
        details = {}
    return {
        "code": report.code.value,
        "message": shortened(report.message, MAX_ERROR_DETAILS),
        "retry": report.retry.value,
        "retry_means": report.retry.meaning,
        "job_id": getattr(error, "job_id", None),
        "details": details,
    }


def _previews(result: GenerationResult) -> list[ImageContent]:
    """Return small JPEG previews of the first images. A file that Pillow cannot read has none."""
    previews = []
    for image in result.images[:MAX_PREVIEWS]:
        with suppress(OSError, ValueError):
            data = base64.b64encode(_small_jpeg(image)).decode()
            previews.append(ImageContent(type="image", data=data, mime_type="image/jpeg"))
    return previews


def _small_jpeg(image: GeneratedImage) -> bytes:
    picture = image.pil().convert("RGB")
    picture.thumbnail((PREVIEW_SIDE, PREVIEW_SIDE))
    encoded = io.BytesIO()
    picture.save(encoded, "JPEG", quality=80)
    return encoded.getvalue()
