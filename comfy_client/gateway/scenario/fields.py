"""The fields of Scenario's generate calls, as data: one table a route, and what becomes of each field.

Ranges and defaults are Scenario's (docs/reference/scenario.md#route-b). The mapping, the OpenAPI document and the
tables of docs/scenario.md are derived from here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from comfy_core.contract import MAX_SEED, JsonObject

BASE_MODELS = ("model_bfl-flux-1-dev", "flux.1-dev", "model_flux-1-dev")
"""Scenario's ids of Flux.1-dev, as callers have them: the current one, the classic one, that of an old quick start."""

MOST_PICTURES = 8
"""As many as one request of docs/api.md may ask for."""
MOST_STEPS = 100


@dataclass(frozen=True)
class Field:
    """One field of a call.

    Attributes:
        rule: JSON Schema of what Scenario takes.
        becomes: in words or as a key of docs/api.md, what it is to us; empty where it cannot be honoured.
        why_not: why it cannot be honoured.
        is_refused: whether a call that uses it is refused, because without it the picture would be another one. Else it
            is left out, and the job says so.
    """

    rule: JsonObject
    becomes: str = ""
    why_not: str = ""
    is_refused: bool = False


@dataclass(frozen=True)
class Route:
    """One generate call: its path, task and fields; `defaults` are Scenario's where they differ from docs/api.md."""

    name: str
    path: str
    job_type: str
    fields: Mapping[str, Field]
    defaults: JsonObject

    def schema(self) -> JsonObject:
        """Return the JSON Schema (2020-12) of its body, for callers: numbers may be text (`"512"`)."""
        schema = self.rules()
        for rule in schema["properties"].values():
            if rule.get("type") in ("integer", "number"):
                rule["type"] = [rule["type"], "string"]
        return schema

    def rules(self) -> JsonObject:
        """Return the JSON Schema of its body once its numbers are numbers. Other keys are allowed."""
        properties = {
            name: {
                **field.rule,
                "description": field.becomes or field.why_not,
                **({"default": self.defaults[name]} if name in self.defaults else {}),
            }
            for name, field in self.fields.items()
        }
        return {"type": "object", "required": ["prompt"], "properties": properties}


def _number(least: float, most: float) -> JsonObject:
    return {"type": "number", "minimum": least, "maximum": most}


def _whole(least: int, most: int) -> JsonObject:
    return {"type": "integer", "minimum": least, "maximum": most}


_TEXT: JsonObject = {"type": "string"}
_SWITCH: JsonObject = {"type": "boolean"}
_TEXTS: JsonObject = {"type": "array", "items": {"type": "string"}}
_ANY: JsonObject = {}

SAMPLERS: Mapping[str, str] = {
    "DDIM": "ddim",
    "DDPM": "ddpm",
    "DEISMultistep": "deis",
    "DPMSolverMultistep": "dpmpp_2m",
    "DPMSolverSinglestep": "dpmpp_sde",
    "EulerAncestralDiscrete": "euler_ancestral",
    "EulerDiscrete": "euler",
    "HeunDiscrete": "heun",
    "KDPM2AncestralDiscrete": "dpm_2_ancestral",
    "KDPM2Discrete": "dpm_2",
    "LCM": "lcm",
    "LMSDiscrete": "lms",
    "PNDM": "ipndm",
    "UniPCMultistep": "uni_pc",
}
"""Scenario's schedulers (names of diffusers, without `Scheduler`) and the samplers of ComfyUI 0.3.64 that they are.

TCD has none. The sigmas stay `simple`, which is right for Flux.
"""

ASPECT_RATIOS: Mapping[str, tuple[int, int]] = {
    "16:9": (1344, 768),
    "1:1": (1024, 1024),
    "21:9": (1536, 656),
    "2:3": (832, 1248),
    "3:2": (1248, 832),
    "3:4": (896, 1184),
    "4:3": (1184, 896),
    "4:5": (912, 1136),
    "5:4": (1136, 912),
    "9:16": (768, 1344),
    "9:21": (656, 1536),
}
"""Scenario's aspect ratios as sizes of about one megapixel, in multiples of 16."""

_SEED: JsonObject = {"type": "integer", "minimum": -1, "maximum": MAX_SEED}
_SCHEDULER: JsonObject = {
    "type": "string",
    "enum": [name + end for name in [*SAMPLERS, "TCD"] for end in ("Scheduler", "")],
}

_CONTROL = ("controlImage", "controlImageId")
_CONTROL_SETTINGS = ("controlModality", "controlStrength", "controlStart", "controlEnd")
"""Mean nothing without a controlImage, so they are left out rather than refused."""
_IP_ADAPTER = ("ipAdapterImage", "ipAdapterImageId", "ipAdapterImages", "ipAdapterImageIds")

_PICTURE_NOTE = "image: an asset's id, a data URL, base64, or an https address"
_EVERYWHERE: Mapping[str, Field] = {
    "prompt": Field({"type": "string", "minLength": 1, "maxLength": 4096, "pattern": r"\S"}, "prompt"),
    "guidance": Field(_number(0, 20), "guidance"),
    "seed": Field(_SEED, "seed: a number, or a number as text; -1 is random"),
    "width": Field(_number(64, 2048), "width, rounded to a multiple of 16"),
    "height": Field(_number(64, 2048), "height, rounded to a multiple of 16"),
    "numOutputs": Field(_whole(1, MOST_PICTURES), "num_images"),
    "numSamples": Field(_whole(1, MOST_PICTURES), "num_images"),
    "negativePrompt": Field({"type": "string", "maxLength": 4096}, "negative_prompt, with negativePromptStrength"),
    "negativePromptStrength": Field(_number(0, 10), "negative_strength"),
    "scheduler": Field(_SCHEDULER, "sampler; TCD has no counterpart and is left out"),
    "aspectRatio": Field({"enum": list(ASPECT_RATIOS)}, "width and height, where neither is given"),
    "loras": Field({**_TEXTS, "maxItems": 6}, "loras, by the table of LoRAs"),
    "lorasScale": Field({"type": "array", "items": _number(0, 2), "maxItems": 6}, "the strengths of loras"),
    "concepts": Field(
        {
            "type": "array",
            "maxItems": 6,
            "items": {
                "type": "object",
                "required": ["modelId"],
                "properties": {"modelId": _TEXT, "scale": _number(-2, 2)},
            },
        },
        "loras, by the table of LoRAs",
    ),
    "hideResults": Field(_SWITCH, "the assets are left out of lists"),
    "intermediateImages": Field(_SWITCH, why_not="no intermediate pictures are kept"),
    "baseModelId": Field(_TEXT, why_not="there is one base model, Flux.1-dev"),
    "modelEpoch": Field(_TEXT, why_not="a LoRA has one file"),
    "imageHide": Field(_SWITCH, why_not="a picture that comes with the call becomes no asset"),
    "imageParentId": Field(_TEXT, why_not="a picture that comes with the call becomes no asset"),
    "collectionIds": Field(_TEXTS, why_not="there are no collections"),
    **{name: Field(_ANY, why_not="there is no control net", is_refused=True) for name in _CONTROL},
    **{name: Field(_ANY, why_not="there is no inpainting", is_refused=True) for name in ("mask", "maskId")},
    **{name: Field(_ANY, why_not="there is no IP adapter", is_refused=True) for name in _IP_ADAPTER},
    **{name: Field(_ANY, why_not="there is no control net") for name in _CONTROL_SETTINGS},
}


def _steps(most: int) -> Field:
    return Field(_whole(1, most), f"steps, at most {MOST_STEPS}")


_STRENGTH = Field(_number(0.01, 1), "strength (denoise)")
_PICTURES: Mapping[str, Field] = {
    "image": Field(_TEXT, _PICTURE_NOTE),
    "imageId": Field(_TEXT, "image: an asset's id"),
    "imageUrl": Field(_TEXT, "image: an https address"),
    "strength": _STRENGTH,
}
_NO_PICTURES: Mapping[str, Field] = {
    name: Field(_ANY, why_not="txt2img takes no picture: use img2img", is_refused=name != "strength")
    for name in _PICTURES
}
_CLASSIC: Mapping[str, Field] = {
    **_EVERYWHERE,
    "numInferenceSteps": _steps(150),
    "modelId": Field(_TEXT, "Flux.1-dev, or a LoRA of the table on it"),
}

# numSamples: Scenario's specification says 4, its pages say 1, and callers nearly always send 1
# (docs/reference/scenario.md#route-b). One picture is also what a caller that forgot it is billed least for.
_CLASSIC_DEFAULTS: JsonObject = {"width": 512, "height": 512, "numInferenceSteps": 30, "numSamples": 1, "guidance": 3.5}

ROUTES: Mapping[str, Route] = {
    route.name: route
    for route in (
        Route(
            "custom",
            "/generate/custom/{modelId}",
            "custom",
            {
                **_EVERYWHERE,
                **_PICTURES,
                "numInferenceSteps": _steps(150),
                "modelId": Field(_TEXT, "a LoRA of the table, on Flux.1-dev"),
            },
            {
                "width": 1104,
                "height": 832,
                "numInferenceSteps": 28,
                "numOutputs": 1,
                "guidance": 3.5,
                "strength": 0.8,
            },
        ),
        Route("txt2img", "/generate/txt2img", "inference", {**_CLASSIC, **_NO_PICTURES}, _CLASSIC_DEFAULTS),
        Route(
            "img2img",
            "/generate/img2img",
            "inference",
            {**_CLASSIC, **_PICTURES},
            {**_CLASSIC_DEFAULTS, "strength": 0.75},
        ),
    )
}
"""Every generate call. The oldest, `/models/{modelId}/inferences`, is txt2img or img2img in another wrapper."""
