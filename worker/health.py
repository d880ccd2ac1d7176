"""Container health check: python -m worker.health.

Exit status 0 if ComfyUI responds, the disk of the worker's own ComfyUI has space, and the local API (if
SERVE_API_LOCALLY is on) accepts connections; otherwise 1. The check runs every 30 seconds, also while the GPU works, so
it imports no third-party package.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Mapping
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from pathlib import Path
from typing import TextIO
from urllib.parse import urlsplit

from comfy_core.environment import read
from comfy_core.errors import ConfigError
from worker.comfyui_settings import ComfyUISettings
from worker.disk import MIN_FREE_BYTES, full_disk_problem
from worker.process_memory import protect_process_memory

HEALTH_TIMEOUT_S = 5.0


def main(
    env: Mapping[str, str], out: TextIO, timeout_s: float = HEALTH_TIMEOUT_S, min_free_bytes: int = MIN_FREE_BYTES
) -> int:
    """Check ComfyUI, its disk and the local API once, print the outcome, and return the exit status."""
    try:
        settings = read(ComfyUISettings, env)
    except ConfigError as error:
        out.write(f"{error}\n")
        return 1
    problem = (
        comfyui_problem(settings.comfyui_url, timeout_s)
        or full_disk_problem(_folders(settings), min_free_bytes)
        or _local_api_problem(settings, timeout_s)
    )
    out.write(f"{problem or 'ComfyUI responds.'}\n")
    return 1 if problem else 0


def _folders(settings: ComfyUISettings) -> list[Path]:
    """Return the folders that the worker's own ComfyUI writes to; empty for a ComfyUI at COMFYUI_URL."""
    data = settings.comfyui_data_directory
    return [data, settings.temporary_directory] if settings.comfyui_is_ours and data else []


def _local_api_problem(settings: ComfyUISettings, timeout_s: float) -> str:
    """Return a sentence on why the local API is unhealthy; empty if it accepts connections or is not enabled."""
    if not settings.serve_api_locally:
        return ""
    port = settings.api_port
    try:
        socket.create_connection(("127.0.0.1", port), timeout_s).close()
    except OSError as error:
        return f"The local API does not accept connections on port {port} ({type(error).__name__}): it is starting."
    return ""


def comfyui_problem(url: str, timeout_s: float) -> str:
    """Return a sentence on why ComfyUI at `url` is unhealthy; empty if it responds to /system_stats with 200."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host = None
    if not host:
        return "COMFYUI_URL is not a valid URL. Set one like http://127.0.0.1:8188."
    address = f"{host}:{port}" if port else host
    connection_class = HTTPSConnection if parts.scheme == "https" else HTTPConnection
    connection = connection_class(host, port, timeout=timeout_s)
    try:
        connection.request("GET", f"{parts.path.rstrip('/')}/system_stats")
        status = connection.getresponse().status
    except TimeoutError:
        return f"ComfyUI at {address} did not respond within {timeout_s:g} s. See the worker's log."
    except (OSError, HTTPException) as error:
        return f"ComfyUI at {address} could not be reached ({type(error).__name__}): it is starting, or it has exited."
    finally:
        connection.close()
    return "" if status == 200 else f"ComfyUI at {address} returned {status} for /system_stats."  # noqa: PLR2004 - OK


if __name__ == "__main__":
    protect_process_memory()  # the environment contains the container's secrets
    sys.exit(main(os.environ, sys.stdout))
