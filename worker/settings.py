"""The worker's environment variables, in one table. The environment is an argument; nothing is read at import."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from comfy_core.errors import ConfigError
from comfy_core.object_store import VARIABLES as BUCKET_VARIABLES
from comfy_core.object_store import Bucket, read_bucket
from comfy_core.workflows import default_directory
from worker.address import DEFAULT_PORT, comfyui_url

Parse: TypeAlias = Callable[[str], Any]


def _number(kind: type[float], low: float, high: float) -> Parse:
    def parse(text: str) -> float:
        number = kind(text)
        if not low <= number <= high:
            raise ValueError(f"must be from {low:g} to {high:g}")
        return number

    return parse


def _switch(text: str) -> bool:
    choices = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}
    if text.lower() not in choices:
        raise ValueError("must be true or false")
    return choices[text.lower()]


def _log_level(text: str) -> str:
    if text.upper() not in {"DEBUG", "INFO", "WARNING", "ERROR"}:
        raise ValueError("must be DEBUG, INFO, WARNING or ERROR")
    return text.upper()


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _image_fields(text: str) -> tuple[str, ...]:
    if text not in {"data", "image", "both"}:
        raise ValueError("must be data, image or both")
    return ("data", "image") if text == "both" else (text,)


def _folder(text: str) -> Path:
    return Path(text).absolute()


@dataclass(frozen=True)
class Variable:
    """One environment variable: its parser, default and description. An empty value counts as unset."""

    name: str
    field: str
    parse: Parse
    default: str
    meaning: str
    secret: bool = False


VARIABLES = (
    Variable(
        "COMFYUI_URL",
        "comfyui_url",
        str,
        "",
        "URL of an external ComfyUI. Default: the worker starts its own from COMFYUI_DIR.",
    ),
    Variable(
        "COMFYUI_DIR",
        "comfyui_directory",
        _folder,
        "",
        "ComfyUI's folder, which contains `main.py`. Default: `/comfyui` if COMFYUI_URL is not set. It is only "
        "written to if COMFYUI_DATA_DIR is not set.",
    ),
    Variable(
        "COMFYUI_DATA_DIR",
        "comfyui_data_directory",
        _folder,
        "",
        "Folder for ComfyUI's `input`, `output`, `temp` and `user` folders, created at boot. Default: COMFYUI_DIR. "
        "Set it together with COMFYUI_URL only if the worker can access that ComfyUI's files; it then deletes each "
        "job's files.",
    ),
    Variable("COMFYUI_PORT", "comfyui_port", _number(int, 1, 65535), DEFAULT_PORT, "Port of the worker's own ComfyUI."),
    Variable(
        "COMFYUI_PYTHON", "comfyui_python", str, "", "Python for the worker's own ComfyUI. Default: the worker's."
    ),
    Variable(
        "COMFYUI_ARGS", "comfyui_arguments", shlex.split, "", "Additional ComfyUI launch flags, such as `--lowvram`."
    ),
    Variable(
        "WORKER_COMFYUI_ENV",
        "comfyui_environment",
        _names,
        "",
        "Comma-separated names of additional variables to pass to the worker's own ComfyUI. By default it gets PATH, "
        "HOME, the locale, and variables with prefixes such as CUDA_, NVIDIA_, PYTORCH_ and PYTHON, but none whose "
        "name suggests a secret.",
    ),
    Variable(
        "WORKER_HUNG_AFTER_S",
        "hung_after_s",
        _number(float, 1, 3600),
        "12",
        "Seconds without any response after which ComfyUI counts as hung. The worker's own is killed and restarted.",
    ),
    Variable(
        "COMFYUI_READY_TIMEOUT_S",
        "ready_timeout_s",
        _number(float, 1, 3600),
        "300",
        "Seconds within which ComfyUI must respond and list the workflows' models, counted after model downloads. "
        "RunPod allows seven minutes for a cold start, or the endpoint's RUNPOD_INIT_TIMEOUT seconds.",
    ),
    Variable(
        "WORKER_MODELS_DIR",
        "models_directory",
        _folder,
        "/opt/models",
        "Model folder in addition to ComfyUI's own, with the same subfolders; baked into the image, or downloaded to.",
    ),
    Variable(
        "WORKER_VOLUME_DIR",
        "volume_directory",
        _folder,
        "/runpod-volume",
        "Mount point of the network volume. Models are in its `models`, `ComfyUI/models` or `comfyui/models`.",
    ),
    Variable(
        "WORKER_MODEL_CACHE_DIR",
        "model_cache_directory",
        _folder,
        "/runpod",
        "RunPod's folder of cached models on the host, in addition to `huggingface-cache` on the volume.",
    ),
    Variable("MODEL_REVISION", "model_revision", str, "", "Revision of RunPod's cached model. Set by RunPod."),
    Variable(
        "WORKER_FETCH_MODELS",
        "fetch_models",
        _switch,
        "false",
        "Whether to download missing models of models.txt at boot, to the volume or else to WORKER_MODELS_DIR.",
    ),
    Variable(
        "WORKER_FETCH_TIMEOUT_S",
        "fetch_timeout_s",
        _number(float, 1, 86_400),
        "1800",
        "Seconds that this download may take. It is part of the cold start, so raise the endpoint's "
        "RUNPOD_INIT_TIMEOUT too.",
    ),
    Variable(
        "WORKER_WORKFLOWS", "workflows_directory", Path, "", "Folder of workflow templates. Default: the shipped ones."
    ),
    Variable("WORKER_ALLOW_GRAPHS", "allow_graphs", _switch, "true", "Whether a job may send its own graph."),
    Variable(
        "WORKER_WARMUP",
        "warmup",
        _switch,
        "true",
        "Whether to run one small sampling step at boot, so that the models are loaded.",
    ),
    Variable(
        "WORKER_CONCURRENCY",
        "concurrency",
        _number(int, 1, 8),
        "2",
        "Concurrent jobs. ComfyUI runs one at a time; with 2, the next is queued while the last is encoded and posted.",
    ),
    Variable(
        "WORKER_JOB_TIMEOUT_S",
        "job_timeout_s",
        _number(float, 1, 86_400),
        "300",
        "Seconds that a job may run. Also the default of `timeout_s`, and the maximum wait for an earlier job. Keep it "
        "below the endpoint's execution timeout, so that a late job ends with the worker's error report.",
    ),
    Variable(
        "WORKER_SHUTDOWN_GRACE_S",
        "shutdown_grace_s",
        _number(float, 0, 3600),
        "20",
        "Seconds that a job may continue after SIGTERM before it is interrupted.",
    ),
    Variable(
        "WORKER_MAX_RESULT_MB",
        "max_result_mb",
        _number(float, 0.01, 20),
        "8",
        "Maximum JSON size of a result in megabytes (1,048,576 bytes). RunPod loses much larger results.",
    ),
    Variable(
        "WORKER_IMAGE_FIELD",
        "image_fields",
        _image_fields,
        "data",
        "Key of an image's base64 or URL in `images[]`: `data` (as in worker-comfyui), `image`, or `both`, which "
        "doubles the size of a result.",
    ),
    Variable(
        "SERVE_API_LOCALLY",
        "serve_api_locally",
        _switch,
        "false",
        "Whether the worker serves RunPod's API itself, on all interfaces and without a login, instead of taking jobs "
        "from RunPod.",
    ),
    Variable("WORKER_API_PORT", "api_port", _number(int, 1, 65535), "8000", "Port of that API."),
    Variable("WORKER_PREVIEWS", "previews", _switch, "false", "Whether progress includes a small preview image."),
    Variable(
        "WORKER_LOG_LEVEL", "log_level", _log_level, "INFO", "DEBUG (includes ComfyUI's log), INFO, WARNING or ERROR."
    ),
    *(
        Variable(each.name, each.name.lower(), each.parse, each.default, each.meaning, secret=each.secret)
        for each in BUCKET_VARIABLES
    ),
)


@dataclass(frozen=True)
class Settings:
    """The worker's settings."""

    comfyui_url: str
    """ComfyUI's URL: COMFYUI_URL, or that of the worker's own ComfyUI."""
    comfyui_is_ours: bool
    comfyui_directory: Path | None
    comfyui_data_directory: Path | None
    """Folder of ComfyUI's files; None if this process cannot access them."""
    comfyui_port: int
    comfyui_python: str
    comfyui_arguments: tuple[str, ...]
    comfyui_environment: tuple[str, ...]
    hung_after_s: float
    ready_timeout_s: float
    models_directory: Path
    volume_directory: Path
    model_cache_directory: Path
    model_revision: str
    fetch_models: bool
    fetch_timeout_s: float
    workflows_directory: Path
    allow_graphs: bool
    warmup: bool
    concurrency: int
    job_timeout_s: float
    shutdown_grace_s: float
    max_result_bytes: int
    image_fields: tuple[str, ...]
    serve_api_locally: bool
    api_port: int
    previews: bool
    log_level: str
    bucket: Bucket | None

    @staticmethod
    def from_env(env: Mapping[str, str]) -> Settings:
        """Return the settings in `env`. Raises ConfigError that names the invalid variable."""
        values = {variable.field: _value(variable, env.get(variable.name, "").strip()) for variable in VARIABLES}
        ours = values["comfyui_url"] is None
        directory = _comfyui_directory(values["comfyui_directory"], is_ours=ours)
        return Settings(
            comfyui_url=comfyui_url(env),
            comfyui_is_ours=ours,
            comfyui_directory=directory,
            comfyui_data_directory=values["comfyui_data_directory"] or directory,
            comfyui_port=values["comfyui_port"],
            comfyui_python=values["comfyui_python"] or sys.executable,
            comfyui_arguments=tuple(values["comfyui_arguments"] or ()),
            comfyui_environment=values["comfyui_environment"] or (),
            hung_after_s=values["hung_after_s"],
            ready_timeout_s=values["ready_timeout_s"],
            models_directory=values["models_directory"],
            volume_directory=values["volume_directory"],
            model_cache_directory=values["model_cache_directory"],
            model_revision=values["model_revision"] or "",
            fetch_models=values["fetch_models"],
            fetch_timeout_s=values["fetch_timeout_s"],
            workflows_directory=values["workflows_directory"] or default_directory(),
            allow_graphs=values["allow_graphs"],
            warmup=values["warmup"],
            concurrency=values["concurrency"],
            job_timeout_s=values["job_timeout_s"],
            shutdown_grace_s=values["shutdown_grace_s"],
            max_result_bytes=int(values["max_result_mb"] * 1024 * 1024),
            image_fields=values["image_fields"],
            serve_api_locally=values["serve_api_locally"],
            api_port=values["api_port"],
            previews=values["previews"],
            log_level=values["log_level"],
            bucket=read_bucket(env),
        )


def _value(variable: Variable, text: str) -> Any:  # noqa: ANN401 - what the variable parses to
    if not (text or variable.default):
        return None
    try:
        return variable.parse(text or variable.default)
    except ValueError as error:
        shown = "(not shown)" if variable.secret else repr(text)
        raise ConfigError(f"{variable.name}={shown}: {error}. {variable.meaning}") from error


def _comfyui_directory(given: Path | None, *, is_ours: bool) -> Path | None:
    if not is_ours:
        return given
    directory = given or Path("/comfyui")
    if not (directory / "main.py").is_file():
        raise ConfigError(
            f"COMFYUI_DIR: {directory} has no main.py. Set it to ComfyUI's folder, or set COMFYUI_URL to the URL of an "
            "external ComfyUI (python -m simulators.comfyui is one without a GPU)"
        )
    return directory
