"""Rejects graphs that would read or write files outside the folders of their own job. Pure.

ComfyUI before 0.28 opens every path that a loader names: absolute paths, `../`, and, with the suffix ` [output]`,
images of other jobs. Later versions reject the first two. Custom nodes may use a name in any way. So the values of all
inputs that name a file (`file_inputs`) are checked before the graph is sent to ComfyUI, in every spelling that a node
may decode.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from urllib.parse import unquote

from comfy_core.comfyui.file_inputs import (
    RUN_FOLDER_PATTERN,
    SILENT_SAVERS,
    FileUse,
    declared_input,
    file_use,
    is_comfyui_link,
    is_core_loader,
    is_loader,
    linked_literal,
    may_be_encoded,
)
from comfy_core.contract import MAX_FAULTS, Fault, JsonObject
from comfy_core.graphs import Graph, title_of
from comfy_core.targets import Target
from comfy_core.validation import path_of, shown

MAX_NAME_LENGTH = 1000
"""Maximum length of a path in a request. A longer value is rejected, unless it may be the content of a file."""
MAX_TOTAL_LENGTH = 500_000
"""Maximum total length of the file names in a graph. Checking this many characters takes about a second."""

_SLASHES = str.maketrans(
    dict.fromkeys("\u2215\u2044\u29f8\u2571\u27cb", "/") | dict.fromkeys("\u29f5\u2216\u29f9", "\\"),
)
"""Characters that look like slashes and are not changed by NFKC."""
_BEGIN = r"(?:^|[\n'\"\[({,;|=])\s*"
"""Matches the start of a path in a value that may list several paths."""
_WILDCARD_FOLDER = re.compile(r"\*\*|[*?][^/\\]*[/\\]")
_VARIABLE = re.compile(r"%([^%.]+)\.([^%]+)%")
_NAME_TYPES = re.compile(r"^(STRING|COMBO|\*|.*(PATH|DIR|FOLDER|NAME|TEXT).*|FILE|FILES)$")
"""Output types that may carry a file name. All other types (IMAGE, LATENT, …) carry data."""
_READING_USES = frozenset({FileUse.LOADS, FileUse.LOADS_FOLDER, FileUse.LOADS_MODEL})
_INPUT_FOLDER_USES = frozenset({FileUse.LOADS, FileUse.LOADS_FOLDER})
_SCHEMES = "file|concat|concatf|subfile|crypto|cache|async|pipe|fd|unix|jar|smb|ftp|gopher"
_CONTENT = re.compile(r"\s*https?://.*|\s*(?:data:[\w/+.;=-]*,)?[A-Za-z0-9+/=_\s-]{200,}", re.IGNORECASE | re.DOTALL)
"""Matches an http or https URL, and base64 of at least 200 characters."""
_BAD_SPELLINGS = (
    (r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]", frozenset(FileUse), "must not contain control characters"),
    (
        rf"{_BEGIN}(?:[/\\]|[A-Za-z]:[/\\]|~|\$\{{?\w|%\w+%[/\\])",
        frozenset(FileUse),
        "must not be an absolute path",
    ),
    (rf"{_BEGIN}[A-Za-z]:", _READING_USES, "must not be an absolute path"),
    (r"(?:^|[/\\\s'\"\[({,;|=:])\.\.+\s*(?:$|[/\\\s'\"\])},;|:])", frozenset(FileUse), 'must not contain ".."'),
    (rf"{_BEGIN}(?:(?:{_SCHEMES}):|subfile,)", frozenset(FileUse), "must not be a URL"),
    (
        r"\[\s*(?:output|temp)\s*\]",
        _INPUT_FOLDER_USES,
        "must not end in [output] or [temp]: a job can only load its own files",
    ),
    (r"(?:^|[/\\])\s*(?:con|prn|aux|nul|com\d|lpt\d)\s*(?:\.|$)", _INPUT_FOLDER_USES, "must not be a device name"),
)
"""Patterns of names that lead outside the job's folders, the file uses for which they are rejected, and the problem."""
_PLAYLIST = re.compile(
    rb"#EXTM3U|ffconcat|^c=IN IP|<MPD|<CompositionPlaylist|<smil|<asx|\[playlist\]|# VobSub",
    re.IGNORECASE | re.MULTILINE,
)
"""Matches formats that refer to other files: HLS, concat, SDP, DASH, IMF, SMIL, ASX, PLS, VobSub."""
_PLAYLIST_BYTES = 1 << 16
"""Number of bytes at the start of a file that are searched for _PLAYLIST."""
_ADVICE = {
    FileUse.LOADS: "send the file in `images` and use its name here",
    FileUse.LOADS_FOLDER: "use the name of a folder in ComfyUI's input folder",
    FileUse.LOADS_MODEL: "use the name as ComfyUI lists it",
    FileUse.WRITES: "use a name, or a path below the output folder",
}


def path_faults(graph: Graph, node_types: Mapping[str, object], run_folder: str) -> list[Fault]:
    """Return a fault for each input of `graph` that names a file outside the job's own folders, at most MAX_FAULTS.

    Args:
        graph: the final graph: rendered, with overrides and the names of uploaded files.
        node_types: the /object_info entries of the node types that are known.
        run_folder: the name of the job's own folder.
    """
    guard = _Guard(graph, node_types, run_folder)
    if guard.total_length > MAX_TOTAL_LENGTH:
        return [Fault("workflow", f"names files in {guard.total_length} characters; at most {MAX_TOTAL_LENGTH}")]
    faults = (
        Fault(path_of(["workflow", node_id, "inputs", name]), problem)
        for node_id, node in graph.items()
        for name, value in node["inputs"].items()
        if (problem := guard.problem(node["class_type"], name, value))
    )
    return list(islice(faults, MAX_FAULTS))


def playlist_faults(data: bytes, targets: Iterable[Target]) -> list[Fault]:
    """Return a fault for each of `targets`, the inputs that load `data`, if `data` is a playlist.

    FFmpeg, which ComfyUI uses for video and audio, opens the files and URLs in a playlist.
    """
    if not _PLAYLIST.search(data[:_PLAYLIST_BYTES]):
        return []
    problem = "must be a video or audio file, not a playlist: a playlist makes ComfyUI open other files"
    return [Fault(path_of(["workflow", target.node_id, "inputs", target.input]), problem) for target in targets]


@dataclass(frozen=True)
class _Guard:
    """The checks of one graph."""

    graph: Graph
    node_types: Mapping[str, object]
    run_folder: str

    @property
    def total_length(self) -> int:
        """The number of characters in all values that name files, which determines the cost of the check."""
        return sum(
            min(len(part), MAX_NAME_LENGTH + 1)  # longer values are rejected without being checked
            for node in self.graph.values()
            for name, value in node["inputs"].items()
            if not isinstance(value, int | float) and file_use(node["class_type"], name)
            for part in _texts_and_links(value)
            if isinstance(part, str) and not may_be_encoded(node["class_type"], name)
        )

    def problem(self, class_type: str, name: str, value: object) -> str | None:
        """Return the problem with an input's value as a predicate, such as `must not be a URL`, or None."""
        declared = declared_input(self.node_types.get(class_type), name)
        use = file_use(class_type, name, declared)
        if use is None:
            return None
        for part in _texts_and_links(value):
            if may_be_encoded(class_type, name) and _CONTENT.fullmatch(str(part)):
                continue
            if is_comfyui_link(part):
                problem = self._link_problem(use, class_type, name, part)
            else:
                problem = self._name_problem(use, class_type, str(part))
            if problem:
                return f"{problem}; {_ADVICE[use]}"
        return None

    def _link_problem(self, use: FileUse, class_type: str, name: str, link: list[object]) -> str | None:
        literal = linked_literal(self.graph, link)
        if not is_comfyui_link(literal):
            problems = (self._name_problem(use, class_type, str(part)) for part in _texts_and_links(literal))
            return next((f"{problem} (in node {shown(link[0])})" for problem in problems if problem), None)
        if use is FileUse.LOADS_MODEL or (use is not FileUse.WRITES and self._carries_data(class_type, name, link)):
            return None
        if use is FileUse.WRITES and class_type not in SILENT_SAVERS:
            return None
        return f"must be text, not a link: the name that node {shown(link[0])} computes cannot be checked"

    def _carries_data(self, class_type: str, name: str, link: list[object]) -> bool:
        """Return whether a link carries data, such as an image, rather than a name, according to /object_info."""
        if is_core_loader(class_type):
            return False
        if _is_data(declared_input(self.node_types.get(class_type), name)):
            return True
        match self.node_types.get(self.graph[str(link[0])]["class_type"]) if link[0] in self.graph else None:
            case {"output": [*outputs]} if isinstance(link[1], int) and 0 <= link[1] < len(outputs):
                return _is_data([outputs[link[1]]])
        return False

    def _name_problem(self, use: FileUse, class_type: str, name: str) -> str | None:
        filled = _VARIABLE.sub(self._variable, name[:MAX_NAME_LENGTH]) if use is FileUse.WRITES else name
        if (longest := max(len(name), len(filled))) > MAX_NAME_LENGTH:
            return f"has {longest} characters, which is too long for a file name"
        for spelling in sorted({*_spellings(name), *_spellings(filled)}):
            if problem := _spelling_problem(use, spelling) or self._folder_problem(use, class_type, spelling):
                return problem
        return None

    def _folder_problem(self, use: FileUse, class_type: str, name: str) -> str | None:
        """Return the problem with a name that leads to the folders of other jobs, or None."""
        if any(found.lower() != self.run_folder for found in RUN_FOLDER_PATTERN.findall(name)):
            return "names the folder of another job"
        if use in {FileUse.WRITES, FileUse.LOADS_MODEL}:
            return None
        stripped = name.strip().strip("./\\").lower()
        is_root = name.strip() in {".", "./", ".\\"} or stripped in {"input", "output", "temp"}
        if is_root or (not stripped and use is FileUse.LOADS_FOLDER and is_loader(class_type)):
            return "names one of ComfyUI's own folders, which contains files of other jobs"
        if _WILDCARD_FOLDER.search(name) or (use is FileUse.LOADS_FOLDER and re.search(r"[*?]", name)):
            return "must not contain a wildcard in a folder name"
        return None

    def _variable(self, found: re.Match[str]) -> str:
        """Return the value of the variable `%Node title.input%`, which some nodes fill in."""
        return str(self._inputs_by_name.get(found[1], {}).get(found[2], found[0]))

    @cached_property
    def _inputs_by_name(self) -> dict[str, JsonObject]:
        """The inputs of each node, by title and by class."""
        named = {node["class_type"]: node["inputs"] for node in self.graph.values()}
        return named | {title_of(node): node["inputs"] for node in self.graph.values()}


def _spelling_problem(use: FileUse, name: str) -> str | None:
    for pattern, uses, problem in _BAD_SPELLINGS:
        if use in uses and re.search(pattern, name, re.IGNORECASE):
            return problem
    return None


def _spellings(name: str) -> Iterator[str]:
    """Yield `name` unchanged and in its decoded forms: percent-decoded, and with lookalike characters replaced.

    ComfyUI removes the last 8 characters of a name that ends in `[input]`, so `..X[input]` becomes `..`.
    """
    for _ in range(4):
        yield from _without_annotations(name)
        if not name.isascii():
            yield from _without_annotations(unicodedata.normalize("NFKC", name).translate(_SLASHES))
        if name == (name := unquote(name)):
            return


def _without_annotations(name: str) -> Iterator[str]:
    yield name
    while name.endswith("[input]"):
        name = name[:-8]
        yield name


def _texts_and_links(value: object) -> Iterator[object]:
    """Yield all texts and links in a nested value, including the keys of objects.

    ComfyUI reads `{"__value__": ["a.png"]}` as a list.
    """
    pending = [value]
    while pending:
        match pending.pop():
            case str() as text:
                yield text
            case dict() as items:
                pending += [*items, *items.values()]
            case list() as items:
                if is_comfyui_link(items):
                    yield items
                if items is not value or not is_comfyui_link(items):
                    pending += items


def _is_data(declared: object) -> bool:
    """Return whether a type that /object_info declares for an input or output carries data rather than names."""
    match declared:
        case [str(types), *_]:
            return not any(_NAME_TYPES.match(each.strip().upper()) for each in types.split(","))
    return False
