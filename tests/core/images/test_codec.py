"""Images: input is recognised by content, turned upright, made opaque and completed; output keeps its pixels."""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import random
import struct
import time
import tracemalloc
import zlib
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps, PngImagePlugin

from comfy_core.error_codes import ErrorCode
from comfy_core.errors import JobError
from comfy_core.images.codec import (
    INPUT_FORMATS,
    MAX_BYTES,
    EncodedImage,
    check_image,
    converted,
    encode_image,
    identify,
    rounded_size,
    small_preview,
)
from comfy_core.images.forms import ImageForm

RED, GREEN, BLUE, YELLOW = (255, 0, 0), (0, 128, 0), (0, 0, 255), (255, 255, 0)
ORIENTATION = 0x0112
EXIF_IFD = 0x8769
USER_COMMENT = 0x9286
FORMS: tuple[ImageForm, ...] = ("flat", "as_sent")


IGNORE_PILLOW_WARNINGS = pytest.mark.filterwarnings("ignore::UserWarning")
"""Pillow warns about damage that it decodes anyway."""


def quarters(width: int = 32, height: int = 16) -> Image.Image:
    """Return an image with four colours, so that a rotation can be detected."""
    image = Image.new("RGB", (width, height), RED)
    image.paste(GREEN, (width // 2, 0, width, height // 2))
    image.paste(BLUE, (0, height // 2, width // 2, height))
    image.paste(YELLOW, (width // 2, height // 2, width, height))
    return image


def noise(mode: str = "RGB") -> Image.Image:
    """Return an image whose file is not tiny."""
    pixels = hashlib.shake_128(b"noise")
    return Image.frombytes("RGB", (40, 30), pixels.digest(40 * 30 * 3)).convert(mode)


def encoded(image: Image.Image, file_format: str = "PNG", **options: object) -> bytes:
    """Return an encoded image."""
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def decoded(data: bytes) -> Image.Image:
    """Return the image of a file, decoded."""
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def flattened(data: bytes) -> Image.Image:
    """Return the image that image to image gets for `data`, after a check of its mode, size and MIME type."""
    checked = check_image(data, "image", form="flat")
    image = decoded(checked.data)
    assert (image.mode, image.size) == ("RGB", (checked.width, checked.height))
    assert Image.MIME[image.format or ""] == checked.mime_type
    return image


def refusal(data: bytes, *, form: ImageForm = "flat") -> str:
    """Return the problem in the error for `data`, after a check of the rest of the report."""
    with pytest.raises(JobError) as info:
        check_image(data, "images[2].image", form=form)
    assert info.value.code is ErrorCode.INVALID_IMAGE
    assert info.value.report.details == {"path": "images[2].image"}
    problem, _, _ = info.value.report.message.partition(f" {ErrorCode.INVALID_IMAGE.remedy}")
    assert problem.startswith("images[2].image ")
    return problem


def outcome(data: bytes, *, form: ImageForm) -> EncodedImage | ErrorCode:
    """Return the checked image, or the code of the error that rejects it."""
    try:
        return check_image(data, "image", form=form)
    except JobError as error:
        return error.code


def animated(file_format: str) -> bytes:
    """Return a file of three frames; the first one is red."""
    frames = [Image.new("RGB", (16, 16), colour) for colour in (RED, GREEN, BLUE)]
    return encoded(frames[0], file_format, save_all=True, append_images=frames[1:])


def png_chunk(kind: bytes, content: bytes) -> bytes:
    """Return a chunk of a PNG."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def huge_png(width: int, height: int) -> bytes:
    """Return a PNG of a few bytes whose header declares this size."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    content = zlib.compress(b"\0" * 1000)
    signature = b"\x89PNG\r\n\x1a\n"
    return signature + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", content) + png_chunk(b"IEND", b"")


def huge_gif(width: int, height: int) -> bytes:
    """Return a GIF of a few bytes whose header declares this size."""
    size = struct.pack("<HH", width, height)
    return b"GIF89a" + size + b"\x80\0\0" + b"\0" * 6 + b"," + b"\0" * 4 + size + b"\0\x02\x02\x4c\x01\0;"


def huge_bmp(width: int, height: int) -> bytes:
    """Return a BMP of a few bytes whose header declares this size."""
    return b"BM" + struct.pack("<IHHI", 70, 0, 0, 54) + struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, *[0] * 6)


FORMATS: dict[str, Callable[[Image.Image], bytes]] = {
    "PNG": encoded,
    "JPEG": lambda image: encoded(image, "JPEG", quality=95),
    "WEBP": lambda image: encoded(image, "WEBP", lossless=True),
    "GIF": lambda image: encoded(image, "GIF"),
    "BMP": lambda image: encoded(image, "BMP"),
    "TIFF": lambda image: encoded(image, "TIFF"),
}


@pytest.mark.parametrize("file_format", FORMATS)
def test_a_format_is_recognised_by_its_content(file_format: str) -> None:
    """Every documented format is accepted, and its MIME type is determined from its bytes, never from a name."""
    data = FORMATS[file_format](quarters())

    checked = check_image(data, "image", form="as_sent")

    assert checked == EncodedImage(data, 32, 16, f"image/{file_format.lower()}")
    assert identify(data) == checked
    assert file_format in INPUT_FORMATS
    assert flattened(data).convert("RGB").getpixel((1, 1)) == pytest.approx(RED, abs=3)


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP", "BMP", "TIFF"])
def test_an_image_that_needs_no_change_keeps_its_bytes(file_format: str) -> None:
    """An image that already is a single upright RGB frame is not encoded again."""
    data = FORMATS[file_format](quarters())

    assert check_image(data, "image", form="flat").data is data


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_a_rotated_image_is_turned_upright(file_format: str, orientation: int) -> None:
    """Each of the eight EXIF orientations results in the image that a viewer shows."""
    turns: dict[int, Image.Transpose] = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = quarters().transpose(turns[orientation]) if orientation in turns else quarters()
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    data = encoded(stored, file_format, exif=exif)

    image = flattened(data)

    assert image.size == (32, 16)
    corners = [image.getpixel(corner) for corner in ((3, 3), (28, 3), (3, 12), (28, 12))]
    assert corners == [pytest.approx(colour, abs=16) for colour in (RED, GREEN, BLUE, YELLOW)]
    assert ImageOps.exif_transpose(image).size == image.size
    assert (check_image(data, "image", form="flat").data == data) is (orientation == 1)
    assert check_image(data, "image", form="as_sent").data == data


@pytest.mark.parametrize("orientation", [0, 9, 1000])
def test_an_invalid_orientation_is_ignored(orientation: int) -> None:
    """The image and its bytes are not changed."""
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    data = encoded(quarters(), exif=exif)

    assert check_image(data, "image", form="flat").data == data


def palette_png(transparent: int) -> bytes:
    """Return a PNG of two colours, green (0) on the left and red (1) on the right; one is transparent."""
    image = Image.new("P", (16, 16), 0)
    image.putpalette([*GREEN, *RED])
    image.paste(1, (8, 0, 16, 16))
    return encoded(image, transparency=transparent)


@pytest.mark.parametrize(
    ("data", "left", "right"),
    [
        (encoded(Image.new("RGBA", (16, 16), (255, 0, 0, 0))), (255, 255, 255), (255, 255, 255)),
        (encoded(Image.new("RGBA", (16, 16), (255, 0, 0, 255))), RED, RED),
        (encoded(Image.new("RGBA", (16, 16), (0, 0, 0, 51))), (204, 204, 204), (204, 204, 204)),
        (encoded(Image.new("LA", (16, 16), (100, 0))), (255, 255, 255), (255, 255, 255)),
        (encoded(Image.new("LA", (16, 16), (100, 255))), (100, 100, 100), (100, 100, 100)),
        (encoded(Image.new("RGB", (16, 16), RED), transparency=RED), (255, 255, 255), (255, 255, 255)),
        (encoded(Image.new("L", (16, 16), 7), transparency=7), (255, 255, 255), (255, 255, 255)),
        (palette_png(transparent=0), (255, 255, 255), RED),
        (encoded(Image.new("RGBA", (16, 16), (255, 0, 0, 0)), "WEBP", lossless=True), (255,) * 3, (255,) * 3),
        (encoded(Image.new("RGBA", (16, 16), (255, 0, 0, 0)), "TIFF"), (255,) * 3, (255,) * 3),
        (encoded(Image.new("RGBA", (16, 16), (255, 0, 0, 0)), "GIF"), (255,) * 3, (255,) * 3),
    ],
    ids=["rgba", "opaque", "half", "la", "la-opaque", "rgb-key", "l-key", "palette", "webp", "tiff", "gif"],
)
def test_transparent_parts_are_white(data: bytes, left: tuple[int, ...], right: tuple[int, ...]) -> None:
    """Alpha of any kind is composited over white and never shows the colour beneath."""
    image = flattened(data)

    assert image.getpixel((1, 8)) == left
    assert image.getpixel((14, 8)) == right


@pytest.mark.parametrize(
    ("data", "colour"),
    [
        (encoded(Image.new("L", (16, 16), 77)), (77, 77, 77)),
        (encoded(Image.new("1", (16, 16), 1)), (255, 255, 255)),
        (encoded(Image.new("P", (16, 16), 0)), None),
        (encoded(Image.new("I;16", (16, 16), 77 * 257)), (77, 77, 77)),
        (encoded(Image.new("I;16", (16, 16), 77 * 257), transparency=77 * 257), (77, 77, 77)),
        (encoded(Image.new("I;16", (16, 16), 77 * 257), "TIFF"), (77, 77, 77)),
        (encoded(Image.new("I", (16, 16), 77 * 257), "TIFF"), (77, 77, 77)),
        (encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG"), RED),
        (encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "TIFF"), RED),
    ],
    ids=["grey", "bits", "palette", "grey16", "grey16-key", "grey16-tiff", "grey32-tiff", "cmyk-jpeg", "cmyk-tiff"],
)
def test_other_modes_become_rgb(data: bytes, colour: tuple[int, ...] | None) -> None:
    """Grey of 8 or 16 bits, palette, bitmap and CMYK are converted to the RGB that a viewer shows."""
    image = flattened(data)

    if colour is not None:
        assert image.getpixel((8, 8)) == pytest.approx(colour, abs=3)
    assert image.getpixel((8, 8)) == image.getpixel((0, 0))


@pytest.mark.parametrize("file_format", ["GIF", "PNG", "WEBP", "TIFF"])
def test_image_to_image_uses_the_first_frame_of_an_animation(file_format: str) -> None:
    """Image to image gets one frame; a caller's graph gets the animation unchanged."""
    data = animated(file_format)

    image = flattened(data)

    assert getattr(image, "n_frames", 1) == 1
    assert image.getpixel((8, 8)) == pytest.approx(RED, abs=3)
    assert check_image(data, "image", form="as_sent").data is data
    assert identify(data) == EncodedImage(data, 16, 16, f"image/{file_format.lower()}", is_animated=True)


@IGNORE_PILLOW_WARNINGS
@pytest.mark.parametrize("file_format", FORMATS)
def test_a_truncated_file_is_rejected_or_decoded(file_format: str) -> None:
    """A file that is truncated anywhere is accepted, or rejected with invalid_image; many are rejected."""
    data = FORMATS[file_format](noise())
    rejections = 0
    for end in [*range(min(64, len(data))), *range(64, len(data), max(1, len(data) // 150))]:
        for form in FORMS:
            match outcome(data[:end], form=form):
                case EncodedImage(data=taken) as checked:
                    assert (checked.width, checked.height) == (40, 30)
                    assert form == "as_sent" or decoded(taken).size == (40, 30)
                case code:
                    assert code is ErrorCode.INVALID_IMAGE
                    rejections += 1
        found = identify(data[:end])
        assert found is None or (found.width, found.height) == (40, 30)

    assert rejections > 200
    assert "truncated" in refusal(data[: len(data) // 2])


def damaged(count: int) -> Iterator[bytes]:
    """Yield files of every format with some bytes changed; the changes are reproducible."""
    chance = random.Random(20)  # noqa: S311 - reproducible, not secret
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    exif.get_ifd(EXIF_IFD)[USER_COMMENT] = b"x" * 40
    whole = [
        *(make(noise()) for make in FORMATS.values()),
        *(encoded(noise(), file_format, exif=exif) for file_format in ("PNG", "JPEG", "WEBP", "TIFF")),
        *(animated(file_format) for file_format in ("GIF", "PNG", "WEBP", "TIFF")),
        encoded(noise("CMYK"), "JPEG"),
        encoded(noise("LA")),
        encoded(noise("L"), "TIFF", compression="tiff_lzw"),
    ]
    for data in itertools.islice(itertools.cycle(whole), count):
        changed = bytearray(data)
        for _ in range(chance.randint(1, 5)):
            place = chance.randrange(min(len(changed), chance.choice([40, 200, len(changed)])))
            how = chance.random()
            if how < 0.6:
                changed[place] = chance.choice([0, 1, 127, 128, 255, chance.randrange(256)])
            elif how < 0.75:
                del changed[place : place + chance.randint(1, 8)]
            elif how < 0.9:
                changed[place:place] = chance.randbytes(chance.randint(1, 8))
            else:
                changed[place : place + 4] = chance.choice([b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff"])
        yield bytes(changed)


@IGNORE_PILLOW_WARNINGS
def test_a_damaged_file_is_rejected_or_decoded() -> None:
    """Damage always results in an image or a documented error, even if Pillow raises an undocumented exception."""
    verdicts = [outcome(data, form="flat") for data in damaged(6 * settings().max_examples)]

    codes = [code for code in verdicts if isinstance(code, ErrorCode)]
    assert set(codes) == {ErrorCode.INVALID_IMAGE}
    assert 0.1 < len(codes) / len(verdicts) < 0.9


@IGNORE_PILLOW_WARNINGS
def test_identifying_a_damaged_file_does_not_fail() -> None:
    """A damaged file from ComfyUI is a still image or not, without an exception."""
    found = [identify(data) for data in damaged(3 * settings().max_examples)]

    assert None in found
    assert any(checked and checked.width == 40 for checked in found)


@pytest.mark.parametrize(
    "data",
    [
        b"GIF87a\x14\x00\x14\x00\x87\x00\x00\x00",
        b"II*\x00\x08\x00\x00\x00\x00\x00",
        b"II*\x00\x08\x00\x00\x00\x01\x00\x00\x01\x03\x00\x01\x00\x00\x00\x05\x00\x00\x00",
    ],
    ids=["gif-colours", "tiff-empty", "tiff-one-side"],
)
@IGNORE_PILLOW_WARNINGS
def test_a_damaged_header_is_rejected(data: bytes) -> None:
    """Files for which Pillow raises IndexError or TypeError are rejected like other damaged files."""
    assert refusal(data)
    assert identify(data) is None


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"a pixel art knight",
        b"<!doctype html><html><body>404</body></html>",
        b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>',
        b"%PDF-1.7\n1 0 obj\n<<>>\nendobj\n",
        b"\0" * 1000,
        b"\x00\x00\x00\x1cftypavif",
        encoded(quarters(), "PPM"),
        encoded(quarters(), "ICO"),
        encoded(quarters(), "TGA"),
        encoded(quarters(), "JPEG2000"),
    ],
    ids=["empty", "text", "html", "svg", "pdf", "zeros", "avif", "ppm", "ico", "tga", "jpeg2000"],
)
@pytest.mark.parametrize("form", ["flat", "as_sent"])
def test_a_file_that_is_not_an_image_is_rejected(data: bytes, *, form: ImageForm) -> None:
    """Text, documents and unsupported formats are rejected; the remedy lists the supported formats."""
    assert refusal(data, form=form).endswith("is not an image of a known format.")
    assert all(known in ErrorCode.INVALID_IMAGE.remedy.upper() for known in INPUT_FORMATS)
    assert identify(data) is None


@pytest.mark.parametrize(
    "data",
    [
        huge_png(50_000, 50_000),
        huge_png(2**31 - 1, 2**31 - 1),
        huge_png(9_000, 9_000),
        huge_png(10_000, 10_000),
        huge_gif(65_535, 65_535),
        huge_bmp(100_000, 100_000),
        huge_bmp(2**31 - 1, 2),
    ],
    ids=["png-50k", "png-max", "png-9k", "png-10k", "gif", "bmp-100k", "bmp-wide"],
)
def test_a_decompression_bomb_is_rejected_by_its_header(data: bytes) -> None:
    """A tiny file that would have more than 64 megapixels is rejected before it is decoded."""
    assert len(data) < 200
    began_at = time.process_time()
    for form in FORMS:
        assert "67,108,864" in refusal(data, form=form)
    assert time.process_time() - began_at < 1


@pytest.mark.parametrize("form", ["flat", "as_sent"])
def test_oversized_text_is_not_decompressed(*, form: ImageForm) -> None:
    """A PNG whose text would decompress to 50 MB is accepted, as by ComfyUI, and the text is not decompressed."""
    packed = zlib.compress(b"\0" * 50_000_000, 9)
    data = encoded(quarters())
    for kind, text in ((b"zTXt", b"a\0\0" + packed), (b"iTXt", b"a\0\1\0\0\0" + packed)):
        whole = data[:33] + png_chunk(kind, text) + data[33:]
        tracemalloc.start()
        checked = check_image(whole, "image", form=form)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()

        assert (checked.width, checked.height) == (32, 16)
        assert decoded(checked.data if form == "flat" else data).tobytes() == quarters().tobytes()
        assert peak < 20_000_000


def test_the_limit_of_pixels() -> None:
    """64 megapixels are accepted, one more row is not; the message has the size."""
    largest = Image.new("1", (8192, 8192))
    too_large = Image.new("1", (8192, 8193))

    assert check_image(encoded(largest), "image", form="as_sent").width == 8192
    assert refusal(encoded(too_large)) == "images[2].image has 8192 x 8193 pixels; at most 67,108,864 are allowed."


def test_the_limit_of_bytes() -> None:
    """25 MB are accepted, and one more byte is rejected."""
    whole = encoded(quarters())
    full = whole + b"\0" * (MAX_BYTES - len(whole))

    assert check_image(full, "image", form="flat").data is full
    assert "26,214,401 bytes; at most 26,214,400" in refusal(full + b"\0")


@given(width=st.integers(1, 20_000), height=st.integers(1, 20_000))
def test_a_rounded_size_is_within_the_limits(width: int, height: int) -> None:
    """Both sides become multiples of 16 from 64 to 2048, with at most 2 megapixels; the proportions are kept."""
    size = rounded_size(width, height)

    assert all(side % 16 == 0 and 64 <= side <= 2048 for side in size)
    assert size[0] * size[1] <= 2 * 1024 * 1024
    scale = min(1.0, (2 * 1024 * 1024 / (width * height)) ** 0.5, 2048 / max(width, height))
    for side, own in zip(size, (width, height), strict=True):
        assert side == 64 or abs(side - own * scale) < 16
    assert sorted(rounded_size(height, width)) == sorted(size)


@given(width=st.integers(4, 128), height=st.integers(4, 128))
def test_a_valid_size_is_kept(width: int, height: int) -> None:
    """A size that can be generated is not changed; a larger one is not increased."""
    width, height = width * 16, height * 16

    if width * height <= 2 * 1024 * 1024:
        assert rounded_size(width, height) == (width, height)
    else:
        assert rounded_size(width, height) < (width + 1, height + 1)


PNG_TEXTS = {
    "prompt": json.dumps({"3": {"inputs": {"text": "größer"}}}),
    "parameters": "ein Ritter, 像素骑士, рыцарь, 🗡️\nsteps: 20",
}


def chunks_of(png: bytes) -> dict[str, bytes]:
    """Return the chunks of a PNG by type; those of one type are joined."""
    chunks: dict[str, bytes] = {}
    place = 8
    while place < len(png):
        [length] = struct.unpack(">I", png[place : place + 4])
        kind, content = png[place + 4 : place + 8], png[place + 8 : place + 8 + length]
        assert zlib.crc32(kind + content) == struct.unpack(">I", png[place + 8 + length : place + 12 + length])[0]
        chunks[kind.decode()] = chunks.get(kind.decode(), b"") + content
        place += 12 + length
    return chunks


def test_a_png_keeps_its_compressed_data() -> None:
    """Adding text to a PNG keeps every chunk, without compressing it again; text in any script can be read back."""
    png = encoded(noise())

    data = encode_image(png, "png", 90, PNG_TEXTS).data

    before, after = chunks_of(png), chunks_of(data)
    assert {kind: content for kind, content in after.items() if kind not in {"tEXt", "iTXt"}} == before
    assert next(iter(after)) == "IHDR"
    image = decoded(data)
    assert image.tobytes() == noise().tobytes()
    assert {key: image.info[key] for key in PNG_TEXTS} == PNG_TEXTS
    assert image.info.keys() == PNG_TEXTS.keys()


def test_a_png_without_metadata_is_not_changed() -> None:
    """Without metadata no byte of a PNG changes."""
    png = encoded(noise())

    assert encode_image(png, "png", 1, {}).data == png


@pytest.mark.parametrize("output_format", ["webp", "jpeg"])
def test_webp_and_jpeg_contain_the_parameters(output_format: str) -> None:
    """Other formats contain the same image, and their EXIF comment is the parameters in any script."""
    data = encode_image(encoded(quarters(64, 64)), output_format, 95, PNG_TEXTS).data

    image = decoded(data)
    assert (image.format or "").lower() == output_format
    assert image.convert("RGB").getpixel((8, 8)) == pytest.approx(RED, abs=6)
    comment = image.getexif().get_ifd(EXIF_IFD)[USER_COMMENT]
    assert comment[:8] == b"UNICODE\0"
    assert comment[8:].decode("utf-16-be") == PNG_TEXTS["parameters"]
    assert identify(data) == EncodedImage(data, 64, 64, f"image/{output_format}")


@pytest.mark.parametrize("output_format", ["webp", "jpeg"])
def test_without_parameters_there_is_no_comment(output_format: str) -> None:
    """Without metadata, or with only the graph, nothing is written into the file."""
    png = encoded(noise())

    data = encode_image(png, output_format, 90, {}).data

    assert USER_COMMENT not in decoded(data).getexif().get_ifd(EXIF_IFD)
    assert encode_image(png, output_format, 90, {"prompt": "{}"}).data == data


@pytest.mark.parametrize("output_format", ["png", "webp", "jpeg"])
def test_parameters_of_any_length_are_written(output_format: str) -> None:
    """Parameters that are too long for a format do not make the encoding fail."""
    data = encode_image(encoded(noise()), output_format, 90, {"parameters": "🗡" * 100_000}).data

    assert decoded(data).size == (40, 30)


@pytest.mark.parametrize("output_format", ["webp", "jpeg"])
def test_quality_changes_the_file_size(output_format: str) -> None:
    """Higher quality takes more bytes."""
    png = encoded(noise())
    sizes = [len(encode_image(png, output_format, quality, {}).data) for quality in (1, 50, 100)]

    assert sizes == sorted(set(sizes))


def test_alpha_is_kept_if_the_format_supports_it() -> None:
    """WebP and PNG keep transparency; JPEG does not support it."""
    png = encoded(Image.new("RGBA", (16, 16), (255, 0, 0, 0)))

    modes = {name: decoded(encode_image(png, name, 90, {}).data).mode for name in ("png", "webp", "jpeg")}

    assert modes == {"png": "RGBA", "webp": "RGBA", "jpeg": "RGB"}


def test_the_same_image_is_the_same_file() -> None:
    """The same image and text result in the same bytes, so hashes can be compared."""
    png = encoded(noise())
    for output_format in ("png", "webp", "jpeg"):
        first, second = (encode_image(png, output_format, 80, PNG_TEXTS).data for _ in range(2))
        assert hashlib.sha256(first).digest() == hashlib.sha256(second).digest()


def test_an_image_is_identified_by_its_header() -> None:
    """A still image is recognised by its first bytes; other files, and a header with a huge size, are not."""
    data = encoded(quarters())

    assert identify(data[:60]) == EncodedImage(data[:60], 32, 16, "image/png")
    assert identify(b"") is None
    assert identify(b"\0\0\0\x18ftypmp42") is None
    assert identify(huge_png(50_000, 50_000)) is None


def test_a_preview_is_small() -> None:
    """A preview is a JPEG in the image's proportions; a small image is not enlarged."""
    preview = decoded(small_preview(encoded(quarters(1024, 512), "JPEG")) or b"")
    little = decoded(small_preview(encoded(quarters(), "JPEG")) or b"")

    assert (preview.format, preview.size) == ("JPEG", (256, 128))
    assert preview.getpixel((8, 8)) == pytest.approx(RED, abs=8)
    assert little.size == (32, 16)


@IGNORE_PILLOW_WARNINGS
def test_an_invalid_preview_is_none() -> None:
    """Other formats and truncated or damaged frames result in no preview, and never fail a job."""
    whole = encoded(noise(), "JPEG")

    assert small_preview(b"") is None
    assert small_preview(encoded(noise())) is None
    assert small_preview(whole.replace(struct.pack(">HH", 30, 40), b"\xff\xdc\xff\xdc", 1)) is None
    assert small_preview(whole[: len(whole) // 2]) is None
    assert all(
        preview is None or decoded(preview).size for preview in map(small_preview, damaged(3 * settings().max_examples))
    )


# Images with small damage, which viewers show


SMOOTH_IMAGE = Image.linear_gradient("L").resize((400, 400)).convert("RGB")
TRUNCATED_IMAGES: dict[str, tuple[Callable[[], bytes], int]] = {
    "JPEG": (lambda: encoded(SMOOTH_IMAGE, "JPEG", quality=90), 2),
    "progressive JPEG": (lambda: encoded(SMOOTH_IMAGE, "JPEG", quality=90, progressive=True), 2),
    "small JPEG": (lambda: encoded(noise("L").resize((400, 400)), "JPEG", quality=60), 60),
    "JPEG of a camera": (lambda: encoded(SMOOTH_IMAGE.convert("CMYK"), "JPEG", quality=90), 3),
    "PNG without IEND": (lambda: encoded(SMOOTH_IMAGE), 12),
    "PNG without its last rows": (lambda: encoded(noise().resize((400, 400))), 2000),
    "PNG of a palette": (lambda: encoded(noise("P").resize((400, 400), Image.Resampling.NEAREST)), 30),
    "GIF": (lambda: encoded(SMOOTH_IMAGE, "GIF"), 10),
    "BMP": (lambda: encoded(SMOOTH_IMAGE, "BMP"), 1000),
    "TIFF": (lambda: encoded(SMOOTH_IMAGE, "TIFF"), 1000),
}
"""A function that makes the complete file, and the number of bytes to cut off, by kind of file."""


@IGNORE_PILLOW_WARNINGS
@pytest.mark.parametrize("kind", TRUNCATED_IMAGES)
def test_an_image_that_lacks_its_last_bytes_is_accepted(kind: str) -> None:
    """ComfyUI and every viewer open such a file. A graph gets it unchanged; image to image gets the completed image."""
    make, missing = TRUNCATED_IMAGES[kind]
    whole = make()
    cut = whole[:-missing]

    assert check_image(cut, "image", form="as_sent").data is cut
    image, complete = flattened(cut), flattened(whole)
    assert image.crop((0, 20, 400, 380)).tobytes() == complete.crop((0, 20, 400, 380)).tobytes()


@IGNORE_PILLOW_WARNINGS
@pytest.mark.parametrize("kind", TRUNCATED_IMAGES)
@pytest.mark.parametrize("part", [0.3, 0.5, 0.9])
def test_an_image_that_lacks_a_tenth_or_more_is_rejected(kind: str, part: float) -> None:
    """An image of which only 30, 50 or 90 percent arrived is rejected."""
    make, _ = TRUNCATED_IMAGES[kind]
    whole = make()
    if "PNG" in kind or "progressive" in kind:  # the end of a smooth image has almost no data
        options = {"progressive": True} if "progressive" in kind else {}
        whole = encoded(Image.effect_noise((400, 400), 90), "JPEG" if options else "PNG", **options)

    assert "cannot be decoded" in refusal(whole[: int(len(whole) * part)])


@IGNORE_PILLOW_WARNINGS
def test_a_jpeg_truncated_before_its_last_rows_is_rejected() -> None:
    """A JPEG is also rejected if it ends after the first byte of a marker or of a stuffed 0xFF."""
    whole = encoded(Image.effect_noise((160, 160), 90).convert("RGB"), "JPEG", quality=95)
    stuffed = [place + 1 for place in range(700, len(whole) * 8 // 10) if whole[place] == 0xFF]

    assert len(stuffed) > 20
    assert {outcome(whole[:end], form="flat") for end in stuffed} == {ErrorCode.INVALID_IMAGE}


# AVIF


def test_avif_becomes_png_with_its_transparency() -> None:
    """Not every ComfyUI reads AVIF, so a graph gets a PNG of the same size with alpha.

    Image to image gets the image over white.
    """
    image = Image.new("RGBA", (64, 32), (0, 0, 255, 255))
    image.paste((0, 0, 0, 0), (32, 0, 64, 32))
    data = encoded(image, "AVIF", quality=100)

    for_graph = decoded(check_image(data, "image", form="as_sent").data)

    assert (for_graph.format, for_graph.mode, for_graph.size) == ("PNG", "RGBA", (64, 32))
    assert [for_graph.getpixel((x, 16))[3] for x in (8, 56)] == [255, 0]  # type: ignore[index] # a pixel of RGBA is a tuple
    assert flattened(data).getpixel((56, 16)) == pytest.approx((255, 255, 255), abs=3)
    assert identify(data) == EncodedImage(data, 64, 32, "image/avif")
    assert converted(data, "jpeg").mime_type == "image/jpeg"


def test_an_avif_sequence_keeps_its_frames() -> None:
    """A graph gets all frames; image to image uses the first one."""
    data = animated("AVIF")

    assert check_image(data, "image", form="as_sent") == EncodedImage(data, 16, 16, "image/avif", is_animated=True)
    assert flattened(data).getpixel((8, 8)) == pytest.approx(RED, abs=6)


# Output


HIDDEN_COLOUR = (255, 0, 254)


def transparent_png(mode: str) -> bytes:
    """Return a PNG of 16 x 16 pixels that is completely transparent over a colour that must not be visible."""
    match mode:
        case "RGBA":
            return encoded(Image.new("RGBA", (16, 16), (*HIDDEN_COLOUR, 0)))
        case "LA":
            return encoded(Image.new("LA", (16, 16), (7, 0)))
        case "P":
            return palette_png(0)
        case _:
            colour = HIDDEN_COLOUR if mode == "RGB" else 7
            return encoded(Image.new(mode, (16, 16), colour), transparency=colour)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB", "L"])
def test_transparent_parts_are_white_in_a_jpeg(mode: str) -> None:
    """Every kind of PNG transparency becomes white, in a job's image and in a stored one."""
    png = transparent_png(mode)

    for checked in (encode_image(png, "jpeg", 95, {}), converted(png, "jpeg", quality=95)):
        image = decoded(checked.data)
        assert (image.format, image.mode, checked.mime_type) == ("JPEG", "RGB", "image/jpeg")
        assert image.getpixel((2, 8)) == pytest.approx((255, 255, 255), abs=2)


@pytest.mark.parametrize("output_format", ["webp", "jpeg"])
def test_sixteen_bits_are_scaled(output_format: str) -> None:
    """A 16-bit PNG, as custom nodes save it, is not all white in a format of 8 bits."""
    grey = decoded(encode_image(encoded(Image.new("I;16", (16, 16), 0x8080)), output_format, 95, {}).data)

    assert grey.convert("L").getpixel((8, 8)) == pytest.approx(0x80, abs=2)


def test_the_graph_is_in_a_text_chunk_that_every_frontend_reads() -> None:
    """ComfyUI's frontend 1.27.10 only reads `prompt` in tEXt (key, NUL, Latin-1). Other scripts need iTXt."""
    graph = json.dumps({"1": {"class_type": "CLIPTextEncode", "inputs": {"text": "ein Löwe, ライオン"}}})

    data = encode_image(encoded(noise()), "png", 90, {"prompt": graph, "parameters": "ライオン"}).data

    found = []
    place = 8
    while place < len(data):
        [length] = struct.unpack(">I", data[place : place + 4])
        found.append((data[place + 4 : place + 8], data[place + 8 : place + 8 + length]))
        place += 12 + length
    assert [content for kind, content in found if kind == b"tEXt"] == [b"prompt\0" + graph.encode("latin-1")]
    assert [content.partition(b"\0")[0] for kind, content in found if kind == b"iTXt"] == [b"parameters"]
    assert decoded(data).info == {"prompt": graph, "parameters": "ライオン"}


@pytest.mark.parametrize(
    ("output_format", "size"),
    [("webp", (16_384, 8)), ("webp", (8, 16_384)), ("jpeg", (65_501, 2)), ("jpeg", (2, 65_536))],
)
def test_an_image_too_long_for_its_format_stays_png(output_format: str, size: tuple[int, int]) -> None:
    """The job has been paid for: the image is returned as PNG, with its metadata and a warning."""
    checked = encode_image(encoded(Image.new("L", size)), output_format, 90, {"prompt": "{}"})

    assert (checked.mime_type, checked.width, checked.height) == ("image/png", *size)
    assert checked.warning.startswith(f"is a PNG: {output_format} holds at most")
    assert decoded(checked.data).info == {"prompt": "{}"}


def test_the_longest_possible_sides_are_encoded() -> None:
    """The encoders accept 16,383 and 65,500 pixels, so such images are not left as PNG."""
    for output_format, longest in (("webp", 16_383), ("jpeg", 65_500)):
        checked = encode_image(encoded(Image.new("L", (longest, 1))), output_format, 90, {})
        assert (checked.mime_type, checked.warning) == (f"image/{output_format}", "")


@pytest.mark.parametrize("output_format", ["webp", "jpeg"])
def test_an_image_that_cannot_be_encoded_is_returned_unchanged(output_format: str) -> None:
    """If the encoder raises an exception, ComfyUI's image is returned with a warning."""
    broken = encoded(Image.effect_noise((64, 64), 90))[:2000]

    checked = encode_image(broken, output_format, 90, {})

    assert (checked.data, checked.mime_type, checked.width) == (broken, "image/png", 64)
    assert checked.warning == f"is a PNG: encoding it as {output_format} failed (OSError)"


@IGNORE_PILLOW_WARNINGS
def test_a_message_of_a_decoder_is_short() -> None:
    """No error is longer than 300 characters, whatever Pillow reports."""
    assert all(
        len(error.report.message) < 300 for data in damaged(300) for error in [rejection_of(data)] if error is not None
    )


def rejection_of(data: bytes) -> JobError | None:
    """Return the error for an image, if it is rejected."""
    try:
        check_image(data, "image", form="flat")
    except JobError as error:
        return error
    return None


def test_text_that_comfyui_wrote_is_replaced() -> None:
    """A graph that ComfyUI wrote into a PNG, in any kind of chunk, is replaced or removed; other text is kept."""
    info = PngImagePlugin.PngInfo()
    info.add_text("prompt", "inner", zip=True)
    info.add_itxt("workflow", "inner")
    info.add_text("Software", "kept")
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG", pnginfo=info)

    replaced = encode_image(file.getvalue(), "png", 90, {"prompt": "outer"}).data
    without = encode_image(file.getvalue(), "png", 90, {}).data

    assert decoded(replaced).info == {"prompt": "outer", "workflow": "inner", "Software": "kept"}
    assert decoded(without).info == {"Software": "kept"}
    assert b"inner" not in without
