"""The requests of other programs, as their source code sends them, with the settings that docs/openai.md lists."""

from __future__ import annotations

import base64
import io
from typing import Any

import pytest
import requests
from PIL import Image

from bench.shim_process import KEY, SECRET, ShimProcess

pytestmark = pytest.mark.slow
BEARER = {"Authorization": f"Bearer {KEY}:{SECRET}"}


def size_of(response: requests.Response) -> tuple[int, int]:
    """Return the size of the image of a response. Like these programs, it reads `url`, or else `b64_json`."""
    assert response.status_code == 200, response.text
    [image] = response.json()["data"]
    data = requests.get(image["url"], timeout=60).content if image.get("url") else base64.b64decode(image["b64_json"])
    with Image.open(io.BytesIO(data)) as found:
        return found.size


@pytest.mark.parametrize(
    ("body", "size"),
    [
        ({"model": "dall-e-2", "n": 1, "size": "512x512", "response_format": "b64_json"}, (512, 512)),
        ({"model": "gpt-image-1", "n": 1, "size": "auto"}, (1024, 1024)),
        ({"model": "gpt-image-1.5", "n": 1, "size": "256x256", "quality": "low", "steps": 2}, (256, 256)),
        ({"model": "flux-dev-txt2img", "n": None, "size": "64x64", "response_format": "b64_json"}, (64, 64)),
    ],
)
def test_open_webui_generates(server: ShimProcess, body: dict[str, Any], size: tuple[int, int]) -> None:
    """Open WebUI (backend/open_webui/routers/images.py): no `response_format` for gpt-image; n may be null."""
    url = f"{server.base_url}/images/generations"
    headers = {**BEARER, "Content-Type": "application/json"}
    response = requests.post(url, json={"prompt": "a knight", **body}, headers=headers, timeout=300)

    assert size_of(response) == size


@pytest.mark.parametrize("name", ["image", "image[]"])
@pytest.mark.parametrize(
    "fields",
    [
        {"model": "gpt-image-1", "background": "auto"},
        {"model": "", "size": "96x64", "response_format": "b64_json", "n": "1"},
    ],
)
def test_open_webui_edits(server: ShimProcess, name: str, fields: dict[str, str]) -> None:
    """Open WebUI sends one image as `image`, and a list of images as `image[]`. All fields are text."""
    start = io.BytesIO()
    Image.new("RGB", (96, 64), "green").save(start, "PNG")
    response = requests.post(
        f"{server.base_url}/images/edits",
        data={"prompt": "a lake", **fields},
        files={name: ("6f1c.png", start.getvalue(), "image/png")},
        headers=BEARER,
        timeout=300,
    )

    assert size_of(response) == (96, 64)


@pytest.mark.parametrize(
    ("body", "size"),
    [
        ({"model": "dall-e-3", "size": "1792x1024", "quality": "hd", "style": "vivid"}, (1792, 1024)),
        ({"model": "dall-e-2", "size": "512x512"}, (512, 512)),
    ],
)
def test_sillytavern_generates(server: ShimProcess, body: dict[str, str], size: tuple[int, int]) -> None:
    """SillyTavern (public/scripts/extensions/stable-diffusion/index.js, generateOpenAiImage)."""
    request = {"prompt": "a knight", "n": 1, "response_format": "b64_json", **body}
    response = requests.post(f"{server.base_url}/images/generations", json=request, headers=BEARER, timeout=300)

    assert "b64_json" in response.json()["data"][0]
    assert size_of(response) == size
