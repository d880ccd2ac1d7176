"""Storage of images by hash, in a folder and in a bucket; signed URLs; keys of callers; and invalid settings."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from comfy_client.gateway.scenario.auth import Keys, Signer, image_expiry, owner_of, url_secret
from comfy_client.gateway.scenario.blobs import Blobs, BucketBlobs, FolderBlobs
from comfy_client.gateway.scenario.errors import ShimError
from comfy_client.gateway.scenario.settings import CostRules, ShimSettings
from comfy_client.gateway.serve import serve
from comfy_core.environment import variables_of
from comfy_core.errors import ConfigError
from tests.fakes.s3 import S3Server

pytestmark = pytest.mark.slow
IMAGE = bytes(range(256)) * 9


@pytest.fixture(params=["folder", "bucket"])
def blobs(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Blobs]:
    """Each kind of storage: a folder, and a bucket with a prefix."""
    if request.param == "folder":
        yield FolderBlobs(tmp_path)
        return
    with S3Server() as s3:
        yield BucketBlobs(s3.bucket(prefix="shim"))


def test_a_blob_is_stored_under_its_hash(blobs: Blobs) -> None:
    """Equal bytes get the same name, their SHA-256. They are returned unchanged, and can be deleted twice."""
    name = blobs.put(IMAGE, "image/png")

    assert name == hashlib.sha256(IMAGE).hexdigest() == blobs.put(IMAGE, "image/png")
    assert blobs.get(name) == IMAGE
    blobs.delete(name)
    blobs.delete(name)
    with pytest.raises(FileNotFoundError):
        blobs.get(name)


def test_a_name_that_is_not_a_hash_is_rejected(tmp_path: Path) -> None:
    """A name with a path is not found, so that no other file can be read."""
    (tmp_path / "secret").write_text("x")

    with pytest.raises(FileNotFoundError):
        FolderBlobs(tmp_path / "blobs").get("../secret")


def test_a_signature_is_valid_for_one_path_and_one_time() -> None:
    """A signature is invalid for another path, expiry or secret, and after its expiry. A day has one expiry."""
    signer = Signer(b"secret")
    expires_at = image_expiry(1_000_000.0)
    query = dict(pair.split("=") for pair in signer.query("/pictures/a", expires_at).split("&"))

    assert signer.is_valid("/pictures/a", query, 1_000_000.0)
    assert not signer.is_valid("/pictures/b", query, 1_000_000.0)
    assert not signer.is_valid("/pictures/a", {**query, "Expires": str(int(expires_at) + 1)}, 1_000_000.0)
    assert not signer.is_valid("/pictures/a", query, expires_at + 1)
    assert not Signer(b"other").is_valid("/pictures/a", query, 1_000_000.0)
    assert image_expiry(1_000_001.0) == expires_at


def test_the_signing_secret_is_persistent(tmp_path: Path) -> None:
    """The secret is created once, and only its owner can read the file. A configured secret is used instead."""
    first = url_secret("", tmp_path)

    assert url_secret("", tmp_path) == first
    assert len(first) == 64
    assert (tmp_path / "url-secret").stat().st_mode & 0o077 == 0
    assert url_secret("mine", tmp_path) == b"mine"


@pytest.mark.parametrize("content", ["", "abc"])
def test_a_damaged_secret_is_replaced(tmp_path: Path, content: str) -> None:
    """An empty or short file is no secret: anybody could sign URLs with it."""
    (tmp_path / "url-secret").write_text(content)
    secret = url_secret("", tmp_path)

    assert len(secret) == 64
    assert url_secret("", tmp_path) == secret


@pytest.mark.parametrize(
    "authorization", ["", "Basic", "Basic !!!", "Basic a2V5Ondyb25n", "Bearer", "Bearer x", "Token t", "Basic a2V5"]
)
def test_a_wrong_key_is_401(authorization: str) -> None:
    """A missing, malformed or wrong key gets 401."""
    with pytest.raises(ShimError) as info:
        Keys({"key": "secret"}, ("token",)).owner(authorization)

    assert info.value.status == 401


def test_each_key_is_an_owner() -> None:
    """Basic and Bearer credentials map to different owners, whose ids do not contain the key."""
    keys = Keys({"key": "secret"}, ("token",))

    assert keys.owner("Basic a2V5OnNlY3JldA==") == owner_of("key")
    assert keys.owner("bearer token") == owner_of("token") != owner_of("key")
    assert "key" not in owner_of("key")


def test_an_account_is_one_owner_with_both_schemes() -> None:
    """`KEY:SECRET` as a bearer token, as callers of OpenAI send it, has the owner of the account."""
    keys = Keys({"key": "secret"}, ("token",))

    assert keys.owner("Bearer key:secret") == owner_of("key")
    for wrong in ("key:token", "key", "secret", "token:", "key:secret:"):
        with pytest.raises(ShimError):
            keys.owner(f"Bearer {wrong}")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SCENARIO_SHIM_ACCOUNTS", "only-a-key"),
        ("SCENARIO_SHIM_ACCOUNTS", "one:secret,one:other"),
        ("SCENARIO_SHIM_PUBLIC_URL", "shim.example"),
        ("SCENARIO_SHIM_PUBLIC_URL", "http://[::1"),
        ("SCENARIO_SHIM_STRICT", "perhaps"),
        ("SCENARIO_SHIM_BUCKET_PREFIX", "shim"),
        ("SCENARIO_SHIM_LORAS", "[1]"),
        ("SCENARIO_SHIM_REQUESTS_PER_MINUTE", "0"),
        ("SCENARIO_SHIM_UNITS_PER_USD", "nan"),
    ],
)
def test_an_invalid_variable_is_named(name: str, value: str) -> None:
    """The error names the invalid variable; the value of a secret variable is not shown."""
    with pytest.raises(ConfigError, match=name) as info:
        ShimSettings.from_env({name: value})

    if next(variable.secret for variable in variables_of(ShimSettings, CostRules) if variable.name == name):
        assert value not in str(info.value)


@pytest.mark.parametrize(
    ("environment", "host", "is_open", "expected"),
    [
        ({}, "127.0.0.1", False, "SCENARIO_SHIM_ACCOUNTS"),
        ({}, "0.0.0.0", True, "loopback"),  # noqa: S104 - the test expects an error
        ({"SCENARIO_SHIM_TOKENS": "t"}, "127.0.0.1", True, "cannot be combined"),
    ],
)
def test_the_shim_starts_only_with_keys_or_on_loopback(
    environment: dict[str, str], host: str, expected: str, *, is_open: bool, tmp_path: Path
) -> None:
    """The shim does not start without keys, except with `--insecure-local` on loopback, which excludes keys."""
    with pytest.raises(ConfigError, match=expected):
        serve(environment, host=host, is_open=is_open, directory=tmp_path)
