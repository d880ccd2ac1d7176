"""What every node does, with values in place of tensors. How nodes are declared is in node_table.py.

Facts of ComfyUI 0.3.64:

- A latent is an eighth of its picture each way, so sides are cut to multiples of 8 (an encoded picture at its middle).
- Text encoders of another architecture than Flux are found out by the sampler, in a matrix product.
- With denoise 0 nothing is sampled, and no step is counted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from simulators.comfyui.image_nodes import IMAGE_NODES
from simulators.comfyui.pictures import Recipe, Sketch, drawn
from simulators.comfyui.savers import SAVERS
from simulators.comfyui.values import (
    Behaviour,
    Clip,
    Conditioning,
    Given,
    Guider,
    ImageBatch,
    Latent,
    Mask,
    Model,
    NodeContext,
    NodeFailure,
    Noise,
    Result,
    Sigmas,
    Vae,
)

MULTIPLE = 8
FLUX = "flux"
WRONG_ENCODERS = "mat1 and mat2 shapes cannot be multiplied (77x2048 and 4096x3072)"


def _lora(given: Given) -> Model:
    model: Model = given["model"]
    strength = given["strength_model"]
    return model if strength == 0 else replace(model, loras=(*model.loras, (given["lora_name"], strength)))


def _empty_latent(given: Given) -> Latent:
    width, height = (given[side] // MULTIPLE * MULTIPLE for side in ("width", "height"))
    return Latent((Sketch(width, height),) * given["batch_size"])


def _encoded(images: ImageBatch) -> Latent:
    frames = []
    for image in images.frames:
        width, height = (max(MULTIPLE, side // MULTIPLE * MULTIPLE) for side in image.size)
        left, top = (image.width - width) // 2, (image.height - height) // 2
        frames.append(Sketch(width, height, source=image.crop((left, top, left + width, top + height))))
    return Latent(tuple(frames))


def _masked(latent: Latent, mask: Mask) -> Latent:
    return Latent(tuple(replace(frame, mask=mask.image) for frame in latent.frames))


def _inpaint_conditioning(_: NodeContext, given: Given) -> Result:
    latent = _encoded(given["pixels"])
    if given["noise_mask"]:
        latent = _masked(latent, given["mask"])
    return Result((given["positive"], given["negative"], latent))


def _upscaled(given: Given) -> Latent:
    scale: float = given["scale_by"]

    def scaled(side: int) -> int:
        return max(1, round(side / MULTIPLE * scale)) * MULTIPLE

    return Latent(tuple(frame.resized(scaled(frame.width), scaled(frame.height)) for frame in given["samples"].frames))


def _decoded(given: Given) -> ImageBatch:
    return ImageBatch(tuple(drawn(frame) for frame in given["samples"].frames))


def _sampled(latent: Latent, conditioning: Conditioning, recipe: Recipe, denoise: float) -> Latent:
    if conditioning.architecture != FLUX:
        raise NodeFailure("RuntimeError", WRONG_ENCODERS)
    if denoise <= 0:
        return latent
    recipe = replace(recipe, prompt=conditioning.text, guidance=conditioning.guidance, denoise=denoise)
    frames = enumerate(latent.frames)
    return Latent(
        tuple(
            Sketch(
                *frame.size, replace(recipe, index=index), frame.source if frame.recipe is None else frame, frame.mask
            )
            for index, frame in frames
        )
    )


async def _ksampler(bench: NodeContext, given: Given) -> Result:
    recipe = Recipe("", given["seed"], given["steps"], 0.0, loras=given["model"].loras, sampler=given["sampler_name"])
    latent = _sampled(given["latent_image"], given["positive"], recipe, given["denoise"])
    if given["denoise"] > 0:
        await bench.sample(latent, given["steps"])
    return Result((latent,))


async def _custom_sampler(bench: NodeContext, given: Given) -> Result:
    guider, sigmas = given["guider"], given["sigmas"]
    recipe = Recipe("", given["noise"].seed, sigmas.steps, 0.0, loras=guider.model.loras, sampler=given["sampler"])
    latent = _sampled(given["latent_image"], guider.conditioning, recipe, sigmas.denoise)
    if sigmas.denoise > 0:
        await bench.sample(latent, sigmas.steps)
    return Result((latent, latent))


def _zeroed(_: NodeContext, given: Given) -> Result:
    return Result((replace(given["conditioning"], text=""),))


def _loaded_checkpoint(_: NodeContext, given: Given) -> Result:
    return Result((Model(given["ckpt_name"]), Clip(FLUX), Vae(given["ckpt_name"])))


def _encoded_text(_: NodeContext, given: Given) -> Result:
    return Result((Conditioning(given["text"], given["clip"].architecture),))


def _encoded_texts(_: NodeContext, given: Given) -> Result:
    return Result((Conditioning(given["t5xxl"], given["clip"].architecture, given["guidance"]),))


def _guided(_: NodeContext, given: Given) -> Result:
    return Result((replace(given["conditioning"], guidance=given["guidance"]),))


def _of(make: Callable[[Given], Any]) -> Behaviour:
    """Return the behaviour of a node with one output that needs nothing but its inputs."""
    return lambda _, given: Result((make(given),))


BEHAVIOURS: Mapping[str, Behaviour] = {
    "UNETLoader": _of(lambda given: Model(given["unet_name"])),
    "DualCLIPLoader": _of(lambda given: Clip(given["type"])),
    "VAELoader": _of(lambda given: Vae(given["vae_name"])),
    "CheckpointLoaderSimple": _loaded_checkpoint,
    "LoraLoader": lambda _, given: Result((_lora(given), given["clip"])),
    "LoraLoaderModelOnly": _of(_lora),
    "ModelSamplingFlux": _of(lambda given: given["model"]),
    "CLIPTextEncode": _encoded_text,
    "CLIPTextEncodeFlux": _encoded_texts,
    "FluxGuidance": _guided,
    "ConditioningZeroOut": _zeroed,
    "InpaintModelConditioning": _inpaint_conditioning,
    "KSampler": _ksampler,
    "KSamplerSelect": _of(lambda given: given["sampler_name"]),
    "BasicScheduler": _of(lambda given: Sigmas(given["steps"], given["denoise"])),
    "BasicGuider": _of(lambda given: Guider(given["model"], given["conditioning"])),
    "RandomNoise": _of(lambda given: Noise(given["noise_seed"])),
    "SamplerCustomAdvanced": _custom_sampler,
    "EmptySD3LatentImage": _of(_empty_latent),
    "EmptyLatentImage": _of(_empty_latent),
    "VAEDecode": _of(_decoded),
    "VAEDecodeTiled": _of(_decoded),
    "VAEEncode": _of(lambda given: _encoded(given["pixels"])),
    "VAEEncodeForInpaint": _of(lambda given: _masked(_encoded(given["pixels"]), given["mask"])),
    "SetLatentNoiseMask": _of(lambda given: _masked(given["samples"], given["mask"])),
    "RepeatLatentBatch": _of(lambda given: Latent(given["samples"].frames * given["amount"])),
    "LatentUpscaleBy": _of(_upscaled),
    **IMAGE_NODES,
    **SAVERS,
}
