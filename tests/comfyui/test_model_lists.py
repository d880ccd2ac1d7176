"""The list of model files of a ComfyUI that is called directly."""

from __future__ import annotations

from collections.abc import Mapping

from comfy_client.client import Client
from comfy_core.workflows import Workflow


def test_the_list_has_the_models_of_the_workflows(comfyui_url: str, workflows: Mapping[str, Workflow]) -> None:
    """Each model of a shipped workflow is in the list with its size, and also in the list of its folder."""
    needed = {model for workflow in workflows.values() for model in workflow.schema["x-models"]}
    with Client(comfyui_url=comfyui_url) as client:
        listed = {model.path: model.bytes for model in client.models.list().models}
        vae = {model.path for model in client.models.list("vae").models}

    assert needed <= listed.keys()
    assert all(isinstance(listed[model], int) for model in needed)
    assert {model for model in needed if model.startswith("vae/")} <= vae
    assert all(model.startswith("vae/") for model in vae)
