"""The websockets of one server: the connected clients, and the queue of outgoing frames.

Facts about ComfyUI:

- A text frame is `{"type", "data"}`. A binary frame is its event in four bytes, big-endian (1 is an image), four bytes
  format (1 JPEG, 2 PNG), and the file. The worker's node SendPixelsWebsocket sends the event PIXEL_EVENT, the length of
  a JSON header in four bytes, the header, and the pixels.
- The first frame of a connection is `status` with the `sid`, which is the clientId of the query or a generated id. If
  that client's prompt runs, `executing` follows, without a prompt_id.
- The server responds to a `feature_flags` frame with its own flags. ComfyUI sends images as event 4, with metadata, to
  clients that declare `supports_preview_metadata`. That is not simulated: our clients declare nothing.
- A second socket with the same clientId takes over. When either of them ends, the clientId is removed: the other one
  stays open and gets no more frames, not even a response to `feature_flags`.
- If a prompt has no client_id, its progress goes to all clients, and its other messages to none.
"""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import struct
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from aiohttp import ClientError, WSMsgType, web

IMAGE_EVENT = 1
PIXEL_EVENT = int.from_bytes(b"PIXL", "big")
JPEG, PNG = 1, 2
MAX_UPLOAD_BYTES = 100 * 1024 * 1024
FEATURES = {
    "supports_preview_metadata": True,
    "supports_model_type_tags": True,
    "max_upload_size": MAX_UPLOAD_BYTES,
    "extension": {"manager": {"supports_v4": True}},
    "node_replacements": True,
    "assets": False,
}
RESET_ON_CLOSE = struct.pack("ii", 1, 0)

logger = logging.getLogger(__name__)


@dataclass
class WebSocketClient:
    """One connected websocket."""

    socket: web.WebSocketResponse
    request: web.Request
    is_stalled: bool = False
    is_cut: bool = False


class Sockets:
    """All websockets of one server, and the queue of frames to them."""

    def __init__(self, status: Callable[[], dict[str, Any]]) -> None:
        self._status = status
        self._clients: dict[str, WebSocketClient] = {}
        self._open_clients: list[WebSocketClient] = []
        self._outbox: asyncio.Queue[Callable[[], Awaitable[None]]] = asyncio.Queue()
        self.running_client_id: str | None = None
        """The client of the running prompt."""
        self.running_node: str | None = None
        """The node that runs now, of a prompt with a client_id."""

    @property
    def count(self) -> int:
        """Return the number of open websockets."""
        return len(self._open_clients)

    def send(self, event: str, data: dict[str, Any], sid: str | None = None) -> None:
        """Queue a text frame for one client, or for all clients."""
        text = json.dumps({"type": event, "data": data})
        self._queue(lambda client: client.socket.send_str(text), sid)

    def send_status(self) -> None:
        """Queue the current length of the prompt queue for all clients."""
        self.send("status", {"status": self._status()})

    def send_image(self, kind: int, file: bytes, sid: str | None) -> None:
        """Queue an image for one client, or for all clients."""
        frame = struct.pack(">II", IMAGE_EVENT, kind) + file
        self._queue(lambda client: client.socket.send_bytes(frame), sid)

    def send_pixels(self, header: dict[str, Any], pixels: bytes, sid: str | None) -> None:
        """Queue an image as raw pixels for one client, or for all clients."""
        head = json.dumps(header).encode()
        frame = struct.pack(">II", PIXEL_EVENT, len(head)) + head + pixels
        self._queue(lambda client: client.socket.send_bytes(frame), sid)

    def call(self, action: Callable[[], Awaitable[None]]) -> None:
        """Queue an action after the frames that are queued now."""
        self._outbox.put_nowait(action)

    async def deliver(self) -> None:
        """Send queued frames until the task is cancelled."""
        while True:  # until Core.serve cancels the task
            action = await self._outbox.get()
            await action()

    async def drop(self, sid: str | None) -> None:
        """Close the socket of a client, or of all clients, cleanly."""
        for client in self._forget(sid):
            await client.socket.close(drain=False)

    async def reset(self, sid: str | None) -> None:
        """End the connection of a client, or of all clients, with a TCP RST."""
        for client in self._forget(sid):
            if client.request.transport is not None:
                connection = client.request.transport.get_extra_info("socket")
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
                client.request.transport.abort()

    async def stall(self, sid: str | None) -> None:
        """Stop sending frames to a client, or to all clients. The sockets stay open."""
        for client in self._clients_of(sid):
            client.is_stalled = True

    def release(self) -> None:
        """Send frames to stalled sockets again. The frames of the stall are lost."""
        for client in self._open_clients:
            client.is_stalled = False

    async def serve(self, request: web.Request) -> web.WebSocketResponse:
        """Serve GET /ws until the client disconnects."""
        response = web.WebSocketResponse(autoping=False)  # a stalled socket must not respond to pings
        await response.prepare(request)
        sid = request.query.get("clientId") or uuid.uuid4().hex
        client = WebSocketClient(response, request)
        self._clients[sid] = client
        self._open_clients.append(client)
        try:
            await self._send_first(sid)
            await self._listen(client, sid)
        finally:
            self._open_clients.remove(client)
            if not client.is_cut:
                self._clients.pop(sid, None)
        return response

    async def _send_first(self, sid: str) -> None:
        await self._respond(sid, "status", {"status": self._status(), "sid": sid})
        if self.running_client_id == sid and self.running_node is not None:
            await self._respond(sid, "executing", {"node": self.running_node})

    async def _listen(self, client: WebSocketClient, sid: str) -> None:
        async for message in client.socket:
            if message.type == WSMsgType.PING and not client.is_stalled:
                await _attempt(client.socket.pong(message.data))
            if message.type == WSMsgType.TEXT and '"feature_flags"' in message.data:
                await self._respond(sid, "feature_flags", FEATURES)

    async def _respond(self, sid: str, event: str, data: dict[str, Any]) -> None:
        for client in self._clients_of(sid):
            if not client.is_stalled:
                await _attempt(client.socket.send_str(json.dumps({"type": event, "data": data})))

    def _queue(self, send: Callable[[WebSocketClient], Awaitable[None]], sid: str | None) -> None:
        async def action() -> None:
            for client in self._clients_of(sid):
                if not client.is_stalled:
                    await _attempt(send(client))

        self.call(action)

    def _clients_of(self, sid: str | None) -> list[WebSocketClient]:
        if sid is None:
            return list(self._clients.values())
        return [self._clients[sid]] if sid in self._clients else []

    def _forget(self, sid: str | None) -> list[WebSocketClient]:
        clients = self._clients_of(sid)
        for client in clients:
            client.is_cut = True
        self._clients = {key: client for key, client in self._clients.items() if not client.is_cut}
        return clients


async def _attempt(sending: Awaitable[None]) -> None:
    try:
        await sending
    except (ClientError, ConnectionError, RuntimeError) as gone:
        logger.debug("the client of a frame is gone: %s", gone)
