"""Requests made at random, each together with what must become of it: rendered to the letter, or refused at its faults.

The good ones are built beside the graphs that they must give, by a table of node ids of its own, and sent in other
spellings of the same. The bad ones are good ones with one to four faults planted, each with its path.
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
from comfy_core.images.codec import rounded_size
from comfy_core.request.reading import read_request
from comfy_core.validation import MAX_DEPTH, path_of
from comfy_core.workflows import Graph, Workflow

pytestmark = pytest.mark.slow
Draw: TypeAlias = st.DrawFn

REPEATABLE = settings(
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
GOOD_TEMPLATES, GOOD_GRAPHS, BAD_TEMPLATES, BAD_GRAPHS, RAW_WHOLES, RAW_VALUES = 600, 300, 800, 400, 300, 500
"""Requests of each kind: 2,100 whose outcome is known, and 800 of anything."""

MAX_SEED = 2**63 - 1
RANDOM_SEED = 987_654_321

COMMON = {
    "prompt": ("4", "text"),
    "negative_prompt": ("5", "text"),
    "guidance": ("6", "guidance"),
    "steps": ("8", "steps"),
    "sampler": ("8", "sampler_name"),
    "scheduler": ("8", "scheduler"),
}
SLOTS = {
    "flux-dev-txt2img": {**COMMON, "width": ("7", "width"), "height": ("7", "height")},
    "flux-dev-img2img": {
        **COMMON,
        "width": ("12", "width"),
        "height": ("12", "height"),
        "strength": ("8", "denoise"),
    },
}
"""Where each plain input goes in the shipped graphs, written down from the graphs."""

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


def picture_file(width: int, height: int, file_format: str) -> bytes:
    """Return a small picture."""
    file = io.BytesIO()
    Image.new("RGB", (width, height), "teal").save(file, file_format)
    return file.getvalue()


PICTURES: dict[str, tuple[int, int]] = {
    b64encode(picture_file(width, height, file_format)).decode(): (width, height)
    for width, height, file_format in (
        (48, 32, "PNG"),
        (100, 300, "JPEG"),
        (640, 64, "WEBP"),
        (1, 1, "GIF"),
        (16, 9, "BMP"),
    )
}
"""Pictures in base64, and their sizes."""

CLEAN = st.characters(exclude_categories=["Cs"], exclude_characters="\0")
TEXT = st.text(CLEAN, min_size=1, max_size=40)
WORDS = TEXT.filter(str.strip)
FINITE = st.floats(allow_nan=False, allow_infinity=False)
SCALARS = st.none() | st.booleans() | st.integers(-(2**64), 2**64) | FINITE | st.text(CLEAN, max_size=20)
VALUES = SCALARS | st.lists(SCALARS, max_size=3) | st.dictionaries(TEXT, SCALARS, max_size=2)


def number(low: float, high: float) -> st.SearchStrategy[float]:
    """Return numbers of that range, as JSON has them: whole or not."""
    return st.floats(low, high) | st.integers(math.ceil(low), math.floor(high))


def whole(low: int, high: int, step: int = 1) -> st.SearchStrategy[float]:
    """Return whole numbers of that range, some as JSON's 20.0."""
    numbers = st.integers(low // step, high // step).map(lambda count: count * step)
    return numbers | numbers.filter(lambda n: int(float(n)) == n).map(float)


INPUTS: dict[str, st.SearchStrategy[Any]] = {
    "steps": whole(1, 100),
    "guidance": number(0, 30),
    "seed": whole(0, MAX_SEED - 8) | st.integers(MAX_SEED - 8, MAX_SEED),
    "num_images": whole(1, 8),
    "sampler": st.text(CLEAN, min_size=1, max_size=64),
    "scheduler": st.text(CLEAN, min_size=1, max_size=64),
    "width": whole(64, 2048, 16),
    "height": whole(64, 2048, 16),
    "loras": st.lists(
        st.fixed_dictionaries({"name": TEXT}, optional={"strength": number(-10, 10)}),
        max_size=8,
    ),
}
ENVELOPE: dict[str, st.SearchStrategy[Any]] = {
    "output_format": st.sampled_from(["png", "webp", "jpeg"]),
    "output_quality": whole(1, 100),
    "metadata": st.booleans(),
    "delivery": st.sampled_from(["auto", "base64"]),
    "timeout_s": number(1, 3600),
}
ENVELOPE_DEFAULTS: JsonObject = {
    "output_format": "png",
    "output_quality": 90,
    "metadata": True,
    "delivery": "auto",
    "timeout_s": None,
}


def json_text(value: object) -> str:
    """Return JSON, in which 20 is not 20.0; it must be such that every decoder takes it."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False)
    text.encode("utf-8")
    return text


@st.composite
def template_requests(draw: Draw) -> tuple[str, JsonObject]:
    """Return a workflow's name and a good request for it."""
    name = draw(st.sampled_from(list(SLOTS)))
    alias = name.removeprefix("flux-dev-")
    body: JsonObject = draw(st.fixed_dictionaries({"prompt": WORDS}, optional={**INPUTS, **ENVELOPE}))
    if draw(st.booleans()):
        body["negative_strength"] = draw(number(0, 10).filter(lambda strength: strength > 0))
        body["negative_prompt"] = draw(st.text(CLEAN, max_size=40))
    if name == "flux-dev-img2img":
        body["image"] = draw(st.sampled_from(list(PICTURES)))
        body |= draw(st.fixed_dictionaries({}, optional={"strength": number(0.01, 1)}))
    body |= draw(st.sampled_from([{}, {"workflow": name}, {"workflow": alias}]))
    return name, body


BOUND: dict[tuple[str, str], st.SearchStrategy[Any]] = {
    ("4", "text"): WORDS,
    ("5", "text"): st.text(CLEAN, max_size=40),
    ("6", "guidance"): number(0, 30),
    ("8", "steps"): whole(1, 100),
    ("8", "seed"): whole(0, MAX_SEED - 8),
    ("8", "cfg"): number(1, 11),
    ("8", "denoise"): number(0.01, 1),
    ("8", "sampler_name"): INPUTS["sampler"],
    ("8", "scheduler"): INPUTS["scheduler"],
}
"""What the places may be set to that an input of the template, or the graph's own number, limits."""


@st.composite
def overrides_of(draw: Draw, graph: Graph) -> JsonObject:
    """Return overrides of a shipped graph, by title and by id, within the limits of its template."""
    slots = [(node_id, name) for node_id in TITLES for name in graph[node_id]["inputs"]]
    links = st.tuples(st.sampled_from(list(graph)), st.integers(0, 3)).map(list)
    overrides = {}
    for node_id, name in draw(st.lists(st.sampled_from(slots), max_size=3)):
        held = graph[node_id]["inputs"][name]
        free = links if isinstance(held, list) else st.text(CLEAN, max_size=40)
        place = f"{draw(st.sampled_from([node_id, TITLES[node_id]]))}.{name}"
        overrides[place] = draw(BOUND.get((node_id, name), free) | st.none())
    return overrides


def as_read(value: object) -> object:
    """Return a whole number that JSON wrote with a point as the int that it is."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


@st.composite
def spelled(draw: Draw, body: JsonObject) -> JsonObject:
    """Return another request that means the same: text for numbers, upper case, nulls, names for LoRAs."""
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
                sent[key] = draw(st.sampled_from(SPELLINGS))(value)
            case [*loras] if key == "loras":
                sent[key] = [draw(lora_spelled(lora)) for lora in loras]
            case _:
                sent[key] = value
    absent = [key for key in (*INPUTS, *ENVELOPE, "negative_prompt", "image", "overrides") if key not in body]
    return {**sent, **dict.fromkeys(draw(st.lists(st.sampled_from(absent), max_size=3)) if absent else [])}


@st.composite
def lora_spelled(draw: Draw, lora: JsonObject) -> object:
    """Return a LoRA as the object that it is, or as its name where that says the same."""
    if draw(st.booleans()) and lora["name"].strip() == lora["name"] and ":" not in lora["name"]:
        return lora["name"] + (f":{json.dumps(lora['strength'])}" if "strength" in lora else "")
    return {**lora, "strength": None} if "strength" not in lora and draw(st.booleans()) else lora


SPELLINGS: tuple[Callable[[str], str], ...] = (
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


def side(pixels: float) -> int:
    """Return a side in proportion to the other one that was given."""
    return min(2048, max(64, round(pixels / 16) * 16))


def used_inputs(name: str, body: JsonObject) -> JsonObject:
    """Return the inputs that a request stands for, with everything that it leaves out."""
    given_inputs = {
        key: value for key, value in body.items() if key not in {*ENVELOPE, "workflow", "overrides", "image"}
    }
    used = {**DEFAULTS_OF[name], "seed": RANDOM_SEED, **given_inputs}
    if "image" in body:
        width, height = PICTURES[body["image"]]
        if "width" not in used and "height" not in used:
            used["width"], used["height"] = rounded_size(width, height)
        elif "width" not in used:
            used["width"] = side(width * int(used["height"]) / height)
        elif "height" not in used:
            used["height"] = side(height * int(used["width"]) / width)
    used["loras"] = [{"name": lora["name"], "strength": lora.get("strength", 1)} for lora in used["loras"]]
    return {key: int(value) if key in WHOLE_NUMBERS else value for key, value in used.items()}


def expected_graph(
    name: str, exported: Graph, used: JsonObject, number_of_picture: int, overrides: JsonObject
) -> Graph:
    """Return the graph that one picture must be made with: the exported one, and these changes."""
    graph = copy.deepcopy(exported)
    for key, (node_id, input_name) in SLOTS[name].items():
        graph[node_id]["inputs"][input_name] = used[key]
    sampler = graph["8"]["inputs"]
    sampler["cfg"] = 1 + used["negative_strength"]
    sampler["seed"] = (used["seed"] + number_of_picture) % 2**63
    for number, lora in enumerate(used["loras"], max(map(int, exported)) + 1):
        inputs = {"model": sampler["model"], "lora_name": lora["name"], "strength_model": lora["strength"]}
        graph[str(number)] = {"class_type": "LoraLoaderModelOnly", "inputs": inputs}
        sampler["model"] = [str(number), 0]
    ids = {title: node_id for node_id, title in TITLES.items()}
    for place, value in overrides.items():
        node, _, input_name = place.rpartition(".")
        graph[ids.get(node, node)]["inputs"][input_name] = value
    return graph


@given(st.data())
@settings(REPEATABLE, max_examples=GOOD_TEMPLATES)
def test_a_good_request_is_rendered_to_the_letter(workflows: Mapping[str, Workflow], data: st.DataObject) -> None:
    """Every value of a good request stands in its node, every default elsewhere, and nothing else has changed."""
    name, body = data.draw(template_requests())
    exported = workflows[name].graph
    before = json_text(exported)
    overrides = data.draw(overrides_of(exported))
    as_text = data.draw(st.booleans())
    if overrides:
        body["overrides"] = overrides
    sent = data.draw(spelled(body))

    request = read_request(json.dumps(sent) if as_text else sent, workflows)
    rendered = request.render(lambda: RANDOM_SEED)

    used = used_inputs(name, body)
    whole_places = {"seed", "steps"}
    overrides = {
        place: as_read(value) if place.rpartition(".")[2] in whole_places else value
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
ANNOTATED: tuple[Callable[[str], str], ...] = (
    lambda name: name,
    lambda name: f"{name} [input]",
    lambda name: f"{name}[input]",
    lambda name: name.replace("/", "\\"),
    lambda name: f"./{name}",
)
"""The same file of ComfyUI's input folder, as nodes name it."""
VALUE_LISTS = st.lists(SCALARS, max_size=3).filter(lambda items: len(items) != 2 or not isinstance(items[0], str))
GRAPH_VALUES = SCALARS | VALUE_LISTS | st.dictionaries(TEXT, SCALARS, max_size=2) | st.sampled_from(IMAGE_NAMES)


@st.composite
def graphs(draw: Draw) -> Graph:
    """Return a graph of a caller's own: any nodes, any values, links that hold, and nodes that load pictures."""
    ids = draw(st.lists(IDS, min_size=1, max_size=5, unique=True))
    values = SCALARS | st.lists(st.integers(0, 9), min_size=1, max_size=3) | st.sampled_from(IMAGE_NAMES)
    links = st.tuples(st.sampled_from(ids), st.integers(0, 3)).map(list)
    titles = st.fixed_dictionaries({}, optional={"title": st.text(CLEAN, max_size=10)})
    node = st.fixed_dictionaries(
        {"class_type": st.text(CLEAN, max_size=20), "inputs": st.dictionaries(NAMES, values | links, max_size=4)},
        optional={"_meta": titles},
    )
    name = st.builds(lambda name, spell: spell(name), st.sampled_from(IMAGE_NAMES), st.sampled_from(ANNOTATED))
    loader = st.fixed_dictionaries(
        {
            "class_type": st.sampled_from(["LoadImage", "LoadImageMask"]),
            "inputs": st.fixed_dictionaries({"image": name, "channel": st.sampled_from(["red", "b"])}),
        }
    )
    return {node_id: draw(node | loader) for node_id in ids}


def with_whole_links(graph: Graph) -> Graph:
    """Return a graph in which a list of a node's number and a slot is the link that ComfyUI takes it for."""
    changed = copy.deepcopy(graph)
    for each in changed.values():
        for name, value in each["inputs"].items():
            match value:
                case [int() | float() as other, int() | float() as slot] if not isinstance(other, bool):
                    if str(as_read(other)) in graph and 0 <= slot < 1000 and isinstance(as_read(slot), int):
                        each["inputs"][name] = [str(as_read(other)), int(slot)]
    return changed


def loaded_name(value: object) -> object:
    """Return the file of the input folder that a loader's value names."""
    if not isinstance(value, str):
        return value
    return value.removesuffix("[input]").rstrip().replace("\\", "/").removeprefix("./")


@given(st.data())
@settings(REPEATABLE, max_examples=GOOD_GRAPHS)
def test_a_good_graph_is_run_as_it_is(workflows: Mapping[str, Workflow], data: st.DataObject) -> None:
    """A graph of the caller's own is changed by its overrides alone, and each picture goes where it is loaded.

    A picture that nothing loads is a warning, or a fault beside a loader whose picture was not sent.
    """
    graph = data.draw(graphs())
    slots = [(node_id, name) for node_id, node in graph.items() for name in node["inputs"] if name != "image"]
    chosen = data.draw(st.lists(st.sampled_from(slots), unique=True, max_size=3)) if slots else []
    changes = {slot: data.draw(GRAPH_VALUES) for slot in chosen}
    names = data.draw(st.lists(st.sampled_from(IMAGE_NAMES), unique=True))
    body: JsonObject = {"workflow": graph, **data.draw(st.fixed_dictionaries({}, optional=ENVELOPE))}
    if changes:
        body["overrides"] = {f"{node_id}.{name}": value for (node_id, name), value in changes.items()}
    if names:
        spell = data.draw(st.sampled_from(SPELLINGS))
        body["images"] = [{"name": name, "image": spell(data.draw(st.sampled_from(list(PICTURES))))} for name in names]
    before = json_text(body)

    expected = copy.deepcopy(graph)
    for (node_id, name), value in changes.items():
        expected[node_id]["inputs"][name] = expected[node_id]["inputs"][name] if value is None else value
    expected = with_whole_links(expected)
    loaders = {
        node_id: loaded_name(node["inputs"]["image"]) for node_id, node in expected.items() if "image" in node["inputs"]
    }
    loads = [{(node_id, "image") for node_id, held in loaders.items() if held == name} for name in names]
    unsent = [held for held in loaders.values() if held not in names and "." in str(held)]
    unused = {f"images[{number}].image" for number, places in enumerate(loads) if not places}
    if unsent and unused:
        report = refused(body, workflows)
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
class Planted:
    """A value to set at a key of the request (MISSING: to take the key away), and the path of its fault."""

    key: str
    value: Any
    path: str


MISSING = object()
LONG = "lorem ipsum " * 500
NO_TEXT = st.sampled_from(["a\ud800", "\udfff", "a\0b", "\0", LONG + "\0"])
HUGE = st.sampled_from([309, 4000, -400, -6000]).map(lambda digits: 10**digits if digits > 0 else -(10**-digits))
NO_NUMBER = st.sampled_from([math.nan, math.inf, -math.inf]) | HUGE
EMPTY_CONTAINERS: st.SearchStrategy[Any] = st.builds(list) | st.builds(dict)
NOT_TEXT = st.booleans() | st.integers() | FINITE | EMPTY_CONTAINERS | NO_NUMBER | NO_TEXT
NOT_A_NUMBER = (
    st.booleans()
    | st.sampled_from(["20 px", "1,000", "0x20", "", "NaN", LONG])
    | EMPTY_CONTAINERS
    | NO_NUMBER
    | NO_TEXT
)
NOT_WHOLE = NOT_A_NUMBER | st.sampled_from([1.5, 20.25, -0.5])
NOT_A_LIST: st.SearchStrategy[Any] = (
    st.booleans() | st.integers() | FINITE | st.just(" ") | st.builds(dict) | NO_NUMBER | NO_TEXT
)
NOT_AN_OBJECT: st.SearchStrategy[Any] = (
    st.booleans() | st.integers() | FINITE | WORDS | st.builds(list) | NO_NUMBER | NO_TEXT
)
NEAR = {
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


def planted(key: str, values: st.SearchStrategy[Any], path: str = "") -> st.SearchStrategy[Planted]:
    """Return faults at `key`, whose path is the key or the one given."""
    return values.map(lambda value: Planted(key, value, path or key))


def beyond(low: float, high: float) -> st.SearchStrategy[float]:
    """Return whole numbers below `low` or above `high`."""
    return st.integers(-(2**70), math.ceil(low) - 1) | st.integers(math.floor(high) + 1, 2**70)


def is_no_word(value: object) -> bool:
    """Return whether a value cannot be a name."""
    return not isinstance(value, str) or not value.strip() or "\0" in value


LORA: JsonObject = {"name": "pixel.safetensors", "strength": 0.5}
LORA_FAULTS = st.one_of(
    planted("loras", NOT_A_LIST),
    planted("loras", st.just([LORA] * 9)),
    planted("loras", NOT_AN_OBJECT.filter(is_no_word).map(lambda item: [LORA, item]), "loras[1]"),
    planted("loras", st.just([{"strength": 1}]), "loras[0].name"),
    planted(
        "loras", (NOT_TEXT | st.sampled_from(["", "x" * 256])).map(lambda name: [LORA, {"name": name}]), "loras[1].name"
    ),
    planted("loras", (NOT_A_NUMBER | beyond(-10, 10)).map(lambda n: [{**LORA, "strength": n}]), "loras[0].strength"),
    planted("loras", st.just([{**LORA, "weight": 1}]), "loras[0].weight"),
    planted("loras", st.just([{**LORA, "na\ud800me": 1}]), 'loras[0]["na?me"]'),
)
GIVEN = SCALARS.filter(lambda value: value is not None)
OVERRIDE_FAULTS = st.one_of(
    planted("overrides", NOT_AN_OBJECT),
    planted("overrides", GIVEN.map(lambda value: {"Nope.text": value}), 'overrides["Nope.text"]'),
    planted("overrides", GIVEN.map(lambda value: {"8.seed.0": value}), 'overrides["8.seed.0"]'),
    planted("overrides", st.just({"seed": 1}), "overrides.seed"),
    planted("overrides", st.just({"8.": 1}), 'overrides["8."]'),
    planted("overrides", (NO_NUMBER | NO_TEXT).map(lambda value: {"8.seed": value}), 'overrides["8.seed"]'),
    planted("overrides", NO_NUMBER.map(lambda value: {"Nope.text": value}), 'overrides["Nope.text"]'),
    planted("overrides", st.just({LONG: 1}), path_of(["overrides", LONG])),
)
GRAPH_OVERRIDE_FAULTS = OVERRIDE_FAULTS | st.one_of(
    planted("overrides", NO_TEXT.map(lambda value: {"8.seed": [1, {"a": value}]}), 'overrides["8.seed"][1].a'),
    planted("overrides", st.just({"8.seed": NESTED}), path_of(["overrides", "8.seed", *[0] * (MAX_DEPTH - 2)])),
)


def beyond_limits(place: str, values: st.SearchStrategy[Any]) -> st.SearchStrategy[Planted]:
    """Return faults of an override of the template, whose limits hold for it."""
    return planted("overrides", values.map(lambda value: {place: value}), path_of(["overrides", place]))


TEMPLATE_OVERRIDE_FAULTS = OVERRIDE_FAULTS | st.one_of(
    beyond_limits("8.sed", GIVEN),
    beyond_limits("8.steps", NOT_WHOLE | beyond(1, 100)),
    beyond_limits("KSampler.seed", beyond(0, MAX_SEED).filter(lambda seed: seed != -1)),
    beyond_limits("8.cfg", NOT_A_NUMBER | st.sampled_from([0.99, 11.01, 100])),
    beyond_limits("8.denoise", NOT_A_NUMBER | st.sampled_from([-0.01, 1.01])),
    beyond_limits("FluxGuidance.guidance", NOT_A_NUMBER | st.just(30.1)),
    beyond_limits("Prompt.text", NOT_TEXT | st.sampled_from(["", " ", LONG])),
    beyond_limits("8.model", GIVEN | st.sampled_from([["99", 0], ["1"], ["1", -1]])),
    beyond_limits("3.vae_name", NOT_TEXT | st.just(LONG)),
    beyond_limits("10.path", GIVEN),
)
ENVELOPE_FAULTS: dict[str, st.SearchStrategy[Planted]] = {
    "output_format": planted("output_format", NOT_TEXT | st.sampled_from(["gif", "pngs", "image/gif", "", LONG])),
    "output_quality": planted("output_quality", NOT_WHOLE | beyond(1, 100)),
    "metadata": planted("metadata", NOT_A_LIST.filter(lambda value: not isinstance(value, bool))),
    "delivery": planted("delivery", NOT_TEXT | st.sampled_from(["ftp", "inline", LONG])),
    "timeout_s": planted("timeout_s", NOT_A_NUMBER | beyond(1, 3600) | st.just(0.999)),
}
FAULTS: dict[str, st.SearchStrategy[Planted]] = {
    **ENVELOPE_FAULTS,
    "prompt": planted("prompt", NOT_TEXT | st.sampled_from(["", " ", "\n\t ", "x" * 4097, LONG, MISSING])),
    "negative_prompt": planted("negative_prompt", NOT_TEXT | st.sampled_from(["x" * 4097, LONG])),
    "negative_strength": planted("negative_strength", NOT_A_NUMBER | beyond(0, 10) | st.just(10.001)),
    "steps": planted("steps", NOT_WHOLE | beyond(1, 100)),
    "guidance": planted("guidance", NOT_A_NUMBER | beyond(0, 30) | st.just(30.001)),
    "seed": planted("seed", NOT_WHOLE | beyond(0, MAX_SEED).filter(lambda seed: seed != -1)),
    "num_images": planted("num_images", NOT_WHOLE | beyond(1, 8)),
    "sampler": planted("sampler", NOT_TEXT | st.sampled_from(["", "x" * 65, LONG])),
    "scheduler": planted("scheduler", NOT_TEXT | st.sampled_from(["", "x" * 65, LONG])),
    "width": planted("width", NOT_WHOLE | beyond(64, 2048) | st.integers(64, 2048).filter(lambda n: n % 16)),
    "height": planted("height", NOT_WHOLE | beyond(64, 2048) | st.integers(64, 2048).filter(lambda n: n % 16)),
    "loras": LORA_FAULTS,
    "overrides": TEMPLATE_OVERRIDE_FAULTS,
    "workflow": planted("workflow", NOT_TEXT.filter(lambda value: not isinstance(value, dict))),
    "images": planted("images", st.just([{"name": "a.png", "image": "aGk="}]) | st.builds(list) | st.integers()),
    "near": st.sampled_from(list(NEAR)).flatmap(
        lambda name: planted(name, VALUES.filter(lambda value: value is not None))
    ),
    "unknown": planted("qqqqqqqq", GIVEN) | planted(LONG, GIVEN, path_of([LONG])) | planted("", GIVEN, '[""]'),
}
NOT_A_PICTURE = st.sampled_from(
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
        LONG * 10 + "!",
    ]
)
IMG2IMG_FAULTS: dict[str, st.SearchStrategy[Planted]] = {
    **FAULTS,
    "image": planted("image", NOT_TEXT | NOT_A_PICTURE | st.just(MISSING)),
    "strength": planted("strength", NOT_A_NUMBER | beyond(0, 1) | st.sampled_from([0, 0.009, 1.01])),
}


def refused(raw: object, workflows: Mapping[str, Workflow]) -> ErrorReport:
    """Return the report of a refusal; a request that is taken, or any other exception, fails the test."""
    try:
        read_request(raw, workflows)
    except JobError as error:
        return error.report
    raise AssertionError("it was taken")


def assert_names(report: ErrorReport, faults: list[Planted]) -> None:
    """Assert that a report has exactly these faults, each once, in short sentences, and travels."""
    assert report.code is ErrorCode.INVALID_INPUT
    found = {fault["path"]: fault["message"] for fault in report.details["faults"]}
    assert len(found) == len(report.details["faults"])
    assert sorted(found) == sorted(fault.path for fault in faults)
    for fault in faults:
        assert fault.path in report.message
        assert 0 < len(found[fault.path]) < 350
        if fault.key in NEAR:
            assert f'did you mean "{NEAR[fault.key]}"?' in found[fault.path]
    assert LONG[:80] not in report.message
    assert ErrorReport.from_json(report.to_json()) == report
    report.to_json().encode("utf-8")


def with_faults(body: JsonObject, faults: list[Planted]) -> JsonObject:
    """Return a request with these faults planted."""
    changed = {**body, **{fault.key: fault.value for fault in faults}}
    return {key: value for key, value in changed.items() if value is not MISSING}


@given(st.data())
@settings(REPEATABLE, max_examples=BAD_TEMPLATES)
def test_a_bad_request_is_refused_at_its_faults(workflows: Mapping[str, Workflow], data: st.DataObject) -> None:
    """One to four faults of any kinds are all named, at their paths, and nothing else is."""
    name, body = data.draw(template_requests())
    kinds = FAULTS if name == "flux-dev-txt2img" else IMG2IMG_FAULTS
    chosen = data.draw(st.lists(st.sampled_from(list(kinds)), min_size=1, max_size=4, unique=True))
    faults = [data.draw(kinds[kind]) for kind in chosen]
    if "negative_prompt" in chosen:
        body.setdefault("negative_strength", 1)
    if any(fault.value is MISSING and fault.key == "image" for fault in faults):
        assume("workflow" not in chosen)
        body["workflow"] = name

    assert_names(refused(with_faults(body, faults), workflows), faults)


GRAPH: Graph = {
    node_id: {"class_type": "A", "inputs": {"value": 1, "from": [other, 0]}, "_meta": {"title": f"T{node_id}"}}
    for node_id, other in (("1", "4"), ("2", "1"), ("3", "2"), ("8", "3"), ("4", "4"))
} | {"8": {"class_type": "KSampler", "inputs": {"seed": 1}}}


def node(node_id: str, value: object, path: str) -> Planted:
    """Return a fault in a node of GRAPH."""
    return Planted(node_id, value, path_of(["workflow", node_id]) + path)


HALF_NODES: list[Any] = [None, 5, "x", [], {}, {"class_type": "A"}, {"inputs": {}}, {"class_type": 5, "inputs": {}}]
NODE_FAULTS: dict[str, st.SearchStrategy[Planted]] = {
    "half": st.sampled_from(HALF_NODES).map(lambda value: node("1", value, "")),
    "dangling": st.sampled_from(["99", "", "x" * 500]).map(
        lambda other: node("2", {"class_type": "SaveImage", "inputs": {"a": [other, 0], "b": ["1", 0]}}, ".inputs.a")
    ),
    "value": (NO_NUMBER | NO_TEXT).map(
        lambda value: node("3", {"class_type": "A", "inputs": {"a": [1, value]}}, ".inputs.a[1]")
    ),
    "name": st.sampled_from(["\ud800", "a\0"]).map(
        lambda name: node("4", {"class_type": "A", "inputs": {name: 1}}, f'.inputs["{name[:-1]}?"]')
    ),
    "deep": st.just(node("5", {"class_type": "A", "inputs": {"a": NESTED}}, ".inputs.a" + "[0]" * (MAX_DEPTH - 4))),
}
IMAGE_LIST_FAULTS = st.one_of(
    planted("images", NOT_A_LIST),
    planted("images", st.just([{"name": "a", "image": "aGk="}] * 257)),
    planted("images", NOT_AN_OBJECT.map(lambda item: [item]), "images[0]"),
    planted("images", st.just([{"image": "aGk="}]), "images[0].name"),
    planted(
        "images",
        (NOT_TEXT | st.sampled_from(["", "x" * 256])).map(lambda name: [{"name": name, "image": "aGk="}]),
        "images[0].name",
    ),
    planted("images", (NOT_TEXT | NOT_A_PICTURE).map(lambda image: [{"name": "a", "image": image}]), "images[0].image"),
)
GRAPH_FAULTS: dict[str, st.SearchStrategy[Planted]] = {
    **ENVELOPE_FAULTS,
    "images": IMAGE_LIST_FAULTS,
    "metadata": planted("metadata", NOT_A_LIST.filter(lambda value: not isinstance(value, bool | dict))),
    "overrides": GRAPH_OVERRIDE_FAULTS,
}
NO_GRAPHS: st.SearchStrategy[Any] = st.sampled_from(
    [
        {},
        {"nodes": [{"id": 1, "type": "KSampler"}], "links": [], "version": 0.4},
        {"last_node_id": 9, "nodes": [], "groups": []},
        json.dumps(GRAPH)[:-1],
        " {}",
    ]
)


@given(st.data())
@settings(REPEATABLE, max_examples=BAD_GRAPHS)
def test_a_bad_graph_is_refused_at_its_faults(workflows: Mapping[str, Workflow], data: st.DataObject) -> None:
    """Faults of a graph of the caller's own, and of what goes with it, are all named, and nothing else is."""
    all_kinds = [*GRAPH_FAULTS, *NODE_FAULTS, "whole"]
    chosen = data.draw(st.lists(st.sampled_from(all_kinds), min_size=1, max_size=4, unique=True))
    if "whole" in chosen:
        chosen = [kind for kind in chosen if kind not in NODE_FAULTS]
    faults = [data.draw(GRAPH_FAULTS[kind]) for kind in chosen if kind in GRAPH_FAULTS]
    nodes = [data.draw(NODE_FAULTS[kind]) for kind in chosen if kind in NODE_FAULTS]
    body = with_faults({"workflow": GRAPH | {fault.key: fault.value for fault in nodes}}, faults)
    if "whole" in chosen:
        body["workflow"] = data.draw(NO_GRAPHS)
        nodes = [Planted("workflow", None, "workflow")]
    if "whole" in chosen or "half" in chosen:
        # Where there are no nodes to look for, an override of one is not looked for.
        assume("overrides" not in chosen)

    assert_names(refused(body, workflows), [*faults, *nodes])


ANY_TEXT = st.text(st.characters(), max_size=12) | st.sampled_from(
    ["txt2img", "{", "{}", "\0", "https://", "data:,", LONG]
)
ANY_NUMBER = st.integers() | st.floats() | st.sampled_from([2**63, 1e308, -0.0, 5e-324]) | HUGE
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
PNG = picture_file(64, 64, "PNG")


OUTCOMES = {"rendered", "invalid_input", "invalid_image", "unknown_workflow"}


def outcome(raw: object, workflows: Mapping[str, Workflow]) -> str:
    """Return what becomes of anything at all, once it is seen that it travels."""
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
    """Return `raw` as a JSON text; a number that Python does not write stands for a text that is cut off."""
    try:
        return json.dumps(raw)
    except ValueError:
        return "["


@given(raw=ANY_JSON | st.dictionaries(st.sampled_from(KEYS) | ANY_TEXT, ANY_JSON, max_size=5))
@settings(REPEATABLE, max_examples=RAW_WHOLES)
def test_anything_is_rendered_or_refused(workflows: Mapping[str, Workflow], raw: object) -> None:
    """Whatever arrives becomes graphs or a report that can be sent, as a value and as the text of it."""
    assert outcome(raw, workflows) in OUTCOMES
    assert outcome(text_of(raw), workflows) in OUTCOMES


@given(key=st.sampled_from(KEYS), value=ANY_JSON)
@settings(REPEATABLE, max_examples=RAW_VALUES)
def test_any_value_of_any_key_is_rendered_or_refused(
    workflows: Mapping[str, Workflow], key: str, value: object
) -> None:
    """Whatever stands at a key of a good request, the request is rendered or refused."""
    for body in ({"prompt": "a"}, {"prompt": "a", "image": next(iter(PICTURES))}, {"workflow": GRAPH}):
        assert outcome({**body, key: value}, workflows) in OUTCOMES
