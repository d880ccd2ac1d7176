"""Parses addresses of model files, which a request may use in place of a file name. Pure.

    hf:owner/repository/path/file.safetensors@revision     a file at Hugging Face; the default revision is main
    civitai:123456                                         a model version at Civitai
    https://host/path/file.safetensors                     any other host that the worker allows
    civitai:123456#sha256=9f86d081…                        each with the expected hash, which is optional

A LoRA may also be an object: `{"hf": "owner/repository/file.safetensors@main"}`, `{"civitai": 123456}` or `{"url":
"https://…"}`, each with an optional `sha256`. A URL's query may contain a signature: it is never in `text`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

from comfy_core.contract import JsonObject
from comfy_core.urls import HUGGING_FACE

CIVITAI = "https://civitai.com"
MAX_ADDRESS = 2048
"""Maximum length of an address, in characters."""
_ADDRESS = re.compile(r"\s*(https?://|hf:|civitai:)", re.IGNORECASE)
_NAME = r"[A-Za-z0-9][\w.-]{0,95}"
_HF = re.compile(rf"hf:/{{0,2}}({_NAME})/({_NAME})/([^@]+)(?:@(.+))?", re.IGNORECASE | re.ASCII)
_HF_PAGE = re.compile(rf"/({_NAME})/({_NAME})/(?:blob|resolve|raw)/([^/]+)/(.+)", re.ASCII)
_CIVITAI = re.compile(r"civitai:\s*([0-9]{1,12})", re.IGNORECASE | re.ASCII)
_CIVITAI_DOWNLOAD = re.compile(r"/api/download/models/([0-9]{1,12})", re.ASCII)
_CIVITAI_CHOICES = frozenset({"type", "format", "size", "fp"})
"""Keys of the query that select one of a version's files at Civitai. They are not secret."""
_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)
_NOT_IN_PATH = re.compile(r"[\x00-\x1f\x7f?]")
"""Control characters, and the query of a URL, which may contain a token."""
_HF_FORM = "must be like hf:owner/repository/path/file.safetensors@revision"
OBJECT_KEYS = ("hf", "civitai", "url")
"""Keys of an object that is an address. An object has one of them, and may have `sha256`."""


@dataclass(frozen=True)
class ModelAddress:
    """The address of one model file.

    Attributes:
        source: the address without the URL's query and the hash, for messages and results.
        url: the download URL. Its query may contain a secret.
        sha256: the expected hash of the file, in lower-case hexadecimal; empty if the request does not give it.
        given: the text in the request.
    """

    source: str
    url: str = field(repr=False)
    sha256: str = ""
    given: str = field(default="", repr=False, compare=False)

    @property
    def text(self) -> str:
        """The address with the hash and without the URL's query. It is an address itself."""
        return f"{self.source}#sha256={self.sha256}" if self.sha256 else self.source


def is_address(text: object) -> bool:
    """Return whether `text` begins like an address of a model file. It may be invalid."""
    return isinstance(text, str) and _ADDRESS.match(text) is not None


def parse_address(text: str) -> ModelAddress:
    """Return the address in `text`. Raises ValueError with a predicate for the user, such as `must be https`."""
    if len(text) > MAX_ADDRESS:
        raise ValueError(f"has {len(text):,} characters; an address of a model may have at most {MAX_ADDRESS:,}")
    plain, _, fragment = text.strip().partition("#")
    sha256 = _checked_sha256(fragment.removeprefix("sha256=")) if fragment else ""
    if found := _CIVITAI.fullmatch(plain):
        address = _civitai(found[1])
    elif plain.lower().startswith("civitai:"):
        raise ValueError("must be like civitai:123456, with the number of a model version (modelVersionId in the URL)")
    elif plain.lower().startswith("hf:"):
        address = _hugging_face_text(plain)
    else:
        address = _url(plain)
    return replace(address, sha256=sha256, given=text)


def public_name(name: str) -> str:
    """Return the name or address of a model without the query of a URL, but with the hash of the file."""
    return parse_address(name).text if is_address(name) else name


def address_text(item: JsonObject) -> str:
    """Return the text of an address that is an object, such as `{"civitai": 123456, "sha256": "…"}`.

    Raises ValueError with a predicate for the user, whose subject is the object.
    """
    keys = [key for key in ("name", *OBJECT_KEYS) if item.get(key) is not None]
    if len(keys) != 1:
        raise ValueError('must have exactly one of "name", "hf", "civitai" and "url"')
    value, sha256 = item[keys[0]], item.get("sha256")
    text = _text_of(keys[0], value)
    if sha256 is None:
        return text
    if not is_address(text):
        raise ValueError('has a "sha256", which is only for a file with an address')
    checked = _checked_sha256(sha256)
    if "#" in text and not text.endswith(f"#sha256={checked}"):
        raise ValueError("has two different hashes: in the address and in `sha256`")
    return text if "#" in text else f"{text}#sha256={checked}"


def _text_of(key: str, value: Any) -> str:  # noqa: ANN401 - any JSON value
    match key, value:
        case "civitai", (int() | str()) if re.fullmatch(r"(civitai:)?[0-9]{1,12}", str(value), re.ASCII):
            return f"civitai:{str(value).removeprefix('civitai:')}"
        case "civitai", _:
            # Without the value: it may be a URL with a token.
            raise ValueError('has a "civitai" that is not the number of a model version (modelVersionId in the URL)')
        case "hf", str():
            return value if is_address(value) else f"hf:{value}"
        case "url" | "name", str() if key == "name" or is_address(value):
            return value
        case "url", _:
            raise ValueError('has a "url" that does not begin with https://')
    raise ValueError(f'has a "{key}" that is not text')


def _hugging_face_text(text: str) -> ModelAddress:
    found = _HF.fullmatch(text)
    if not found:
        raise ValueError(_HF_FORM)
    return _hugging_face(found[1], found[2], found[3].strip("/"), (found[4] or "main").strip("/"))


def _hugging_face(owner: str, repository: str, path: str, revision: str) -> ModelAddress:
    if {"", ".", ".."} & {*path.split("/"), *revision.split("/")} or _NOT_IN_PATH.search(path + revision):
        raise ValueError(_HF_FORM)
    url = f"{HUGGING_FACE}/{owner}/{repository}/resolve/{quote(revision, safe='')}/{quote(path)}"
    return ModelAddress(f"hf:{owner}/{repository}/{path}@{revision}", url)


def _civitai(version: str) -> ModelAddress:
    return ModelAddress(f"civitai:{version}", f"{CIVITAI}/api/download/models/{version}")


def _url(text: str) -> ModelAddress:
    """Return the address of a URL. A page of a file at Hugging Face, or of a version at Civitai, becomes the file."""
    try:
        parts = urlsplit(text)
        host, _ = parts.hostname, parts.port
    except ValueError:
        host = None
    if not host or re.search(r"[\x00-\x20\x7f\\]", text):
        raise ValueError("is not a valid URL of a file, such as https://host/file.safetensors")
    if "@" in parts.netloc:
        raise ValueError("contains a user name; send the credential in `model_tokens`")
    if parse_qs(parts.query).keys() & {"token", "api_key", "access_token"}:
        raise ValueError("contains a credential in its query; send it in `model_tokens` instead")
    if host in {"huggingface.co", "hf.co"} and (page := _HF_PAGE.fullmatch(parts.path)):
        return _hugging_face(page[1], page[2], unquote(page[4]), unquote(page[3]))
    if host in {"civitai.com", "www.civitai.com"}:
        download, query = _CIVITAI_DOWNLOAD.fullmatch(parts.path), parse_qs(parts.query)
        if version := query.get("modelVersionId", [download[1] if download and not query else ""])[0]:
            return _civitai(version) if version.isdecimal() else parse_address(f"civitai:{version}")
        if not download:
            raise ValueError("is a page of Civitai, not a file; send civitai: and the number of the model version")
        if query.keys() <= _CIVITAI_CHOICES:
            return ModelAddress(text, text)
    return ModelAddress(f"{parts.scheme.lower()}://{parts.netloc.lower()}{parts.path}", text)


def _checked_sha256(text: object) -> str:
    found = str(text).strip().lower()
    if not _SHA256.fullmatch(found):
        raise ValueError("has a sha256 that is not 64 hexadecimal digits")
    return found
