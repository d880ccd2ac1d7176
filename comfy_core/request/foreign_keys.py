"""Request keys that other tools and RunPod use, and the advice for each. Pure."""

from __future__ import annotations

from collections.abc import Container

from comfy_core.contract import GRAPH_KEYS

_FOREIGN_NAMES: dict[str, tuple[str, ...]] = {
    "prompt": ("text", "positive", "positive_prompt", "caption", "inputs"),
    "negative_prompt": ("negative", "neg_prompt", "negative_text"),
    "width and height": ("image_size", "size", "resolution", "aspect_ratio", "dimensions"),
    "width": ("image_width", "w"),
    "height": ("image_height", "h"),
    "image": (
        "init_images", "init_image", "input_image", "input_images", "image_url", "image_urls", "image_base64",
        "source_image", "reference_image", "img",
    ),
    "strength": ("prompt_strength", "denoising_strength", "denoise", "denoise_strength", "image_strength"),
    "steps": (
        "num_inference_steps", "inference_steps", "num_steps", "n_steps", "sampling_steps", "step_count", "iterations",
    ),
    "guidance": ("guidance_scale", "cfg_scale", "cfg", "distilled_cfg_scale", "prompt_guidance"),
    "seed": ("noise_seed", "random_seed", "rng_seed"),
    "num_images": (
        "n", "num_outputs", "num_samples", "batch_size", "batch_count", "n_iter", "num_images_per_prompt", "samples",
        "number_of_images", "count",
    ),
    "sampler": ("sampler_name", "sampler_index"),
    "scheduler": ("scheduler_name", "schedule"),
    "loras": ("lora", "lora_name", "lora_weights", "lora_url"),
    "output_format": ("format", "image_format", "output_type", "file_type", "response_format"),
    "output_quality": ("quality", "jpeg_quality"),
    "timeout_s": ("timeout", "timeout_seconds"),
    "workflow": ("model", "model_id", "workflow_name", "template"),
}  # fmt: skip
"""Keys of a request, each with the names that other tools have for it."""
_OUR_NAMES = {"".join(name.split("_")): ours for ours, names in _FOREIGN_NAMES.items() for name in names}
_PLATFORM_KEYS = frozenset({"webhook", "webhookurl", "s3config", "policy"})
"""Keys that RunPod's API reads next to `input`, in lower case and without underscores."""

BESIDE_INPUT = "belongs next to `input`, not inside it: RunPod reads it there"
NOT_A_WEBHOOK = f'must be an object like {{"url": "https://…"}}; RunPod\'s own webhook, a URL, {BESIDE_INPUT}'
"""The problem with a `webhook` in a request that is not an object."""


def is_platform_key(name: str) -> bool:
    """Return whether `name` is a key that RunPod's API reads next to `input`."""
    return _folded(name) in _PLATFORM_KEYS


def advice(name: str, known: Container[str]) -> str:
    """Return advice about an unknown key of a request, or an empty string if there is none.

    `known` contains the valid keys. Case and underscores are ignored, so `numInferenceSteps` matches
    `num_inference_steps`.
    """
    if is_platform_key(name) or name in GRAPH_KEYS:
        return BESIDE_INPUT if is_platform_key(name) else "is only valid with a graph; remove it"
    folded = _folded(name)
    ours = _OUR_NAMES.get(folded, "strength" if folded == "strength" else "")
    if ours == "image" and ours not in known:
        return "is not known; image to image takes the image as `image`"
    if folded == "image" and name not in known:
        return "is only valid for image to image: remove `workflow`, or set it to img2img"
    if ours == "strength" and ours not in known:
        return "is only valid for image to image: also send `image`, the start image"
    if ours and all(each in known for each in ours.split(" and ")):
        quoted = " and ".join(f'"{each}"' for each in ours.split(" and "))
        return f"is not known; did you mean {quoted}?"
    return ""


def _folded(name: str) -> str:
    return "".join(name[:64].lower().split("_"))
