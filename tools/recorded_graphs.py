"""The graphs that tools/record_comfyui.py sends to a real ComfyUI, and that tests send to the simulator."""

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


REFUSED: dict[str, Graph] = {
    "err_bad_values": changed(TXT2IMG, ks={"steps": 0, "sampler_name": "nope"}),
    "err_empty_graph": {},
    "err_load_missing_image": img2img("nope.png"),
    "err_missing_link": changed(TXT2IMG, ks={"positive": None}),
    "err_missing_model": changed(TXT2IMG, unet={"unet_name": "missing.safetensors"}),
    "err_no_outputs": changed(TXT2IMG, out=None),
    "err_unknown_node": {**TXT2IMG, "ks": node("NoSuchNode")},
}
"""Graphs that POST /prompt refuses, by the name of their recording."""
