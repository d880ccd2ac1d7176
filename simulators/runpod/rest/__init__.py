"""A stand-in for RunPod's management API: REST v2, and the two GraphQL calls that know cached models; real sockets.

It imports nothing of ours, so that it cannot share our mistakes. What it reproduces is of RunPod's OpenAPI document
(https://api.runpod.io/v2/openapi.json) and of docs/reference/runpod.md#rest-v2; `?` marks what nobody has measured.

- Bearer key, else 401; a key without rights 403. Errors are RFC 9457, `application/problem+json`.
- Lists are wrapped: {"templates": […]}, {"endpoints": […]}, {"networkVolumes": […]}, {"registries": […]}, and so on.
- An unknown field, a wrong type or range is a 422 with `errors`; names of templates are unique (400).
- An endpoint of a `templateId` takes the template's container settings once; the body's win, `env` key by key. A
  template of its own is bound to it, and goes with it.
- PATCH changes what it has; `gpu` is changed field by field. A floor and a set of CUDA versions exclude each other.
- An endpoint with workers (max above 0) is not deleted (400): so GraphQL and the console do it; REST v2 may not ?.
- GraphQL's saveEndpoint replaces everything: a field that is left out falls back to its default.

Every answer to a right key has `RateLimit`; a 429 has `Retry-After`.
"""

from .account import Account
from .faults import RestFaults
from .server import RestRequest, RunPodAccount

__all__ = ["Account", "RestFaults", "RestRequest", "RunPodAccount"]
