"""The AI mark: it is in each kind of file, the pixels and other metadata stay, and a damaged file is left alone."""

from __future__ import annotations

import io
from typing import Any

import pytest
from PIL import Image, PngImagePlugin

from comfy_core.images.ai_mark import SOURCE_TYPE, is_marked, marked
from comfy_core.images.codec import converted

FOREIGN = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    b'<rdf:Description rdf:about="" xmlns:dc="http://purl.org/dc/elements/1.1/" dc:source="a fox"/></rdf:RDF>'
    b"</x:xmpmeta>"
)
"""XMP of another program."""


def picture(mode: str = "RGB", shade: int = 0) -> Image.Image:
    """Return an image whose sides are odd."""
    gradient = Image.linear_gradient("L").resize((33, 21)).point(lambda value: value ^ shade)
    return Image.merge("RGBA", [gradient] * 4).convert(mode)


def encoded(image: Image.Image, file_format: str, **options: Any) -> bytes:  # noqa: ANN401 - Pillow's options
    """Return an image file."""
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def exif() -> Image.Exif:
    """Return EXIF with one entry."""
    data = Image.Exif()
    data[0x010E] = "a fox"
    return data


def foreign_png() -> PngImagePlugin.PngInfo:
    """Return FOREIGN and another text, for a PNG."""
    info = PngImagePlugin.PngInfo()
    info.add_itxt("XML:com.adobe.xmp", FOREIGN.decode())
    info.add_text("prompt", "{}")
    return info


ANIMATION: dict[str, Any] = {"save_all": True, "append_images": [picture(shade=255)]}
FILES = {
    "png": encoded(picture(), "PNG"),
    "png with alpha": encoded(picture("RGBA"), "PNG"),
    "animated png": encoded(picture(), "PNG", **ANIMATION),
    "jpeg": encoded(picture(), "JPEG"),
    "jpeg with exif and profile": encoded(picture(), "JPEG", exif=exif(), icc_profile=b"profile", comment="a fox"),
    "progressive jpeg": encoded(picture("L"), "JPEG", progressive=True),
    "webp": encoded(picture(), "WEBP"),
    "webp with alpha": encoded(picture("RGBA"), "WEBP"),
    "lossless webp": encoded(picture(), "WEBP", lossless=True),
    "lossless webp with alpha": encoded(picture("RGBA"), "WEBP", lossless=True),
    "webp with exif": encoded(picture(), "WEBP", exif=exif()),
    "animated webp": encoded(picture(), "WEBP", **ANIMATION),
}
WITH_FOREIGN_XMP = {
    "png": encoded(picture(), "PNG", pnginfo=foreign_png()),
    "jpeg": encoded(picture(), "JPEG", xmp=FOREIGN),
    "webp": encoded(picture(), "WEBP", xmp=FOREIGN),
}


def frames_of(data: bytes) -> list[bytes]:
    """Return the pixels of each frame."""
    with Image.open(io.BytesIO(data)) as image:
        frames = []
        for number in range(getattr(image, "n_frames", 1)):
            image.seek(number)
            frames.append(image.convert("RGBA").tobytes())
        return frames


def facts_of(data: bytes) -> dict[str, Any]:
    """Return the size, the mode and the metadata of a file, without XMP."""
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        info = {str(key): value for key, value in image.info.items()}
        for key in ("xmp", "XML:com.adobe.xmp"):
            info.pop(key, None)
        return {"size": image.size, "mode": image.mode, "exif": dict(image.getexif()), **info}


def xmp_of(data: bytes) -> bytes:
    """Return the XMP packet of a file."""
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        found = image.info.get("xmp") or image.info.get("XML:com.adobe.xmp", "")
        return found.encode() if isinstance(found, str) else bytes(found)


@pytest.mark.parametrize("name", FILES)
def test_a_file_gets_the_mark_and_nothing_else(name: str) -> None:
    """The XMP names the source type once; pixels, frames, EXIF and profile stay; marking again changes nothing."""
    data = FILES[name]

    result = marked(data)

    assert xmp_of(result).count(SOURCE_TYPE.encode()) == 1
    assert frames_of(result) == frames_of(data)
    assert facts_of(result) == facts_of(data)
    assert (is_marked(data), is_marked(result)) == (False, True)
    assert marked(result) == result


def test_a_prompt_that_names_the_source_type_is_no_mark() -> None:
    """Only XMP is read: the text of a prompt in the file cannot prevent the mark."""
    prompt = PngImagePlugin.PngInfo()
    prompt.add_text("prompt", SOURCE_TYPE)
    data = encoded(picture(), "PNG", pnginfo=prompt)

    assert not is_marked(data)
    assert SOURCE_TYPE.encode() in xmp_of(marked(data))


@pytest.mark.parametrize("name", WITH_FOREIGN_XMP)
def test_xmp_of_another_program_is_kept(name: str) -> None:
    """The file has one packet, with the foreign property and the mark; other texts stay."""
    data = WITH_FOREIGN_XMP[name]

    packet = xmp_of(marked(data))

    assert b'dc:source="a fox"' in packet
    assert SOURCE_TYPE.encode() in packet
    assert marked(data).count(b"</rdf:RDF>") == 1
    assert facts_of(marked(data)) == facts_of(data)


def test_xmp_that_does_not_fit_into_a_jpeg_with_the_mark_is_replaced() -> None:
    """A segment of a JPEG has at most 65,535 bytes; the mark takes precedence over a packet that fills it."""
    fox = FOREIGN.replace(b"a fox", b"x" * 65_000)

    assert xmp_of(marked(encoded(picture(), "JPEG", xmp=fox))).count(SOURCE_TYPE.encode()) == 1


@pytest.mark.parametrize("name", ["png", "jpeg with exif and profile", "webp", "lossless webp", "animated webp"])
def test_a_damaged_file_raises_nothing(name: str) -> None:
    """A file that is cut at any byte is returned unchanged, or with the mark."""
    data = FILES[name]

    for length in range(len(data)):
        result = marked(data[:length])
        assert result == data[:length] or is_marked(result)


def test_other_files_are_not_changed() -> None:
    """A GIF, a video or an empty file has no mark."""
    for data in (encoded(picture(), "GIF"), b"\0\0\0\x18ftypmp42", b"", b"RIFF\0\0\0\0WAVEfmt "):
        assert marked(data) is data


@pytest.mark.parametrize("output_format", ["png", "jpeg", "webp"])
def test_a_converted_image_keeps_the_mark(output_format: str) -> None:
    """A conversion keeps the mark of its image, and adds none to an image without it."""
    assert is_marked(converted(marked(FILES["png"]), output_format, width=8).data)
    assert not is_marked(converted(FILES["png"], output_format, width=8).data)
