"""Bytes of a model over HTTP, from where it is cut off; the only module here that sees requests. It retries nothing.

The token goes to Hugging Face (or the mirror in HF_ENDPOINT) alone: it is put on each hop anew, never after a redirect
has left that host, never over http but to this machine, and no netrc counts. Errors name hosts: an address behind a
redirect is signed, and so a secret.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import requests
from requests.auth import AuthBase

from comfy_core.errors import ConfigError
from worker.models.listing import ModelError, ModelFile, is_loopback

HUGGING_FACE = "https://huggingface.co"
TOKENS_PAGE = "https://huggingface.co/settings/tokens"

_MAX_REDIRECTS = 5
# A cut costs what of a piece had come; smaller ones are slower by a fifth, larger ones hardly faster.
_PIECE = 256 * 1024
_PORTS = {"https": 443, "http": 80}
_TRY_AGAIN = frozenset({408, 425, 429})


class RetryableDownloadError(Exception):
    """It may work when asked again: the server is busy, or the connection was lost.

    Attributes:
        remedy: for who gave up asking.
        retry_after_s: how long the server wants to be left alone, None where it did not say.
        must_restart: whether the rest alone is not to be had.
    """

    def __init__(
        self, reason: str, remedy: str, *, retry_after_s: float | None = None, must_restart: bool = False
    ) -> None:
        super().__init__(reason)
        self.remedy = remedy
        self.retry_after_s = retry_after_s
        self.must_restart = must_restart


@dataclass(frozen=True)
class Hub:
    """Where Hugging Face's files are to be had, and the token for those that need a login.

    Attributes:
        endpoint: takes the place of https://huggingface.co in the list's addresses.
        token: sent to that endpoint alone; empty for none.
        token_name: where the token came from, or could.
    """

    endpoint: str = HUGGING_FACE
    token: str = field(default="", repr=False)
    token_name: str = "HF_TOKEN"  # noqa: S105 - its name

    @staticmethod
    def from_env(env: Mapping[str, str]) -> Hub:
        """Return the hub of HF_ENDPOINT, HF_TOKEN and HF_TOKEN_FILE. Raises ConfigError that names the one at fault.

        HF_TOKEN_FILE may name a file that is not there: a build's secret is optional.
        """
        endpoint = env.get("HF_ENDPOINT", "").strip().rstrip("/") or HUGGING_FACE
        if not re.fullmatch(r"https?://[A-Za-z0-9.\[\]:-]+(/[\w./-]*)?", endpoint) or _origin(endpoint) is None:
            raise ConfigError("HF_ENDPOINT must be an address such as https://huggingface.co, without user and query")
        name, token = "HF_TOKEN", env.get("HF_TOKEN", "").strip()
        if not token and (file := env.get("HF_TOKEN_FILE", "").strip()):
            name, token = f"HF_TOKEN_FILE ({file})", _token_in(file)
        if not re.fullmatch(r"[!-~]*", token):
            raise ConfigError(f"{name}: what is there is no token (one word of ASCII). Make one at {TOKENS_PAGE}")
        if token and not _is_safe(endpoint):
            raise ConfigError(
                f"HF_ENDPOINT is http, and the token of {name} is sent over https alone. Unset one of them"
            )
        return Hub(endpoint, token, name)

    def address(self, url: str) -> str:
        """Return where `url` of the list is to be had."""
        return self.endpoint + url[len(HUGGING_FACE) :] if url.startswith(HUGGING_FACE + "/") else url

    def is_at(self, url: str) -> bool:
        """Return whether `url` is of the hub itself: same scheme, host and port."""
        return _origin(url) == _origin(self.endpoint)


@dataclass(frozen=True)
class Stream:
    """What a server sends: the model's bytes from `start` on. Reading raises RetryableDownloadError where it is cut."""

    start: int
    pieces: Iterator[bytes]


class ModelSource:
    """Opens models at their addresses. Safe to use from several threads.

    Args:
        hub: Hugging Face, or its mirror.
        connect_s: the longest wait for a connection.
        silence_s: the longest silence of a server.
    """

    def __init__(self, hub: Hub, *, connect_s: float, silence_s: float) -> None:
        self._hub = hub
        self._timeout_s = (connect_s, silence_s)

    @contextlib.contextmanager
    def open(self, model: ModelFile, offset: int) -> Iterator[Stream]:
        """Ask for a model from `offset` on; the server may begin at 0 all the same.

        No If-Range: the list names the bytes by their sha256, while the copies of a content network have ETags of
        their own, and a new one would throw gigabytes of right bytes away.

        Raises RetryableDownloadError or ModelError, also where the server says that it has another size.
        """
        with requests.Session() as session:
            answer, url, token_sent = self._follow(session, model, offset)
            with answer:
                self._check_status(model, answer, url, token_sent=token_sent)
                yield Stream(_start(model, answer, offset, _host(url)), _pieces(answer, _host(url)))

    def _follow(self, session: requests.Session, model: ModelFile, offset: int) -> tuple[requests.Response, str, bool]:
        """Return the answer at the end of the redirects, its address, and whether the token went there."""
        headers = {"Accept-Encoding": "identity", "User-Agent": "flux-comfyui-worker"}
        if offset:
            headers["Range"] = f"bytes={offset}-"
        url = self._hub.address(model.url)
        may_see_token = True
        for _ in range(_MAX_REDIRECTS + 1):
            may_see_token = may_see_token and self._hub.is_at(url)
            # What the environment names as proxy does not see what is sent to this machine.
            session.trust_env = not is_loopback(_host(url))
            sends_token = may_see_token and bool(self._hub.token)
            auth = _Token(self._hub.token if sends_token else "")
            with _requests_errors(model, _host(url)):
                answer = session.get(
                    url, headers=headers, auth=auth, stream=True, allow_redirects=False, timeout=self._timeout_s
                )
                target = session.get_redirect_target(answer)
                there = urljoin(url, target) if target else ""
            if not there:
                return answer, url, sends_token
            answer.close()
            _require_safe(model, url, there)
            url = there
        raise ModelError(
            model, f"{_host(url)} redirects more than {_MAX_REDIRECTS} times. Correct its address in the list"
        )

    def _check_status(self, model: ModelFile, answer: requests.Response, url: str, *, token_sent: bool) -> None:
        status, said = answer.status_code, f"{_host(url)} answered {answer.status_code}"
        if status in {200, 206, 416}:
            return
        if status in {401, 403}:
            raise ModelError(model, f"{said}: {self._login_remedy(model, url, token_sent=token_sent)}")
        if status in {404, 410}:
            raise ModelError(
                model,
                f"{said}: the repository, its revision or the file is gone. Correct its address in the list: "
                f"{_shown(model)}",
            )
        if status in _TRY_AGAIN or status >= 500:  # noqa: PLR2004 - the server's own faults
            retry_after_s = _retry_after_s(answer.headers.get("Retry-After", ""), time.time())
            raise RetryableDownloadError(
                said, "Try again later, or from a mirror (HF_ENDPOINT)", retry_after_s=retry_after_s
            )
        raise ModelError(model, f"{said}, where 200 was expected. Correct its address in the list: {_shown(model)}")

    def _login_remedy(self, model: ModelFile, url: str, *, token_sent: bool) -> str:
        page = _shown(model).partition("/resolve/")[0]
        if token_sent:
            return (
                f"the token of {self._hub.token_name} does not open it. Accept the licence at {page} with the token's "
                f"account, and let the token read gated repositories ({TOKENS_PAGE})"
            )
        if self._hub.is_at(url) and not self._hub.token:
            return (
                f"it is gated, or its repository is gone. Accept the licence at {page}, make a token at {TOKENS_PAGE}, "
                "and pass it in HF_TOKEN or in a file that HF_TOKEN_FILE names (in a build: --secret "
                "id=hf_token,env=HF_TOKEN)"
            )
        return f"no token is sent there. Name an open address in the list instead of {_shown(model)}"


class _Token(AuthBase):
    """Puts the token on a request; without one, keeps requests from taking a login from a netrc."""

    def __init__(self, token: str) -> None:
        self._token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self._token:
            request.headers["Authorization"] = f"Bearer {self._token}"
        return request


@contextlib.contextmanager
def _requests_errors(model: ModelFile, host: str) -> Iterator[None]:
    """Let out no exception of requests: what may go away is RetryableDownloadError, what does not is ModelError."""
    try:
        yield
    except requests.exceptions.SSLError as error:
        if "CERTIFICATE" not in str(error):
            raise _lost(host, error) from error
        raise ModelError(
            model,
            f"the certificate of {host} was not accepted. Set the clock, or name the authorities of your network "
            "in REQUESTS_CA_BUNDLE",
        ) from error
    except (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError) as error:
        raise _lost(host, error) from error
    except (requests.RequestException, ValueError) as error:  # requests lets ValueErrors of urllib3 through
        raise ModelError(
            model,
            f"{host} cannot be asked for it ({type(error).__name__}). Correct its address in the list: {_shown(model)}",
        ) from error


def _lost(host: str, error: Exception) -> RetryableDownloadError:
    """Return the error of a connection that did not come about or did not last, without its addresses."""
    text = str(error)
    if isinstance(error, requests.exceptions.ProxyError):
        reason = f"the proxy to {host} was not reached"
    elif "Failed to resolve" in text:
        reason = f"the name {host} was not resolved"
    elif isinstance(error, requests.ConnectTimeout):
        reason = f"{host} gave no connection in time"
    elif isinstance(error, requests.Timeout) or "timed out" in text:
        reason = f"{host} was silent for too long"
    else:
        reason = f"the connection to {host} was refused or lost"
    return RetryableDownloadError(
        reason, "Check the network and its proxies (HTTPS_PROXY), or name a mirror in HF_ENDPOINT"
    )


def _pieces(answer: requests.Response, host: str) -> Iterator[bytes]:
    try:
        yield from answer.iter_content(_PIECE)
    except requests.RequestException as error:
        raise _lost(host, error) from error


def _start(model: ModelFile, answer: requests.Response, offset: int, host: str) -> int:
    """Return where the answer begins, after a look at the size that it tells."""
    if answer.status_code == requests.codes.ok:
        told = answer.headers.get("Content-Length", "")
        is_plain = answer.headers.get("Content-Encoding", "identity") == "identity"
        _check_size(model, told if is_plain else "", host)
        return 0
    told = answer.headers.get("Content-Range", "")
    found = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)", told)
    _check_size(model, found[2] if found else "", host)
    if not found or found[1] is None or int(found[1]) != offset:
        raise RetryableDownloadError(
            f"{host} answered {answer.status_code} ({told[:80]!r}) to a request from byte {offset:,} on",
            "Try again later, or from a mirror (HF_ENDPOINT)",
            must_restart=True,
        )
    return offset


def _check_size(model: ModelFile, told: str, host: str) -> None:
    if told.isdigit() and int(told) != model.size:
        raise ModelError(
            model,
            f"wrong size: {model.size:,} bytes were expected, {host} has {int(told):,}. Nothing of it was taken. The "
            "file there is another one, or the line in the list is wrong",
        )


def _retry_after_s(retry_after: str, now: float) -> float | None:
    """Return the seconds of a Retry-After, which has seconds or a date; None where it has neither."""
    if re.fullmatch(r"\d{1,9}", retry_after.strip(), re.ASCII):
        return float(retry_after)
    try:
        return max(0.0, parsedate_to_datetime(retry_after).timestamp() - now)
    except ValueError:
        return None


def _require_safe(model: ModelFile, url: str, there: str) -> None:
    """Refuse a redirect from https to http, or to what is no address of a server."""
    if _origin(there) is None or (_is_safe(url) and not _is_safe(there)):
        raise ModelError(
            model,
            f"{_host(url)} redirects to where no model is fetched from: no https. Correct its address in the list",
        )


def _token_in(file: str) -> str:
    try:
        return Path(file).read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"HF_TOKEN_FILE: {file} cannot be read ({type(error).__name__}). Name a file with the token"
        ) from error


def _origin(url: str) -> tuple[str, str, int] | None:
    """Return scheme, host and port; None where it is no address of a server."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return None
    if parts.scheme not in _PORTS or not parts.hostname:
        return None
    return parts.scheme, parts.hostname, port or _PORTS[parts.scheme]


def _is_safe(url: str) -> bool:
    """Return whether a token may be sent there as far as the way goes: https, or it stays on this machine."""
    return url.startswith("https://") or is_loopback(_host(url))


def _host(url: str) -> str:
    return urlsplit(url).hostname or ""


def _shown(model: ModelFile) -> str:
    """Return the list's address as it may be shown."""
    return model.url.partition("?")[0]
