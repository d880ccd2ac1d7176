"""Parses and validates a job's `input` (untrusted JSON) into a Request that can be rendered. No I/O except randomness.

`read_request` reports all faults of a request at once. Unambiguous variants are accepted: null for an absent key,
numbers as text, and everything that worker-comfyui accepts next to a graph.
"""

from __future__ import annotations

import copy
import mimetypes
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from comfy_core.contract import ENVELOPE, MAX_FAULTS, MAX_RANDOM_SEED, ErrorReport, Fault, JsonObject
from comfy_core.error_codes import ErrorCode
from comfy_core.errors import JobError, invalid_input
from comfy_core.graphs import Graph, graph_faults, has_nodes, left_out, with_links, with_random_seeds
from comfy_core.images.codec import MAX_BYTES, Picture, check_picture, invalid_image, rounded_size
from comfy_core.request.encoded import bare_address, decode_base64, is_https
from comfy_core.request.foreign_keys import advice
from comfy_core.request.graph_files import ImageSource, beyond_limits, graph_files, is_playlist, named
from comfy_core.request.prompt_syntax import graph_warnings, syntax_warnings
from comfy_core.request.spellings import as_number, respelled
from comfy_core.request.template_overrides import read_overrides
from comfy_core.request.wrappers import beside_graph, parsed, unwrapped, with_parsed_graph
from comfy_core.targets import Target, overridden
from comfy_core.validation import Suggestions, filled, path_of, plain, schema_faults
from comfy_core.workflows import Workflow, find_workflow, render

_GRAPH_KEYS = {name: ENVELOPE[name] for name in ENVELOPE if name != "workflow"}
_TEMPLATE_KEYS = {name: ENVELOPE[name] for name in ENVELOPE if name != "images"}
_MAX_WARNINGS = 20


class CheckPicture(Protocol):
    """The signature of `check_picture` in images.codec and images.child_process."""

    def __call__(self, data: bytes, path: str, *, flatten: bool) -> Picture:
        """Return the image in `data` in a form that LoadImage accepts. Raises JobError (invalid_image)."""


@dataclass(frozen=True)
class Upload:
    """A file of the request, and the inputs that will name it after the upload.

    A file that is not an image has the size 0 x 0 and `own_extension`.
    """

    picture: Picture
    targets: tuple[Target, ...]
    own_extension: str = ""

    @property
    def extension(self) -> str:
        """The file extension, without the dot."""
        return self.own_extension or self.picture.mime_type.rpartition("/")[2]


@dataclass(frozen=True)
class Rendered:
    """A rendered request: one graph for each prompt, the files to upload, and values for the result.

    `inputs` are the template's inputs as used, without images (for a caller's graph: its overrides). `seeds` has one
    entry for each graph; it is None for a caller's graph. `extra_data` may contain an API key.
    """

    graphs: tuple[Graph, ...]
    seeds: tuple[int | None, ...]
    uploads: tuple[Upload, ...]
    workflow: str
    version: str
    inputs: JsonObject
    warnings: tuple[str, ...]
    extra_data: JsonObject = field(default_factory=dict, repr=False)


def draw_seed() -> int:
    """Return a random seed."""
    return secrets.randbelow(MAX_RANDOM_SEED + 1)


@dataclass(frozen=True)
class Request:
    """A valid request. If the caller sent a graph, `template` is None and `graph` already has the overrides applied.

    For a template, `overrides` are not applied yet; for a graph, they are kept for the result. `has_random_seed` is
    whether an override requested a random seed.
    """

    template: Workflow | None
    graph: Graph
    inputs: JsonObject
    pictures: Mapping[str, ImageSource]
    overrides: JsonObject
    output_format: str
    output_quality: int
    metadata: bool
    delivery: str
    timeout_s: float | None
    warnings: tuple[str, ...] = ()
    has_random_seed: bool = False
    extra_data: JsonObject = field(default_factory=dict, repr=False)

    def with_fetched(self, fetch: Callable[[Sequence[tuple[str, str]]], Sequence[bytes]]) -> Request:
        """Return the request with all files downloaded. `fetch` takes pairs of URL and path in the request.

        Raises JobError (invalid_input) if the files exceed MAX_TOTAL_BYTES.
        """
        wanted = {name: source for name, source in self.pictures.items() if isinstance(source.content, str)}
        if not wanted:
            return self
        contents = fetch([(str(source.content), source.path) for source in wanted.values()])
        fetched = {
            name: replace(source, content=content)
            for (name, source), content in zip(wanted.items(), contents, strict=True)
        }
        pictures = {**self.pictures, **fetched}
        if faults := beyond_limits(pictures):
            raise invalid_input(faults)
        return replace(self, pictures=pictures)

    def render(self, random_seed: Callable[[], int] = draw_seed, check: CheckPicture = check_picture) -> Rendered:
        """Return the graphs and uploads for ComfyUI. All images must be downloaded; `check` decodes them.

        Raises JobError: invalid_image if an image is not accepted, invalid_input if an override names a list item that
        does not exist.
        """
        if self.template is None:
            return self._render_graph(random_seed, check)
        return self._render_template(self.template, random_seed, check)

    def _render_template(self, template: Workflow, random_seed: Callable[[], int], check: CheckPicture) -> Rendered:
        uploads = [
            _upload(source, template.targets(name), check, flatten=True) for name, source in self.pictures.items()
        ]
        inputs = dict(self.inputs)
        if uploads:
            inputs |= _size(inputs, uploads[0].picture, template)
        if "seed" in template.inputs and ("seed" not in inputs or self.has_random_seed):
            inputs["seed"] = min(random_seed(), MAX_RANDOM_SEED + 1 - inputs.get("num_images", 1))
        graphs = render(template, inputs)
        for graph in graphs:
            _, faults, _ = overridden(graph, self.overrides, may_add=False)
            if faults := faults or graph_faults(graph):
                raise invalid_input(faults)
        seed_targets = template.targets("seed") if "seed" in template.inputs else ()
        return Rendered(
            graphs=tuple(graphs),
            seeds=tuple(seed_targets[0].get(graph) if seed_targets else None for graph in graphs),
            uploads=tuple(uploads),
            workflow=template.name,
            version=template.version,
            inputs={**inputs, **({"overrides": self.overrides} if self.overrides else {})},
            warnings=self.warnings,
        )

    def _render_graph(self, random_seed: Callable[[], int], check: CheckPicture) -> Rendered:
        graph = copy.deepcopy(self.graph)
        drawn = with_random_seeds(graph, random_seed)
        return Rendered(
            graphs=(graph,),
            seeds=(None,),
            uploads=tuple(_upload(source, source.targets, check, flatten=False) for source in self.pictures.values()),
            workflow="custom",
            version="custom",
            inputs={"overrides": self.overrides} if self.overrides else {},
            warnings=(*self.warnings, *drawn),
            extra_data=self.extra_data,
        )


def _upload(source: ImageSource, targets: tuple[Target, ...], check: CheckPicture, *, flatten: bool) -> Upload:
    if isinstance(source.content, str):
        raise TypeError(f"{source.path} was not fetched")
    if source.is_picture:
        return Upload(check(source.content, source.path, flatten=flatten), targets)
    if len(source.content) > MAX_BYTES:
        raise invalid_image(source.path, f"has {len(source.content):,} bytes; at most {MAX_BYTES:,} are allowed")
    if is_playlist(source.content):
        message = f"{source.path} is a playlist; send the video or audio file itself."
        raise JobError(ErrorReport(ErrorCode.INVALID_IMAGE, message, {"path": source.path}))
    mime_type = mimetypes.guess_type(f"file.{source.extension}")[0] or "application/octet-stream"
    return Upload(Picture(source.content, 0, 0, mime_type), targets, source.extension)


def _size(inputs: JsonObject, picture: Picture, template: Workflow) -> JsonObject:
    """Return the width and height if the request does not set them, with the aspect ratio of its image."""
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
    """Return the valid request in `raw`, the parsed `input` of a job.

    JSON text is also accepted, as by worker-comfyui. A graph is also found in other keys where ComfyUI clients put it;
    this adds a warning.

    Raises JobError: invalid_input with all faults, or unknown_workflow.
    """
    if isinstance(raw, str):
        raw = parsed(raw)
    value, faults = plain(with_parsed_graph(raw))
    if not isinstance(value, dict):
        raise invalid_input([Fault("", 'must be a JSON object, like {"prompt": "a pixel art knight"}')])
    value, warnings = unwrapped({name: item for name, item in value.items() if item is not None})
    has_image = "image" in value or any(fault.path == "image" for fault in faults)
    default = "img2img" if has_image else "txt2img"
    named_workflow = value.get("workflow", default)
    if isinstance(named_workflow, dict) or (isinstance(named_workflow, str) and named_workflow.lstrip()[:1] == "{"):
        return _read_graph(value, faults, warnings)
    # Any other type is a fault by the template's schema, and is reported there with all other faults.
    name = named_workflow if isinstance(named_workflow, str) else default
    return _read_template(value, find_workflow(name, workflows), faults, warnings)


def _read_template(value: JsonObject, template: Workflow, faults: list[Fault], warnings: list[str]) -> Request:
    rules = {"workflow": ENVELOPE["workflow"], **_TEMPLATE_KEYS, **template.inputs}
    if "images" in value:
        faults = _merged([Fault("images", "is only valid with a graph; a template takes `image`")], faults)
    faults = _merged(faults, _unknown(value.keys() - rules.keys() - {"images"}, rules))
    value = respelled(value, rules)
    if "seed" in template.inputs and as_number(value.get("seed")) == -1:
        del value["seed"]
    faults = _merged(faults, _schema_faults(value, {**template.schema, "properties": rules}))
    faults, pictures = _pictures(template, value, faults)
    overrides, has_random_seed, found = read_overrides(
        template, _without_nulls(value.get("overrides")), value.get("num_images", 1)
    )
    faults = _merged(faults, found)
    if faults:
        raise invalid_input(faults[:MAX_FAULTS])
    inputs = filled(value, {"properties": template.inputs})
    for name in template.pictures:
        inputs.pop(name, None)
    for name, text in inputs.items():
        if "prompt" in name and isinstance(text, str):
            warnings += syntax_warnings(name, text)
    request = _request(template, template.graph, inputs, pictures, {**value, "overrides": overrides})
    return replace(request, warnings=tuple(warnings), has_random_seed=has_random_seed)


def _unknown(names: Iterable[str], rules: Mapping[str, JsonObject]) -> list[Fault]:
    suggestions = Suggestions()
    return [
        Fault(path_of([name]), advice(name, rules) or f"is not known{suggestions.nearest(name, rules)}")
        for name in sorted(names)[:MAX_FAULTS]
    ]


def _pictures(template: Workflow, value: JsonObject, faults: list[Fault]) -> tuple[list[Fault], dict[str, ImageSource]]:
    """Return `faults` extended by those of the template's images, and the source of each image by name."""
    sources, found = {}, []
    for name in template.pictures:
        text = value.get(name)
        if isinstance(text, str) and text:
            try:
                sources[name] = ImageSource(name, bare_address(text) if is_https(text) else decode_base64(text))
            except ValueError as error:
                found.append(Fault(name, str(error)))
    return _merged(faults, found), sources


def _read_graph(value: JsonObject, faults: list[Fault], warnings: list[str]) -> Request:
    graph = value["workflow"]
    value, extra_data, notes_of_keys = beside_graph(value)
    value = respelled(value, _GRAPH_KEYS)
    faults = _merged(faults, _schema_faults(value, {"properties": {"workflow": {}, **_GRAPH_KEYS}}))
    pictures: dict[str, ImageSource] = {}
    overrides = _without_nulls(value.get("overrides"))
    if graph and has_nodes(graph):
        written, unreached, notes = overridden(graph, overrides, may_add=True)
        with_links(graph)
        broken, notes_of_nodes = left_out(graph)
        pictures, lost, notes_of_files = graph_files(graph, named(value.get("images")), written)
        faults = _merged(faults, [*unreached, *broken, *lost])
        warnings += [*notes, *notes_of_nodes, *notes_of_files, *graph_warnings(graph)]
        overrides = {
            place: target.get(graph) if path_of(["overrides", place]) in pictures else overrides[place]
            for place, target in written.items()
            if target.node_id in graph
        }
    else:
        faults = _merged(faults, graph_faults(graph))
    if faults:
        raise invalid_input(faults[:MAX_FAULTS])
    warnings += notes_of_keys
    if len(warnings) > _MAX_WARNINGS:
        warnings = [*warnings[:_MAX_WARNINGS], f"and {len(warnings) - _MAX_WARNINGS:,} more warnings"]
    request = _request(None, graph, {}, pictures, {**value, "overrides": overrides})
    return replace(request, warnings=tuple(warnings), extra_data=extra_data)


def _without_nulls(overrides: object) -> JsonObject:
    """Return overrides without nulls; empty if `overrides` is not an object."""
    given = overrides.items() if isinstance(overrides, dict) else ()
    return {place: value for place, value in given if value is not None}


def _schema_faults(value: JsonObject, schema: JsonObject) -> list[Fault]:
    """Return the faults of `value`. Null list items count as absent. Items of a list that is too long are skipped."""
    faults: list[Fault] = []
    nulls: set[str] = set()
    for name, items in value.items():
        limit = schema["properties"].get(name, {}).get("maxItems")
        if isinstance(items, list) and limit is not None and len(items) > limit:
            faults.append(Fault(path_of([name]), f"has {len(items):,} items; at most {limit:,} are allowed"))
            value = {**value, name: []}
        elif isinstance(items, list):
            nulls |= {path_of([name, number]) for number, item in enumerate(items) if item is None}
    return [*faults, *(fault for fault in schema_faults(value, schema) if fault.path not in nulls)]


def _request(
    template: Workflow | None, graph: Graph, inputs: JsonObject, pictures: Mapping[str, ImageSource], value: JsonObject
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
    """Return both lists, without faults in `second` whose path is already in `first`."""
    paths = {fault.path for fault in first}
    return [*first, *(fault for fault in second if fault.path not in paths)]
