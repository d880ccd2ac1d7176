"""Property tests of requests: valid ones are rendered exactly, invalid ones are rejected with exactly their faults.

A valid request is generated together with its expected graph, from a separate table of node ids, and is sent in
equivalent spellings. An invalid one is a valid request with one to four planted faults, each with its path.
"""

from __future__ import annotations

import copy
import io
import json
import math
from base64 import b64encode
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from comfy_core.contract import ErrorReport, JsonObject
from comfy_core.error_codes import ErrorCode
from comfy_core.errors import JobError
from comfy_core.graphs import Graph
from comfy_core.images.codec import rounded_size
from comfy_core.request.reading import read_request
from comfy_core.validation import MAX_DEPTH, path_of
from comfy_core.workflows import Workflow

pytestmark = pytest.mark.slow
Draw: TypeAlias = st.DrawFn

REPEATABLE = settings(
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
VALID_TEMPLATES, VALID_GRAPHS, INVALID_TEMPLATES, INVALID_GRAPHS, RAW_WHOLES, RAW_VALUES = 600, 300, 800, 400, 300, 500
"""Number of requests of each kind: 2,100 with a known outcome, and 800 of random JSON."""

MAX_SEED = 2**63 - 1
RANDOM_SEED = 987_654_321

COMMON_SLOTS = {
    "prompt": ("4", "text"),
    "negative_prompt": ("5", "text"),
    "guidance": ("6", "guidance"),
    "steps": ("8", "steps"),
    "sampler": ("8", "sampler_name"),
    "scheduler": ("8", "scheduler"),
}
SLOTS = {
    "flux-dev-txt2img": {**COMMON_SLOTS, "width": ("7", "width"), "height": ("7", "height")},
    "flux-dev-img2img": {
        **COMMON_SLOTS,
        "width": ("12", "width"),
        "height": ("12", "height"),
        "strength": ("8", "denoise"),
    },
}
"""The node and input of each plain input in the shipped graphs. Written by hand from the graphs."""
MODEL_SAMPLING = {"flux-dev-txt2img": "11", "flux-dev-img2img": "13"}
"""The node that also gets width and height, and in front of which the LoRAs are. Written by hand from the graphs."""

DEFAULTS: JsonObject = {
    "negative_prompt": "",
    "negative_strength": 0,
    "guidance": 3.5,
    "steps": 20,
    "sampler": "euler",
    "scheduler": "simple",
    "num_images": 1,
    "loras": [],
}
DEFAULTS_OF: dict[str, JsonObject] = {
    "flux-dev-txt2img": {**DEFAULTS, "width": 1024, "height": 1024},
    "flux-dev-img2img": {**DEFAULTS, "strength": 0.75},
}
TITLES = {
    "1": "Load Diffusion Model",
    "2": "DualCLIPLoader",
    "3": "Load VAE",
    "4": "Prompt",
    "5": "Negative prompt",
    "6": "FluxGuidance",
    "8": "KSampler",
    "9": "VAE Decode",
    "10": "Save Image",
}
"""Nodes that both shipped graphs have."""
WHOLE_NUMBERS = {"width", "height", "steps", "num_images", "seed"}


def image_file(width: int, height: int, file_format: str) -> bytes:
    """Return a small image."""
    file = io.BytesIO()
    Image.new("RGB", (width, height), "teal").save(file, file_format)
    return file.getvalue()


IMAGES: dict[str, tuple[int, int]] = {
    b64encode(image_file(width, height, file_format)).decode(): (width, height)
    for width, height, file_format in (
        (48, 32, "PNG"),
        (100, 300, "JPEG"),
        (640, 64, "WEBP"),
        (1, 1, "GIF"),
        (16, 9, "BMP"),
    )
}
"""Images as base64, and their sizes."""

ENCODABLE = st.characters(exclude_categories=["Cs"], exclude_characters="\0")
TEXT = st.text(ENCODABLE, min_size=1, max_size=40)
WORDS = TEXT.filter(str.strip)
FINITE = st.floats(allow_nan=False, allow_infinity=False)
SCALARS = st.none() | st.booleans() | st.integers(-(2**64), 2**64) | FINITE | st.text(ENCODABLE, max_size=20)
VALUES = SCALARS | st.lists(SCALARS, max_size=3) | st.dictionaries(TEXT, SCALARS, max_size=2)


def json_numbers(low: float, high: float) -> st.SearchStrategy[float]:
    """Generate numbers in this range as JSON has them: integers and floats."""
    return st.floats(low, high) | st.integers(math.ceil(low), math.floor(high))


def json_integers(low: int, high: int, step: int = 1) -> st.SearchStrategy[float]:
    """Generate integers in this range, some as floats such as 20.0."""
    numbers = st.integers(low // step, high // step).map(lambda count: count * step)
    return numbers | numbers.filter(lambda n: int(float(n)) == n).map(float)


INPUTS: dict[str, st.SearchStrategy[Any]] = {
    "steps": json_integers(1, 100),
    "guidance": json_numbers(0, 30),
    "seed": json_integers(0, MAX_SEED - 8) | st.integers(MAX_SEED - 8, MAX_SEED),
    "num_images": json_integers(1, 8),
    "sampler": st.text(ENCODABLE, min_size=1, max_size=64),
    "scheduler": st.text(ENCODABLE, min_size=1, max_size=64),
    "width": json_integers(64, 2048, 16),
    "height": json_integers(64, 2048, 16),
    "loras": st.lists(
        st.fixed_dictionaries({"name": TEXT}, optional={"strength": json_numbers(-10, 10)}),
        max_size=8,
    ),
}
ENVELOPE: dict[str, st.SearchStrategy[Any]] = {
    "output_format": st.sampled_from(["png", "webp", "jpeg"]),
    "output_quality": json_integers(1, 100),
    "metadata": st.booleans(),
    "delivery": st.sampled_from(["auto", "base64"]),
    "timeout_s": json_numbers(1, 3600),
}
ENVELOPE_DEFAULTS: JsonObject = {
    "output_format": "png",
    "output_quality": 90,
    "metadata": True,
    "delivery": "auto",
    "timeout_s": None,
}


def json_text(value: object) -> str:
    """Return JSON text in which 20 and 20.0 differ. It must be valid for every decoder."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False)
    text.encode("utf-8")
    return text


@st.composite
def template_requests(draw: Draw) -> tuple[str, JsonObject]:
    """Generate a workflow's name and a valid request for it."""
    name = draw(st.sampled_from(list(SLOTS)))
    alias = name.removeprefix("flux-dev-")
    body: JsonObject = draw(st.fixed_dictionaries({"prompt": WORDS}, optional={**INPUTS, **ENVELOPE}))
    if draw(st.booleans()):
        body["negative_strength"] = draw(json_numbers(0, 10).filter(lambda strength: strength > 0))
        body["negative_prompt"] = draw(st.text(ENCODABLE, max_size=40))
    if name == "flux-dev-img2img":
        body["image"] = draw(st.sampled_from(list(IMAGES)))
        body |= draw(st.fixed_dictionaries({}, optional={"strength": json_numbers(0.01, 1)}))
    body |= draw(st.sampled_from([{}, {"workflow": name}, {"workflow": alias}]))
    return name, body


LIMITED_VALUES: dict[tuple[str, str], st.SearchStrategy[Any]] = {
    ("4", "text"): WORDS,
    ("5", "text"): st.text(ENCODABLE, max_size=40),
    ("6", "guidance"): json_numbers(0, 30),
    ("8", "steps"): json_integers(1, 100),
    ("8", "seed"): json_integers(0, MAX_SEED - 8),
    ("8", "cfg"): json_numbers(1, 11),
    ("8", "denoise"): json_numbers(0.01, 1),
    ("8", "sampler_name"): INPUTS["sampler"],
    ("8", "scheduler"): INPUTS["scheduler"],
}
"""Valid values of the places that are limited by an input of the template or by the graph's own number."""


@st.composite
def overrides_of(draw: Draw, graph: Graph) -> JsonObject:
    """Generate overrides of a shipped graph, by title and by id, within the limits of its template."""
    slots = [(node_id, name) for node_id in TITLES for name in graph[node_id]["inputs"]]
    links = st.tuples(st.sampled_from(list(graph)), st.integers(0, 3)).map(list)
    overrides = {}
    for node_id, name in draw(st.lists(st.sampled_from(slots), max_size=3)):
        old_value = graph[node_id]["inputs"][name]
        free = links if isinstance(old_value, list) else st.text(ENCODABLE, max_size=40)
        place = f"{draw(st.sampled_from([node_id, TITLES[node_id]]))}.{name}"
        overrides[place] = draw(LIMITED_VALUES.get((node_id, name), free) | st.none())
    return overrides


def as_integer(value: object) -> object:
    """Return a float without a fraction as int, and any other value unchanged."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


@st.composite
def equivalent_request(draw: Draw, body: JsonObject) -> JsonObject:
    """Generate another request with the same meaning: numbers as text, upper case, nulls, LoRAs as names."""
    sent = {}
    for key, value in body.items():
        match value:
            case bool() if key == "metadata":
                sent[key] = draw(st.sampled_from([value, str(value), str(value).lower()]))
            case int() | float():
                sent[key] = draw(st.sampled_from([value, json.dumps(value), f" {json.dumps(value)}"]))
            case str() if key in {"output_format", "delivery"}:
                others = {"jpeg": ["jpg", ".JPG", "image/jpeg"], "png": [".png", "image/png"]}.get(value, [])
                sent[key] = draw(st.sampled_from([value, value.upper(), *others]))
            case str() if key == "image":
                sent[key] = draw(st.sampled_from(BASE64_SPELLINGS))(value)
            case [*loras] if key == "loras":
                sent[key] = [draw(equivalent_lora(lora)) for lora in loras]
            case _:
                sent[key] = value
    absent = [key for key in (*INPUTS, *ENVELOPE, "negative_prompt", "image", "overrides") if key not in body]
    return {**sent, **dict.fromkeys(draw(st.lists(st.sampled_from(absent), max_size=3)) if absent else [])}


@st.composite
def equivalent_lora(draw: Draw, lora: JsonObject) -> object:
    """Generate a LoRA as an object, or as a name if that has the same meaning."""
    if draw(st.booleans()) and lora["name"].strip() == lora["name"] and ":" not in lora["name"]:
        return lora["name"] + (f":{json.dumps(lora['strength'])}" if "strength" in lora else "")
    return {**lora, "strength": None} if "strength" not in lora and draw(st.booleans()) else lora


BASE64_SPELLINGS: tuple[Callable[[str], str], ...] = (
    lambda text: text,
    lambda text: text.rstrip("="),
    lambda text: text + "==",
    lambda text: text.translate({ord("+"): "-", ord("/"): "_"}),
    lambda text: f" DATA:image/png;BASE64,{text} ",
    lambda text: f"data:image/jpeg;charset=utf-8; base64 ,{text}",
    lambda text: f"image/png;base64,{text}",
    lambda text: quote(f"data:image/png;base64,{text}", safe=""),
    lambda text: json.dumps(text).replace("/", "\\/"),
    lambda text: f"'{text[:20]}\r\n {text[20:]}'",
)
"""Base64 as other software writes it."""


def proportional_side(pixels: float) -> int:
    """Return the length of a side in pixels, rounded to a multiple of 16 within the limits."""
    return min(2048, max(64, round(pixels / 16) * 16))


def used_inputs(name: str, body: JsonObject) -> JsonObject:
    """Return the inputs that are used for a request, with all defaults."""
    given_inputs = {
        key: value for key, value in body.items() if key not in {*ENVELOPE, "workflow", "overrides", "image"}
    }
    used = {**DEFAULTS_OF[name], "seed": RANDOM_SEED, **given_inputs}
    if "image" in body:
        width, height = IMAGES[body["image"]]
        if "width" not in used and "height" not in used:
            used["width"], used["height"] = rounded_size(width, height)
        elif "width" not in used:
            used["width"] = proportional_side(width * int(used["height"]) / height)
        elif "height" not in used:
            used["height"] = proportional_side(height * int(used["width"]) / width)
    used["loras"] = [{"name": lora["name"], "strength": lora.get("strength", 1)} for lora in used["loras"]]
    return {key: int(value) if key in WHOLE_NUMBERS else value for key, value in used.items()}


def expected_graph(name: str, exported: Graph, used: JsonObject, image_number: int, overrides: JsonObject) -> Graph:
    """Return the expected graph of one image: the exported graph with the request's values."""
    graph = copy.deepcopy(exported)
    for key, (node_id, input_name) in SLOTS[name].items():
        graph[node_id]["inputs"][input_name] = used[key]
    sampling = graph[MODEL_SAMPLING[name]]["inputs"]
    sampling |= {side: used[side] for side in ("width", "height")}
    sampler = graph["8"]["inputs"]
    sampler["cfg"] = 1 + used["negative_strength"]
    sampler["seed"] = (used["seed"] + image_number) % 2**63
    for number, lora in enumerate(used["loras"], max(map(int, exported)) + 1):
        inputs = {"model": sampling["model"], "lora_name": lora["name"], "strength_model": lora["strength"]}
        graph[str(number)] = {"class_type": "LoraLoaderModelOnly", "inputs": inputs}
        sampling["model"] = [str(number), 0]
    ids = {title: node_id for node_id, title in TITLES.items()}
    for place, value in overrides.items():
        node, _, input_name = place.rpartition(".")
        graph[ids.get(node, node)]["inputs"][input_name] = value
    return graph


@given(st.data())
@settings(REPEATABLE, max_examples=VALID_TEMPLATES)
def test_a_valid_request_is_rendered_exactly(workflows: Mapping[str, Workflow], data: st.DataObject) -> None:
    """Each value is in its node, missing inputs have their defaults, and nothing else has changed."""
    name, body = data.draw(template_requests())
    exported = workflows[name].graph
    before = json_text(exported)
    overrides = data.draw(overrides_of(exported))
    as_text = data.draw(st.booleans())
    if overrides:
        body["overrides"] = overrides
    sent = data.draw(equivalent_request(body))

    request = read_request(json.dumps(sent) if as_text else sent, workflows)
    rendered = request.render(lambda: RANDOM_SEED)

    used = used_inputs(name, body)
    whole_places = {"seed", "steps"}
    overrides = {
        place: as_integer(value) if place.rpartition(".")[2] in whole_places else value
        for place, value in overrides.items()
        if value is not None
    }
    graphs = [expected_graph(name, exported, used, number, overrides) for number in range(used["num_images"])]
    assert [json_text(graph) for graph in rendered.graphs] == [json_text(graph) for graph in graphs]
    assert rendered.seeds == tuple(graph["8"]["inputs"]["seed"] for graph in graphs)
    assert json_text(rendered.inputs) == json_text({**used, **({"overrides": overrides} if overrides else {})})
    assert [(target.node_id, target.input) for upload in rendered.uploads for target in upload.targets] == (
        [("11", "image")] if "image" in body else []
    )
    assert rendered.workflow == name
    assert all("prompt" in warning for warning in rendered.warnings)
    for key, default in ENVELOPE_DEFAULTS.items():
        assert getattr(request, key) == body.get(key, default)
    assert json_text(exported) == before


IDS = st.text("0123456789abcXYZ_-", min_size=1, max_size=5)
NAMES = st.text("abcdefgh_", min_size=1, max_size=6)
IMAGE_NAMES = ("a.png", "größe.jpg", "sub/b.webp", "b")
FILE_SPELLINGS: tuple[Callable[[str], str], ...] = (
    lambda name: name,
    lambda name: f"{name} [input]",
    lambda name: f"{name}[input]",
    lambda name: name.replace("/", "\\"),
    lambda name: f"./{name}",
)
"""Spellings of a file in ComfyUI's input folder, as nodes contain them."""
VALUE_LISTS = st.lists(SCALARS, max_size=3).filter(lambda items: len(items) != 2 or not isinstance(items[0], str))
GRAPH_VALUES = SCALARS | VALUE_LISTS | st.dictionaries(TEXT, SCALARS, max_size=2) | st.sampled_from(IMAGE_NAMES)


@st.composite
def caller_graphs(draw: Draw) -> Graph:
    """Generate a caller's graph: any nodes, any values, valid links, and nodes that load images."""
    ids = draw(st.lists(IDS, min_size=1, max_size=5, unique=True))
    values = SCALARS | st.lists(st.integers(0, 9), min_size=1, max_size=3) | st.sampled_from(IMAGE_NAMES)
    links = st.tuples(st.sampled_from(ids), st.integers(0, 3)).map(list)
    titles = st.fixed_dictionaries({}, optional={"title": st.text(ENCODABLE, max_size=10)})
    node = st.fixed_dictionaries(
        {"class_type": st.text(ENCODABLE, max_size=20), "inputs": st.dictionaries(NAMES, values | links, max_size=4)},
        optional={"_meta": titles},
    )
    name = st.builds(lambda name, spell: spell(name), st.sampled_from(IMAGE_NAMES), st.sampled_from(FILE_SPELLINGS))
    loader = st.fixed_dictionaries(
        {
            "class_type": st.sampled_from(["LoadImage", "LoadImageMask"]),
            "inputs": st.fixed_dictionaries({"image": name, "channel": st.sampled_from(["red", "b"])}),
        }
    )
    return {node_id: draw(node | loader) for node_id in ids}


def with_normal_links(graph: Graph) -> Graph:
    """Return the graph with each list of a node's number and a slot replaced by a link in ComfyUI's form."""
    changed = copy.deepcopy(graph)
    for each in changed.values():
        for name, value in each["inputs"].items():
            match value:
                case [int() | float() as other, int() | float() as slot] if not isinstance(other, bool):
                    if str(as_integer(other)) in graph and 0 <= slot < 1000 and isinstance(as_integer(slot), int):
                        each["inputs"][name] = [str(as_integer(other)), int(slot)]
    return changed


def loaded_name(value: object) -> object:
    """Return the file in the input folder that a loader's value names."""
    if not isinstance(value, str):
        return value
    return value.removesuffix("[input]").rstrip().replace("\\", "/").removeprefix("./")


@given(st.data())
@settings(REPEATABLE, max_examples=VALID_GRAPHS)
def test_a_valid_graph_is_only_changed_by_its_overrides(workflows: Mapping[str, Workflow], data: st.DataObject) -> None:
    """Each image is assigned to the nodes that load it.

    An image that no node loads is a warning, or a fault if a loader's image was not sent.
    """
    graph = data.draw(caller_graphs())
    slots = [(node_id, name) for node_id, node in graph.items() for name in node["inputs"] if name != "image"]
    chosen = data.draw(st.lists(st.sampled_from(slots), unique=True, max_size=3)) if slots else []
    changes = {slot: data.draw(GRAPH_VALUES) for slot in chosen}
    names = data.draw(st.lists(st.sampled_from(IMAGE_NAMES), unique=True))
    body: JsonObject = {"workflow": graph, **data.draw(st.fixed_dictionaries({}, optional=ENVELOPE))}
    if changes:
        body["overrides"] = {f"{node_id}.{name}": value for (node_id, name), value in changes.items()}
    if names:
        spell = data.draw(st.sampled_from(BASE64_SPELLINGS))
        body["images"] = [{"name": name, "image": spell(data.draw(st.sampled_from(list(IMAGES))))} for name in names]
    before = json_text(body)

    expected = copy.deepcopy(graph)
    for (node_id, name), value in changes.items():
        expected[node_id]["inputs"][name] = expected[node_id]["inputs"][name] if value is None else value
    expected = with_normal_links(expected)
    loaders = {
        node_id: loaded_name(node["inputs"]["image"]) for node_id, node in expected.items() if "image" in node["inputs"]
    }
    loads = [{(node_id, "image") for node_id, file_name in loaders.items() if file_name == name} for name in names]
    unsent = [file_name for file_name in loaders.values() if file_name not in names and "." in str(file_name)]
    unused = {f"images[{number}].image" for number, places in enumerate(loads) if not places}
    if unsent and unused:
        report = rejection_of(body, workflows)
        assert {fault["path"] for fault in report.details["faults"]} == unused
        return
    rendered = read_request(body, workflows).render(lambda: RANDOM_SEED)

    assert [json_text(each) for each in rendered.graphs] == [json_text(expected)]
    assert rendered.seeds == (None,)
    used = {place: value for place, value in body.get("overrides", {}).items() if value is not None}
    assert (rendered.workflow, rendered.inputs) == ("custom", {"overrides": used} if used else {})
    assert [{(target.node_id, target.input) for target in upload.targets} for upload in rendered.uploads] == loads
    assert len(rendered.warnings) == len(unused)
    assert json_text(body) == before


@dataclass(frozen=True)
class PlantedFault:
    """A value to set at a key of the request (MISSING: remove the key), and the path of its fault."""

    key: str
    value: Any
    path: str


MISSING = object()
LONG_TEXT = "lorem ipsum " * 500
INVALID_TEXT = st.sampled_from(["a\ud800", "\udfff", "a\0b", "\0", LONG_TEXT + "\0"])
HUGE_INTEGERS = st.sampled_from([309, 4000, -400, -6000]).map(
    lambda digits: 10**digits if digits > 0 else -(10**-digits)
)
INVALID_NUMBER = st.sampled_from([math.nan, math.inf, -math.inf]) | HUGE_INTEGERS
EMPTY_CONTAINERS: st.SearchStrategy[Any] = st.builds(list) | st.builds(dict)
NOT_TEXT = st.booleans() | st.integers() | FINITE | EMPTY_CONTAINERS | INVALID_NUMBER | INVALID_TEXT
NOT_A_NUMBER = (
    st.booleans()
    | st.sampled_from(["20 px", "1,000", "0x20", "", "NaN", LONG_TEXT])
    | EMPTY_CONTAINERS
    | INVALID_NUMBER
    | INVALID_TEXT
)
NOT_WHOLE = NOT_A_NUMBER | st.sampled_from([1.5, 20.25, -0.5])
NOT_A_LIST: st.SearchStrategy[Any] = (
    st.booleans() | st.integers() | FINITE | st.just(" ") | st.builds(dict) | INVALID_NUMBER | INVALID_TEXT
)
NOT_AN_OBJECT: st.SearchStrategy[Any] = (
    st.booleans() | st.integers() | FINITE | WORDS | st.builds(list) | INVALID_NUMBER | INVALID_TEXT
)
MISSPELLED = {
    "promt": "prompt",
    "promtp": "prompt",
    "Prompt": "prompt",
    "setps": "steps",
    "hight": "height",
    "sampler_name": "sampler",
    "shceduler": "scheduler",
    "lora": "loras",
    "negativ_prompt": "negative_prompt",
    "override": "overrides",
    "timeout": "timeout_s",
}
NESTED: list[Any] = []
for _ in range(100):
    NESTED = [NESTED]


def planted_at(key: str, values: st.SearchStrategy[Any], path: str = "") -> st.SearchStrategy[PlantedFault]:
    """Generate faults at `key`; their path is `path` if it is given, otherwise the key."""
    return values.map(lambda value: PlantedFault(key, value, path or key))


def integers_outside(low: float, high: float) -> st.SearchStrategy[float]:
    """Generate integers below `low` or above `high`."""
    return st.integers(-(2**70), math.ceil(low) - 1) | st.integers(math.floor(high) + 1, 2**70)


def is_not_a_name(value: object) -> bool:
    """Return whether a value cannot be a name."""
    return not isinstance(value, str) or not value.strip() or "\0" in value


LORA: JsonObject = {"name": "pixel.safetensors", "strength": 0.5}
LORA_FAULTS = st.one_of(
    planted_at("loras", NOT_A_LIST),
    planted_at("loras", st.just([LORA] * 9)),
    planted_at("loras", NOT_AN_OBJECT.filter(is_not_a_name).map(lambda item: [LORA, item]), "loras[1]"),
    planted_at("loras", st.just([{"strength": 1}]), "loras[0].name"),
    planted_at(
        "loras", (NOT_TEXT | st.sampled_from(["", LONG_TEXT])).map(lambda name: [LORA, {"name": name}]), "loras[1].name"
    ),
    planted_at(
        "loras",
        (NOT_A_NUMBER | integers_outside(-10, 10)).map(lambda n: [{**LORA, "strength": n}]),
        "loras[0].strength",
    ),
    planted_at("loras", st.just([{**LORA, "weight": 1}]), "loras[0].weight"),
    planted_at("loras", st.just([{**LORA, "na\ud800me": 1}]), 'loras[0]["na?me"]'),
)
NOT_NULL = SCALARS.filter(lambda value: value is not None)
OVERRIDE_FAULTS = st.one_of(
    planted_at("overrides", NOT_AN_OBJECT),
    planted_at("overrides", NOT_NULL.map(lambda value: {"Nope.text": value}), 'overrides["Nope.text"]'),
    planted_at("overrides", NOT_NULL.map(lambda value: {"8.seed.0": value}), 'overrides["8.seed.0"]'),
    planted_at("overrides", st.just({"seed": 1}), "overrides.seed"),
    planted_at("overrides", st.just({"8.": 1}), 'overrides["8."]'),
    planted_at(
        "overrides", (INVALID_NUMBER | INVALID_TEXT).map(lambda value: {"8.seed": value}), 'overrides["8.seed"]'
    ),
    planted_at("overrides", INVALID_NUMBER.map(lambda value: {"Nope.text": value}), 'overrides["Nope.text"]'),
    planted_at("overrides", st.just({LONG_TEXT: 1}), path_of(["overrides", LONG_TEXT])),
)
GRAPH_OVERRIDE_FAULTS = OVERRIDE_FAULTS | st.one_of(
    planted_at("overrides", INVALID_TEXT.map(lambda value: {"8.seed": [1, {"a": value}]}), 'overrides["8.seed"][1].a'),
    planted_at("overrides", st.just({"8.seed": NESTED}), path_of(["overrides", "8.seed", *[0] * (MAX_DEPTH - 2)])),
)


def beyond_limits(place: str, values: st.SearchStrategy[Any]) -> st.SearchStrategy[PlantedFault]:
    """Generate faults of an override that breaks the template's limits."""
    return planted_at("overrides", values.map(lambda value: {place: value}), path_of(["overrides", place]))


TEMPLATE_OVERRIDE_FAULTS = OVERRIDE_FAULTS | st.one_of(
    beyond_limits("8.sed", NOT_NULL),
    beyond_limits("8.steps", NOT_WHOLE | integers_outside(1, 100)),
    beyond_limits("KSampler.seed", integers_outside(0, MAX_SEED).filter(lambda seed: seed != -1)),
    beyond_limits("8.cfg", NOT_A_NUMBER | st.sampled_from([0.99, 11.01, 100])),
    beyond_limits("8.denoise", NOT_A_NUMBER | st.sampled_from([-0.01, 1.01])),
    beyond_limits("FluxGuidance.guidance", NOT_A_NUMBER | st.just(30.1)),
    beyond_limits("Prompt.text", NOT_TEXT | st.sampled_from(["", " ", LONG_TEXT])),
    beyond_limits("8.model", NOT_NULL | st.sampled_from([["99", 0], ["1"], ["1", -1]])),
    beyond_limits("3.vae_name", NOT_TEXT | st.just(LONG_TEXT)),
    beyond_limits("10.path", NOT_NULL),
)
ENVELOPE_FAULTS: dict[str, st.SearchStrategy[PlantedFault]] = {
    "output_format": planted_at(
        "output_format", NOT_TEXT | st.sampled_from(["gif", "pngs", "image/gif", "", LONG_TEXT])
    ),
    "output_quality": planted_at("output_quality", NOT_WHOLE | integers_outside(1, 100)),
    "metadata": planted_at("metadata", NOT_A_LIST.filter(lambda value: not isinstance(value, bool))),
    "delivery": planted_at("delivery", NOT_TEXT | st.sampled_from(["ftp", "inline", LONG_TEXT])),
    "timeout_s": planted_at("timeout_s", NOT_A_NUMBER | integers_outside(1, 3600) | st.just(0.999)),
}
FAULTS: dict[str, st.SearchStrategy[PlantedFault]] = {
    **ENVELOPE_FAULTS,
    "prompt": planted_at("prompt", NOT_TEXT | st.sampled_from(["", " ", "\n\t ", "x" * 4097, LONG_TEXT, MISSING])),
    "negative_prompt": planted_at("negative_prompt", NOT_TEXT | st.sampled_from(["x" * 4097, LONG_TEXT])),
    "negative_strength": planted_at("negative_strength", NOT_A_NUMBER | integers_outside(0, 10) | st.just(10.001)),
    "steps": planted_at("steps", NOT_WHOLE | integers_outside(1, 100)),
    "guidance": planted_at("guidance", NOT_A_NUMBER | integers_outside(0, 30) | st.just(30.001)),
    "seed": planted_at("seed", NOT_WHOLE | integers_outside(0, MAX_SEED).filter(lambda seed: seed != -1)),
    "num_images": planted_at("num_images", NOT_WHOLE | integers_outside(1, 8)),
    "sampler": planted_at("sampler", NOT_TEXT | st.sampled_from(["", "x" * 65, LONG_TEXT])),
    "scheduler": planted_at("scheduler", NOT_TEXT | st.sampled_from(["", "x" * 65, LONG_TEXT])),
    "width": planted_at(
        "width", NOT_WHOLE | integers_outside(64, 2048) | st.integers(64, 2048).filter(lambda n: n % 16)
    ),
    "height": planted_at(
        "height", NOT_WHOLE | integers_outside(64, 2048) | st.integers(64, 2048).filter(lambda n: n % 16)
    ),
    "loras": LORA_FAULTS,
    "overrides": TEMPLATE_OVERRIDE_FAULTS,
    "webhook": planted_at("webhook", NOT_AN_OBJECT)
    | planted_at("webhook", NOT_TEXT.map(lambda url: {"url": url}), "webhook.url"),
    "workflow": planted_at("workflow", NOT_TEXT.filter(lambda value: not isinstance(value, dict))),
    "images": planted_at("images", st.just([{"name": "a.png", "image": "aGk="}]) | st.builds(list) | st.integers()),
    "near": st.sampled_from(list(MISSPELLED)).flatmap(
        lambda name: planted_at(name, VALUES.filter(lambda value: value is not None))
    ),
    "unknown": planted_at("qqqqqqqq", NOT_NULL)
    | planted_at(LONG_TEXT, NOT_NULL, path_of([LONG_TEXT]))
    | planted_at("", NOT_NULL, '[""]'),
}
NOT_AN_IMAGE = st.sampled_from(
    [
        "",
        "!!!",
        "YWJj=YWJj",
        "größe",
        "http://example.com/a.png",
        "ftp://example.com/a.png",
        "file:///etc/passwd",
        "data:image/png,abc",
        "data:image/png;base64",
        "data:image/png;base64,???",
        LONG_TEXT * 10 + "!",
    ]
)
IMG2IMG_FAULTS: dict[str, st.SearchStrategy[PlantedFault]] = {
    **FAULTS,
    "image": planted_at("image", NOT_TEXT | NOT_AN_IMAGE | st.just(MISSING)),
    "strength": planted_at("strength", NOT_A_NUMBER | integers_outside(0, 1) | st.sampled_from([0, 0.009, 1.01])),
}


def rejection_of(raw: object, workflows: Mapping[str, Workflow]) -> ErrorReport:
    """Return the report of a rejected request. Fails if the request is accepted."""
    try:
        read_request(raw, workflows)
    except JobError as error:
        return error.report
    raise AssertionError("the request was accepted")


def assert_has_faults(report: ErrorReport, faults: list[PlantedFault]) -> None:
    """Assert that a report has exactly these faults, each once, in short messages, and can be sent as JSON."""
    assert report.code is ErrorCode.INVALID_INPUT
    found = {fault["path"]: fault["message"] for fault in report.details["faults"]}
    assert len(found) == len(report.details["faults"])
    assert sorted(found) == sorted(fault.path for fault in faults)
    for fault in faults:
        assert fault.path in report.message
        assert 0 < len(found[fault.path]) < 350
        if fault.key in MISSPELLED:
            assert f'did you mean "{MISSPELLED[fault.key]}"?' in found[fault.path]
    assert LONG_TEXT[:80] not in report.message
    assert ErrorReport.from_json(report.to_json()) == report
    report.to_json().encode("utf-8")


def with_faults(body: JsonObject, faults: list[PlantedFault]) -> JsonObject:
    """Return a request with these faults planted."""
    changed = {**body, **{fault.key: fault.value for fault in faults}}
    return {key: value for key, value in changed.items() if value is not MISSING}


@given(st.data())
@settings(REPEATABLE, max_examples=INVALID_TEMPLATES)
def test_an_invalid_request_is_rejected_with_its_faults(workflows: Mapping[str, Workflow], data: st.DataObject) -> None:
    """One to four faults of any kind are all reported with their paths, and nothing else is."""
    name, body = data.draw(template_requests())
    kinds = FAULTS if name == "flux-dev-txt2img" else IMG2IMG_FAULTS
    chosen = data.draw(st.lists(st.sampled_from(list(kinds)), min_size=1, max_size=4, unique=True))
    faults = [data.draw(kinds[kind]) for kind in chosen]
    if "negative_prompt" in chosen:
        body.setdefault("negative_strength", 1)
    if any(fault.value is MISSING and fault.key == "image" for fault in faults):
        assume("workflow" not in chosen)
        body["workflow"] = name

    assert_has_faults(rejection_of(with_faults(body, faults), workflows), faults)


GRAPH: Graph = {
    node_id: {"class_type": "A", "inputs": {"value": 1, "from": [other, 0]}, "_meta": {"title": f"T{node_id}"}}
    for node_id, other in (("1", "4"), ("2", "1"), ("3", "2"), ("8", "3"), ("4", "4"))
} | {"8": {"class_type": "KSampler", "inputs": {"seed": 1}}}


def node_fault(node_id: str, value: object, path: str) -> PlantedFault:
    """Return a fault in a node of GRAPH."""
    return PlantedFault(node_id, value, path_of(["workflow", node_id]) + path)


INCOMPLETE_NODES: list[Any] = [
    None,
    5,
    "x",
    [],
    {},
    {"class_type": "A"},
    {"inputs": {}},
    {"class_type": 5, "inputs": {}},
]
NODE_FAULTS: dict[str, st.SearchStrategy[PlantedFault]] = {
    "half": st.sampled_from(INCOMPLETE_NODES).map(lambda value: node_fault("1", value, "")),
    "dangling": st.sampled_from(["99", "", "x" * 500]).map(
        lambda other: node_fault(
            "2", {"class_type": "SaveImage", "inputs": {"a": [other, 0], "b": ["1", 0]}}, ".inputs.a"
        )
    ),
    "value": (INVALID_NUMBER | INVALID_TEXT).map(
        lambda value: node_fault("3", {"class_type": "A", "inputs": {"a": [1, value]}}, ".inputs.a[1]")
    ),
    "name": st.sampled_from(["\ud800", "a\0"]).map(
        lambda name: node_fault("4", {"class_type": "A", "inputs": {name: 1}}, f'.inputs["{name[:-1]}?"]')
    ),
    "deep": st.just(
        node_fault("5", {"class_type": "A", "inputs": {"a": NESTED}}, ".inputs.a" + "[0]" * (MAX_DEPTH - 4))
    ),
}
IMAGE_LIST_FAULTS = st.one_of(
    planted_at("images", NOT_A_LIST),
    planted_at("images", st.just([{"name": "a", "image": "aGk="}] * 257)),
    planted_at("images", NOT_AN_OBJECT.filter(is_not_a_name).map(lambda item: [item]), "images[0]"),
    planted_at("images", WORDS.map(lambda name: [name]), "images[0].image"),
    planted_at("images", st.just([{"image": "aGk="}]), "images[0].name"),
    planted_at(
        "images",
        (NOT_TEXT | st.sampled_from(["", "x" * 256])).map(lambda name: [{"name": name, "image": "aGk="}]),
        "images[0].name",
    ),
    planted_at(
        "images", (NOT_TEXT | NOT_AN_IMAGE).map(lambda image: [{"name": "a", "image": image}]), "images[0].image"
    ),
)
GRAPH_FAULTS: dict[str, st.SearchStrategy[PlantedFault]] = {
    **ENVELOPE_FAULTS,
    "images": IMAGE_LIST_FAULTS,
    "metadata": planted_at("metadata", NOT_A_LIST.filter(lambda value: not isinstance(value, bool | dict))),
    "overrides": GRAPH_OVERRIDE_FAULTS,
}
NOT_A_GRAPH: st.SearchStrategy[Any] = st.sampled_from(
    [
        {},
        {"nodes": [{"id": 1, "type": "KSampler"}], "links": [], "version": 0.4},
        {"last_node_id": 9, "nodes": [], "groups": []},
        json.dumps(GRAPH)[:-1],
        " {}",
    ]
)


@given(st.data())
@settings(REPEATABLE, max_examples=INVALID_GRAPHS)
def test_an_invalid_graph_is_rejected_with_its_faults(workflows: Mapping[str, Workflow], data: st.DataObject) -> None:
    """Faults of a caller's graph and of its other keys are all reported, and nothing else is."""
    all_kinds = [*GRAPH_FAULTS, *NODE_FAULTS, "whole"]
    chosen = data.draw(st.lists(st.sampled_from(all_kinds), min_size=1, max_size=4, unique=True))
    if "whole" in chosen:
        chosen = [kind for kind in chosen if kind not in NODE_FAULTS]
    faults = [data.draw(GRAPH_FAULTS[kind]) for kind in chosen if kind in GRAPH_FAULTS]
    nodes = [data.draw(NODE_FAULTS[kind]) for kind in chosen if kind in NODE_FAULTS]
    body = with_faults({"workflow": GRAPH | {fault.key: fault.value for fault in nodes}}, faults)
    if "whole" in chosen:
        body["workflow"] = data.draw(NOT_A_GRAPH)
        nodes = [PlantedFault("workflow", None, "workflow")]
    if "whole" in chosen or "half" in chosen:
        # Without valid nodes the targets of overrides are not checked.
        assume("overrides" not in chosen)

    assert_has_faults(rejection_of(body, workflows), [*faults, *nodes])


ANY_TEXT = st.text(st.characters(), max_size=12) | st.sampled_from(
    ["txt2img", "{", "{}", "\0", "https://", "data:,", LONG_TEXT]
)
ANY_NUMBER = st.integers() | st.floats() | st.sampled_from([2**63, 1e308, -0.0, 5e-324]) | HUGE_INTEGERS
ANY_JSON = st.recursive(
    st.none() | st.booleans() | ANY_NUMBER | ANY_TEXT | st.just(NESTED),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(ANY_TEXT, inner, max_size=3),
    max_leaves=10,
)
KEYS = [
    "workflow",
    "images",
    *INPUTS,
    "prompt",
    "image",
    "strength",
    "negative_prompt",
    "negative_strength",
    *ENVELOPE,
    "overrides",
]
PNG = image_file(64, 64, "PNG")


OUTCOMES = {"rendered", "invalid_input", "invalid_image", "unknown_workflow"}


def outcome(raw: object, workflows: Mapping[str, Workflow]) -> str:
    """Return "rendered" or the error's code for any request, after a check that the result can be sent as JSON."""
    try:
        rendered = (
            read_request(raw, workflows).with_fetched(lambda wanted: [PNG] * len(wanted)).render(lambda: RANDOM_SEED)
        )
    except JobError as error:
        report = error.report
    else:
        json_text([rendered.graphs, rendered.inputs, rendered.warnings])
        return "rendered"
    report.to_json().encode("utf-8")
    assert len(report.message) < 30_000
    return report.code.value


def text_of(raw: object) -> str:
    """Return `raw` as JSON text, or invalid JSON if Python cannot encode it."""
    try:
        return json.dumps(raw)
    except ValueError:
        return "["


@given(raw=ANY_JSON | st.dictionaries(st.sampled_from(KEYS) | ANY_TEXT, ANY_JSON, max_size=5))
@settings(REPEATABLE, max_examples=RAW_WHOLES)
def test_any_json_is_rendered_or_rejected(workflows: Mapping[str, Workflow], raw: object) -> None:
    """Any JSON results in graphs or in a report, as a value and as JSON text."""
    assert outcome(raw, workflows) in OUTCOMES
    assert outcome(text_of(raw), workflows) in OUTCOMES


@given(key=st.sampled_from(KEYS), value=ANY_JSON)
@settings(REPEATABLE, max_examples=RAW_VALUES)
def test_any_value_of_any_key_is_rendered_or_rejected(
    workflows: Mapping[str, Workflow], key: str, value: object
) -> None:
    """A valid request with any value at one key is rendered or rejected."""
    for body in ({"prompt": "a"}, {"prompt": "a", "image": next(iter(IMAGES))}, {"workflow": GRAPH}):
        assert outcome({**body, key: value}, workflows) in OUTCOMES
