"""The request fields of Scenario's generate routes: one table per route, with the handling of each field.

Ranges and defaults are Scenario's (docs/reference/scenario.md#route-b). The validation in mapping.py, the OpenAPI
document and the tables of docs/scenario.md are derived from these tables.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from comfy_core.contract import MAX_SEED, JsonObject

BASE_MODELS = ("model_bfl-flux-1-dev", "flux.1-dev", "model_flux-1-dev")
"""Scenario's ids of Flux.1-dev: the current one, the classic one, and one from an old quick start."""

MAX_IMAGES = 8
"""The maximum of `num_images` in one request of docs/api.md."""
MAX_STEPS = 100


@dataclass(frozen=True)
class RequestField:
    """One field of a request body.

    Attributes:
        rule: JSON Schema of the values that Scenario accepts.
        becomes: the field of docs/api.md that gets the value, or a description of the conversion. Empty if the field is
            not supported.
        why_not: why the field is not supported.
        is_rejected: whether a request with the unsupported field is rejected, because ignoring it would change the
            image. Otherwise the field is ignored and the job's notes list it.
    """

    rule: JsonObject
    becomes: str = ""
    why_not: str = ""
    is_rejected: bool = False


@dataclass(frozen=True)
class GenerateRoute:
    """One generate route: its path, job type and fields. `defaults` has Scenario's defaults."""

    name: str
    path: str
    summary: str
    job_type: str
    fields: Mapping[str, RequestField]
    defaults: JsonObject

    def schema(self) -> JsonObject:
        """Return the JSON Schema (2020-12) of the body, for the OpenAPI document. Numbers may be strings (`"512"`)."""
        schema = self.rules()
        for rule in schema["properties"].values():
            if rule.get("type") in ("integer", "number"):
                rule["type"] = [rule["type"], "string"]
        return schema

    def rules(self) -> JsonObject:
        """Return the JSON Schema of the request body after numeric strings were converted. Other keys are allowed."""
        properties = {
            name: {
                **field.rule,
                "description": field.becomes or field.why_not,
                **({"default": self.defaults[name]} if name in self.defaults else {}),
            }
            for name, field in self.fields.items()
        }
        return {"type": "object", "required": ["prompt"], "properties": properties}


def _number(low: float, high: float) -> JsonObject:
    return {"type": "number", "minimum": low, "maximum": high}


def _integer(low: int, high: int) -> JsonObject:
    return {"type": "integer", "minimum": low, "maximum": high}


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
"""Scenario's schedulers (diffusers class names without `Scheduler`) and the equivalent ComfyUI samplers.

TCD has no equivalent. ComfyUI's scheduler stays `simple`, the right one for Flux.
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
"""These have no effect without a controlImage, so they are ignored instead of rejected."""
_IP_ADAPTER = ("ipAdapterImage", "ipAdapterImageId", "ipAdapterImages", "ipAdapterImageIds")

_IMAGE_NOTE = "image: an asset id, a data URL, base64, or an https URL"
_COMMON_FIELDS: Mapping[str, RequestField] = {
    "prompt": RequestField({"type": "string", "minLength": 1, "maxLength": 4096, "pattern": r"\S"}, "prompt"),
    "guidance": RequestField(_number(0, 20), "guidance"),
    "seed": RequestField(_SEED, "seed: a number or a numeric string; -1 is random"),
    "width": RequestField(_number(64, 2048), "width, rounded to a multiple of 16"),
    "height": RequestField(_number(64, 2048), "height, rounded to a multiple of 16"),
    "numOutputs": RequestField(_integer(1, MAX_IMAGES), "num_images"),
    "numSamples": RequestField(_integer(1, MAX_IMAGES), "num_images"),
    "negativePrompt": RequestField(
        {"type": "string", "maxLength": 4096}, "negative_prompt, with negativePromptStrength"
    ),
    "negativePromptStrength": RequestField(_number(0, 10), "negative_strength"),
    "scheduler": RequestField(_SCHEDULER, "sampler; TCD has no equivalent and is ignored"),
    "aspectRatio": RequestField({"enum": list(ASPECT_RATIOS)}, "width and height, if neither is given"),
    "loras": RequestField({**_TEXTS, "maxItems": 6}, "loras, with the files of SCENARIO_SHIM_MODELS"),
    "lorasScale": RequestField({"type": "array", "items": _number(0, 2), "maxItems": 6}, "the strengths of loras"),
    "concepts": RequestField(
        {
            "type": "array",
            "maxItems": 6,
            "items": {
                "type": "object",
                "required": ["modelId"],
                "properties": {"modelId": _TEXT, "scale": _number(-2, 2)},
            },
        },
        "loras, with the files of SCENARIO_SHIM_MODELS",
    ),
    "hideResults": RequestField(_SWITCH, "the assets are hidden in lists"),
    "numInferenceSteps": RequestField(_integer(1, 150), f"steps, at most {MAX_STEPS}"),
    "modelId": RequestField(_TEXT, "Flux.1-dev, or a model of SCENARIO_SHIM_MODELS"),
    "intermediateImages": RequestField(_SWITCH, why_not="intermediate images are not stored"),
    "baseModelId": RequestField(_TEXT, why_not="the only base model is Flux.1-dev"),
    "modelEpoch": RequestField(_TEXT, why_not="a LoRA has only one file"),
    "imageHide": RequestField(_SWITCH, why_not="an image in the request does not become an asset"),
    "imageParentId": RequestField(_TEXT, why_not="an image in the request does not become an asset"),
    "collectionIds": RequestField(_TEXTS, why_not="collections are not supported"),
    **{name: RequestField(_ANY, why_not="ControlNet is not supported", is_rejected=True) for name in _CONTROL},
    **{
        name: RequestField(_ANY, why_not="inpainting is not supported; use `comfy-client inpaint`", is_rejected=True)
        for name in ("mask", "maskId")
    },
    **{name: RequestField(_ANY, why_not="IP adapters are not supported", is_rejected=True) for name in _IP_ADAPTER},
    **{name: RequestField(_ANY, why_not="ControlNet is not supported") for name in _CONTROL_SETTINGS},
}


_IMAGE_FIELDS: Mapping[str, RequestField] = {
    "image": RequestField(_TEXT, _IMAGE_NOTE),
    "imageId": RequestField(_TEXT, "image: an asset id"),
    "imageUrl": RequestField(_TEXT, "image: an https URL"),
    "strength": RequestField(_number(0.01, 1), "strength (denoise)"),
}
_UNSUPPORTED_IMAGE_FIELDS: Mapping[str, RequestField] = {
    name: RequestField(_ANY, why_not="txt2img has no start image; use img2img", is_rejected=name != "strength")
    for name in _IMAGE_FIELDS
}

# numSamples: the default is 4 in Scenario's specification, and 1 in its documentation
# (docs/reference/scenario.md#route-b). 1 is the cheaper default, and nearly all callers send 1.
_CLASSIC_DEFAULTS: JsonObject = {"width": 512, "height": 512, "numInferenceSteps": 30, "numSamples": 1, "guidance": 3.5}

ROUTES: Mapping[str, GenerateRoute] = {
    route.name: route
    for route in (
        GenerateRoute(
            "custom",
            "/generate/custom/{modelId}",
            "Generate images",
            "custom",
            {**_COMMON_FIELDS, **_IMAGE_FIELDS},
            {
                "width": 1104,
                "height": 832,
                "numInferenceSteps": 28,
                "numOutputs": 1,
                "guidance": 3.5,
                "strength": 0.8,
            },
        ),
        GenerateRoute(
            "txt2img",
            "/generate/txt2img",
            "Generate images from a prompt",
            "inference",
            {**_COMMON_FIELDS, **_UNSUPPORTED_IMAGE_FIELDS},
            _CLASSIC_DEFAULTS,
        ),
        GenerateRoute(
            "img2img",
            "/generate/img2img",
            "Generate images from an image",
            "inference",
            {**_COMMON_FIELDS, **_IMAGE_FIELDS},
            {**_CLASSIC_DEFAULTS, "strength": 0.75},
        ),
    )
}
"""The generate routes by name.

The oldest route, `/models/{modelId}/inferences`, is not among them: it wraps the fields of txt2img or img2img.
"""
