"""Models by address: providers that cannot download them refuse the request before they send anything."""

from __future__ import annotations

from typing import Any

import pytest

from comfy_client.client import client_from_env
from comfy_core.error_codes import ErrorCode
from comfy_core.errors import JobError

LORA = {"url": "https://models.example/knight.safetensors?signature=SECRET"}
GRAPH = {
    "1": {"class_type": "UNETLoader", "inputs": {"unet_name": "hf:owner/repo/flux.safetensors", "weight_dtype": "x"}},
    "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "x"}},
}
ENVIRONMENTS = {
    "direct": {"COMFYUI_ENDPOINT": "http://127.0.0.1:9"},
    "runpod": {"IMAGE_GENERATION_PROVIDER": "runpod", "RUNPOD_API_KEY": "k", "RUNPOD_ENDPOINT_ID": "e"},
    "scenario": {
        "IMAGE_GENERATION_PROVIDER": "scenario",
        "SCENARIO_SDK_API_KEY": "k",
        "SCENARIO_SDK_API_SECRET": "s",
        "SCENARIO_BASE_URL": "http://127.0.0.1:9",
    },
}
"""Providers that cannot download models. Nothing listens at their addresses: a request would be another error."""


@pytest.mark.parametrize("provider", ENVIRONMENTS)
@pytest.mark.parametrize("workflow", ["txt2img", "graph"])
def test_an_address_is_refused_without_a_request(provider: str, workflow: str) -> None:
    """The provider refuses the address with a remedy and without a URL's query, and sends nothing."""
    request: dict[str, Any] = {"prompt": "a knight", "loras": [LORA]} if workflow == "txt2img" else {}
    with client_from_env(ENVIRONMENTS[provider]) as client, pytest.raises(JobError) as info:
        client.submit(workflow if workflow == "txt2img" else GRAPH, **request)

    assert info.value.code is ErrorCode.INVALID_INPUT
    assert "this project's worker" in info.value.report.message or provider == "scenario"
    assert "SECRET" not in info.value.report.message
