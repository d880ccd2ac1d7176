"""Mapping of Scenario's calls to requests: examples, random bodies, and every field of every route."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from comfy_client.gateway.scenario.errors import ShimError
from comfy_client.gateway.scenario.fields import ASPECT_RATIOS, BASE_MODELS, ROUTES, SAMPLERS
from comfy_client.gateway.scenario.mapping import INFERENCES, MappedCall, map_call
from comfy_client.gateway.scenario.settings import ShimSettings
from comfy_client.gateway.scenario.studio_models import StudioModel, lora_model, parse_table, studio_models
from comfy_core.errors import ConfigError
from comfy_core.request.reading import read_request
from comfy_core.workflows import Workflow

MODELS = {"model_knight": lora_model("knight.safetensors"), "model_ink": lora_model("ink.safetensors")}
MODEL = BASE_MODELS[0]
NAMES = [*ROUTES, INFERENCES]


def map_fields(name: str = "custom", model_id: str | None = MODEL, **body: Any) -> MappedCall:  # noqa: ANN401 - any JSON value
    """Map a call of the route `name` with a prompt and the fields of `body`; return the result."""
    return map_call(name, {"prompt": "a knight", **body}, model_id, MODELS)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("custom", {"width": 1104, "height": 832, "steps": 28, "guidance": 3.5, "num_images": 1}),
        ("txt2img", {"width": 512, "height": 512, "steps": 30, "guidance": 3.5, "num_images": 1}),
    ],
)
def test_missing_fields_have_scenario_s_defaults(name: str, expected: Mapping[str, object]) -> None:
    """A call with only a prompt gets its route's defaults (docs/reference/scenario.md#route-a, #route-b)."""
    assert expected.items() <= map_fields(name).input.items()


@pytest.mark.parametrize(("name", "strength"), [("custom", 0.8), ("img2img", 0.75)])
def test_a_call_with_an_image_has_no_default_size(name: str, strength: float) -> None:
    """A call with an image and without a size is img2img without a size, with the route's default strength."""
    call = map_fields(name, image="asset_1")

    assert call.task == "img2img"
    assert call.image == "asset_1"
    assert call.input["strength"] == strength
    assert not {"width", "height"} & call.input.keys()


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"numSamples": 3}, {"num_images": 3}),
        ({"numOutputs": 3}, {"num_images": 3}),
        ({"seed": "42"}, {"seed": 42}),
        ({"seed": 42}, {"seed": 42}),
        ({"numInferenceSteps": 40.0}, {"steps": 40}),
        ({"negativePrompt": "fog", "negativePromptStrength": 2}, {"negative_prompt": "fog", "negative_strength": 2}),
        ({"scheduler": "HeunDiscreteScheduler"}, {"sampler": "heun"}),
        ({"scheduler": "EulerAncestralDiscrete"}, {"sampler": "euler_ancestral"}),
        ({"aspectRatio": "16:9"}, {"width": 1344, "height": 768}),
        ({"loras": ["model_ink"], "lorasScale": [0.5]}, {"loras": [{"name": "ink.safetensors", "strength": 0.5}]}),
        (
            {"concepts": [{"modelId": "model_ink", "scale": 0.7}]},
            {"loras": [{"name": "ink.safetensors", "strength": 0.7}]},
        ),
        ({"modelId": "model_knight"}, {"loras": [{"name": "knight.safetensors", "strength": 1.0}]}),
        ({"width": 1000, "height": 700}, {"width": 992, "height": 704}),
        ({"guidance": None, "seed": None}, {"guidance": 3.5}),
        ({"seed": " 42 "}, {"seed": 42}),
        ({"seed": 42.0}, {"seed": 42}),
        ({"seed": "4294967296"}, {"seed": 4294967296}),
        ({"width": "512", "height": "768", "guidance": "4.5"}, {"width": 512, "height": 768, "guidance": 4.5}),
        ({"numSamples": "2", "numInferenceSteps": "12"}, {"num_images": 2, "steps": 12}),
    ],
)
def test_fields_become_inputs(body: dict[str, Any], expected: Mapping[str, object]) -> None:
    """Old and new names of fields are mapped. Numbers may be text, null counts as missing, and sizes are rounded."""
    assert expected.items() <= map_fields(**body).input.items()


@pytest.mark.parametrize(
    ("body", "word"),
    [
        ({"width": 1000}, "multiples of 16"),
        ({"intermediateImages": True}, "intermediateImages"),
        ({"somethingNew": 1}, "somethingNew"),
        ({"numInferenceStep": 9}, "numInferenceSteps"),
        ({"negativePrompt": "fog"}, "negativePromptStrength"),
        ({"scheduler": "TCDScheduler"}, "TCD"),
        ({"numInferenceSteps": 150}, "100"),
        ({"aspectRatio": "1:1", "width": 512}, "aspectRatio"),
        ({"strength": 0.5}, "the request has no image"),
    ],
)
def test_an_ignored_field_is_recorded_or_rejected(body: dict[str, Any], word: str) -> None:
    """An ignored or changed field is a note; with `is_strict` it is an error that names the field."""
    [note] = map_fields(**body).notes

    assert word in note
    with pytest.raises(ShimError, match=next(iter(body))):
        map_call("custom", {"prompt": "a knight", **body}, MODEL, MODELS, is_strict=True)


@pytest.mark.parametrize("seed", [-1, "-1", -1.0, None])
def test_a_seed_of_minus_one_is_random(seed: object) -> None:
    """A seed of -1 or null is not in the request, so a random one is used."""
    assert "seed" not in map_fields(seed=seed).input


def test_many_unknown_keys_are_counted() -> None:
    """Only twenty unknown keys have notes; the rest are counted. `original` keeps unknown keys if they are short."""
    call = map_fields(**{f"key{number}": "x" * 100 for number in range(1000)})

    assert len(call.notes) == 21
    assert call.notes[-1] == "980 more keys are unknown and were ignored"
    assert not [key for key in call.original if key.startswith("key")]
    assert map_fields(other=1).original["other"] == 1


@pytest.mark.parametrize("field", ["controlImage", "mask", "maskId", "ipAdapterImageIds"])
def test_a_field_that_would_change_the_image_is_rejected(field: str) -> None:
    """A control image, mask or reference would change the image, so it gets 400; `false` is accepted."""
    with pytest.raises(ShimError, match=field) as info:
        map_fields(**{field: "asset_1"})

    assert info.value.status == 400
    assert map_call("custom", {"prompt": "a knight", field: False}, MODEL, MODELS).notes == ()


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"prompt": " ", "guidance": 99, "mask": "x"}, ("prompt", "guidance", "mask")),
        ({"seed": -2}, ("seed must be at least -1",)),
        ({"seed": "a knight"}, ("seed must be a whole number, not",)),
        ({"seed": 2**63}, ("seed must be at most",)),
        ({"seed": [1]}, ("seed must be a whole number",)),
        ({"width": "wide"}, ("width must be a number, not",)),
        ({"numSamples": "two"}, ("numSamples must be a whole number, not",)),
        ({"numSamples": 9}, ("at most 8",)),
        ({"loras": ["model_none"]}, ("loras[0]", "model_knight")),
        ({"lorasScale": [1]}, ("lorasScale",)),
        ({"image": "asset_1", "imageId": "asset_2"}, ("twice",)),
        ({"numSamples": 1, "numOutputs": 2}, ("differ",)),
    ],
)
def test_all_faults_are_reported_at_once(body: dict[str, Any], words: tuple[str, ...]) -> None:
    """The error of an invalid call is 400, and lists every fault."""
    with pytest.raises(ShimError) as info:
        map_fields(**body)

    assert info.value.status == 400
    assert [word for word in words if word not in info.value.reason] == []


@pytest.mark.parametrize(("model_id", "status"), [("model_sdxl", 404), (None, 400)])
def test_an_unknown_model_is_reported(model_id: str | None, status: int) -> None:
    """The error for an unknown model is 404, for a missing one 400; both name an existing model."""
    with pytest.raises(ShimError, match=MODEL) as info:
        map_call("txt2img", {"prompt": "x"}, model_id, MODELS)

    assert info.value.status == status


def test_a_studio_model_sets_what_the_caller_does_not() -> None:
    """A model's workflow, inputs and LoRAs are used; a field of the caller comes before the model's input."""
    lora = {"url": "https://h/ink.safetensors", "strength": 0.5}
    studio = {"model_ink": StudioModel("Ink", "ink-lines", {"guidance": 5, "steps": 12}, (lora,))}
    call = map_call("txt2img", {"prompt": "x", "numInferenceSteps": 9}, "model_ink", studio)
    as_lora = map_call("txt2img", {"prompt": "x", "loras": ["model_ink"], "lorasScale": [0.5]}, MODEL, studio)

    assert [call.input[name] for name in ("workflow", "guidance", "steps")] == ["ink-lines", 5, 9]
    assert call.input["loras"] == [lora]
    assert as_lora.input["loras"] == [{**lora, "strength": 0.25}]
    assert as_lora.input["workflow"] == "txt2img"


def test_the_tables_take_addresses() -> None:
    """LoRAs of both tables may be addresses. A list of models shows no query of a URL; an invalid address is named."""
    table = parse_table('{"model_a": {"loras": [{"civitai": 12, "strength": 0.5}]}}')
    url = "https://h/ink.safetensors?signature=SECRET"
    settings = ShimSettings.from_env({"SCENARIO_SHIM_LORAS": json.dumps({"model_b": url})})

    assert studio_models(table)["model_a"].loras == ({"name": "civitai:12", "strength": 0.5},)
    assert settings.all_models["model_b"] == StudioModel(
        "https://h/ink.safetensors", loras=({"name": url, "strength": 1.0},)
    )
    with pytest.raises(ValueError, match=r"'model_a': loras\[0\] must be like hf:owner"):
        parse_table('{"model_a": {"loras": [{"hf": "a/b"}]}}')
    with pytest.raises(ConfigError, match="contains a credential in its query") as info:
        ShimSettings.from_env({"SCENARIO_SHIM_LORAS": '{"model_b": "https://h/a.safetensors?token=SECRET"}'})
    assert "SECRET" not in str(info.value)


@pytest.mark.parametrize("text", ["[1]", '{"model_a": 1}', '{"model_a": {"lora": []}}', "{", "/none.json"])
def test_an_invalid_table_of_models_is_explained(text: str) -> None:
    """The error has an example. An entry whose `loras` is null is not a model of the shim."""
    with pytest.raises(ValueError, match=r'such as \{"model_abc"'):
        parse_table(text)
    assert studio_models(parse_table('{"model_a": {"name": "A", "loras": null}}')) == {}


def test_the_oldest_route_is_txt2img_or_img2img() -> None:
    """In the oldest route `parameters` has the fields, and `parameters.type` selects the task."""
    call = map_call(
        INFERENCES, {"parameters": {"type": "img2img", "prompt": "x", "imageId": "asset_1"}}, "flux.1-dev", MODELS
    )

    assert (call.task, call.image, call.job_type) == ("img2img", "asset_1", "inference")


# --- random bodies

_VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 3000),
    st.floats(),
    st.text(max_size=12),
    st.sampled_from([*ASPECT_RATIOS, *SAMPLERS, "EulerDiscreteScheduler", "asset_1", "https://a.example/x.png", "512"]),
    st.lists(st.one_of(st.text(max_size=8), st.integers(), st.sampled_from(list(MODELS))), max_size=3),
    st.lists(
        st.dictionaries(st.sampled_from(["modelId", "scale", "x"]), st.sampled_from([*MODELS, 1, None])), max_size=2
    ),
)
_BODIES = st.fixed_dictionaries(
    {"prompt": st.sampled_from(["a knight", "", 7])},
    optional={name: _VALUES for route in ROUTES.values() for name in (*route.fields, "other") if name != "prompt"},
)


@settings(max_examples=3 * settings().max_examples)
@given(
    body=_BODIES | _VALUES,
    name=st.sampled_from(NAMES),
    is_strict=st.booleans(),
    model=st.sampled_from([MODEL, None, "model_ink"]),
)
def test_every_body_is_a_request_or_rejected(
    workflows: Mapping[str, Workflow],
    body: Any,  # noqa: ANN401 - any JSON value
    name: str,
    is_strict: bool,
    model: str | None,
) -> None:
    """Any body becomes a valid request, or an error 400 or 404; each ignored field has a note."""
    body = {"parameters": body} if name == INFERENCES else body
    try:
        call = map_call(name, body, model, MODELS, is_strict=is_strict)
    except ShimError as error:
        is_callers_fault = error.status in (400, 404) and bool(error.reason)
        assert is_callers_fault, error  # noqa: PT017 - an error is also allowed
        return
    source = {"image": "https://a.example/x.png"} if call.image is not None else {}
    read_request({**call.input, **source}, workflows)
    given_fields = body["parameters"] if name == INFERENCES else body
    notes = " ".join(call.notes)
    for field, value in given_fields.items():
        known = ROUTES[call.task if name == INFERENCES else name].fields.get(field)
        is_honoured = value in (None, False, "", []) or (known is not None and bool(known.becomes)) or field == "type"
        assert is_honoured or field in notes


def test_every_field_is_honoured_or_has_a_reason() -> None:
    """Each field of each route either becomes an input or has a reason why not; the schema lists all fields."""
    for route in ROUTES.values():
        for field in route.fields.values():
            assert bool(field.becomes) != bool(field.why_not)
        assert set(route.schema()["properties"]) == set(route.fields)


_TWO_VALUES: Mapping[str, tuple[object, object]] = {
    "prompt": ("a knight", "a cat"),
    "guidance": (3, 4),
    "seed": (1, 2),
    "width": (512, 640),
    "height": (512, 640),
    "numOutputs": (1, 2),
    "numSamples": (1, 2),
    "negativePrompt": ("fog", "rain"),
    "negativePromptStrength": (1, 2),
    "scheduler": ("HeunDiscrete", "LCM"),
    "aspectRatio": ("16:9", "1:1"),
    "loras": (["model_ink"], ["model_knight"]),
    "lorasScale": ([0.5], [0.7]),
    "concepts": ([{"modelId": "model_ink"}], [{"modelId": "model_knight"}]),
    "hideResults": (True, False),
    "image": ("asset_1", "asset_2"),
    "imageId": ("asset_1", "asset_2"),
    "imageUrl": ("https://a.example/1.png", "https://a.example/2.png"),
    "strength": (0.3, 0.4),
    "numInferenceSteps": (10, 20),
    "modelId": ("model_ink", "model_knight"),
}


@pytest.mark.parametrize(
    ("name", "field"),
    [(route.name, field) for route in ROUTES.values() for field, row in route.fields.items() if row.becomes],
)
def test_every_supported_field_changes_the_request(name: str, field: str) -> None:
    """Two values of a supported field result in two different calls, so map_call uses every such field."""
    others: dict[str, object] = {"negativePrompt": "snow", "negativePromptStrength": 3, "loras": ["model_ink"]}
    if ROUTES[name].fields["image"].becomes and not field.startswith("image"):
        others["image"] = "asset_0"
    one, other = (
        map_call(name, {"prompt": "a knight", **others, field: value}, MODEL, MODELS) for value in _TWO_VALUES[field]
    )

    assert replace(one, original={}) != replace(other, original={})
