"""`comfy-client scenario serve`: the shim as a process, until SIGTERM or Ctrl-C."""

from __future__ import annotations

import importlib
import ipaddress
import logging
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from comfy_client.buckets import NEEDED, read_bucket
from comfy_client.client import client_from_env
from comfy_client.errors import ConfigError, missing_extra
from comfy_client.scenario.blobs import Blobs, BucketBlobs, FolderBlobs
from comfy_client.scenario.settings import ShimSettings, read_settings

if TYPE_CHECKING:
    from typing import TextIO

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
    uvicorn, server = _imported("uvicorn"), _imported("comfy_client.scenario.server")
    logging.basicConfig(stream=told, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    with client_from_env(environment) as client:
        shim = server.ShimServer(client, settings, make_blobs(settings, environment))
        config = uvicorn.Config(
            shim.app,
            host=host,
            port=port,
            log_config=None,
            access_log=False,  # it would show signed addresses
            server_header=False,
            timeout_graceful_shutdown=STOP_PATIENCE_S,
        )
        running = _Announced(uvicorn.Server(config), told, on_ready)
        try:
            running.run()
        except SystemExit as ended:  # uvicorn's end where it cannot listen; its log says why
            raise ConfigError(f"The shim cannot listen on {host}:{port}. Give it a free --port") from ended
    return 0


class _Announced:
    """A uvicorn server that says where it is once it listens, as `port` 0 is chosen by then."""

    def __init__(self, server: Any, told: TextIO, on_ready: Callable[[str], None]) -> None:  # noqa: ANN401 - uvicorn's
        self._server = server
        self._told = told
        self._on_ready = on_ready
        self._startup = server.startup
        server.startup = self._start

    def run(self) -> None:
        # uvicorn raises the signal that ended it once more; an orderly end is no failure.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)
        self._server.run()

    async def _start(self, sockets: object = None) -> None:
        await self._startup(sockets=sockets)
        if self._server.started:
            host, port = self._server.servers[0].sockets[0].getsockname()[:2]
            shown = f"[{host}]" if ":" in host else host
            self._told.write(
                f"The shim listens on http://{shown}:{port}\n"
                f"Callers of Scenario's SDK set SCENARIO_BASE_URL=http://{shown}:{port}/v1, others that address.\n"
            )
            self._told.flush()
            self._on_ready(f"http://{shown}:{port}")


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
    if is_open and not _is_loopback(host):
        raise ConfigError(f"--insecure-local lets everybody in, and so listens on a loopback address alone, not {host}")
    if is_open and has_keys:
        raise ConfigError("--insecure-local and keys contradict: unset SCENARIO_SHIM_ACCOUNTS and SCENARIO_SHIM_TOKENS")
    if not has_keys and not is_open:
        raise ConfigError(
            "SCENARIO_SHIM_ACCOUNTS is not set (nor SCENARIO_SHIM_TOKENS): nobody could call. Set it to key:secret of "
            "your own making, or try the shim on this machine with --insecure-local"
        )


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _imported(name: str) -> Any:  # noqa: ANN401 - a module of an extra
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise missing_extra("The shim", "scenario") from error
