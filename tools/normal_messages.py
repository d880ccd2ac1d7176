"""Removes from messages of ComfyUI what may differ between two runs (`normal`), for comparisons.

Ids become <id 1>, <id 2> in order of appearance. Times, prompt numbers and file counters (they depend on earlier
prompts), folders of host paths, tracebacks, the text of tensors, and lengths of images are removed or replaced. ComfyUI
keeps `executed`, `current_outputs` and the errors of a node in Python sets, whose order differs between starts: they
are sorted. The inputs of a node are such a set too, so a cycle may be found at any of its nodes: its path becomes the
sorted nodes. A float remains distinguishable from an integer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
COUNTER = re.compile(r"(_temp_[a-z]{5})?_\d{5}_\.png")
HOST_PATH = re.compile(r"'/[^']*/([^/']+)'")
TENSORS = ("model", "positive", "negative", "latent_image")


def normal(value: object) -> Any:  # noqa: ANN401  JSON
    """Return JSON in which the parts that may differ between two runs are removed, replaced or sorted."""
    seen: dict[str, str] = {}
    text = UUID.sub(lambda found: seen.setdefault(found[0], f"<id {len(seen) + 1}>"), json.dumps(_normal(value)))
    return json.loads(COUNTER.sub("_<n>_.png", HOST_PATH.sub(r"'\1'", text)))


def _normal(value: Any) -> Any:  # noqa: ANN401  JSON
    match value:
        case dict():
            return {key: _NAMED.get(key, _normal)(inner) for key, inner in value.items() if key not in _LEFT_OUT}
        case list():
            return [_normal(inner) for inner in value]
        case float():
            return f"the float {value}"
    return value


def _without_tensors(inputs: dict[str, Any]) -> dict[str, Any]:
    return {name: "<tensor>" if name in TENSORS else _normal(value) for name, value in inputs.items()}


def _without_number(prompt: Any) -> Any:  # noqa: ANN401  a queued prompt is a list, any other thing called prompt is not
    return ["<number>", *_normal(prompt[1:])] if prompt and isinstance(prompt, list) else _normal(prompt)


_LEFT_OUT = ("t", "headers", "len", "file", "content_type", "event", "fmt")
"""Event and format are the first eight bytes of head_hex; not every recording repeats them."""
_NAMED: dict[str, Callable[[Any], Any]] = {
    "create_time": lambda _: "<milliseconds>",
    "timestamp": lambda _: "<milliseconds>",
    "number": lambda _: "<number>",
    "traceback": lambda _: [],
    "executed": sorted,
    "cycle_nodes": sorted,
    "details": lambda details: sorted(set(details.split(" -> "))),
    "current_outputs": sorted,
    "current_inputs": _without_tensors,
    "errors": lambda errors: sorted(_normal(errors), key=json.dumps),
    "prompt": _without_number,
    "queue_running": lambda prompts: [_without_number(prompt) for prompt in prompts],
    "queue_pending": lambda prompts: [_without_number(prompt) for prompt in prompts],
}
