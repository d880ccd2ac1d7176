"""The files that a graph of the caller's own loads: sent as `images`, or written into the graph itself. Pure.

An input takes a file if its node reads it from ComfyUI's input folder (comfyui/file_inputs.py). Text, prefixes and
choices are never taken for the name of a file.
"""

from __future__ import annotations

import mimetypes
import posixpath
import re
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from comfy_core.comfyui.file_inputs import FileUse, file_use, is_encoded, linked_literal
from comfy_core.contract import ENVELOPE, MAX_FAULTS, Fault
from comfy_core.graphs import Graph
from comfy_core.images.codec import identify
from comfy_core.request.encoded import bare_address, decode_base64, is_address, is_data_uri, is_https
from comfy_core.targets import Target
from comfy_core.validation import path_of, shown

MAX_ADDRESSES = 16
"""Files that may be addresses, since each is fetched before the job is queued."""
MAX_FILES: int = ENVELOPE["images"]["maxItems"]
MAX_TOTAL_BYTES = 100 * 1024 * 1024
"""Bytes of all files of a request."""
_MAX_NAME = 255
"""Bytes of a file's name on Linux, and less than any picture in base64 has."""
_PICTURE_INPUTS = frozenset({("LoadImage", "image"), ("LoadImageMask", "image"), ("LoadImageOutput", "image")})
"""Core inputs whose file must be a picture that Pillow opens; a custom node may read anything."""
_LEAST_PICTURE = 64
"""Characters that a picture in base64 has at least."""
_HAS_EXTENSION = re.compile(r"\.([A-Za-z0-9]{1,8})$")
_PLAYLIST = re.compile(
    rb"\A(?:\xef\xbb\xbf)?\s*(?:#EXTM3U|ffconcat version|v=0\s|<.*<(?:\w+:)?MPD\b|<MPD\b)", re.IGNORECASE | re.DOTALL
)
"""How the files begin that have ffmpeg (LoadVideo, LoadAudio) open others: HLS, ffconcat, SDP, DASH."""
_ANNOTATION = re.compile(r"\s*\[(input|output|temp)\]\s*$")


@dataclass(frozen=True)
class Source:
    """A file of the request: its bytes, or an https address still to be fetched. `path` says where it stands.

    `targets` are the inputs that load it; `is_picture` says whether it must be one, `extension` what it is called else.
    """

    path: str
    content: bytes | str
    targets: tuple[Target, ...] = ()
    is_picture: bool = True
    extension: str = ""


def graph_files(
    graph: Graph, images: Mapping[str, tuple[str, str]], overridden: Mapping[str, Target]
) -> tuple[dict[str, Source], list[Fault], list[str]]:
    """Return the files of `graph` by their paths, the faults and the warnings.

    An input that holds a file gets a name instead. `images` leads from the names of the files that were sent to their
    path in the request and their text; `overridden` from the places of the overrides to the inputs that they wrote.
    """
    paths = {target: path_of(["overrides", place]) for place, target in overridden.items()}
    sources: dict[str, Source] = {}
    named: list[Target] = []
    faults: list[Fault] = []
    for target in _file_inputs(graph):
        path = paths.get(target) or path_of(["workflow", target.node_id, "inputs", target.input])
        try:
            source = _embedded(path, target, graph)
        except ValueError as error:
            faults.append(Fault(path, str(error)))
        else:
            if source is None:
                named.append(target)
                continue
            sources[path] = source
            target.set(graph, f"upload-{len(sources)}{'.' * bool(source.extension)}{source.extension}")
    sent, found, warnings = _sent(images, named, graph)
    sources |= sent
    return sources, [*faults, *found, *beyond_limits(sources)][:MAX_FAULTS], warnings


def plain_name(value: str) -> str | None:
    """Return a file's name in ComfyUI's input folder, without ` [input]` and with `/`; None for another folder."""
    found = _ANNOTATION.search(value)
    if found and found[1] != "input":
        return None
    plain = (value[: found.start()] if found else value).strip().replace("\\", "/")
    return unicodedata.normalize("NFC", posixpath.normpath(plain))


def _file_inputs(graph: Graph) -> Iterator[Target]:
    """Yield the inputs that name a file of ComfyUI's input folder.

    Older exports have `upload` beside, which is a button; some loaders keep JSON in a text. A name that stands in a
    text node is written into the loader itself, so that the text node's other users keep it as it is.
    """
    for node_id, node in graph.items():
        for name, linked in node["inputs"].items():
            class_type = node["class_type"]
            value = linked_literal(graph, linked)
            if not isinstance(value, str) or not value or value.lstrip()[:1] in {"{", "["}:
                continue
            if "upload" in name.lower() or is_encoded(class_type, name):
                continue
            if file_use(class_type, name) is FileUse.LOADS:
                node["inputs"][name] = value
                yield Target(node_id, name)


def _sent(
    images: Mapping[str, tuple[str, str]], inputs: list[Target], graph: Graph
) -> tuple[dict[str, Source], list[Fault], list[str]]:
    """Return the files that were sent as `images`, with the inputs that load each, the faults and the warnings.

    A file that no node loads is refused if a node loads another one that was not sent: the names do not match.
    """
    loaded: dict[str | None, list[Target]] = {}
    for target in inputs:
        loaded.setdefault(plain_name(target.get(graph)), []).append(target)
    sources: dict[str, Source] = {}
    faults: list[Fault] = []
    unused: list[tuple[str, str]] = []
    for name, (path, text) in images.items():
        targets = tuple(loaded.pop(plain_name(name), ()))
        if not targets:
            unused.append((path, name))
        try:
            sources[path] = _source(path, text, targets, graph, name)
        except ValueError as error:
            faults.append(Fault(path, str(error)))
    others = [targets[0] for name, targets in loaded.items() if name is not None and _HAS_EXTENSION.search(name)]
    if not others:
        return sources, faults, [f"{path}: no node of the graph loads {shown(name)}" for path, name in unused]
    other = others[0]
    loader = f"node {shown(other.node_id)} ({shown(graph[other.node_id]['class_type'])[1:-1]})"
    remedy = f"{loader} loads {shown(other.get(graph))}, which was not sent. Give the file the name that the node has"
    faults += [Fault(path, f"is named {shown(name)}, which no node loads; {remedy}") for path, name in unused]
    return sources, faults, []


def _embedded(path: str, target: Target, graph: Graph) -> Source | None:
    """Return the file that an input holds; None if it holds a name. Raises ValueError if it is neither."""
    value = target.get(graph)
    is_too_long = len(value.encode()) > _MAX_NAME
    try:
        if is_https(value) or is_data_uri(value) or is_address(value) or is_too_long or _is_small_picture(value):
            return _source(path, value, (target,), graph, "")
    except ValueError as error:
        problem = "is longer than the name of a file can be, and " if is_too_long else ""
        raise ValueError(f"{problem}{error}") from None
    return None


def _is_small_picture(value: str) -> bool:
    """Return whether a text that could be a file's name is a picture in base64."""
    try:
        return len(value) >= _LEAST_PICTURE and identify(decode_base64(value)) is not None
    except ValueError:
        return False


def _source(path: str, text: str, targets: tuple[Target, ...], graph: Graph, name: str) -> Source:
    """Return the file that `text` is. Raises ValueError with a sentence if it is none."""
    is_picture = any((graph[target.node_id]["class_type"], target.input) in _PICTURE_INPUTS for target in targets)
    content = bare_address(text) if is_https(text) else decode_base64(text)
    return Source(path, content, targets, is_picture, "" if is_picture else _extension(name, text))


def _extension(name: str, text: str) -> str:
    """Return the extension of a file that is no picture: that of its name, of its address, or of its MIME type."""
    plain = plain_name(name) or ""
    if is_https(text):
        plain = plain or urlsplit(bare_address(text)).path
    elif is_data_uri(text) and not plain:
        plain = mimetypes.guess_extension(text[:128].partition(":")[2].partition(";")[0].strip().lower()) or ""
    found = _HAS_EXTENSION.search(plain)
    return found[1].lower() if found else "bin"


def is_playlist(data: bytes) -> bool:
    """Return whether a file names others, which a node that plays it would read from the machine or the network."""
    return _PLAYLIST.match(data[:4096]) is not None


def beyond_limits(sources: Mapping[str, Source]) -> list[Fault]:
    """Return a fault for each limit that the files exceed together."""
    return list(_beyond_limits(sources))


def _beyond_limits(sources: Mapping[str, Source]) -> Iterator[Fault]:
    addresses = [source.path for source in sources.values() if isinstance(source.content, str)]
    for path in addresses[MAX_ADDRESSES:]:
        yield Fault(path, f"is one of {len(addresses)} addresses; at most {MAX_ADDRESSES} are fetched for a request")
    if len(sources) > MAX_FILES:
        yield Fault("images", f"has {len(sources):,} files; at most {MAX_FILES} are taken")
    total = sum(len(source.content) for source in sources.values() if isinstance(source.content, bytes))
    if total > MAX_TOTAL_BYTES:
        yield Fault("images", f"has {total:,} bytes in all files; at most {MAX_TOTAL_BYTES:,} are taken")


def named(images: Any) -> dict[str, tuple[str, str]]:  # noqa: ANN401 - any JSON value
    """Return the path and the text of each entry of `images` by its name; the last of a name counts."""
    return {
        image["name"]: (f"images[{number}].image", image["image"])
        for number, image in enumerate(images[:MAX_FILES] if isinstance(images, list) else [])
        if isinstance(image, dict) and isinstance(image.get("name"), str) and isinstance(image.get("image"), str)
        if image["image"]
    }
