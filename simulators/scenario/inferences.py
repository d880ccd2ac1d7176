"""The oldest routes of the simulated API, `models/{id}/inferences`. An inference has another id than its job."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from aiohttp import web

from .records import Asset, Record, ScenarioJob
from .responses import problem

STATES = {"success": "succeeded", "failure": "failed"}


class ScenarioInferences:
    """The inferences of `jobs`, whose images are in `assets`.

    Args:
        accept: starts a job and returns the response to its request.
        base_url: returns the server's URL.
    """

    def __init__(
        self,
        jobs: Mapping[str, ScenarioJob],
        assets: Mapping[str, Asset],
        accept: Callable[[ScenarioJob, web.Request, Callable[[], Record]], web.Response],
        base_url: Callable[[], str],
    ) -> None:
        self._jobs = jobs
        self._assets = assets
        self._accept = accept
        self._base_url = base_url

    async def create(self, request: web.Request) -> web.Response:
        """Handle POST models/{model}/inferences."""
        parameters = (await request.json()).get("parameters")
        if not isinstance(parameters, dict) or not parameters.get("prompt"):
            return problem(400, "Input prompt is required")
        job = ScenarioJob(parameters, request.match_info["model"], "inference")
        return self._accept(job, request, lambda: {"inference": self._record(job)})

    async def get(self, request: web.Request) -> web.Response:
        """Handle GET models/{model}/inferences/{inference}."""
        for job in self._of(request):
            if _inference_id(job) == request.match_info["inference"]:
                return web.json_response({"inference": self._record(job)})
        return problem(404, "Inference not found")

    async def page(self, request: web.Request) -> web.Response:
        """Handle GET models/{model}/inferences. The newest is first."""
        found = self._of(request)[::-1][: int(request.query.get("pageSize", "50"))]
        return web.json_response({"inferences": [self._record(job) for job in found]})

    def _of(self, request: web.Request) -> list[ScenarioJob]:
        model_id = request.match_info["model"]
        return [job for job in self._jobs.values() if (job.model_id, job.job_type) == (model_id, "inference")]

    def _record(self, job: ScenarioJob) -> Record:
        images = [self._assets[each].record(self._base_url()) for each in job.asset_ids]
        return {
            "id": _inference_id(job),
            "modelId": job.model_id,
            "status": STATES.get(job.status, job.status),
            "progress": job.progress,
            "createdAt": job.created_at,
            "parameters": job.body,
            "images": [{"id": each["id"], "url": each["url"], "seed": "0"} for each in images],
            "imagesNumber": 1,
        }


def _inference_id(job: ScenarioJob) -> str:
    return job.job_id.replace("job_", "inference_")
