"""Finds prompt syntax of other tools, which neither ComfyUI nor this worker supports. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator

from comfy_core.contract import JsonObject
from comfy_core.validation import path_of, shown

_SYNTAX: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern, re.IGNORECASE), predicate)
    for pattern, predicate in (
        (r"\{[^{}|]*\|[^{}]*\}", "is a random choice, which is not supported: the model reads all of it as text"),
        (r"__[a-z0-9][\w/.*-]*?__", "is a wildcard, which is not supported: replace it before sending"),
        (r"<(?:lora|lyco|lycoris|hypernet):[^<>]*>", "does not load a LoRA: use `loras`, or a LoraLoader in a graph"),
        (r"\bembedding:[\w./\\-]+", "has no effect unless the worker has an embedding of that name"),
        (r"(?<![:\w/])//|/\*", "begins a comment only in ComfyUI's editor: here the model reads it as text"),
        (r"\[[^\[\]:]*:[^\[\]:]*:[0-9.]+\]", "is prompt editing, which is not supported"),
        (
            r"(?<!\S)--(?:ar|v|q|s|c|no|niji|style|stylize|chaos|seed|iw|tile|weird)\b",
            "is a parameter of another tool, and the model reads it as text: use the inputs of the request",
        ),
    )
)
"""Patterns of unsupported syntax, each with the predicate of its warning."""


def graph_warnings(graph: JsonObject) -> Iterator[str]:
    """Yield the warnings for the prompts in the CLIPTextEncode nodes of a graph."""
    for node_id, node in graph.items():
        if node["class_type"].startswith("CLIPTextEncode"):
            for name, text in node["inputs"].items():
                if isinstance(text, str):
                    yield from syntax_warnings(path_of(["workflow", node_id, "inputs", name]), text)


def syntax_warnings(path: str, text: str) -> Iterator[str]:
    """Yield a warning for each kind of unsupported syntax in the prompt at `path`. The prompt is sent unchanged."""
    for pattern, predicate in _SYNTAX:
        if found := pattern.search(text):
            yield f"{path}: {shown(found[0])} {predicate}"
