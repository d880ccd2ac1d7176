"""Graphs that callers of worker-comfyui send, reduced to the nodes that matter to the worker."""

from __future__ import annotations

import base64
import io
from typing import Any

from PIL import Image

from tools.recorded_graphs import Graph, node


def blank(size: int = 32, batch_size: int = 1, prefix: str = "ComfyUI") -> Graph:
    """Return a graph that saves images without a model."""
    return {
        "1": node("EmptyImage", width=size, height=size, batch_size=batch_size, color=255),
        "9": node("SaveImage", filename_prefix=prefix, images=["1", 0]),
    }


def loaded(name: str) -> Graph:
    """Return a graph that loads an image and saves it."""
    return {
        "1": node("LoadImage", image=name),
        "9": node("SaveImage", filename_prefix="ComfyUI", images=["1", 0]),
    }


def checkpoint(steps: int = 2) -> Graph:
    """Return a graph like worker-comfyui's own example: Flux from one checkpoint, two SaveImage nodes and a preview."""
    return {
        "6": node("CLIPTextEncode", text="a ball on the table", clip=["30", 1]),
        "8": node("VAEDecode", samples=["31", 0], vae=["30", 2]),
        "9": node("SaveImage", filename_prefix="ComfyUI", images=["8", 0]),
        "27": node("EmptySD3LatentImage", width=64, height=64, batch_size=1),
        "30": node("CheckpointLoaderSimple", ckpt_name="flux1-dev-fp8.safetensors"),
        "31": _sampler(["30", 0], ["35", 0], ["33", 0], ["27", 0], steps),
        "33": node("CLIPTextEncode", text="", clip=["30", 1]),
        "35": node("FluxGuidance", guidance=3.5, conditioning=["6", 0]),
        "38": node("PreviewImage", images=["8", 0]),
        "40": node("SaveImage", filename_prefix="ComfyUI", images=["8", 0]),
    }


def flux(steps: int = 2, image: str | None = None) -> Graph:
    """Return a graph for Flux from its four files with KSampler, with or without a loaded image."""
    start = node("EmptySD3LatentImage", width=64, height=64, batch_size=1)
    graph = {
        **_loaders(),
        "5": start if image is None else node("VAEEncode", pixels=["1", 0], vae=["12", 0]),
        "6": node("CLIPTextEncode", text="a knight", clip=["4", 0]),
        "13": node("FluxGuidance", guidance=3.5, conditioning=["6", 0]),
        "17": _sampler(["10", 0], ["13", 0], ["6", 0], ["5", 0], steps),
        **_decoded_and_saved(["17", 0]),
    }
    return graph if image is None else {"1": node("LoadImage", image=image), **graph}


def custom_sampler(steps: int = 2) -> Graph:
    """Return a graph for Flux from its four files with SamplerCustomAdvanced."""
    return {
        **_loaders(),
        "5": node("EmptyLatentImage", width=64, height=64, batch_size=1),
        "6": node("CLIPTextEncode", text="a cat", clip=["4", 0]),
        "13": node(
            "SamplerCustomAdvanced",
            noise=["25", 0],
            guider=["22", 0],
            sampler=["16", 0],
            sigmas=["17", 0],
            latent_image=["5", 0],
        ),
        "16": node("KSamplerSelect", sampler_name="euler"),
        "17": node("BasicScheduler", scheduler="sgm_uniform", steps=steps, denoise=1, model=["10", 0]),
        "22": node("BasicGuider", model=["10", 0], conditioning=["6", 0]),
        "25": node("RandomNoise", noise_seed=7),
        **_decoded_and_saved(["13", 0]),
    }


def _loaders() -> Graph:
    return {
        "4": node(
            "DualCLIPLoader",
            clip_name1="clip_l.safetensors",
            clip_name2="t5xxl_fp8_e4m3fn.safetensors",
            type="flux",
        ),
        "10": node("UNETLoader", unet_name="flux1-dev-fp8.safetensors", weight_dtype="fp8_e4m3fn"),
        "12": node("VAELoader", vae_name="ae.safetensors"),
    }


def _decoded_and_saved(samples: list[object]) -> Graph:
    return {
        "8": node("VAEDecode", samples=samples, vae=["12", 0]),
        "9": node("SaveImage", filename_prefix="output", images=["8", 0]),
    }


def _sampler(model: object, positive: object, negative: object, latent: object, steps: int) -> dict[str, Any]:
    return node(
        "KSampler",
        seed=243057879077961,
        steps=steps,
        cfg=1,
        sampler_name="euler",
        scheduler="simple",
        denoise=1,
        model=model,
        positive=positive,
        negative=negative,
        latent_image=latent,
    )


def png(size: int = 16) -> bytes:
    """Return a small PNG."""
    encoded = io.BytesIO()
    Image.new("RGB", (size, size), "red").save(encoded, "PNG")
    return encoded.getvalue()


def as_base64(data: bytes) -> str:
    """Return bytes in base64."""
    return base64.b64encode(data).decode()
