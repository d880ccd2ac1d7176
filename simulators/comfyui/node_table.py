"""The node classes of the simulator: inputs, ranges, choices, outputs. nodes.py implements them.

The declarations are in object_info.json, recorded from the pinned ComfyUI. `tools/bump_comfyui` writes the file.

Facts about ComfyUI:

- /object_info describes an input as `[type, options]`. A choice has the list of its values instead of the type. Newer
  nodes (V3) declare a choice as `["COMBO", {"options": values}]`.
- A V3 input of type COMFY_DYNAMICCOMBO_V3 adds inputs for each of its choices. A graph names them with a dot:
  `resize_type.width`.
- The choices of a loader are the files that exist. LoadImage lists the files directly in the input folder, without
  subfolders.
- An input can be optional. The server sets hidden inputs (the graph, for the PNG's text chunk).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

OBJECT_INFO = Path(__file__).with_name("object_info.json")
ListFiles = Callable[[str], tuple[str, ...]]
"""Returns the file names in a model folder, or in `input`."""

DYNAMIC_COMBO = "COMFY_DYNAMICCOMBO_V3"
MATCH_TYPE = "COMFY_MATCHTYPE_V3"
"""The type of an input that accepts several types, and of an output whose type is that of such an input."""
ANY_TYPES = {"*", MATCH_TYPE}
LITERAL_TYPES = {"", "*", "INT", "FLOAT", "STRING", "BOOLEAN", DYNAMIC_COMBO}


@dataclass(frozen=True)
class Input:
    """One input of a node class: a linked or literal value of `type`, or a choice if `type` is empty.

    The choices are `choices` and the files in the model folder `folder`. If `is_v3` is true, they are declared as
    COMBO. `nested` has the inputs of each choice of a DYNAMIC_COMBO.
    """

    type: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    choices: tuple[str, ...] = ()
    folder: str = ""
    optional: bool = False
    is_v3: bool = False
    nested: Mapping[str, Mapping[str, Input]] = field(default_factory=dict)

    @property
    def is_link_only(self) -> bool:
        """Whether the value must be a link to another node's output, because the type has no literals."""
        return self.type not in LITERAL_TYPES

    def listed_choices(self, listing: ListFiles) -> list[str] | None:
        """Return the current choices, or None for an input that is not a choice."""
        return None if self.type else [*(listing(self.folder) if self.folder else ()), *self.choices]

    def declared(self, listing: ListFiles) -> list[Any]:
        """Return the declaration in /object_info."""
        if self.nested:
            return [self.type, {"options": [_declared_option(*option, listing) for option in self.nested.items()]}]
        choices = self.listed_choices(listing)
        if choices is not None and self.is_v3:
            return ["COMBO", {**self.options, "options": choices}]
        return [self.type if choices is None else choices, dict(self.options)]


def _declared_option(key: str, inputs: Mapping[str, Input], listing: ListFiles) -> dict[str, Any]:
    declared = {name: entry.declared(listing) for name, entry in inputs.items()}
    return {"key": key, "inputs": {"required": declared}}


@dataclass(frozen=True)
class NodeType:
    """One node class. `checks_file` is the input whose file must exist, if any."""

    name: str
    inputs: Mapping[str, Input]
    outputs: tuple[str, ...]
    output_names: tuple[str, ...]
    is_output: bool
    saves_metadata: bool
    checks_file: str

    def inputs_of(self, values: Mapping[str, Any]) -> dict[str, Input]:
        """Return the inputs of a node that has `values`: the declared inputs, and those of its dynamic choices."""
        inputs: dict[str, Input] = {}
        for name, entry in self.inputs.items():
            inputs[name] = entry
            chosen = entry.nested.get(str(values.get(name)), {})
            inputs |= {f"{name}.{nested_name}": nested for nested_name, nested in chosen.items()}
        return inputs

    def described(self, listing: ListFiles) -> dict[str, Any]:
        """Return the description in /object_info."""
        required = {name: entry.declared(listing) for name, entry in self.inputs.items() if not entry.optional}
        optional = {name: entry.declared(listing) for name, entry in self.inputs.items() if entry.optional}
        groups: dict[str, dict[str, Any]] = {"required": required}
        if optional:
            groups["optional"] = optional
        if self.saves_metadata:
            groups["hidden"] = {"prompt": "PROMPT", "extra_pnginfo": "EXTRA_PNGINFO"}
        return {
            "input": groups,
            "input_order": {group: list(inputs) for group, inputs in groups.items()},
            "is_input_list": False,
            "output": list(self.outputs),
            "output_is_list": [False] * len(self.outputs),
            "output_name": list(self.output_names),
            "name": self.name,
            "display_name": self.name,
            "description": "",
            "python_module": "simulators.comfyui",
            "category": "simulator",
            "output_node": self.is_output,
            "has_intermediate_output": False,
        }


def _input(declared: list[Any], folder: str, *, optional: bool) -> Input:
    """Return an input from its declaration in /object_info."""
    kind, options = declared[0], dict(declared[1]) if len(declared) > 1 else {}
    if kind == DYNAMIC_COMBO:
        nested = {each["key"]: _inputs({"input": each["inputs"]}, "") for each in options["options"]}
        return Input(kind, nested=nested, optional=optional)
    is_v3 = kind == "COMBO"
    if not is_v3 and not isinstance(kind, list):
        return Input(kind, options, optional=optional)
    choices = options.pop("options") if is_v3 else kind
    fixed = BUILT_IN_CHOICES.get(folder, ()) if folder else tuple(choices)
    return Input(options=options, choices=fixed, folder=folder, optional=optional, is_v3=is_v3)


def _inputs(declared: Mapping[str, Any], class_name: str) -> dict[str, Input]:
    """Return the inputs of a class's description in /object_info, without the hidden ones."""
    return {
        name: _input(entry, FILE_INPUTS.get((class_name, name), ""), optional=group == "optional")
        for group, inputs in declared["input"].items()
        if group != "hidden"
        for name, entry in inputs.items()
    }


def _node_type(name: str, declared: Mapping[str, Any]) -> NodeType:
    return NodeType(
        name,
        _inputs(declared, name),
        tuple(declared["output"]),
        tuple(declared["output_name"]),
        is_output=declared["output_node"],
        saves_metadata="hidden" in declared["input"],
        checks_file="image" if name in {"LoadImage", "LoadImageMask"} else "",
    )


FILE_INPUTS = {
    ("UNETLoader", "unet_name"): "diffusion_models",
    ("DualCLIPLoader", "clip_name1"): "text_encoders",
    ("DualCLIPLoader", "clip_name2"): "text_encoders",
    ("VAELoader", "vae_name"): "vae",
    ("CheckpointLoaderSimple", "ckpt_name"): "checkpoints",
    ("LoraLoaderModelOnly", "lora_name"): "loras",
    ("LoadImage", "image"): "input",
    ("LoadImageMask", "image"): "input",
}
"""Inputs whose choices are files, each with the model folder, or `input`."""
BUILT_IN_CHOICES = {"vae": ("pixel_space",)}
"""Choices besides the files of a folder."""
SIMULATED = """
UNETLoader DualCLIPLoader VAELoader CheckpointLoaderSimple LoraLoaderModelOnly
CLIPTextEncode FluxGuidance ConditioningZeroOut
KSampler ModelSamplingFlux KSamplerSelect BasicScheduler BasicGuider RandomNoise SamplerCustomAdvanced
EmptySD3LatentImage EmptyLatentImage VAEDecode VAEEncode VAEDecodeTiled VAEEncodeTiled
DifferentialDiffusion SetLatentNoiseMask
LoadImageMask GrowMask MaskToImage ImageToMask MaskComposite ImageBlur ImageCompositeMasked
LoadImage ImageScale ImageScaleBy EmptyImage ImageScaleToTotalPixels ResizeImageMaskNode
SaveImage PreviewImage SaveImageWebsocket PrimitiveString PreviewAny VAESave
"""
"""The classes of ComfyUI that nodes.py implements."""
_TEXT = ["STRING", {"default": ""}]
_INPUTS_OF_OTHERS: Mapping[str, Mapping[str, list[Any]]] = {
    "Image Save": {"images": ["IMAGE"], "output_path": _TEXT, "filename_prefix": _TEXT},
    "Image Saver": {"images": ["IMAGE"], "filename": _TEXT, "path": _TEXT},
    "SendPixelsWebsocket": {"images": ["IMAGE"]},
}
"""Save nodes that ComfyUI does not have: two of custom packs, and the one of the worker."""
_OTHERS = {
    name: {"input": {"required": inputs}, "output": [], "output_name": [], "output_node": True}
    for name, inputs in _INPUTS_OF_OTHERS.items()
}
_OF_COMFYUI = json.loads(OBJECT_INFO.read_text())

NODE_TYPES: Mapping[str, NodeType] = {
    name: _node_type(name, declared)
    for name, declared in {**{name: _OF_COMFYUI[name] for name in SIMULATED.split()}, **_OTHERS}.items()
}
