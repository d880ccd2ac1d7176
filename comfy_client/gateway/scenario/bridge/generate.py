"""Decides whether a generate call is the shim's own job or goes to Scenario, and describes the latter. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from comfy_client.gateway.scenario.bodies import write_json
from comfy_client.gateway.scenario.bridge.routing import EVERYTHING
from comfy_client.gateway.scenario.fields import ROUTES
from comfy_client.gateway.scenario.idempotency import NOT_A_RETRY, RetryHint
from comfy_client.gateway.scenario.mapping import IMAGE_FIELDS, INFERENCES
from comfy_core.contract import JsonObject

PATHS: Mapping[str, str] = {
    INFERENCES: "/models/{modelId}/inferences",
    **{name: route.path for name, route in ROUTES.items()},
}
"""The paths of the generate routes that the shim has, by name."""
MAX_STORED_BODY = 20_000
"""Bytes of a forwarded body that is stored with its job. A larger one contains images."""


@dataclass(frozen=True)
class ForwardedGenerate:
    """A generate call that goes to Scenario.

    Attributes:
        path: Scenario's path, such as `/generate/txt2img`.
        task: `txt2img`, `img2img`, or the last part of the path of a route that the shim does not have.
        fingerprint: the hash of the request (idempotency.py).
    """

    owner: str
    path: str
    body: bytes = field(repr=False)
    task: str
    model_id: str
    fingerprint: str
    query: str = ""
    content_type: str = "application/json"
    retry: RetryHint = NOT_A_RETRY

    @property
    def stored_body(self) -> JsonObject:
        """The fields of the request, to run it again. Empty if the body is large or not a JSON object."""
        try:
            body = json.loads(self.body) if len(self.body) <= MAX_STORED_BODY else None
        except ValueError:
            return {}
        if not isinstance(body, dict):
            return {}
        parameters = body.get("parameters")
        return parameters if isinstance(parameters, dict) else body


@dataclass(frozen=True)
class GenerateRequest:
    """A generate call as a caller sent it. `route` is a key of fields.ROUTES, or INFERENCES."""

    owner: str
    route: str
    model_id: str | None
    body: object = field(repr=False)

    @property
    def capabilities(self) -> Iterator[str]:
        """The capabilities of the call for the routing table, the most specific one first."""
        yield f"POST {self._path('{modelId}')}"
        yield from (model for model in (self.model_id, self._field("modelId")) if model)
        yield self.task
        yield EVERYTHING

    @property
    def task(self) -> str:
        """`txt2img` or `img2img`, also for a body that the shim cannot map."""
        has_image = any(self._field(name) for name in IMAGE_FIELDS)
        return "img2img" if has_image or "img2img" in (self.route, self._field("type")) else "txt2img"

    def forwarded(self, fingerprint: str, retry: RetryHint) -> ForwardedGenerate:
        """Return the call for Scenario."""
        return ForwardedGenerate(
            owner=self.owner,
            path=self._path(quote(self.model_id or "", safe="")),
            body=write_json(self.body),
            task=self.task,
            model_id=self.model_id or str(self._field("modelId") or ""),
            fingerprint=fingerprint,
            retry=retry,
        )

    def _path(self, model_id: str) -> str:
        return PATHS[self.route].replace("{modelId}", model_id)

    def _field(self, name: str) -> Any:  # noqa: ANN401 - any JSON value
        body = self.body.get("parameters") if self.route == INFERENCES and isinstance(self.body, dict) else self.body
        return body.get(name) if isinstance(body, dict) else None
