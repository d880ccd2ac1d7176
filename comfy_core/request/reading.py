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
from comfy_core.graphs import (
    Graph,
    graph_faults,
    has_only_nodes,
    normalise_links,
    remove_unneeded,
    replace_random_seeds,
)
from comfy_core.images.codec import MAX_BYTES, EncodedImage, check_image, invalid_image, rounded_size
from comfy_core.request.encoded import bare_url, decode_base64, is_https
from comfy_core.request.foreign_keys import advice
from comfy_core.request.graph_files import FileSource, check_limits, graph_files, is_playlist
from comfy_core.request.prompt_syntax import graph_warnings, syntax_warnings
from comfy_core.request.spellings import as_number, respelled
from comfy_core.request.template_overrides import read_overrides
from comfy_core.request.wrappers import parsed, split_graph_request, unwrapped, with_parsed_graph
from comfy_core.targets import Target, override
from comfy_core.validation import Faults, Suggestions, filled, path_of, plain, schema_faults, shown
from comfy_core.workflows import Workflow, find_workflow, render

_GRAPH_KEYS = {name: ENVELOPE[name] for name in ENVELOPE if name != "workflow"}
_TEMPLATE_KEYS = {name: ENVELOPE[name] for name in ENVELOPE if name != "images"}
_MAX_WARNINGS = 20


def read_request(raw: object, workflows: Mapping[str, Workflow]) -> Request:
    """Return the valid request in `raw`, the parsed `input` of a job.

    JSON text is also accepted, as by worker-comfyui. A graph under another key, as some ComfyUI clients send it, is
    read with a warning.

    Raises JobError: invalid_input with all faults, or unknown_workflow.
    """
    faults = Faults()
    value = plain(with_parsed_graph(parsed(raw) if isinstance(raw, str) else raw), faults)
    if not isinstance(value, dict):
        raise invalid_input([Fault("", 'must be a JSON object, like {"prompt": "a pixel art knight"}')])
    value = unwrapped({name: item for name, item in value.items() if item is not None}, faults.warnings)
    default = "img2img" if "image" in value or "image" in faults else "txt2img"
    workflow = value.get("workflow", default)
    if isinstance(workflow, dict) or (isinstance(workflow, str) and workflow.lstrip()[:1] == "{"):
        return _read_graph(value, faults)
    # A `workflow` of any other type breaks the template's schema, and is reported with the other faults.
    template = find_workflow(workflow if isinstance(workflow, str) else default, workflows)
    return _read_template(value, template, faults)


def _read_template(value: JsonObject, template: Workflow, faults: Faults) -> Request:
    rules = {**_TEMPLATE_KEYS, **template.inputs}
    if "images" in value:
        faults.add("images", "is only valid with a graph; a template takes `image`")
    _check_names(value.keys() - rules.keys() - {"images"}, rules, faults)
    value = respelled(value, rules)
    if "seed" in template.inputs and as_number(value.get("seed")) == -1:
        del value["seed"]
    _check_schema(value, {**template.schema, "properties": rules}, faults)
    files = _template_files(template, value, faults)
    wanted = _without_nulls(value.get("overrides"))
    overrides = read_overrides(template, wanted, value.get("num_images", 1), faults)
    faults.raise_if_any()
    values = filled(value, {"properties": rules})
    inputs = {name: values[name] for name in template.inputs if name in values and name not in template.image_inputs}
    if len(overrides) < len(wanted):  # an override of the seed was -1, which requests a random seed
        inputs.pop("seed", None)
    for name, text in inputs.items():
        if "prompt" in name and isinstance(text, str):
            faults.warnings += syntax_warnings(name, text)
    return Request(
        template=template,
        graph=template.graph,
        inputs=inputs,
        files=files,
        overrides={place: value for place, (_, value) in overrides.items()},
        override_targets={place: target for place, (target, _) in overrides.items()},
        warnings=tuple(faults.warnings),
        **_common_arguments(values),
    )


def _check_names(names: Iterable[str], rules: Mapping[str, JsonObject], faults: Faults) -> None:
    suggestions = Suggestions()
    for name in sorted(names)[:MAX_FAULTS]:
        faults.add(path_of([name]), advice(name, rules) or f"is not known{suggestions.nearest(name, rules)}")


def _check_schema(value: JsonObject, schema: JsonObject, faults: Faults) -> None:
    """Validate `value`. Null list items count as absent. Items of a list that is too long are skipped."""
    null_paths: set[str] = set()
    for name, items in value.items():
        limit = schema["properties"].get(name, {}).get("maxItems")
        if isinstance(items, list) and limit is not None and len(items) > limit:
            faults.add(path_of([name]), f"has {len(items):,} items; at most {limit:,} are allowed")
            value = {**value, name: []}
        elif isinstance(items, list):
            null_paths |= {path_of([name, number]) for number, item in enumerate(items) if item is None}
    faults.extend(fault for fault in schema_faults(value, schema) if fault.path not in null_paths)


def _template_files(template: Workflow, value: JsonObject, faults: Faults) -> dict[str, FileSource]:
    """Return the image for each image input of the template, by the input's name."""
    sources = {}
    for name in template.image_inputs:
        text = value.get(name)
        if isinstance(text, str) and text:
            try:
                sources[name] = FileSource(name, bare_url(text) if is_https(text) else decode_base64(text))
            except ValueError as error:
                faults.add(name, str(error))
    return sources


def _without_nulls(overrides: object) -> JsonObject:
    """Return overrides without nulls; empty if `overrides` is not an object."""
    given = overrides.items() if isinstance(overrides, dict) else ()
    return {place: value for place, value in given if value is not None}


def _read_graph(value: JsonObject, faults: Faults) -> Request:
    graph = value["workflow"]
    key_warnings: list[str] = []
    value, extra_data = split_graph_request(value, key_warnings)
    value = respelled(value, _GRAPH_KEYS)
    _check_schema(value, {"properties": {"workflow": {}, **_GRAPH_KEYS}}, faults)
    files: dict[str, FileSource] = {}
    overrides = _without_nulls(value.get("overrides"))
    if graph and has_only_nodes(graph):
        written = override(graph, overrides, faults)
        normalise_links(graph)
        remove_unneeded(graph, faults)
        files = graph_files(graph, value.get("images"), written, faults)
        faults.warnings += graph_warnings(graph)
        overrides = {
            place: target.get(graph) if path_of(["overrides", place]) in files else overrides[place]
            for place, target in written.items()
            if target.node_id in graph
        }
    else:
        faults.extend(graph_faults(graph))
    faults.raise_if_any()
    warnings = [*faults.warnings, *key_warnings]
    if len(warnings) > _MAX_WARNINGS:
        warnings = [*warnings[:_MAX_WARNINGS], f"and {len(warnings) - _MAX_WARNINGS:,} more warnings"]
    return Request(
        template=None,
        graph=graph,
        inputs={},
        files=files,
        overrides=overrides,
        warnings=tuple(warnings),
        extra_data=extra_data,
        **_common_arguments(filled(value, {"properties": _GRAPH_KEYS})),
    )


def _common_arguments(values: JsonObject) -> JsonObject:
    """Return the arguments of Request that a template and a graph have in common."""
    names = ("output_format", "output_quality", "metadata", "delivery", "timeout_s")
    return {name: values.get(name) for name in names}


def draw_seed() -> int:
    """Return a random seed."""
    return secrets.randbelow(MAX_RANDOM_SEED + 1)


class CheckImage(Protocol):
    """A function such as `check_image` in images.codec and images.child_process."""

    def __call__(self, data: bytes, field_path: str, *, flatten: bool) -> EncodedImage:
        """Return the image in `data` in a form that LoadImage accepts. Raises JobError (invalid_image)."""


@dataclass(frozen=True)
class Upload:
    """A file of the request, and the inputs that will name it after the upload.

    If the file is not an image, its width and height are 0, and `own_extension` is set.
    """

    file: EncodedImage
    targets: tuple[Target, ...]
    own_extension: str = ""

    @property
    def extension(self) -> str:
        """The file extension, without the dot."""
        return self.own_extension or self.file.mime_type.rpartition("/")[2]


@dataclass(frozen=True)
class Rendered:
    """A rendered request: one graph for each prompt, the files to upload, and values for the result.

    Attributes:
        seeds: one entry for each graph: its seed, or None for a caller's graph or a template without a seed.
        inputs: the template's inputs as used, without images, and the overrides. A caller's graph has only overrides.
        extra_data: what ComfyUI gets with a caller's graph. It may contain an API key.
    """

    graphs: tuple[Graph, ...]
    seeds: tuple[int | None, ...]
    uploads: tuple[Upload, ...]
    workflow: str
    version: str
    inputs: JsonObject
    warnings: tuple[str, ...]
    extra_data: JsonObject = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class Request:
    """A valid request. If the caller sent a graph, `template` is None and `graph` already has the overrides applied.

    For a template, `render` applies `overrides` to `override_targets`. For a graph, `overrides` are only kept for the
    result. The keys of `files` are input names for a template, and paths in the request for a graph.
    """

    template: Workflow | None
    graph: Graph
    inputs: JsonObject
    files: Mapping[str, FileSource]
    overrides: JsonObject
    output_format: str
    output_quality: int
    metadata: bool
    delivery: str
    timeout_s: float | None
    override_targets: Mapping[str, Target] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    extra_data: JsonObject = field(default_factory=dict, repr=False)

    def with_fetched(self, fetch: Callable[[Sequence[tuple[str, str]]], Sequence[bytes]]) -> Request:
        """Return the request with all files downloaded. `fetch` takes pairs of URL and path in the request.

        Raises JobError (invalid_input) if the files exceed MAX_TOTAL_BYTES.
        """
        wanted = {name: source for name, source in self.files.items() if isinstance(source.content, str)}
        if not wanted:
            return self
        contents = fetch([(str(source.content), source.field_path) for source in wanted.values()])
        fetched = {
            name: replace(source, content=content)
            for (name, source), content in zip(wanted.items(), contents, strict=True)
        }
        files = {**self.files, **fetched}
        faults = Faults()
        check_limits(files, faults)
        faults.raise_if_any()
        return replace(self, files=files)

    def render(self, random_seed: Callable[[], int] = draw_seed, check_image: CheckImage = check_image) -> Rendered:
        """Return the graphs and uploads for ComfyUI. All files must have been downloaded. `check_image` decodes images.

        Raises JobError: invalid_image if a file is not accepted, invalid_input if an override names a list item that
        does not exist or makes the graph invalid.
        """
        if self.template is None:
            return self._render_graph(random_seed, check_image)
        return self._render_template(self.template, random_seed, check_image)

    def _render_template(self, template: Workflow, random_seed: Callable[[], int], check_image: CheckImage) -> Rendered:
        uploads = [
            _upload(source, template.targets(name), check_image, flatten=True) for name, source in self.files.items()
        ]
        inputs = dict(self.inputs)
        if uploads:
            inputs |= _size(inputs, uploads[0].file, template)
        if "seed" in template.inputs and "seed" not in inputs:
            inputs["seed"] = min(random_seed(), MAX_RANDOM_SEED + 1 - inputs.get("num_images", 1))
        graphs = render(template, inputs)
        faults = Faults()
        for graph in graphs:
            self._apply_overrides(graph, faults)
            faults.extend(graph_faults(graph))
        faults.raise_if_any()
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

    def _apply_overrides(self, graph: Graph, faults: Faults) -> None:
        for place, target in self.override_targets.items():
            try:
                target.set(graph, copy.deepcopy(self.overrides[place]))
            except IndexError:  # the request's list is shorter than the template's
                missing = f"{shown(place.rpartition('.')[0])} has no item {target.index}"
                faults.add(path_of(["overrides", place]), missing)

    def _render_graph(self, random_seed: Callable[[], int], check_image: CheckImage) -> Rendered:
        graph = copy.deepcopy(self.graph)
        seed_warnings = replace_random_seeds(graph, random_seed)
        return Rendered(
            graphs=(graph,),
            seeds=(None,),
            uploads=tuple(
                _upload(source, source.targets, check_image, flatten=False) for source in self.files.values()
            ),
            workflow="custom",
            version="custom",
            inputs={"overrides": self.overrides} if self.overrides else {},
            warnings=(*self.warnings, *seed_warnings),
            extra_data=self.extra_data,
        )


def _upload(source: FileSource, targets: tuple[Target, ...], check_image: CheckImage, *, flatten: bool) -> Upload:
    if isinstance(source.content, str):
        raise TypeError(f"{source.field_path} was not fetched")
    if source.must_be_image:
        return Upload(check_image(source.content, source.field_path, flatten=flatten), targets)
    if len(source.content) > MAX_BYTES:
        raise invalid_image(source.field_path, f"has {len(source.content):,} bytes; at most {MAX_BYTES:,} are allowed")
    if is_playlist(source.content):
        message = f"{source.field_path} is a playlist; send the video or audio file itself."
        raise JobError(ErrorReport(ErrorCode.INVALID_IMAGE, message, {"path": source.field_path}))
    mime_type = mimetypes.guess_type(f"file.{source.extension}")[0] or "application/octet-stream"
    return Upload(EncodedImage(source.content, 0, 0, mime_type), targets, source.extension)


def _size(inputs: JsonObject, image: EncodedImage, template: Workflow) -> JsonObject:
    """Return those of `width` and `height` that the request does not set, to keep the aspect ratio of its image."""
    if not {"width", "height"} <= template.inputs.keys():
        return {}
    match inputs:
        case {"width": _, "height": _}:
            return {}
        case {"width": int(width)}:
            return {"height": _side(image.height * width / image.width)}
        case {"height": int(height)}:
            return {"width": _side(image.width * height / image.height)}
    width, height = rounded_size(image.width, image.height)
    return {"width": width, "height": height}


def _side(pixels: float) -> int:
    return min(2048, max(64, round(pixels / 16) * 16))
