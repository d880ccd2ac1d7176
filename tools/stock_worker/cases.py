"""Requests that worker-comfyui documents or its callers send, and the reason if this worker responds differently."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from simulators.comfyui import Simulator
from tools.recorded_graphs import Graph, node
from tools.stock_worker.graphs import as_base64, blank, checkpoint, loaded, png

PNG = as_base64(png())
IMAGE_NAME = "in.png"


def _no_fault(_: Simulator) -> None:
    """Inject no fault."""


@dataclass(frozen=True)
class Case:
    """One request.

    Attributes:
        title: unique description of the request, which docs/worker-comfyui.md prints.
        input: the job's `input`.
        why: why the responses differ; empty if they are equal or if worker-comfyui fails.
        before: inputs of the jobs that the worker runs before this one.
        prepare: injects a fault into ComfyUI before the request.
    """

    title: str
    input: Any
    why: str = ""
    before: tuple[Any, ...] = ()
    prepare: Callable[[Simulator], object] = _no_fault


def _with_image(text: str = PNG, name: str = IMAGE_NAME, **further: object) -> dict[str, Any]:
    return {"workflow": loaded(name), "images": [{"name": name, "image": text, **further}]}


def _numbered_images(count: int) -> list[dict[str, str]]:
    return [{"name": f"{number}.png", "image": PNG} for number in range(count)]


def _with_second_saver(images: list[object]) -> Graph:
    return {**blank(), "10": node("SaveImage", filename_prefix="second", images=images)}


def _only_previewed() -> Graph:
    return {"1": blank()["1"], "2": node("PreviewImage", images=["1", 0])}


CASES: tuple[Case, ...] = (
    # The README of worker-comfyui.
    Case("a graph", {"workflow": blank()}),
    Case(
        "the example of its README: two savers, a preview, an image that no node loads",
        {**_with_image(), "workflow": checkpoint()},
        "ComfyUI runs two equal savers once and names one file twice. Here each image has a name of its own.",
    ),
    Case("`images` with a data URI", _with_image(f"data:image/png;base64,{PNG}")),
    Case("`images` with plain base64", _with_image()),
    Case("`images: []`", {"workflow": blank(), "images": []}),
    Case("`comfy_org_api_key`", {"workflow": blank(), "comfy_org_api_key": "key"}),
    # Other requests of callers.
    Case(
        "`images: null` and `comfy_org_api_key: null`", {"workflow": blank(), "images": None, "comfy_org_api_key": None}
    ),
    Case("the whole `input` as JSON text", json.dumps({"workflow": blank()})),
    Case("unknown keys beside the graph", {"workflow": blank(), "client_id": "a", "tag": 1, "webhook": None}),
    Case("`extra_data` beside the graph", {"workflow": blank(), "extra_data": {"extra_pnginfo": {"workflow": {}}}}),
    Case("unknown keys in an image", _with_image(type="input", overwrite=True)),
    Case("`DATA:image/png;BASE64,`", _with_image(f"DATA:image/png;BASE64,{PNG}")),
    Case("`data:image/png; base64,` with spaces around it", _with_image(f" data:image/png; base64, {PNG} ")),
    Case("base64 with too much padding", _with_image(f"{PNG}==")),
    Case("base64 in lines", _with_image("\r\n".join(PNG[at : at + 76] for at in range(0, len(PNG), 76)))),
    Case("17 images", {"workflow": loaded("3.png"), "images": _numbered_images(17)}),
    Case(
        "an audio file in `images`",
        {"workflow": blank(), "images": [{"name": "a.wav", "image": as_base64(b"RIFF0000WAVE")}]},
    ),
    Case("an image name with spaces and umlauts", _with_image(name="mein Bild ä.png")),
    Case("`name [input]` in the graph", {**_with_image(), "workflow": loaded(f"{IMAGE_NAME} [input]")}),
    # Outputs.
    Case("a batch of three images", {"workflow": blank(batch_size=3)}),
    Case("two savers", {"workflow": _with_second_saver(["1", 0])}),
    Case("a prefix with a folder", {"workflow": blank(prefix="castle/tower")}),
    Case("a prefix with `%width%`", {"workflow": blank(prefix="fox_%width%x%height%")}),
    Case(
        "another job with the same prefix",
        {"workflow": blank(64)},
        "The number counts the images of one job, so a name does not depend on the jobs before it.",
        before=({"workflow": blank()},),
    ),
    Case("the same job again", {"workflow": blank()}, before=({"workflow": blank()},)),
    Case(
        "a graph with only a preview",
        {"workflow": _only_previewed()},
        "A graph that saves nothing is refused before the GPU runs; the error says to add SaveImage.",
    ),
    Case(
        "a link to a missing node in one of two savers",
        {"workflow": _with_second_saver(["7", 0])},
        "A graph of which only a part can run is refused, instead of silently returning a part of the result.",
    ),
    Case(
        "a link to a missing node in a node that feeds no output",
        {
            "workflow": {
                **blank(),
                "5": node("ImageScale", image=["7", 0], upscale_method="area", width=8, height=8, crop="disabled"),
            }
        },
    ),
    # Failures.
    Case("no `workflow`, no `prompt`", {"images": []}),
    Case("`workflow` as text", {"workflow": json.dumps(blank())}),
    Case("the graph itself as `input`", blank()),
    Case("the editor's format", {"workflow": {"nodes": [], "links": [], "version": 0.4}}),
    Case("`images` that is not a list", {"workflow": blank(), "images": {"name": IMAGE_NAME, "image": PNG}}),
    Case("an image without `name`", {"workflow": blank(), "images": [{"image": PNG}]}),
    Case("an image that is not base64", _with_image("no base64!")),
    Case("an unknown model", {"workflow": {**checkpoint(), "30": node("CheckpointLoaderSimple", ckpt_name="x.ckpt")}}),
    Case("an unknown node", {"workflow": {**blank(), "1": node("NoSuchNode")}}),
    Case("an image that was not sent", {"workflow": loaded("absent.png")}),
    Case("a graph without an output node", {"workflow": {"1": blank()["1"]}}),
    Case(
        "a node that raises",
        {"workflow": blank()},
        prepare=lambda simulator: simulator.faults.fail_node("EmptyImage", "RuntimeError", "boom"),
    ),
)
