"""The simulator's routes respond like those of a real ComfyUI, also where these are peculiar."""

from __future__ import annotations

import json
from typing import Any

import pytest
import requests

from simulators.comfyui import Simulator
from tools.recorded_graphs import TXT2IMG, Graph, changed, img2img, node

from .driver import FIRST, FOURTH, SECOND, THIRD, Driver, simulated, wait_until
from .recorded import recording

EXCHANGES = recording("http")
UPLOADS = [entry for entry in EXCHANGES if "upload filename" in str(entry["request"])]
REQUESTS = [entry for entry in EXCHANGES if isinstance(entry["request"], dict) and "method" in entry["request"]]
RECORDED_PNG = b"x" * 77
MACHINE_PATH = "/system_stats"
"""The route whose values differ between machines."""


@pytest.mark.parametrize("entry", UPLOADS, ids=lambda entry: str(entry["request"]["upload filename"]))
def test_an_upload_gets_the_recorded_response(driver: Driver, entry: dict[str, Any]) -> None:
    """Names outside the folder get 400, a slash in a name gets 500, others are stored."""
    request = entry["request"]
    response = driver.upload(request["upload filename"], RECORDED_PNG, subfolder=request["subfolder"])

    assert (response.status_code, response.text) == (entry["status"], entry["body"])


@pytest.mark.parametrize(
    "entry", REQUESTS, ids=lambda entry: f"{entry['request']['method']} {entry['request']['path']}"
)
def test_a_request_gets_the_recorded_response(driver: Driver, entry: dict[str, Any]) -> None:
    """Status, content type and body are equal. Of /system_stats only the types of values are equal."""
    driver.upload("ok.png", RECORDED_PNG)
    request = entry["request"]
    response = driver.session.request(
        request["method"], driver.url + request["path"], params=request.get("params"), json=request.get("json")
    )
    kind = response.headers.get("Content-Type")
    body: Any = response.json() if kind and "json" in kind else f"<{len(response.content)} bytes>"

    assert (response.status_code, kind) == (entry["status"], entry["content_type"])
    if request["path"] == MACHINE_PATH:
        assert _shape(body) == _shape(entry["body"])
    else:
        assert body == entry["body"]


def _shape(value: Any) -> object:  # noqa: ANN401  JSON
    """Return the types in JSON. A list counts by its last item: the first package is the web page's, often missing."""
    match value:
        case dict():
            return {key: _shape(inner) for key, inner in value.items()}
        case list():
            return [_shape(value[-1])]
    return type(value).__name__


def test_other_content_under_a_name_gets_another_name(driver: Driver) -> None:
    """Without overwrite nothing is overwritten; the same bytes keep their name."""
    names = [driver.upload("ok.png", content).text for content in (b"one", b"two", b"one", b"two", b"three")]

    assert names[1] == next(entry["body"] for entry in EXCHANGES if "no overwrite" in str(entry["request"]))
    assert [json.loads(name)["name"] for name in names] == [
        "ok.png",
        "ok (1).png",
        "ok.png",
        "ok (1).png",
        "ok (2).png",
    ]


def test_overwrite_replaces_the_file(sim: Simulator, driver: Driver) -> None:
    """The name stays and the bytes change."""
    driver.upload("ok.png", b"one")
    driver.upload("ok.png", b"two", overwrite="true")

    assert [path.name for path in sim.input_dir.iterdir()] == ["ok.png"]
    assert (sim.input_dir / "ok.png").read_bytes() == b"two"


def test_an_upload_can_go_to_another_folder(sim: Simulator, driver: Driver) -> None:
    """`type` selects the folder; an unknown one is a 500."""
    driver.upload("ok.png", b"one", type="temp")

    assert (sim.temp_dir / "ok.png").read_bytes() == b"one"
    assert driver.upload("ok.png", b"one", type="nope").status_code == 500


def test_an_upload_without_a_file_is_rejected(driver: Driver) -> None:
    """No image gets 400; text in place of a file gets 500."""
    url = f"{driver.url}/upload/image"

    assert requests.post(url, data={"subfolder": "x"}, timeout=60).status_code == 400
    assert requests.post(url, data={"image": "text"}, timeout=60).status_code == 500


def test_a_prompt_that_is_not_json_is_a_500(driver: Driver) -> None:
    """A body that is not JSON gets the recorded 500, whose text is aiohttp's."""
    expected = next(entry for entry in EXCHANGES if entry["request"] == "POST /prompt not json")
    response = driver.session.post(f"{driver.url}/prompt", data="{", timeout=60)

    assert (response.status_code, response.text) == (expected["status"], expected["body"])


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/", 200),
        ("/api/features", 200),
        ("/api/history", 200),
        ("/models/nope", 404),
        ("/object_info/Nope", 200),
        ("/view", 404),
        ("/view?filename=", 400),
        ("/view?filename=/etc/passwd", 400),
        ("/view?filename=x.png&type=nope", 400),
        ("/view?filename=x.png&subfolder=../..", 403),
        ("/nowhere", 404),
    ],
)
def test_statuses_of_a_running_comfyui(driver: Driver, path: str, status: int) -> None:
    """Statuses that were observed but are in no recording."""
    assert driver.get(path).status_code == status


def test_a_page_of_another_origin_is_rejected(driver: Driver) -> None:
    """A request with another Origin than the simulator's own, even with only another port, gets 403."""
    foreign = driver.session.get(f"{driver.url}/queue", headers={"Origin": "http://evil.example"})
    other_port = driver.session.get(f"{driver.url}/queue", headers={"Origin": "http://127.0.0.1:1"})
    own = driver.session.get(f"{driver.url}/queue", headers={"Origin": driver.url})

    assert (foreign.status_code, other_port.status_code, own.status_code) == (403, 403, 200)
    assert driver.session.options(f"{driver.url}/queue").status_code == 200


def test_view_forces_pages_to_be_downloaded(sim: Simulator, driver: Driver) -> None:
    """HTML and SVG in the output folder are served as attachments; files of unknown type are served as bytes."""
    for name, prefix in (("page.html", "attachment; "), ("x.svg", "attachment; "), ("x.unknownkind", "")):
        (sim.output_dir / name).write_text("<p>")
        response = driver.get("/view", filename=name)
        assert response.headers["Content-Type"] == "application/octet-stream"
        assert response.headers["Content-Disposition"] == f'{prefix}filename="{name}"'


def test_view_reads_an_annotated_name(sim: Simulator, driver: Driver) -> None:
    """`x.png [input]` is the file x.png in the input folder."""
    (sim.input_dir / "x.png").write_bytes(b"x")

    assert driver.get("/view", filename="x.png [input]").content == b"x"


def test_front_and_number_set_the_order(sim: Simulator, driver: Driver) -> None:
    """The lowest number runs first; `front` makes a number negative."""
    sim.faults.hang_sampling()
    first = driver.queue(TXT2IMG).json()
    wait_until(lambda: sim.hanging_step)
    later = [
        driver.queue(changed(TXT2IMG, ks={"seed": seed}), prompt_id=prompt_id, **more).json()["number"]
        for seed, prompt_id, more in (
            (1, FOURTH, {}),
            (2, SECOND, {"front": True}),
            (3, THIRD, {"number": 0.5}),
        )
    ]
    assert later == [1, -2, 0.5]
    assert sim.queue_ids == [first["prompt_id"], SECOND, THIRD, FOURTH]

    sim.faults.release()
    driver.history(FOURTH)
    assert sim.executed_prompts == [first["prompt_id"], SECOND, THIRD, FOURTH]


def test_history_entries_can_be_deleted(sim: Simulator, driver: Driver) -> None:
    """GET /history has all entries, oldest first; POST deletes entries by id."""
    for prompt_id in (FIRST, SECOND, THIRD):
        driver.run(TXT2IMG, prompt_id=prompt_id)

    assert list(driver.get("/history").json()) == [FIRST, SECOND, THIRD]
    driver.post("/history", {"delete": [SECOND]})
    assert sim.history_ids == [FIRST, THIRD]


def test_waiting_prompts_can_be_deleted(sim: Simulator, driver: Driver) -> None:
    """The running prompt stays. The deletion of the last waiting prompt sends two status frames, an unknown id none."""
    sim.faults.hang_sampling()
    for prompt_id in (FIRST, SECOND, THIRD):
        driver.queue(TXT2IMG, prompt_id=prompt_id)
    wait_until(lambda: sim.executed_prompts == [FIRST])
    with driver.listening("other") as listener:
        listener.frame()
        for prompt_id in ("unknown", SECOND, THIRD):
            driver.post("/queue", {"delete": [prompt_id]})
        remaining = [frame["ws"]["data"]["status"]["exec_info"]["queue_remaining"] for frame in listener.frames(3)]

    assert remaining == [2, 1, 1]
    assert sim.queue_ids == [FIRST]


def test_an_interruption_of_another_prompt_changes_nothing(sim: Simulator, driver: Driver) -> None:
    """/interrupt with the id of another prompt changes nothing; without a body it stops the running prompt."""
    sim.faults.hang_sampling()
    driver.queue(TXT2IMG, prompt_id=FIRST)
    wait_until(lambda: sim.hanging_step)
    driver.post("/interrupt", {"prompt_id": SECOND})
    assert sim.queue_ids == [FIRST]

    driver.session.post(f"{driver.url}/interrupt", timeout=60)
    assert driver.history(FIRST)["status"]["messages"][-1][0] == "execution_interrupted"


def test_an_older_version_has_no_cancel(sim: Simulator, driver: Driver) -> None:
    """ComfyUI before 0.26 responds to /api/jobs/{id}/cancel with 405."""
    sim.faults.lack_cancel()

    assert driver.post("/api/jobs/a/cancel", {}).status_code == 405


def test_an_interruption_while_idle_does_not_affect_the_next_prompt(driver: Driver) -> None:
    """An interrupt without a running prompt is cleared when the next prompt starts."""
    driver.post("/interrupt", {})

    assert driver.run(TXT2IMG)["status"]["completed"]


def test_free_empties_the_cache(sim: Simulator, driver: Driver) -> None:
    """After free_memory the same graph samples again; unload_models keeps the results."""
    driver.run(TXT2IMG)
    driver.post("/free", {"unload_models": True})
    driver.run(TXT2IMG)
    assert sim.sampled_steps == 3

    driver.post("/free", {"unload_models": True, "free_memory": True})
    driver.run(TXT2IMG)
    assert sim.sampled_steps == 6


def test_secrets_are_not_in_history(driver: Driver) -> None:
    """extra_data is stored without the keys of comfy.org."""
    entry = driver.run(TXT2IMG, extra_data={"api_key_comfy_org": "secret", "kept": 1})

    extra_data = entry["prompt"][3]
    assert {key: value for key, value in extra_data.items() if key != "create_time"} == {
        "kept": 1,
        "client_id": driver.client_id,
    }


BAD_GRAPHS: dict[str, tuple[Graph, str]] = {
    "a link to nothing": (changed(TXT2IMG, out={"images": ["zz", 0]}), "exception_during_validation"),
    "a link to nothing within": (changed(TXT2IMG, dec={"vae": ["zz", 0]}), "exception_during_inner_validation"),
    "an output that is not there": (changed(TXT2IMG, dec={"vae": ["vae", 3]}), "exception_during_inner_validation"),
    "half a link": (changed(TXT2IMG, out={"images": ["dec"]}), "bad_linked_input"),
    "another type": (changed(TXT2IMG, out={"images": ["ks", 0]}), "return_type_mismatch"),
    "too large": (changed(TXT2IMG, lat={"width": 99999}), "value_bigger_than_max"),
    "no number": (changed(TXT2IMG, lat={"width": "wide"}), "invalid_input_type"),
    "nothing": (changed(TXT2IMG, lat={"width": None, "height": None}), "required_input_missing"),
}


@pytest.mark.parametrize("name", list(BAD_GRAPHS))
def test_an_invalid_graph_gets_its_error_type(driver: Driver, name: str) -> None:
    """Each kind of invalid graph gets the error type that was observed on a real ComfyUI."""
    graph, kind = BAD_GRAPHS[name]
    response = driver.queue(graph)

    assert response.status_code == 400
    assert {error["type"] for found in response.json()["node_errors"].values() for error in found["errors"]} == {kind}


def test_one_valid_output_is_enough(driver: Driver) -> None:
    """If one of two outputs is invalid, the response is 200 with node_errors, and only the valid output runs."""
    graph = {**TXT2IMG, "bad": node("PreviewImage", images=["img", 0]), "img": node("LoadImage", image="nope.png")}
    response = driver.queue(graph)

    assert response.status_code == 200
    assert list(response.json()["node_errors"]) == ["img"]
    assert list(driver.history(response.json()["prompt_id"])["outputs"]) == ["out"]


def test_values_are_converted_in_place(driver: Driver) -> None:
    """A number that was sent as text, or wrapped, is a number in the history."""
    entry = driver.run(changed(TXT2IMG, lat={"width": "64", "height": {"__value__": 64.9}}))

    assert entry["prompt"][2]["lat"]["inputs"] == {"width": 64, "height": 64, "batch_size": 1}


def test_text_in_place_of_a_graph_or_a_node_is_rejected(driver: Driver) -> None:
    """Text in place of a graph or of a node gets 500."""
    assert driver.post("/prompt", {"prompt": "hello"}).status_code == 500
    assert driver.post("/prompt", {"prompt": {"a": "x"}}).status_code == 500


def test_models_are_those_given() -> None:
    """`models` replaces the files of a folder in lists, choices and checks."""
    with simulated(models={"vae": ("other.safetensors",)}) as (_, driver):
        assert driver.get("/models/vae").json() == ["other.safetensors"]
        assert "loras" in driver.get("/models").json()
        assert driver.queue(img2img("x.png")).status_code == 400
        errors = driver.queue(TXT2IMG).json()["node_errors"]["vae"]["errors"]
        assert errors[0]["details"] == "vae_name: 'ae.safetensors' not in ['other.safetensors', 'pixel_space']"
