"""Finds the inputs of graphs that name a model file by its address, and the model folder that each input reads. Pure.

A node does not declare the folder that an input reads: /object_info only lists the folder's files as the input's
choices. The folder of the core nodes' inputs is known. For other nodes it is the folder whose files are all among the
choices, if that is one folder only.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from comfy_core.comfyui.file_inputs import FileUse, declared_input, file_use, linked_literal
from comfy_core.contract import Fault, JsonObject
from comfy_core.graphs import Graph
from comfy_core.request.model_address import ModelAddress, is_address, parse_address
from comfy_core.targets import Target
from comfy_core.validation import path_of

FETCHED_FOLDER = "by-address"
"""Subfolder of a model folder with the files that jobs named by address. A file's name is its sha256."""
FETCHED_PATTERN = re.compile(rf"{FETCHED_FOLDER}[/\\]+[0-9a-f]{{64}}", re.IGNORECASE)
"""Matches a file in FETCHED_FOLDER. Such a file may be private, so a job only gets it by its address."""
_FOLDERS: Mapping[str, str] = {
    "ckpt_name": "checkpoints",
    "unet_name": "diffusion_models",
    "clip_name": "text_encoders",
    "clip_name1": "text_encoders",
    "clip_name2": "text_encoders",
    "clip_name3": "text_encoders",
    "clip_name4": "text_encoders",
    "CLIPVisionLoader.clip_name": "clip_vision",
    "vae_name": "vae",
    "lora_name": "loras",
    "control_net_name": "controlnet",
    "style_model_name": "style_models",
    "gligen_name": "gligen",
    "hypernetwork_name": "hypernetworks",
    "photomaker_model_name": "photomaker",
    "audio_encoder_name": "audio_encoders",
    "bg_removal_name": "background_removal",
    "ModelPatchLoader.name": "model_patches",
    "UpscaleModelLoader.model_name": "upscale_models",
    "LatentUpscaleModelLoader.model_name": "latent_upscale_models",
    "FrameInterpolationModelLoader.model_name": "frame_interpolation",
    "LoadDA3Model.model_name": "geometry_estimation",
    "LoadMoGeModel.model_name": "geometry_estimation",
    "OpticalFlowLoader.model_name": "optical_flow",
    "LoadMediaPipeFaceLandmarker.model_name": "detection",
}
"""The folder below `models` that an input of a loader reads, by input name, or by class and input name."""


@dataclass(frozen=True)
class ModelUse:
    """An input of graph number `graph` that names the file at `address`.

    Attributes:
        graph: number of the graph, from 0.
        target: the input.
        address: the file.
        folder: the folder below `models` that the input reads, or an empty string if it is not known.
    """

    graph: int
    target: Target
    address: ModelAddress
    folder: str


@dataclass(frozen=True)
class ModelFolders:
    """The folders of one ComfyUI, for inputs of nodes whose folder is not known.

    Attributes:
        node_types: the /object_info entries of the graphs' node types.
        files: returns the files of each model folder, by folder.
    """

    node_types: Mapping[str, JsonObject]
    files: Callable[[], Mapping[str, Sequence[str]]]


def model_folder(class_type: str, input_name: str) -> str | None:
    """Return the folder below `models` that an input of a core node reads, or None if it is not known."""
    return _FOLDERS.get(f"{class_type}.{input_name}", _FOLDERS.get(input_name))


def model_uses(graphs: Sequence[Graph], comfyui: ModelFolders | None = None) -> tuple[list[ModelUse], list[Fault]]:
    """Return the inputs of `graphs` that name a model file by address, and the faults of invalid addresses.

    Without `comfyui`, only inputs whose folder is known are found. With it, also the others that have a list of files
    as choices. Other inputs may need a URL, so they are left alone.
    """
    uses: list[ModelUse] = []
    faults: dict[str, Fault] = {}
    for number, graph in enumerate(graphs):
        for target, text in _texts(graph):
            folder = _folder_of(graph[target.node_id]["class_type"], target.input, comfyui)
            if folder is None:
                continue
            try:
                uses.append(ModelUse(number, target, parse_address(text), folder))
            except ValueError as error:
                path = path_of(["workflow", target.node_id, "inputs", target.input])
                faults.setdefault(path, Fault(path, str(error)))
    return uses, list(faults.values())


def address_faults(graphs: Sequence[Graph], why: str) -> list[Fault]:
    """Return a fault with the reason `why` for each model by address, for an engine that downloads no models."""
    uses, faults = model_uses(graphs)
    paths = dict.fromkeys(path_of(["workflow", use.target.node_id, "inputs", use.target.input]) for use in uses)
    return [*faults, *(Fault(path, why) for path in paths)]


def has_addresses(graphs: Sequence[Graph]) -> bool:
    """Return whether any input of `graphs` begins like an address. It may be a URL for another purpose."""
    return any(True for graph in graphs for _ in _texts(graph))


def fetched_faults(graphs: Sequence[Graph]) -> list[Fault]:
    """Return a fault for each input of `graphs` that names a fetched file by its name instead of its address."""
    paths = {
        path_of(["workflow", node_id, "inputs", name])
        for graph in graphs
        for node_id, node in graph.items()
        for name, value in node["inputs"].items()
        if FETCHED_PATTERN.search(value if isinstance(value, str) else json.dumps(value))
    }
    problem = "names a file that another request may have fetched; use the file's address"
    return [Fault(path, problem) for path in sorted(paths)]


def _texts(graph: Graph) -> Iterator[tuple[Target, str]]:
    """Yield each input whose value, or the text node that it links to, begins like an address."""
    for node_id, node in graph.items():
        for name, value in node["inputs"].items():
            text = linked_literal(graph, value)
            if isinstance(text, str) and is_address(text):
                yield Target(node_id, name), text


def _folder_of(class_type: str, input_name: str, comfyui: ModelFolders | None) -> str | None:
    """Return the folder that an input reads, an empty string if it is not known, or None for another kind of input."""
    known = model_folder(class_type, input_name)
    if comfyui is None:
        return known
    declared = declared_input(comfyui.node_types.get(class_type), input_name)
    choices = declared_choices(declared)
    if choices is None or file_use(class_type, input_name, declared) in {FileUse.LOADS, FileUse.LOADS_FOLDER}:
        return None
    if known:
        return known
    found = [folder for folder, files in comfyui.files().items() if files and set(files) <= set(choices)]
    return found[0] if len(found) == 1 else ""


def declared_choices(declared: object) -> tuple[str, ...] | None:
    """Return the choices in an input's declaration in /object_info, or None for an input without choices."""
    match declared:
        case [[*names], *_] | ["COMBO", {"options": [*names]}, *_]:
            return tuple(map(str, names))
    return None
