"""The node classes of the simulator, as data: inputs, ranges, choices, outputs. nodes.py implements them.

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

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

ListFiles = Callable[[str], tuple[str, ...]]
"""Returns the file names in a model folder, or in `input`."""

MAX_SIDE = 16384
MAX_SEED = 2**64 - 1
MAX_COLOR = 0xFFFFFF

SAMPLER_NAMES = """
euler euler_cfg_pp euler_ancestral euler_ancestral_cfg_pp heun heunpp2 exp_heun_2_x0 exp_heun_2_x0_sde dpm_2
dpm_2_ancestral lms dpm_fast dpm_adaptive dpmpp_2s_ancestral dpmpp_2s_ancestral_cfg_pp dpmpp_sde dpmpp_sde_gpu
dpmpp_2m dpmpp_2m_cfg_pp dpmpp_2m_sde dpmpp_2m_sde_gpu dpmpp_2m_sde_heun dpmpp_2m_sde_heun_gpu dpmpp_3m_sde
dpmpp_3m_sde_gpu ddpm lcm ipndm ipndm_v deis res_multistep res_multistep_cfg_pp res_multistep_ancestral
res_multistep_ancestral_cfg_pp gradient_estimation gradient_estimation_cfg_pp er_sde seeds_2 seeds_3 sa_solver
sa_solver_pece ddim uni_pc uni_pc_bh2
"""
SAMPLERS = tuple(SAMPLER_NAMES.split())
SCHEDULER_NAMES = "simple sgm_uniform karras exponential ddim_uniform beta normal linear_quadratic kl_optimal"
SCHEDULERS = tuple(SCHEDULER_NAMES.split())
RESAMPLING = ("nearest-exact", "bilinear", "area", "bicubic", "lanczos")
WEIGHT_TYPES = ("default", "fp8_e4m3fn", "fp8_e4m3fn_fast", "fp8_e5m2")
CLIP_TYPE_NAMES = """
sdxl sd3 flux hunyuan_video hidream hunyuan_image hunyuan_video_15 kandinsky5 kandinsky5_image ltxv newbie ace
"""
CLIP_TYPES = tuple(CLIP_TYPE_NAMES.split())
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
            return ["COMBO", {**self.options, "multiselect": False, "options": choices}]
        return [self.type if choices is None else choices, dict(self.options)]


def _declared_option(key: str, inputs: Mapping[str, Input], listing: ListFiles) -> dict[str, Any]:
    declared = {name: entry.declared(listing) for name, entry in inputs.items()}
    return {"key": key, "inputs": {"required": declared}}


@dataclass(frozen=True)
class NodeType:
    """One node class. `checks_file` is the input whose file must exist, if any."""

    name: str
    inputs: Mapping[str, Input]
    outputs: tuple[str, ...] = ()
    output_names: tuple[str, ...] = ()
    is_output: bool = False
    saves_metadata: bool = False
    checks_file: str = ""

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
            "output_name": list(self.output_names or self.outputs),
            "name": self.name,
            "display_name": self.name,
            "description": "",
            "python_module": "simulators.comfyui",
            "category": "simulator",
            "output_node": self.is_output,
            "has_intermediate_output": False,
        }


def _int(default: int, least: int, most: int, **more: object) -> Input:
    return Input("INT", {"default": default, "min": least, "max": most, **more})


def _float(default: float, least: float, most: float, **more: object) -> Input:
    return Input("FLOAT", {"default": default, "min": least, "max": most, **more})


def _choice(*choices: str, folder: str = "", **more: object) -> Input:
    return Input(options=more, choices=choices, folder=folder)


def _v3_choice(*choices: str, **more: object) -> Input:
    return Input(options=more, choices=choices, is_v3=True)


def _side(default: int, least: int = 16, step: int = 8) -> Input:
    return _int(default, least, MAX_SIDE, step=step)


def _node(name: str, outputs: str = "", **inputs: Input | str) -> NodeType:
    declared = {key: Input(entry) if isinstance(entry, str) else entry for key, entry in inputs.items()}
    return NodeType(name, declared, tuple(outputs.split()))


_TEXT = Input("STRING", {"multiline": True, "dynamicPrompts": True})
_STRENGTH = _float(1.0, -100.0, 100.0, step=0.01)
_GUIDANCE = _float(3.5, 0.0, 100.0, step=0.1)
_DENOISE = _float(1.0, 0.0, 1.0, step=0.01)
_STEPS = _int(20, 1, 10000)
_SEED = _int(0, 0, MAX_SEED, control_after_generate=True)
_BATCH = _int(1, 1, 4096)
_IMAGE_FILE = _choice(folder="input", image_upload=True)
_LORA = _choice(folder="loras")
_CLIP_FILE = _choice(folder="text_encoders")
_SAMPLER = _choice(*SAMPLERS)
_SCHEDULER = _choice(*SCHEDULERS)

_LOADERS = (
    _node(
        "UNETLoader",
        "MODEL",
        unet_name=_choice(folder="diffusion_models"),
        weight_dtype=_choice(*WEIGHT_TYPES, advanced=True),
    ),
    _node(
        "DualCLIPLoader",
        "CLIP",
        clip_name1=_CLIP_FILE,
        clip_name2=_CLIP_FILE,
        type=_choice(*CLIP_TYPES),
        device=Input(options={"advanced": True}, choices=("default", "cpu"), optional=True),
    ),
    _node("VAELoader", "VAE", vae_name=_choice("pixel_space", folder="vae")),
    _node("CheckpointLoaderSimple", "MODEL CLIP VAE", ckpt_name=_choice(folder="checkpoints")),
    _node("LoraLoaderModelOnly", "MODEL", model="MODEL", lora_name=_LORA, strength_model=_STRENGTH),
)

_CONDITIONINGS = (
    _node("CLIPTextEncode", "CONDITIONING", text=_TEXT, clip="CLIP"),
    _node("FluxGuidance", "CONDITIONING", conditioning="CONDITIONING", guidance=_GUIDANCE),
    _node("ConditioningZeroOut", "CONDITIONING", conditioning="CONDITIONING"),
)

_SAMPLING = (
    _node(
        "KSampler",
        "LATENT",
        model="MODEL",
        seed=_SEED,
        steps=_STEPS,
        cfg=_float(8.0, 0.0, 100.0, step=0.1, round=0.01),
        sampler_name=_SAMPLER,
        scheduler=_SCHEDULER,
        positive="CONDITIONING",
        negative="CONDITIONING",
        latent_image="LATENT",
        denoise=_DENOISE,
    ),
    _node(
        "ModelSamplingFlux",
        "MODEL",
        model="MODEL",
        max_shift=_float(1.15, 0.0, 100.0, step=0.01, advanced=True),
        base_shift=_float(0.5, 0.0, 100.0, step=0.01, advanced=True),
        width=_side(1024),
        height=_side(1024),
    ),
    _node("KSamplerSelect", "SAMPLER", sampler_name=_v3_choice(*SAMPLERS)),
    _node(
        "BasicScheduler",
        "SIGMAS",
        model="MODEL",
        scheduler=_v3_choice(*SCHEDULERS),
        steps=_STEPS,
        denoise=_DENOISE,
    ),
    _node("BasicGuider", "GUIDER", model="MODEL", conditioning="CONDITIONING"),
    _node("RandomNoise", "NOISE", noise_seed=_SEED),
    replace(
        _node(
            "SamplerCustomAdvanced",
            "LATENT LATENT",
            noise="NOISE",
            guider="GUIDER",
            sampler="SAMPLER",
            sigmas="SIGMAS",
            latent_image="LATENT",
        ),
        output_names=("output", "denoised_output"),
    ),
)

_LATENTS = (
    _node("EmptySD3LatentImage", "LATENT", width=_side(1024, step=16), height=_side(1024, step=16), batch_size=_BATCH),
    _node("EmptyLatentImage", "LATENT", width=_side(512), height=_side(512), batch_size=_BATCH),
    _node("VAEDecode", "IMAGE", samples="LATENT", vae="VAE"),
    _node("VAEEncode", "LATENT", pixels="IMAGE", vae="VAE"),
)

_LENGTH = _side(512, least=0, step=1)
_CROP = _v3_choice("disabled", "center", default="center")
_RESIZE_TYPES: Mapping[str, Mapping[str, Input]] = {
    "scale dimensions": {"width": _LENGTH, "height": _LENGTH, "crop": _CROP},
    "scale by multiplier": {"multiplier": _float(1.0, 0.01, 8.0, step=0.01)},
    "scale longer dimension": {"longer_size": _LENGTH},
    "scale shorter dimension": {"shorter_size": _LENGTH},
    "scale width": {"width": _LENGTH},
    "scale height": {"height": _LENGTH},
    "scale total pixels": {"megapixels": _float(1.0, 0.01, 16.0, step=0.01)},
    "match size": {"match": Input("IMAGE,MASK"), "crop": _CROP},
    "scale to multiple": {"multiple": _side(8, least=1, step=1)},
}
_IMAGES = (
    replace(_node("LoadImage", "IMAGE MASK", image=_IMAGE_FILE), checks_file="image"),
    _node(
        "ImageScale",
        "IMAGE",
        image="IMAGE",
        upscale_method=_choice(*RESAMPLING),
        width=_LENGTH,
        height=_LENGTH,
        crop=_choice("disabled", "center"),
    ),
    _node(
        "EmptyImage",
        "IMAGE",
        width=_side(512, least=1, step=1),
        height=_side(512, least=1, step=1),
        batch_size=_BATCH,
        color=_int(0, 0, MAX_COLOR, step=1, display="color"),
    ),
    _node(
        "ImageScaleToTotalPixels",
        "IMAGE",
        image="IMAGE",
        upscale_method=_v3_choice(*RESAMPLING),
        megapixels=_float(1.0, 0.01, 16.0, step=0.01),
        resolution_steps=_int(1, 1, 256, advanced=True),
    ),
    replace(
        _node(
            "ResizeImageMaskNode",
            MATCH_TYPE,
            input=Input(MATCH_TYPE, {"template": {"template_id": "input_type", "allowed_types": "IMAGE,MASK"}}),
            resize_type=Input(DYNAMIC_COMBO, nested=_RESIZE_TYPES),
            scale_method=_v3_choice(*RESAMPLING, default="area"),
        ),
        output_names=("resized",),
    ),
    replace(
        _node("SaveImage", "IMAGE", images="IMAGE", filename_prefix=Input("STRING", {"default": "ComfyUI"})),
        output_names=("images",),
        is_output=True,
        saves_metadata=True,
    ),
    replace(
        _node("PreviewImage", "IMAGE", images="IMAGE"),
        output_names=("images",),
        is_output=True,
        saves_metadata=True,
    ),
    replace(_node("SaveImageWebsocket", images="IMAGE"), is_output=True),
)

_TEXT_FIELD = Input("STRING", {"default": ""})
_OTHERS = (
    _node("PrimitiveString", "STRING", value=Input("STRING", {"multiline": False})),
    replace(_node("PreviewAny", "STRING", source="*"), is_output=True),
    replace(
        _node("VAESave", vae="VAE", filename_prefix=Input("STRING", {"default": "vae/ComfyUI_vae"})),
        is_output=True,
        saves_metadata=True,
    ),
)
_OF_CUSTOM_PACKS = (
    replace(_node("Image Save", images="IMAGE", output_path=_TEXT_FIELD, filename_prefix=_TEXT_FIELD), is_output=True),
    replace(_node("SendPixelsWebsocket", images="IMAGE"), is_output=True),
    replace(_node("Image Saver", images="IMAGE", filename=_TEXT_FIELD, path=_TEXT_FIELD), is_output=True),
)

NODE_TYPES: Mapping[str, NodeType] = {
    node.name: node
    for node in (*_LOADERS, *_CONDITIONINGS, *_SAMPLING, *_LATENTS, *_IMAGES, *_OTHERS, *_OF_CUSTOM_PACKS)
}
