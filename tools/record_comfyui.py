"""Records tests/recordings from a real ComfyUI.

It must run twice, each time with a ComfyUI that was just started and has empty folders; `tools/random_models.py` starts
such a ComfyUI. From a ComfyUI with `--preview-method` it makes the recordings that need previews, from one without
`--preview-method` all others. tests/recordings/README.md describes the files.
"""

from __future__ import annotations

import argparse
import io
import json
import re
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import requests
import websocket
from PIL import Image

from tools.recorded_graphs import REFUSED, TXT2IMG, Graph, changed, img2img, to_websocket

RECORDING_TIMEOUT_S = 300.0
DROP_ATTEMPTS = 5
SILENCE_S = 3.0
"""Seconds for which a websocket is read when no more frames are expected."""
UPLOAD_CONTENT = b"x" * 77
"""Content of the uploads with unusual names."""
RECORDINGS = Path(__file__).resolve().parent.parent / "tests" / "recordings"
UNRECORDED_KEYS = {"category", "description", "display_name", "help", "input_order", "python_module", "tooltip"}
"""Keys of /object_info and of error responses that contain texts for people. They are not recorded."""
FAILURE_EVENTS = {"execution_error", "execution_interrupted"}
HOST_PATH = re.compile(r"'/[^']*/input/")

RUNS: dict[str, Graph] = {
    "txt2img_cold": TXT2IMG,
    "txt2img_warm": changed(TXT2IMG, ks={"seed": 8}),
    "txt2img_cached_same_seed": changed(TXT2IMG, ks={"seed": 8}),
    "img2img": img2img("jobs/abc/in.png", steps=5, denoise=0.6),
    "txt2img_batch2": changed(TXT2IMG, ks={"seed": 9}, lat={"batch_size": 2}),
    "txt2img_ws_save": to_websocket(changed(TXT2IMG, ks={"seed": 10})),
    "err_corrupt_image": img2img("bad.png"),
    "interrupted": changed(TXT2IMG, ks={"seed": 11, "steps": 30}),
    "err_runtime_shape": changed(TXT2IMG, clip={"type": "sdxl"}, ks={"seed": 12}),
}
"""Graphs by the name of their recording, in the order in which they run. ComfyUI caches parts of earlier graphs."""

Entry = dict[str, Any]
"""One element of a recording: a frame, a request with its response, or a note."""


class ComfyUI:
    """HTTP and websockets of one ComfyUI."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self._session = requests.Session()

    def send(self, method: str, path: str, **options: Any) -> requests.Response:  # noqa: ANN401 - the options of requests
        """Send a request and return the response."""
        return self._session.request(method, self.url + path, timeout=RECORDING_TIMEOUT_S, **options)

    def exchange(self, method: str, path: str, **options: Any) -> Entry:  # noqa: ANN401 - the options of requests
        """Send a request; return the request and its response as an entry."""
        response = self.send(method, path, **options)
        content_type = response.headers.get("Content-Type")
        body = response.json() if "json" in (content_type or "") else f"<{len(response.content)} bytes>"
        request = {"method": method, "path": path, **options}
        return {"request": request, "status": response.status_code, "content_type": content_type, "body": body}

    def upload(self, name: str, content: bytes, **form: str) -> requests.Response:
        """Upload a file and return the response."""
        return self.send("POST", "/upload/image", files={"image": (name, content)}, data=form)

    def history(self, prompt_id: str) -> Entry:
        """Wait until /history has the prompt; return that request and its response as an entry."""
        deadline = time.monotonic() + RECORDING_TIMEOUT_S
        while not (entry := self.exchange("GET", f"/history/{prompt_id}"))["body"]:
            if time.monotonic() > deadline:
                sys.exit(f"tools.record_comfyui: /history has no entry for {prompt_id} after {RECORDING_TIMEOUT_S:g} s")
            time.sleep(0.05)
        return entry

    @contextmanager
    def websocket(self, client_id: str) -> Iterator[websocket.WebSocket]:
        """Yield an open websocket, and close it afterwards."""
        address = f"{self.url.replace('http', 'ws', 1)}/ws?clientId={client_id}"
        connection = websocket.create_connection(address, timeout=RECORDING_TIMEOUT_S)
        try:
            yield connection
        finally:
            connection.close()


def read_frame(connection: websocket.WebSocket) -> Entry:
    """Return the next frame of a websocket as an entry."""
    opcode, data = connection.recv_data()
    if opcode == websocket.ABNF.OPCODE_TEXT:
        return {"ws": without_texts_for_people(json.loads(data))}
    head = data[:16].hex()
    return {"ws_binary": {"len": len(data), "head_hex": head, "event": int(head[:8], 16), "fmt": int(head[8:16], 16)}}


def read_until(connection: websocket.WebSocket, is_last: Callable[[Entry], bool], posted_at: float) -> Iterator[Entry]:
    """Yield frames with their seconds since `posted_at`, up to and including the one for which `is_last` is true."""
    while True:
        frame = read_frame(connection)
        yield {"t": round(time.monotonic() - posted_at, 4), **frame}
        if is_last(frame):
            return


def is_message(kind: str, **data: object) -> Callable[[Entry], bool]:
    """Return a predicate that is true for messages of type `kind` that contain `data`."""
    return lambda frame: (
        frame.get("ws", {}).get("type") == kind
        and all(frame["ws"]["data"].get(name, "") == value for name, value in data.items())
    )


def is_end(frame: Entry) -> bool:
    """Return whether a frame is the last one of a run."""
    return frame.get("ws", {}).get("type") in FAILURE_EVENTS or is_message("executing", node=None)(frame)


def without_texts_for_people(value: Any) -> Any:  # noqa: ANN401 - JSON
    """Return JSON without UNRECORDED_KEYS, tracebacks and the host's paths of input files."""
    match value:
        case dict():
            kept = {key: inner for key, inner in value.items() if key not in UNRECORDED_KEYS}
            return {key: [] if key == "traceback" else without_texts_for_people(inner) for key, inner in kept.items()}
        case list():
            return [without_texts_for_people(inner) for inner in value]
        case str():
            return HOST_PATH.sub("'/comfyui/input/", value)
    return value


def prompt_response(response: requests.Response) -> Entry:
    """Return the response to POST /prompt as an entry."""
    headers = {key: value for key, value in response.headers.items() if key != "Date"}
    body = without_texts_for_people(response.json())
    return {"t": 0, "http": "POST /prompt", "status": response.status_code, "headers": headers, "body": body}


def run(comfyui: ComfyUI, graph: Graph, interrupt_at_step: int = 0) -> list[Entry]:
    """Run a graph; return the response to POST /prompt, the frames, and the response of /history.

    The last frame of a failed or interrupted run is the one that reports the failure or the interrupt. If
    `interrupt_at_step` is not 0, the run is interrupted after that step.
    """
    client_id = str(uuid.uuid4())
    with comfyui.websocket(client_id) as connection:
        response = comfyui.send("POST", "/prompt", json={"prompt": graph, "client_id": client_id})
        posted_at = time.monotonic()
        is_step = is_message("progress", value=interrupt_at_step)
        frames = []
        for frame in read_until(connection, is_end, posted_at):
            frames.append(frame)
            if is_step(frame):
                comfyui.send("POST", "/interrupt")
    body = without_texts_for_people(comfyui.history(response.json()["prompt_id"])["body"])
    return [prompt_response(response), *frames, {"http": "GET /history/{id}", "status": 200, "body": body}]


def refused_prompt(comfyui: ComfyUI, graph: Graph) -> list[Entry]:
    """Send a graph that ComfyUI does not accept, and return the response."""
    return [prompt_response(comfyui.send("POST", "/prompt", json={"prompt": graph, "client_id": str(uuid.uuid4())}))]


def record_reconnect(comfyui: ComfyUI) -> list[Entry]:
    """Run a graph until its websocket misses exactly step 2, at most DROP_ATTEMPTS times; return that run."""
    for seed in range(204, 204 + DROP_ATTEMPTS):
        entries = run_with_disconnects(comfyui, changed(TXT2IMG, ks={"seed": seed, "steps": 6}))
        if any(is_message("progress", value=3)(entry) for entry in entries):
            return entries
    sys.exit(f"tools.record_comfyui: in {DROP_ATTEMPTS} attempts no websocket missed exactly one step")


def run_with_disconnects(comfyui: ComfyUI, graph: Graph) -> list[Entry]:
    """Return a run whose websocket is closed after step 1 for about one step, and then until the run has ended."""
    client_id = str(uuid.uuid4())
    note = (
        "websocket closed after the first step and opened again with the same clientId while the prompt still runs; "
        "then closed again and opened after the end"
    )
    entries: list[Entry] = [{"note": note}]
    is_step = is_message("progress")
    with comfyui.websocket(client_id) as connection:
        entries.append(comfyui.exchange("POST", "/prompt", json={"prompt": graph, "client_id": client_id}))
        frames = list(read_until(connection, is_step, time.monotonic()))
    step_s = frames[-1]["t"] - frames[-3]["t"]
    time.sleep(step_s * 1.5)
    with comfyui.websocket(client_id) as connection:
        entries += [*frames, {"note": "closed"}, {"note": "reconnected"}, *read_until(connection, is_step, 0)]
    prompt_id = entries[1]["body"]["prompt_id"]
    history = comfyui.history(prompt_id)
    entries += [
        {"note": "closed"},
        {"note": f"reconnected after the end; what arrives in {SILENCE_S:g} s follows"},
    ]
    with comfyui.websocket(client_id) as connection:
        connection.settimeout(SILENCE_S)
        try:
            while True:
                entries.append(read_frame(connection))
        except websocket.WebSocketTimeoutException:
            entries.append({"note": "nothing more"})
    return [{key: value for key, value in entry.items() if key != "t"} for entry in [*entries, history]]


def record_queue_delete_interrupt(comfyui: ComfyUI) -> list[Entry]:
    """Return a run of three prompts: the first is interrupted, the second deleted, the third succeeds."""
    client_id = str(uuid.uuid4())
    first, second, third = (str(uuid.uuid4()) for _ in range(3))
    note = (
        "three prompts queued with caller-chosen ids; the second is deleted while pending, the first interrupted while "
        "running, the third runs"
    )
    entries: list[Entry] = [{"note": note}]
    posted_at = time.monotonic()
    with comfyui.websocket(client_id) as connection:
        for prompt_id, seed, steps in ((first, 201, 8), (second, 202, 2), (third, 203, 2)):
            graph = changed(TXT2IMG, ks={"seed": seed, "steps": steps})
            body = {"prompt": graph, "client_id": client_id, "prompt_id": prompt_id}
            entries.append(comfyui.exchange("POST", "/prompt", json=body))
            if prompt_id == first:
                entries += read_until(connection, is_message("executing", node="ks"), posted_at)
        entries += read_until(connection, lambda frame: "ws_binary" in frame, posted_at)
        entries += [
            comfyui.exchange("GET", "/queue"),
            comfyui.exchange("GET", f"/history/{first}"),
            comfyui.exchange("POST", "/queue", json={"delete": [second]}),
            comfyui.exchange("POST", "/interrupt", json={"prompt_id": first}),
        ]
        entries += read_until(connection, is_message("executing", node=None, prompt_id=third), posted_at)
    comfyui.history(third)
    return [*entries, *(comfyui.exchange("GET", f"/history/{prompt_id}") for prompt_id in (first, second, third))]


def uploads(comfyui: ComfyUI) -> Iterator[Entry]:
    """Upload files with valid and hostile names; yield each request and its response."""
    for name, subfolder in (
        ("ok.png", ""),
        ("../../evil.png", ""),
        ("ok.png", "../.."),
        ("a b ü.png", "jobs/x"),
        ("nested/dir/x.png", ""),
    ):
        request = {"upload filename": name, "subfolder": subfolder}
        yield as_text(request, comfyui.upload(name, UPLOAD_CONTENT, subfolder=subfolder))
    yield as_text("upload the same name, other content, no overwrite", comfyui.upload("ok.png", b"other content"))
    yield as_text("upload with no file", comfyui.send("POST", "/upload/image", files={"other": b""}))


def as_text(request: object, response: requests.Response) -> Entry:
    """Return a request and its response, with the body as text."""
    return {"request": request, "status": response.status_code, "body": response.text}


def http_exchanges(comfyui: ComfyUI) -> Iterator[Entry]:
    """Send requests that queue no prompt; yield each request and its response."""
    yield from uploads(comfyui)
    for filename, folder in (("none.png", "output"), ("../../main.py", "output"), ("ok.png", "input")):
        yield comfyui.exchange("GET", "/view", params={"filename": filename, "type": folder})
    for path in (
        "/history/unknown-id",
        "/queue",
        "/prompt",
        "/system_stats",
        "/features",
        "/models/diffusion_models",
        "/models/vae",
    ):
        yield comfyui.exchange("GET", path)
    yield comfyui.exchange("POST", "/interrupt", json={})
    yield comfyui.exchange("POST", "/free", json={"unload_models": True, "free_memory": True})
    yield as_text("POST /prompt not json", comfyui.send("POST", "/prompt", data="no json"))
    bodies: list[Entry] = [{"client_id": "x"}, {"prompt": {"1": {"inputs": {}}}}, {"prompt": []}]
    for body in bodies:
        yield comfyui.exchange("POST", "/prompt", json=body)
    yield comfyui.exchange("POST", "/history", json={"delete": ["unknown"]})


def object_info(comfyui: ComfyUI) -> Entry:
    """Return this ComfyUI's declarations of the node types that the committed object_info.json lists."""
    declared = comfyui.send("GET", "/object_info").json()
    names = json.loads((RECORDINGS / "object_info.json").read_text())
    return {name: without_texts_for_people(declared[name]) for name in names if name in declared}


def with_previews(comfyui: ComfyUI) -> Iterator[tuple[str, Any]]:
    """Yield the name and the content of each recording that needs previews."""
    yield "txt2img_with_previews", run(comfyui, changed(TXT2IMG, ks={"seed": 200}))
    yield "queue_delete_interrupt", record_queue_delete_interrupt(comfyui)


def without_previews(comfyui: ComfyUI) -> Iterator[tuple[str, Any]]:
    """Yield the name and the content of each recording that needs no previews."""
    file = io.BytesIO()
    Image.new("RGB", (64, 64), "teal").save(file, "PNG")
    upload = comfyui.upload("in.png", file.getvalue(), subfolder="jobs/abc", type="input")
    yield "upload_image", {"status": upload.status_code, "body": upload.json()}
    comfyui.upload("bad.png", b"no image")
    for name, graph in RUNS.items():
        if name == "err_corrupt_image":
            for refused_name, refused_graph in REFUSED.items():
                yield refused_name, refused_prompt(comfyui, refused_graph)
        yield name, run(comfyui, graph, interrupt_at_step=3 if name == "interrupted" else 0)
    repeated_graph = to_websocket(changed(TXT2IMG, ks={"seed": 900, "steps": 2}))
    run(comfyui, repeated_graph)
    yield "txt2img_ws_save_again", run(comfyui, repeated_graph)
    run(comfyui, TXT2IMG)
    yield "reconnect", record_reconnect(comfyui)
    yield "http", list(http_exchanges(comfyui))
    yield "object_info", object_info(comfyui)


def one_entry_per_line(content: Entry | list[Entry]) -> str:
    """Return JSON with one entry per line."""
    encode = json.JSONEncoder(separators=(",", ":")).encode
    if isinstance(content, dict):
        return "{\n" + ",\n".join(f"{encode(key)}:{encode(value)}" for key, value in content.items()) + "\n}\n"
    return "[\n" + ",\n".join(map(encode, content)) + "\n]\n"


def main() -> None:
    """Write the recordings that this ComfyUI can make: those with previews, or all others."""
    parser = argparse.ArgumentParser(prog="python -m tools.record_comfyui", description=__doc__)
    parser.add_argument("url", help="a ComfyUI that was just started, with empty folders for input and output")
    parser.add_argument("--to", type=Path, default=RECORDINGS, help="folder (tests/recordings)")
    options = parser.parse_args()
    comfyui = ComfyUI(options.url)
    if comfyui.send("GET", "/prompt").json()["exec_info"]["queue_remaining"] or comfyui.send("GET", "/history").json():
        sys.exit("tools.record_comfyui: this ComfyUI has run prompts. Start it again, with empty folders")
    has_previews = "--preview-method" in comfyui.send("GET", "/system_stats").json()["system"]["argv"]
    options.to.mkdir(parents=True, exist_ok=True)
    for name, content in (with_previews if has_previews else without_previews)(comfyui):
        (options.to / f"{name}.json").write_text(one_entry_per_line(content))
        print(f"{name}.json", flush=True)


if __name__ == "__main__":
    main()
