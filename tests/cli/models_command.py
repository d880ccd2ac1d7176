"""A script that runs `comfy-client`, except that models are downloaded from the server at MODEL_SERVER.

It is a program that adds its own provider: a direct ComfyUI whose models may come from a server on this machine. With
MAX_FILE_BYTES, the process can write no larger file, as on a full disk.
"""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Mapping
from dataclasses import replace
from urllib.parse import urlsplit

from comfy_client.cli.main import main
from comfy_client.providers import COMFYUI_DIR, COMFYUI_ENDPOINT, PROVIDERS
from comfy_client.providers.direct import DirectProvider
from comfy_client.providers.interface import Provider
from comfy_core.workflows import Workflow
from tests.core.models.addresses import local_hosts


def provider(environment: Mapping[str, str], workflows: Mapping[str, Workflow]) -> Provider:
    """Return the direct ComfyUI of the variables."""
    port = urlsplit(environment["MODEL_SERVER"]).port
    assert port is not None
    url, directory = COMFYUI_ENDPOINT.read(environment), COMFYUI_DIR.read(environment)
    hosts = replace(local_hosts(port), silence_s=60)  # a test may hold a response for long on a slow machine
    return DirectProvider(url, workflows, directory=directory, model_hosts=lambda: hosts)


if __name__ == "__main__":
    assert isinstance(PROVIDERS, dict)
    PROVIDERS["comfyui"] = replace(PROVIDERS["comfyui"], make=provider)
    unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    limit = int(os.environ.get("MAX_FILE_BYTES", "0"))
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY) if limit else unlimited)
    status = main()
    resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)  # coverage writes a larger file at exit
    sys.exit(status)
