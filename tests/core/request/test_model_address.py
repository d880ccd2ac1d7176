"""Addresses of model files in requests."""

from __future__ import annotations

import pytest

from comfy_core.request.model_address import address_text, is_address, parse_address

HASH = "0123456789abcdef" * 4
CIVITAI_URL = "https://civitai.com/api/download/models/12"
HF_URL = "https://huggingface.co/o/r/resolve/main/dir/a%20b.safetensors"


@pytest.mark.parametrize(
    ("text", "source", "url"),
    [
        ("hf:o/r/dir/a b.safetensors", "hf:o/r/dir/a b.safetensors@main", HF_URL),
        ("hf://o/r/dir/a b.safetensors@main", "hf:o/r/dir/a b.safetensors@main", HF_URL),
        ("HF:o/r/x.safetensors@refs/pr/1", "hf:o/r/x.safetensors@refs/pr/1", None),
        ("https://huggingface.co/o/r/blob/main/dir/a%20b.safetensors", "hf:o/r/dir/a b.safetensors@main", HF_URL),
        (" civitai:12 ", "civitai:12", CIVITAI_URL),
        ("https://civitai.com/models/9/knight?modelVersionId=12", "civitai:12", CIVITAI_URL),
        (CIVITAI_URL, "civitai:12", CIVITAI_URL),
        (f"{CIVITAI_URL}?type=VAE", f"{CIVITAI_URL}?type=VAE", f"{CIVITAI_URL}?type=VAE"),
        ("https://H.example/a.safetensors?sig=1", "https://h.example/a.safetensors", None),
    ],
)
def test_an_address_has_a_source_and_a_url(text: str, source: str, url: str | None) -> None:
    """Each spelling has one source without a query, which is an address itself, and the URL of the file."""
    address = parse_address(f"{text.rstrip()}#sha256={HASH}")

    assert (address.source, address.sha256, address.text) == (source, HASH, f"{source}#sha256={HASH}")
    assert url is None or address.url == url
    assert "sig=1" not in repr(address)
    assert parse_address(address.text).source == source


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("hf:o/r", "must be like hf:owner"),
        ("hf:o/r/../../x", "must be like hf:owner"),
        ("hf:o/r/x\ny", "must be like hf:owner"),
        ("hf:o/r/x.safetensors?token=a", "must be like hf:owner"),
        ("civitai:knight", "must be like civitai:123456"),
        ("https://civitai.com/models/9?modelVersionId=x", "must be like civitai:123456"),
        ("https://", "is not a valid URL"),
        ("https://h.example/a b", "is not a valid URL"),
        ("https://h.example:port/a", "is not a valid URL"),
        ("https://h.example/a#md5=1", "not 64 hexadecimal digits"),
        (f"https://h.example/{'a' * 3000}", "may have at most 2,048"),
    ],
)
def test_an_invalid_address_has_a_reason(text: str, problem: str) -> None:
    """An address that cannot be read is an error with what is wrong."""
    assert is_address(text)
    with pytest.raises(ValueError, match=problem):
        parse_address(text)


@pytest.mark.parametrize(
    ("item", "text"),
    [
        ({"hf": "o/r/x.safetensors"}, "hf:o/r/x.safetensors"),
        ({"civitai": "12", "sha256": HASH.upper()}, f"civitai:12#sha256={HASH}"),
        ({"name": "x.safetensors", "strength": 1}, "x.safetensors"),
        ({"name": f"civitai:12#sha256={HASH}", "sha256": HASH}, f"civitai:12#sha256={HASH}"),
    ],
)
def test_an_object_becomes_text(item: dict[str, object], text: str) -> None:
    """An object of `loras` becomes the address or the file name as text."""
    assert address_text(item) == text


@pytest.mark.parametrize(
    ("item", "problem"),
    [
        ({"hf": 5}, "not text"),
        ({"url": "x.safetensors"}, "does not begin with https"),
        ({"name": f"civitai:12#sha256={HASH}", "sha256": "0" * 64}, "two different hashes"),
        ({}, "exactly one of"),
    ],
)
def test_an_invalid_object_has_a_reason(item: dict[str, object], problem: str) -> None:
    """An object that is no address is an error with what is wrong."""
    with pytest.raises(ValueError, match=problem):
        address_text(item)
