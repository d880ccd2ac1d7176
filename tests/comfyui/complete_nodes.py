"""Completes a graph whose nodes have only the inputs under test, according to ComfyUI's /object_info. Does no I/O.

Each node gets its other required inputs: defaults, first choices, and links to small source nodes. Each output of node
`x` gets a node that saves or previews it, so that the result contains what node `x` has read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

NodeTypes = Mapping[str, Mapping[str, Any]]
Graph = dict[str, dict[str, Any]]

SOURCES: Mapping[str, tuple[str, dict[str, Any]]] = {
    "IMAGE": ("EmptyImage", {"width": 16, "height": 16, "batch_size": 1, "color": 255}),
    "MASK": ("SolidMask", {"value": 1.0, "width": 16, "height": 16}),
    "LATENT": ("EmptyLatentImage", {"width": 64, "height": 64, "batch_size": 1}),
    "AUDIO": ("EmptyAudio", {"duration": 0.1, "sample_rate": 44100, "channels": 1}),
    "VIDEO": ("CreateVideo", {"fps": 6.0, "images": ["source-IMAGE", 0]}),
    "STRING": ("PrimitiveString", {"value": "text"}),
    "*": ("PrimitiveString", {"value": "text"}),
    "MODEL": ("UNETLoader", {"unet_name": "flux1-dev-fp8.safetensors", "weight_dtype": "default"}),
    "VAE": ("VAELoader", {"vae_name": "ae.safetensors"}),
    "CLIP": (
        "DualCLIPLoader",
        {"clip_name1": "clip_l.safetensors", "clip_name2": "t5xxl_fp8_e4m3fn.safetensors", "type": "flux"},
    ),
    "CONDITIONING": ("CLIPTextEncode", {"text": "x", "clip": ["source-CLIP", 0]}),
}
SAVE_NODES: Mapping[str, tuple[str, str]] = {
    "IMAGE": ("SaveImage", "images"),
    "LATENT": ("SaveLatent", "samples"),
    "AUDIO": ("SaveAudio", "audio"),
    "VIDEO": ("SaveVideo", "video"),
}
"""Maps an output type to the node class that saves it, and that node's input. PreviewAny shows the other types."""
SIZE_INPUTS = {"width", "height"}


def declared_inputs(
    node_type: Mapping[str, Any], group: str | None = None
) -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """Yield the name, type and options of a node class's inputs: all, or only the `required` or the `optional` ones."""
    inputs = node_type.get("input", {})
    for each in ("required", "optional") if group is None else (group,):
        for name, spec in (inputs.get(each) or {}).items():
            options = spec[1] if len(spec) > 1 and isinstance(spec[1], dict) else {}
            yield name, spec[0], options


def completed(graph: Graph, node_types: NodeTypes, *, with_sources: bool = True) -> Graph:
    """Return `graph` with the missing required inputs of its nodes.

    If `with_sources`, the source nodes of the new links and the save nodes of node `x` are added too.
    """
    done: Graph = {}
    for node_id, node in graph.items():
        inputs = dict(node["inputs"])
        for name, kind, options in declared_inputs(node_types.get(node["class_type"], {}), "required"):
            if name not in inputs and not any(each.startswith(f"{name}.") for each in inputs):
                inputs |= _filled(name, kind, options)
        done[node_id] = {**node, "inputs": inputs}
    if with_sources:
        done |= _save_nodes(graph.get("x"), node_types)
        _add_sources(done)
    return done


def _filled(name: str, kind: Any, options: Mapping[str, Any]) -> dict[str, Any]:  # noqa: ANN401 - any JSON value
    """Return values, by input name, for the input `name` and the inputs that depend on it."""
    match kind:
        case list() | "COMBO":
            choices = kind if isinstance(kind, list) else options.get("options", [])
            is_upload = any(option.endswith("_upload") for option in options)
            return {name: options.get("default", choices[0] if choices and not is_upload else "none")}
        case "INT" | "FLOAT":
            number = options.get("default", 0)
            small = min(number, 16) if name in SIZE_INPUTS else number
            return {name: max(options.get("min", small), small)}
        case "COMFY_DYNAMICCOMBO_V3":
            return _first_option(name, options["options"][0])
        case "COMFY_AUTOGROW_V3":
            template = options["template"]
            [(_, inner, _)] = declared_inputs(template, "required")
            first = template.get("names", [f"{template.get('prefix', '')}0"])[0]
            return _filled(f"{name}.{first}", inner, {}) if template.get("min") else {}
        case "STRING" if not options.get("forceInput"):
            return {name: options.get("default", "text")}
    source = next((each for each in str(kind).split(",") if each in SOURCES), None)
    return {name: [f"source-{source}", 0] if source else options.get("default", {})}


def _first_option(name: str, option: Mapping[str, Any]) -> dict[str, Any]:
    inputs = {name: option["key"]}
    for inner, kind, options in declared_inputs({"input": option["inputs"]}, "required"):
        inputs |= _filled(f"{name}.{inner}", kind, options)
    return inputs


def _save_nodes(node: Mapping[str, Any] | None, node_types: NodeTypes) -> Graph:
    save_nodes: Graph = {}
    outputs = node_types.get(node["class_type"], {}).get("output", []) if node else []
    for slot, kind in enumerate(outputs):
        link: Any = ["x", slot]
        if kind == "MASK" and "MaskToImage" in node_types:
            save_nodes[f"mask-{slot}"] = {"class_type": "MaskToImage", "inputs": {"mask": link}}
            link, kind = [f"mask-{slot}", 0], "IMAGE"  # noqa: PLW2901 - the mask was converted to an image
        class_type, name = SAVE_NODES.get(kind, ("PreviewAny", "source"))
        if class_type not in node_types:
            continue
        if class_type == "SaveVideo":
            inputs = {name: link, "filename_prefix": "kept", "format": "auto", "codec": "auto"}
        else:
            inputs = {name: link, "filename_prefix": "kept"} if class_type != "PreviewAny" else {name: link}
        save_nodes[f"keep-{slot}"] = {"class_type": class_type, "inputs": inputs}
    if not any(save_node["class_type"].startswith("Save") for save_node in save_nodes.values()):
        save_nodes["keep"] = {
            "class_type": "SaveImage",
            "inputs": {"images": ["source-IMAGE", 0], "filename_prefix": "kept"},
        }
    return save_nodes


def _add_sources(graph: Graph) -> None:
    """Add the source nodes that links of `graph` name, and their own sources."""
    for node in list(graph.values()):
        for value in node["inputs"].values():
            match value:
                case [str(source), 0] if source.startswith("source-") and source not in graph:
                    class_type, inputs = SOURCES[source.removeprefix("source-")]
                    graph[source] = {"class_type": class_type, "inputs": dict(inputs)}
                    _add_sources(graph)
