"""Converts the body of a Scenario generate request into a request of docs/api.md.

Pure: images stay references (an asset id, a URL or base64) and are loaded later. No field is dropped silently. An
unsupported field is rejected if ignoring it would change the image. Otherwise it is ignored and recorded in the job's
notes; in strict mode it is rejected too.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from comfy_client.gateway.scenario.bodies import Attached
from comfy_client.gateway.scenario.errors import BAD_REQUEST, NOT_FOUND, ShimError, bad_request
from comfy_client.gateway.scenario.fields import ASPECT_RATIOS, BASE_MODELS, MAX_STEPS, ROUTES, SAMPLERS, GenerateRoute
from comfy_client.gateway.scenario.studio_models import StudioModel
from comfy_core.contract import Fault, JsonObject
from comfy_core.images.forms import ImageForm
from comfy_core.request.spellings import respelled
from comfy_core.validation import Faults, nearest, plain, schema_faults, shown

INFERENCES = "inferences"
"""The name of the oldest route, whose body is `{"parameters": {"type": "txt2img", …}}`."""
_SIDE_MULTIPLE = 16
RANDOM_SEED = -1
"""The seed value that requests a random seed, as in ComfyUI."""
MAX_LISTED_KEYS = 20
"""Unknown keys that a job's notes list by name. The rest are only counted."""
MAX_SHOWN_CHARACTERS = 10_000
"""Maximum characters of a field, or of all unknown fields, in `metadata.input`. Longer ones are left out there."""
MAX_URL_CHARACTERS = 2_048
"""Maximum characters of an asset id or a URL. A longer text is treated as an encoded image."""
_FIELDS_OF_INPUT: Mapping[str, tuple[str, ...]] = {
    "steps": ("numInferenceSteps",),
    "num_images": ("numSamples", "numOutputs"),
    "sampler": ("scheduler",),
    "width": ("width", "height", "aspectRatio", *("image", "imageId", "imageUrl")),
    "height": ("width", "height", "aspectRatio", *("image", "imageId", "imageUrl")),
    "negative_prompt": ("negativePrompt",),
    "negative_strength": ("negativePromptStrength",),
}
"""The fields of Scenario's requests that become an input of another name."""
IMAGE_FIELDS = ("image", "imageId", "imageUrl")


@dataclass(frozen=True)
class MappedCall:
    """A converted generate request.

    Attributes:
        task: `txt2img` or `img2img`.
        job_type: Scenario's `jobType`.
        input: the request of docs/api.md, without its start image.
        image: the start image as an asset id, URL or base64, or None.
        model_id: Scenario's model id, as the caller sent it.
        original: the caller's fields and Scenario's defaults, without images; shown in a job's `metadata.input`.
        notes: one sentence for each field that was ignored or changed.
        is_hidden: whether the job's assets are left out of lists.
        mask: base64 of an image whose transparent areas are generated, or None.
        image_form: the form in which an image of the request is stored.
    """

    task: str
    job_type: str
    input: JsonObject
    image: str | None
    model_id: str
    original: JsonObject = field(repr=False)
    notes: tuple[str, ...] = ()
    is_hidden: bool = False
    mask: str | None = None
    image_form: ImageForm = "flat"


def map_call(
    name: str, body: object, model_id: str | None, models: Mapping[str, StudioModel], *, is_strict: bool = False
) -> MappedCall:
    """Convert the body of a request to route `name` (a key of ROUTES, or INFERENCES).

    `models` has the studio's models by Scenario's id. Raises ShimError: 400 with all faults, 404 for an unknown
    `model_id`.
    """
    report = _Report(is_strict)
    given = plain(body, report.faults)
    if not isinstance(given, dict):
        raise bad_request([Fault("", "must be a JSON object")])
    report.raise_if_any()
    if name == INFERENCES:
        name, given = _unwrap_parameters(given)
    route = ROUTES[name]
    given = respelled(given, {name: field.rule for name, field in route.fields.items()})
    report.faults.extend(schema_faults(given, route.rules()))
    _check_support(given, route, report)
    report.raise_if_any()
    mapped = _CallMapper(route, given, report, models).mapped(model_id)
    report.raise_if_any()
    return mapped


class _Report:
    """The faults of a request, and notes about fields that are ignored or changed. In strict mode, notes are faults."""

    def __init__(self, is_strict: bool) -> None:
        self.faults = Faults()
        self.notes: list[str] = []
        self._is_strict = is_strict
        self._has_unsupported = False

    def note(self, name: str, sentence: str) -> None:
        """Add a note about the field `name`."""
        if self._is_strict:
            self.unsupported(name, sentence)
        else:
            self.notes.append(f"{name} {sentence}")

    def unsupported(self, name: str, sentence: str) -> None:
        """Add a fault for a field or a value that Scenario supports and the shim does not."""
        self._has_unsupported = True
        self.faults.add(name, sentence)

    def raise_if_any(self) -> None:
        """Raise ShimError (400) with all faults, if there are any."""
        if self.faults:
            raise bad_request(self.faults.listed(), is_unsupported=self._has_unsupported)


def _unwrap_parameters(given: JsonObject) -> tuple[str, JsonObject]:
    parameters = given.get("parameters")
    if not isinstance(parameters, dict):
        raise bad_request([Fault("parameters", "must be an object with the fields of the request")])
    inner = {key: value for key, value in parameters.items() if value is not None}
    kind = inner.pop("type", "img2img" if inner.keys() & set(IMAGE_FIELDS) else "txt2img")
    if kind not in ("txt2img", "img2img"):
        raise bad_request([Fault("parameters.type", f"must be txt2img or img2img, not {shown(kind)}")])
    return str(kind), inner


def _check_support(given: JsonObject, route: GenerateRoute, report: _Report) -> None:
    """Report the unsupported fields, except those with a false or empty value."""
    unknown = 0
    for key, value in given.items():
        known = route.fields.get(key)
        if value in (False, "", []) or (known is not None and known.becomes):
            continue
        if known is None:
            unknown += 1
            if unknown <= MAX_LISTED_KEYS:
                report.note(_plain_key(key), f"is unknown and was ignored{nearest(key, route.fields)}")
        elif known.is_rejected:
            remedy = "Leave it out, or send this request to Scenario"
            report.unsupported(key, f"is not supported: {known.why_not}. {remedy}")
        else:
            report.note(key, f"was ignored: {known.why_not}")
    if unknown > MAX_LISTED_KEYS:
        report.note(f"{unknown - MAX_LISTED_KEYS}", "more keys are unknown and were ignored")


def _plain_key(key: str) -> str:
    return re.sub(r"\s", "_", key)[:64] or "(empty)"


@dataclass
class _CallMapper:
    """Converts the fields of one request."""

    route: GenerateRoute
    given: JsonObject
    report: _Report
    models: Mapping[str, StudioModel]

    def mapped(self, model_id: str | None) -> MappedCall:
        given = self.given
        images = [given[key] for key in IMAGE_FIELDS if given.get(key)]
        task = "img2img" if images or self.route.name == "img2img" else "txt2img"
        if task == "img2img" and not images:
            self.report.faults.add("image", "is missing. Send an asset id, a data URL or an https URL")
        if len(set(images)) > 1:
            self.report.faults.add("image", "is given twice with different values. Leave out imageId and imageUrl")
        model, studio_models = self._model(model_id)
        request: JsonObject = {"workflow": task, "prompt": given["prompt"]}
        for part in (self._size(task), self._numbers(task), self._negative(), self._sampler()):
            request |= part
        for studio_model in studio_models:
            request |= {"workflow": studio_model.workflow} if studio_model.workflow else {}
            request |= {name: value for name, value in studio_model.inputs.items() if not self._is_given(name)}
        if loras := [*(lora for each in studio_models for lora in each.loras), *self._loras()]:
            request["loras"] = loras
        original = {**self._original_fields(task), "modelId": model}
        return MappedCall(
            task=task,
            job_type=self.route.job_type,
            input=request,
            image=images[0] if images else None,
            model_id=model,
            original=original,
            notes=tuple(self.report.notes),
            is_hidden=bool(given.get("hideResults")),
        )

    def _original_fields(self, task: str) -> JsonObject:
        defaults = {key: value for key, value in self.route.defaults.items() if self._uses_default(key, task)}
        known = {key: self.given[key] for key in self.given.keys() & self.route.fields.keys()}
        known = {key: value for key, value in known.items() if not _is_long(key, value)}
        unknown = {key: value for key, value in self.given.items() if key not in self.route.fields}
        return {**defaults, **({} if _is_long("", unknown) else unknown), **known}

    def _uses_default(self, key: str, task: str) -> bool:
        """Return whether Scenario's default of the field `key` applies.

        The defaults of the size do not apply if the image or `aspectRatio` determines it.
        """
        if key in ("width", "height"):
            has_size = {"width", "height"} & self.given.keys()
            return bool(has_size) or (task == "txt2img" and "aspectRatio" not in self.given)
        if key in ("numSamples", "numOutputs"):
            return not {"numSamples", "numOutputs"} & self.given.keys()
        return key != "strength" or task == "img2img"

    def _is_given(self, name: str) -> bool:
        """Return whether the caller set the input `name`, by one of the fields that become it."""
        return any(self.given.get(key) is not None for key in _FIELDS_OF_INPUT.get(name, (name,)))

    def _model(self, path_id: str | None) -> tuple[str, list[StudioModel]]:
        """Return the model id, and the studio's models among those that the path and the body name."""
        in_body = self.given.get("modelId") or None
        named = [each for each in (path_id, in_body) if each]
        if not named:
            self.report.faults.add("modelId", f"is missing. Send {BASE_MODELS[0]}, or an id of SCENARIO_SHIM_MODELS")
            return BASE_MODELS[0], []
        found = []
        for each in named:
            if each in BASE_MODELS:
                continue
            if each not in self.models:
                status = NOT_FOUND if each == path_id else BAD_REQUEST
                reason = f"Model {each[:80]!r} does not exist. {known_models(self.models)}"
                raise ShimError(status, reason, is_unsupported=True)
            found.append(self.models[each])
        return named[0], found

    def _loras(self) -> Iterator[JsonObject]:
        scales = self.given.get("lorasScale", [])
        ids = self.given.get("loras", [])
        if len(scales) > len(ids):
            self.report.faults.add("lorasScale", "has more numbers than loras has ids")
        pairs = [(f"loras[{n}]", each, scales[n] if n < len(scales) else 1.0) for n, each in enumerate(ids)]
        pairs += [
            (f"concepts[{n}].modelId", each["modelId"], each.get("scale", 1.0))
            for n, each in enumerate(self.given.get("concepts", []))
        ]
        for path, lora_id, scale in pairs:
            model = self.models.get(lora_id)
            if model is not None and model.loras:
                yield from ({**lora, "strength": scale * lora.get("strength", 1.0)} for lora in model.loras)
            else:
                self.report.unsupported(path, f"is not a LoRA of SCENARIO_SHIM_MODELS. {known_models(self.models)}")

    def _size(self, task: str) -> JsonObject:
        given = self.given
        if ratio := given.get("aspectRatio"):
            if {"width", "height"} & given.keys():
                self.report.note("aspectRatio", "was ignored: width or height is given")
            else:
                width, height = ASPECT_RATIOS[ratio]
                return {"width": width, "height": height}
        sides: JsonObject = {side: given.get(side, self.route.defaults[side]) for side in ("width", "height")}
        if not {"width", "height"} & given.keys():
            # img2img keeps the size of the image. Scenario's default size would distort it.
            return sides if task == "txt2img" else {}
        return {side: self._rounded(side, value) for side, value in sides.items()}

    def _rounded(self, side: str, value: float) -> int:
        rounded = min(2048, max(64, round(value / _SIDE_MULTIPLE) * _SIDE_MULTIPLE))
        if rounded != value:
            self.report.note(side, f"was changed to {rounded}: sizes must be multiples of {_SIDE_MULTIPLE}")
        return rounded

    def _numbers(self, task: str) -> JsonObject:
        given, defaults = self.given, self.route.defaults
        steps = int({**defaults, **given}["numInferenceSteps"])
        if steps > MAX_STEPS:
            self.report.note("numInferenceSteps", f"was changed to {MAX_STEPS}, the maximum")
        counts = {int(given[key]) for key in ("numOutputs", "numSamples") if key in given}
        if len(counts) > 1:
            self.report.faults.add("numSamples", "and numOutputs differ: leave one out")
        numbers: JsonObject = {
            "steps": min(MAX_STEPS, steps),
            "guidance": given.get("guidance", defaults["guidance"]),
            "num_images": max(counts, default=1),
        }
        if given.get("seed", RANDOM_SEED) != RANDOM_SEED:
            numbers["seed"] = int(given["seed"])
        if task == "img2img":
            numbers["strength"] = given.get("strength", defaults["strength"])
        elif "strength" in given and self.route.fields["strength"].becomes:
            self.report.note("strength", "was ignored: the request has no image")
        return numbers

    def _negative(self) -> JsonObject:
        text = str(self.given.get("negativePrompt", "")).strip()
        strength = self.given.get("negativePromptStrength", 0)
        if text and strength > 0:
            return {"negative_prompt": text, "negative_strength": strength}
        if text:
            self.report.note("negativePrompt", "was ignored: with Flux it needs negativePromptStrength above 0")
        elif strength > 0:
            self.report.note("negativePromptStrength", "was ignored: the request has no negativePrompt")
        return {}

    def _sampler(self) -> JsonObject:
        name = str(self.given.get("scheduler", "")).removesuffix("Scheduler")
        if name == "TCD":
            self.report.note("scheduler", "was ignored: ComfyUI has no equivalent of TCD")
        return {"sampler": SAMPLERS[name]} if name in SAMPLERS else {}


def _is_long(key: str, value: object) -> bool:
    """Return whether a value is an image or too long for `metadata.input`."""
    max_characters = MAX_URL_CHARACTERS if key in IMAGE_FIELDS else MAX_SHOWN_CHARACTERS
    return isinstance(value, Attached) or len(json.dumps(value, ensure_ascii=False)) > max_characters


def known_models(models: Mapping[str, StudioModel]) -> str:
    """Return a sentence that lists the available models."""
    others = f", and {', '.join(sorted(models)[:20])}" if models else "; SCENARIO_SHIM_MODELS has no other model"
    return f"Available: Flux.1-dev ({', '.join(BASE_MODELS)}){others}"
