"""Provider for RunPod's stock worker-comfyui. It accepts only complete graphs, so templates are rendered here.

Facts (worker-comfyui 5.8, handler.py; docs/reference/runpod.md#the-stock-worker):

- The input is `workflow`, a graph, and `images`, each with a `name` and base64.
- The result has `images` (`filename`, `type`, `data`), and `errors` if a part failed.
- It accepts no image URLs: input images are downloaded here.
- It encodes only PNG and returns no seed: the seed is put into the file name, where any process can read it.
- It never deletes a file: file names are made unique.
"""

from __future__ import annotations

import base64
import hashlib
import mimetypes
import re
import secrets
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace

from comfy_client.providers.interface import (
    GeneratedImage,
    GenerationRequest,
    GenerationResult,
    JobStatus,
    bucket_fault,
    webhook_fault,
)
from comfy_client.providers.results import read_result
from comfy_client.providers.runpod_endpoint import RunPodEndpoint
from comfy_client.providers.runpod_provider import RunPodProvider
from comfy_client.providers.submitted_requests import RequestCache, SubmittedRequest
from comfy_core.comfyui.model_inputs import address_faults
from comfy_core.comfyui.outputs import text_chunks
from comfy_core.contract import ErrorReport, JsonObject
from comfy_core.error_codes import ErrorCode
from comfy_core.errors import invalid_input
from comfy_core.graphs import Graph, is_link
from comfy_core.images.child_process import encode_image, identify
from comfy_core.request import intake
from comfy_core.request.reading import read_request
from comfy_core.request.rendering import Rendered
from comfy_core.request.uploads import Upload
from comfy_core.workflows import Workflow

_NO_DOWNLOADS = (
    "is an address, and worker-comfyui downloads no models: put the file into its image or on its volume and use its "
    "name, or use this project's worker"
)
_SEED = re.compile(r"_seed(\d+)_(\d+)_[0-9a-f]{8}")


class StockWorkerProvider(RunPodProvider):
    """A RunPod endpoint that runs worker-comfyui, or a worker with the same request format."""

    name = "runpod"

    def __init__(
        self, endpoint: RunPodEndpoint, workflows: Mapping[str, Workflow], *, usd_per_s: float | None = None
    ) -> None:
        super().__init__(endpoint, workflows, usd_per_s=usd_per_s)
        self._submitted = RequestCache()

    def submit(self, request: GenerationRequest, wait_s: float | None = None) -> JobStatus:
        """Render the request and send its graph: see RunPodEndpoint.submit.

        Raises JobError (invalid_input, invalid_image, unknown_workflow) if the request is invalid.
        """
        parsed = read_request(request.input, self._workflows)
        faults = []
        if parsed.delivery == "s3" or request.options.s3_config is not None:
            faults.append(bucket_fault("worker-comfyui"))
        if parsed.webhook is not None:
            faults.append(webhook_fault("worker-comfyui"))
        if faults:
            raise invalid_input(faults)
        rendered = intake.render_request(parsed)
        if faults := address_faults(rendered.graphs, _NO_DOWNLOADS):
            raise invalid_input(faults)
        if rendered.extra_data.keys() - {"api_key_comfy_org"}:
            warning = "extra_data was omitted except for the key: worker-comfyui passes nothing else to ComfyUI"
            rendered = replace(rendered, warnings=(*rendered.warnings, warning))
        body = stock_input(rendered, secrets.token_hex(4))
        status = self._endpoint.submit(GenerationRequest(body, request.options), wait_s)
        self._submitted.remember(status.job_id, SubmittedRequest(parsed, rendered))
        return _with_known_code(status)

    def status(self, job_id: str) -> JobStatus:
        """Return a job's status. worker-comfyui reports no progress."""
        return _with_known_code(self._endpoint.status(job_id))

    def result(self, status: JobStatus) -> GenerationResult:
        """Return a job's result. Images are encoded as requested if the request is still cached in this process."""
        result = read_result(status, self.name, self._usd_per_s)
        submitted = self._submitted.get(status.job_id)
        images = sorted((_with_seed(image) for image in result.images), key=_number)
        if submitted is None:
            return replace(result, images=tuple(images), seed=images[0].seed if images else None)
        rendered = submitted.rendered
        encoded = [_encoded(image, submitted) for image in images]
        return replace(
            result,
            images=tuple(image for image, _ in encoded),
            workflow=rendered.workflow,
            inputs=rendered.inputs,
            seed=rendered.seeds[0],
            warnings=(*rendered.warnings, *result.warnings, *(warning for _, warning in encoded if warning)),
            versions={**result.versions, "workflow": rendered.version},
        )

    def retry(self, job_id: str) -> JobStatus:
        """Queue a failed or timed out job again."""
        return _with_known_code(self._endpoint.retry(job_id))


def stock_input(rendered: Rendered, mark: str) -> JsonObject:
    """Return worker-comfyui's `input` for a rendered request. `mark` (8 hex digits) makes file names unique."""
    graphs = [
        _with_seed_in_names(graph, seed, number, mark)
        for number, (graph, seed) in enumerate(zip(rendered.graphs, rendered.seeds, strict=True))
    ]
    body: JsonObject = {"workflow": merge_graphs(graphs)}
    if images := [_place_image(upload, graphs) for upload in rendered.uploads]:
        body["images"] = images
    if "api_key_comfy_org" in rendered.extra_data:
        body["comfy_org_api_key"] = rendered.extra_data["api_key_comfy_org"]
    return body


def _with_seed_in_names(graph: Graph, seed: int | None, number: int, mark: str) -> Graph:
    """Return a copy of the graph. The names of the files that it saves have `seed`, `number` and `mark` added.

    Without a seed the names stay unchanged.
    """
    named = {}
    for node_id, node in graph.items():
        match node["inputs"]:
            case {"filename_prefix": str(prefix)} if seed is not None:
                unique = f"{prefix}_seed{seed}_{number}_{mark}"
                named[node_id] = {**node, "inputs": {**node["inputs"], "filename_prefix": unique}}
            case inputs:
                named[node_id] = {**node, "inputs": dict(inputs)}
    return named


def _place_image(upload: Upload, graphs: Sequence[Graph]) -> JsonObject:
    """Write a unique file name for the upload into the graphs, and return the upload's entry in `images`."""
    file = upload.file
    name = f"{uuid.uuid4().hex}.{upload.extension}"
    for graph in graphs:
        for target in upload.targets:
            target.set(graph, name)
    return {"name": name, "image": base64.b64encode(file.data).decode("ascii")}


def merge_graphs(graphs: Sequence[Graph]) -> Graph:
    """Return one graph that does the work of all graphs. Nodes that are the same in all, such as loaders, are shared.

    The graphs must have the same node ids and links, and differ only in values. A node `n` that is not shared gets the
    id `n-i` for each graph i > 0.
    """
    first = graphs[0]
    differing = {node_id for graph in graphs for node_id in graph if graph[node_id] != first.get(node_id)}
    while more := {
        node_id for node_id, node in first.items() if node_id not in differing and _linked_ids(node) & differing
    }:
        differing |= more
    combined = dict(first)
    for number, graph in enumerate(graphs[1:], 1):
        for node_id in differing:
            inputs = {
                name: [f"{value[0]}-{number}", value[1]] if is_link(value) and value[0] in differing else value
                for name, value in graph[node_id]["inputs"].items()
            }
            combined[f"{node_id}-{number}"] = {**graph[node_id], "inputs": inputs}
    return combined


def _linked_ids(node: JsonObject) -> set[str]:
    return {value[0] for value in node["inputs"].values() if is_link(value)}


def _with_seed(image: GeneratedImage) -> GeneratedImage:
    found = _SEED.search(image.filename)
    return replace(image, seed=int(found[1])) if found and image.seed is None else image


def _number(image: GeneratedImage) -> int:
    found = _SEED.search(image.filename)
    return int(found[2]) if found else 0


def _encoded(image: GeneratedImage, submitted: SubmittedRequest) -> tuple[GeneratedImage, str]:
    """Return the image in the requested format, and a warning or an empty string. worker-comfyui returns plain PNG.

    An image that is animated or not recognized is returned unchanged.
    """
    found = _SEED.search(image.filename)
    chunks: dict[str, str] = {}
    if submitted.request.metadata:
        chunks = text_chunks(submitted.rendered, submitted.rendered.graphs[_number(image)], image.seed)
    sent = identify(image.bytes)
    if sent is None or sent.is_animated:
        return image, ""
    converted = encode_image(image.bytes, submitted.request.output_format, submitted.request.output_quality, chunks)
    stem = (_SEED.sub("", image.filename) if found else image.filename).rpartition(".")[0]
    encoded = replace(
        image,
        filename=f"{stem}{mimetypes.guess_extension(converted.mime_type) or ''}",
        mime_type=converted.mime_type,
        sha256=hashlib.sha256(converted.data).hexdigest(),
        bytes=converted.data,
        width=converted.width,
        height=converted.height,
    )
    return encoded, f"{encoded.filename} {converted.warning}" if converted.warning else ""


def _with_known_code(status: JobStatus) -> JobStatus:
    """Return the status. If the code of its error is unrecognized, derive it from worker-comfyui's error text."""
    if status.error is None or status.error.code is not ErrorCode.UNRECOGNIZED:
        return status
    message = status.error.message
    for pattern, code in (
        (r"out of memory|OutOfMemory", ErrorCode.OUT_OF_MEMORY),
        (r"validation failed|Missing 'workflow'", ErrorCode.WORKFLOW_REJECTED),
        (r"Node Type: .*Node ID: ", ErrorCode.EXECUTION_FAILED),
        (r"not reachable", ErrorCode.COMFYUI_UNAVAILABLE),
    ):
        if re.search(pattern, message, re.IGNORECASE | re.DOTALL):
            return replace(status, error=ErrorReport(code, message, status.error.details))
    return status
