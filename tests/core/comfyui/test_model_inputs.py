"""Which inputs of a graph name a model by address, and which folder each input reads."""

from __future__ import annotations

from typing import Any

import pytest

from comfy_core.comfyui.model_inputs import ModelFolders, fetched_faults, model_uses
from comfy_core.comfyui.refusals import combo_choices

ADDRESS = "civitai:12"
FILES = {"loras": ["a.safetensors"], "vae": ["v.safetensors"], "upscale_models": []}


def node_type(declared: object) -> dict[str, Any]:
    """Return the /object_info entry of a node with one input."""
    return {"input": {"required": {"model": declared}}}


@pytest.mark.parametrize(
    ("declared", "folder"),
    [
        ([["None", "a.safetensors"]], "loras"),
        (["COMBO", {"options": ["v.safetensors"]}], "vae"),
        ([["a.safetensors", "v.safetensors"]], ""),
        ([[]], ""),
        (["STRING", {}], None),
        (["COMBO", {"options": ["a.safetensors"], "image_upload": True}], None),
        (None, None),
    ],
)
def test_the_folder_of_a_custom_node_is_that_of_its_choices(declared: object, folder: str | None) -> None:
    """A list of choices with the files of one folder reads that folder; an input without choices is left alone."""
    graph = {"1": {"class_type": "CustomLoader", "inputs": {"model": ADDRESS}}}
    uses, faults = model_uses([graph], ModelFolders({"CustomLoader": node_type(declared)}, lambda: FILES))

    assert [use.folder for use in uses] == ([] if folder is None else [folder])
    assert faults == []


def test_the_text_of_a_linked_node_counts() -> None:
    """An address in a text node that a loader links to is found at the loader."""
    graph = {
        "1": {"class_type": "PrimitiveString", "inputs": {"value": ADDRESS}},
        "2": {"class_type": "LoraLoader", "inputs": {"lora_name": ["1", 0]}},
    }
    [use], _ = model_uses([graph])

    assert (use.target.node_id, use.target.input, use.folder) == ("2", "lora_name", "loras")


def test_an_invalid_address_is_a_fault_of_its_input() -> None:
    """The fault has the path of the input."""
    _, [fault] = model_uses([{"4": {"class_type": "VAELoader", "inputs": {"vae_name": "hf:x"}}}])

    assert fault.path == "workflow.4.inputs.vae_name"


def test_the_file_of_another_caller_is_not_named() -> None:
    """A fetched file is not in a list of choices, and a graph cannot name it, not even in a nested value."""
    name = f"by-address/{'0' * 64}.safetensors"
    nested = {"1": {"class_type": "Power", "inputs": {"lora_1": {"on": True, "lora": name.upper().replace("/", "\\")}}}}

    assert combo_choices(node_type([["a.safetensors", name]]), "model") == ("a.safetensors",)
    assert len(fetched_faults([nested])) == 1
