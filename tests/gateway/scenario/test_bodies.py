"""Parsing of JSON bodies within limits: long images are cut out, invalid bodies are rejected quickly."""

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
TEXT = base64.b64encode(LARGE)


@pytest.mark.parametrize("body", [b"", b" ", b"{}", b"[1, 2]", b'{"a": {"b": [null, "x"]}}', b'"x"', b"7"])
def test_a_small_body_is_parsed(body: bytes) -> None:
    """The result is that of the standard library."""
    assert read_json(body) == (json.loads(body) if body.strip() else None)


def test_a_long_image_is_cut_out_and_decoded() -> None:
    """The parsed body has a short text instead, which maps to the bytes and is equal for equal images."""
    body = b'{"prompt": "a \\"knight\\"", "image": "data:image/png;base64,' + TEXT + b'", "parameters": {"image": "x"}}'
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
        TEXT,
        TEXT.replace(b"/", b"\\/"),  # PHP
        TEXT.replace(b"+", b"\\u002B").replace(b"=", b"\\u003d"),  # .NET
        b"\\n".join(TEXT[at : at + 76] for at in range(0, len(TEXT), 76)),  # MIME
        b"data:image/png;base64," + TEXT,
        TEXT.translate(bytes.maketrans(b"+/", b"-_")).rstrip(b"="),
    ],
    ids=["plain", "php", "dotnet", "mime", "data-url", "url-safe"],
)
def test_base64_is_read_as_every_encoder_writes_it(written: bytes) -> None:
    """JSON escapes and line breaks are not part of the data."""
    value = read_json(b'{"image": "' + written + b'"}')

    assert isinstance(value, dict)
    assert decode_base64_in_pieces(value["image"].data) == LARGE


@given(data=st.binary(max_size=200))
def test_short_base64_is_decoded(data: bytes) -> None:
    """The decoded bytes are those that were encoded."""
    assert decode_base64_in_pieces(base64.b64encode(data)) == data


@pytest.mark.parametrize(
    "text",
    [b"A", b"A*AA", b"AAA=AAAA", b"data:image/png", TEXT + b"A", TEXT + b"*", b"\\u00", b"asset_1"],
    ids=range(8),
)
def test_invalid_base64_is_rejected(text: bytes) -> None:
    """Invalid characters, a single remaining character, and invalid JSON strings."""
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
    """Many keys, deep nesting, endless strings: rejected with a reason, at any size, in far less than a second."""
    begun_at = time.process_time()
    with pytest.raises(ShimError) as refused:
        read_json(body)

    assert time.process_time() - begun_at < 0.5
    assert refused.value.status == status
    assert len(refused.value.reason) < 300


def test_the_limits_accept_ordinary_calls() -> None:
    """A prompt of 4,096 escaped characters with an image just below the cut-out size, and 200 ids."""
    prompt, image = "é" * 4096, "A" * (LONG_TEXT_BYTES - 4)

    assert read_json(json.dumps({"prompt": prompt, "image": image}).encode()) == {"prompt": prompt, "image": image}
    assert read_json(json.dumps({"assetIds": ["asset_" + "x" * 24] * 200}).encode())
    assert MAX_VALUES > 3 * 200
    assert len(incompressible_png(64, 64)) < LONG_TEXT_BYTES
