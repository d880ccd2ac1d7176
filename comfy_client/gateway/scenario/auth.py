"""Authentication: API keys, bearer tokens, and signed URLs. Pure, except for the stored URL secret."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import math
import re
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlencode

from comfy_client.gateway.scenario.errors import FORBIDDEN, UNAUTHORIZED, ShimError
from comfy_client.gateway.scenario.folder import make_private_folder
from comfy_client.gateway.scenario.models import IN_PROCESS_OWNER, SHARED_OWNER
from comfy_core.error_codes import ErrorCode
from comfy_core.errors import ConfigError
from comfy_core.files import write_atomically

LOCAL_OWNER = "proj_local"
"""The owner of all requests if no keys are configured."""
URL_STEP_S = 86_400.0
"""Image URLs expire at multiples of this time, so that the same URL is returned all day and can be cached."""
URL_LIFE_S = 7 * URL_STEP_S
"""Minimum lifetime of an image URL."""
CALLER_HEADER = "X-Shim-Caller"
"""The header with which an administrator's request is made for another caller. It has that caller's owner id."""
_SECRET_CHARACTERS = 64
"""Length of a stored secret in hex."""
_OWNER_ID = f"proj_[0-9a-z]{{1,32}}|{IN_PROCESS_OWNER}"
_OTHER_CALLERS = {LOCAL_OWNER: "no key", SHARED_OWNER: "Scenario", IN_PROCESS_OWNER: "ScenarioShim"}
"""The names of the owners that have no key."""
PART_LIFE_S = 3600.0
"""Lifetime of the URL of an upload's part."""


@dataclass(frozen=True)
class Keys:
    """The configured keys. Each key is a separate owner. Without keys (`--insecure-local`), there is one owner.

    As a bearer token, an account is its key and its secret with a colon between them.

    `advice` says what a request without a valid key has to send.
    """

    accounts: Mapping[str, str] = field(default_factory=dict, repr=False)
    tokens: tuple[str, ...] = field(default=(), repr=False)
    advice: str = (
        "Send an account of SCENARIO_SHIM_ACCOUNTS (Basic, or Bearer KEY:SECRET) or a token of SCENARIO_SHIM_TOKENS "
        "(Bearer), not a key of Scenario or OpenAI"
    )

    @property
    def is_open(self) -> bool:
        """Whether requests need no key."""
        return not self.accounts and not self.tokens

    def owner(self, authorization: str) -> str:
        """Return the owner for an `Authorization` header. Raises ShimError (401).

        All keys of the scheme are compared, each in constant time, to prevent timing attacks.
        """
        if self.is_open:
            return LOCAL_OWNER
        scheme, _, given = authorization.partition(" ")
        known = {f"{key}:{secret}": key for key, secret in self.accounts.items()}
        match scheme.lower():
            case "basic":
                given = _decoded(given)
            case "bearer":
                given = given.strip()
                known |= {token: token for token in self.tokens}
            case _:
                known = {}
        found = ""
        for credential, key in known.items():
            if _equal(given, credential):
                found = key
        if not found:
            # No WWW-Authenticate header: the browser would show its own dialog instead of the web page's.
            raise ShimError(
                UNAUTHORIZED,
                f"The key is missing or wrong. {self.advice}",
                code=ErrorCode.AUTH_FAILED,
            )
        return owner_of(found)


def owner_of(key: str) -> str:
    """Return the owner id of a key: a hash, so that it does not reveal the key."""
    return f"proj_{hashlib.sha256(key.encode()).hexdigest()[:24]}"


@dataclass(frozen=True)
class Callers:
    """The names of the callers by their owner ids, and the owner ids of the administrators."""

    names: Mapping[str, str]
    admins: frozenset[str] = frozenset()

    @staticmethod
    def of(accounts: Iterable[str], tokens: Iterable[str], admin_keys: Iterable[str]) -> Callers:
        """Return the callers of the configured keys. A token is secret, so its name has a part of its hash."""
        names = {owner_of(key): key for key in accounts}
        names |= {owner_of(token): f"token {_short(owner_of(token))}" for token in tokens}
        return Callers({**names, **_OTHER_CALLERS}, frozenset(map(owner_of, admin_keys)))

    def name(self, owner: str) -> str:
        """Return the name of a caller. The keys of earlier jobs may not exist any more."""
        return self.names.get(owner, f"former key {_short(owner)}")

    def is_admin(self, owner: str) -> bool:
        """Return whether a caller sees the jobs of all callers and can act for them."""
        return owner in self.admins

    def visible_owner(self, owner: str) -> str | None:
        """Return the owner whose jobs and totals a caller sees, or None for those of all callers."""
        return None if self.is_admin(owner) else owner

    def acting_for(self, owner: str, other: str) -> str:
        """Return the owner for whom a request with the header CALLER_HEADER `other` is made. Raises ShimError (403)."""
        if not other or other == owner:
            return owner
        if not self.is_admin(owner) or not re.fullmatch(_OWNER_ID, other):
            raise ShimError(
                FORBIDDEN,
                f"Only a key of SCENARIO_SHIM_ADMIN_KEYS may send {CALLER_HEADER}, with the id of a caller",
                code=ErrorCode.AUTH_FAILED,
            )
        return other


def _short(owner: str) -> str:
    return owner.removeprefix("proj_")[:6]


def _equal(given: str, wanted: str) -> bool:
    return hmac.compare_digest(given.encode(), wanted.encode())


def _decoded(text: str) -> str:
    try:
        return base64.b64decode(text.strip(), validate=True).decode()
    except (binascii.Error, ValueError):
        return ""


@dataclass(frozen=True)
class Signer:
    """Signs URLs with HMAC-SHA256. The signature covers the path and the expiry."""

    secret: bytes = field(repr=False)

    def query(self, path: str, expires: float) -> str:
        """Return the query string of a signed URL for `path` that is valid until `expires` (seconds since 1970)."""
        text = str(int(expires))
        return urlencode({"Expires": text, "Signature": self._signature(path, text)})

    def is_valid(self, path: str, query: Mapping[str, str], now: float) -> bool:
        """Return whether the signature of a URL is valid and the URL has not expired."""
        expires = query.get("Expires", "")
        is_ours = hmac.compare_digest(query.get("Signature", "").encode(), self._signature(path, expires).encode())
        return is_ours and expires.isascii() and expires.isdigit() and int(expires) > now

    def _signature(self, path: str, expires: str) -> str:
        return hmac.new(self.secret, f"{path}\n{expires}".encode(), hashlib.sha256).hexdigest()


def image_expiry(now: float) -> float:
    """Return the expiry of an image URL: in 7 to 8 days, at a multiple of URL_STEP_S."""
    return math.ceil(now / URL_STEP_S) * URL_STEP_S + URL_LIFE_S


def url_secret(configured: str, directory: Path) -> bytes:
    """Return the secret that signs URLs: the configured one, or a random one stored in `directory`.

    Raises ConfigError if the random secret cannot be stored or read.
    """
    return configured.encode() if configured else _stored_secret(directory / "url-secret")


def page_token(directory: Path) -> str:
    """Return the token of the web page: a random one stored in `directory`. Raises ConfigError as `url_secret` does."""
    return _stored_secret(directory / "page-token").decode()


def _stored_secret(file: Path) -> bytes:
    """Return the secret in a file. A missing or shorter one, with which anybody could sign URLs, is replaced."""
    try:
        if not (file.exists() and len(file.read_bytes()) >= _SECRET_CHARACTERS):
            make_private_folder(file.parent)
            write_atomically(file, secrets.token_hex(_SECRET_CHARACTERS // 2).encode(), mode=0o600)
        return file.read_bytes()
    except OSError as error:
        raise ConfigError(f"The secret {file.name} cannot be stored in {file.parent}: {error.strerror}") from error
