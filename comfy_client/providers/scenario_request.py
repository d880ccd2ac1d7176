"""Our request as the body that Scenario's Flux.1-dev takes, and what of a request Scenario cannot do. Pure.

Facts (docs/reference/scenario.md#route-a): `POST /generate/custom/model_bfl-flux-1-dev` has the fields of FIELDS and
LoRAs, no negative prompt, no sampler and no scheduler. Sizes are multiples of 16, as ours. What we leave open is
sent with our defaults, so that the same request asks both providers for the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from comfy_client.providers.interface import NO_OPTIONS, JobOptions
from comfy_core.contract import ALIASES, Fault, JsonObject
from comfy_core.errors import invalid_input
from comfy_core.request.reading import Request

MODEL_ID = "model_bfl-flux-1-dev"
MAX_SEED = 2_147_483_647
MAX_PROMPT = 2048
MAX_LORAS = 6
MAX_LORA_SCALE = 2.0

STAY = "or stay with IMAGE_GENERATION_PROVIDER=comfyui"


@dataclass(frozen=True)
class ScenarioField:
    """One input of ours, Scenario's name for it, and its range there (None: any that is ours)."""

    ours: str
    theirs: str
    least: float | None = None
    most: float | None = None


FIELDS: tuple[ScenarioField, ...] = (
    ScenarioField("prompt", "prompt"),
    ScenarioField("strength", "strength", 0.01, 1),
    ScenarioField("num_images", "numOutputs", 1, 4),
    ScenarioField("steps", "numInferenceSteps", 1, 50),
    ScenarioField("width", "width", 128, 2048),
    ScenarioField("height", "height", 128, 2048),
    ScenarioField("guidance", "guidance", 0, 10),
    ScenarioField("seed", "seed", 0, MAX_SEED),
)
"""What both have. Pictures and LoRAs go by Scenario's own ids, and are mapped apart."""

_OWN = {"negative_prompt": "", "negative_strength": 0, "sampler": "euler", "scheduler": "simple"}
"""Inputs that only ComfyUI has, and the values by which nothing is asked for."""


def check_possible(asked: Request, options: JobOptions, loras: Mapping[str, str]) -> None:
    """Raise JobError (invalid_input) with all that Scenario cannot do of a request: nothing is left out in silence."""
    faults = [*_envelope_faults(asked), *_option_faults(options)]
    if asked.template is not None:
        faults += [*_input_faults(asked.inputs), *_lora_faults(asked.inputs, loras)]
    if faults:
        raise invalid_input(faults)


def scenario_body(inputs: JsonObject, loras: Mapping[str, str]) -> JsonObject:
    """Return the body for inputs as they were rendered, with seed and size. Raises JobError as `check_possible` does.

    `loras` leads from our files to Scenario's ids. The picture to start from is still to be uploaded.
    """
    if faults := [*_input_faults(inputs), *_lora_faults(inputs, loras)]:
        raise invalid_input(faults)
    body: JsonObject = {field.theirs: inputs[field.ours] for field in FIELDS if field.ours in inputs}
    if wanted := inputs.get("loras"):
        body["loras"] = [loras[lora["name"]] for lora in wanted]
        body["lorasScale"] = [lora.get("strength", 1) for lora in wanted]
    return body


def our_inputs(body: JsonObject) -> JsonObject:
    """Return our inputs of a job's own record of its body, for a job that another process asked for."""
    return {field.ours: body[field.theirs] for field in FIELDS if body.get(field.theirs) is not None}


def _envelope_faults(asked: Request) -> list[Fault]:
    faults = []
    if asked.template is None:
        faults.append(Fault("workflow", f"is a graph, and Scenario runs none: use txt2img or img2img, {STAY}"))
    elif asked.template.name not in ALIASES.values():
        faults.append(Fault("workflow", f"is none of Scenario's: use txt2img or img2img, {STAY}"))
    if asked.overrides:
        faults.append(Fault("overrides", f"set values of a graph, and Scenario has none: leave them out, {STAY}"))
    if asked.delivery == "s3":
        faults.append(Fault("delivery", f"s3 is the worker's bucket: leave it out, {STAY}"))
    if asked.timeout_s is not None:
        faults.append(Fault("timeout_s", "cannot end a job of Scenario: use wait_timeout_s, and cancel the job"))
    return faults


def _option_faults(options: JobOptions) -> list[Fault]:
    return [
        Fault(f"options.{name}", f"is RunPod's alone: leave it out, {STAY}")
        for name, default in vars(NO_OPTIONS).items()
        if getattr(options, name) != default
    ]


def _input_faults(inputs: JsonObject) -> list[Fault]:
    faults = [
        Fault(name, f"is ComfyUI's alone, and Scenario's Flux has none: leave it out, {STAY}")
        for name, nothing in _OWN.items()
        if inputs.get(name, nothing) != nothing
    ]
    for field in FIELDS:
        value = inputs.get(field.ours)
        if field.least is None or field.most is None or value is None:
            continue
        if not field.least <= value <= field.most:
            problem = f"must be from {field.least:g} to {field.most:.10g} at Scenario, not {value:.10g}"
            faults.append(Fault(field.ours, f"{problem}: change it, {STAY}"))
    if len(prompt := inputs.get("prompt", "")) > MAX_PROMPT:
        faults.append(Fault("prompt", f"may have {MAX_PROMPT} characters at Scenario, not {len(prompt)}: shorten it"))
    return faults


def _lora_faults(inputs: JsonObject, loras: Mapping[str, str]) -> list[Fault]:
    wanted = inputs.get("loras") or []
    faults = []
    if len(wanted) > MAX_LORAS:
        faults.append(Fault("loras", f"may be {MAX_LORAS} at Scenario, not {len(wanted)}"))
    for number, lora in enumerate(wanted):
        if lora["name"] not in loras:
            problem = f"{lora['name']!r} has no id at Scenario: name it in SCENARIO_LORAS, {STAY}"
            faults.append(Fault(f"loras[{number}].name", problem))
        if not 0 <= lora.get("strength", 1) <= MAX_LORA_SCALE:
            faults.append(Fault(f"loras[{number}].strength", f"must be from 0 to {MAX_LORA_SCALE:g} at Scenario"))
    return faults
