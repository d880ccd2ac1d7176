"""A request of the wire (RunPod's `input`), from untrusted JSON to a value that can be rendered. No I/O.

`read_request` finds every fault of a request at once, before anything is sent anywhere.
"""

from __future__ import annotations

import base64
import binascii
import copy
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from comfy_client.contract import ENVELOPE, Fault, JsonObject, is_asset_id
from comfy_client.errors import invalid_input
from comfy_client.images import Picture, check_picture, rounded_size
from comfy_client.validation import filled, nearest, path_of, plain, schema_faults
from comfy_client.workflows import (
    Graph,
    Target,
    Workflow,
    find_workflow,
    graph_faults,
    has_nodes,
    override,
    override_faults,
    render,
)

MAX_FAULTS = 50
"""Faults that one report lists; a graph can have thousands."""

_GRAPH_KEYS = {name: ENVELOPE[name] for name in ENVELOPE if name != "workflow"}
_TEMPLATE_KEYS = {name: ENVELOPE[name] for name in ENVELOPE if name != "images"}


class CheckPicture(Protocol):
    """images.check_picture, or its namesake in picture_process."""

    def __call__(self, data: bytes, path: str, *, flatten: bool) -> Picture:
        """Return the picture in `data`, fit for a LoadImage node. Raises JobError (invalid_image)."""


@dataclass(frozen=True)
class Upload:
    """A picture of the request, and the inputs that are to name it once ComfyUI has it."""

    picture: Picture
    targets: tuple[Target, ...]


@dataclass(frozen=True)
class Rendered:
    """What ComfyUI is to run: one graph a prompt, the pictures they load, and what the result says of it.

    `inputs` are the template's inputs as used, without pictures (for a graph of the caller's own: its overrides);
    `seeds` has one entry a graph, None where the graph is the caller's own.
    """

    graphs: tuple[Graph, ...]
    seeds: tuple[int | None, ...]
    uploads: tuple[Upload, ...]
    workflow: str
    version: str
    inputs: JsonObject
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Source:
    """Where a picture of the request comes from: bytes, or an https address still to be fetched. `path` names it."""

    path: str
    content: bytes | str

    def checked(self, check: CheckPicture, *, flatten: bool) -> Picture:
        """Return the picture once it has been fetched. Raises JobError (invalid_image)."""
        if isinstance(self.content, str):
            raise TypeError(f"{self.path} was not fetched")
        return check(self.content, self.path, flatten=flatten)


@dataclass(frozen=True)
class Request:
    """A valid request. `template` is None where the caller sent a graph of their own."""

    template: Workflow | None
    graph: Graph
    inputs: JsonObject
    pictures: Mapping[str, Source]
    overrides: JsonObject
    output_format: str
    output_quality: int
    metadata: bool
    delivery: str
    timeout_s: float | None

    def with_fetched(self, fetch: Callable[[Sequence[tuple[str, str]]], Sequence[bytes]]) -> Request:
        """Return the request with every picture's bytes; `fetch` takes each address with the path that named it."""
        named = {name: source for name, source in self.pictures.items() if isinstance(source.content, str)}
        if not named:
            return self
        contents = fetch([(str(source.content), source.path) for source in named.values()])
        fetched = {
            name: replace(source, content=content)
            for (name, source), content in zip(named.items(), contents, strict=True)
        }
        return replace(self, pictures={**self.pictures, **fetched})

    def render(self, random_seed: Callable[[], int], check: CheckPicture = check_picture) -> Rendered:
        """Return what ComfyUI is to run. Its pictures have been fetched; `check` decodes them.

        Raises JobError: invalid_image where a picture cannot be taken, invalid_input where an override names an item
        that a list of the inputs does not have.
        """
        if self.template is None:
            return self._render_graph(check)
        return self._render_template(self.template, random_seed, check)

    def _render_template(self, template: Workflow, random_seed: Callable[[], int], check: CheckPicture) -> Rendered:
        uploads = [
            Upload(source.checked(check, flatten=True), template.targets(name))
            for name, source in self.pictures.items()
        ]
        inputs = dict(self.inputs)
        if uploads:
            inputs |= _size(inputs, uploads[0].picture, template)
        if "seed" in template.inputs:
            inputs.setdefault("seed", random_seed())
        graphs = render(template, inputs)
        if faults := override_faults(graphs[0], self.overrides):
            raise invalid_input(faults)
        for graph in graphs:
            override(graph, self.overrides)
        seed_targets = template.targets("seed") if "seed" in template.inputs else ()
        return Rendered(
            graphs=tuple(graphs),
            seeds=tuple(seed_targets[0].get(graph) if seed_targets else None for graph in graphs),
            uploads=tuple(uploads),
            workflow=template.name,
            version=template.version,
            inputs={**inputs, **({"overrides": self.overrides} if self.overrides else {})},
            warnings=(),
        )

    def _render_graph(self, check: CheckPicture) -> Rendered:
        graph = copy.deepcopy(self.graph)
        override(graph, self.overrides)
        uploads, warnings = [], []
        for name, source in self.pictures.items():
            targets = tuple(
                Target(node_id, key)
                for node_id, node in graph.items()
                for key, value in node["inputs"].items()
                if value == name
            )
            uploads.append(Upload(source.checked(check, flatten=False), targets))
            if not targets:
                warnings.append(f"{source.path}: no node of the graph loads {name!r}")
        inputs = {"overrides": self.overrides} if self.overrides else {}
        return Rendered((graph,), (None,), tuple(uploads), "custom", "custom", inputs, tuple(warnings))


def _size(inputs: JsonObject, picture: Picture, template: Workflow) -> JsonObject:
    """Return the width and height that the request leaves open, in the proportions of its picture."""
    if not {"width", "height"} <= template.inputs.keys():
        return {}
    match inputs:
        case {"width": _, "height": _}:
            return {}
        case {"width": int(width)}:
            return {"height": _side(picture.height * width / picture.width)}
        case {"height": int(height)}:
            return {"width": _side(picture.width * height / picture.height)}
    width, height = rounded_size(picture.width, picture.height)
    return {"width": width, "height": height}


def _side(pixels: float) -> int:
    return min(2048, max(64, round(pixels / 16) * 16))


def read_request(raw: object, workflows: Mapping[str, Workflow]) -> Request:
    """Return the valid request in `raw`, the `input` of a job as parsed from JSON.

    A text of JSON is taken as well, since worker-comfyui takes it.

    Raises JobError: invalid_input with all faults, or unknown_workflow.
    """
    if isinstance(raw, str):
        raw = _parsed(raw)
    value, faults = plain(raw)
    if not isinstance(value, dict):
        raise invalid_input([Fault("", 'must be a JSON object, like {"prompt": "a pixel art knight"}')])
    default = "img2img" if "image" in value else "txt2img"
    named = value.get("workflow", default)
    if isinstance(named, dict) or (isinstance(named, str) and named.lstrip()[:1] == "{"):
        return _read_graph(value, faults)
    # What is neither text nor an object is a fault by the template's schema, and need not hide the others.
    return _read_template(value, find_workflow(named if isinstance(named, str) else default, workflows), faults)


def _parsed(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _read_template(value: JsonObject, template: Workflow, faults: list[Fault]) -> Request:
    schema = {
        **template.schema,
        "properties": {"workflow": ENVELOPE["workflow"], **_TEMPLATE_KEYS, **template.inputs},
        "additionalProperties": False,
    }
    faults = _merged(faults, schema_faults(value, schema))
    if "images" in value:
        faults = _merged([Fault("images", "goes with a graph of your own; a template takes `image`")], faults)
    overrides = value.get("overrides", {})
    if isinstance(overrides, dict):
        faults = _merged(faults, override_faults(template.graph, overrides))
    pictures, faults = _pictures({name: (name, value.get(name)) for name in template.pictures}, faults)
    if faults:
        raise invalid_input(faults[:MAX_FAULTS])
    inputs = filled(value, {"properties": template.inputs})
    for name in template.pictures:
        inputs.pop(name, None)
    return _request(template, template.graph, inputs, pictures, value)


def _read_graph(value: JsonObject, faults: list[Fault]) -> Request:
    graph = value["workflow"]
    schema = {"properties": {"workflow": {}, **_GRAPH_KEYS}}
    unknown = [
        Fault(
            path_of([name]), f"goes with a template; set a graph's values with `overrides`{nearest(name, _GRAPH_KEYS)}"
        )
        for name in sorted(value.keys() - {"workflow"} - _GRAPH_KEYS.keys())
    ]
    faults = _merged(faults, [*graph_faults(graph), *schema_faults(value, schema), *unknown])
    overrides = value.get("overrides")
    if has_nodes(graph) and isinstance(overrides, dict):
        faults = _merged(faults, override_faults(graph, overrides))
    pictures, faults = _pictures(_named_images(value.get("images")), faults)
    if faults:
        raise invalid_input(faults[:MAX_FAULTS])
    return _request(None, graph, {}, pictures, value)


def _named_images(images: object) -> dict[str, tuple[str, Any]]:
    """Return the path and text of each of a graph's pictures by name; the last one counts where a name stands twice."""
    return {
        image["name"]: (f"images[{number}].image", image.get("image"))
        for number, image in enumerate(images if isinstance(images, list) else [])
        if isinstance(image, dict) and isinstance(image.get("name"), str)
    }


def _request(
    template: Workflow | None, graph: Graph, inputs: JsonObject, pictures: Mapping[str, Source], value: JsonObject
) -> Request:
    envelope = filled(value, {"properties": ENVELOPE})
    return Request(
        template=template,
        graph=graph,
        inputs=inputs,
        pictures=pictures,
        overrides=envelope.get("overrides", {}),
        output_format=envelope["output_format"],
        output_quality=envelope["output_quality"],
        metadata=envelope["metadata"],
        delivery=envelope["delivery"],
        timeout_s=envelope.get("timeout_s"),
    )


def _merged(first: list[Fault], second: list[Fault]) -> list[Fault]:
    """Return both, without those of `second` at a path that `first` has."""
    paths = {fault.path for fault in first}
    return [*first, *(fault for fault in second if fault.path not in paths)]


def _pictures(sources: Mapping[str, tuple[str, Any]], faults: list[Fault]) -> tuple[dict[str, Source], list[Fault]]:
    """Return the source of each picture by name, and the faults with those of the pictures that are none."""
    pictures, found = {}, []
    for name, (path, text) in sources.items():
        if not isinstance(text, str) or not text:
            continue
        try:
            pictures[name] = Source(path, text if re.match("https://", text, re.IGNORECASE) else decode_base64(text))
        except ValueError as error:
            found.append(Fault(path, str(error)))
    return pictures, _merged(faults, found)


def decode_base64(text: str) -> bytes:
    """Return the bytes of base64 or of a data URI. Raises ValueError with a sentence where it is neither."""
    if is_asset_id(text):
        raise ValueError(
            "is an asset's id, which only IMAGE_GENERATION_PROVIDER=scenario can read; send the image itself"
        )
    content = text
    if text.startswith("data:"):
        head, comma, content = text.partition(",")
        if not comma or not head.endswith(";base64"):
            raise ValueError("is a data URI that is not base64; it begins data:image/png;base64,")
    elif re.match(r"[a-z][a-z0-9+.-]*://", text[:32], re.IGNORECASE):
        raise ValueError("is an address of another kind than https; send an https address, base64 or a data URI")
    try:
        return base64.b64decode("".join(content.split()), validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("is not base64") from None
