"""Generator of graphs and requests that try to read, write or probe files that do not belong to their job. Does no I/O.

An attack puts one path, in one spelling, by one means into one input of a node class, or into a request for a template:

- path: a file that the generator is given (another job's, one outside ComfyUI's folders, a device, a secret);
- spelling: absolute, relative with `..`, Windows, percent-encoded, annotated, ... (`spellings`);
- means: a literal, `__value__`, a list, a link to nodes that produce text, an override, an image's name;
- input: every input of ComfyUI's /object_info that may be a file name, by its name, type or upload flag.
"""

from __future__ import annotations

import base64
import json
import posixpath
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tests.comfyui.complete_nodes import NodeTypes, completed, declared_inputs
from tests.comfyui.conftest import png

PATH_INPUT = re.compile(
    r"(^|_)(images?|mask|audio|video|files?|filename|latent|folder|dir|path|prefix|name|url|ckpt|lora)\d?(_|$)"
)
MODEL_INPUT = re.compile(r"_name\d?$|(^|_)(ckpt|lora|type|name)\d?(_|$)")
PATH_TYPES = {"WEBCAM", "AUDIO_RECORD", "LOAD_3D", "LOAD_3D_ANIMATION"}
"""Types whose values come from a widget of ComfyUI's editor and contain file names."""
UPLOADS = ("image_upload", "audio_upload", "video_upload", "file_upload", "animated_image_upload")
FOLDER_NODES = {
    "LoadTrainingDataset",
    "SaveTrainingDataset",
    "SaveImageDataSetToFolder",
    "SaveImageTextDataSetToFolder",
}
FOLDERS = ("input", "output", "temp")
LOAD_3D_KEYS = ("image", "mask", "normal", "lineart", "recording")
FFMPEG_NODES = {"LoadVideo", "LoadAudio", "RecordAudio"}
"""Nodes that open their file with ffmpeg."""
PAID_NODES_PACKAGE = "comfy_api_nodes"
TEMPLATE_EVERY = 25
"""Of this number of attacks one is a request for a template; the others send a graph."""

JobInput = dict[str, Any]
Graph = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Attack:
    """One request, and the file that it tries to reach.

    Attributes:
        number: the position of the attack, from 0.
        target: the path of the file.
        value: the path in the spelling that the request contains.
        file_input: the attacked input, such as `LoadImage.image`, or `template`.
        means: the way in which the value gets into the input.
        job_input: the input of the job.
    """

    number: int
    target: str
    value: str
    file_input: str
    means: str
    job_input: JobInput

    def __str__(self) -> str:
        return f"#{self.number} {self.file_input} <- {self.value!r} ({self.means})"


@dataclass(frozen=True)
class FileInput:
    """An input of a node class that may contain a file name."""

    class_type: str
    input: str
    kind: str
    is_rare: bool
    """Whether this input is attacked less often: ComfyUI checks it (a model name), or its node writes a whole model."""


def file_inputs(node_types: NodeTypes) -> list[FileInput]:
    """Return every input that may contain a file name, in a fixed order. Nodes of paid APIs are excluded."""
    return [
        FileInput(class_type, name, str(kind), _is_rare(class_type, name))
        for class_type, node_type in sorted(node_types.items())
        if not str(node_type.get("python_module", "")).startswith(PAID_NODES_PACKAGE)
        for name, kind, options in declared_inputs(node_type)
        if _may_name_a_file(name, kind, options)
    ]


def _is_rare(class_type: str, name: str) -> bool:
    is_model = bool(MODEL_INPUT.search(name)) and class_type not in FOLDER_NODES
    return is_model or class_type in {"CheckpointSave", "ImageOnlyCheckpointSave", "ModelSave", "CLIPSave", "VAESave"}


def _may_name_a_file(name: str, kind: object, options: Mapping[str, Any]) -> bool:
    types = {"COMBO"} if isinstance(kind, list) else set(str(kind).split(","))
    if types & PATH_TYPES or any(options.get(flag) for flag in UPLOADS):
        return True
    return bool(types & {"STRING", "COMBO"} and PATH_INPUT.search(name))


def spellings(path: str, base: str, random_: random.Random) -> list[str]:
    """Return spellings of the absolute `path` for a node whose folders are in `base`."""
    folder = random_.choice(FOLDERS)
    climbing = posixpath.relpath(path, f"{base}/{folder}")
    windows = climbing.replace("/", "\\")
    name = posixpath.basename(path)
    inside = posixpath.relpath(path, base)
    kind, _, rest = inside.partition("/")
    own = [rest, f"{rest} [{kind}]", f"./{rest}", f"{rest}[{kind}]", f"{rest}_[{kind}]", f"{rest} [{kind}] [{kind}]"]
    return [
        *(own * 2 if kind in FOLDERS and rest else []),
        path,
        f"/{path}",
        f"{path} [{folder}]",
        f"{path} [{folder}] [input]",
        f"{path}x[{folder}]",
        climbing,
        f"{climbing} [{folder}]",
        f"{climbing} [{folder}] ",
        f" {climbing}",
        f"./{climbing}",
        f"a/../{climbing}",
        f"run-{'0' * 32}/../{climbing}",
        f"{'../' * 20}{path.lstrip('/')}",
        climbing.replace("../", "..//"),
        climbing.replace("..", "%2e%2e").replace("/", "%2f"),
        climbing.replace("..", "\uff0e\uff0e"),
        climbing.replace("/", "\u2215"),
        climbing.replace("..", "..\u200b"),
        f"{climbing}\0.png",
        f"{climbing}\n",
        windows,
        f"C:{path}",
        "C:" + path.replace("/", "\\"),
        "\\\\localhost\\share" + path.replace("/", "\\"),
        f"//localhost{path}",
        f"file://{path}",
        f"~{path}",
        f"~root/../..{path}",
        f"/proc/self/root{path}",
        f"/proc/self/cwd/../..{path}",
        f"$PWD/../..{path}",
        f"%date:yyyy%/../{climbing}",
        f"%year%/../../{climbing}",
        f"%1.image%{path}",
        f"concat:{path}|{path}",
        f"subfile,,start,0,end,9,,:{path}",
        posixpath.join(posixpath.dirname(climbing), "*" + posixpath.splitext(name)[1]),
        re.sub(r"\d+(?=\D*$)", "%d", climbing),
        posixpath.dirname(path),
        posixpath.dirname(climbing),
    ]


def _literal(value: str) -> object:
    return value


def _wrapped(value: str) -> object:
    return {"__value__": value}


def _listed(value: str) -> object:
    return [value]


def _wrapped_list(value: str) -> object:
    return {"__value__": [value]}


def _nested_list(value: str) -> object:
    return {"__value__": [[value, value]]}


def _object(value: str) -> object:
    return {"image": value, "filename": value, "subfolder": "", "type": "input"}


LITERAL_FORMS: tuple[Callable[[str], object], ...] = (
    *[_literal] * 6,
    *[_wrapped] * 2,
    _listed,
    _wrapped_list,
    _nested_list,
    _object,
)


def _text_links(value: str, node_types: NodeTypes) -> list[tuple[str, Graph]]:
    """Return pairs of a node class and a graph. The node `t` of the graph has this class and outputs `value` as text.

    Graphs with nodes that ComfyUI does not have are left out.
    """
    half = len(value) // 2
    made: dict[str, Graph] = {
        "PrimitiveString": {"t": _node("PrimitiveString", value=value)},
        "PrimitiveStringMultiline": {"t": _node("PrimitiveStringMultiline", value=value)},
        "StringConcatenate": {
            "t": _node("StringConcatenate", string_a=value[:half], string_b=value[half:], delimiter="")
        },
        "StringReplace": {
            "t": _node("StringReplace", string=value.replace("/", "<>"), find="<>", replace="/"),
        },
        "RegexReplace": {
            "t": _node("RegexReplace", string="x", regex_pattern="x", replace=value.replace("\\", "\\\\"))
        },
        "RegexExtract": {
            "t": _node("RegexExtract", string=f"<{value}>", regex_pattern="<(.*)>", mode="First Group", group_index=1)
        },
        "StringTrim": {"t": _node("StringTrim", string=f"  {value}  ", mode="Both")},
        "StringSubstring": {"t": _node("StringSubstring", string=f"__{value}__", start=2, end=2 + len(value))},
        "StringFormat": {"t": {"class_type": "StringFormat", "inputs": {"f_string": "{a}", "values.a": value}}},
        "JsonExtractString": {"t": _node("JsonExtractString", json_string=json.dumps({"k": value}), key="k")},
        "CustomCombo": {"t": _node("CustomCombo", choice=value, option1=value, index=0)},
        "PreviewAny": {"s": _node("PrimitiveString", value=value), "t": _node("PreviewAny", source=["s", 0])},
        "CreateList": {
            "s": _node("PrimitiveString", value=value),
            "t": {"class_type": "CreateList", "inputs": {"inputs.input0": ["s", 0]}},
        },
        "ReplaceText": {"t": _node("ReplaceText", texts="x", find="x", replace=value)},
        "MergeTextLists": {"t": _node("MergeTextLists", texts=value)},
        "StripWhitespace": {"t": _node("StripWhitespace", texts=value)},
        "AddTextPrefix": {"t": _node("AddTextPrefix", texts=value[half:], prefix=value[:half])},
        "ComfySwitchNode": {
            "s": _node("PrimitiveString", value=value),
            "t": _node("ComfySwitchNode", switch=True, on_true=["s", 0], on_false=["s", 0]),
        },
    }
    available = [
        (name, graph) for name, graph in made.items() if all(n["class_type"] in node_types for n in graph.values())
    ]
    return [
        (name, {key: _completed_text(node, node_types) for key, node in graph.items()}) for name, graph in available
    ]


def _node(class_type: str, **inputs: Any) -> dict[str, Any]:  # noqa: ANN401 - any JSON value
    return {"class_type": class_type, "inputs": inputs}


def _completed_text(node: dict[str, Any], node_types: NodeTypes) -> dict[str, Any]:
    graph = completed({"t": node}, node_types, with_sources=False)
    return graph["t"]


class Generator:
    """Creates attacks on one ComfyUI. The same seed creates the same attacks.

    Args:
        node_types: ComfyUI's /object_info.
        base: the folder that contains ComfyUI's folders input, output and temp.
        targets: absolute paths that no job may reach. The files may or may not exist.
        seed: the seed of the random choices.
    """

    def __init__(self, node_types: NodeTypes, base: str, targets: Sequence[str], seed: int) -> None:
        self._node_types = node_types
        self._base = base
        self._targets = targets
        self._random = random.Random(seed)  # noqa: S311 - reproducible, not secret

    def attacks(self, count: int) -> Iterator[Attack]:
        """Yield `count` attacks. In each round a rare input (`is_rare`) is attacked once, any other four times."""
        all_file_inputs = [
            file_input for file_input in file_inputs(self._node_types) for _ in range(1 if file_input.is_rare else 4)
        ]
        queue: list[FileInput] = []
        for number in range(count):
            target = self._random.choice(self._targets)
            value = self._random.choice(spellings(target, self._base, self._random))
            if number % TEMPLATE_EVERY == TEMPLATE_EVERY - 1:
                yield self._on_a_template(number, target, value)
                continue
            if not queue:
                queue = self._random.sample(all_file_inputs, len(all_file_inputs))
            yield self._on_a_node(number, target, value, queue.pop())

    def _on_a_node(self, number: int, target: str, value: str, file_input: FileInput) -> Attack:
        means = self._random.choice(("literal", "literal", "link", "link", "override", "name"))
        job_input: JobInput = {}
        extra: Graph = {}
        given: object = value
        if file_input.class_type in FFMPEG_NODES and means == "name":
            means, given = "playlist", "list.m3u8"
            job_input["images"] = [{"name": given, "image": self._playlist(target)}]
        elif means == "literal":
            form = self._random.choice(LITERAL_FORMS)
            means, given = form.__name__.strip("_"), form(value)
        elif means == "link":
            means, extra = self._random.choice(_text_links(value, self._node_types) or [("none", {})])
            given = ["t", self._random.choice((0, 0, 0, 1))] if extra else value
        elif means == "name":
            name = self._random.choice((value, posixpath.basename(value)))
            job_input["images"] = [{"name": name, "image": IMAGE}]
        if "LOAD_3D" in file_input.kind and not extra:
            given = {**dict.fromkeys(LOAD_3D_KEYS, given), "camera_info": {}}
        node = {
            "class_type": file_input.class_type,
            "inputs": {file_input.input: given},
            "_meta": {"title": "The Node"},
        }
        graph = completed({"x": node, **extra}, self._node_types)
        if means == "override":
            job_input["overrides"] = self._override(file_input, given, graph["x"]["inputs"])
        return Attack(
            number,
            target,
            value,
            f"{file_input.class_type}.{file_input.input}",
            means,
            {"workflow": graph, **job_input},
        )

    def _playlist(self, target: str) -> str:
        """Return a playlist, as base64, that makes ffmpeg open `target`."""
        lists = (
            f"#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:1\n#EXTINF:1.0,\n{target}\n#EXT-X-ENDLIST\n",
            f"ffconcat version 1.0\nfile {target}\n",
        )
        return base64.b64encode(self._random.choice(lists).encode()).decode()

    def _override(self, file_input: FileInput, given: object, inputs: dict[str, Any]) -> dict[str, Any]:
        """Put a harmless value into the attacked input in `inputs`; return overrides that replace it by `given`."""
        inputs[file_input.input] = "harmless.png"
        node = self._random.choice(("x", "The Node"))
        if self._random.random() < 0.2:
            return {
                f"{node}.{file_input.input}.{self._random.choice(LOAD_3D_KEYS)}": given,
                f"{node}.{file_input.input}": given,
            }
        return {f"{node}.{file_input.input}": given}

    def _on_a_template(self, number: int, target: str, value: str) -> Attack:
        forms: list[tuple[str, JobInput]] = [
            ("image", {"image": value, "strength": 0.5}),
            ("override SaveImage", {"overrides": {"10.filename_prefix": value}}),
            ("override UNETLoader", {"overrides": {"1.unet_name": value}}),
            ("override VAELoader", {"overrides": {"3.vae_name": value}}),
            ("override text", {"overrides": {"4.text": f"embedding:{value}"}}),
            ("prompt", {"prompt": f"embedding:{value}"}),
            ("loras", {"loras": [{"name": value}]}),
            ("workflow", {"workflow": value}),
        ]
        means, changes = self._random.choice(forms)
        return Attack(number, target, value, "template", means, {"prompt": "x", "steps": 1, **SIZE, **changes})


SIZE = {"width": 64, "height": 64}
IMAGE = base64.b64encode(png(8, 8)).decode()
