"""GeneratedImage: what `save` writes, and how Jupyter displays it."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import pytest
from PIL import Image

from comfy_client import GeneratedImage, GenerationResult


def image(kind: str = "png", mode: str = "RGBA") -> GeneratedImage:
    """Return a generated image of 8 x 4 pixels in the format `kind`."""
    encoded = io.BytesIO()
    Image.new(mode, (8, 4), "red").save(encoded, kind)
    data = encoded.getvalue()
    return GeneratedImage(
        f"sub/x_00001_.{kind}", f"image/{kind}", hashlib.sha256(data).hexdigest(), data, width=8, height=4
    )


@pytest.mark.parametrize(
    ("name", "kind"), [("a.png", "PNG"), ("a.jpg", "JPEG"), ("a.JPEG", "JPEG"), ("a.webp", "WEBP")]
)
@pytest.mark.parametrize("made", [image("png"), image("webp"), image("jpeg", "RGB")], ids=["png", "webp", "jpeg"])
def test_a_saved_file_has_the_format_of_its_name(tmp_path: Path, made: GeneratedImage, name: str, kind: str) -> None:
    """The suffix selects the format. Bytes are unchanged if they have that format, or if there is no suffix."""
    with Image.open(made.save(tmp_path / name)) as saved:
        assert (saved.format, saved.size) == (kind, (8, 4))
    if made.mime_type == f"image/{kind.lower()}":
        assert (tmp_path / name).read_bytes() == made.bytes
    assert made.save(tmp_path / "as-it-is").read_bytes() == made.bytes


def test_missing_folders_are_created_and_existing_ones_used(tmp_path: Path) -> None:
    """Missing parent folders are created. In an existing folder the file gets the image's own name."""
    assert image().save(tmp_path / "new" / "folder" / "a.png").is_file()
    assert image().save(tmp_path / "new") == tmp_path / "new" / "x_00001_.png"


@pytest.mark.parametrize("name", ["file/a.png", f"{'x' * 300}.png"])
def test_an_error_names_the_requested_file(tmp_path: Path, name: str) -> None:
    """If a file cannot be written, the error has the requested path, and no temporary file is left."""
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="png") as info:
        image().save(tmp_path / name)

    assert info.value.filename == str(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_the_repr_of_a_result_is_short() -> None:
    """It has names and sizes, and no bytes."""
    result = GenerationResult((image(), image()), "comfyui", "job-1", inputs={"prompt": "a knight" * 100}, seed=7)

    assert repr(result).startswith("GenerationResult(job_id='job-1', workflow='custom', seed=7, images=['")
    assert len(repr(result)) < 200


@pytest.mark.parametrize(("kind", "shown"), [("png", "PNG"), ("webp", "PNG"), ("jpeg", "JPEG")])
def test_a_notebook_shows_the_image(kind: str, shown: str) -> None:
    """Jupyter gets one format: a JPEG unchanged, and any other image as PNG."""
    made = image(kind, "RGB")
    formats = [data for data in (made._repr_png_(), made._repr_jpeg_()) if data is not None]
    with Image.open(io.BytesIO(*formats)) as opened:
        assert opened.format == shown
