"""A stand-in for Scenario's API: Flux.1-dev jobs, assets and pictures, over real sockets.

It imports nothing of ours, so that it cannot share our mistakes. Facts that it reproduces, from
docs/reference/scenario.md; `?` marks what nobody has measured.

Below /v1, with `Authorization: Basic KEY:SECRET`, else 401:
  POST generate/custom/{model}  {"job": {…}, "creativeUnitsCost": n}; unknown fields and values out of range are 400 ?;
                                a picture that is no asset of ours is 404
  GET  jobs/{id}                {"job": {…}}: queued, warming-up ?, in-progress, finalizing; success, failure, canceled
  GET  jobs                     {"jobs": […]}, by `status`; all on one page
  POST jobs/{id}/action         {"action": "cancel"}: {"job": {…}}; a job that has ended is 400 ?
  POST assets                   {"name", "image"}: {"asset": {…}}; what is no picture is 400, more than 6 MB are 413 ?
  GET  assets/{id}              {"asset": {…}} with an address below /assets, which is signed and asks for no key
  GET  models/{id}              {"model": {…}} for the one Flux.1-dev id, else 404
Errors are {"reason", "trace_id"}; 429 has `remainingSeconds` too, and no Retry-After. Picture i of a job has the seed
plus i in its asset's metadata, as text ?. Records satisfy the strict validation of the official SDK.
"""

from .api import KEY, MODEL, SECRET, ScenarioStandIn
from .faults import ScenarioFaults

__all__ = ["KEY", "MODEL", "SECRET", "ScenarioFaults", "ScenarioStandIn"]
