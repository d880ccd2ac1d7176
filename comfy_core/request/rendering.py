"""A valid request, and its rendering: the graphs and uploads for ComfyUI. No I/O except randomness."""

from __future__ import annotations

import copy
import mimetypes
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from comfy_core.contract import MAX_RANDOM_SEED, ErrorReport, JsonObject
from comfy_core.error_codes import ErrorCode
from comfy_core.errors import JobError
from comfy_core.graphs import Graph, graph_faults, replace_random_seeds
from comfy_core.images.codec import MAX_BYTES, EncodedImage, check_image, invalid_image, rounded_size
from comfy_core.request.graph_files import FileSource, check_limits, is_playlist
from comfy_core.targets import Target
from comfy_core.validation import Faults, path_of, shown
from comfy_core.workflows import Workflow, render


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
