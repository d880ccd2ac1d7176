"""Pictures: known by content, upright, opaque, whole, of a size that fits; and what leaves keeps its pixels."""

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
    Picture,
    check_picture,
    converted,
    encode_picture,
    identify,
    rounded_size,
    small_preview,
)

RED, GREEN, BLUE, YELLOW = (255, 0, 0), (0, 128, 0), (0, 0, 255), (255, 255, 0)
ORIENTATION = 0x0112
EXIF_IFD = 0x8769
USER_COMMENT = 0x9286


QUIET = pytest.mark.filterwarnings("ignore::UserWarning")
"""Pillow warns of damage that it decodes."""


def quarters(width: int = 32, height: int = 16) -> Image.Image:
    """Return a picture whose four quarters tell which way is up."""
    image = Image.new("RGB", (width, height), RED)
    image.paste(GREEN, (width // 2, 0, width, height // 2))
    image.paste(BLUE, (0, height // 2, width // 2, height))
    image.paste(YELLOW, (width // 2, height // 2, width, height))
    return image


def noise(mode: str = "RGB") -> Image.Image:
    """Return a picture whose file is not tiny."""
    pixels = hashlib.shake_128(b"noise")
    return Image.frombytes("RGB", (40, 30), pixels.digest(40 * 30 * 3)).convert(mode)


def saved(image: Image.Image, file_format: str = "PNG", **options: object) -> bytes:
    """Return a picture's file."""
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def opened(data: bytes) -> Image.Image:
    """Return the picture of a file, decoded."""
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def flat(data: bytes) -> Image.Image:
    """Return what image to image makes of a picture: a PNG whose size and mode are as promised."""
    picture = check_picture(data, "image", flatten=True)
    image = opened(picture.data)
    assert (image.mode, image.size) == ("RGB", (picture.width, picture.height))
    assert Image.MIME[image.format or ""] == picture.mime_type
    return image


def refusal(data: bytes, *, flatten: bool = True) -> str:
    """Return the problem in the message for `data`, and check the rest of the report."""
    with pytest.raises(JobError) as info:
        check_picture(data, "images[2].image", flatten=flatten)
    assert info.value.code is ErrorCode.INVALID_IMAGE
    assert info.value.report.details == {"path": "images[2].image"}
    problem, _, _ = info.value.report.message.partition(f" {ErrorCode.INVALID_IMAGE.remedy}")
    assert problem.startswith("images[2].image ")
    return problem


def verdict(data: bytes, *, flatten: bool) -> Picture | ErrorCode:
    """Return the picture, or the code of its refusal."""
    try:
        return check_picture(data, "image", flatten=flatten)
    except JobError as error:
        return error.code


def animated(file_format: str) -> bytes:
    """Return a file of three frames; the first is red."""
    frames = [Image.new("RGB", (16, 16), colour) for colour in (RED, GREEN, BLUE)]
    return saved(frames[0], file_format, save_all=True, append_images=frames[1:])


def png_chunk(kind: bytes, content: bytes) -> bytes:
    """Return a chunk of a PNG."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def huge_png(width: int, height: int) -> bytes:
    """Return a PNG of a few bytes that says it is so large."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    content = zlib.compress(b"\0" * 1000)
    signature = b"\x89PNG\r\n\x1a\n"
    return signature + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", content) + png_chunk(b"IEND", b"")


def huge_gif(width: int, height: int) -> bytes:
    """Return a GIF of a few bytes that says it is so large."""
    size = struct.pack("<HH", width, height)
    return b"GIF89a" + size + b"\x80\0\0" + b"\0" * 6 + b"," + b"\0" * 4 + size + b"\0\x02\x02\x4c\x01\0;"


def huge_bmp(width: int, height: int) -> bytes:
    """Return a BMP of a few bytes that says it is so large."""
    return b"BM" + struct.pack("<IHHI", 70, 0, 0, 54) + struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, *[0] * 6)


FORMATS: dict[str, Callable[[Image.Image], bytes]] = {
    "PNG": saved,
    "JPEG": lambda image: saved(image, "JPEG", quality=95),
    "WEBP": lambda image: saved(image, "WEBP", lossless=True),
    "GIF": lambda image: saved(image, "GIF"),
    "BMP": lambda image: saved(image, "BMP"),
    "TIFF": lambda image: saved(image, "TIFF"),
}


@pytest.mark.parametrize("file_format", FORMATS)
def test_a_format_is_known_by_its_content(file_format: str) -> None:
    """Every format of the promise is taken, and its MIME type comes from its bytes; nothing ever asks for a name."""
    data = FORMATS[file_format](quarters())

    picture = check_picture(data, "image", flatten=False)

    assert picture == Picture(data, 32, 16, f"image/{file_format.lower()}")
    assert identify(data) == picture
    assert file_format in INPUT_FORMATS
    assert flat(data).convert("RGB").getpixel((1, 1)) == pytest.approx(RED, abs=3)


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP", "BMP", "TIFF"])
def test_a_picture_that_fits_keeps_its_bytes(file_format: str) -> None:
    """What is one upright RGB frame already is not encoded anew."""
    data = FORMATS[file_format](quarters())

    assert check_picture(data, "image", flatten=True).data is data


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_a_turned_picture_stands_upright(file_format: str, orientation: int) -> None:
    """Each of the eight orientations of EXIF ends in the picture that a person sees."""
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
    data = saved(stored, file_format, exif=exif)

    image = flat(data)

    assert image.size == (32, 16)
    corners = [image.getpixel(corner) for corner in ((3, 3), (28, 3), (3, 12), (28, 12))]
    assert corners == [pytest.approx(colour, abs=16) for colour in (RED, GREEN, BLUE, YELLOW)]
    assert ImageOps.exif_transpose(image).size == image.size
    assert (check_picture(data, "image", flatten=True).data == data) is (orientation == 1)
    assert check_picture(data, "image", flatten=False).data == data


@pytest.mark.parametrize("orientation", [0, 9, 1000])
def test_an_orientation_that_is_none_turns_nothing(orientation: int) -> None:
    """A number that EXIF does not know leaves the picture and its bytes as they are."""
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    data = saved(quarters(), exif=exif)

    assert check_picture(data, "image", flatten=True).data == data


def palette(transparent: int) -> bytes:
    """Return a PNG of two colours, green on the left and red on the right, one of them transparent."""
    image = Image.new("P", (16, 16), 0)
    image.putpalette([*GREEN, *RED])
    image.paste(1, (8, 0, 16, 16))
    return saved(image, transparency=transparent)


@pytest.mark.parametrize(
    ("data", "left", "right"),
    [
        (saved(Image.new("RGBA", (16, 16), (255, 0, 0, 0))), (255, 255, 255), (255, 255, 255)),
        (saved(Image.new("RGBA", (16, 16), (255, 0, 0, 255))), RED, RED),
        (saved(Image.new("RGBA", (16, 16), (0, 0, 0, 51))), (204, 204, 204), (204, 204, 204)),
        (saved(Image.new("LA", (16, 16), (100, 0))), (255, 255, 255), (255, 255, 255)),
        (saved(Image.new("LA", (16, 16), (100, 255))), (100, 100, 100), (100, 100, 100)),
        (saved(Image.new("RGB", (16, 16), RED), transparency=RED), (255, 255, 255), (255, 255, 255)),
        (saved(Image.new("L", (16, 16), 7), transparency=7), (255, 255, 255), (255, 255, 255)),
        (palette(transparent=0), (255, 255, 255), RED),
        (saved(Image.new("RGBA", (16, 16), (255, 0, 0, 0)), "WEBP", lossless=True), (255,) * 3, (255,) * 3),
        (saved(Image.new("RGBA", (16, 16), (255, 0, 0, 0)), "TIFF"), (255,) * 3, (255,) * 3),
        (saved(Image.new("RGBA", (16, 16), (255, 0, 0, 0)), "GIF"), (255,) * 3, (255,) * 3),
    ],
    ids=["rgba", "opaque", "half", "la", "la-opaque", "rgb-key", "l-key", "palette", "webp", "tiff", "gif"],
)
def test_transparent_parts_are_white(data: bytes, left: tuple[int, ...], right: tuple[int, ...]) -> None:
    """Alpha of any kind is laid over white, and never shows what was hidden beneath."""
    image = flat(data)

    assert image.getpixel((1, 8)) == left
    assert image.getpixel((14, 8)) == right


@pytest.mark.parametrize(
    ("data", "colour"),
    [
        (saved(Image.new("L", (16, 16), 77)), (77, 77, 77)),
        (saved(Image.new("1", (16, 16), 1)), (255, 255, 255)),
        (saved(Image.new("P", (16, 16), 0)), None),
        (saved(Image.new("I;16", (16, 16), 77 * 257)), (77, 77, 77)),
        (saved(Image.new("I;16", (16, 16), 77 * 257), transparency=77 * 257), (77, 77, 77)),
        (saved(Image.new("I;16", (16, 16), 77 * 257), "TIFF"), (77, 77, 77)),
        (saved(Image.new("I", (16, 16), 77 * 257), "TIFF"), (77, 77, 77)),
        (saved(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG"), RED),
        (saved(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "TIFF"), RED),
    ],
    ids=["grey", "bits", "palette", "grey16", "grey16-key", "grey16-tiff", "grey32-tiff", "cmyk-jpeg", "cmyk-tiff"],
)
def test_other_modes_become_rgb(data: bytes, colour: tuple[int, ...] | None) -> None:
    """Grey of 8 or 16 bits, palette, bits and CMYK become the RGB that a person sees."""
    image = flat(data)

    if colour is not None:
        assert image.getpixel((8, 8)) == pytest.approx(colour, abs=3)
    assert image.getpixel((8, 8)) == image.getpixel((0, 0))


@pytest.mark.parametrize("file_format", ["GIF", "PNG", "WEBP", "TIFF"])
def test_an_animation_gives_its_first_frame(file_format: str) -> None:
    """Image to image takes the first frame; a graph of the caller's own gets all of them; it is no still picture."""
    data = animated(file_format)

    image = flat(data)

    assert getattr(image, "n_frames", 1) == 1
    assert image.getpixel((8, 8)) == pytest.approx(RED, abs=3)
    assert check_picture(data, "image", flatten=False).data is data
    assert identify(data) == Picture(data, 16, 16, f"image/{file_format.lower()}", is_animated=True)


@QUIET
@pytest.mark.parametrize("file_format", FORMATS)
def test_a_cut_file_is_refused_or_decoded(file_format: str) -> None:
    """A file that ends at any byte is taken or refused by the words of the report, and most are refused."""
    data = FORMATS[file_format](noise())
    refused = 0
    for end in [*range(min(64, len(data))), *range(64, len(data), max(1, len(data) // 150))]:
        for flatten in (True, False):
            match verdict(data[:end], flatten=flatten):
                case Picture(data=taken) as picture:
                    assert (picture.width, picture.height) == (40, 30)
                    assert not flatten or opened(taken).size == (40, 30)
                case code:
                    assert code is ErrorCode.INVALID_IMAGE
                    refused += 1
        found = identify(data[:end])
        assert found is None or (found.width, found.height) == (40, 30)

    assert refused > 200
    assert "truncated" in refusal(data[: len(data) // 2])


def damaged(count: int) -> Iterator[bytes]:
    """Yield files of every format with some bytes changed, always the same ones."""
    chance = random.Random(20)  # noqa: S311 - damage, no secret
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    exif.get_ifd(EXIF_IFD)[USER_COMMENT] = b"x" * 40
    whole = [
        *(make(noise()) for make in FORMATS.values()),
        *(saved(noise(), file_format, exif=exif) for file_format in ("PNG", "JPEG", "WEBP", "TIFF")),
        *(animated(file_format) for file_format in ("GIF", "PNG", "WEBP", "TIFF")),
        saved(noise("CMYK"), "JPEG"),
        saved(noise("LA")),
        saved(noise("L"), "TIFF", compression="tiff_lzw"),
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


@QUIET
def test_a_damaged_file_is_refused_or_decoded() -> None:
    """No damage to a file ends in anything but a picture or a refusal: not even in what Pillow never documents."""
    verdicts = [verdict(data, flatten=True) for data in damaged(6 * settings().max_examples)]

    codes = [code for code in verdicts if isinstance(code, ErrorCode)]
    assert set(codes) == {ErrorCode.INVALID_IMAGE}
    assert 0.1 < len(codes) / len(verdicts) < 0.9


@QUIET
def test_a_damaged_file_is_identified_or_not() -> None:
    """What ComfyUI sends is a still picture or none, whatever it is."""
    found = [identify(data) for data in damaged(3 * settings().max_examples)]

    assert None in found
    assert any(picture and picture.width == 40 for picture in found)


@pytest.mark.parametrize(
    "data",
    [
        b"GIF87a\x14\x00\x14\x00\x87\x00\x00\x00",
        b"II*\x00\x08\x00\x00\x00\x00\x00",
        b"II*\x00\x08\x00\x00\x00\x01\x00\x00\x01\x03\x00\x01\x00\x00\x00\x05\x00\x00\x00",
    ],
    ids=["gif-colours", "tiff-empty", "tiff-one-side"],
)
@QUIET
def test_a_damaged_header_is_refused(data: bytes) -> None:
    """Files at which Pillow raises IndexError or TypeError are refused like any other."""
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
        saved(quarters(), "PPM"),
        saved(quarters(), "ICO"),
        saved(quarters(), "TGA"),
        saved(quarters(), "JPEG2000"),
    ],
    ids=["empty", "text", "html", "svg", "pdf", "zeros", "avif", "ppm", "ico", "tga", "jpeg2000"],
)
@pytest.mark.parametrize("flatten", [True, False])
def test_what_is_no_picture_is_refused(data: bytes, *, flatten: bool) -> None:
    """Text, documents and the formats that were not chosen reach no decoder; the message names the known ones."""
    assert refusal(data, flatten=flatten).endswith("is not an image of a known format.")
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
def test_a_bomb_is_refused_by_its_header(data: bytes) -> None:
    """A tiny file that would unpack to more than 64 megapixels is refused before anything is unpacked."""
    assert len(data) < 200
    began_at = time.monotonic()
    for flatten in (True, False):
        assert "67,108,864" in refusal(data, flatten=flatten)
    assert time.monotonic() - began_at < 1


@pytest.mark.parametrize("flatten", [True, False])
def test_text_that_is_too_large_is_not_unpacked(*, flatten: bool) -> None:
    """A PNG whose text would unpack to 50 MB is taken without it, as ComfyUI takes it."""
    packed = zlib.compress(b"\0" * 50_000_000, 9)
    data = saved(quarters())
    for kind, text in ((b"zTXt", b"a\0\0" + packed), (b"iTXt", b"a\0\1\0\0\0" + packed)):
        whole = data[:33] + png_chunk(kind, text) + data[33:]
        tracemalloc.start()
        picture = check_picture(whole, "image", flatten=flatten)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()

        assert (picture.width, picture.height) == (32, 16)
        assert opened(picture.data if flatten else data).tobytes() == quarters().tobytes()
        assert peak < 20_000_000


def test_as_many_pixels_as_promised_are_taken() -> None:
    """64 megapixels are taken, one row more is not; the message names the size."""
    row = Image.new("1", (8192, 8192))
    more = Image.new("1", (8192, 8193))

    assert check_picture(saved(row), "image", flatten=False).width == 8192
    assert refusal(saved(more)) == "images[2].image has 8192 x 8193 pixels; at most 67,108,864 are allowed."


def test_as_many_bytes_as_promised_are_taken() -> None:
    """25 MB are taken, one byte more is not."""
    whole = saved(quarters())
    full = whole + b"\0" * (MAX_BYTES - len(whole))

    assert check_picture(full, "image", flatten=True).data is full
    assert "26,214,401 bytes; at most 26,214,400" in refusal(full + b"\0")


@given(width=st.integers(1, 20_000), height=st.integers(1, 20_000))
def test_a_rounded_size_fits(width: int, height: int) -> None:
    """Any picture's size becomes multiples of 16 from 64 to 2048, of at most 2 megapixels, in its proportions."""
    size = rounded_size(width, height)

    assert all(side % 16 == 0 and 64 <= side <= 2048 for side in size)
    assert size[0] * size[1] <= 2 * 1024 * 1024
    scale = min(1.0, (2 * 1024 * 1024 / (width * height)) ** 0.5, 2048 / max(width, height))
    for side, own in zip(size, (width, height), strict=True):
        assert side == 64 or abs(side - own * scale) < 16
    assert sorted(rounded_size(height, width)) == sorted(size)


@given(width=st.integers(4, 128), height=st.integers(4, 128))
def test_a_size_that_fits_is_kept(width: int, height: int) -> None:
    """A picture whose own size can be made keeps it."""
    width, height = width * 16, height * 16

    if width * height <= 2 * 1024 * 1024:
        assert rounded_size(width, height) == (width, height)
    else:
        assert rounded_size(width, height) < (width + 1, height + 1)


TEXTS = {
    "prompt": json.dumps({"3": {"inputs": {"text": "größer"}}}),
    "parameters": "ein Ritter, 像素骑士, рыцарь, 🗡️\nsteps: 20",
}


def chunks_of(png: bytes) -> dict[str, bytes]:
    """Return the chunks of a PNG by kind, those of one kind one behind the other."""
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
    """Text is added to a PNG without compressing it anew: every chunk stays, and text of any script is read back."""
    png = saved(noise())

    data = encode_picture(png, "png", 90, TEXTS).data

    before, after = chunks_of(png), chunks_of(data)
    assert {kind: content for kind, content in after.items() if kind not in {"tEXt", "iTXt"}} == before
    assert next(iter(after)) == "IHDR"
    image = opened(data)
    assert image.tobytes() == noise().tobytes()
    assert {key: image.info[key] for key in TEXTS} == TEXTS
    assert image.info.keys() == TEXTS.keys()


def test_a_png_without_text_is_the_same_file() -> None:
    """Without metadata not a byte of a PNG changes."""
    png = saved(noise())

    assert encode_picture(png, "png", 1, {}).data == png


@pytest.mark.parametrize("output_format", ["webp", "jpeg"])
def test_webp_and_jpeg_carry_the_parameters(output_format: str) -> None:
    """The other formats show the same picture, and their EXIF comment is the parameters in any script."""
    data = encode_picture(saved(quarters(64, 64)), output_format, 95, TEXTS).data

    image = opened(data)
    assert (image.format or "").lower() == output_format
    assert image.convert("RGB").getpixel((8, 8)) == pytest.approx(RED, abs=6)
    comment = image.getexif().get_ifd(EXIF_IFD)[USER_COMMENT]
    assert comment[:8] == b"UNICODE\0"
    assert comment[8:].decode("utf-16-be") == TEXTS["parameters"]
    assert identify(data) == Picture(data, 64, 64, f"image/{output_format}")


@pytest.mark.parametrize("output_format", ["webp", "jpeg"])
def test_without_parameters_there_is_no_comment(output_format: str) -> None:
    """Without metadata, or with the graph alone, nothing is written into the file."""
    png = saved(noise())

    data = encode_picture(png, output_format, 90, {}).data

    assert USER_COMMENT not in opened(data).getexif().get_ifd(EXIF_IFD)
    assert encode_picture(png, output_format, 90, {"prompt": "{}"}).data == data


@pytest.mark.parametrize("output_format", ["png", "webp", "jpeg"])
def test_parameters_of_any_length_are_written(output_format: str) -> None:
    """A prompt beyond what a JPEG's EXIF can hold is cut there, and never ends a job that has been paid for."""
    data = encode_picture(saved(noise()), output_format, 90, {"parameters": "🗡" * 100_000}).data

    assert opened(data).size == (40, 30)


@pytest.mark.parametrize("output_format", ["webp", "jpeg"])
def test_quality_is_obeyed(output_format: str) -> None:
    """More quality takes more bytes."""
    png = saved(noise())
    sizes = [len(encode_picture(png, output_format, quality, {}).data) for quality in (1, 50, 100)]

    assert sizes == sorted(set(sizes))


def test_alpha_stays_where_the_format_has_it() -> None:
    """WebP and PNG keep a transparent picture transparent; JPEG has no transparency."""
    png = saved(Image.new("RGBA", (16, 16), (255, 0, 0, 0)))

    modes = {name: opened(encode_picture(png, name, 90, {}).data).mode for name in ("png", "webp", "jpeg")}

    assert modes == {"png": "RGBA", "webp": "RGBA", "jpeg": "RGB"}


def test_the_same_picture_is_the_same_file() -> None:
    """The same picture and text give the same bytes, so that a hash can tell."""
    png = saved(noise())
    for output_format in ("png", "webp", "jpeg"):
        first, second = (encode_picture(png, output_format, 80, TEXTS).data for _ in range(2))
        assert hashlib.sha256(first).digest() == hashlib.sha256(second).digest()


def test_a_picture_is_identified_by_its_header() -> None:
    """A still picture is known by its first bytes; what is none, or says that it is huge, is not."""
    data = saved(quarters())

    assert identify(data[:60]) == Picture(data[:60], 32, 16, "image/png")
    assert identify(b"") is None
    assert identify(b"\0\0\0\x18ftypmp42") is None
    assert identify(huge_png(50_000, 50_000)) is None


def test_a_preview_is_small() -> None:
    """A preview keeps its proportions in a few kilobytes; one that is small already is not enlarged."""
    preview = opened(small_preview(saved(quarters(1024, 512), "JPEG")) or b"")
    little = opened(small_preview(saved(quarters(), "JPEG")) or b"")

    assert (preview.format, preview.size) == ("JPEG", (256, 128))
    assert preview.getpixel((8, 8)) == pytest.approx(RED, abs=8)
    assert little.size == (32, 16)


@QUIET
def test_what_is_no_preview_gives_none() -> None:
    """Other formats, cut and damaged frames give no preview, and never end a job."""
    whole = saved(noise(), "JPEG")

    assert small_preview(b"") is None
    assert small_preview(saved(noise())) is None
    assert small_preview(whole.replace(struct.pack(">HH", 30, 40), b"\xff\xdc\xff\xdc", 1)) is None
    assert small_preview(whole[: len(whole) // 2]) is None
    assert all(
        preview is None or opened(preview).size for preview in map(small_preview, damaged(3 * settings().max_examples))
    )


# What viewers show although something is missing


SMOOTH = Image.linear_gradient("L").resize((400, 400)).convert("RGB")
WITHOUT_THEIR_END: dict[str, tuple[Callable[[], bytes], int]] = {
    "JPEG": (lambda: saved(SMOOTH, "JPEG", quality=90), 2),
    "progressive JPEG": (lambda: saved(SMOOTH, "JPEG", quality=90, progressive=True), 2),
    "small JPEG": (lambda: saved(noise("L").resize((400, 400)), "JPEG", quality=60), 60),
    "JPEG of a camera": (lambda: saved(SMOOTH.convert("CMYK"), "JPEG", quality=90), 3),
    "PNG without IEND": (lambda: saved(SMOOTH), 12),
    "PNG without its last rows": (lambda: saved(noise().resize((400, 400))), 2000),
    "PNG of a palette": (lambda: saved(noise("P").resize((400, 400), Image.Resampling.NEAREST)), 30),
    "GIF": (lambda: saved(SMOOTH, "GIF"), 10),
    "BMP": (lambda: saved(SMOOTH, "BMP"), 1000),
    "TIFF": (lambda: saved(SMOOTH, "TIFF"), 1000),
}


@QUIET
@pytest.mark.parametrize("kind", WITHOUT_THEIR_END)
def test_a_picture_that_lacks_its_last_bytes_is_taken(kind: str) -> None:
    """ComfyUI and every viewer open such a file. A graph gets it as it is; image to image gets a whole one."""
    make, missing = WITHOUT_THEIR_END[kind]
    whole = make()
    cut = whole[:-missing]

    assert check_picture(cut, "image", flatten=False).data is cut
    image, complete = flat(cut), flat(whole)
    assert image.crop((0, 20, 400, 380)).tobytes() == complete.crop((0, 20, 400, 380)).tobytes()


@QUIET
@pytest.mark.parametrize("kind", WITHOUT_THEIR_END)
@pytest.mark.parametrize("part", [0.3, 0.5, 0.9])
def test_a_picture_that_lacks_more_than_a_twentieth_is_refused(kind: str, part: float) -> None:
    """A file cut on its way is not half a picture to start from."""
    make, _ = WITHOUT_THEIR_END[kind]
    whole = make()
    if "PNG" in kind or "progressive" in kind:  # the end of a smooth one holds next to nothing
        options = {"progressive": True} if "progressive" in kind else {}
        whole = saved(Image.effect_noise((400, 400), 90), "JPEG" if options else "PNG", **options)

    assert "cannot be decoded" in refusal(whole[: int(len(whole) * part)])


@QUIET
def test_a_jpeg_cut_anywhere_before_its_last_rows_is_refused() -> None:
    """Wherever the cut falls, also behind the first byte of a marker or of a stuffed 0xFF."""
    whole = saved(Image.effect_noise((160, 160), 90).convert("RGB"), "JPEG", quality=95)
    stuffed = [place + 1 for place in range(700, len(whole) * 8 // 10) if whole[place] == 0xFF]

    assert len(stuffed) > 20
    assert {verdict(whole[:end], flatten=True) for end in stuffed} == {ErrorCode.INVALID_IMAGE}


# AVIF


def test_avif_becomes_png_with_its_transparency() -> None:
    """Not every ComfyUI reads AVIF, so a graph gets a PNG of the same size with alpha; image to image is over white."""
    image = Image.new("RGBA", (64, 32), (0, 0, 255, 255))
    image.paste((0, 0, 0, 0), (32, 0, 64, 32))
    data = saved(image, "AVIF", quality=100)

    for_graph = opened(check_picture(data, "image", flatten=False).data)

    assert (for_graph.format, for_graph.mode, for_graph.size) == ("PNG", "RGBA", (64, 32))
    assert [for_graph.getpixel((x, 16))[3] for x in (8, 56)] == [255, 0]  # type: ignore[index] # RGBA
    assert flat(data).getpixel((56, 16)) == pytest.approx((255, 255, 255), abs=3)
    assert identify(data) == Picture(data, 64, 32, "image/avif")
    assert converted(data, "jpeg").mime_type == "image/jpeg"


def test_an_avif_sequence_keeps_its_frames() -> None:
    """A graph may want all of them; image to image takes the first."""
    data = animated("AVIF")

    assert check_picture(data, "image", flatten=False) == Picture(data, 16, 16, "image/avif", is_animated=True)
    assert flat(data).getpixel((8, 8)) == pytest.approx(RED, abs=6)


# What is written


HIDDEN = (255, 0, 254)


def transparent(mode: str) -> bytes:
    """Return a PNG of 16 x 16 pixels that is wholly transparent over a colour that must not show."""
    match mode:
        case "RGBA":
            return saved(Image.new("RGBA", (16, 16), (*HIDDEN, 0)))
        case "LA":
            return saved(Image.new("LA", (16, 16), (7, 0)))
        case "P":
            return palette(0)
        case _:
            colour = HIDDEN if mode == "RGB" else 7
            return saved(Image.new(mode, (16, 16), colour), transparency=colour)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB", "L"])
def test_jpeg_shows_white_where_the_picture_is_transparent(mode: str) -> None:
    """However a PNG says that it is transparent, its JPEG is over white, from a job and from a stored picture."""
    png = transparent(mode)

    for picture in (encode_picture(png, "jpeg", 95, {}), converted(png, "jpeg", quality=95)):
        image = opened(picture.data)
        assert (image.format, image.mode, picture.mime_type) == ("JPEG", "RGB", "image/jpeg")
        assert image.getpixel((2, 8)) == pytest.approx((255, 255, 255), abs=2)


@pytest.mark.parametrize("output_format", ["webp", "jpeg"])
def test_sixteen_bits_are_scaled(output_format: str) -> None:
    """A 16-bit PNG, as custom nodes save it, does not turn white in a format of 8 bits."""
    grey = opened(encode_picture(saved(Image.new("I;16", (16, 16), 0x8080)), output_format, 95, {}).data)

    assert grey.convert("L").getpixel((8, 8)) == pytest.approx(0x80, abs=2)


def test_the_graph_is_in_a_text_chunk_that_every_frontend_reads() -> None:
    """ComfyUI's frontend 1.27.10 reads `prompt` in tEXt alone: key, NUL, Latin-1. Other scripts need iTXt."""
    graph = json.dumps({"1": {"class_type": "CLIPTextEncode", "inputs": {"text": "ein Löwe, ライオン"}}})

    data = encode_picture(saved(noise()), "png", 90, {"prompt": graph, "parameters": "ライオン"}).data

    found = []
    place = 8
    while place < len(data):
        [length] = struct.unpack(">I", data[place : place + 4])
        found.append((data[place + 4 : place + 8], data[place + 8 : place + 8 + length]))
        place += 12 + length
    assert [content for kind, content in found if kind == b"tEXt"] == [b"prompt\0" + graph.encode("latin-1")]
    assert [content.partition(b"\0")[0] for kind, content in found if kind == b"iTXt"] == [b"parameters"]
    assert opened(data).info == {"prompt": graph, "parameters": "ライオン"}


@pytest.mark.parametrize(
    ("output_format", "size"),
    [("webp", (16_384, 8)), ("webp", (8, 16_384)), ("jpeg", (65_501, 2)), ("jpeg", (2, 65_536))],
)
def test_a_picture_too_long_for_its_format_stays_png(output_format: str, size: tuple[int, int]) -> None:
    """The job is paid for: its picture comes as PNG, with the text in it and a warning."""
    picture = encode_picture(saved(Image.new("L", size)), output_format, 90, {"prompt": "{}"})

    assert (picture.mime_type, picture.width, picture.height) == ("image/png", *size)
    assert picture.warning.startswith(f"is a PNG: {output_format} holds at most")
    assert opened(picture.data).info == {"prompt": "{}"}


def test_the_longest_sides_are_encoded() -> None:
    """16,383 and 65,500 pixels are what the encoders take, so nothing is left a PNG without need."""
    for output_format, longest in (("webp", 16_383), ("jpeg", 65_500)):
        picture = encode_picture(saved(Image.new("L", (longest, 1))), output_format, 90, {})
        assert (picture.mime_type, picture.warning) == (f"image/{output_format}", "")


@pytest.mark.parametrize("output_format", ["webp", "jpeg"])
def test_what_cannot_be_encoded_stays_as_it_is(output_format: str) -> None:
    """Whatever the encoder raises, the picture that ComfyUI made is returned, with a warning."""
    broken = saved(Image.effect_noise((64, 64), 90))[:2000]

    picture = encode_picture(broken, output_format, 90, {})

    assert (picture.data, picture.mime_type, picture.width) == (broken, "image/png", 64)
    assert picture.warning == f"is a PNG: encoding it as {output_format} failed (OSError)"


@QUIET
def test_a_message_of_a_decoder_is_short() -> None:
    """No refusal is longer than 300 characters, whatever Pillow says."""
    assert all(
        len(error.report.message) < 300 for data in damaged(300) for error in [refused(data)] if error is not None
    )


def refused(data: bytes) -> JobError | None:
    """Return the refusal of a picture, if it is refused."""
    try:
        check_picture(data, "image", flatten=True)
    except JobError as error:
        return error
    return None


def test_text_that_comfyui_wrote_is_replaced() -> None:
    """A PNG that ComfyUI wrote the graph into, in any kind of chunk, has it once, or not at all; other text stays."""
    info = PngImagePlugin.PngInfo()
    info.add_text("prompt", "inner", zip=True)
    info.add_itxt("workflow", "inner")
    info.add_text("Software", "kept")
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG", pnginfo=info)

    replaced = encode_picture(file.getvalue(), "png", 90, {"prompt": "outer"}).data
    without = encode_picture(file.getvalue(), "png", 90, {}).data

    assert opened(replaced).info == {"prompt": "outer", "workflow": "inner", "Software": "kept"}
    assert opened(without).info == {"Software": "kept"}
    assert b"inner" not in without
