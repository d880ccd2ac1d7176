"""A file that a node reports is only deleted if it belongs to the run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from comfy_core.comfyui.prompt_monitor import WaitLimits
from comfy_core.comfyui.run import run_graphs
from comfy_core.comfyui.server import ComfyServer
from comfy_core.errors import JobError
from simulators.http_server import HttpHandler, HttpServer

FALSE_OUTPUTS = [
    {"filename": "a.safetensors", "subfolder": "", "type": "models"},
    {"filename": "a.safetensors", "subfolder": "../models", "type": "output"},
    {"filename": "a.safetensors", "subfolder": "../models", "type": "temp"},
    {"filename": "upload.png", "subfolder": "", "type": "input"},
]


class FalseOutputsHandler(HttpHandler):
    """Responds like a ComfyUI whose node reports files that the run did not write. There is no websocket."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Return false outputs for /history, an empty queue for /queue, and 404 for anything else."""
        prompt_id = self.path.rpartition("/")[2]
        entry = {"outputs": {"1": {"images": FALSE_OUTPUTS}}, "status": {"status_str": "success", "messages": []}}
        responses = {
            "history": {prompt_id: entry},
            "queue": {"queue_running": [], "queue_pending": []},
            "object_info": {"Saver": {"input": {"required": {}}, "output": [], "output_node": True}},
        }
        response = responses.get(self.path.split("/")[1])
        self.respond(404 if response is None else 200, json.dumps(response).encode())

    def do_POST(self) -> None:
        """Accept everything."""
        self.body()
        self.respond(200, b"{}")


@pytest.fixture
def comfyui_url() -> Iterator[str]:
    """The URL of a server with FalseOutputsHandler."""
    with HttpServer(FalseOutputsHandler) as server:
        yield server.url


def test_files_of_others_are_not_deleted(comfyui_url: str, tmp_path: Path) -> None:
    """A model and an upload that a node claims to have written still exist after the run."""
    files = [tmp_path / "models" / "a.safetensors", tmp_path / "input" / "upload.png"]
    for file in files:
        file.parent.mkdir()
        file.write_bytes(b"mine")
    server = ComfyServer(comfyui_url, directory=tmp_path, connect_timeout_s=0.1)
    graph = {"1": {"class_type": "Saver", "inputs": {}}}
    with pytest.raises(JobError):
        run_graphs(server, [graph], [], WaitLimits(timeout_s=60, queue_timeout_s=60, silence_s=0.1), lambda: None)
    server.close()

    assert [file.read_bytes() for file in files] == [b"mine", b"mine"]
