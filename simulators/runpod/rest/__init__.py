"""Simulates RunPod's management API on real sockets: REST v2, and the two GraphQL calls with cached models.

It imports nothing else of this project, so that it cannot repeat our mistakes. It reproduces these facts of RunPod's
OpenAPI document (https://api.runpod.io/v2/openapi.json) and of docs/reference/runpod.md#rest-v2. `?` marks facts that
are not measured.

- Bearer key, else 401; a key without rights 403. Errors are RFC 9457, `application/problem+json`.
- Lists are wrapped: {"templates": […]}, {"endpoints": […]}, {"networkVolumes": […]}, {"registries": […]}, and so on.
- An unknown field, a wrong type or range is a 422 with `errors`; names of templates are unique (400).
- An endpoint created from a `templateId` copies the template's container settings once. The body takes precedence,
  `env` key by key. A new template is bound to the endpoint, and is deleted with it.
- PATCH changes the given fields; `gpu` is changed field by field. A minimum and a list of CUDA versions exclude each
  other.
- An endpoint with workers (max above 0) cannot be deleted (400). This is true of GraphQL and the console; REST v2 ?.
- GraphQL's saveEndpoint replaces all fields: a field that is left out gets its default.

Every response to a valid key has `RateLimit`; a 429 has `Retry-After`.
"""

from .account import Account
from .faults import RestFaults
from .server import RestRequest, RunPodAccount

__all__ = ["Account", "RestFaults", "RestRequest", "RunPodAccount"]
