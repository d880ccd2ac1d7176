"""Save nodes that behave unlike SaveImage: each job gets its own complete files, and no file of a job is left."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from comfy_core.comfyui.prompt_monitor import WaitLimits
from comfy_core.comfyui.run import RunResult, run_graphs
from comfy_core.comfyui.server import ComfyServer
from comfy_core.error_codes import ErrorCode
from comfy_core.errors import JobError
from comfy_core.graphs import Graph
from comfy_core.workflows import Workflow, render
from simulators.comfyui import Simulator
from simulators.http_server import HttpHandler, HttpServer
from tests.comfyui.conftest import png
from tests.faults.test_faults_during_a_job import error_of, remaining

IMAGE_NODE = {"class_type": "EmptyImage", "inputs": {"width": 32, "height": 16, "batch_size": 1, "color": 255}}
VAE_NODE = {"class_type": "VAELoader", "inputs": {"vae_name": "ae.safetensors"}}
TEXT_NODE = {"class_type": "PrimitiveString", "inputs": {"value": "lk"}}
SAVE_BY_NAME = {"class_type": "Image Save", "inputs": {"images": ["1", 0], "output_path": "", "filename_prefix": "fox"}}
SAVE_BY_LINKED_NAME = {
    "class_type": "Image Save",
    "inputs": {"images": ["1", 0], "output_path": "", "filename_prefix": ["3", 0]},
}
SAVE_AT_PATH = {"class_type": "Image Saver", "inputs": {"images": ["1", 0], "filename": "fox", "path": "a"}}
SAVE_AT_PATH_BY_LINKED_NAME = {
    "class_type": "Image Saver",
    "inputs": {"images": ["1", 0], "filename": ["3", 0], "path": "a"},
}
SAVE_BY_LINKED_PREFIX = {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": ["3", 0]}}


def graph_of(saver: dict[str, Any], **others: dict[str, Any]) -> Graph:
    """Return a graph of an image, a text, a VAE and `saver`."""
    graph = {"1": IMAGE_NODE, "3": TEXT_NODE, "4": VAE_NODE, "9": saver, **others}
    return {node_id: {**node, "inputs": dict(node["inputs"])} for node_id, node in graph.items()}


@pytest.fixture(params=["by URL", "with its folder"])
def each_server(request: pytest.FixtureRequest, simulator: Simulator) -> Iterator[ComfyServer]:
    """A client of the simulator: once over HTTP only, once with access to the simulator's folders."""
    directory = None if request.param == "by URL" else simulator.output_dir.parent
    server = ComfyServer(simulator.url, directory=directory)
    yield server
    server.close()


def run_graph(server: ComfyServer, graph: Graph) -> RunResult:
    """Run a graph; return the result."""
    limits = WaitLimits(timeout_s=60, queue_timeout_s=60, silence_s=0.1)
    return run_graphs(server, [graph], [], limits, lambda: None)


@pytest.mark.parametrize(
    ("saver", "name"),
    [
        (SAVE_BY_NAME, "fox"),
        (SAVE_BY_LINKED_NAME, "lk"),
        (SAVE_AT_PATH, "fox"),
        (SAVE_AT_PATH_BY_LINKED_NAME, "lk"),
        (SAVE_BY_LINKED_PREFIX, "lk"),
    ],
)
def test_the_same_graph_twice_returns_a_complete_image_twice(
    simulator: Simulator, each_server: ComfyServer, saver: dict[str, Any], name: str
) -> None:
    """The second job saves its own file. ComfyUI's cache would name the first job's file, which was deleted."""
    for _ in range(2):
        [prompt] = run_graph(each_server, graph_of(saver)).prompts
        [image] = prompt.images
        assert len(image.data) > 50
        assert image.stem == name
        assert remaining(simulator) == []


def test_placeholders_in_a_file_name_are_replaced(server: ComfyServer) -> None:
    """`%width%` and `%height%` are replaced by the image's size, and characters that Windows forbids are replaced."""
    saver = {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "a/fox_%width%x%height%:"}}
    [image] = run_graph(server, graph_of(saver)).prompts[0].images
    assert image.stem == "fox_32x16_"


@pytest.mark.parametrize("end", ["succeeds", "fails", "is cancelled"])
def test_a_file_that_no_node_reports_is_deleted_with_the_run(
    simulator: Simulator, workflows: Mapping[str, Workflow], end: str
) -> None:
    """VAESave writes into the run's folder, which is deleted however the run ends."""
    [graph] = render(workflows["flux-dev-txt2img"], {"prompt": "x", "seed": 1, "steps": 2, "width": 64, "height": 64})
    graph["20"] = {"class_type": "VAESave", "inputs": {"vae": ["3", 0], "filename_prefix": "vae/ComfyUI"}}
    server = ComfyServer(simulator.url, directory=simulator.output_dir.parent)
    written: list[Path] = []
    if end == "is cancelled":
        simulator.faults.hang_sampling()
    if end == "fails":
        simulator.faults.fail_node("KSampler", "RuntimeError", "no")

    def reason_to_stop() -> JobError | None:
        if simulator.hanging_step is None:
            return None
        written.extend(simulator.output_dir.glob("run-*/vae/*"))
        return JobError.because(ErrorCode.CANCELLED, "no")

    codes = {"fails": ErrorCode.EXECUTION_FAILED, "is cancelled": ErrorCode.CANCELLED}
    code = None
    try:
        run_graphs(server, [graph], [], WaitLimits(timeout_s=60, queue_timeout_s=60), reason_to_stop)
    except JobError as error:
        code = error.code
    server.close()

    assert code == codes.get(end)
    assert len(written) == (end == "is cancelled")
    assert list(simulator.output_dir.iterdir()) == []


def test_a_computed_prefix_is_rejected_for_a_saver_that_reports_no_file(server: ComfyServer) -> None:
    """A save node that reports no file needs a fixed prefix, or the worker could not know which file to delete."""
    linked = {"class_type": "VAESave", "inputs": {"vae": ["4", 0], "filename_prefix": ["1", 0]}}
    error = error_of(lambda: run_graph(server, graph_of(linked)))
    assert error.code is ErrorCode.INVALID_INPUT
    assert "must be text, not a link" in error.report.message


def test_files_of_a_failed_job_are_deleted(simulator: Simulator, workflows: Mapping[str, Workflow]) -> None:
    """Files that a node saved before another node failed are deleted. The history lists them."""
    [graph] = render(workflows["flux-dev-txt2img"], {"prompt": "x", "seed": 1, "steps": 2, "width": 64, "height": 64})
    graph["20"] = dict(IMAGE_NODE)
    graph["21"] = {"class_type": "Image Saver", "inputs": {"images": ["20", 0], "filename": "fox", "path": "mine"}}
    simulator.faults.fail_node("KSampler", "RuntimeError", "no")
    server = ComfyServer(simulator.url, directory=simulator.output_dir.parent)
    with pytest.raises(JobError, match="execution_failed"):
        run_graph(server, graph)
    server.close()
    assert [path for path in simulator.output_dir.rglob("*") if path.is_file()] == []


class _ScriptedHandler(HttpHandler):
    """Responds like a ComfyUI whose node reports a file; /view returns the contents that the test sets.

    There is no websocket.
    """

    protocol_version = "HTTP/1.1"
    views: Sequence[bytes | None] = ()
    graphs: list[Graph]

    def do_GET(self) -> None:
        """Respond that every prompt has succeeded. For /view, return the next of `views`, or 404 for None."""
        prompt_id = self.path.rpartition("/")[2]
        files = [{"filename": "fox.png", "subfolder": "", "type": "output"}]
        entry = {"outputs": {"9": {"images": files}}, "status": {"status_str": "success", "messages": []}}
        responses: dict[str, Any] = {
            "history": {prompt_id: entry},
            "queue": {"queue_running": [], "queue_pending": []},
            "object_info": {"Odd": {"input": {"required": {}}, "output": []}},
        }
        if self.path.startswith("/view"):
            [content, *type(self).views] = self.views
            self.respond(404 if content is None else 200, content or b"")
        else:
            response = responses.get(self.path.split("/")[1])
            self.respond(404 if response is None else 200, json.dumps(response).encode())

    def do_POST(self) -> None:
        """Accept everything, and record the graphs."""
        body = self.body()
        if self.path == "/prompt":
            self.graphs.append(json.loads(body)["prompt"])
        self.respond(200, b"{}")


def scripted_run(*views: bytes | None) -> tuple[RunResult | JobError, list[Graph]]:
    """Run a job whose file has the contents `views`, one per download; return its outcome and the queued graphs."""

    class Handler(_ScriptedHandler):
        graphs: list[Graph] = []  # noqa: RUF012 - a new class for each run

    Handler.views = views
    with HttpServer(Handler) as http:
        server = ComfyServer(http.url, connect_timeout_s=0.1)
        outcome: RunResult | JobError
        try:
            outcome = run_graph(server, {"9": {"class_type": "Odd", "inputs": {}}})
        except JobError as error:
            outcome = error
        server.close()
    return outcome, Handler.graphs


@pytest.mark.parametrize("missing", [b"", None])
def test_an_empty_file_is_generated_again(missing: bytes | None) -> None:
    """If a reported file is empty or missing, its node runs again: ComfyUI's cache named a file that was deleted."""
    outcome, graphs = scripted_run(missing, png(16, 16))
    assert isinstance(outcome, RunResult)
    [image] = outcome.prompts[0].images
    assert image.data == png(16, 16)
    assert len(graphs) == 2
    assert graphs[0] != graphs[1]


@pytest.mark.parametrize("missing", [b"", None])
def test_a_file_that_stays_empty_is_an_error(missing: bytes | None) -> None:
    """If the file is empty or missing again, the job fails with no_output, and the error names the node."""
    outcome, graphs = scripted_run(missing, missing)
    assert isinstance(outcome, JobError)
    assert outcome.code is ErrorCode.NO_OUTPUT
    assert "Node 9 (Odd)" in outcome.report.message
    assert len(graphs) == 2
