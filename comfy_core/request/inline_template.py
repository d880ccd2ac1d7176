"""Reads a template that a request contains: its graph, and the content of its inputs file as `inputs_schema`. Pure.

The schema is not the worker's own, so it may not contain what makes validation slow, or loads other schemas:
references, regular expressions, `uniqueItems` (time grows with the square of a list's length) and `unevaluated…` (it
doubles with each level). `num_images` is limited, because each image is a prompt.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from comfy_core.contract import Fault, JsonObject
from comfy_core.errors import invalid_input
from comfy_core.graphs import graph_faults, normalise_links
from comfy_core.validation import Faults, path_of, shown
from comfy_core.workflows import Workflow, make_workflow

MAX_SCHEMA_CHARACTERS = 200_000
MAX_CHECKS = 5_000_000
"""Maximum number of values in the schema times those in the request. 8 million took 8 s of a CPU."""
MAX_IMAGES = 8
"""Largest maximum of `num_images`."""
_ALLOWED_PATTERN = r"\S"
_SLOW_KEYWORDS = frozenset({"uniqueItems", "unevaluatedItems", "unevaluatedProperties"})
_KEYWORDS_WITH_DOLLAR = frozenset({"$schema", "$comment"})


def inline_template(graph: Any, schema: Any, inputs: JsonObject, faults: Faults) -> Workflow:  # noqa: ANN401 - any JSON value
    """Return the template. Raises JobError (invalid_input) with its faults and those in `faults`.

    `inputs` is the rest of the request, which is validated with the schema later.
    """
    faults.extend(graph_faults(graph))
    if not isinstance(schema, dict):
        faults.add("inputs_schema", f"must be the content of an inputs file, not {shown(schema)}")
    elif problem := next(_problems(schema, []), "") or _size_problem(schema, inputs):
        faults.add("inputs_schema", problem)
    faults.raise_if_any()
    normalise_links(graph)
    try:
        return make_workflow(str(schema.get("x-name", "custom")), graph, schema, is_inline=True)
    except LookupError as error:
        raise invalid_input([Fault("inputs_schema", str(error.args[0]))]) from error


def _problems(value: Any, path: list[str | int]) -> Iterator[str]:  # noqa: ANN401 - any JSON value
    """Yield a sentence for each keyword that is not allowed."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        here = path_of([*path, key])
        match key, item:
            case "pattern", str() if item != _ALLOWED_PATTERN:
                yield f"{here} is a regular expression, which only a template in the worker's folder may have"
            case "patternProperties", _:
                yield f"{here} has regular expressions, which only a template in the worker's folder may have"
            case str(), _ if key in _SLOW_KEYWORDS:
                yield f"{here} can make validation slow, so only a template in the worker's folder may have it"
            case str(), _ if key.startswith("$") and key not in _KEYWORDS_WITH_DOLLAR:
                yield f"{here} is a reference, which a template in a request may not have"
        yield from _problems(item, [*path, key])


def _count(value: Any) -> int:  # noqa: ANN401 - any JSON value
    """Return the number of values in a JSON value, with itself."""
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + sum(map(_count, items))


def _size_problem(schema: JsonObject, inputs: JsonObject) -> str:
    if len(json.dumps(schema)) > MAX_SCHEMA_CHARACTERS:
        return f"is longer than {MAX_SCHEMA_CHARACTERS:,} characters"
    if _count(schema) * _count(inputs) > MAX_CHECKS:
        return f"has {_count(schema):,} values, too many for the {_count(inputs):,} values of the request"
    match schema.get("properties"):
        case {"num_images": {"maximum": int(most)}} if most <= MAX_IMAGES:
            return ""
        case {"num_images": _}:
            return f"properties.num_images must have a maximum of at most {MAX_IMAGES}"
    return ""
