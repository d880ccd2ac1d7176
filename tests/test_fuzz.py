"""5,000 job bodies through the real handler, on the simulator: each ends in a result or a report with a known code.

Every response is valid JSON, contains nothing of this machine, and is never `internal`. There is no network: URLs in
the bodies are rejected before anything is sent.
"""

from __future__ import annotations

import asyncio
import base64
import collections
import io
import json
import socket
import sys
import tempfile
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image

from comfy_core.contract import ErrorReport
from comfy_core.error_codes import ErrorCode
from comfy_core.workflows import default_directory, load_workflows, render
from handler import Handler, make_handler, worker_from_settings
from simulators.comfyui import Simulator
from simulators.comfyui.node_table import NODE_TYPES
from worker.job_execution import Service
from worker.lifecycle import Lifecycle
from worker.settings import Settings

ROOT = Path(__file__).parent.parent
WORKFLOWS = load_workflows(default_directory())
# Pillow's warnings about damaged files
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::UserWarning:PIL")]
JOB_TIMEOUT_S = 100
MACHINE_DETAILS = (
    socket.gethostname(),
    str(ROOT),
    sys.prefix,
    sys.base_prefix,
    str(Path.home()),
    tempfile.gettempdir(),
)


# --- one worker for all bodies


@dataclass(frozen=True)
class FuzzedHandler:
    """The handler, its event loop, and its ComfyUI."""

    handler: Handler
    loop: asyncio.AbstractEventLoop
    simulator: Simulator
    codes: collections.Counter[str] = field(default_factory=collections.Counter)
    """Number of error reports by code; the key `result` has the number of results."""

    def respond(self, job: dict[str, Any]) -> dict[str, Any]:
        """Return the handler's response to a job, within the time limit."""
        return self.loop.run_until_complete(asyncio.wait_for(self.handler(job), JOB_TIMEOUT_S))


@pytest.fixture(scope="module")
def fuzzed() -> Iterator[FuzzedHandler]:
    """The real handler in one event loop. After all bodies nothing is left in ComfyUI."""
    with Simulator() as simulator:
        folder = str(simulator.input_dir.parent)
        service = Service(
            worker_from_settings(Settings.from_env({"COMFYUI_URL": simulator.url, "COMFYUI_DIR": folder})),
            Lifecycle(stop_comfyui=_never, report_unhealthy=_never, grace_s=1, end=_never),
        )
        loop = asyncio.new_event_loop()
        yield FuzzedHandler(make_handler(service), loop, simulator)
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()
        service.worker.server.close()
        assert [*simulator.queue_ids, *simulator.history_ids] == []
        left = [path for kind in ("input", "output") for path in Path(folder, kind).rglob("*")]
        assert [path for path in left if path.is_file()] == []


MINIMUM_COUNTS: dict[str, dict[str, int]] = {
    "test_any_json_gets_a_response": {"invalid_input": 1000},
    "test_an_almost_valid_request_gets_a_response": {"result": 500, "invalid_input": 300, "model_missing": 20},
    "test_an_almost_valid_graph_gets_a_response": {"result": 150, "invalid_input": 200, "workflow_rejected": 150},
    "test_an_almost_valid_image_gets_a_response": {"result": 150, "invalid_input": 20, "invalid_image": 200},
}
"""Minimum number of responses by code, so that each test reaches the code that it is made for."""


@pytest.fixture(autouse=True)
def _minimum_of_codes(fuzzed: FuzzedHandler, request: pytest.FixtureRequest) -> Iterator[None]:
    before = fuzzed.codes.copy()
    yield
    codes = fuzzed.codes - before
    assert {
        code for code, minimum in MINIMUM_COUNTS.get(request.node.name, {}).items() if codes[code] < minimum
    } == set()


def _never(*_: object) -> None:
    raise AssertionError("the worker was told to exit")


def check(fuzzed: FuzzedHandler, job: dict[str, Any]) -> None:
    """Run `job`, and check what holds for the response to any job."""
    result = fuzzed.respond(job)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert json.dumps(result, ensure_ascii=False).encode()  # as the SDK posts it
    if "error" in result:
        assert list(result) == ["error"]
        report = ErrorReport.from_json(result["error"])
        assert set(json.loads(result["error"])) == {"code", "message", "retryable", "details"}
        assert report.code not in {ErrorCode.UNRECOGNIZED, ErrorCode.INTERNAL}, result["error"]
        assert report.message
        fuzzed.codes[report.code.value] += 1
    else:
        fuzzed.codes["result"] += 1
        assert result["images"]
        for image in result["images"]:
            assert Image.open(io.BytesIO(base64.b64decode(image["data"]))).size == (image["width"], image["height"])
        result = {**result, "images": [{**image, "data": ""} for image in result["images"]]}
    response, request = json.dumps(result), json.dumps(job)  # an error may repeat the request
    assert not [word for word in ("Traceback", *MACHINE_DETAILS) if word in response and word not in request]


def body_settings(max_examples: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return settings for a test with this number of bodies, which are the same in each run."""
    return settings(
        max_examples=max_examples,
        derandomize=True,
        deadline=None,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )


# --- any JSON at all

TEXTS = st.text(st.characters(exclude_categories=()), max_size=20) | st.sampled_from(
    [
        "",
        "\0",
        "\ud800",
        "NaN",
        "{}",
        "[]",
        "null",
        "../../etc/passwd",
        "/etc/passwd",
        "C:\\x",
        "a\nb",
        "{{",
        "%s",
        "http://127.0.0.1/x.png",
        "https://127.0.0.1/x.png",
        "https://169.254.169.254/latest",
        "https://[::1]/x.png",
        "file:///etc/passwd",
        "https://",
        "data:image/png;base64,",
        "data:image/png;base64,AAAA",
        "a" * 5000,
    ]
)
ODD_NUMBERS = st.sampled_from([-1, 0, 1, 2, 3, 63, 64, 65, -(2**31), 2**31, 2**53, 2**63 - 1, 2**64, 10**400]) | (
    st.sampled_from([0.5, 1.0, -0.0, 64.0, 1e-300, 1e308, float("inf"), float("-inf"), float("nan")])
)
"""Numbers of all kinds, but no valid size above 65: the worker would generate such large images."""
SCALARS = st.none() | st.booleans() | ODD_NUMBERS | TEXTS
KEYS = st.sampled_from(
    [*WORKFLOWS["flux-dev-img2img"].inputs, "workflow", "images", "overrides", "class_type", "inputs"]
)
ANYTHING = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS | KEYS, inner, max_size=4),
    max_leaves=8,
)


def mostly(usual: object, rare: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Generate `usual` three times out of four, and otherwise a value of `rare`."""
    return st.integers(0, 3).flatmap(lambda number: rare if number == 2 else st.just(usual))


def nested(depth: int) -> list[Any]:
    """Return `depth` nested lists."""
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


DEEP = st.sampled_from([31, 32, 33, 400]).map(nested)
S3_CONFIGS = st.dictionaries(
    st.sampled_from(["endpointUrl", "accessId", "accessSecret", "bucketName", "region"]), SCALARS, max_size=5
) | st.fixed_dictionaries(
    {
        "endpointUrl": st.sampled_from(
            ["https://", "https://[", "https://a b", "http://127.0.0.1:1", "https://:1", "x"]
        ),
        "accessId": TEXTS,
        "accessSecret": TEXTS,
        "bucketName": TEXTS,
    }
)


@body_settings(1200)
@given(
    whole=ANYTHING | DEEP | ANYTHING.map(json.dumps),
    extra=st.dictionaries(st.sampled_from(["s3Config", "webhook", "policy", "batchId"]), ANYTHING, max_size=2),
    job_id=st.sampled_from(["job-1", "../x", "", 5, None]),
)
def test_any_json_gets_a_response(fuzzed: FuzzedHandler, whole: object, extra: dict[str, Any], job_id: object) -> None:
    """Any JSON as the input, with any other keys in the request, ends in a result or one error report."""
    check(fuzzed, {"id": job_id, "input": whole, **extra})


# --- almost valid requests


def encoded(image_format: str, mode: str = "RGB", size: tuple[int, int] = (48, 32)) -> bytes:
    """Return a small encoded image."""
    file = io.BytesIO()
    image = Image.linear_gradient("L").resize(size).convert(mode)
    image.save(file, image_format)
    return file.getvalue()


IMAGES = [
    *(encoded(image_format) for image_format in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")),
    *(encoded("PNG", mode) for mode in ("1", "L", "LA", "P", "RGBA", "I;16")),
    encoded("JPEG", "CMYK"),
    encoded("TIFF", "F"),
]
BASE64 = st.sampled_from(IMAGES).map(lambda data: base64.b64encode(data).decode())
VALID: dict[str, st.SearchStrategy[Any]] = {
    "prompt": st.sampled_from(["a knight", "騎士", "👑 of the\nking", "x" * 4096]),
    "negative_prompt": st.sampled_from(["", "blurry"]),
    "negative_strength": st.sampled_from([0, 0.5, 10]),
    "width": st.sampled_from([64, 80, 64.0]),
    "height": st.sampled_from([64, 96]),
    "steps": st.integers(1, 2),
    "guidance": st.floats(0, 30),
    "seed": st.integers(0, 2**63 - 1) | st.just(2**63 - 1),
    "num_images": st.integers(1, 2),
    "sampler": st.sampled_from(["euler", "dpmpp_2m", "no-such-sampler"]),
    "scheduler": st.sampled_from(["simple", "karras"]),
    "loras": st.sampled_from(
        [[], [{"name": "pixel-art.safetensors"}], [{"name": "game-ui.safetensors", "strength": -1.5}], [{"name": "x"}]]
    ),
    "image": BASE64,
    "strength": st.sampled_from([0.01, 0.5, 1]),
    "workflow": st.sampled_from(["txt2img", "img2img", "flux-dev-txt2img", "flux-dev-img2img"]),
    "overrides": st.sampled_from(
        [{}, {"KSampler.cfg": 2}, {"8.seed": 5}, {"Save Image.filename_prefix": "../../up"}, {"KSampler.no": 1}]
    )
    | st.dictionaries(st.sampled_from(["KSampler.seed", "Prompt.text", "4.clip.0"]), ANYTHING),
    "output_format": st.sampled_from(["png", "webp", "jpeg"]),
    "output_quality": st.integers(1, 100),
    "metadata": st.booleans(),
    "delivery": mostly("auto", st.sampled_from(["base64", "s3"])),
    "timeout_s": st.sampled_from([1, 30.5, 3600]),
}
ALWAYS = ("prompt", "width", "height", "steps")
"""Keys that every request has, because their defaults would generate a large image."""
CHANGES = st.dictionaries(st.sampled_from(sorted(VALID)) | TEXTS, ANYTHING, max_size=1)


@st.composite
def requests(draw: st.DrawFn) -> dict[str, Any]:
    """Generate a request from VALID, with at most one key replaced or added."""
    optional = sorted(VALID.keys() - {*ALWAYS, "workflow", "image"})
    names = [*ALWAYS, *draw(st.lists(st.sampled_from(optional), max_size=4, unique=True))]
    request = {name: draw(VALID[name]) for name in names}
    for name in ("image", "workflow"):
        if draw(mostly(usual=False, rare=st.just(True))):
            request[name] = draw(VALID[name])
    return {**request, **draw(mostly({}, CHANGES))}


@body_settings(1500)
@given(request=requests(), s3_config=mostly(None, S3_CONFIGS))
def test_an_almost_valid_request_gets_a_response(
    fuzzed: FuzzedHandler, request: dict[str, Any], s3_config: dict[str, Any] | None
) -> None:
    """A valid request with changed keys and values is run or rejected."""
    check(fuzzed, {"id": "job-1", "input": request, **({"s3Config": s3_config} if s3_config is not None else {})})


# --- almost valid graphs

SMALL_INPUT: dict[str, Any] = {"prompt": "a knight", "width": 64, "height": 64, "steps": 1, "seed": 1}
GRAPHS = [
    render(WORKFLOWS["flux-dev-txt2img"], SMALL_INPUT)[0],
    render(WORKFLOWS["flux-dev-img2img"], {**SMALL_INPUT, "image": "in.png"})[0],
    {
        "1": {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 64, "batch_size": 2, "color": 255}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "x"}},
    },
    {
        "1": {"class_type": "LoadImage", "inputs": {"image": "in.png"}},
        "2": {"class_type": "SaveImageWebsocket", "inputs": {"images": ["1", 0]}},
        "3": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}},
    },
]
LINKS = st.tuples(st.sampled_from(["1", "2", "3", "8", "9", "99"]), st.integers(-1, 3)).map(list)
NODES = st.fixed_dictionaries(
    {
        "class_type": st.sampled_from([*NODE_TYPES, "NoSuchNode", "", "__class__"]),
        "inputs": st.dictionaries(
            st.sampled_from(["image", "images", "width", "height", "model", "samples", "vae", "text", "clip"])
            | st.sampled_from(["filename_prefix", "batch_size", "upscale_method", "crop", "seed", "steps"]),
            LINKS | SCALARS,
            max_size=5,
        ),
    }
)


@st.composite
def graphs(draw: st.DrawFn) -> dict[str, Any]:
    """Generate a valid graph with up to two changes to inputs, classes and nodes; nodes may be added or removed."""
    graph: dict[str, Any] = json.loads(json.dumps(draw(st.sampled_from(GRAPHS))))
    for _ in range(draw(st.integers(0, 2))):
        node_id = draw(st.sampled_from(sorted(graph)))
        node = graph[node_id]
        match draw(st.sampled_from(["input", "input", "class", "node", "delete", "new"])):
            case "input" if isinstance(node, dict) and isinstance(node.get("inputs"), dict) and node["inputs"]:
                node["inputs"][draw(st.sampled_from(sorted(node["inputs"])))] = draw(LINKS | SCALARS | ANYTHING)
            case "class" if isinstance(node, dict):
                node["class_type"] = draw(st.sampled_from([*NODE_TYPES, "NoSuchNode"]) | SCALARS)
            case "node":
                graph[node_id] = draw(NODES | ANYTHING)
            case "delete" if len(graph) > 1:
                del graph[node_id]
            case _:
                graph[draw(st.sampled_from(["11", "0", "-1", "x", "a.b", "#1"]) | TEXTS)] = draw(NODES)
    return graph


IMAGE_NAMES = st.sampled_from(["in.png", "../in.png", "/etc/passwd", "in.png [output]", "", "x" * 300, "a/b.png"])
IMAGE_LISTS = st.lists(
    st.fixed_dictionaries({"name": IMAGE_NAMES, "image": BASE64}) | st.dictionaries(TEXTS, SCALARS, max_size=2),
    max_size=2,
)


@body_settings(1200)
@given(
    graph=graphs(),
    images=mostly([{"name": "in.png", "image": base64.b64encode(IMAGES[0]).decode()}], IMAGE_LISTS),
    changes=mostly(
        {},
        st.dictionaries(
            st.sampled_from(["overrides", "output_format", "metadata", "delivery", "prompt"]), ANYTHING, max_size=1
        ),
    ),
    as_text=mostly(usual=False, rare=st.booleans()),
)
def test_an_almost_valid_graph_gets_a_response(
    fuzzed: FuzzedHandler,
    graph: dict[str, Any],
    images: list[Any],
    changes: dict[str, Any],
    as_text: bool,
) -> None:
    """A randomly changed graph is run or rejected."""
    workflow = json.dumps(graph) if as_text else graph
    check(fuzzed, {"id": "job-1", "input": {"workflow": workflow, "images": images, **changes}})


# --- almost valid images


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """Generate an image file with some bytes changed, and perhaps cut or extended; or generate random bytes."""
    data = bytearray(draw(st.sampled_from(IMAGES)))
    for _ in range(draw(st.integers(0, 4))):
        # Half of the changes are in the header, where they have more effect.
        data[draw(st.integers(0, min(63, len(data) - 1)) | st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    match draw(st.sampled_from(["", "", "cut", "longer", "none"])):
        case "cut":
            del data[draw(st.integers(0, len(data))) :]
        case "longer":
            data += draw(st.binary(max_size=32))
        case "none":
            data = bytearray(draw(st.binary(max_size=64)))
    return bytes(data)


@body_settings(1100)
@given(
    data=damaged(),
    head=mostly("", st.sampled_from(["data:image/png;base64,", "data:text/html;base64,", "data:,"])),
    junk=mostly("", st.sampled_from(["\n", "=", "é", "-_"])),
    for_a_graph=st.booleans(),
)
def test_an_almost_valid_image_gets_a_response(
    fuzzed: FuzzedHandler, data: bytes, head: str, junk: str, for_a_graph: bool
) -> None:
    """A damaged image is used or rejected."""
    image = f"{head}{base64.b64encode(data).decode()}{junk}"
    if for_a_graph:
        body: dict[str, Any] = {"workflow": GRAPHS[3], "images": [{"name": "in.png", "image": image}]}
    else:
        body = {**SMALL_INPUT, "image": image, "strength": 0.5}
    check(fuzzed, {"id": "job-1", "input": body})


# --- concurrent jobs


def test_concurrent_jobs_get_their_own_responses(fuzzed: FuzzedHandler) -> None:
    """Of 30 concurrent requests, each valid one gets the result for its seed, and each invalid one an error."""
    inputs = [{**SMALL_INPUT, "seed": seed, **({"steps": 0} if seed % 3 == 0 else {})} for seed in range(30)]

    async def all_at_once() -> list[dict[str, Any]]:
        jobs: list[Coroutine[Any, Any, dict[str, Any]]] = [
            fuzzed.handler({"id": str(job["seed"]), "input": job}) for job in inputs
        ]
        return list(await asyncio.gather(*jobs))

    results = fuzzed.loop.run_until_complete(all_at_once())
    assert ["error" in result for result in results] == [seed % 3 == 0 for seed in range(30)]
    assert [result["seed"] for result in results if "seed" in result] == [seed for seed in range(30) if seed % 3]
