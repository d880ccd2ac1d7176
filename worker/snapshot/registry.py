"""Downloads a node archive of registry.comfy.org, checks its SHA-256, and unpacks it as untrusted input.

GET /nodes/{id}/install?version=V returns `downloadUrl`, the URL of a zip file (ComfyUI-Manager 4.3, cnr_utils.py). The
response has no hash of the archive, so the snapshot pins one itself.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import lzma
import re
import ssl
import stat
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from urllib.parse import quote, urlsplit

from comfy_core.errors import ConfigError
from worker.snapshot.listing import RegistryNode, RestoreError, redacted
from worker.snapshot.retries import RestoreRetryPolicy, RetryableFetchError, with_retries

OFFICIAL = "https://api.comfy.org"

_MAX_RESPONSE = 1024 * 1024
_TRY_AGAIN = frozenset({408, 425, 429})
_PIECE = 256 * 1024
_PLAIN = frozenset({0, stat.S_IFREG, stat.S_IFDIR})
_USE_GIT = "Use the node's git repository instead, under git_custom_nodes"
_REFUSED_STATES = frozenset({"NodeVersionStatusFlagged", "NodeVersionStatusBanned", "NodeVersionStatusDeleted"})


@dataclass(frozen=True)
class ArchiveLimits:
    """Maximum sizes of a node's archive."""

    archive: int = 512 * 1024**2
    unpacked: int = 2 * 1024**3
    files: int = 20_000


@dataclass(frozen=True)
class Registry:
    """The registry's API.

    Attributes:
        url: its URL; https, except for a test server.
        retry_policy: retries and timeouts.
        limits: of archives.
    """

    url: str
    retry_policy: RestoreRetryPolicy
    limits: ArchiveLimits = ArchiveLimits()

    def __post_init__(self) -> None:
        if not re.fullmatch(r"https?://[A-Za-z0-9.\[\]:-]+(/[\w./-]*)?", self.url):
            raise ConfigError(f"COMFY_REGISTRY must be a URL such as {OFFICIAL}, not {redacted(self.url)!r}")

    def fetch(self, node: RegistryNode, folder: Path) -> str:
        """Create `folder` with a node's files; return its archive's sha256. Raises RestoreError."""
        address = self._address_of(node)
        archive = folder.with_name(f"{folder.name}.zip")
        archive.parent.mkdir(parents=True, exist_ok=True)
        try:
            sha256 = with_retries(node.id, lambda: self._download(node.id, address, archive), self.retry_policy)
            if node.sha256 and sha256 != node.sha256:
                raise RestoreError(
                    node.id,
                    f"cnr_sha256 has {node.sha256}, the downloaded archive of {node.version} has {sha256}. It was "
                    "changed in the registry or in transit; inspect it before pinning the new hash",
                )
            unpack(node.id, archive, folder, self.limits)
        finally:
            archive.unlink(missing_ok=True)
        return sha256

    def _address_of(self, node: RegistryNode) -> str:
        query = f"{self.url.rstrip('/')}/nodes/{quote(node.id)}/install?version={quote(node.version)}"
        text = with_retries(node.id, lambda: self._query(node, query), self.retry_policy)
        try:
            response = json.loads(text)
        except (ValueError, RecursionError):
            response = None
        match response:
            case {"status": str(state)} if state in _REFUSED_STATES:
                raise RestoreError(node.id, f"the registry has {node.version} as {state}. Choose another version")
            case {"version": str(version)} if version != node.version:
                raise RestoreError(node.id, f"version {node.version} was requested, the registry returned {version}")
            case {"downloadUrl": str(url)} if self.may_be_fetched(url):
                return url
        raise RestoreError(node.id, f"{redacted(query)} returned no https downloadUrl. {_USE_GIT}")

    def _query(self, node: RegistryNode, query: str) -> bytes:
        with self._open(node.id, query, f"Correct its id and its version ({node.version})") as response:
            return response.read(_MAX_RESPONSE)

    def _download(self, part: str, url: str, archive: Path) -> str:
        """Download a URL into a file; return its sha256."""
        deadline = time.monotonic() + self.retry_policy.step_s
        digest, size = hashlib.sha256(), 0
        with archive.open("wb") as file, self._open(part, url, _USE_GIT) as response:
            reported = response.headers.get("Content-Length", "")
            while piece := response.read(_PIECE):
                size += len(piece)
                if size > self.limits.archive:
                    raise RestoreError(part, f"its archive has more than {self.limits.archive:,} bytes. {_USE_GIT}")
                if time.monotonic() > deadline:
                    raise RetryableFetchError(f"its archive was not downloaded within {self.retry_policy.step_s:g} s")
                digest.update(piece)
                file.write(piece)
        if reported.isdigit() and size != int(reported):
            raise RetryableFetchError(f"its archive ended after {size:,} of {int(reported):,} bytes")
        return digest.hexdigest()

    @contextlib.contextmanager
    def _open(self, part: str, url: str, remedy: str) -> Iterator[http.client.HTTPResponse]:
        """Request a URL and yield the response; exceptions of urllib, also while it is read, are converted."""
        host = urlsplit(url).hostname
        opener = urllib.request.build_opener(_Redirects(self.may_be_fetched))
        request = urllib.request.Request(url, headers={"User-Agent": "flux-comfyui-worker"})  # noqa: S310 - checked
        try:
            with opener.open(request, timeout=self.retry_policy.silence_s) as response:
                yield response
        except urllib.error.HTTPError as error:
            error.close()
            if error.code in _TRY_AGAIN or error.code >= 500:  # noqa: PLR2004 - server errors
                raise RetryableFetchError(f"{host} returned {error.code}") from error
            raise RestoreError(part, f"{host} returned {error.code}. {remedy}") from error
        except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError, ssl.SSLError) as error:
            reason = redacted(str(getattr(error, "reason", "") or error) or type(error).__name__)
            raise RetryableFetchError(f"{host} could not be reached, or stopped responding ({reason})") from error

    def may_be_fetched(self, url: str) -> bool:
        """Return whether a URL is https, or http if the registry's own URL is http."""
        scheme = urlsplit(url).scheme
        return scheme == "https" or scheme == urlsplit(self.url).scheme == "http"


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Rejects redirects to URLs that may not be fetched."""

    def __init__(self, may_be_fetched: Callable[[str], bool]) -> None:
        self._may_be_fetched = may_be_fetched

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        """Return the request for the new URL."""
        if not self._may_be_fetched(newurl):
            raise urllib.error.HTTPError(req.full_url, code, "redirects away from https", headers, fp)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def unpack(part: str, archive: Path, folder: Path, limits: ArchiveLimits) -> None:
    """Unpack a zip into a new folder: only regular files inside it. Raises RestoreError otherwise."""
    try:
        with zipfile.ZipFile(archive) as packed:
            entries = packed.infolist()
            if len(entries) > limits.files:
                raise RestoreError(
                    part, f"its archive has {len(entries):,} files, more than {limits.files:,}. {_USE_GIT}"
                )
            for entry in entries:
                _require_plain(part, entry)
            folder.mkdir()
            left = limits.unpacked
            for entry in entries:
                left -= _unpack_entry(part, packed, entry, folder / entry.filename, left)
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError, RuntimeError) as error:
        raise RestoreError(part, f"its archive cannot be unpacked ({error}). {_USE_GIT}") from error
    except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
        raise RestoreError(part, f"its archive has two entries with one name ({error.filename}). {_USE_GIT}") from error


def _require_plain(part: str, entry: zipfile.ZipInfo) -> None:
    name = entry.filename.removesuffix("/")
    is_inside = all(step not in {"", ".", ".."} for step in name.split("/"))
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if not is_inside or not name.isprintable() or re.search(r"[\\:]", name) or kind not in _PLAIN:
        raise RestoreError(
            part,
            f"it contains {entry.filename!r}, which is not a regular file inside it; nothing was unpacked. {_USE_GIT}",
        )


def _unpack_entry(part: str, packed: zipfile.ZipFile, entry: zipfile.ZipInfo, target: Path, most: int) -> int:
    """Write an entry; return its size. The sizes that the archive declares are not trusted."""
    if entry.is_dir():
        target.mkdir(parents=True, exist_ok=True)
        return 0
    target.parent.mkdir(parents=True, exist_ok=True)
    size = 0
    with packed.open(entry) as content, target.open("xb") as file:
        while piece := content.read(_PIECE):
            size += len(piece)
            if size > most:
                raise RestoreError(part, f"its archive exceeds the maximum unpacked size. {_USE_GIT}")
            file.write(piece)
    return size
