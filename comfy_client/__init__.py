"""Client for generating images with any provider. Importing the package reads no environment variable.

The public names are imported lazily, on first access.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from comfy_core import __version__ as __version__

if TYPE_CHECKING:
    from comfy_client.aio import AsyncClient, AsyncJob, async_client_from_env
    from comfy_client.client import Client, Job, client_from_env
    from comfy_client.job_log import JobLog, LoggedJob
    from comfy_client.providers.interface import (
        GeneratedFile,
        GeneratedImage,
        GenerationRequest,
        GenerationResult,
        JobOptions,
        JobState,
        JobStatus,
    )
    from comfy_client.tasks import Outcome, make_request
    from comfy_core.contract import ErrorReport
    from comfy_core.error_codes import ErrorCode
    from comfy_core.errors import (
        ComfyClientError,
        ConfigError,
        JobCancelled,
        JobError,
        RequestError,
        Unauthorized,
        WaitTimeout,
    )

__all__ = [
    "AsyncClient",
    "AsyncJob",
    "Client",
    "ComfyClientError",
    "ConfigError",
    "ErrorCode",
    "ErrorReport",
    "GeneratedFile",
    "GeneratedImage",
    "GenerationRequest",
    "GenerationResult",
    "Job",
    "JobCancelled",
    "JobError",
    "JobLog",
    "JobOptions",
    "JobState",
    "JobStatus",
    "LoggedJob",
    "ModelEntry",
    "ModelList",
    "Outcome",
    "RequestError",
    "Unauthorized",
    "WaitTimeout",
    "async_client_from_env",
    "client_from_env",
    "make_request",
]

_MODULES = {
    "comfy_client.aio": {"AsyncClient", "AsyncJob", "async_client_from_env"},
    "comfy_client.client": {"Client", "Job", "client_from_env"},
    "comfy_client.job_log": {"JobLog", "LoggedJob"},
    "comfy_client.models": {"ModelEntry", "ModelList"},
    "comfy_client.tasks": {"Outcome", "make_request"},
    "comfy_core.contract": {"ErrorCode", "ErrorReport"},
    "comfy_core.errors": {name for name in __all__ if name.endswith("Error")}
    | {"JobCancelled", "Unauthorized", "WaitTimeout"},
}
"""The module of each public name. Names that are not listed are in providers.interface."""


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = next((module for module, names in _MODULES.items() if name in names), "comfy_client.providers.interface")
    return getattr(importlib.import_module(module), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
