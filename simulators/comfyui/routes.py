"""The HTTP routes of the simulator.

Facts about ComfyUI:

- Every route also exists below /api.
- An exception in a handler (a body that is not JSON, a slash in an uploaded name) returns 500 in plain text and closes
  the connection. An upload outside its folder returns 400 without a body.
- A POST that changes something returns 200 without a body, even if there was nothing to change.
- /api/jobs/{id}/cancel returns whether the prompt was running or waiting. ComfyUI before 0.26 returns 405: its static
  files take every path, but no POST.
- /history/{id} is `{}` for a prompt that waits, runs or does not exist. /object_info/{class} is `{}` for an
  unknown class.
- A browser's request to a loopback host is refused with 403 if its Origin is another host or port.
- A prompt_id must be a UUID in its canonical form. Secrets of comfy.org are removed from `extra_data`, and the time is
  added to it.
- /free takes effect between prompts: `free_memory` empties the cache.
"""

from __future__ import annotations

import asyncio
import json
import mimetypes
import sys
import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from aiohttp import web

from simulators.comfyui import validation
from simulators.comfyui.files import FOLDERS, OutsideFolderError, inside, upload_name
from simulators.comfyui.node_table import NODE_TYPES
from simulators.comfyui.queue_and_history import QueuedPrompt
from simulators.comfyui.sockets import FEATURES, MAX_UPLOAD_BYTES
from simulators.comfyui.version import pinned_version

if TYPE_CHECKING:
    from simulators.comfyui.core import Core

PAGE = "<!doctype html><title>ComfyUI simulator</title><p>This server simulates ComfyUI. It has no editor."
INTERNAL_ERROR = "500 Internal Server Error\n\nServer got itself in trouble"
LOOPBACK = ("127.0.0.1", "localhost", "::1")
DOWNLOAD_ONLY = ("text/html", "text/html-sandboxed", "text/javascript", "text/css")
SECRET_EXTRA_DATA = ("auth_token_comfy_org", "api_key_comfy_org")
MEMORY_BYTES = 24 * 1024**3

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def application(core: Core) -> web.Application:
    """Return the server's routes."""
    app = web.Application(client_max_size=MAX_UPLOAD_BYTES, middlewares=[_middleware(core)])
    handlers = _Handlers(core)
    routes: tuple[tuple[str, str, Handler], ...] = (
        ("GET", "/", handlers.root),
        ("GET", "/ws", core.sockets.serve),
        ("GET", "/features", handlers.features),
        ("GET", "/system_stats", handlers.system_stats),
        ("GET", "/models", handlers.models),
        ("GET", "/models/{folder}", handlers.models_of),
        ("GET", "/experiment/models", handlers.model_paths),
        ("GET", "/experiment/models/{folder}", handlers.model_files_of),
        ("GET", "/object_info", handlers.object_info),
        ("GET", "/object_info/{name}", handlers.object_info),
        ("GET", "/prompt", handlers.get_prompt),
        ("POST", "/prompt", handlers.post_prompt),
        ("GET", "/queue", handlers.get_queue),
        ("POST", "/queue", handlers.post_queue),
        ("POST", "/interrupt", handlers.post_interrupt),
        ("POST", "/api/jobs/{prompt_id}/cancel", handlers.post_cancel),
        ("POST", "/free", handlers.post_free),
        ("GET", "/history", handlers.get_history),
        ("GET", "/history/{prompt_id}", handlers.get_history),
        ("POST", "/history", handlers.post_history),
        ("POST", "/upload/image", handlers.upload),
        ("GET", "/view", handlers.view),
    )
    for prefix in ("", "/api"):
        app.add_routes(web.route(method, prefix + path, handler) for method, path, handler in routes)
    return app


def _middleware(core: Core) -> Any:  # noqa: ANN401  aiohttp's own type of a middleware
    @web.middleware
    async def with_faults(request: web.Request, handler: Handler) -> web.StreamResponse:
        core.requests.append((request.method, request.path))
        if _is_foreign(request):
            return web.Response(status=403)
        if request.method == "OPTIONS":
            return web.Response()
        if core.faults.lacks_experiments and "/experiment/" in request.path:
            return web.Response(status=404)
        fault = core.faults.take_response_fault(request.method, request.path)
        if fault is not None and fault.is_500:
            response = web.Response(status=500, text=INTERNAL_ERROR)
            response.force_close()
            return response
        if fault is not None and fault.is_cut and request.transport is not None:
            request.transport.abort()
            return web.Response()
        if fault is not None:
            await asyncio.sleep(fault.seconds)
        return await handler(request)

    return with_faults


def _is_foreign(request: web.Request) -> bool:
    host, origin = urlsplit(f"//{request.headers.get('Host', '')}"), urlsplit(request.headers.get("Origin", ""))
    if host.hostname not in LOOPBACK or not origin.hostname:
        return False
    return host.hostname != origin.hostname or (None not in (host.port, origin.port) and host.port != origin.port)


@dataclass(frozen=True)
class _Handlers:
    """The handlers of the routes."""

    _core: Core

    async def post_prompt(self, request: web.Request) -> web.Response:
        body = await request.json()
        if "number" in body:
            number = float(body["number"])
        else:
            number = self._core.next_number()
            number = -number if body.get("front") else number
        if "prompt" not in body:
            return web.json_response(validation.NO_PROMPT.body(), status=400)
        prompt_id = body.get("prompt_id")
        if prompt_id is None:
            prompt_id = str(uuid.uuid4())
        if not _is_canonical_uuid(prompt_id):
            return web.json_response(validation.INVALID_PROMPT_ID.body(), status=400)
        graph = body["prompt"]
        folders = self._core.folders
        checked = validation.check(graph, self._core.listing, lambda name: folders.readable(name).exists())
        if isinstance(checked, validation.PromptRefusal):
            return web.json_response(checked.body(), status=400)
        extra_data = {key: value for key, value in body.get("extra_data", {}).items() if key not in SECRET_EXTRA_DATA}
        if "client_id" in body:
            extra_data["client_id"] = body["client_id"]
        extra_data["create_time"] = int(time.time() * 1000)
        self._core.queue.put(QueuedPrompt(number, prompt_id, graph, extra_data, checked.outputs))
        return web.json_response({"prompt_id": prompt_id, "number": number, "node_errors": checked.node_errors})

    async def get_prompt(self, _: web.Request) -> web.Response:
        return web.json_response(self._core.queue.info())

    async def get_queue(self, _: web.Request) -> web.Response:
        return web.json_response(self._core.queue.listed())

    async def post_queue(self, request: web.Request) -> web.Response:
        body = await request.json()
        for prompt_id in body.get("delete", ()):
            self._core.queue.delete(prompt_id)
        return web.Response()

    async def post_interrupt(self, request: web.Request) -> web.Response:
        prompt_id = _json_or_empty(await request.text()).get("prompt_id")
        if not prompt_id or prompt_id == self._core.queue.running_id:
            self._core.interrupt()
        return web.Response()

    async def post_cancel(self, request: web.Request) -> web.Response:
        if self._core.faults.lacks_cancel:
            raise web.HTTPMethodNotAllowed("POST", ["GET", "HEAD"])
        prompt_id = request.match_info["prompt_id"]
        is_running = prompt_id == self._core.queue.running_id
        if is_running:
            self._core.interrupt()
        return web.json_response({"cancelled": is_running or self._core.queue.delete(prompt_id)})

    async def post_free(self, request: web.Request) -> web.Response:
        body = await request.json()
        if body.get("free_memory"):
            self._core.free()
        return web.Response()

    async def get_history(self, request: web.Request) -> web.Response:
        return web.json_response(self._core.queue.history(request.match_info.get("prompt_id")))

    async def post_history(self, request: web.Request) -> web.Response:
        body = await request.json()
        for prompt_id in body.get("delete", ()):
            self._core.queue.forget(prompt_id)
        return web.Response()

    async def upload(self, request: web.Request) -> web.Response:
        form = await request.post()
        kind, image = str(form.get("type", "input")), form.get("image")
        folder = self._core.folders.base / FOLDERS[FOLDERS.index(kind)]
        if image is None:
            return web.Response(status=400)
        if not isinstance(image, web.FileField):
            raise TypeError("the image is not a file")
        name, content, subfolder = image.filename, image.file.read(), str(form.get("subfolder", ""))
        try:
            inside(folder, subfolder, name)
        except OutsideFolderError:
            return web.Response(status=400)
        target = folder / subfolder
        target.mkdir(parents=True, exist_ok=True)
        if form.get("overwrite") not in {"true", "1"}:
            name = upload_name(target, name, content)
        (target / name).write_bytes(content)
        return web.json_response({"name": name, "subfolder": subfolder, "type": kind})

    async def view(self, request: web.Request) -> web.StreamResponse:
        if "filename" not in request.query:
            return web.Response(status=404)
        name, folder = self._core.folders.annotated(request.query["filename"])
        folder = folder or self._core.folders.of_type(request.query.get("type", "output"))
        if not name or name.startswith("/") or ".." in name or folder is None:
            return web.Response(status=400)
        try:
            file = inside(folder, request.query.get("subfolder", ""), Path(name).name)
        except OutsideFolderError:
            return web.Response(status=403)
        if not file.is_file():
            return web.Response(status=404)
        kind = mimetypes.guess_type(file.name)[0] or "application/octet-stream"
        disposition = f'filename="{file.name}"'
        if kind in DOWNLOAD_ONLY or kind.endswith(("+xml", "/xml")):
            kind, disposition = "application/octet-stream", f"attachment; {disposition}"
        return web.FileResponse(file, headers={"Content-Disposition": disposition, "Content-Type": kind})

    async def root(self, _: web.Request) -> web.Response:
        return web.Response(text=PAGE, content_type="text/html")

    async def system_stats(self, _: web.Request) -> web.Response:
        return web.json_response(_stats())

    async def features(self, _: web.Request) -> web.Response:
        return web.json_response(FEATURES)

    async def models(self, _: web.Request) -> web.Response:
        return web.json_response(self._core.folders.model_folders)

    async def models_of(self, request: web.Request) -> web.Response:
        folder = request.match_info["folder"]
        return (
            web.json_response(self._core.listing(folder))
            if folder in self._core.folders.model_folders
            else web.Response(status=404)
        )

    async def model_paths(self, _: web.Request) -> web.Response:
        extensions = [".safetensors"]
        return web.json_response(
            [
                {"name": name, "folders": self._core.folders.reported_paths(name), "extensions": extensions}
                for name in self._core.folders.model_folders
                if name not in {"configs", "custom_nodes"}
            ]
        )

    async def model_files_of(self, request: web.Request) -> web.Response:
        folder = request.match_info["folder"]
        if folder not in self._core.folders.model_folders:
            return web.Response(status=404)
        return web.json_response(self._core.file_listing(folder))

    async def object_info(self, request: web.Request) -> web.Response:
        name = request.match_info.get("name")
        nodes = [node for node in NODE_TYPES.values() if name in (None, node.name)]
        return web.json_response({node.name: node.described(self._core.listing) for node in nodes})


def _stats() -> dict[str, Any]:
    system = {"os": sys.platform, "ram_total": MEMORY_BYTES, "ram_free": MEMORY_BYTES}
    system |= {"comfyui_version": f"{pinned_version()}+simulator"}
    system |= {"required_frontend_version": "", "required_templates_version": ""}
    system |= {"installed_templates_version": None, "deploy_environment": "simulator"}
    system |= {"comfy_package_versions": [{"name": "comfyui-frontend-package", "installed": "", "required": ""}]}
    system |= {"python_version": sys.version, "pytorch_version": "none", "embedded_python": False, "argv": sys.argv}
    device = {"name": "simulator", "type": "cpu", "index": None, "vram_total": MEMORY_BYTES, "vram_free": MEMORY_BYTES}
    device |= {"torch_vram_total": MEMORY_BYTES, "torch_vram_free": MEMORY_BYTES}
    return {"system": system, "devices": [device]}


def _is_canonical_uuid(prompt_id: object) -> bool:
    try:
        return isinstance(prompt_id, str) and str(uuid.UUID(prompt_id)) == prompt_id
    except ValueError:
        return False


def _json_or_empty(text: str) -> dict[str, Any]:
    try:
        body: dict[str, Any] = json.loads(text)
    except json.JSONDecodeError:
        return {}
    return body
