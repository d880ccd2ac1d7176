"""The simulator sends the same messages as a real ComfyUI, frame by frame, for the same requests."""

from __future__ import annotations

import io
from typing import Any

import pytest
from PIL import Image

from simulators.comfyui import Simulator
from tools.normal_messages import normal
from tools.recorded_graphs import REFUSED, RUNS_OF_NEWER_NODES, TXT2IMG, Graph, changed, to_websocket

from .driver import Driver, simulated, wait_until
from .recorded import frames, graph_of, recording

NO_GRAPH: Graph = {}
BATCH_OF_2 = changed(TXT2IMG, lat={"batch_size": 2})
RAN_BEFORE: dict[str, Graph] = {
    "txt2img_cold": NO_GRAPH,
    "txt2img_warm": TXT2IMG,
    "txt2img_cached_same_seed": changed(TXT2IMG, ks={"seed": 8}),
    "img2img": TXT2IMG,
    "txt2img_batch2": TXT2IMG,
    "txt2img_ws_save": BATCH_OF_2,
    "txt2img_ws_save_again": to_websocket(changed(TXT2IMG, ks={"seed": 900, "steps": 2})),
    "err_corrupt_image": TXT2IMG,
    "interrupted": BATCH_OF_2,
    "err_runtime_shape": TXT2IMG,
    "nested_inputs": NO_GRAPH,
}
"""Maps each recorded run to the graph that ran before it, because ComfyUI's cache depends on that graph."""


def small_png() -> bytes:
    """Return a small PNG."""
    file = io.BytesIO()
    Image.new("RGB", (64, 64), "teal").save(file, "PNG")
    return file.getvalue()


def replayed(driver: Driver, entries: list[dict[str, Any]], interrupt_at: int | None = None) -> list[dict[str, Any]]:
    """Run the graph of a recording; return response, frames and history entry in the recordings' format.

    If `interrupt_at` is given, the run is interrupted after that number of frames.
    """
    with driver.listening() as listener:
        received = [listener.frame()]
        response = driver.queue(graph_of(entries))
        while len(received) < len(frames(entries)):
            if len(received) == interrupt_at:
                driver.post("/interrupt")
            received.append(listener.frame())
        prompt_id = response.json()["prompt_id"]
        return [
            {"http": "POST /prompt", "status": response.status_code, "body": response.json()},
            *received,
            {"http": "GET /history/{id}", "status": 200, "body": {prompt_id: driver.history(prompt_id)}},
        ]


@pytest.mark.parametrize("name", [name for name in RAN_BEFORE if name != "interrupted"])
def test_a_run_matches_its_recording(driver: Driver, name: str) -> None:
    """The response, the frames in their order, and the history entry are equal."""
    driver.upload("in.png", small_png(), subfolder="jobs/abc")
    driver.upload("bad.png", b"no picture")
    if RAN_BEFORE[name]:
        driver.run(RAN_BEFORE[name])

    assert normal(replayed(driver, recording(name))) == normal(recording(name))


def test_an_interrupted_run_matches_its_recording(sim: Simulator, driver: Driver) -> None:
    """A run that is interrupted during step 4 of 30 has the recorded frames and history entry."""
    entries = recording("interrupted")
    driver.run(RAN_BEFORE["interrupted"])
    sim.faults.hang_sampling(at_step=4)

    assert normal(replayed(driver, entries, interrupt_at=len(frames(entries)) - 1)) == normal(entries)


def test_previews_match_their_recording() -> None:
    """A simulator with previews sends the recorded frames, among them the headers of the JPEG frames."""
    entries = recording("txt2img_with_previews")
    with simulated(previews=True) as (_, driver):
        assert normal(replayed(driver, entries)) == normal(entries)


@pytest.mark.parametrize("name", [*REFUSED, "err_nested_inputs", "missing_resolution_steps"])
def test_a_refusal_matches_its_recording(driver: Driver, name: str) -> None:
    """Status and body of a rejected prompt are equal."""
    response = driver.queue((REFUSED | RUNS_OF_NEWER_NODES)[name])

    assert normal([{"http": "POST /prompt", "status": response.status_code, "body": response.json()}]) == normal(
        recording(name)
    )


def test_an_upload_matches_its_recording(driver: Driver) -> None:
    """The response to an upload into a subfolder has name, subfolder and type."""
    response = driver.upload("in.png", small_png(), subfolder="jobs/abc", type="input")

    assert {"status": response.status_code, "body": response.json()} == recording("upload_image")


def exchanged(driver: Driver, request: dict[str, Any]) -> dict[str, Any]:
    """Send a recorded request; return the exchange in the recordings' format."""
    method, path = request["method"], request["path"]
    options = {key: request[key] for key in ("params", "json") if key in request}
    response = driver.session.request(method, driver.url + path, timeout=60, **options)
    is_json = "json" in response.headers.get("Content-Type", "")
    body = response.json() if is_json else f"<{len(response.content)} bytes>"
    kind = response.headers.get("Content-Type")
    return {"request": request, "status": response.status_code, "type": kind, "body": body}


def expected_exchanges(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the HTTP exchanges of a recording."""
    exchanges = [entry for entry in entries if isinstance(entry.get("request"), dict)]
    return [{**entry, "type": entry["content_type"]} for entry in exchanges if "method" in entry["request"]]


def test_deleting_and_interrupting_match_their_recording() -> None:
    """Of three prompts the waiting one is deleted, the running one interrupted, and the last one runs.

    The position of status frames between steps depends on timing, so the test holds steps until these frames were sent.
    """
    entries = recording("queue_delete_interrupt")
    requests = [entry["request"] for entry in expected_exchanges(entries)]
    client_id = requests[0]["json"]["client_id"]
    with simulated(previews=True) as (sim, driver):
        driver.run(TXT2IMG)
        sim.faults.hang_sampling(at_step=1)
        sim.faults.hang_sampling(at_step=2)
        with driver.listening(client_id) as listener:
            received = [listener.frame()]
            exchanges = [exchanged(driver, requests.pop(0))]
            received += listener.frames_until("executing", node="ks")
            exchanges += [exchanged(driver, requests.pop(0)), exchanged(driver, requests.pop(0))]
            received += listener.frames(2)
            wait_until(lambda: sim.hanging_step == 1)
            sim.faults.release()
            received += listener.frames_until("progress", value=1)
            received.append(listener.frame())
            exchanges += [exchanged(driver, requests.pop(0)) for _ in range(4)]
            third = exchanges[2]["body"]["prompt_id"]
            received += listener.frames_until("executing", node=None, prompt_id=third)
        exchanges += [exchanged(driver, request) for request in requests]

    assert normal(received) == normal(frames(entries))
    assert normal(exchanges) == normal(expected_exchanges(entries))


def test_cancelling_jobs_matches_its_recording() -> None:
    """A waiting prompt is deleted and a running one interrupted. For ended and unknown prompts nothing is cancelled."""
    entries = recording("cancel_jobs")
    requests = [entry["request"] for entry in expected_exchanges(entries)]
    client_id = requests[0]["json"]["client_id"]
    with simulated() as (sim, driver):
        sim.faults.hang_sampling(at_step=2)
        with driver.listening(client_id) as listener:
            exchanges = [exchanged(driver, request) for request in requests[:2]]
            wait_until(lambda: sim.hanging_step == 2)
            exchanges += [exchanged(driver, request) for request in requests[2:4]]
            interrupted = listener.frames_until("execution_interrupted")[-1]
            driver.history(interrupted["ws"]["data"]["prompt_id"])
        exchanges += [exchanged(driver, request) for request in requests[4:]]

    assert normal(interrupted) == normal(frames(entries)[-1])
    assert normal(exchanges) == normal(expected_exchanges(entries))


def test_reconnecting_matches_its_recording() -> None:
    """A client that reconnects gets the running node without a prompt_id, and after the end nothing."""
    entries = recording("reconnect")
    post, history = (entry["request"] for entry in expected_exchanges(entries))
    client_id = post["json"]["client_id"]
    with simulated() as (sim, driver):
        driver.run(TXT2IMG)
        for step in (2, 3, 4):
            sim.faults.hang_sampling(at_step=step)
        with driver.listening(client_id) as listener:
            received = [listener.frame()]
            exchanges = [exchanged(driver, post)]
            received += listener.frames_until("progress", value=1)
        wait_until(lambda: sim.sockets == 0 and sim.hanging_step == 2)
        sim.faults.release()
        wait_until(lambda: sim.hanging_step == 3)
        with driver.listening(client_id) as listener:
            received += listener.frames(2)
            sim.faults.release()
            received += listener.frames_until("progress", value=3)
        wait_until(lambda: sim.sockets == 0 and sim.hanging_step == 4)
        sim.faults.release()
        driver.history(exchanges[0]["body"]["prompt_id"])
        with driver.listening(client_id) as listener:
            received.append(listener.frame())
            assert listener.is_silent()
        exchanges.append(exchanged(driver, {**history, "path": f"/history/{exchanges[0]['body']['prompt_id']}"}))

    assert normal(received) == normal(frames(entries))
    assert normal(exchanges) == normal(expected_exchanges(entries))
