"""Savers that behave unlike SaveImage: each job gets its files, whole, and nothing that a job wrote is left."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from comfy_core.comfyui.prompt_monitor import WaitLimits
from comfy_core.comfyui.run import RunResult, run_graphs
from comfy_core.comfyui.server import ComfyServer
from comfy_core.error_codes import ErrorCode
from comfy_core.errors import JobError
from comfy_core.workflows import Graph, Workflow, render
from simulators.comfyui import Simulator
from tests.comfyui.conftest import png
from tests.faults.test_following import error_of, left_behind

PICTURE = {"class_type": "EmptyImage", "inputs": {"width": 32, "height": 16, "batch_size": 1, "color": 255}}
VAE = {"class_type": "VAELoader", "inputs": {"vae_name": "ae.safetensors"}}
TEXT = {"class_type": "PrimitiveString", "inputs": {"value": "lk"}}
BY_NAME = {"class_type": "Image Save", "inputs": {"images": ["1", 0], "output_path": "", "filename_prefix": "fox"}}
BY_LINKED_NAME = {
    "class_type": "Image Save",
    "inputs": {"images": ["1", 0], "output_path": "", "filename_prefix": ["3", 0]},
}
AT_PATH = {"class_type": "Image Saver", "inputs": {"images": ["1", 0], "filename": "fox", "path": "a"}}
AT_LINKED_PATH = {"class_type": "Image Saver", "inputs": {"images": ["1", 0], "filename": ["3", 0], "path": "a"}}
LINKED = {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": ["3", 0]}}


def graph_of(saver: dict[str, Any], **others: dict[str, Any]) -> Graph:
    """Return a graph of a picture, a text, a VAE and `saver`."""
    graph = {"1": PICTURE, "3": TEXT, "4": VAE, "9": saver, **others}
    return {node_id: {**node, "inputs": dict(node["inputs"])} for node_id, node in graph.items()}


@pytest.fixture(params=["by URL", "with its folder"])
def server_of_each(request: pytest.FixtureRequest, simulator: Simulator) -> Iterator[ComfyServer]:
    """The simulator, reached over HTTP alone, and with its folder."""
    directory = None if request.param == "by URL" else simulator.output_dir.parent
    server = ComfyServer(simulator.url, directory=directory)
    yield server
    server.close()


def made(server: ComfyServer, graph: Graph) -> RunResult:
    """Run a graph."""
    return run_graphs(server, [graph], [], WaitLimits(timeout_s=20, queue_timeout_s=20), lambda: None)


@pytest.mark.parametrize(
    ("saver", "name"),
    [
        (BY_NAME, "fox"),
        (BY_LINKED_NAME, "lk"),
        (AT_PATH, "fox"),
        (AT_LINKED_PATH, "lk"),
        (LINKED, "lk"),
    ],
)
def test_the_same_graph_twice_gives_a_whole_picture_twice(
    simulator: Simulator, server_of_each: ComfyServer, saver: dict[str, Any], name: str
) -> None:
    """ComfyUI does not answer the second job from its cache, with a file that is gone."""
    for _ in range(2):
        [prompt] = made(server_of_each, graph_of(saver)).prompts
        [image] = prompt.images
        assert len(image.data) > 50
        assert image.prefix == name
        assert left_behind(simulator) == []


def test_a_picture_s_name_is_filled_in_as_comfyui_does(server: ComfyServer) -> None:
    """`%width%` and `%height%` of the picture; characters that Windows refuses are replaced."""
    saver = {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "a/fox_%width%x%height%:"}}
    [image] = made(server, graph_of(saver)).prompts[0].images
    assert image.prefix == "fox_32x16_"


@pytest.mark.parametrize("end", ["succeeds", "fails", "is cancelled"])
def test_a_file_that_no_node_reports_is_deleted_with_the_run(
    simulator: Simulator, workflows: Mapping[str, Workflow], end: str
) -> None:
    """VAESave writes into the run's folder, however the run ends."""
    [graph] = render(workflows["flux-dev-txt2img"], {"prompt": "x", "seed": 1, "steps": 2, "width": 64, "height": 64})
    graph["20"] = {"class_type": "VAESave", "inputs": {"vae": ["3", 0], "filename_prefix": "vae/ComfyUI"}}
    server = ComfyServer(simulator.url, directory=simulator.output_dir.parent)
    written: list[Path] = []
    if end == "is cancelled":
        simulator.faults.hang_sampling()
    if end == "fails":
        simulator.faults.fail_node("KSampler", "RuntimeError", "no")

    def stop() -> JobError | None:
        if simulator.hanging_step is None:
            return None
        written.extend(simulator.output_dir.glob("run-*/vae/*"))
        return JobError.because(ErrorCode.CANCELLED, "no")

    codes = {"fails": ErrorCode.EXECUTION_FAILED, "is cancelled": ErrorCode.CANCELLED}
    code = None
    try:
        run_graphs(server, [graph], [], WaitLimits(timeout_s=20, queue_timeout_s=20), stop)
    except JobError as error:
        code = error.code
    server.close()

    assert code == codes.get(end)
    assert len(written) == (end == "is cancelled")
    assert list(simulator.output_dir.iterdir()) == []


def test_a_prefix_that_a_node_computes_is_refused_for_a_saver_that_reports_nothing(server: ComfyServer) -> None:
    """Nobody would know which files to delete."""
    linked = {"class_type": "VAESave", "inputs": {"vae": ["4", 0], "filename_prefix": ["1", 0]}}
    error = error_of(lambda: made(server, graph_of(linked)))
    assert error.code is ErrorCode.INVALID_INPUT
    assert "must be text, not a link" in error.report.message


def test_what_a_failed_job_s_preview_wrote_is_deleted(simulator: Simulator, workflows: Mapping[str, Workflow]) -> None:
    """History says what the nodes wrote before one failed."""
    [graph] = render(workflows["flux-dev-txt2img"], {"prompt": "x", "seed": 1, "steps": 2, "width": 64, "height": 64})
    graph["20"] = dict(PICTURE)
    graph["21"] = {"class_type": "Image Saver", "inputs": {"images": ["20", 0], "filename": "fox", "path": "mine"}}
    simulator.faults.fail_node("KSampler", "RuntimeError", "no")
    server = ComfyServer(simulator.url, directory=simulator.output_dir.parent)
    with pytest.raises(JobError, match="execution_failed"):
        made(server, graph)
    server.close()
    assert [path for path in simulator.output_dir.rglob("*") if path.is_file()] == []


class _Scripted(BaseHTTPRequestHandler):
    """A ComfyUI whose node reports a file, of which /view gives what the test says. Has no websocket."""

    protocol_version = "HTTP/1.1"
    views: Sequence[bytes | None] = ()
    graphs: list[Graph]

    def do_GET(self) -> None:
        """Answer that every prompt has succeeded, and the next of `views`; 404 for None."""
        prompt_id = self.path.rpartition("/")[2]
        files = [{"filename": "fox.png", "subfolder": "", "type": "output"}]
        entry = {"outputs": {"9": {"images": files}}, "status": {"status_str": "success", "messages": []}}
        answers: dict[str, Any] = {
            "history": {prompt_id: entry},
            "queue": {"queue_running": [], "queue_pending": []},
            "object_info": {"Odd": {"input": {"required": {}}, "output": []}},
        }
        if self.path.startswith("/view"):
            [content, *type(self).views] = self.views
            self._answer(404 if content is None else 200, content or b"")
        else:
            answer = answers.get(self.path.split("/")[1])
            self._answer(404 if answer is None else 200, json.dumps(answer).encode())

    def do_POST(self) -> None:
        """Take everything, and keep the graphs."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/prompt":
            self.graphs.append(json.loads(body)["prompt"])
        self._answer(200, b"{}")

    def log_message(self, *_: object) -> None:
        """Write nothing."""

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def scripted_run(*views: bytes | None) -> tuple[RunResult | JobError, list[Graph]]:
    """Return what a job comes to whose file reads as `views`, one after another, and the graphs that were queued."""

    class Handler(_Scripted):
        graphs: list[Graph] = []  # noqa: RUF012 - of this run

    Handler.views = views
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        server = ComfyServer(f"http://127.0.0.1:{http.server_port}")
        outcome: RunResult | JobError
        try:
            outcome = made(server, {"9": {"class_type": "Odd", "inputs": {}}})
        except JobError as error:
            outcome = error
        server.close()
        http.shutdown()
        thread.join()
    return outcome, Handler.graphs


@pytest.mark.parametrize("missing", [b"", None])
def test_an_empty_file_is_made_again(missing: bytes | None) -> None:
    """It came from ComfyUI's cache, and was emptied or deleted with an earlier job."""
    outcome, graphs = scripted_run(missing, png(16, 16))
    assert isinstance(outcome, RunResult)
    [image] = outcome.prompts[0].images
    assert image.data == png(16, 16)
    assert len(graphs) == 2
    assert graphs[0] != graphs[1]


@pytest.mark.parametrize("missing", [b"", None])
def test_a_file_that_stays_empty_is_no_result(missing: bytes | None) -> None:
    """The error names the node."""
    outcome, graphs = scripted_run(missing, missing)
    assert isinstance(outcome, JobError)
    assert outcome.code is ErrorCode.NO_OUTPUT
    assert "Node 9 (Odd)" in outcome.report.message
    assert len(graphs) == 2
