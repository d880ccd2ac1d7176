"""Clients that are constructed from arguments: an API key and an endpoint id, or the URL of a ComfyUI."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from comfy_client import AsyncClient, Client
from simulators.comfyui import Simulator
from simulators.runpod.queue_api import RunPodPlatform

SMALL = {"width": 64, "height": 64, "steps": 1, "seed": 1}


def test_the_key_and_the_endpoint_may_be_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    """`Client(api_key=…, endpoint_id=…)` has that endpoint whatever the environment, and does not show the key."""
    monkeypatch.setenv("IMAGE_GENERATION_PROVIDER", "scenario")
    monkeypatch.setenv("COMFYUI_ENDPOINT", "http://127.0.0.1:1")
    with Client(api_key="rpa_1", endpoint_id="ep7") as client:
        assert str(client.provider) == "endpoint ep7 at RunPod"
        assert "rpa_1" not in repr(client.provider)


def test_a_comfyui_only_needs_its_url(tmp_path: Path) -> None:
    """`Client(comfyui_url=…)` generates an image without any other argument."""
    with Simulator() as simulator, Client(comfyui_url=simulator.url) as client:
        assert client.txt2img("a knight", **SMALL).image.save(tmp_path / "a.png").exists()  # type: ignore[arg-type] # numbers


@pytest.mark.parametrize(
    "arguments",
    [{}, {"api_key": "k"}, {"endpoint_id": "e"}, {"api_key": "k", "endpoint_id": "e", "comfyui_url": "http://x"}],
    ids=str,
)
def test_incomplete_or_contradicting_arguments_are_rejected(arguments: dict[str, Any]) -> None:
    """The error lists the possible combinations of arguments, and client_from_env."""
    with pytest.raises(TypeError, match=r"api_key and endpoint_id, or comfyui_url.*client_from_env"):
        Client(**arguments)


def test_the_async_client_accepts_such_a_client() -> None:
    """AsyncClient can be constructed from a Client that was constructed from arguments."""
    with RunPodPlatform() as platform:
        client = Client(api_key=platform.api_key, endpoint_id=platform.endpoint_id)
        assert AsyncClient(client).job("x").id == "x"
        client.close()
