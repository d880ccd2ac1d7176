"""Parsing of JSON bodies within limits: long images are cut out, and hostile bodies are rejected quickly."""

from __future__ import annotations

import base64
import json
import random
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comfy_client.gateway.scenario.bodies import (
    LONG_TEXT_BYTES,
    MAX_VALUES,
    Attached,
    decode_base64_in_pieces,
    read_json,
)
from comfy_client.gateway.scenario.errors import ShimError
from simulators.runpod.scripted_worker import incompressible_png

LARGE = random.Random(1).randbytes(3_000_000)  # noqa: S311 - reproducible, not secret
LARGE_AS_BASE64 = base64.b64encode(LARGE)


@pytest.mark.parametrize("body", [b"", b" ", b"{}", b"[1, 2]", b'{"a": {"b": [null, "x"]}}', b'"x"', b"7"])
def test_a_small_body_is_parsed(body: bytes) -> None:
    """A small body is parsed as the standard library does; an empty one is None."""
    assert read_json(body) == (json.loads(body) if body.strip() else None)


def test_a_long_image_is_cut_out_and_decoded() -> None:
    """In place of the image the parsed body has a short text with the data, which is equal for equal images."""
    body = (
        b'{"prompt": "a \\"knight\\"", "image": "data:image/png;base64,'
        + LARGE_AS_BASE64
        + b'", "parameters": {"image": "x"}}'
    )
    value = read_json(body)

    assert isinstance(value, dict)
    assert value["prompt"] == 'a "knight"'
    assert value["parameters"] == {"image": "x"}
    assert isinstance(value["image"], Attached)
    assert len(value["image"]) < 100
    assert decode_base64_in_pieces(value["image"].data) == LARGE
    assert read_json(body) == value


@pytest.mark.parametrize(
    "written",
    [
        LARGE_AS_BASE64,
        LARGE_AS_BASE64.replace(b"/", b"\\/"),  # PHP
        LARGE_AS_BASE64.replace(b"+", b"\\u002B").replace(b"=", b"\\u003d"),  # .NET
        b"\\n".join(LARGE_AS_BASE64[at : at + 76] for at in range(0, len(LARGE_AS_BASE64), 76)),  # MIME
        b"data:image/png;base64," + LARGE_AS_BASE64,
        LARGE_AS_BASE64.translate(bytes.maketrans(b"+/", b"-_")).rstrip(b"="),
    ],
    ids=["plain", "php", "dotnet", "mime", "data-url", "url-safe"],
)
def test_base64_is_read_as_every_encoder_writes_it(written: bytes) -> None:
    """Base64 in the notation of each encoder, with escapes or line breaks, is decoded to the same bytes."""
    value = read_json(b'{"image": "' + written + b'"}')

    assert isinstance(value, dict)
    assert decode_base64_in_pieces(value["image"].data) == LARGE


@given(data=st.binary(max_size=200))
def test_short_base64_is_decoded(data: bytes) -> None:
    """Any short bytes that were encoded as base64 are decoded to the same bytes."""
    assert decode_base64_in_pieces(base64.b64encode(data)) == data


@pytest.mark.parametrize(
    "text",
    [
        b"A",
        b"A*AA",
        b"AAA=AAAA",
        b"data:image/png",
        LARGE_AS_BASE64 + b"A",
        LARGE_AS_BASE64 + b"*",
        b"\\u00",
        b"asset_1",
    ],
    ids=range(8),
)
def test_invalid_base64_is_rejected(text: bytes) -> None:
    """Base64 with invalid characters, padding, length or escapes raises ValueError."""
    with pytest.raises(ValueError, match=r"."):
        decode_base64_in_pieces(text)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (json.dumps({f"key{number}": 1 for number in range(20_000)}).encode(), 413),
        (json.dumps({str(number): 1 for number in range(5_000)}).encode(), 400),
        (b"[" + b",".join([b"{}"] * 9_000_000) + b"]", 413),
        (b"[" * 130_000, 400),
        (b"[" * 5_000 + b"]" * 5_000, 400),
        (b'{"a": "' + b'\\"' * 5_000_000 + b'"}', 413),
        (b'{"a": "' + b"\\" * 5_000_000 + b'"}', 400),
        (b'"' * 5_000_000, 413),
        (b'"' + b"a" * 5_000_000, 413),
        (b'{"prompt": "' + b"a" * 200_000 + b'"}', 400),
        (b'{"' + b"a" * 200_000 + b'": 1}', 400),
        (b'["' + b"a" * 200_000 + b'"]', 400),
        (b'{"image": ["' + b"a" * 200_000 + b'"]}', 400),
        (b'{"a": ' + b"9" * 10_000 + b"}", 400),
        (b"\xff\xfe{}", 400),
        (b" " * 200_000 + b"{", 413),
    ],
    ids=range(16),
)
def test_a_hostile_body_is_rejected_at_once(body: bytes, status: int) -> None:
    """A body with too many values, deep nesting or long texts is rejected with a short reason in less than 0.5 s."""
    begun_at = time.process_time()
    with pytest.raises(ShimError) as info:
        read_json(body)

    assert time.process_time() - begun_at < 0.5
    assert info.value.status == status
    assert len(info.value.reason) < 300


def test_the_limits_accept_ordinary_calls() -> None:
    """A prompt of 4,096 escaped characters, an image just below the cut-out size, and 200 ids are accepted."""
    prompt, image = "é" * 4096, "A" * (LONG_TEXT_BYTES - 4)

    assert read_json(json.dumps({"prompt": prompt, "image": image}).encode()) == {"prompt": prompt, "image": image}
    assert read_json(json.dumps({"assetIds": ["asset_" + "x" * 24] * 200}).encode())
    assert MAX_VALUES > 3 * 200
    assert len(incompressible_png(64, 64)) < LONG_TEXT_BYTES
