"""Every variable that the worker reads, once. The environment is an argument; nothing is read at import."""

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
    """One variable of the environment: how its text is read, and what it means. An empty text counts as absent."""

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
        "Address of a ComfyUI that runs elsewhere. Absent: the worker starts its own from COMFYUI_DIR.",
    ),
    Variable(
        "COMFYUI_DIR",
        "comfyui_directory",
        _folder,
        "",
        "ComfyUI's folder (`main.py`); `/comfyui` where COMFYUI_URL is absent. It is not written to where "
        "COMFYUI_DATA_DIR names another.",
    ),
    Variable(
        "COMFYUI_DATA_DIR",
        "comfyui_data_directory",
        _folder,
        "",
        "Folder of ComfyUI's `input`, `output`, `temp` and `user`, made at boot. Default: COMFYUI_DIR. Set "
        "it with COMFYUI_URL only if the worker can reach that ComfyUI's files; it then deletes each job's files.",
    ),
    Variable("COMFYUI_PORT", "comfyui_port", _number(int, 1, 65535), DEFAULT_PORT, "Port of the worker's own ComfyUI."),
    Variable("COMFYUI_PYTHON", "comfyui_python", str, "", "The Python of the worker's own ComfyUI. Absent: this one."),
    Variable(
        "COMFYUI_ARGS", "comfyui_arguments", shlex.split, "", "Further launch flags of ComfyUI, such as `--lowvram`."
    ),
    Variable(
        "WORKER_COMFYUI_ENV",
        "comfyui_environment",
        _names,
        "",
        "Names of further variables that the worker's own ComfyUI gets, separated by commas. By default it gets PATH, "
        "HOME, the locale, and what begins with CUDA_, NVIDIA_, PYTORCH_, PYTHON and the like: nothing named like a "
        "secret.",
    ),
    Variable(
        "WORKER_HUNG_AFTER_S",
        "hung_after_s",
        _number(float, 1, 3600),
        "12",
        "Seconds without any answer after which ComfyUI counts as hung: the worker's own is killed and started again.",
    ),
    Variable(
        "COMFYUI_READY_TIMEOUT_S",
        "ready_timeout_s",
        _number(float, 1, 3600),
        "300",
        "Seconds until ComfyUI must answer and list the workflows' models, counted once fetched models are there. "
        "RunPod gives a cold start seven minutes, or the endpoint's RUNPOD_INIT_TIMEOUT seconds.",
    ),
    Variable(
        "WORKER_MODELS_DIR",
        "models_directory",
        _folder,
        "/opt/models",
        "Folder of models beside ComfyUI's own, with the same sub folders: baked into the image, or fetched.",
    ),
    Variable(
        "WORKER_VOLUME_DIR",
        "volume_directory",
        _folder,
        "/runpod-volume",
        "Where the network volume is mounted; models lie in `models`, `ComfyUI/models` or `comfyui/models` on it.",
    ),
    Variable(
        "WORKER_MODEL_CACHE_DIR",
        "model_cache_directory",
        _folder,
        "/runpod",
        "RunPod's folder of cached models on the machine, beside `huggingface-cache` on the volume.",
    ),
    Variable("MODEL_REVISION", "model_revision", str, "", "Revision of RunPod's cached model; RunPod sets it."),
    Variable(
        "WORKER_FETCH_MODELS",
        "fetch_models",
        _switch,
        "false",
        "Whether missing models of models.txt are fetched at boot: onto the volume, else into WORKER_MODELS_DIR.",
    ),
    Variable(
        "WORKER_FETCH_TIMEOUT_S",
        "fetch_timeout_s",
        _number(float, 1, 86_400),
        "1800",
        "Seconds that this may take. It is part of the cold start: raise the endpoint's RUNPOD_INIT_TIMEOUT with it.",
    ),
    Variable(
        "WORKER_WORKFLOWS", "workflows_directory", Path, "", "Folder of workflow templates. Absent: those that ship."
    ),
    Variable("WORKER_ALLOW_GRAPHS", "allow_graphs", _switch, "true", "Whether a job may bring a graph of its own."),
    Variable(
        "WORKER_WARMUP",
        "warmup",
        _switch,
        "true",
        "Whether one small step is run at boot, so that the models are loaded.",
    ),
    Variable(
        "WORKER_CONCURRENCY",
        "concurrency",
        _number(int, 1, 8),
        "2",
        "Jobs in hand. ComfyUI runs one at a time; with 2 the next is queued while the last is encoded and posted.",
    ),
    Variable(
        "WORKER_JOB_TIMEOUT_S",
        "job_timeout_s",
        _number(float, 1, 86_400),
        "300",
        "Seconds that a job may run; also the default of `timeout_s`, and the longest wait for an earlier job. Keep it "
        "below the endpoint's execution timeout, so that a job ends with an error of ours.",
    ),
    Variable(
        "WORKER_SHUTDOWN_GRACE_S",
        "shutdown_grace_s",
        _number(float, 0, 3600),
        "20",
        "Seconds that a job may run on after SIGTERM before it is interrupted.",
    ),
    Variable(
        "WORKER_MAX_RESULT_MB",
        "max_result_mb",
        _number(float, 0.01, 20),
        "8",
        "Megabytes (1,048,576 bytes) of JSON that a result may have; RunPod loses what is much larger.",
    ),
    Variable(
        "WORKER_IMAGE_FIELD",
        "image_fields",
        _image_fields,
        "data",
        "Key of an image's base64 or address in `images[]`: `data` (as in worker-comfyui), `image`, or `both`, which "
        "doubles the size of a result.",
    ),
    Variable(
        "SERVE_API_LOCALLY",
        "serve_api_locally",
        _switch,
        "false",
        "Whether RunPod's API is served by the worker itself, on all addresses and without a login, in place of jobs "
        "from RunPod.",
    ),
    Variable("WORKER_API_PORT", "api_port", _number(int, 1, 65535), "8000", "Port of that API."),
    Variable("WORKER_PREVIEWS", "previews", _switch, "false", "Whether progress carries a small preview picture."),
    Variable(
        "WORKER_LOG_LEVEL", "log_level", _log_level, "INFO", "DEBUG (with ComfyUI's own log), INFO, WARNING or ERROR."
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
    """Where ComfyUI answers: the address given, or that of the worker's own."""
    comfyui_is_ours: bool
    comfyui_directory: Path | None
    comfyui_data_directory: Path | None
    """Where ComfyUI's files are; None where this process does not reach them."""
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
        """Return the settings in `env`. Raises ConfigError that names the variable at fault."""
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
            f"COMFYUI_DIR: {directory} has no main.py. Name the folder of ComfyUI there, or in COMFYUI_URL the address "
            "of one that runs elsewhere (python -m simulators.comfyui is one without a GPU)"
        )
    return directory
