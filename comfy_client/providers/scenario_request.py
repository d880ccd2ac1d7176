"""Converts a request to the body for Scenario's Flux.1-dev, and finds what Scenario does not support. No I/O.

Facts (docs/reference/scenario.md#route-a): `POST /generate/custom/model_bfl-flux-1-dev` has the fields of FIELDS and
LoRAs, but no negative prompt, sampler or scheduler. Sizes are multiples of 16, as in this project.

Inputs that are not given are sent with this project's defaults, so that a request means the same at Scenario and at the
worker.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from comfy_client.providers.interface import NO_OPTIONS, JobOptions, bucket_fault, webhook_fault
from comfy_core.contract import ALIASES, Fault, JsonObject
from comfy_core.errors import invalid_input
from comfy_core.request.model_address import public_name
from comfy_core.request.rendering import Request

MODEL_ID = "model_bfl-flux-1-dev"
MAX_SCENARIO_SEED = 2**31 - 1
"""Largest seed that Scenario accepts; this project accepts `contract.MAX_SEED`."""
MAX_PROMPT = 2048
MAX_LORAS = 6
MAX_LORA_SCALE = 2.0

ALTERNATIVE = "or use IMAGE_GENERATION_PROVIDER=comfyui"


@dataclass(frozen=True)
class ScenarioField:
    """An input of this project, its name at Scenario, and its range there.

    `low` and `high` are None if the input has no range at Scenario that has to be checked.
    """

    ours: str
    theirs: str
    low: float | None = None
    high: float | None = None


FIELDS: tuple[ScenarioField, ...] = (
    ScenarioField("prompt", "prompt"),
    ScenarioField("strength", "strength", 0.01, 1),
    ScenarioField("num_images", "numOutputs", 1, 4),
    ScenarioField("steps", "numInferenceSteps", 1, 50),
    ScenarioField("width", "width", 128, 2048),
    ScenarioField("height", "height", 128, 2048),
    ScenarioField("guidance", "guidance", 0, 10),
    ScenarioField("seed", "seed", 0, MAX_SCENARIO_SEED),
)
"""The inputs that this project and Scenario have. Images and LoRAs have ids at Scenario and are mapped separately.

The ranges are Scenario's. The shim accepts wider ones (gateway/scenario/fields.py), because ComfyUI makes those images.
"""

_COMFYUI_ONLY = {"negative_prompt": "", "negative_strength": 0, "sampler": "euler", "scheduler": "simple"}
"""Inputs that only ComfyUI has, each with the value that is accepted because it is the same as omitting the input."""


def check_supported(parsed: Request, options: JobOptions, loras: Mapping[str, str]) -> None:
    """Raise JobError (invalid_input) with everything in a request that Scenario does not support."""
    faults = [*_envelope_faults(parsed), *_option_faults(options)]
    if parsed.template is not None:
        faults += [*_input_faults(parsed.inputs), *_lora_faults(parsed.inputs, loras)]
    if faults:
        raise invalid_input(faults)


def scenario_body(inputs: JsonObject, loras: Mapping[str, str]) -> JsonObject:
    """Return the body for rendered inputs, which have a seed and a size.

    `loras` maps LoRA files to Scenario ids. The caller uploads the input image and adds its id to the body. Raises
    JobError (invalid_input) for inputs that Scenario does not support.
    """
    if faults := [*_input_faults(inputs), *_lora_faults(inputs, loras)]:
        raise invalid_input(faults)
    body: JsonObject = {field.theirs: inputs[field.ours] for field in FIELDS if field.ours in inputs}
    if loras_input := inputs.get("loras"):
        body["loras"] = [loras[lora["name"]] for lora in loras_input]
        body["lorasScale"] = [lora.get("strength", 1) for lora in loras_input]
    return body


def our_inputs(body: JsonObject) -> JsonObject:
    """Return this project's inputs for a body of Scenario, except images and LoRAs.

    A job's record contains the body, so the inputs of a job of another process can be found.
    """
    return {field.ours: body[field.theirs] for field in FIELDS if body.get(field.theirs) is not None}


def _envelope_faults(parsed: Request) -> list[Fault]:
    faults = []
    if parsed.template is None:
        faults.append(
            Fault("workflow", f"is a graph, which Scenario cannot run: use txt2img or img2img, {ALTERNATIVE}")
        )
    elif parsed.template.name not in ALIASES.values():
        faults.append(Fault("workflow", f"does not exist at Scenario: use txt2img or img2img, {ALTERNATIVE}"))
    if parsed.overrides:
        faults.append(
            Fault("overrides", f"set values in a graph, which Scenario does not have: omit them, {ALTERNATIVE}")
        )
    if parsed.delivery == "s3":
        faults.append(bucket_fault("Scenario"))
    if parsed.webhook is not None:
        faults.append(webhook_fault("Scenario"))
    if parsed.timeout_s is not None:
        faults.append(Fault("timeout_s", "cannot stop a job at Scenario: use wait_timeout_s, and cancel the job"))
    return faults


def _option_faults(options: JobOptions) -> list[Fault]:
    return [
        Fault(f"options.{name}", f"is only supported by RunPod: omit it, {ALTERNATIVE}")
        for name, default in vars(NO_OPTIONS).items()
        if getattr(options, name) != default
    ]


def _input_faults(inputs: JsonObject) -> list[Fault]:
    faults = [
        Fault(name, f"is not supported by Scenario's Flux: omit it, {ALTERNATIVE}")
        for name, neutral in _COMFYUI_ONLY.items()
        if inputs.get(name, neutral) != neutral
    ]
    for field in FIELDS:
        value = inputs.get(field.ours)
        if field.low is None or field.high is None or value is None:
            continue
        if not field.low <= value <= field.high:
            problem = f"must be from {field.low:g} to {field.high:.10g} at Scenario, not {value:.10g}"
            faults.append(Fault(field.ours, f"{problem}: change it, {ALTERNATIVE}"))
    if len(prompt := inputs.get("prompt", "")) > MAX_PROMPT:
        faults.append(
            Fault("prompt", f"may have at most {MAX_PROMPT} characters at Scenario, not {len(prompt)}: shorten it")
        )
    return faults


def _lora_faults(inputs: JsonObject, loras: Mapping[str, str]) -> list[Fault]:
    loras_input = inputs.get("loras") or []
    faults = []
    if len(loras_input) > MAX_LORAS:
        faults.append(Fault("loras", f"may be at most {MAX_LORAS} at Scenario, not {len(loras_input)}"))
    for number, lora in enumerate(loras_input):
        if lora["name"] not in loras:
            problem = f"{public_name(lora['name'])!r} has no Scenario id: add it to SCENARIO_LORAS, {ALTERNATIVE}"
            faults.append(Fault(f"loras[{number}].name", problem))
        if not 0 <= lora.get("strength", 1) <= MAX_LORA_SCALE:
            faults.append(Fault(f"loras[{number}].strength", f"must be from 0 to {MAX_LORA_SCALE:g} at Scenario"))
    return faults
