"""Finds syntax of other tools in a prompt: neither ComfyUI nor this worker expands it. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator

from comfy_core.contract import JsonObject
from comfy_core.validation import path_of, shown

_SYNTAX: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern, re.IGNORECASE), sentence)
    for pattern, sentence in (
        (r"\{[^{}|]*\|[^{}]*\}", "is a choice that nothing here makes: the model reads all of it"),
        (r"__[a-z0-9][\w/.*-]*?__", "is a wildcard that nothing here fills in: fill it in before sending"),
        (r"<(?:lora|lyco|lycoris|hypernet):[^<>]*>", "loads no LoRA: use `loras`, or a LoraLoader in a graph"),
        (r"\bembedding:[\w./\\-]+", "has no effect unless the worker has an embedding of that name"),
        (r"(?<![:\w/])//|/\*", "begins a comment in ComfyUI's editor alone: here the model reads the comment"),
        (r"\[[^\[\]:]*:[^\[\]:]*:[0-9.]+\]", "is prompt editing, which does not exist here"),
        (
            r"(?<!\S)--(?:ar|v|q|s|c|no|niji|style|stylize|chaos|seed|iw|tile|weird)\b",
            "is a parameter of another tool, and the model reads it as text: use the inputs of the request",
        ),
    )
)
"""Patterns of a syntax, and what to say about a prompt that has it."""


def graph_warnings(graph: JsonObject) -> Iterator[str]:
    """Yield the warnings for the prompts in the text encoders of a graph."""
    for node_id, node in graph.items():
        if node["class_type"].startswith("CLIPTextEncode"):
            for name, text in node["inputs"].items():
                if isinstance(text, str):
                    yield from syntax_warnings(path_of(["workflow", node_id, "inputs", name]), text)


def syntax_warnings(path: str, text: str) -> Iterator[str]:
    """Yield a warning for each kind of syntax in the prompt at `path` that is sent as it is."""
    for pattern, sentence in _SYNTAX:
        if found := pattern.search(text):
            yield f"{path}: {shown(found[0])} {sentence}"
