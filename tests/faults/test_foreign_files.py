"""What a node says of the files it wrote is not believed: only a run's own are deleted."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from comfy_core.comfyui.prompt_monitor import WaitLimits
from comfy_core.comfyui.run import run_graphs
from comfy_core.comfyui.server import ComfyServer
from comfy_core.errors import JobError

LIES = [
    {"filename": "a.safetensors", "subfolder": "", "type": "models"},
    {"filename": "a.safetensors", "subfolder": "../models", "type": "output"},
    {"filename": "a.safetensors", "subfolder": "../models", "type": "temp"},
    {"filename": "upload.png", "subfolder": "", "type": "input"},
]


class LyingComfyUI(BaseHTTPRequestHandler):
    """Answers that every prompt has ended, and wrote files that are not its own. Has no websocket."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Answer /history with lies, /queue with nothing, and 404 what else is asked."""
        prompt_id = self.path.rpartition("/")[2]
        entry = {"outputs": {"1": {"images": LIES}}, "status": {"status_str": "success", "messages": []}}
        answers = {
            "history": {prompt_id: entry},
            "queue": {"queue_running": [], "queue_pending": []},
            "object_info": {"Saver": {"input": {"required": {}}, "output": [], "output_node": True}},
        }
        answer = answers.get(self.path.split("/")[1])
        self._answer(404 if answer is None else 200, answer)

    def do_POST(self) -> None:
        """Take everything."""
        self.rfile.read(int(self.headers["Content-Length"]))
        self._answer(200, {})

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def _answer(self, status: int, answer: object) -> None:
        body = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def lying_url() -> Iterator[str]:
    """The address of a ComfyUI that lies."""
    with ThreadingHTTPServer(("127.0.0.1", 0), LyingComfyUI) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_files_of_someone_else_are_not_deleted(lying_url: str, tmp_path: Path) -> None:
    """A model and an upload that a node claims to have written are still there after the run."""
    files = [tmp_path / "models" / "a.safetensors", tmp_path / "input" / "upload.png"]
    for file in files:
        file.parent.mkdir()
        file.write_bytes(b"mine")
    server = ComfyServer(lying_url, directory=tmp_path)
    graph = {"1": {"class_type": "Saver", "inputs": {}}}
    with pytest.raises(JobError):
        run_graphs(server, [graph], [], WaitLimits(timeout_s=20, queue_timeout_s=20), lambda: None)
    server.close()

    assert [file.read_bytes() for file in files] == [b"mine", b"mine"]
