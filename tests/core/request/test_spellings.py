"""Spellings of a request with one possible meaning are accepted; an ambiguous value is a fault."""

from __future__ import annotations

import json
import time
from base64 import b64encode
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import quote

import pytest

from comfy_core.contract import MAX_RANDOM_SEED, JsonObject
from comfy_core.errors import JobError
from comfy_core.request.encoded import decode_base64
from comfy_core.request.reading import read_request
from comfy_core.request.rendering import Rendered, draw_seed
from comfy_core.workflows import Workflow

CONTENT = bytes(range(256)) + b"\xfb\xff"


def rendered(workflows: Mapping[str, Workflow], **inputs: Any) -> Rendered:  # noqa: ANN401 - a request
    """Return the graphs and uploads for a valid request."""
    return read_request({"prompt": "a fox", **inputs}, workflows).render(lambda: 77)


def faults_of(workflows: Mapping[str, Workflow], **inputs: Any) -> dict[str, str]:  # noqa: ANN401 - a request
    """Return the faults of an invalid request by path."""
    with pytest.raises(JobError) as info:
        read_request({"prompt": "a fox", **inputs}, workflows)
    return {fault["path"]: fault["message"] for fault in info.value.report.details["faults"]}


@pytest.mark.parametrize(
    ("sent", "meant"),
    [
        ({"image": None, "seed": None, "negative_prompt": None, "loras": None, "workflow": None}, {}),
        ({"images": None, "overrides": None, "output_format": None, "timeout_s": None, "nonsense": None}, {}),
        ({"loras": [None, {"name": "a", "strength": None}]}, {"loras": [{"name": "a"}]}),
        ({"overrides": {"8.steps": None}}, {}),
        ({"width": "64", "height": " 128 ", "steps": "4.0"}, {"width": 64, "height": 128, "steps": 4}),
        ({"guidance": "0.5", "seed": "9007199254740993"}, {"guidance": 0.5, "seed": 9007199254740993}),
        ({"guidance": "1e1", "num_images": "+2"}, {"guidance": 10.0, "num_images": 2}),
        ({"loras": "pixel.safetensors"}, {"loras": [{"name": "pixel.safetensors"}]}),
        ({"loras": "sub/pixel.safetensors:0.8"}, {"loras": [{"name": "sub/pixel.safetensors", "strength": 0.8}]}),
        (
            {"loras": ["a", "b: -1", {"name": "c"}]},
            {"loras": [{"name": "a"}, {"name": "b", "strength": -1}, {"name": "c"}]},
        ),
        ({"loras": ["C:\\a.safetensors"]}, {"loras": [{"name": "C:\\a.safetensors"}]}),
        ({"loras": [{"name": "a", "strength": "0.5"}]}, {"loras": [{"name": "a", "strength": 0.5}]}),
        ({"overrides": {"8.steps": "7"}}, {"overrides": {"8.steps": 7}}),
    ],
    ids=lambda body: str(body)[:40],
)
def test_equivalent_spellings_are_accepted(
    workflows: Mapping[str, Workflow], sent: JsonObject, meant: JsonObject
) -> None:
    """Null counts as missing, numbers may be text, and a LoRA may be its name."""
    assert rendered(workflows, **sent) == rendered(workflows, **meant)


@pytest.mark.parametrize(
    ("sent", "read"),
    [
        ({"output_format": "jpg"}, ("jpeg", True, "auto")),
        ({"output_format": ".PNG", "metadata": "False"}, ("png", False, "auto")),
        ({"output_format": "image/webp", "metadata": "true", "delivery": "Base64"}, ("webp", True, "base64")),
        ({"output_format": " JPEG "}, ("jpeg", True, "auto")),
    ],
    ids=lambda body: str(body)[:40],
)
@pytest.mark.parametrize("graph", [False, True], ids=["template", "graph"])
def test_choices_in_other_spellings(
    workflows: Mapping[str, Workflow], sent: JsonObject, read: tuple[object, ...], *, graph: bool
) -> None:
    """Upper case, file extensions and MIME types name a format; booleans may be text."""
    whole = {"workflow": {"1": {"class_type": "SaveImage", "inputs": {}}}}
    request = read_request({**(whole if graph else {"prompt": "a fox"}), **sent}, workflows)

    assert (request.output_format, request.metadata, request.delivery) == read


@pytest.mark.parametrize(
    ("sent", "message"),
    [
        ({"width": "64 px"}, 'must be a whole number, not "64 px"'),
        ({"width": "1,024"}, "must be a whole number"),
        ({"width": "0x40"}, "must be a whole number"),
        ({"steps": "4.5"}, "must be a whole number, not 4.5"),
        ({"steps": "1000"}, "must be at most 100, not 1000"),
        ({"steps": True}, "must be a whole number, not true"),
        ({"guidance": "NaN"}, "must be a number"),
        ({"guidance": ""}, "must be a number"),
        ({"seed": "9" * 50}, "must be a whole number"),
        ({"metadata": "yes"}, "must be true or false"),
        ({"metadata": 1}, "must be true or false"),
        ({"output_format": "gif"}, "must be one of"),
        ({"loras": {"name": "a"}}, "must be a list, not an object"),
        ({"loras": " "}, "must be a list"),
    ],
    ids=str,
)
def test_an_ambiguous_value_is_a_fault(workflows: Mapping[str, Workflow], sent: JsonObject, message: str) -> None:
    """The only fault has the key as its path and describes the problem."""
    [(path, fault)] = faults_of(workflows, **sent).items()

    assert path == next(iter(sent))
    assert message in fault


@pytest.mark.parametrize("seed", [-1, -1.0, "-1", None])
def test_a_seed_of_minus_one_is_random(workflows: Mapping[str, Workflow], seed: object) -> None:
    """A seed of -1 is random, as an input and as an override; several images use consecutive seeds."""
    assert rendered(workflows, seed=seed, num_images=2).seeds == (77, 78)
    over = rendered(workflows, seed=5, num_images=2, overrides={"KSampler.seed": seed or -1})
    assert over.seeds == (77, 78)
    assert over.inputs["seed"] == 77
    assert "overrides" not in over.inputs
    assert "must be at least 0, not -2" in faults_of(workflows, seed=-2)["seed"]


def test_a_random_seed_is_exact_in_a_double(workflows: Mapping[str, Workflow]) -> None:
    """A random seed and the seeds of the images after it are below 2**32, so JavaScript reads them exactly."""
    assert MAX_RANDOM_SEED == 2**32 - 1
    assert all(0 <= draw_seed() <= MAX_RANDOM_SEED for _ in range(1000))
    request = read_request({"prompt": "a fox", "num_images": 8}, workflows)
    assert request.render(lambda: MAX_RANDOM_SEED).seeds == tuple(range(2**32 - 8, 2**32))
    assert max(request.render().seeds, key=lambda seed: seed or 0) in range(2**32)
    assert rendered(workflows, seed=2**63 - 1).seeds == (2**63 - 1,)


BASE64 = b64encode(CONTENT).decode()


@pytest.mark.parametrize(
    "spell",
    [
        lambda text: text,
        lambda text: text.rstrip("="),
        lambda text: f"{text}===",
        lambda text: text.replace("+", "-").replace("/", "_"),
        lambda text: f"\ufeff {text}\r\n",
        lambda text: "\n".join(text[index : index + 76] for index in range(0, len(text), 76)),
        lambda text: f'"{text}"',
        lambda text: f"'{text}'",
        lambda text: text.replace("/", "\\/"),
        lambda text: f"{text[:76]}\\n{text[76:]}",
        lambda text: f"data:image/png;base64,{text}",
        lambda text: f"DATA:image/png;BASE64,{text}",
        lambda text: f"  data:image/png;base64,{text}",
        lambda text: f"data:image/png; base64,{text}",
        lambda text: f"data:image/png;name=a.png;base64 , {text}",
        lambda text: f"data:;base64,{text.rstrip('=')}",
        lambda text: f"data:image/png,{text}",
        lambda text: f"image/png;base64,{text}",
        lambda text: f"base64,{text}",
        lambda text: quote(text, safe=""),
        lambda text: f"data:image/png;base64,{quote(text, safe='')}",
        lambda text: quote(f"data:image/png;base64,{text}", safe=""),
    ],
)
def test_base64_in_other_spellings(spell: Callable[[str], str]) -> None:
    """Padding, alphabet, quotes, white space, escapes and data URI prefixes of other software are accepted."""
    assert decode_base64(spell(BASE64)) == CONTENT


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a {red|blue} fox", '"{red|blue}" is a random choice'),
        ("a __animal__ in the wood", '"__animal__" is a wildcard'),
        ("a fox <lora:knight:0.8>", '"<lora:knight:0.8>" does not load a LoRA: use `loras`'),
        ("a fox, embedding:easynegative", '"embedding:easynegative" has no effect unless'),
        ("a fox // not blue", '"//" begins a comment'),
        ("a fox /* not blue */", '"/*" begins a comment'),
        ("a [fox:wolf:0.5]", '"[fox:wolf:0.5]" is prompt editing'),
        ("a fox --ar 16:9", '"--ar" is a parameter of another tool'),
    ],
)
def test_syntax_of_other_tools_is_a_warning(workflows: Mapping[str, Workflow], prompt: str, expected: str) -> None:
    """The prompt is sent unchanged, and the warning names the syntax that has no effect."""
    result = rendered(workflows, prompt=prompt)

    [warning] = result.warnings
    assert warning.startswith(f"prompt: {expected}")
    assert result.graphs[0]["4"]["inputs"]["text"] == prompt
    negative = rendered(workflows, negative_prompt=prompt, negative_strength=1)
    assert [warning.partition(":")[0] for warning in negative.warnings] == ["negative_prompt"]


@pytest.mark.parametrize(
    "prompt",
    [
        "a (fox:1.2), [blurred]",
        "a fox and/or a wolf",
        "https://example.com/a",
        "snake_case, __init",
        "a {fox}",
        "a - b -- c",
    ],
)
def test_ordinary_text_is_not_syntax_of_other_tools(workflows: Mapping[str, Workflow], prompt: str) -> None:
    """Weights, URLs and dashes cause no warning."""
    assert rendered(workflows, prompt=prompt).warnings == ()


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("num_inference_steps", 'is not known; did you mean "steps"?'),
        ("numInferenceSteps", 'is not known; did you mean "steps"?'),
        ("guidance_scale", 'did you mean "guidance"?'),
        ("cfg_scale", 'did you mean "guidance"?'),
        ("n", 'did you mean "num_images"?'),
        ("batch_size", 'did you mean "num_images"?'),
        ("image_size", 'did you mean "width" and "height"?'),
        ("size", 'did you mean "width" and "height"?'),
        ("init_images", "is not known; image to image takes the image as `image`"),
        ("negative", 'did you mean "negative_prompt"?'),
        ("format", 'did you mean "output_format"?'),
        ("strength", "is only valid for image to image: also send `image`"),
        ("prompt_strength", "is only valid for image to image: also send `image`"),
        ("denoising_strength", "is only valid for image to image: also send `image`"),
        ("denoise", "is only valid for image to image: also send `image`"),
        ("sampling_steps", 'did you mean "steps"?'),
        ("webhook", "belongs next to `input`"),
        ("s3Config", "belongs next to `input`"),
        ("s3_config", "belongs next to `input`"),
        ("policy", "belongs next to `input`"),
    ],
)
def test_a_key_of_another_tool_is_reported_with_ours(
    workflows: Mapping[str, Workflow], key: str, expected: str
) -> None:
    """The error for another API's input name has our name."""
    [(path, message)] = faults_of(workflows, **{key: 1}).items()

    assert path == key
    assert expected in message


def test_an_image_for_text_to_image_is_reported_with_the_other_workflow(workflows: Mapping[str, Workflow]) -> None:
    """A caller that selects txt2img and sends an image gets the name of the workflow for it."""
    assert "set it to img2img" in faults_of(workflows, workflow="txt2img", image=BASE64)["image"]


def test_other_names_of_strength_and_image_are_reported(workflows: Mapping[str, Workflow]) -> None:
    """For image to image the faults of such names suggest `strength` and `image`."""
    faults = faults_of(workflows, image=BASE64, prompt_strength=0.5, init_image=BASE64)

    assert faults["prompt_strength"] == 'is not known; did you mean "strength"?'
    assert faults["init_image"] == 'is not known; did you mean "image"?'


def test_thousands_of_unknown_keys_are_reported_quickly(workflows: Mapping[str, Workflow]) -> None:
    """20,000 unknown keys, next to a template or a graph, and 20,000 invalid LoRAs are reported within 6 s."""
    unknown = {f"stepz{number}": 1 for number in range(20_000)}

    begun_at = time.process_time()
    assert len(faults_of(workflows, **unknown)) == 50
    assert len(faults_of(workflows, loras=[5] * 20_000)) == 1
    assert (
        len(read_request({"workflow": {"1": {"class_type": "A", "inputs": {}}}, **unknown}, workflows).warnings) == 11
    )
    assert time.process_time() - begun_at < 6


@pytest.mark.parametrize("length", [300, 100_000])
def test_no_fault_repeats_a_long_value(workflows: Mapping[str, Workflow], length: int) -> None:
    """A fault shows at most 60 characters of the value."""
    long = "y" * length
    graph = {long: {"class_type": long, "inputs": {long: [long + "z", 0]}, "_meta": {"title": long}}}
    bodies: list[JsonObject] = [
        {"prompt": "a", long: 1, "steps": long, "output_format": long, "overrides": {long: 1, f"8.{long}": long}},
        {"workflow": long, "prompt": "a"},
        {"workflow": graph, "images": [{"name": long, "image": long}]},
        {"workflow": {"1": {"class_type": "LoadImage", "inputs": {"image": f"!{long}"}}}},
        {
            "workflow": {"1": {"class_type": "LoadImage", "inputs": {"image": "a.png"}}},
            "images": [{"name": long[:250], "image": "aGk="}],
        },
    ]
    for body in bodies:
        with pytest.raises(JobError) as info:
            read_request(body, workflows)
        assert "y" * 61 not in json.dumps(info.value.report.to_json())
