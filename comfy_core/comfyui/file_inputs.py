"""Decides which node inputs name a file that ComfyUI reads, and which name a file that it writes. Pure.

The core nodes of ComfyUI 0.3.64 and 0.33.0 are listed by name. For other nodes, the class name, the input name and, if
known, the input's declaration in /object_info decide. A false positive does little harm, because `path_guard`
only rejects values that lead outside the job's folders.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from enum import Enum
from typing import Any, TypeGuard


class FileUse(Enum):
    """What a node does with the file or folder that an input names."""

    LOADS = "loads"
    """Reads a file from ComfyUI's input folder: an image, a video, audio, a latent."""
    LOADS_FOLDER = "loads a folder"
    """Reads every file in a folder."""
    LOADS_MODEL = "loads a model"
    """Reads a file from a model folder. Other choices of a loader node, such as a data type, also have this use."""
    WRITES = "writes"
    """Writes a file."""


RUN_FOLDER_PATTERN = re.compile(r"run-[0-9a-f]{32}", re.IGNORECASE)
"""Matches the name of a job's own folder in ComfyUI's input and output folders."""
_CORE_LOADERS = {
    "LoadImage": ("image",),
    "LoadImageMask": ("image",),
    "LoadImageOutput": ("image",),
    "LoadImageSetNode": ("images",),
    "LoadLatent": ("latent",),
    "LoadAudio": ("audio",),
    "RecordAudio": ("audio",),
    "LoadVideo": ("file",),
    "Load3D": ("model_file", "image"),
    "Load3DAnimation": ("model_file", "image"),
    "Load3DAdvanced": ("model_file", "viewport_state"),
    "WebcamCapture": ("image",),
    "Painter": ("mask",),
}
_CORE_FOLDER_LOADERS = {
    "LoadImageSetFromFolderNode": "folder",
    "LoadImageTextSetFromFolderNode": "folder",
    "LoadImageDataSetFromFolder": "folder",
    "LoadImageTextDataSetFromFolder": "folder",
    "LoadVideoDataSetFromFolder": "folder",
    "LoadVideoTextDataSetFromFolder": "folder",
    "LoadTrainingDataset": "folder_name",
}
PREFIX_SAVERS = {
    "SaveImage": "filename_prefix",
    "SaveImageAdvanced": "filename_prefix",
    "SaveAnimatedWEBP": "filename_prefix",
    "SaveAnimatedPNG": "filename_prefix",
    "SaveSVGNode": "filename_prefix",
    "SaveVideo": "filename_prefix",
    "SaveWEBM": "filename_prefix",
    "SaveAudio": "filename_prefix",
    "SaveAudioMP3": "filename_prefix",
    "SaveAudioOpus": "filename_prefix",
    "SaveAudioAdvanced": "filename_prefix",
    "SaveLatent": "filename_prefix",
    "SaveGLB": "filename_prefix",
    "Save3DAdvanced": "filename_prefix",
    "SaveGaussianSplat": "filename_prefix",
    "SavePointCloud": "filename_prefix",
    "SaveText": "filename_prefix",
    "CheckpointSave": "filename_prefix",
    "ImageOnlyCheckpointSave": "filename_prefix",
    "CLIPSave": "filename_prefix",
    "VAESave": "filename_prefix",
    "ModelSave": "filename_prefix",
    "LoraSave": "filename_prefix",
    "SaveLoRA": "prefix",
    "SaveLoRANode": "prefix",
}
"""Core nodes that write below the output folder, each with the input that is the path. They create missing folders."""
FOLDER_SAVERS = {
    "SaveImageDataSetToFolder": "folder_name",
    "SaveImageTextDataSetToFolder": "folder_name",
    "SaveTrainingDataset": "folder_name",
}
"""Core nodes that write to a folder, each with the input that names it. Their `filename_prefix` is not a path."""
SILENT_SAVERS = frozenset({
    "CheckpointSave", "ImageOnlyCheckpointSave", "CLIPSave", "VAESave", "ModelSave", "LoraSave", "SaveLoRA",
    "SaveLoRANode",
    *FOLDER_SAVERS,
})  # fmt: skip
"""Core nodes that do not report which files they wrote."""
LITERALS = {
    "PrimitiveString": "value",
    "PrimitiveStringMultiline": "value",
    "StringConstant": "string",
    "StringConstantMultiline": "string",
    "String Literal": "string",
    "easy string": "value",
}
"""Nodes that only output the value of one of their inputs, each with that input."""
_CORE: dict[tuple[str, str], FileUse | None] = {
    **{(name, each): FileUse.LOADS for name, inputs in _CORE_LOADERS.items() for each in inputs},
    **dict.fromkeys(_CORE_FOLDER_LOADERS.items(), FileUse.LOADS_FOLDER),
    **dict.fromkeys((PREFIX_SAVERS | FOLDER_SAVERS).items(), FileUse.WRITES),
    ("DiffusersLoader", "model_path"): FileUse.LOADS_MODEL,
    # Only displayed in the browser, not read.
    ("Preview3D", "model_file"): None,
    ("Preview3DAnimation", "model_file"): None,
}


def _word_set(words: str) -> frozenset[str]:
    return frozenset(words.split())


_LOADER = re.compile(r"load|read(?!y)|import|open(?!ai|pose)|(from|by)[ _-]?(path|file|folder|dir|disk)", re.IGNORECASE)
_SAVER = re.compile(r"save|write|export|record", re.IGNORECASE)
_ENCODED = re.compile(r"base64|b64|url", re.IGNORECASE)
"""Matches names of nodes and inputs whose text is the content itself, or a URL."""
_MEDIA = _word_set("image images img mask masks video videos audio sound latent picture photo mesh upload")
_MODELS = _word_set("model models encoder decoder ckpt checkpoint lora vae clip unet net")
_FOLDERS = _word_set("dir dirs directory directories folder folders")
_FILES = _word_set("file files filename filenames filepath path paths pathname subfolder") | _FOLDERS
_OUTPUTS = _word_set("output out save prefix write export destination dest target subfolder filename")
_OUTPUT_PATHS = _OUTPUTS | _word_set("name location root base")
"""Words in the name of an input that holds the path to which a node writes."""
_NO_FILE_NAME = _word_set(
    "type format mode extension ext padding delimiter separator count size index digits number limit"
)
_FREE_TEXT = _word_set("text texts prompt prompts positive negative string caption wildcard regex title label")


def file_use(class_type: str, input_name: str, declared: object = None) -> FileUse | None:
    """Return what a node does with the file that an input names, or None if the input does not name a file.

    `declared` is the input's declaration in /object_info, `[type, options]`. Dotted names (`format.path`) belong to
    nested inputs.
    """
    if (class_type, input_name) in _CORE:
        return _CORE[class_type, input_name]
    if input_name == "filename_prefix":
        return FileUse.WRITES
    return FileUse.LOADS if _is_upload(declared) else _custom_use(class_type, input_name)


def may_be_encoded(class_type: str, input_name: str) -> bool:
    """Return whether the input's text may be base64 content or a URL instead of a file name."""
    return class_type not in _CORE_LOADERS and bool(_ENCODED.search(class_type) or _ENCODED.search(input_name))


def is_core_loader(class_type: str) -> bool:
    """Return whether `class_type` is a core node that reads files from the input folder."""
    return class_type in _CORE_LOADERS or class_type in _CORE_FOLDER_LOADERS


def is_loader(class_type: str) -> bool:
    """Return whether a node of this class reads files, judging by the class name."""
    return class_type in _CORE_LOADERS or bool(_LOADER.search(class_type))


def _is_upload(declared: object) -> bool:
    """Return whether /object_info declares an upload, or a remote list of files, for the input."""
    match declared:
        case [_, {**options}]:
            return any(str(key).endswith("_upload") and options[key] for key in options) or "remote" in options
    return False


def _custom_use(class_type: str, input_name: str) -> FileUse | None:
    words = tuple(_words_of(input_name))
    if not words or words[-1] in _NO_FILE_NAME:
        return None
    named = set(words)
    loads = bool(_LOADER.search(class_type))
    if named & _FILES:
        if not loads and (named & _OUTPUTS or _SAVER.search(class_type)):
            return FileUse.WRITES
        return FileUse.LOADS_FOLDER if named & _FOLDERS else FileUse.LOADS
    if not loads and _SAVER.search(class_type) and named & _OUTPUT_PATHS and not named & _FREE_TEXT:
        return FileUse.WRITES
    if not loads or named & _FREE_TEXT:
        return None
    return FileUse.LOADS if named & _MEDIA and not named & _MODELS else FileUse.LOADS_MODEL


def _words_of(name: str) -> Iterator[str]:
    """Yield the words of an input's name in lower case: `image` and `path` for `imagePath_2`."""
    for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name.rpartition(".")[2] or name):
        yield word.lower()


def declared_input(node_type: object, input_name: str) -> Any:  # noqa: ANN401 - any JSON value
    """Return an input's declaration, `[type, options]`, from the /object_info entry of a node type, or None.

    An input such as `resize_type.width` is declared by the choices of the dynamic combo `resize_type`. If its choices
    declare the input differently, the result is None.
    """
    match node_type:
        case {"input": {**groups}}:
            for inputs in groups.values():
                if isinstance(inputs, dict) and input_name in inputs:
                    return inputs[input_name]
    combo, _, nested_name = input_name.rpartition(".")
    if not combo:
        return None
    choices = dynamic_choices(declared_input(node_type, combo)).values()
    declared = [each for choice in choices if (each := declared_input(choice, nested_name)) is not None]
    return declared[0] if declared and all(each == declared[0] for each in declared) else None


def dynamic_choices(declared: object) -> dict[str, dict[str, Any]]:
    """Return the choices of a dynamic combo (`COMFY_DYNAMICCOMBO_V3`), each with its inputs as `{"input": groups}`.

    Return an empty dict for the declaration of another input.
    """
    match declared:
        case ["COMFY_DYNAMICCOMBO_V3", {"options": [*options]}, *_]:
            return {
                str(option["key"]): {"input": option["inputs"]}
                for option in options
                if isinstance(option, dict) and isinstance(option.get("inputs"), dict) and "key" in option
            }
    return {}


def linked_literal(graph: Mapping[str, Any], value: object) -> object:
    """Return the value that an input receives: `value`, or the text of the LITERALS node to which it links.

    A link to any other node is returned unchanged.
    """
    visited: set[str] = set()
    while True:
        match value:
            case {"__value__": wrapped}:
                value = wrapped
            case [str(node_id), int() | float()] if node_id in graph and node_id not in visited:
                visited.add(node_id)
                source = graph[node_id]
                if source["class_type"] not in LITERALS:
                    return value
                value = source["inputs"].get(LITERALS[source["class_type"]])
            case _:
                return value


def is_comfyui_link(value: object) -> TypeGuard[list[Any]]:
    """Return whether ComfyUI reads a value as a link. Unlike `graphs.is_link`, this includes `["5", 0.0]`."""
    match value:
        case [str(), int() | float()]:
            return True
    return False
