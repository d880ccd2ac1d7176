"""Simulates Scenario's API on real sockets: Flux.1-dev jobs, assets and images.

It imports nothing else of this project, so that it cannot repeat our mistakes. It reproduces these facts of
docs/reference/scenario.md. `?` marks facts that are not measured.

Below /v1, with `Authorization: Basic KEY:SECRET`, else 401:
  POST generate/custom/{model}  {"job": {…}, "creativeUnitsCost": n}; unknown fields and values out of range are 400 ?;
                                an image that is not an asset of this account is 404
  GET  jobs/{id}                {"job": {…}}: queued, warming-up ?, in-progress, finalizing; success, failure, canceled
  GET  jobs                     {"jobs": […]}, by `status`; all on one page
  POST jobs/{id}/action         {"action": "cancel"}: {"job": {…}}; a job that has ended is 400 ?
  POST assets                   {"name", "image"}: {"asset": {…}}; 400 if it is not an image, 413 above 6 MB ?
  POST uploads                  {"fileName", "parts"}: {"upload": {…}} with a URL for each part, which needs no key;
                                parts below 5 MiB, except the last, are 400 ? when the upload is completed
  POST uploads/{id}/action      {"action": "complete"}: `validating`; GET uploads/{id}: then `imported` with `entityId`
  GET  assets/{id}              {"asset": {…}} with a signed URL below /assets, which needs no key
  GET  models/{id}              {"model": {…}} for the one Flux.1-dev id, else 404
  POST models/{id}/inferences   {"parameters": {…}}: {"job": {…}, "inference": {…}} with other ids ?; GET by id; a list
Errors are {"reason", "trace_id"}; 429 also has `remainingSeconds`, and no Retry-After. The asset of image i
has the job's seed plus i in its metadata, as text ?. Records satisfy the strict validation of the official SDK.
"""

from .api import KEY, MODEL, SECRET, ScenarioSimulator
from .faults import ScenarioFaults

__all__ = ["KEY", "MODEL", "SECRET", "ScenarioFaults", "ScenarioSimulator"]
