"""`comfy-client serve` and `scenario serve`: run the shim as an HTTP server until SIGTERM or Ctrl-C."""

from __future__ import annotations

import asyncio
import importlib
import logging
import signal
import socket
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from comfy_client.client import client_from_env
from comfy_client.gateway.scenario.auth import page_token
from comfy_client.gateway.scenario.blobs import make_blobs
from comfy_client.gateway.scenario.settings import ShimSettings
from comfy_client.providers import workflows_from_env
from comfy_core.errors import ConfigError, requiring_extra
from comfy_core.urls import is_loopback

if TYPE_CHECKING:
    from typing import TextIO

    from comfy_client.gateway.server import ShimServer

APIS: Mapping[str, str] = {
    "scenario": "With Scenario's SDK, set SCENARIO_BASE_URL={url}/v1. Other clients use the same URL.\n",
    "openai": "With OpenAI's SDK, set OPENAI_BASE_URL={url}/v1, and OPENAI_API_KEY to KEY:SECRET or a token.\n",
}
"""The APIs that the server may have, each with what its callers set."""
BACKLOG = 2048
SERVER_STOP_TIMEOUT_S = 20
"""How long a shutdown waits for responses in progress. Unfinished jobs continue at the next start."""


def serve(  # noqa: PLR0913 - one parameter per flag
    environment: Mapping[str, str],
    *,
    host: str = "127.0.0.1",
    port: int = 8189,
    is_open: bool = False,
    directory: Path | None = None,
    is_strict: bool = False,
    has_page_token: bool = False,
    is_quiet: bool = False,
    apis: Collection[str] = ("scenario",),
    log_stream: TextIO = sys.stderr,
    on_ready: Callable[[str], None] = lambda _: None,
) -> int:
    """Serve until SIGTERM or Ctrl-C and return the exit status. Raises ConfigError.

    `is_open` (`--insecure-local`) requires no keys; it is only allowed on a loopback address. `on_ready` is called
    with the server's URL when the server listens. `apis` has those of APIS that the server has. With `has_page_token`
    the printed address of the web page has a token, which is stored in the folder. With `is_quiet` no address is
    printed, and only warnings are logged.
    """
    settings = ShimSettings.from_env(environment)
    settings = replace(settings, directory=directory or settings.directory, is_strict=is_strict or settings.is_strict)
    if "scenario" not in apis:
        settings = replace(settings, upstream_api_key="", upstream_api_secret="")
    if has_page_token:
        settings = replace(settings, tokens=(*settings.tokens, page_token(settings.directory)))
    workflows = workflows_from_env(environment) if "openai" in apis else None
    _check_access(settings, host, is_open=is_open)
    uvicorn, server_module = _import_optional("uvicorn"), _import_optional("comfy_client.gateway.server")
    connections = _import_optional("comfy_client.gateway.connections")
    draining = _import_optional("comfy_client.gateway.draining")
    _import_optional("prometheus_client").disable_created_metrics()
    level = logging.WARNING if is_quiet else logging.INFO
    logging.basicConfig(stream=log_stream, level=level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)  # its start-up lines would hide the address
    with client_from_env(environment) as client:
        blobs = make_blobs(settings.directory, settings.bucket)
        shim = server_module.ShimServer(client, settings, blobs, workflows=workflows, has_scenario="scenario" in apis)
        try:
            sockets = listen(host, port)
        except ConfigError:
            shim.service.close()
            raise
        config = uvicorn.Config(
            shim.app,
            http=connections.limited_protocol(connections.raise_file_limit()),
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,  # it would log signed URLs
            server_header=False,
            headers=[("Keep-Alive", f"timeout={connections.ANNOUNCED_KEEP_ALIVE_S}")],
            proxy_headers=bool(settings.trusted_proxies),
            forwarded_allow_ips=list(settings.trusted_proxies),
            timeout_keep_alive=connections.KEEP_ALIVE_S,
            timeout_graceful_shutdown=SERVER_STOP_TIMEOUT_S,
        )
        server = draining.DrainingServer(
            config,
            settings.drain_s,
            on_drain=lambda: setattr(shim.health, "is_draining", True),
            on_stop=shim.service.release_waits,
        )
        # For a signal before uvicorn sets its handlers, and for the signal that uvicorn raises again after a shutdown.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: setattr(server, "should_exit", True))
        hints = [hint for api, hint in APIS.items() if api in apis]
        hints.append(f"The web page: {{url}}/{f'#token={settings.tokens[-1]}' if has_page_token else ''}\n")

        def listening(url: str) -> None:
            if not is_quiet:
                shown_url = settings.public_url or url
                log_stream.write(f"The server listens on {url}\n{''.join(hints).format(url=shown_url)}")
                log_stream.flush()
            on_ready(url)

        asyncio.run(_serve(shim, server, sockets, listening))
    return 0


async def _serve(
    shim: ShimServer,
    server: Any,  # noqa: ANN401 - uvicorn's
    sockets: Sequence[socket.socket],
    on_ready: Callable[[str], None],
) -> None:
    """Resume the jobs of earlier processes, report the URL, and serve requests until a signal."""
    async with shim.service, shim.health:
        host, port = sockets[0].getsockname()[:2]
        on_ready(f"http://{f'[{host}]' if ':' in host else host}:{port}")
        await server.serve(sockets=list(sockets))


def listen(host: str, port: int) -> list[socket.socket]:
    """Return listening sockets for every address of `host`. Port 0 selects a free port. Raises ConfigError.

    This happens before any job is resumed, so that a start on a port in use changes nothing.
    """
    sockets: list[socket.socket] = []
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, address in dict.fromkeys((family, address) for family, _, _, _, address in found):
            bind_address = (address[0], port or (sockets[0].getsockname()[1] if sockets else 0))
            sockets.append(socket.create_server(bind_address, family=family, backlog=BACKLOG))
    except OSError as error:
        for each in sockets:
            each.close()
        raise ConfigError(
            f"The shim cannot listen on {host}:{port}: {error.strerror or error}. Use a free --port, and an address of "
            "this machine as --host. No job was changed"
        ) from error
    return sockets


def _check_access(settings: ShimSettings, host: str, *, is_open: bool) -> None:
    has_keys = bool(settings.accounts or settings.tokens)
    if is_open and not is_loopback(host):
        raise ConfigError(
            f"--insecure-local requires no key, so it is only allowed on a loopback address, not on {host}"
        )
    if is_open and has_keys:
        raise ConfigError(
            "--insecure-local cannot be combined with keys. Unset SCENARIO_SHIM_ACCOUNTS and SCENARIO_SHIM_TOKENS"
        )
    if not has_keys and not is_open:
        raise ConfigError(
            "Neither SCENARIO_SHIM_ACCOUNTS nor SCENARIO_SHIM_TOKENS is set, so no caller could authenticate. Set "
            "SCENARIO_SHIM_ACCOUNTS to a key:secret that you choose, or try the server on this machine with "
            "--insecure-local, or with --page-token"
        )


def _import_optional(name: str) -> Any:  # noqa: ANN401 - an optional module
    with requiring_extra("The shim", "scenario"):
        return importlib.import_module(name)
