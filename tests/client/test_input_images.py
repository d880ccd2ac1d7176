"""Conversion of a caller's images to text for the request. Invalid images are rejected before sending."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from comfy_client.input_images import image_text, with_texts
from comfy_client.tasks import make_request
from comfy_core.error_codes import ErrorCode
from comfy_core.errors import JobError
from comfy_core.images.codec import MAX_BYTES
from simulators.runpod.scripted_worker import incompressible_png, png

PNG_BASE64 = base64.b64encode(png()).decode()


def test_every_kind_of_image_becomes_the_same_text(tmp_path: Path) -> None:
    """A Path, a file name, each kind of bytes, and base64 result in the same text."""
    file = tmp_path / "a b.png"
    file.write_bytes(png())
    for source in (file, str(file), png(), bytearray(png()), memoryview(png()), PNG_BASE64):
        assert image_text(source, "image") == PNG_BASE64


@pytest.mark.parametrize(
    "source", ["https://host/a.png?sig=x", "http://host/a.png", f"data:image/png;base64,{PNG_BASE64}"]
)
def test_urls_and_data_uris_are_not_changed(source: str) -> None:
    """URLs and data URIs are sent unchanged; the worker downloads or decodes them."""
    assert image_text(source, "image") == source


def test_an_asset_id_is_not_changed_unless_it_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An asset id of Scenario is sent unchanged, unless a file with that name exists."""
    monkeypatch.chdir(tmp_path)
    assert image_text("asset_q9GpkRcHwTx7", "image") == "asset_q9GpkRcHwTx7"
    (tmp_path / "asset_knight").write_bytes(png())
    assert image_text("asset_knight", "image") == PNG_BASE64


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "1", "I;16"])
def test_a_pil_image_is_encoded_without_loss(mode: str) -> None:
    """The image in the text has the same pixels."""
    image = Image.new(mode, (8, 8))
    sent = Image.open(io.BytesIO(base64.b64decode(image_text(image, "image"))))

    assert sent.convert("RGB").tobytes() == image.convert("RGB").tobytes()


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("nowhere.png", "nowhere.png cannot be read"),
        (Path("nowhere.png"), "No such file"),
        ("a\0b", "cannot be read"),
        ("x-" * 2500, "cannot be read"),
        (b"", "not an image"),
        (b"no picture", "not an image"),
        (incompressible_png(32, 32)[:-2000], "cannot be decoded"),
        (5, "not int"),
        (["a.png"], "not list"),
        (b"\x89PNG" + b"x" * MAX_BYTES, "at most"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_an_invalid_image_is_reported(source: Any, expected: str) -> None:  # noqa: ANN401 - whatever a caller gives
    """The error is invalid_image, and has the problem and the input's path."""
    with pytest.raises(JobError, match=expected) as info:
        image_text(source, "image")

    assert info.value.code is ErrorCode.INVALID_IMAGE
    assert info.value.report.details == {"path": "image"}


def test_a_folder_and_a_file_that_is_too_large_are_reported(tmp_path: Path) -> None:
    """A folder and a file over the limit are invalid_image."""
    large = tmp_path / "large.png"
    with large.open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    for source in (tmp_path, large):
        with pytest.raises(JobError) as info:
            image_text(source, "image")
        assert info.value.code is ErrorCode.INVALID_IMAGE


def test_a_graph_s_files_may_be_of_any_type(tmp_path: Path) -> None:
    """Sound and video files for loader nodes are sent unchanged, as bytes or path; other keys of an entry are kept."""
    sound = tmp_path / "fox.wav"
    sound.write_bytes(b"RIFF" + bytes(99))
    text = base64.b64encode(sound.read_bytes()).decode()

    named = with_texts({"images": {"a": sound, "b": sound.read_bytes(), "c": str(sound)}})
    listed = with_texts({"images": [{"name": "a", "image": sound, "type": "audio"}]})

    assert [entry["image"] for entry in named["images"]] == [text] * 3
    assert listed == {"images": [{"type": "audio", "name": "a", "image": text}]}


def test_a_graph_s_images_have_names() -> None:
    """A mapping or a wire-format list is accepted; invalid entries are left to validation; None is omitted."""
    expected = {"images": [{"name": "a.png", "image": PNG_BASE64}]}

    assert with_texts({"images": {"a.png": png()}, "seed": None}) == expected
    assert with_texts({"images": [{"name": "a.png", "image": png()}]}) == expected
    assert with_texts({"images": [5]}) == {"images": [5]}
    assert with_texts({"images": "x", "image": None}) == {"images": "x"}


def test_the_images_of_a_shipped_workflow_may_be_file_names(tmp_path: Path) -> None:
    """`mask` of inpaint is read from a file, given as text or as a path. In another workflow, text stays text."""
    file = tmp_path / "mask.png"
    file.write_bytes(png())

    of_inpaint = make_request("inpaint", image=str(file), mask=str(file)).input
    of_another = make_request("mine", image=str(file), mask=str(file), sketch=file).input

    assert of_inpaint == {"workflow": "inpaint", "image": PNG_BASE64, "mask": PNG_BASE64}
    assert of_another == {"workflow": "mine", "image": PNG_BASE64, "mask": str(file), "sketch": PNG_BASE64}
