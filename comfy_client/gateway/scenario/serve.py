"""`comfy-client scenario serve`: the shim as a process, until SIGTERM or Ctrl-C."""

from __future__ import annotations

import asyncio
import importlib
import logging
import signal
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from comfy_client.client import client_from_env
from comfy_client.gateway.scenario.blobs import Blobs, BucketBlobs, FolderBlobs
from comfy_client.gateway.scenario.origin import is_loopback
from comfy_client.gateway.scenario.settings import ShimSettings, read_settings
from comfy_core.errors import ConfigError, missing_extra
from comfy_core.object_store import NEEDED, read_bucket

if TYPE_CHECKING:
    from typing import TextIO

    from comfy_client.gateway.scenario.service import ShimService

BACKLOG = 2048
STOP_PATIENCE_S = 20
"""For answers under way; jobs go on at the next start."""


def serve(  # noqa: PLR0913 - one for each flag of the command
    environment: Mapping[str, str],
    *,
    host: str = "127.0.0.1",
    port: int = 8189,
    is_open: bool = False,
    directory: Path | None = None,
    is_strict: bool = False,
    told: TextIO = sys.stderr,
    on_ready: Callable[[str], None] = lambda _: None,
) -> int:
    """Serve until a signal ends it; return the exit status.

    `is_open` (`--insecure-local`) asks nobody for a key, on a loopback address alone. `on_ready` is told the address
    once it listens. Raises ConfigError.
    """
    settings = read_settings(environment)
    settings = replace(settings, directory=directory or settings.directory, is_strict=is_strict or settings.is_strict)
    _check_access(settings, host, is_open=is_open)
    uvicorn, app = _imported("uvicorn"), _imported("comfy_client.gateway.scenario.server")
    connections = _imported("comfy_client.gateway.scenario.connections")
    logging.basicConfig(stream=told, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    with client_from_env(environment) as client:
        shim = app.ShimServer(client, settings, make_blobs(settings, environment))
        try:
            sockets = listening(host, port)
        except ConfigError:
            shim.service.close()
            raise
        config = uvicorn.Config(
            shim.app,
            http=connections.limited_protocol(connections.raise_file_limit()),
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,  # it would show signed addresses
            server_header=False,
            proxy_headers=bool(settings.trusted_proxies),
            forwarded_allow_ips=list(settings.trusted_proxies),
            timeout_graceful_shutdown=STOP_PATIENCE_S,
        )
        server = uvicorn.Server(config)
        # For signals before uvicorn handles them, and for the one that it raises again after an orderly end.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: setattr(server, "should_exit", True))
        asyncio.run(_serve(shim.service, server, sockets, told, on_ready))
    return 0


async def _serve(
    service: ShimService,
    server: Any,  # noqa: ANN401 - uvicorn's
    sockets: Sequence[socket.socket],
    told: TextIO,
    on_ready: Callable[[str], None],
) -> None:
    """Continue the jobs of an earlier process, say the address, and answer requests until a signal."""
    async with service:
        host, port = sockets[0].getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        told.write(
            f"The shim listens on http://{shown}:{port}\n"
            f"Callers of Scenario's SDK set SCENARIO_BASE_URL=http://{shown}:{port}/v1, others that address.\n"
        )
        told.flush()
        on_ready(f"http://{shown}:{port}")
        await server.serve(sockets=list(sockets))


def listening(host: str, port: int) -> list[socket.socket]:
    """Return sockets that listen on every address of `host`; port 0 takes a free one. Raises ConfigError.

    They listen before any job is touched: a start on a taken port changes nothing.
    """
    sockets: list[socket.socket] = []
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, address in dict.fromkeys((family, address) for family, _, _, _, address in found):
            here = (address[0], port or (sockets[0].getsockname()[1] if sockets else 0))
            sockets.append(socket.create_server(here, family=family, backlog=BACKLOG))
    except OSError as error:
        for each in sockets:
            each.close()
        raise ConfigError(
            f"The shim cannot listen on {host}:{port}: {error.strerror or error}. Give it a free --port, or an address "
            "of this machine as --host. No job was touched"
        ) from error
    return sockets


def make_blobs(settings: ShimSettings, environment: Mapping[str, str]) -> Blobs:
    """Return where pictures are kept: the folder, or the bucket. Raises ConfigError."""
    if settings.bucket_prefix is None:
        return FolderBlobs(settings.directory / "pictures")
    bucket = read_bucket(environment)
    if bucket is None:
        raise ConfigError(f"SCENARIO_SHIM_BUCKET_PREFIX is set, and there is no bucket: set {', '.join(NEEDED)}")
    return BucketBlobs(replace(bucket, prefix=settings.bucket_prefix.strip("/")))


def _check_access(settings: ShimSettings, host: str, *, is_open: bool) -> None:
    has_keys = bool(settings.accounts or settings.tokens)
    if is_open and not is_loopback(host):
        raise ConfigError(
            f"--insecure-local asks nobody for a key, so it listens on a loopback address alone, not on {host}"
        )
    if is_open and has_keys:
        raise ConfigError("--insecure-local and keys contradict: unset SCENARIO_SHIM_ACCOUNTS and SCENARIO_SHIM_TOKENS")
    if not has_keys and not is_open:
        raise ConfigError(
            "SCENARIO_SHIM_ACCOUNTS is not set (nor SCENARIO_SHIM_TOKENS): nobody could call. Set it to key:secret of "
            "your own making, or try the shim on this machine with --insecure-local"
        )


def _imported(name: str) -> Any:  # noqa: ANN401 - a module of an extra
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise missing_extra("The shim", "scenario") from error
