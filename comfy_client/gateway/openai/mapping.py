"""Converts the body of an OpenAI image call into a request of docs/api.md. Pure: images are loaded later."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from comfy_client.gateway.openai.fields import (
    EDITS,
    FOREIGN_MODELS,
    PARAMETERS,
    QUALITY_STEPS,
    REFUSED_FIELDS,
    SHOWN_QUALITIES,
    URL_MODELS,
    Operation,
)
from comfy_client.gateway.scenario.bodies import Attached
from comfy_client.gateway.scenario.errors import BAD_REQUEST, NOT_FOUND, ShimError, bad_request
from comfy_client.gateway.scenario.mapping import MappedCall
from comfy_core.contract import ENVELOPE, Fault, JsonObject, is_asset_id
from comfy_core.error_codes import ErrorCode
from comfy_core.errors import JobError
from comfy_core.request.reading import read_request
from comfy_core.request.spellings import respelled
from comfy_core.validation import Faults, nearest, plain, schema_faults, shown
from comfy_core.workflows import Workflow, find_workflow

JOB_TYPE = "custom"
"""Scenario's `jobType` of these jobs."""
_SIZE = re.compile(r"(\d{1,5})[xX](\d{1,5})")
_ANY_IMAGE = "AAAA"
"""Base64 in place of the image, which is checked when it is loaded."""
_OPENAI_NAMES = {"num_images": "n", "output_quality": "output_compression"}
"""OpenAI's parameters that become an input of another name, by that name."""
_SHOWN_INPUTS = {
    **{name: name for name in ("prompt", "width", "height", "guidance", "strength")},
    "steps": "numInferenceSteps",
    "num_images": "numOutputs",
    "negative_prompt": "negativePrompt",
}
"""The inputs that the web page shows, with Scenario's names for them."""


@dataclass(frozen=True)
class ResponseOptions:
    """What the response to a call contains.

    Attributes:
        event: the prefix of the types of events.
        partial_images: the maximum number of previews in a stream.
        quality: the value of `quality` in the response.
    """

    event: str
    is_stream: bool
    has_url: bool
    partial_images: int
    quality: str


@dataclass(frozen=True)
class ImagesCall:
    """A converted call: the job, and the options of its response."""

    mapped: MappedCall
    options: ResponseOptions


def map_call(
    operation: Operation, body: object, workflows: Mapping[str, Workflow], *, is_strict: bool = False
) -> ImagesCall:
    """Convert the body of a call. In strict mode, parameters that would be ignored are faults.

    Raises ShimError with `param`: 400 with all faults, or 404 for a model that does not exist.
    """
    faults = Faults()
    given = plain(body, faults)
    if not isinstance(given, dict):
        raise bad_request([Fault("", "must be a JSON object")])
    rules = {name: field.rule for name, field in PARAMETERS.items()}
    given = respelled(given, rules)
    faults.extend(schema_faults(given, {"properties": rules}))
    if is_strict:
        for name in given.keys() & PARAMETERS.keys():
            if why_not := PARAMETERS[name].why_not:
                faults.add(name, f"is not supported: {why_not}")
    _raise_if_any(faults)
    return _CallMapper(operation, given, workflows, faults).mapped()


def workflow_of(model: str, task: str, workflows: Mapping[str, Workflow]) -> Workflow:
    """Return the workflow that a model's name means. Raises ShimError (404, or 400 if its files are invalid)."""
    name = task if not model or FOREIGN_MODELS.fullmatch(model) else model
    try:
        return find_workflow(name, workflows)
    except JobError as error:
        if error.code is not ErrorCode.UNKNOWN_WORKFLOW:
            raise ShimError(BAD_REQUEST, error.report.message, code=error.code, param="model") from None
        known = sorted(workflows)
        reason = f"There is no model {shown(name)}{nearest(name, known) or '.'} Models: {', '.join(known)}"
        raise ShimError(NOT_FOUND, reason, code=error.code, param="model") from None


def _raise_if_any(faults: Faults) -> None:
    """Raise ShimError (400) with all faults, if there are any. Its `param` is that of the first one."""
    if faults:
        error = bad_request(faults.listed())
        error.facts["param"] = re.split(r"[.\[]", faults.listed()[0].path)[0] or None
        raise error


class _CallMapper:
    """Converts the fields of one call."""

    def __init__(
        self, operation: Operation, given: JsonObject, workflows: Mapping[str, Workflow], faults: Faults
    ) -> None:
        images = given.pop("image", [])
        self._images = images if isinstance(images, list) else [images]
        self._mask = given.pop("mask", None)
        self._operation = operation
        self._openai = {name: given[name] for name in given if name in PARAMETERS}
        self._others = {name: value for name, value in given.items() if name not in PARAMETERS}
        self._workflows = workflows
        self._faults = faults
        self._model = str(given.get("model", ""))
        task = "inpaint" if self._mask else "img2img" if self._images else "txt2img"
        self._workflow = workflow_of(self._model, task, workflows)

    def mapped(self) -> ImagesCall:
        self._check_images()
        notes = self._check_support()
        request = {
            **self._renamed(),
            **self._size(),
            **self._steps(),
            **self._others,
        }
        inputs = self._checked_inputs(request)
        _raise_if_any(self._faults)
        common = {name: value for name, value in request.items() if name in ENVELOPE}
        shown_inputs = {label: inputs[name] for name, label in _SHOWN_INPUTS.items() if inputs.get(name)}
        mapped = MappedCall(
            task="img2img" if self._images else "txt2img",
            job_type=JOB_TYPE,
            input={"workflow": self._workflow.name, **inputs, **common},
            image=self._images[0] if self._images else None,
            mask=self._mask,
            image_form="as_sent" if self._workflow.masks else "flat",
            model_id=self._workflow.name,
            original={**shown_inputs, "modelId": self._workflow.name, "openai": self._openai},
            notes=notes,
        )
        return ImagesCall(mapped, self._options())

    def _check_images(self) -> None:
        takes_image = "image" in self._workflow.inputs
        model = self._workflow.name
        if len(self._images) > 1:
            self._add("image", f"has {len(self._images)} images. Flux.1-dev edits one image: send one")
        if self._images and not isinstance(self._images[0], str):
            self._add("image", "must be a file, or in JSON base64, a data URL, an https URL or an asset id")
        if self._images and not takes_image:
            self._add("image", f"is not an input of the model {model}: use images.generate")
        if not self._images and self._operation is EDITS:
            self._add("image", "is missing")
        elif not self._images and "image" in self._workflow.schema.get("required", []):
            self._add("image", f"is missing: the model {model} needs an image. Use images.edit")
        if self._mask and not self._workflow.masks:
            self._add("mask", f"is not an input of the model {model}. Omit model, or use flux-dev-inpaint")
        if self._mask and not (self._images and _is_file(self._images[0])):
            self._add("mask", "needs an image that is sent as a file or as base64")

    def _check_support(self) -> tuple[str, ...]:
        """Add a fault for each rejected parameter, and return a note for each ignored one."""
        for name, reason in REFUSED_FIELDS.items():
            if name in self._others:
                self._add(name, reason)
        unsupported = {name: PARAMETERS[name] for name in self._openai if not PARAMETERS[name].becomes}
        for name, field in unsupported.items():
            if field.is_rejected:
                self._add(name, f"is not supported: {field.why_not}")
        return tuple(
            f"{name} was ignored: {field.why_not}" for name, field in unsupported.items() if not field.is_rejected
        )

    def _renamed(self) -> JsonObject:
        names = {"prompt": "prompt", "output_format": "output_format", **_OPENAI_NAMES}
        renamed = {ours: self._openai[theirs] for ours, theirs in names.items() if theirs in self._openai}
        if "output_quality" in renamed:
            renamed["output_quality"] = max(1, int(renamed["output_quality"]))
        return renamed

    def _size(self) -> JsonObject:
        """Return the width and height of `size`. With `auto`, the workflow decides."""
        size = str(self._openai.get("size", "auto"))
        if size.lower() in ("auto", ""):
            return {}
        found = _SIZE.fullmatch(size.strip())
        if found is None:
            self._add("size", f"must be auto or WIDTHxHEIGHT, such as 1024x1024, not {shown(size)}")
            return {}
        if not {"width", "height"} <= self._workflow.inputs.keys():
            self._add("size", f"is not an input of the model {self._workflow.name}: omit it, or use auto")
            return {}
        if {"width", "height"} & self._others.keys():
            self._add("size", "cannot be combined with width and height")
        return {"width": int(found[1]), "height": int(found[2])}

    def _steps(self) -> JsonObject:
        steps = QUALITY_STEPS.get(str(self._openai.get("quality")))
        is_used = steps is not None and "steps" in self._workflow.inputs
        return {"steps": steps} if is_used else {}

    def _checked_inputs(self, request: JsonObject) -> JsonObject:
        """Return the workflow's inputs with defaults, without images. Faults have the names of OpenAI's parameters."""
        image = {"image": _ANY_IMAGE} if "image" in self._workflow.inputs else {}
        known = {name: value for name, value in request.items() if name not in REFUSED_FIELDS}
        try:
            return read_request({"workflow": self._workflow.name, **known, **image}, self._workflows).inputs
        except JobError as error:
            for fault in error.report.details.get("faults", [{"path": "", "message": error.report.message}]):
                self._add_input_fault(fault["path"], fault["message"])
            return {}

    def _add_input_fault(self, path: str, message: str) -> None:
        if path in ("width", "height") and path not in self._others:
            self._add("size", f"has a {path} that {message}")
        else:
            self._add(_OPENAI_NAMES.get(path, path), message)

    def _options(self) -> ResponseOptions:
        is_url_default = URL_MODELS.fullmatch(self._model) is not None
        quality = str(self._openai.get("quality", "auto"))
        return ResponseOptions(
            event=self._operation.event,
            is_stream=bool(self._openai.get("stream")),
            has_url=self._openai.get("response_format", "url" if is_url_default else "") == "url",
            partial_images=int(self._openai.get("partial_images", 0)),
            quality=SHOWN_QUALITIES.get(quality, quality),
        )

    def _add(self, path: str, message: str) -> None:
        self._faults.add(path, message)


def _is_file(image: object) -> bool:
    """Return whether the text of an image is its content, rather than an asset id or a URL."""
    is_reference = isinstance(image, str) and (is_asset_id(image) or image.startswith(("https://", "http://")))
    return isinstance(image, Attached) or not is_reference
