"""The simulated API as a context manager: a thread that runs one server, with its state for tests."""

from __future__ import annotations

import asyncio
import base64
import binascii
import io
import threading
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from typing import Self, TypeAlias

from aiohttp import hdrs, web
from PIL import Image

from simulators.aiohttp_server import serving

from .faults import ScenarioDrop, ScenarioFaults, ScenarioResponse
from .inferences import ScenarioInferences
from .records import Asset, Record, ScenarioJob, noise_png
from .responses import changed_by_fault, dropped, problem, response_of
from .uploads import ScenarioUploads

Route: TypeAlias = Callable[[web.Request], Awaitable[web.Response]]

KEY = "api_standin"
SECRET = "sec_standin_0123456789"  # noqa: S105 - only valid for this server
BASIC = f"Basic {base64.b64encode(f'{KEY}:{SECRET}'.encode()).decode()}"
MODEL = "model_bfl-flux-1-dev"
MODELS: tuple[Record, ...] = (
    {"id": MODEL, "name": "Flux", "type": "custom", "status": "trained", "privacy": "public", "custom": True},
    {"id": "model_studio", "name": "Studio", "type": "flux.1-lora", "status": "trained", "privacy": "private"},
    {"id": "model_ink", "name": "Ink", "type": "flux.1-lora", "status": "trained", "privacy": "private"},
)
START_TIMEOUT_S = 120.0
UPLOAD_LIMIT_BYTES = 6_000_000
DRY_RUN = 269
JOB_STEPS = 5
HELD_PROGRESS = 0.4
RANGES = {
    "strength": (0.01, 1),
    "numOutputs": (1, 4),
    "numInferenceSteps": (1, 50),
    "width": (128, 2048),
    "height": (128, 2048),
    "guidance": (0, 10),
    "seed": (0, 2147483647),
}
WITHOUT_KEY = ("image", "part")
"""The routes of signed URLs."""
KNOWN_INPUTS = {"prompt", "image", "loras", "lorasScale", *RANGES}


class ScenarioSimulator:
    """Serves Scenario's API inside its `with` block. A job takes `run_s` seconds."""

    def __init__(self, run_s: float = 0.15) -> None:
        self.faults = ScenarioFaults()
        self.jobs: dict[str, ScenarioJob] = {}
        self.assets: dict[str, Asset] = {}
        self.calls: list[str] = []
        """All received requests, such as `POST /v1/assets`."""
        self.submissions = 0
        """The number of accepted jobs. Scenario would bill each of them."""
        self._run_s = run_s
        self._inferences = ScenarioInferences(self.jobs, self.assets, self._accept, lambda: self._origin)
        self.uploads = ScenarioUploads(lambda asset: self.assets.update({asset.asset_id: asset}), lambda: self._origin)
        self._tasks: set[asyncio.Task[None]] = set()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run_server()), daemon=True)
        self._started = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop = asyncio.Event()
        self._port = 0

    def __enter__(self) -> Self:
        self._thread.start()
        if not self._started.wait(START_TIMEOUT_S):
            raise RuntimeError("the simulator did not start")
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Stop the server, if it runs."""
        self.faults.clear()
        if self._loop is not None and self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join()

    @property
    def url(self) -> str:
        """The URL to use instead of https://api.cloud.scenario.com/v1."""
        return f"http://127.0.0.1:{self._port}/v1"

    def client_env(self) -> dict[str, str]:
        """Return the environment variables of the provider `scenario`, without IMAGE_GENERATION_PROVIDER."""
        return {"SCENARIO_SDK_API_KEY": KEY, "SCENARIO_SDK_API_SECRET": SECRET, "SCENARIO_BASE_URL": self.url}

    def add_images(self, count: int) -> None:
        """Add `count` different small images with tags, as if they had been uploaded."""
        for number in range(count):
            asset = Asset(noise_png(8, 8, number), "image/png", "uploaded", {"name": f"{number}.png"})
            asset.tags = [f"tag {number}"]
            self.assets[asset.asset_id] = asset

    def held_jobs(self) -> list[ScenarioJob]:
        """Return the unfinished jobs at the progress at which `hold_job` holds a job."""
        return [job for job in self.jobs.values() if job.progress == HELD_PROGRESS and not job.is_final]

    def unfinished_jobs(self) -> list[ScenarioJob]:
        """Return the jobs that have not ended."""
        return [job for job in self.jobs.values() if not job.is_final]

    async def _run_server(self) -> None:
        app = web.Application(client_max_size=64 * 1024 * 1024)
        for method, name, path, route in (
            (hdrs.METH_POST, "generate", "/v1/generate/custom/{model}", self._generate),
            (hdrs.METH_POST, "generate", "/v1/generate/{kind}", self._generate_other),
            (hdrs.METH_GET, "jobs", "/v1/jobs", self._list_jobs),
            (hdrs.METH_GET, "job", "/v1/jobs/{job}", self._job),
            (hdrs.METH_POST, "action", "/v1/jobs/{job}/action", self._action),
            (hdrs.METH_POST, "upload", "/v1/assets", self._upload),
            (hdrs.METH_GET, "assets", "/v1/assets", self._list_assets),
            (hdrs.METH_DELETE, "assets", "/v1/assets", self._delete_assets),
            (hdrs.METH_GET, "asset", "/v1/assets/{asset}", self._asset),
            (hdrs.METH_PUT, "tags", "/v1/assets/{asset}/tags", self._tags),
            (hdrs.METH_POST, "uploads", "/v1/uploads", self.uploads.create),
            (hdrs.METH_GET, "uploads", "/v1/uploads/{upload}", self.uploads.get),
            (hdrs.METH_POST, "complete", "/v1/uploads/{upload}/action", self.uploads.act),
            (hdrs.METH_PUT, "part", "/parts/{upload}/{number}", self.uploads.put_part),
            (hdrs.METH_GET, "models", "/v1/models", self._models),
            (hdrs.METH_POST, "models", "/v1/models/get-bulk", self._bulk_models),
            (hdrs.METH_GET, "model", "/v1/models/{model}", self._model),
            (hdrs.METH_POST, "generate", "/v1/models/{model}/inferences", self._inferences.create),
            (hdrs.METH_GET, "inferences", "/v1/models/{model}/inferences", self._inferences.page),
            (hdrs.METH_GET, "inference", "/v1/models/{model}/inferences/{inference}", self._inferences.get),
            (hdrs.METH_GET, "image", "/assets/{asset}", self._image),
        ):
            app.router.add_route(method, path, partial(self._handle, name, route))
        async with serving(web.AppRunner(app, shutdown_timeout=0.1, access_log=None)) as self._port:
            self._loop = asyncio.get_running_loop()
            self._started.set()
            await self._stop.wait()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _handle(self, name: str, route: Route, request: web.Request) -> web.StreamResponse:
        self.calls.append(f"{request.method} {request.path}")
        if name not in WITHOUT_KEY and request.headers.get(hdrs.AUTHORIZATION) != BASIC:
            return problem(401, "Unauthorized")
        fault = self.faults.take_fault(name)
        if isinstance(fault, ScenarioResponse):
            return response_of(fault)
        if isinstance(fault, ScenarioDrop) and not fault.after_handling:
            return dropped(request)
        return await changed_by_fault(fault, request, await route(request))

    async def _generate(self, request: web.Request) -> web.Response:
        body: Record = await request.json()
        if request.match_info["model"] != MODEL:
            return problem(404, "Model not found")
        if fault := _input_error(body):
            return problem(400, fault)
        if "image" in body and body["image"] not in self.assets:
            return problem(404, f"Asset {body['image']} not found")
        return self._accept(ScenarioJob(body, MODEL), request)

    async def _generate_other(self, request: web.Request) -> web.Response:
        """Start a job of another route, such as remove-background. Its body is not checked, except for asset ids."""
        body: Record = await request.json()
        unknown = [each for each in _asset_ids(body) if each not in self.assets]
        if unknown:
            return problem(404, f"Asset {unknown[0]} not found")
        kind = request.match_info["kind"]
        return self._accept(ScenarioJob(body, str(body.get("modelId", "")), kind), request)

    def _accept(self, job: ScenarioJob, request: web.Request, more: Callable[[], Record] = dict) -> web.Response:
        """Start a job, unless the request is a dry run. `more` returns the rest of the response."""
        cost = {"creativeUnitsCost": 5, "creativeUnitsDiscount": 0, "costDetails": {f"{job.job_type}-generation": 5}}
        if request.query.get("dryRun") == "true":
            return web.json_response(cost, status=DRY_RUN)
        self.submissions += 1
        self.jobs[job.job_id] = job
        task = asyncio.get_running_loop().create_task(self._run(job))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return web.json_response({"job": job.record(), **more(), **cost})

    async def _run(self, job: ScenarioJob) -> None:
        if queue_s := self.faults.queue_s:
            await asyncio.sleep(queue_s / 2)
            job.set_status("warming-up", 0.0)
            await asyncio.sleep(queue_s / 2)
        for step in range(JOB_STEPS):
            job.set_status("in-progress", step / JOB_STEPS)
            if job.progress == HELD_PROGRESS and self.faults.take_hold():
                await self._wait_while_held(job)
            await asyncio.sleep(self._run_s / JOB_STEPS)
        job.set_status("finalizing", 1.0)
        if self.faults.failure:
            job.failure, self.faults.failure = self.faults.failure, {}
            job.set_status("failure", 1.0)
        elif not (job.is_final or self.faults.loses_assets):
            job.asset_ids = [self._add_image(job, number) for number in range(job.body.get("numOutputs", 1))]
        job.set_status("success", 1.0)

    async def _wait_while_held(self, job: ScenarioJob) -> None:
        while not (self.faults.released.is_set() or job.is_final):  # noqa: ASYNC110 - another thread sets it
            await asyncio.sleep(0.005)

    def _add_image(self, job: ScenarioJob, number: int) -> str:
        width, height = job.body.get("width", 1104), job.body.get("height", 832)
        seed = job.body.get("seed", 0) + number
        kind = "img2img" if "image" in job.body else "txt2img"
        metadata = {"seed": str(seed), "width": width, "height": height, "prompt": job.body.get("prompt")}
        asset = Asset(noise_png(width, height, seed), "image/png", kind, metadata)
        self.assets[asset.asset_id] = asset
        return asset.asset_id

    async def _job(self, request: web.Request) -> web.Response:
        job = self.jobs.get(request.match_info["job"])
        return web.json_response({"job": job.record()}) if job else problem(404, "Job not found")

    async def _list_jobs(self, request: web.Request) -> web.Response:
        wanted = request.query.get("status")
        jobs = [job.record() for job in self.jobs.values() if wanted in {None, job.status}]
        return web.json_response({"jobs": jobs})

    async def _action(self, request: web.Request) -> web.Response:
        job = self.jobs.get(request.match_info["job"])
        if job is None:
            return problem(404, "Job not found")
        if job.is_final:
            return problem(400, "The job has ended")
        if (await request.json()).get("action") != "cancel":
            return problem(400, "Unknown action")
        job.set_status("canceled", job.progress)
        return web.json_response({"job": job.record()})

    async def _upload(self, request: web.Request) -> web.Response:
        body: Record = await request.json()
        text = str(body.get("image", ""))
        if len(text) > UPLOAD_LIMIT_BYTES:
            return problem(413, "Request entity too large")
        try:
            data = base64.b64decode(text.rpartition(",")[2], validate=True)
            with Image.open(io.BytesIO(data)) as image:
                mime_type = Image.MIME[image.format or ""]
        except (binascii.Error, OSError, KeyError):
            return problem(400, "Not an image")
        asset = Asset(data, mime_type, "uploaded", {"name": body.get("name")})
        self.assets[asset.asset_id] = asset
        return web.json_response({"asset": asset.record(self._origin)})

    async def _asset(self, request: web.Request) -> web.Response:
        asset = self.assets.get(request.match_info["asset"])
        return web.json_response({"asset": asset.record(self._origin)}) if asset else problem(404, "Asset not found")

    async def _list_assets(self, request: web.Request) -> web.Response:
        """Return a page of assets, oldest first. The token is the number of assets on the pages before."""
        begin = int(request.query.get("paginationToken", "0"))
        end = begin + int(request.query.get("pageSize", "50"))
        since = request.query.get("createdAfter", "")
        found = [asset for asset in self.assets.values() if asset.created_at > since]
        more = {"nextPaginationToken": str(end)} if end < len(found) else {}
        return web.json_response({"assets": [asset.record(self._origin) for asset in found[begin:end]], **more})

    async def _delete_assets(self, request: web.Request) -> web.Response:
        for asset_id in (await request.json())["assetIds"]:
            self.assets.pop(asset_id, None)
        return web.json_response({})

    async def _tags(self, request: web.Request) -> web.Response:
        asset = self.assets.get(request.match_info["asset"])
        if asset is None:
            return problem(404, "Asset not found")
        body: Record = await request.json()
        tags = dict.fromkeys([*asset.tags, *body.get("add", [])])
        asset.tags = [each for each in tags if each not in body.get("delete", [])]
        return web.json_response({"added": body.get("add", []), "deleted": body.get("delete", [])})

    async def _models(self, request: web.Request) -> web.Response:
        """Return a page with one model. The token is the number of models on the pages before."""
        begin = int(request.query.get("paginationToken", "0"))
        found = [each for each in MODELS if each["privacy"] == request.query.get("privacy", "private")]
        more = {"nextPaginationToken": str(begin + 1)} if begin + 1 < len(found) else {}
        return web.json_response({"models": found[begin : begin + 1], **more})

    async def _model(self, request: web.Request) -> web.Response:
        model = next((each for each in MODELS if each["id"] == request.match_info["model"]), None)
        return web.json_response({"model": model}) if model else problem(404, "Model not found")

    async def _bulk_models(self, request: web.Request) -> web.Response:
        ids = (await request.json())["modelIds"]
        return web.json_response({"models": [each for each in MODELS if each["id"] in ids]})

    async def _image(self, request: web.Request) -> web.Response:
        asset = self.assets.get(request.match_info["asset"])
        if asset is None or request.query.get("Signature") != asset.signature:
            return web.Response(status=403, text="Access Denied")
        return web.Response(body=asset.data, content_type=asset.mime_type)

    @property
    def _origin(self) -> str:
        return f"http://127.0.0.1:{self._port}"


def _asset_ids(value: object) -> Iterator[str]:
    """Yield the asset ids anywhere in a body."""
    match value:
        case str() if value.startswith("asset_"):
            yield value
        case dict():
            for each in value.values():
                yield from _asset_ids(each)
        case list():
            for each in value:
                yield from _asset_ids(each)


def _input_error(body: Record) -> str:
    """Return the first fault of a body, or an empty string."""
    if not body.get("prompt"):
        return "Input prompt is required"
    if unknown := body.keys() - KNOWN_INPUTS:
        return f"Unknown input {sorted(unknown)}"
    for name, (least, most) in RANGES.items():
        if name in body and not least <= body[name] <= most:
            return f"Input {name} must be from {least} to {most}"
    if any(body.get(side, 16) % 16 for side in ("width", "height")):
        return "Input width and height must be multiples of 16"
    if len(body.get("loras", [])) != len(body.get("lorasScale", [])):
        return "Input lorasScale must have one number for each of loras"
    return ""
