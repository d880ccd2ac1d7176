"""Container health check: python -m worker.health.

Exit status 0 if ComfyUI responds, its disk has space, and the local API (if SERVE_API_LOCALLY is on) accepts
connections; otherwise 1. It runs every 30 seconds beside the GPU work, so it imports only the standard library and
three small modules.
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

from worker.address import comfyui_url
from worker.disk import MIN_FREE_BYTES, full_disk, temporary_folder
from worker.process_memory import protect_process_memory

TIMEOUT_S = 5.0


def main(
    env: Mapping[str, str], out: TextIO, timeout_s: float = TIMEOUT_S, min_free_bytes: int = MIN_FREE_BYTES
) -> int:
    """Check ComfyUI, its disk and the local API once, print the outcome, and return the exit status."""
    problem = (
        problem_of(comfyui_url(env), timeout_s)
        or full_disk(_folders(env), min_free_bytes)
        or _local_api_problem(env, timeout_s)
    )
    out.write(f"{problem or 'ComfyUI responds.'}\n")
    return 1 if problem else 0


def _folders(env: Mapping[str, str]) -> list[Path]:
    """Return the folders that the worker's own ComfyUI writes to; empty for a ComfyUI at COMFYUI_URL."""
    if env.get("COMFYUI_URL", "").strip():
        return []
    data = env.get("COMFYUI_DATA_DIR", "").strip() or env.get("COMFYUI_DIR", "").strip() or "/comfyui"
    return [Path(data), temporary_folder(env)]


def _local_api_problem(env: Mapping[str, str], timeout_s: float) -> str:
    """Return one sentence on why the local API is unhealthy; empty if it accepts connections or is not enabled."""
    if env.get("SERVE_API_LOCALLY", "").strip().lower() not in {"true", "1", "yes", "on"}:
        return ""
    port = env.get("WORKER_API_PORT", "").strip() or "8000"
    try:
        socket.create_connection(("127.0.0.1", int(port)), timeout_s).close()
    except (OSError, ValueError, OverflowError) as error:
        return f"The local API does not accept connections on port {port} ({type(error).__name__}): it is starting."
    return ""


def problem_of(url: str, timeout_s: float) -> str:
    """Return one sentence on why ComfyUI at `url` is unhealthy; empty if it responds to /system_stats with 200."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host = None
    if not host:
        return "COMFYUI_URL or COMFYUI_PORT is not a valid address. Set one like http://127.0.0.1:8188."
    where = f"{host}:{port}" if port else host
    kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
    connection = kind(host, port, timeout=timeout_s)
    try:
        connection.request("GET", f"{parts.path.rstrip('/')}/system_stats")
        status = connection.getresponse().status
    except TimeoutError:
        return f"ComfyUI at {where} did not respond within {timeout_s:g} s. See the worker's log."
    except (OSError, HTTPException) as error:
        return f"ComfyUI at {where} could not be reached ({type(error).__name__}): it is starting, or it has exited."
    finally:
        connection.close()
    return "" if status == 200 else f"ComfyUI at {where} returned {status} for /system_stats."  # noqa: PLR2004 - OK


if __name__ == "__main__":
    protect_process_memory()  # the environment contains the container's secrets
    sys.exit(main(os.environ, sys.stdout))
