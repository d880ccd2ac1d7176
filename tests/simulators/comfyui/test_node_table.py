"""The simulator declares its nodes like a real ComfyUI."""

from __future__ import annotations

import json
from typing import Any

import pytest

from simulators.comfyui.node_table import NODE_TYPES, OBJECT_INFO

from .driver import Driver, simulated
from .recorded import RECORDINGS

RECORDED: dict[str, dict[str, Any]] = json.loads((RECORDINGS / "object_info.json").read_text())
RECORDED_INPUT_FILES = RECORDED["LoadImage"]["input"]["required"]["image"][0]
COMPARED_KEYS = (
    "is_input_list",
    "output",
    "output_is_list",
    "output_name",
    "name",
    "output_node",
    "has_intermediate_output",
)


@pytest.fixture(scope="module")
def declared() -> dict[str, dict[str, Any]]:
    """The node classes that a simulator declares if its input folder has the files of the recording."""
    with simulated(models={"loras": ()}) as (sim, driver):
        for name in RECORDED_INPUT_FILES:
            (sim.input_dir / name).touch()
        (sim.input_dir / "jobs").mkdir()
        info: dict[str, dict[str, Any]] = driver.get("/object_info").json()
    return info


def _inputs(info: dict[str, Any]) -> dict[str, Any]:
    """Return the declared inputs, without empty options: the recordings have no tooltips, so some options are empty."""
    return {
        group: {
            name: [part for part in entry if part != {}] if group != "hidden" else entry
            for name, entry in inputs.items()
        }
        for group, inputs in info["input"].items()
    }


def test_the_declarations_are_those_of_the_pinned_comfyui() -> None:
    """The simulator's object_info.json, which the wheel contains, is the recording of the pinned ComfyUI."""
    assert json.loads(OBJECT_INFO.read_text()) == RECORDED


def test_the_declared_nodes_are_recorded(declared: dict[str, dict[str, Any]]) -> None:
    """Only save nodes of custom packs, and the node of the worker, are declared without a recording."""
    assert set(declared) - set(RECORDED) == {"Image Save", "Image Saver", "SendPixelsWebsocket"}


@pytest.mark.parametrize("name", [name for name in NODE_TYPES if name in RECORDED])
def test_a_node_is_declared_as_recorded(declared: dict[str, dict[str, Any]], name: str) -> None:
    """Inputs with their types, ranges and choices, and outputs, are equal. The input order is that of the inputs."""
    assert _inputs(declared[name]) == _inputs(RECORDED[name])
    assert {key: declared[name][key] for key in COMPARED_KEYS} == {key: RECORDED[name][key] for key in COMPARED_KEYS}
    assert declared[name]["input_order"] == {group: list(inputs) for group, inputs in declared[name]["input"].items()}


def test_one_node_can_be_requested(driver: Driver) -> None:
    """/object_info/{class} returns only that class."""
    assert list(driver.get("/object_info/KSampler").json()) == ["KSampler"]
