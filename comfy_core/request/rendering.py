"""A valid request, and its rendering: the graphs and uploads for ComfyUI. No I/O except randomness."""

from __future__ import annotations

import copy
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from comfy_core.contract import MAX_RANDOM_SEED, JsonObject
from comfy_core.graphs import Graph, graph_faults, replace_random_seeds
from comfy_core.images.codec import check_image
from comfy_core.request.graph_files import FileSource, check_limits
from comfy_core.request.uploads import CheckImage, Upload, default_size, stretched_masks, template_uploads, upload
from comfy_core.request.webhook import Webhook
from comfy_core.targets import Target
from comfy_core.validation import Faults, path_of, shown
from comfy_core.workflows import Workflow, render


def draw_seed() -> int:
    """Return a random seed."""
    return secrets.randbelow(MAX_RANDOM_SEED + 1)


def _seed_within(rule: JsonObject, drawn: int, num_images: int) -> int:
    """Return the first seed of a job without one: `drawn`, in the range of the template's seed for all its images."""
    lowest: int = rule.get("minimum", 0)
    highest: int = min(rule.get("maximum", MAX_RANDOM_SEED), MAX_RANDOM_SEED)
    return max(lowest, min(drawn % (highest + 1), highest + 1 - num_images))


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
    result. The keys of `files` are input names for a template, and paths in the request for a graph. `model_tokens` are
    secrets: the token for each host from which models are downloaded.
    """

    template: Workflow | None
    graph: Graph
    inputs: JsonObject
    files: Mapping[str, FileSource]
    overrides: JsonObject
    output_format: str
    output_quality: int
    metadata: bool
    ai_mark: bool
    delivery: str
    timeout_s: float | None
    webhook: Webhook | None = None
    override_targets: Mapping[str, Target] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    extra_data: JsonObject = field(default_factory=dict, repr=False)
    model_tokens: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def has_own_graph(self) -> bool:
        """Whether the graph is the caller's, with or without a description of its inputs."""
        return self.template is None or self.template.is_inline

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
        uploads = template_uploads(template, self.files, check_image)
        inputs = {**self.inputs, **default_size(template, self.inputs, uploads)}
        if "seed" in template.inputs and "seed" not in inputs:
            inputs["seed"] = _seed_within(template.inputs["seed"], random_seed(), inputs.get("num_images", 1))
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
            uploads=tuple(uploads.values()),
            workflow=template.name,
            version=template.version,
            inputs={**inputs, **({"overrides": self.overrides} if self.overrides else {})},
            warnings=(*self.warnings, *stretched_masks(template, uploads)),
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
            uploads=tuple(upload(source, source.targets, check_image, "as_sent") for source in self.files.values()),
            workflow="custom",
            version="custom",
            inputs={"overrides": self.overrides} if self.overrides else {},
            warnings=(*self.warnings, *seed_warnings),
            extra_data=self.extra_data,
        )
