"""Implements the nodes, with the values of values.py in place of tensors. node_table.py declares the nodes.

Facts about ComfyUI:

- A latent has an eighth of its image's sides, so sides are rounded down to multiples of 8 (an encoded image is cropped
  around its centre).
- Text encoders of another architecture than Flux fail in the sampler, in a matrix product.
- ModelSamplingFlux makes the shift of the sigmas a linear function of the number of 16 x 16 pixel patches.
- With denoise 0 nothing is sampled, and no step is counted.
- A latent's noise mask limits the sampler to a part of the image. It has the size of the mask's image.
- DifferentialDiffusion changes how the sampler uses a grey noise mask. Here it has no effect.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from simulators.comfyui.image_nodes import IMAGE_NODES
from simulators.comfyui.images import Recipe, Sketch, decoded
from simulators.comfyui.mask_nodes import MASK_NODES
from simulators.comfyui.values import (
    Behaviour,
    Conditioning,
    Guider,
    ImageBatch,
    Inputs,
    Latent,
    Model,
    NodeContext,
    NodeFailure,
    Result,
    Sigmas,
)

SIDE_MULTIPLE = 8
PATCH_SIDE = 16
BASE_PATCHES, MAX_PATCHES = 256, 4096
FLUX = "flux"
WRONG_ENCODERS = "mat1 and mat2 shapes cannot be multiplied (77x2048 and 4096x3072)"
WRONG_ENCODERS_TIP = (
    '\n\nTIPS: If you have any "Load CLIP" or "*CLIP Loader" nodes in your workflow connected to this sampler node '
    "make sure the correct file(s) and type is selected."
)


def _with_lora(inputs: Inputs) -> Model:
    model: Model = inputs["model"]
    return replace(model, loras=(*model.loras, (inputs["lora_name"], inputs["strength_model"])))


def _with_size_dependent_shift(inputs: Inputs) -> Model:
    model: Model = inputs["model"]
    patches = inputs["width"] * inputs["height"] / PATCH_SIDE**2
    base, highest = inputs["base_shift"], inputs["max_shift"]
    shift = base + (highest - base) * (patches - BASE_PATCHES) / (MAX_PATCHES - BASE_PATCHES)
    return replace(model, shift=shift)


def _empty_latent(inputs: Inputs) -> Latent:
    width, height = (inputs[side] // SIDE_MULTIPLE * SIDE_MULTIPLE for side in ("width", "height"))
    return Latent((Sketch(width, height),) * inputs["batch_size"])


def _encoded(inputs: Inputs) -> Latent:
    frames = []
    for image in inputs["pixels"].frames:
        width, height = (max(SIDE_MULTIPLE, side // SIDE_MULTIPLE * SIDE_MULTIPLE) for side in image.size)
        left, top = (image.width - width) // 2, (image.height - height) // 2
        frames.append(Sketch(width, height, source=image.crop((left, top, left + width, top + height))))
    return Latent(tuple(frames))


def _with_noise_mask(inputs: Inputs) -> Latent:
    return Latent(tuple(replace(frame, mask=inputs["mask"]) for frame in inputs["samples"].frames))


def _decoded(inputs: Inputs) -> ImageBatch:
    return ImageBatch(tuple(decoded(frame) for frame in inputs["samples"].frames))


async def _sample(
    context: NodeContext, latent: Latent, conditioning: Conditioning, recipe: Recipe, sigmas: Sigmas
) -> Latent:
    if conditioning.architecture != FLUX:
        raise NodeFailure("RuntimeError", WRONG_ENCODERS, WRONG_ENCODERS_TIP)
    if sigmas.denoise <= 0:
        return latent
    frames = []
    for index, frame in enumerate(latent.frames):
        source = frame.source if frame.recipe is None else frame
        drawn = replace(recipe, index=index, denoise=sigmas.denoise)
        frames.append(Sketch(frame.width, frame.height, drawn, source, frame.mask))
    sampled = Latent(tuple(frames))
    await context.sample(sampled, sigmas.steps)
    return sampled


def _recipe(model: Model, conditioning: Conditioning, seed: int, steps: int, sampler: str) -> Recipe:
    return Recipe(conditioning.text, seed, steps, conditioning.guidance, loras=model.loras, sampler=sampler)


async def _ksampler(context: NodeContext, inputs: Inputs) -> Result:
    model, conditioning = inputs["model"], inputs["positive"]
    sigmas = Sigmas(inputs["steps"], inputs["denoise"], model.shift)
    recipe = _recipe(model, conditioning, inputs["seed"], sigmas.steps, inputs["sampler_name"])
    return Result((await _sample(context, inputs["latent_image"], conditioning, recipe, sigmas),))


async def _custom_sampler(context: NodeContext, inputs: Inputs) -> Result:
    guider, sigmas = inputs["guider"], inputs["sigmas"]
    recipe = _recipe(guider.model, guider.conditioning, inputs["noise"], sigmas.steps, inputs["sampler"])
    latent = await _sample(context, inputs["latent_image"], guider.conditioning, recipe, sigmas)
    return Result((latent, latent))


def _pure_node(make: Callable[[Inputs], Any]) -> Behaviour:
    """Return the implementation of a node with one output that depends only on its inputs."""
    return lambda _, inputs: Result((make(inputs),))


BEHAVIOURS: Mapping[str, Behaviour] = {
    "UNETLoader": _pure_node(lambda inputs: Model(inputs["unet_name"])),
    "DualCLIPLoader": _pure_node(lambda inputs: inputs["type"]),
    "VAELoader": _pure_node(lambda inputs: inputs["vae_name"]),
    "CheckpointLoaderSimple": lambda _, inputs: Result((Model(inputs["ckpt_name"]), FLUX, inputs["ckpt_name"])),
    "LoraLoaderModelOnly": _pure_node(_with_lora),
    "CLIPTextEncode": _pure_node(lambda inputs: Conditioning(inputs["text"], inputs["clip"])),
    "FluxGuidance": _pure_node(lambda inputs: replace(inputs["conditioning"], guidance=inputs["guidance"])),
    "ConditioningZeroOut": _pure_node(lambda inputs: replace(inputs["conditioning"], text="")),
    "KSampler": _ksampler,
    "KSamplerSelect": _pure_node(lambda inputs: inputs["sampler_name"]),
    "ModelSamplingFlux": _pure_node(_with_size_dependent_shift),
    "BasicScheduler": _pure_node(lambda inputs: Sigmas(inputs["steps"], inputs["denoise"], inputs["model"].shift)),
    "BasicGuider": _pure_node(lambda inputs: Guider(inputs["model"], inputs["conditioning"])),
    "RandomNoise": _pure_node(lambda inputs: inputs["noise_seed"]),
    "SamplerCustomAdvanced": _custom_sampler,
    "EmptySD3LatentImage": _pure_node(_empty_latent),
    "EmptyLatentImage": _pure_node(_empty_latent),
    "VAEDecode": _pure_node(_decoded),
    "VAEDecodeTiled": _pure_node(_decoded),
    "VAEEncode": _pure_node(_encoded),
    "VAEEncodeTiled": _pure_node(_encoded),
    "SetLatentNoiseMask": _pure_node(_with_noise_mask),
    "DifferentialDiffusion": _pure_node(lambda inputs: inputs["model"]),
    "PrimitiveString": _pure_node(lambda inputs: inputs["value"]),
    "PreviewAny": lambda _, inputs: Result((str(inputs["source"]),), {"text": [str(inputs["source"])]}),
    **IMAGE_NODES,
    **MASK_NODES,
}
