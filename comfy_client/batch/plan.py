"""Parses assets.toml into a plan: every image with its request and its source image. No I/O.

An image's `digest` is a hash of the image's request and of the digest of its source. Two images with one digest are
equal and are paid once. A changed prompt changes the digest of the image and of all images that are derived from it.
"""

from __future__ import annotations

import hashlib
import json
import re
import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from comfy_client.providers.scenario_request import MAX_SCENARIO_SEED
from comfy_core.contract import ENVELOPE, Fault, JsonObject
from comfy_core.errors import JobError, invalid_input
from comfy_core.request.model_keys import named_loras
from comfy_core.request.reading import read_request
from comfy_core.validation import Faults, nearest, schema_faults
from comfy_core.workflows import Workflow, find_workflow

_NAME = "^[a-z0-9][a-z0-9_-]{0,63}$"
_PLACEHOLDER_IMAGE = "https://example.com/image.png"
"""Placeholder for the source image while a request is validated."""
_STYLE: JsonObject = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "prefix": {"type": "string"},
        "suffix": {"type": "string"},
        "negative": {"type": "string"},
        "negative_strength": {"type": "number", "minimum": 0, "maximum": 10},
    },
}
_ASSET_RULES: JsonObject = {
    "style": {"type": "string"},
    "template": {"type": "string", "minLength": 1},
    "variations": {"type": "integer", "minimum": 1, "maximum": 16},
    "seed": {"type": "integer", "minimum": 0, "maximum": 2**63 - 1},
    "strength": {"type": "number", "minimum": 0.01, "maximum": 1},
}
_RESERVED = frozenset({
    "image", "num_images", "prompt", "seed", "strength", "workflow", "images", "overrides", "model_tokens", "webhook",
})  # fmt: skip
"""Inputs that the plan sets, that have their own rule in _ASSET_RULES, or that a batch does not send."""


@dataclass(frozen=True)
class PlannedAsset:
    """One image of a plan.

    Attributes:
        path: `<group>/<name>[-<variation>]`, without a file name suffix.
        group: the name of the group.
        kind: the group's type, which `--type` selects.
        prompt: the whole prompt, with the style's prefix and suffix.
        input: the request (docs/api.md), without the source image.
        source: the path of the asset from which this one is derived, or an empty string.
        digest: identifies the image; see the module's docstring.
    """

    path: str
    group: str
    kind: str
    prompt: str
    input: JsonObject = field(repr=False)
    source: str
    digest: str

    @property
    def filename(self) -> str:
        """Path of the image file, relative to the output folder."""
        suffix = {"jpeg": "jpg"}.get(self.input.get("output_format", "png"), self.input.get("output_format", "png"))
        return f"{self.path}.{suffix}"


@dataclass(frozen=True)
class AssetPlan:
    """All images of a game. Each one comes after its source."""

    game: str
    title: str
    assets: tuple[PlannedAsset, ...]

    def only(self, kinds: Sequence[str]) -> AssetPlan:
        """Return the plan with only the assets of these types and their sources. Empty `kinds` select all assets.

        Raises JobError (invalid_input) for a type that no asset has.
        """
        if not kinds:
            return self
        known = {asset.kind for asset in self.assets}
        faults = [
            Fault(
                "--type",
                f"{kind!r} is not a type in this file{nearest(kind, known)}; types: {', '.join(sorted(known))}",
            )
            for kind in kinds
            if kind not in known
        ]
        if faults:
            raise invalid_input(faults)
        wanted: set[str] = set()
        for asset in reversed(self.assets):
            if asset.kind in kinds or asset.path in wanted:
                wanted |= {asset.path, asset.source}
        return AssetPlan(self.game, self.title, tuple(asset for asset in self.assets if asset.path in wanted))


def read_plan(data: JsonObject, workflows: Mapping[str, Workflow]) -> AssetPlan:
    """Return the plan for a parsed assets.toml. Raises JobError (invalid_input) with all faults and their paths."""
    faults = Faults()
    data = _with_named_loras(data, [], faults)
    faults.extend(schema_faults(data, _schema(workflows)))
    faults.raise_if_any()
    return _PlanBuilder(data, workflows).plan()


def _with_named_loras(value: Any, path: list[str | int], faults: Faults) -> Any:  # noqa: ANN401 - any JSON value
    """Return a part of the file with each LoRA like `{hf = "…"}` as one with its address as `name`. Adds faults."""
    match value:
        case list() if path[-1] == "loras":
            return named_loras(value, faults, path)
        case list():
            return [_with_named_loras(item, [*path, number], faults) for number, item in enumerate(value)]
        case dict():
            return {key: _with_named_loras(item, [*path, key], faults) for key, item in value.items()}
    return value


def _schema(workflows: Mapping[str, Workflow]) -> JsonObject:
    inputs = {**find_workflow("img2img", workflows).inputs, **ENVELOPE}
    input_rules = {
        name: {key: value for key, value in rule.items() if not key.startswith("x-")} for name, rule in inputs.items()
    }
    input_rules = {name: rule for name, rule in input_rules.items() if name not in _RESERVED}
    asset: JsonObject = {
        "type": "object",
        "required": ["name"],
        "properties": {
            "name": {"type": "string", "pattern": _NAME},
            "prompt": {"type": "string", "minLength": 1, "pattern": r"\S"},
            "from": {"type": "string"},
            **_ASSET_RULES,
            **input_rules,
        },
        "additionalProperties": {"type": "string"},  # values for the fields of the template
    }
    group: JsonObject = {
        "type": "object",
        "required": ["assets"],
        "additionalProperties": False,
        "properties": {
            "type": {"type": "string", "pattern": _NAME},
            "assets": {"type": "array", "minItems": 1, "items": asset},
            **_ASSET_RULES,
            **input_rules,
        },
    }
    return {
        "type": "object",
        "required": ["game", "groups"],
        "additionalProperties": False,
        "properties": {
            "game": {"type": "string", "pattern": _NAME},
            "title": {"type": "string"},
            "defaults": {
                "type": "object",
                "additionalProperties": False,
                "properties": {**_ASSET_RULES, **input_rules},
            },
            "styles": {"type": "object", "additionalProperties": _STYLE},
            "groups": {"type": "object", "minProperties": 1, "additionalProperties": group},
        },
    }


class _PlanBuilder:
    """Builds a plan from a parsed file that matches the schema, and collects the file's other faults."""

    def __init__(self, data: JsonObject, workflows: Mapping[str, Workflow]) -> None:
        self._data = data
        self._workflows = workflows
        self._styles: JsonObject = data.get("styles", {})
        self._inputs = {*find_workflow("img2img", workflows).inputs, *ENVELOPE} - _RESERVED
        self._faults: list[Fault] = []

    def plan(self) -> AssetPlan:
        entries = dict(self._entries())
        order = self._ordered(entries)
        planned: dict[str, PlannedAsset] = {}
        for name in order:
            for asset in self._assets(name, *entries[name], planned):
                planned[asset.path] = asset
        if self._faults:
            raise invalid_input(self._faults)
        return AssetPlan(self._data["game"], str(self._data.get("title", self._data["game"])), tuple(planned.values()))

    def _entries(self) -> Iterator[tuple[str, tuple[str, JsonObject, JsonObject]]]:
        """Yield `<group>/<name>` of each asset, with its field path, its group, and its settings with all defaults."""
        seen: set[str] = set()
        for group_name, group in self._data["groups"].items():
            if not re.fullmatch(_NAME, group_name):
                self._faults.append(
                    Fault(f"groups.{group_name[:64]}", "must consist of lower-case letters, digits, - and _")
                )
            shared = {key: value for key, value in group.items() if key not in ("assets", "type")}
            for number, own in enumerate(group["assets"]):
                path, where = f"{group_name}/{own['name']}", f"groups.{group_name}.assets[{number}]"
                if path in seen:
                    self._faults.append(Fault(f"{where}.name", f"{own['name']!r} is used twice"))
                seen.add(path)
                yield path, (where, group, {**self._data.get("defaults", {}), **shared, **own})

    def _ordered(self, entries: Mapping[str, tuple[str, JsonObject, JsonObject]]) -> list[str]:
        """Return the assets' names, each after its source. A cycle is a fault."""
        order: list[str] = []

        def visit(name: str, above: tuple[str, ...]) -> None:
            if name in above:
                self._faults.append(
                    Fault(
                        f"{entries[name][0]}.from",
                        f"is a cycle: {' -> '.join([*above[above.index(name) :], name])}",
                    )
                )
            elif name not in order:
                if source := self._source(name, entries, reports_fault=True):
                    visit(source, (*above, name))
                if name not in order:
                    order.append(name)

        for name in entries:
            visit(name, ())
        return order

    def _source(
        self, name: str, entries: Mapping[str, tuple[str, JsonObject, JsonObject]], *, reports_fault: bool
    ) -> str:
        where, _, settings = entries[name]
        wanted = settings.get("from", "")
        if not wanted:
            return ""
        source = wanted if "/" in wanted else f"{name.partition('/')[0]}/{wanted}"
        if source in entries:
            return source
        if reports_fault:
            self._faults.append(Fault(f"{where}.from", f"{wanted!r} is not an asset{nearest(source, entries)}"))
        return ""

    def _assets(
        self, name: str, where: str, group: JsonObject, settings: JsonObject, planned: Mapping[str, PlannedAsset]
    ) -> Iterator[PlannedAsset]:
        """Yield the images of one asset: one for each variation."""
        group_name = name.partition("/")[0]
        prompt, negative = self._prompt(where, settings)
        wanted = settings.get("from", "")
        source = (wanted if "/" in wanted else f"{group_name}/{wanted}") if wanted else ""
        if wanted and source not in planned:
            return  # already reported as a fault
        inputs: JsonObject = {key: value for key, value in settings.items() if key in self._inputs}
        inputs |= {"workflow": "img2img" if source else "txt2img", "prompt": prompt, **negative}
        if source and "strength" in settings:
            inputs["strength"] = settings["strength"]
        for number in range(settings.get("variations", 1)):
            path = name if number == 0 else f"{name}-{number + 1}"
            seed = settings["seed"] + number if "seed" in settings else seed_of(self._data["game"], path)
            request = {**inputs, "seed": seed}
            self._check(where, request, has_image=bool(source))
            digest = _digest(request, planned[source].digest if source else "")
            yield PlannedAsset(path, group_name, group.get("type", group_name), prompt, request, source, digest)

    def _prompt(self, where: str, settings: JsonObject) -> tuple[str, JsonObject]:
        """Return the whole prompt, and the inputs for the negative prompt.

        The prompt is the asset's own or the filled template, with the prefix and the suffix of the style.
        """
        text = settings.get("prompt", "")
        template = settings.get("template", "")
        named = [each for _, each, _, _ in string.Formatter().parse(template) if each]
        known = {"name", "prompt", "from", *_ASSET_RULES, *self._inputs}
        self._faults += [
            Fault(f"{where}.{key}", f"is unknown, and is not a field of the template{nearest(key, [*known, *named])}")
            for key in settings
            if key not in known and key not in named
        ]
        if template and not text:
            fields = {key: value for key, value in settings.items() if isinstance(value, str)}
            missing = [each for each in named if each not in fields]
            if missing:
                self._faults.append(Fault(where, f"has no {', '.join(missing)}, which the template requires"))
            else:
                text = template.format_map(fields)
        elif not text:
            self._faults.append(Fault(where, "has neither a prompt nor a template"))
        style_name = settings.get("style", "")
        if style_name and style_name not in self._styles:
            self._faults.append(
                Fault(f"{where}.style", f"{style_name!r} is not a style{nearest(style_name, self._styles)}")
            )
        style = self._styles.get(style_name, {})
        negative: JsonObject = {}
        if style.get("negative"):
            negative = {
                "negative_prompt": style["negative"],
                "negative_strength": style.get("negative_strength", 1.0),
            }
        return f"{style.get('prefix', '')}{text}{style.get('suffix', '')}", negative

    def _check(self, where: str, request: JsonObject, *, has_image: bool) -> None:
        """Validate a request as the worker does, and collect its faults. A job is only paid if the whole file is valid.

        Does nothing if there are other faults already.
        """
        if self._faults:
            return
        try:
            read_request({**request, **({"image": _PLACEHOLDER_IMAGE} if has_image else {})}, self._workflows)
        except JobError as error:
            for fault in error.report.details.get("faults", [{"path": "", "message": error.report.message}]):
                self._faults.append(Fault(f"{where}.{fault['path']}", fault["message"]))


def seed_of(game: str, path: str) -> int:
    """Return the seed of an asset that sets none. It is a hash of game and path, so it is the same in every run."""
    return int.from_bytes(hashlib.sha256(f"{game}/{path}".encode()).digest()[:8], "big") % (MAX_SCENARIO_SEED + 1)


def _digest(request: Mapping[str, Any], source_digest: str) -> str:
    text = json.dumps([request, source_digest], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:24]
