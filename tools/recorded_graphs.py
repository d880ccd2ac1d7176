"""The graphs and node types that tools/record_comfyui.py records from a real ComfyUI, and that tests use."""

from __future__ import annotations

import copy
from typing import Any

Graph = dict[str, dict[str, Any]]


def node(class_type: str, **inputs: object) -> dict[str, Any]:
    """Return one node of a graph."""
    return {"class_type": class_type, "inputs": inputs}


TXT2IMG: Graph = {
    "unet": node("UNETLoader", unet_name="flux1-dev-fp8.safetensors", weight_dtype="default"),
    "clip": node(
        "DualCLIPLoader", clip_name1="clip_l.safetensors", clip_name2="t5xxl_fp8_e4m3fn.safetensors", type="flux"
    ),
    "vae": node("VAELoader", vae_name="ae.safetensors"),
    "pos": node("CLIPTextEncode", text="a pixel art knight", clip=["clip", 0]),
    "guid": node("FluxGuidance", conditioning=["pos", 0], guidance=3.5),
    "neg": node("ConditioningZeroOut", conditioning=["pos", 0]),
    "lat": node("EmptySD3LatentImage", width=64, height=64, batch_size=1),
    "ks": node(
        "KSampler",
        model=["unet", 0],
        seed=7,
        steps=3,
        cfg=1.0,
        sampler_name="euler",
        scheduler="simple",
        positive=["guid", 0],
        negative=["neg", 0],
        latent_image=["lat", 0],
        denoise=1.0,
    ),
    "dec": node("VAEDecode", samples=["ks", 0], vae=["vae", 0]),
    "out": node("SaveImage", images=["dec", 0], filename_prefix="rec"),
}


def changed(graph: Graph, **changes: dict[str, Any] | None) -> Graph:
    """Return a copy of a graph with `changes`: for each node id, the inputs to set in that node.

    None as the value of an input removes the input. None instead of the inputs of a node removes the node.
    """
    result = copy.deepcopy(graph)
    for node_id, inputs in changes.items():
        if inputs is None:
            del result[node_id]
            continue
        for name, value in inputs.items():
            result[node_id]["inputs"][name] = value
            if value is None:
                del result[node_id]["inputs"][name]
    return result


def img2img(image: str, **sampler_inputs: object) -> Graph:
    """Return TXT2IMG with a loaded image instead of the empty latent, and with `sampler_inputs` set in its KSampler."""
    start = {"img": node("LoadImage", image=image), "lat": node("VAEEncode", pixels=["img", 0], vae=["vae", 0])}
    return changed({**TXT2IMG, **start}, ks=sampler_inputs)


def to_websocket(graph: Graph) -> Graph:
    """Return a copy of a graph with SaveImageWebsocket instead of SaveImage."""
    return {**copy.deepcopy(graph), "out": node("SaveImageWebsocket", images=["dec", 0])}


RUNS: dict[str, Graph] = {
    "txt2img_cold": TXT2IMG,
    "txt2img_warm": changed(TXT2IMG, ks={"seed": 8}),
    "txt2img_cached_same_seed": changed(TXT2IMG, ks={"seed": 8}),
    "img2img": img2img("jobs/abc/in.png", steps=5, denoise=0.6),
    "txt2img_batch2": changed(TXT2IMG, ks={"seed": 9}, lat={"batch_size": 2}),
    "txt2img_ws_save": to_websocket(changed(TXT2IMG, ks={"seed": 10})),
    "err_corrupt_image": img2img("bad.png"),
    "interrupted": changed(TXT2IMG, ks={"seed": 11, "steps": 30}),
    "err_runtime_shape": changed(TXT2IMG, clip={"type": "sdxl"}, ks={"seed": 12}),
}
"""Graphs by the name of their recording, in the order in which they run. ComfyUI caches parts of earlier graphs."""

CYCLE = changed(TXT2IMG, neg={"conditioning": ["guid", 0]}, guid={"conditioning": ["neg", 0]})

REFUSED: dict[str, Graph] = {
    "err_bad_values": changed(TXT2IMG, ks={"steps": 0, "sampler_name": "nope"}),
    "err_cycle": CYCLE,
    "err_empty_graph": {},
    "err_load_missing_image": img2img("nope.png"),
    "err_missing_link": changed(TXT2IMG, ks={"positive": None}),
    "err_missing_model": changed(TXT2IMG, unet={"unet_name": "missing.safetensors"}),
    "err_no_outputs": changed(TXT2IMG, out=None),
    "err_unknown_node": {**TXT2IMG, "ks": node("NoSuchNode")},
    "err_unknown_node_with_title": {**TXT2IMG, "ks": {**node("NoSuchNode"), "_meta": {"title": "My Sampler"}}},
}
"""Graphs that POST /prompt refuses, by the name of their recording."""


def scaled(class_type: str, **inputs: object) -> Graph:
    """Return a graph that changes the size of an empty image with a node of `class_type`, and previews the result."""
    return {
        "empty": node("EmptyImage", width=64, height=64, batch_size=1, color=0),
        "size": node(class_type, **inputs),
        "out": node("PreviewImage", images=["size", 0]),
    }


_RESIZED: dict[str, Any] = {
    "input": ["empty", 0],
    "resize_type": "scale dimensions",
    "resize_type.width": 32,
    "resize_type.height": 32,
    "resize_type.crop": "center",
    "scale_method": "area",
}

RUNS_OF_NEWER_NODES: dict[str, Graph] = {
    "nested_inputs": scaled("ResizeImageMaskNode", **_RESIZED),
    "err_nested_inputs": changed(
        scaled("ResizeImageMaskNode", **_RESIZED),
        size={"resize_type.width": None, "resize_type.height": -1, "resize_type.crop": "nope"},
    ),
    "missing_resolution_steps": scaled(
        "ImageScaleToTotalPixels", image=["empty", 0], upscale_method="area", megapixels=0.01
    ),
}
"""Graphs by the name of their recording, with nodes that differ between ComfyUI 0.3.64 and 0.33.0.

`nested_inputs` needs a node type that 0.3.64 does not have. In `missing_resolution_steps` an input is missing that
0.33.0 requires and 0.3.64 does not have.
"""

_RECORDED_NODES = """
UNETLoader DualCLIPLoader VAELoader CLIPTextEncode CLIPTextEncodeFlux FluxGuidance ConditioningZeroOut
EmptySD3LatentImage EmptyLatentImage KSampler KSamplerSelect BasicScheduler BasicGuider SamplerCustomAdvanced
RandomNoise ModelSamplingFlux VAEDecode VAEEncode SaveImage SaveImageWebsocket PreviewImage LoadImage LoadImageMask
ImageScale ImageScaleToTotalPixels LoraLoader LoraLoaderModelOnly CheckpointLoaderSimple SetLatentNoiseMask
VAEEncodeForInpaint InpaintModelConditioning EmptyImage RepeatLatentBatch ImageBlend LatentUpscaleBy VAEDecodeTiled
ResizeImageMaskNode PrimitiveString PreviewAny VAESave VAEEncodeTiled ImageScaleBy DifferentialDiffusion GrowMask
MaskToImage ImageToMask MaskComposite ImageBlur ImageCompositeMasked
"""
RECORDED_NODES = tuple(_RECORDED_NODES.split())
"""The node types in object_info.json."""
