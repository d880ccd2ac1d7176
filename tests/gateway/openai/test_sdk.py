"""OpenAI's official SDK, unmodified, as the caller: generations, edits, streams, errors, and many calls at once."""

from __future__ import annotations

import base64
import io
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
import requests
from openai.types import ImageEditCompletedEvent, ImageGenCompletedEvent, ImageGenPartialImageEvent, ImagesResponse
from PIL import Image

from bench.shim_process import KEY, SECRET, ShimProcess
from simulators.comfyui import Simulator
from simulators.waiting import until

pytestmark = pytest.mark.slow
SMALL = {"steps": 4}
GREEN = (20, 200, 40)


def images_of(response: ImagesResponse) -> list[Image.Image]:
    """Return the images of a response with base64."""
    return [opened(base64.b64decode(each.b64_json or "")) for each in response.data or []]


def opened(data: bytes) -> Image.Image:
    """Return a decoded image."""
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def png(image: Image.Image) -> bytes:
    """Return an image as PNG."""
    encoded = io.BytesIO()
    image.save(encoded, "PNG")
    return encoded.getvalue()


def half_mask(side: int) -> bytes:
    """Return a mask whose left half is transparent."""
    mask = Image.new("RGBA", (side, side), (0, 0, 0, 255))
    mask.paste((0, 0, 0, 0), (0, 0, side // 2, side))
    return png(mask)


def test_images_are_generated(client: openai.OpenAI) -> None:
    """A call returns `n` images in base64, of the requested size and format, with the fields of OpenAI's responses."""
    response = client.images.generate(
        prompt="a knight",
        model="gpt-image-1",
        n=2,
        size="256x128",
        output_format="webp",
        extra_body={**SMALL, "seed": 7},
    )

    assert [(each.size, each.format) for each in images_of(response)] == [((256, 128), "WEBP")] * 2
    assert [each.model_extra for each in response.data or []] == [{"seed": 7}, {"seed": 8}]
    assert (response.size, response.output_format, response.background) == ("256x128", "webp", "opaque")
    assert response.created > 1_700_000_000
    assert response.usage is not None
    assert response.usage.total_tokens == 0


def test_a_url_is_returned_instead_of_base64(client: openai.OpenAI) -> None:
    """With `response_format` url, and by default for DALL-E, an image has a signed URL that needs no key."""
    by_default = client.images.generate(prompt="a knight", model="dall-e-3", size="64x64", extra_body=SMALL)
    on_request = client.images.generate(prompt="a knight", size="64x64", response_format="url", extra_body=SMALL)
    for response in (by_default, on_request):
        [image] = response.data or []

        assert image.b64_json is None
        assert opened(requests.get(image.url or "", timeout=60).content).size == (64, 64)


def test_quality_and_compression_are_used(client: openai.OpenAI) -> None:
    """`quality` sets the steps, unless the call has `steps`; a lower `output_compression` makes a smaller file."""
    large, small = (
        client.images.generate(
            prompt="a knight", size="256x256", quality="low", output_format="jpeg", output_compression=compression,
            extra_body={"seed": 1},
        )
        for compression in (95, 0)
    )  # fmt: skip

    assert large.quality == small.quality == "low"
    [large_image], [small_image] = large.data or [], small.data or []
    assert len(small_image.b64_json or "") < len(large_image.b64_json or "")


def test_an_image_is_edited(client: openai.OpenAI) -> None:
    """Without a mask, an edit starts from the image and has its size."""
    start = png(Image.new("RGB", (128, 64), GREEN))
    [image] = images_of(client.images.edit(prompt="a lake", image=("start.png", start), extra_body=SMALL))

    assert image.size == (128, 64)


def test_a_mask_selects_the_area(client: openai.OpenAI) -> None:
    """Only the transparent area of the mask is generated. All other pixels keep their values."""
    start = png(Image.new("RGB", (128, 128), GREEN))
    [image] = images_of(
        client.images.edit(
            prompt="a lake", image=[("start.png", start)], mask=("mask.png", half_mask(128)), extra_body=SMALL
        )
    )
    pixels = image.convert("RGB")

    assert {pixels.getpixel((x, y)) for x in range(64, 128) for y in range(128)} == {GREEN}
    assert pixels.getpixel((16, 64)) != GREEN


def test_a_stream_has_a_preview_and_the_image(client: openai.OpenAI, comfyui: Simulator) -> None:
    """A preview is sent while the image is generated, at most `partial_images` of them, and then the image."""
    comfyui.faults.hang_sampling(at_step=20)
    stream = client.images.generate(
        prompt="a knight", size="64x64", stream=True, partial_images=1, extra_body={"steps": 30, "seed": 3}
    )
    preview = next(stream)
    assert until(lambda: comfyui.hanging_step == 20)
    comfyui.faults.release()
    [completed] = stream

    assert isinstance(preview, ImageGenPartialImageEvent)
    assert preview.partial_image_index == 0
    assert opened(base64.b64decode(preview.b64_json)).format == "JPEG"
    assert isinstance(completed, ImageGenCompletedEvent)
    assert opened(base64.b64decode(completed.b64_json)).size == (64, 64)
    assert (completed.size, completed.output_format, completed.usage.total_tokens) == ("64x64", "png", 0)


def test_an_edit_is_streamed(client: openai.OpenAI) -> None:
    """The events of an edit have the types of edits."""
    start = png(Image.new("RGB", (64, 64), GREEN))
    [completed] = client.images.edit(prompt="a lake", image=("a.png", start), stream=True, extra_body=SMALL)

    assert isinstance(completed, ImageEditCompletedEvent)
    assert opened(base64.b64decode(completed.b64_json)).size == (64, 64)


def test_the_models_are_the_workflows(client: openai.OpenAI) -> None:
    """The list of models has the workflows. A model of OpenAI that a call may name can be retrieved, too."""
    assert "flux-dev-txt2img" in {each.id for each in client.models.list()}
    assert client.models.retrieve("flux-dev-inpaint").id == "flux-dev-inpaint"
    assert client.models.retrieve("gpt-image-1").object == "model"


FILE = ("start.png", png(Image.new("RGB", (64, 64), GREEN)))


@pytest.mark.parametrize(
    ("method", "arguments", "status", "param", "text"),
    [
        ("generate", {"size": "1000x1024"}, 400, "size", "multiple of 16"),
        ("generate", {"size": "big"}, 400, "size", "1024x1024"),
        ("generate", {"n": 9}, 400, "n", "at most 8"),
        ("generate", {"prompt": " "}, 400, "prompt", "blank"),
        ("generate", {"background": "transparent"}, 400, "background", "opaque"),
        ("generate", {"output_format": "svg"}, 400, "output_format", "png"),
        ("generate", {"extra_body": {"sed": 1}}, 400, "sed", '"seed"'),
        ("generate", {"extra_body": {"model_tokens": {}}}, 400, "model_tokens", "stored"),
        ("generate", {"model": "flux-dev"}, 404, "model", "flux-dev-txt2img"),
        ("generate", {"model": "flux-dev-img2img"}, 400, "image", "images.edit"),
        ("edit", {"image": [FILE, FILE]}, 400, "image", "one image"),
        ("edit", {"image": ("a.png", b"text")}, 400, "image", "not an image"),
        ("edit", {"image": FILE, "mask": FILE}, 400, "mask", "no transparent areas"),
        ("edit", {"image": FILE, "mask": FILE, "model": "flux-dev-img2img"}, 400, "mask", "flux-dev-inpaint"),
    ],
)
def test_an_error_says_what_to_change(
    client: openai.OpenAI, method: str, arguments: dict[str, object], status: int, param: str, text: str
) -> None:
    """An error has OpenAI's class, the parameter, this project's code, and the id of the request."""
    kind = {400: openai.BadRequestError, 404: openai.NotFoundError}[status]
    with pytest.raises(kind, match=text) as raised:
        getattr(client.images, method)(**{"prompt": "a knight", **arguments})

    assert raised.value.param == param
    assert raised.value.code in {"invalid_input", "invalid_image", "unknown_workflow"}
    assert raised.value.type == "invalid_request_error"
    assert raised.value.request_id


def test_another_route_is_named(client: openai.OpenAI) -> None:
    """A route of OpenAI that the server does not have is a NotFoundError that names the ones it has."""
    with pytest.raises(openai.NotFoundError, match="images/edits"):
        client.embeddings.create(model="any", input="a knight")


def test_a_wrong_key_is_refused(server: ShimProcess) -> None:
    """A key of OpenAI, or an account with another secret, is an AuthenticationError."""
    for key in ("sk-proj-1", f"{KEY}:another", KEY, SECRET):
        with openai.OpenAI(base_url=server.base_url, api_key=key, max_retries=0) as other:
            with pytest.raises(openai.AuthenticationError, match="SCENARIO_SHIM_ACCOUNTS") as raised:
                other.images.generate(prompt="a knight")
            assert raised.value.code == "auth_failed"


def test_fifty_calls_at_once(client: openai.OpenAI) -> None:
    """Of 50 concurrent calls, each gets its own image."""

    def image_of(seed: int) -> tuple[object, object]:
        response = client.images.generate(prompt="a knight", size="64x64", extra_body={"steps": 1, "seed": seed})
        [image] = response.data or []
        return (image.model_extra or {})["seed"], image.b64_json

    with ThreadPoolExecutor(50) as pool:
        found = list(pool.map(image_of, range(50)))

    assert [seed for seed, _ in found] == list(range(50))
    assert len({image for _, image in found}) == 50
