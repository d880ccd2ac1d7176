"""Finds the files that a caller's graph loads: those in the request's `images`, and those embedded in the graph. Pure.

comfyui/file_inputs.py defines which inputs of a node name a file in ComfyUI's input folder. All other inputs (text,
prefixes, choices) are left unchanged.
"""

from __future__ import annotations

import mimetypes
import posixpath
import re
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from comfy_core.comfyui.file_inputs import FileUse, file_use, linked_literal, may_be_encoded
from comfy_core.contract import ENVELOPE
from comfy_core.graphs import Graph
from comfy_core.images.codec import identify
from comfy_core.request.encoded import bare_url, decode_base64, is_data_uri, is_https, is_url
from comfy_core.targets import Target
from comfy_core.validation import Faults, path_of, shown

MAX_URLS = 16
"""Maximum number of files given by URL. All are downloaded before ComfyUI gets the job's prompts."""
MAX_FILES: int = ENVELOPE["images"]["maxItems"]
MAX_TOTAL_BYTES = 100 * 1024 * 1024
"""Maximum total size of a request's files."""
_MAX_NAME_BYTES = 255
"""Maximum length of a file name on Linux in bytes. Any base64 image is longer."""
_IMAGE_INPUTS = frozenset({("LoadImage", "image"), ("LoadImageMask", "image"), ("LoadImageOutput", "image")})
"""Core inputs whose file must be an image that Pillow can open. Custom nodes may read any file."""
_MIN_IMAGE_LENGTH = 64
"""Minimum length of a base64 image."""
_EXTENSION = re.compile(r"\.([A-Za-z0-9]{1,8})$")
_PLAYLIST = re.compile(
    rb"\A(?:\xef\xbb\xbf)?\s*(?:#EXTM3U|ffconcat version|v=0\s|<.*<(?:\w+:)?MPD\b|<MPD\b)", re.IGNORECASE | re.DOTALL
)
"""Start of files that make ffmpeg (LoadVideo, LoadAudio) open other files: HLS, ffconcat, SDP, DASH."""
_ANNOTATION = re.compile(r"\s*\[(input|output|temp)\]\s*$")


@dataclass(frozen=True)
class FileSource:
    """A file of the request.

    Attributes:
        field_path: the path of the file's value in the request.
        content: the file's bytes, or an https URL from which it must be downloaded.
        targets: the inputs of a caller's graph that load the file.
        must_be_image: whether the file must be an image that Pillow can open.
        extension: the file's extension, if it need not be an image.
    """

    field_path: str
    content: bytes | str
    targets: tuple[Target, ...] = ()
    must_be_image: bool = True
    extension: str = ""


def graph_files(
    graph: Graph,
    images: object,
    overridden: Mapping[str, Target],
    faults: Faults,
) -> dict[str, FileSource]:
    """Return the files of `graph` by path in the request.

    Files that are embedded in inputs of `graph` are replaced by names. `images` is the request's value for
    that key; faults of its type and items were added before. `overridden` maps the override keys to the inputs that
    they set.
    """
    paths = {target: path_of(["overrides", key]) for key, target in overridden.items()}
    sources: dict[str, FileSource] = {}
    targets_by_name: dict[str | None, list[Target]] = {}
    for target in _file_inputs(graph):
        path = paths.get(target) or path_of(["workflow", target.node_id, "inputs", target.input])
        try:
            source = _embedded(path, target, graph)
        except ValueError as error:
            faults.add(path, str(error))
            continue
        if source is None:
            targets_by_name.setdefault(plain_name(target.get(graph)), []).append(target)
        else:
            sources[path] = source
            target.set(graph, f"upload-{len(sources)}{'.' * bool(source.extension)}{source.extension}")
    sources |= _read_sent_files(_images_by_name(images), targets_by_name, graph, faults)
    check_limits(sources, faults)
    return sources


def plain_name(value: str) -> str | None:
    """Return a file's name in ComfyUI's input folder, normalised and without ` [input]`; None for other folders."""
    found = _ANNOTATION.search(value)
    if found and found[1] != "input":
        return None
    plain = (value[: found.start()] if found else value).strip().replace("\\", "/")
    return unicodedata.normalize("NFC", posixpath.normpath(plain))


def _file_inputs(graph: Graph) -> Iterator[Target]:
    """Yield the inputs that name a file in ComfyUI's input folder.

    Two kinds of text are skipped: the `upload` button of older exports, and JSON. A name that comes from a linked text
    node is copied into the loader, so that a later change of the name does not affect other users of the text node.
    """
    for node_id, node in graph.items():
        for name, linked in node["inputs"].items():
            class_type = node["class_type"]
            value = linked_literal(graph, linked)
            if not isinstance(value, str) or not value or value.lstrip()[:1] in {"{", "["}:
                continue
            if "upload" in name.lower() or may_be_encoded(class_type, name):
                continue
            if file_use(class_type, name) is FileUse.LOADS:
                node["inputs"][name] = value
                yield Target(node_id, name)


def _read_sent_files(
    images: Mapping[str, tuple[str, str]], targets_by_name: dict[str | None, list[Target]], graph: Graph, faults: Faults
) -> dict[str, FileSource]:
    """Return the files sent in `images`. `targets_by_name` maps each file name to the inputs that load it.

    A file that no node loads is a fault if some node loads a file that was not sent, because the name of the sent file
    is then probably wrong. Otherwise it is a warning.
    """
    sources: dict[str, FileSource] = {}
    unused: list[tuple[str, str]] = []
    for name, (path, text) in images.items():
        targets = tuple(targets_by_name.pop(plain_name(name), ()))
        if not targets:
            unused.append((path, name))
        try:
            sources[path] = _file_source(path, text, targets, graph, name)
        except ValueError as error:
            faults.add(path, str(error))
    unmatched = [
        targets[0] for name, targets in targets_by_name.items() if name is not None and _EXTENSION.search(name)
    ]
    for path, name in unused:
        if not unmatched:
            faults.warnings.append(f"{path}: no node of the graph loads {shown(name)}")
            continue
        loader = f"node {shown(unmatched[0].node_id)} ({shown(graph[unmatched[0].node_id]['class_type'])[1:-1]})"
        remedy = f"{loader} loads {shown(unmatched[0].get(graph))}, which was not sent. Use the node's file name"
        faults.add(path, f"is named {shown(name)}, which no node loads; {remedy}")
    return sources


def _embedded(path: str, target: Target, graph: Graph) -> FileSource | None:
    """Return the file embedded in an input, or None if the input contains a file name.

    Raises ValueError, with a message for the user, if the input contains neither.
    """
    value = target.get(graph)
    is_too_long = len(value.encode()) > _MAX_NAME_BYTES
    try:
        if is_https(value) or is_data_uri(value) or is_url(value) or is_too_long or _is_small_image(value):
            return _file_source(path, value, (target,), graph, "")
    except ValueError as error:
        problem = "is too long for a file name, and " if is_too_long else ""
        raise ValueError(f"{problem}{error}") from None
    return None


def _is_small_image(value: str) -> bool:
    """Return whether a text that could be a file name is a base64 image."""
    try:
        return len(value) >= _MIN_IMAGE_LENGTH and identify(decode_base64(value)) is not None
    except ValueError:
        return False


def _file_source(path: str, text: str, targets: tuple[Target, ...], graph: Graph, name: str) -> FileSource:
    """Return the file that `text` contains or links to. Raises ValueError with a message for the user."""
    must_be_image = any((graph[target.node_id]["class_type"], target.input) in _IMAGE_INPUTS for target in targets)
    content = bare_url(text) if is_https(text) else decode_base64(text)
    return FileSource(path, content, targets, must_be_image, "" if must_be_image else _extension(name, text))


def _extension(name: str, text: str) -> str:
    """Return the extension of a file, from its name, its URL or its MIME type; `bin` if these have none."""
    plain = plain_name(name) or ""
    if is_https(text):
        plain = plain or urlsplit(bare_url(text)).path
    elif is_data_uri(text) and not plain:
        plain = mimetypes.guess_extension(text[:128].partition(":")[2].partition(";")[0].strip().lower()) or ""
    found = _EXTENSION.search(plain)
    return found[1].lower() if found else "bin"


def is_playlist(data: bytes) -> bool:
    """Return whether `data` is a playlist, which makes ffmpeg open other files or URLs."""
    return _PLAYLIST.match(data[:4096]) is not None


def check_limits(sources: Mapping[str, FileSource], faults: Faults) -> None:
    """Add the faults of files that exceed MAX_URLS, MAX_FILES or MAX_TOTAL_BYTES together."""
    url_paths = [source.field_path for source in sources.values() if isinstance(source.content, str)]
    for path in url_paths[MAX_URLS:]:
        faults.add(path, f"is one of {len(url_paths)} URLs; a request may have at most {MAX_URLS}")
    if len(sources) > MAX_FILES:
        faults.add("images", f"has {len(sources):,} files; at most {MAX_FILES} are allowed")
    total = sum(len(source.content) for source in sources.values() if isinstance(source.content, bytes))
    if total > MAX_TOTAL_BYTES:
        faults.add("images", f"has {total:,} bytes in all files; at most {MAX_TOTAL_BYTES:,} are allowed")


def _images_by_name(images: object) -> dict[str, tuple[str, str]]:
    """Return the path and text of each entry of `images`, by name. If a name is repeated, the last entry is used."""
    return {
        image["name"]: (f"images[{number}].image", image["image"])
        for number, image in enumerate(images[:MAX_FILES] if isinstance(images, list) else [])
        if isinstance(image, dict) and isinstance(image.get("name"), str) and isinstance(image.get("image"), str)
        if image["image"]
    }
