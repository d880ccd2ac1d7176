"""The templates' sigmas are those of Flux.1-dev's makers, on the simulator or a real ComfyUI."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import pytest

from comfy_core.graphs import Graph
from comfy_core.workflows import Workflow, render
from tests.comfyui.test_jobs import RunJob

STEPS = 20
PRINTED_PRECISION = 0.00006
"""PreviewAny shows a tensor with four decimals. The rest is the precision of float32 near 1, 6e-8."""
PATCH_SIDE = 16
MIN_PATCHES, MIN_SHIFT = 256, 0.5
MAX_PATCHES, MAX_SHIFT = 4096, 1.15


def reference_sigmas(width: int, height: int) -> list[float]:
    """Return the sigmas of `get_schedule` in Black Forest Labs' code (docs/reference/comfyui.md#sigmas)."""
    patches = (width // PATCH_SIDE) * (height // PATCH_SIDE)
    shift = MIN_SHIFT + (MAX_SHIFT - MIN_SHIFT) * (patches - MIN_PATCHES) / (MAX_PATCHES - MIN_PATCHES)
    times = [1 - step / STEPS for step in range(STEPS)]
    return [*(math.exp(shift) / (math.exp(shift) + 1 / time - 1) for time in times), 0.0]


def graph_that_shows_sigmas(graph: Graph) -> Graph:
    """Return a graph that shows the sigmas of the model that KSampler gets in `graph`, as text."""
    [sampler] = [node["inputs"] for node in graph.values() if node["class_type"] == "KSampler"]
    inputs = {name: sampler[name] for name in ("model", "scheduler", "steps")}
    shown: Graph = {
        "sigmas": {"class_type": "BasicScheduler", "inputs": {**inputs, "denoise": 1.0}},
        "text": {"class_type": "PreviewAny", "inputs": {"source": ["sigmas", 0]}},
    }
    link = sampler["model"]
    while link is not None:
        shown[link[0]] = graph[link[0]]
        link = graph[link[0]]["inputs"].get("model")
    return shown


@pytest.mark.parametrize("name", ["flux-dev-txt2img", "flux-dev-img2img"])
@pytest.mark.parametrize("size", [(512, 512), (1024, 1024), (2048, 2048), (1344, 768)], ids=str)
def test_a_template_s_sigmas_are_those_of_the_model_s_makers(
    run: RunJob, workflows: Mapping[str, Workflow], name: str, size: tuple[int, int]
) -> None:
    """The sigmas depend on the image's size as in Black Forest Labs' code, up to the printed precision."""
    [graph] = render(workflows[name], {"width": size[0], "height": size[1], "steps": STEPS, "scheduler": "simple"})

    [text] = run({"workflow": graph_that_shows_sigmas(graph)})["texts"]

    sigmas = [float(number) for number in re.findall(r"\d+\.\d*", text)]
    assert sigmas == pytest.approx(reference_sigmas(*size), rel=0, abs=PRINTED_PRECISION)
