"""A caller that validates the shim's responses against its OpenAPI document."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from jsonschema import Draft202012Validator
from referencing import Registry
from referencing.jsonschema import DRAFT202012

from comfy_client.gateway.scenario.openapi import document
from tests.gateway.scenario.bridge.caller import Caller


class DocumentedCaller(Caller):
    """A caller that validates each response against the document.

    Args:
        is_closed: whether a field that the document does not have is an error.
    """

    def __init__(self, base_url: str, *, is_closed: bool) -> None:
        super().__init__(base_url)
        api = document("http://shim")
        self._document = closed(api) if is_closed else api
        self._registry: Registry[Any] = Registry().with_resource("urn:api", DRAFT202012.create_resource(self._document))
        self.used: set[str] = set()

    def follow(self, route: str, body: object = None, query: str = "", **path: str) -> Any:  # noqa: ANN401 - any JSON
        """Call a route, validate the response, and return its JSON."""
        method, _, template = route.partition(" ")
        response = self.call(method, template.format(**path) + query, body)
        pointer = "/".join(
            part.replace("~", "~0").replace("/", "~1")
            for part in ("paths", template, method.lower(), "responses", str(response.status_code))
        )
        schema = {"$ref": f"urn:api#/{pointer}/content/application~1json/schema"}
        Draft202012Validator(schema, registry=self._registry).validate(response.json())
        self.used.add(route)
        return response.json()


def closed(api: Mapping[str, Any]) -> dict[str, Any]:
    """Return the document with objects that must not have other fields than those of the document."""
    copy: dict[str, Any] = deepcopy(dict(api))

    def close(value: object) -> None:
        match value:
            case {"properties": dict(), **others} if "additionalProperties" not in others:
                value["additionalProperties"] = False  # type: ignore[index] # a dict
        for each in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
            close(each)

    close(copy)
    return copy
