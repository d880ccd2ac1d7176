"""Who calls, and which addresses are ours: keys, bearer tokens, and signed addresses of pictures. Pure."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import math
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlencode

from comfy_client.gateway.scenario.errors import UNAUTHORIZED, ShimError
from comfy_core.contract import ErrorCode
from comfy_core.errors import ConfigError

LOCAL_OWNER = "proj_local"
"""Everybody, where there is no key."""
URL_STEP_S = 86_400.0
URL_LIFE_S = 7 * URL_STEP_S
PART_LIFE_S = 3600.0


@dataclass(frozen=True)
class Keys:
    """Who may call. Each key is an owner; without any, everybody is one (`--insecure-local`)."""

    accounts: Mapping[str, str] = field(default_factory=dict, repr=False)
    tokens: tuple[str, ...] = field(default=(), repr=False)

    @property
    def is_open(self) -> bool:
        """Whether nobody is asked for a key."""
        return not self.accounts and not self.tokens

    def owner(self, authorization: str) -> str:
        """Return the owner that a header `Authorization` shows. Raises ShimError (401).

        Every key is compared, each in constant time, so that the time tells nothing of them.
        """
        if self.is_open:
            return LOCAL_OWNER
        scheme, _, given = authorization.partition(" ")
        found = ""
        if scheme.lower() == "basic":
            key, _, secret = _decoded(given).partition(":")
            for name, wanted in self.accounts.items():
                if _equal(key, name) & _equal(secret, wanted):
                    found = name
        elif scheme.lower() == "bearer":
            for token in self.tokens:
                if _equal(given.strip(), token):
                    found = token
        if not found:
            # Without WWW-Authenticate: a browser would ask for the key by itself, before the page can.
            raise ShimError(
                UNAUTHORIZED,
                "The key is missing or wrong: it is the shim's own (SCENARIO_SHIM_ACCOUNTS or SCENARIO_SHIM_TOKENS), "
                "given as Scenario's is, with Basic or Bearer",
                code=ErrorCode.AUTH_FAILED,
            )
        return owner_of(found)


def owner_of(key: str) -> str:
    """Return the name of a key's owner, which does not tell the key."""
    return f"proj_{hashlib.sha256(key.encode()).hexdigest()[:24]}"


def _equal(given: str, wanted: str) -> bool:
    return hmac.compare_digest(given.encode(), wanted.encode())


def _decoded(text: str) -> str:
    try:
        return base64.b64decode(text.strip(), validate=True).decode()
    except (binascii.Error, ValueError):
        return ""


@dataclass(frozen=True)
class Signer:
    """Signs addresses with HMAC-SHA256: each names what it leads to and when it ends, and nobody can change either."""

    secret: bytes = field(repr=False)

    def query(self, path: str, expires: float) -> str:
        """Return the query that makes `path` an address which is good until then (seconds since 1970)."""
        at = str(int(expires))
        return urlencode({"Expires": at, "Signature": self._signature(path, at)})

    def is_good(self, path: str, query: Mapping[str, str], now: float) -> bool:
        """Return whether an address is one of ours, and has not ended."""
        at = query.get("Expires", "")
        is_ours = hmac.compare_digest(query.get("Signature", "").encode(), self._signature(path, at).encode())
        return is_ours and at.isascii() and at.isdigit() and int(at) > now

    def _signature(self, path: str, at: str) -> str:
        return hmac.new(self.secret, f"{path}\n{at}".encode(), hashlib.sha256).hexdigest()


def picture_expiry(now: float) -> float:
    """Return when a picture's address ends: in seven to eight days. It is the same all day, so that caches may hold."""
    return math.ceil(now / URL_STEP_S) * URL_STEP_S + URL_LIFE_S


def url_secret(configured: str, directory: Path) -> bytes:
    """Return the secret that signs addresses: the configured one, or one that is kept in `directory`.

    Raises ConfigError where it cannot be kept.
    """
    if configured:
        return configured.encode()
    file = directory / "url-secret"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if not file.exists():
            part = file.with_suffix(".part")
            part.touch(mode=0o600)
            part.write_text(secrets.token_hex(32))
            part.replace(file)
        return file.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"The secret of pictures' addresses cannot be kept in {directory}: {error.strerror}"
        ) from error
