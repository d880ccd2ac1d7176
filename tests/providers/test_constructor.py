"""Clients that are constructed from arguments: an API key and an endpoint id, or the URL of a ComfyUI."""

from __future__ import annotations

import asyncio
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


def test_the_async_client_accepts_a_client() -> None:
    """AsyncClient can be constructed from a Client that was constructed from arguments."""
    with RunPodPlatform() as platform:
        client = Client(api_key=platform.api_key, endpoint_id=platform.endpoint_id)
        assert AsyncClient(client).job("x").id == "x"
        client.close()


def test_the_async_client_accepts_the_arguments_of_a_client(tmp_path: Path) -> None:
    """`AsyncClient(comfyui_url=…)` runs the workflows with their methods, here inpaint and upscale."""

    async def sizes(url: str) -> list[tuple[int, int]]:
        async with AsyncClient(comfyui_url=url) as client:
            start = (await client.txt2img("a knight", width=64, height=64, steps=1)).image
            mask = start.pil().convert("L").point(lambda _: 255)
            changed = await client.inpaint(start.bytes, "a castle", mask=mask, steps=1)
            larger = await client.upscale(changed.image.save(tmp_path / "a.png"), steps=1)
            return [changed.image.size, larger.image.size]

    with Simulator() as simulator:
        assert asyncio.run(sizes(simulator.url)) == [(64, 64), (128, 128)]


def test_the_async_client_takes_a_client_or_arguments() -> None:
    """A Client together with its arguments is rejected, as is neither."""
    with Client(comfyui_url="http://127.0.0.1:1") as client:
        with pytest.raises(TypeError, match="either a Client, or the arguments"):
            AsyncClient(client, timeout_s=5)
        with pytest.raises(TypeError, match="comfyui_url"):
            AsyncClient()
