"""Records tests/recordings/<version> from a real ComfyUI.

It must run twice, each time with a ComfyUI that was just started and has empty folders; `tools/random_models.py` starts
such a ComfyUI. From a ComfyUI with `--preview-method` it makes the recordings that need previews, from one without
`--preview-method` all others. A recording that cannot be made is reported at the end, with the message that did not
arrive; the exit status is then 1. tests/recordings/README.md describes the files.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import requests
import websocket
from PIL import Image

from tools.recorded_graphs import (
    RECORDED_NODES,
    REFUSED,
    RUNS,
    RUNS_OF_NEWER_NODES,
    TXT2IMG,
    Graph,
    changed,
    to_websocket,
)
from tools.recording_client import (
    BINARY,
    END,
    FAILURES,
    IDLE,
    ComfyUI,
    Entry,
    Message,
    RecordingError,
    read_frame,
    read_until,
    without_texts_for_people,
)

RECONNECT_ATTEMPTS = 16
FIRST_PAUSE_STEPS = 1.5
PAUSE_FACTOR = 1.25
SILENCE_S = 3.0
"""Seconds for which a websocket is read when no more frames are expected."""
UPLOAD_CONTENT = b"x" * 77
"""Content of the uploads with unusual names."""
INTERRUPTED_AT_STEP = 3
RECORDINGS = Path(__file__).resolve().parent.parent / "tests" / "recordings"
OK = 200
STEP = Message("progress")

Recording = Callable[[ComfyUI], Entry | list[Entry]]
"""Makes the content of one recording."""


def prompt_response(response: requests.Response) -> Entry:
    """Return the response to POST /prompt as an entry."""
    headers = {key: value for key, value in response.headers.items() if key != "Date"}
    body = without_texts_for_people(response.json())
    return {"t": 0, "http": "POST /prompt", "status": response.status_code, "headers": headers, "body": body}


def run(comfyui: ComfyUI, graph: Graph, interrupt_at_step: int = 0) -> list[Entry]:
    """Run a graph; return the response to POST /prompt, the frames, and the response of /history.

    The last frame of a failed or interrupted run is the one that reports the failure or the interrupt. If
    `interrupt_at_step` is not 0, the run is interrupted after that step. If ComfyUI refuses the graph, only the
    response to POST /prompt is returned.
    """
    client_id = str(uuid.uuid4())
    with comfyui.websocket(client_id) as connection:
        response = comfyui.send("POST", "/prompt", json={"prompt": graph, "client_id": client_id})
        posted_at = time.monotonic()
        if response.status_code != OK:
            return [prompt_response(response)]
        step = Message("progress", value=interrupt_at_step)
        frames = []
        for frame in read_until(connection, *END, posted_at=posted_at):
            frames.append(frame)
            if step.matches(frame):
                comfyui.send("POST", "/interrupt")
    body = without_texts_for_people(comfyui.history(response.json()["prompt_id"])["body"])
    return [prompt_response(response), *frames, {"http": "GET /history/{id}", "status": 200, "body": body}]


def record_again(comfyui: ComfyUI, graph: Graph) -> list[Entry]:
    """Run a graph twice; return the second run."""
    run(comfyui, graph)
    return run(comfyui, graph)


def record_reconnect(comfyui: ComfyUI) -> list[Entry]:
    """Run a graph until its websocket misses exactly step 2, at most RECONNECT_ATTEMPTS times; return that run.

    The pause between two connections is adapted, because the time of a step depends on the load of the machine.
    """
    run(comfyui, TXT2IMG)
    pause_steps = FIRST_PAUSE_STEPS
    for seed in range(204, 204 + RECONNECT_ATTEMPTS):
        entries, step = run_with_disconnect(comfyui, changed(TXT2IMG, ks={"seed": seed, "steps": 6}), pause_steps)
        if step == 3:  # noqa: PLR2004 - the step after the missed one
            break
        pause_steps *= PAUSE_FACTOR if step == 2 else 1 / PAUSE_FACTOR  # noqa: PLR2004 - no step was missed
    else:
        raise RecordingError(f"in {RECONNECT_ATTEMPTS} attempts no websocket missed exactly one step")
    request = entries[1]
    history = comfyui.history(request["body"]["prompt_id"])
    entries += [
        {"note": "closed"},
        {"note": f"reconnected after the end; what arrives in {SILENCE_S:g} s follows"},
    ]
    with comfyui.websocket(request["request"]["json"]["client_id"]) as connection:
        entries += read_until_silence(connection)
    return [{key: value for key, value in entry.items() if key != "t"} for entry in [*entries, history]]


def run_with_disconnect(comfyui: ComfyUI, graph: Graph, pause_steps: float) -> tuple[list[Entry], int | None]:
    """Run a graph, close the websocket after step 1 and open it again when `pause_steps` steps have passed.

    Return the entries and the first step that was reported after the reconnection, or None if the run ended before.
    """
    client_id = str(uuid.uuid4())
    note = (
        "websocket closed after the first step and opened again with the same clientId while the prompt still runs; "
        "then closed again and opened after the end"
    )
    with comfyui.websocket(client_id) as connection:
        request = comfyui.exchange("POST", "/prompt", json={"prompt": graph, "client_id": client_id})
        frames = list(read_until(connection, STEP, posted_at=time.monotonic()))
    step_s = frames[-1]["t"] - frames[-3]["t"]
    time.sleep(step_s * pause_steps)
    with comfyui.websocket(client_id) as connection:
        later = list(read_until(connection, STEP, IDLE, posted_at=0))
    comfyui.history(request["body"]["prompt_id"])
    entries = [{"note": note}, request, *frames, {"note": "closed"}, {"note": "reconnected"}, *later]
    return entries, later[-1]["ws"]["data"].get("value")


def read_until_silence(connection: websocket.WebSocket) -> Iterator[Entry]:
    """Yield frames until none arrives for SILENCE_S, then a note."""
    connection.settimeout(SILENCE_S)
    try:
        while True:
            yield read_frame(connection)
    except websocket.WebSocketTimeoutException:
        yield {"note": "nothing more"}


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
                entries += read_until(connection, Message("executing", node="ks"), posted_at=posted_at)
        entries += read_until(connection, Message(BINARY), posted_at=posted_at)
        entries += [
            comfyui.exchange("GET", "/queue"),
            comfyui.exchange("GET", f"/history/{first}"),
            comfyui.exchange("POST", "/queue", json={"delete": [second]}),
            comfyui.exchange("POST", "/interrupt", json={"prompt_id": first}),
        ]
        entries += read_until(connection, Message("executing", node=None, prompt_id=third), posted_at=posted_at)
    comfyui.history(third)
    return [*entries, *(comfyui.exchange("GET", f"/history/{prompt_id}") for prompt_id in (first, second, third))]


def record_cancel_jobs(comfyui: ComfyUI) -> list[Entry]:
    """Return a run of two prompts that are cancelled with POST /api/jobs/{id}/cancel, and cancels that have no effect.

    If ComfyUI does not have this route, the prompts are stopped with other requests, which are not recorded.
    """
    client_id = str(uuid.uuid4())
    running, waiting, unknown = (str(uuid.uuid4()) for _ in range(3))

    def cancel(prompt_id: str) -> Entry:
        return comfyui.exchange("POST", f"/api/jobs/{prompt_id}/cancel")

    note = "two prompts queued; the second is cancelled while pending, then the first while running"
    entries: list[Entry] = [{"note": note}]
    posted_at = time.monotonic()
    with comfyui.websocket(client_id) as connection:
        for prompt_id, seed in ((running, 205), (waiting, 206)):
            graph = changed(TXT2IMG, ks={"seed": seed, "steps": 30})
            body = {"prompt": graph, "client_id": client_id, "prompt_id": prompt_id}
            entries.append(comfyui.exchange("POST", "/prompt", json=body))
        entries += read_until(connection, STEP, posted_at=posted_at)
        entries += [cancel(waiting), cancel(running)]
        if entries[-1]["status"] != OK:
            comfyui.stop_prompts()
        entries += read_until(connection, *FAILURES, posted_at=posted_at)
    comfyui.history(running)
    entries.append({"note": "cancelled again, and with ids that are unknown"})
    entries += [cancel(prompt_id) for prompt_id in (running, waiting, unknown, "no-uuid")]
    return [*entries, *(comfyui.exchange("GET", f"/history/{prompt_id}") for prompt_id in (running, waiting))]


def record_upload(comfyui: ComfyUI) -> Entry:
    """Upload an image into a subfolder, and return the response. Also upload a file that is no image."""
    file = io.BytesIO()
    Image.new("RGB", (64, 64), "teal").save(file, "PNG")
    upload = comfyui.upload("in.png", file.getvalue(), subfolder="jobs/abc", type="input")
    comfyui.upload("bad.png", b"no image")
    return {"status": upload.status_code, "body": upload.json()}


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


def record_http(comfyui: ComfyUI) -> list[Entry]:
    """Send requests that queue no prompt; return each request and its response."""
    entries = list(uploads(comfyui))
    files = (("none.png", "output"), ("../../main.py", "output"), ("ok.png", "input"))
    entries += [comfyui.exchange("GET", "/view", params={"filename": name, "type": folder}) for name, folder in files]
    paths = ("/history/unknown-id", "/queue", "/prompt", "/system_stats", "/features")
    models = ("/models/diffusion_models", "/models/vae")
    entries += [comfyui.exchange("GET", path) for path in (*paths, *models)]
    entries.append(comfyui.exchange("POST", "/interrupt", json={}))
    entries.append(comfyui.exchange("POST", "/free", json={"unload_models": True, "free_memory": True}))
    entries.append(as_text("POST /prompt not json", comfyui.send("POST", "/prompt", data="no json")))
    bodies: list[Entry] = [
        {"client_id": "x"},
        {"prompt": {"1": {"inputs": {}}}},
        {"prompt": []},
        {"prompt": {}, "prompt_id": "no-uuid"},
    ]
    entries += [comfyui.exchange("POST", "/prompt", json=body) for body in bodies]
    entries.append(comfyui.exchange("POST", "/history", json={"delete": ["unknown"]}))
    return entries


def record_object_info(comfyui: ComfyUI) -> Entry:
    """Return this ComfyUI's declarations of the node types in RECORDED_NODES."""
    declared = comfyui.send("GET", "/object_info").json()
    return {name: without_texts_for_people(declared[name]) for name in RECORDED_NODES if name in declared}


WITH_PREVIEWS: dict[str, Recording] = {
    "txt2img_with_previews": partial(run, graph=changed(TXT2IMG, ks={"seed": 200})),
    "queue_delete_interrupt": record_queue_delete_interrupt,
}
WITHOUT_PREVIEWS: dict[str, Recording] = {
    "upload_image": record_upload,
    **{name: partial(run, graph=graph) for name, graph in (RUNS | REFUSED).items()},
    "interrupted": partial(run, graph=RUNS["interrupted"], interrupt_at_step=INTERRUPTED_AT_STEP),
    "txt2img_ws_save_again": partial(record_again, graph=to_websocket(changed(TXT2IMG, ks={"seed": 900, "steps": 2}))),
    **{name: partial(run, graph=graph) for name, graph in RUNS_OF_NEWER_NODES.items()},
    "cancel_jobs": record_cancel_jobs,
    "reconnect": record_reconnect,
    "http": record_http,
    "object_info": record_object_info,
}
"""Recordings by name, in the order in which they are made. ComfyUI caches parts of earlier graphs."""


def one_entry_per_line(content: Entry | list[Entry]) -> str:
    """Return JSON with one entry per line."""
    encode = json.JSONEncoder(separators=(",", ":")).encode
    if isinstance(content, dict):
        return "{\n" + ",\n".join(f"{encode(key)}:{encode(value)}" for key, value in content.items()) + "\n}\n"
    return "[\n" + ",\n".join(map(encode, content)) + "\n]\n"


def record(url: str, folder: Path | None = None) -> list[str]:
    """Write the recordings that the ComfyUI at `url` can make: those with previews, or all others.

    They are written to `folder`, by default tests/recordings/<version of this ComfyUI>. Return the reasons why
    recordings could not be made.
    """
    with ComfyUI(url) as comfyui:
        if comfyui.has_prompts() or comfyui.send("GET", "/history").json():
            return ["this ComfyUI has run prompts. Start it again, with empty folders"]
        system = comfyui.send("GET", "/system_stats").json()["system"]
        recordings = WITH_PREVIEWS if "--preview-method" in system["argv"] else WITHOUT_PREVIEWS
        return write_recordings(comfyui, recordings, folder or RECORDINGS / system["comfyui_version"])


def write_recordings(comfyui: ComfyUI, recordings: dict[str, Recording], folder: Path) -> list[str]:
    """Make `recordings` and write them to `folder`. Return the reasons why recordings could not be made."""
    folder.mkdir(parents=True, exist_ok=True)
    problems = []
    for name, make in recordings.items():
        try:
            content = make(comfyui)
        except (RecordingError, websocket.WebSocketException, requests.RequestException) as error:
            problems.append(f"{name}.json: {error}")
            if not comfyui.stop_prompts():
                problems.append(f"ComfyUI did not stop its prompt; the recordings after {name}.json are missing")
                break
        else:
            (folder / f"{name}.json").write_text(one_entry_per_line(content))
            print(f"{name}.json", flush=True)
    return problems


def main() -> None:
    """Write the recordings that this ComfyUI can make: those with previews, or all others."""
    parser = argparse.ArgumentParser(prog="python -m tools.record_comfyui", description=__doc__)
    parser.add_argument("url", help="a ComfyUI that was just started, with empty folders for input and output")
    parser.add_argument("--to", type=Path, help="folder (default: tests/recordings/<version>)")
    options = parser.parse_args()
    if problems := record(options.url, options.to):
        sys.exit("\n".join(f"tools.record_comfyui: {problem}" for problem in problems))


if __name__ == "__main__":
    main()
