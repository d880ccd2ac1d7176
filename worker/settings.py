"""The worker's environment variables. Each field of Settings declares one; docs/configure.md is generated from them.

The environment is an argument. Nothing is read at import.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from comfy_core.environment import choice, folder, names, number, optional, positive, read, switch, variable
from comfy_core.errors import ConfigError
from comfy_core.models.address_source import DEFAULT_HOSTS
from comfy_core.models.source import Hub
from comfy_core.object_store import Bucket, read_bucket
from comfy_core.prices import pool_of
from worker.comfyui_settings import ComfyUISettings
from worker.webhook_settings import WebhookSettings

_MEGABYTE = 1024 * 1024
_megabytes = number(float, 0.01, 20)
_gigabytes = number(float, 0, 100_000)
_side = number(int, 64, 2048)


def image_size(text: str) -> tuple[int, int]:
    """Return width and height. Raises ValueError."""
    try:
        width, height = (_side(part) for part in text.lower().split("x"))
    except ValueError:
        width = height = 1
    if width % 16 or height % 16:
        raise ValueError("must be like 1024x1024: two multiples of 16 from 64 to 2048")
    return width, height


@dataclass(frozen=True)
class RunPodVariables:
    """RunPod's variables in a worker's container (docs/reference/runpod.md#environment-variables)."""

    take_url: str = variable("RUNPOD_WEBHOOK_GET_JOB", str, "URL to take jobs from. Default: the worker runs locally.")
    ping_url: str = variable("RUNPOD_WEBHOOK_PING", str, "URL to report a worker's state to.")
    worker_id: str = variable("RUNPOD_POD_ID", str, "Id of the worker.")
    api_key: str = variable("RUNPOD_AI_API_KEY", str, "Key for these URLs.", secret=True)
    log_level: str = variable(
        "RUNPOD_LOG_LEVEL", str, "Log level of RunPod's SDK. At DEBUG it logs the start of every result.", "INFO"
    )
    skips_system_checks: str = variable(
        "RUNPOD_SKIP_AUTO_SYSTEM_CHECKS",
        str,
        "`true`: RunPod's SDK does not check memory, disk, network and CUDA after the boot. Its CUDA check imports "
        "torch into the worker's process and keeps GPU memory there.",
        "true",
    )


@dataclass(frozen=True)
class Settings(ComfyUISettings):
    """The worker's settings. `Settings()` has the defaults; `from_env` also checks ComfyUI's folder."""

    comfyui_python: str = variable(
        "COMFYUI_PYTHON",
        lambda text: text or sys.executable,
        "Python for the worker's own ComfyUI. Default: the worker's.",
    )
    comfyui_arguments: tuple[str, ...] = variable(
        "COMFYUI_ARGS", lambda text: tuple(shlex.split(text)), "Additional ComfyUI launch flags, such as `--lowvram`."
    )
    comfyui_environment: tuple[str, ...] = variable(
        "WORKER_COMFYUI_ENV",
        names,
        "Comma-separated names of additional variables to pass to the worker's own ComfyUI. By default it gets PATH, "
        "HOME, the locale, and variables with prefixes such as CUDA_, NVIDIA_, PYTORCH_ and PYTHON, but none whose "
        "name suggests a secret.",
    )
    hung_after_s: float = variable(
        "WORKER_HUNG_AFTER_S",
        number(float, 1, 3600),
        "Seconds without any response after which ComfyUI counts as hung. The worker's own is killed and restarted.",
        "12",
    )
    ready_timeout_s: float = variable(
        "COMFYUI_READY_TIMEOUT_S",
        number(float, 1, 3600),
        "Seconds within which ComfyUI must respond and list the workflows' models, counted after model downloads. "
        "RunPod allows seven minutes for a cold start, or the endpoint's RUNPOD_INIT_TIMEOUT seconds.",
        "300",
    )
    models_directory: Path = variable(
        "WORKER_MODELS_DIR",
        folder,
        "Model folder in addition to ComfyUI's own, with the same subfolders; baked into the image, or downloaded to.",
        "/opt/models",
    )
    volume_directory: Path = variable(
        "WORKER_VOLUME_DIR",
        folder,
        "Mount point of the network volume. Models are in its `models`, `ComfyUI/models` or `comfyui/models`.",
        "/runpod-volume",
    )
    model_cache_directory: Path = variable(
        "WORKER_MODEL_CACHE_DIR",
        folder,
        "RunPod's folder of cached models on the host, in addition to `huggingface-cache` on the volume.",
        "/runpod",
    )
    model_revision: str = variable("MODEL_REVISION", str, "Revision of RunPod's cached model. Set by RunPod.")
    fetch_models: bool = variable(
        "WORKER_FETCH_MODELS",
        switch,
        "Whether to download missing models of models.txt at boot, to the volume or else to WORKER_MODELS_DIR.",
        "false",
    )
    fetch_timeout_s: float = variable(
        "WORKER_FETCH_TIMEOUT_S",
        number(float, 1, 86_400),
        "Seconds that this download may take. It is part of the cold start, so raise the endpoint's "
        "RUNPOD_INIT_TIMEOUT too.",
        "1800",
    )
    model_hosts: tuple[str, ...] = variable(
        "WORKER_MODEL_HOSTS",
        lambda text: tuple(host.lower() for host in names(text)),
        "Comma-separated hosts from which a job may name models by address. `*.example.com` stands for all hosts below "
        "example.com.",
        DEFAULT_HOSTS,
    )
    model_limit_bytes: int = variable(
        "WORKER_MODEL_LIMIT_GB",
        lambda text: int(_gigabytes(text) * 10**9),
        "Maximum size in GB of the models that are kept after a download by address, on the volume or else in "
        "COMFYUI_DATA_DIR. The least recently used ones are removed. 0: jobs cannot name models by address.",
        "10",
    )
    allow_model_changes: bool = variable(
        "WORKER_ALLOW_MODEL_CHANGES",
        switch,
        "Whether a job of the task `models` may download and delete model files. If not, it may only list them.",
        "true",
    )
    civitai_token: str = variable(
        "CIVITAI_TOKEN",
        str,
        "Token for models at Civitai by address, if the job sends none. For Hugging Face it is HF_TOKEN.",
        secret=True,
    )
    workflows_directory: Path | None = variable(
        "WORKER_WORKFLOWS",
        optional(Path),
        "Folder of own workflow templates, for example on the network volume. Changed files are used without a "
        "restart. A template of the same name replaces a shipped one.",
    )
    shipped_workflows: bool = variable(
        "WORKER_SHIPPED_WORKFLOWS",
        switch,
        "Whether jobs may use the shipped workflows. If so, the worker takes no jobs without their models; otherwise, "
        "without those of WORKER_WORKFLOWS.",
        "true",
    )
    allow_graphs: bool = variable("WORKER_ALLOW_GRAPHS", switch, "Whether a job may send its own graph.", "true")
    warmup: bool = variable(
        "WORKER_WARMUP",
        switch,
        "Whether an idle worker generates one image after a start or restart of ComfyUI, which loads the models. A job "
        "that arrives interrupts it.",
        "true",
    )
    warmup_size: tuple[int, int] = variable(
        "WORKER_WARMUP_SIZE",
        image_size,
        "Size of that image, WIDTHxHEIGHT. Choose the size that most jobs have: a compiled model is prepared for one "
        "size.",
        "1024x1024",
    )
    concurrency: int = variable(
        "WORKER_CONCURRENCY",
        number(int, 1, 8),
        "Concurrent jobs. ComfyUI runs one at a time; with 2, the next is queued while the last is encoded and posted.",
        "2",
    )
    job_timeout_s: float = variable(
        "WORKER_JOB_TIMEOUT_S",
        number(float, 1, 86_400),
        "Seconds that a job may run. Also the default of `timeout_s`, and the maximum wait for an earlier job. Keep it "
        "below the endpoint's execution timeout, so that a late job ends with the worker's error report.",
        "300",
    )
    shutdown_grace_s: float = variable(
        "WORKER_SHUTDOWN_GRACE_S",
        number(float, 0, 3600),
        "Seconds that a job may continue after SIGTERM before it is interrupted.",
        "20",
    )
    max_result_bytes: int = variable(
        "WORKER_MAX_RESULT_MB",
        lambda text: int(_megabytes(text) * _MEGABYTE),
        "Maximum JSON size of a result in megabytes (1,048,576 bytes). RunPod loses much larger results.",
        "8",
    )
    image_fields: tuple[str, ...] = variable(
        "WORKER_IMAGE_FIELD",
        choice({"data": ("data",), "image": ("image",), "both": ("data", "image")}),
        "Key of an image's base64 or URL in `images[]`: `data` (as in worker-comfyui), `image`, or `both`, which "
        "doubles the size of a result.",
        "data",
    )
    gpu_usd_per_s: float | None = variable(
        "WORKER_GPU_USD_PER_S",
        optional(positive(1)),
        "Price of one second of this worker in US dollars, for the `cost` of results. Set it for a worker that always "
        "runs, for several GPUs, or for a price of your own. Default: on RunPod the flex price of the GPU in the table "
        "of docs/cost.md, if the table has the GPU; elsewhere none.",
    )
    previews: bool = variable("WORKER_PREVIEWS", switch, "Whether progress includes a small preview image.", "false")
    log_level: str = variable(
        "WORKER_LOG_LEVEL",
        choice({level: level for level in ("DEBUG", "INFO", "WARNING", "ERROR")}),
        "DEBUG (includes ComfyUI's log), INFO, WARNING or ERROR.",
        "INFO",
    )
    bucket: Bucket | None = None
    runpod: RunPodVariables = field(default_factory=RunPodVariables)
    hub: Hub = field(default_factory=Hub)
    webhooks: WebhookSettings = field(default_factory=WebhookSettings)

    def usd_per_s(self, gpu: str | None) -> float | None:
        """Return the price of one second of a worker with this GPU. None if nothing is paid, or it is unknown."""
        if self.gpu_usd_per_s is not None or not self.runpod.take_url:
            return self.gpu_usd_per_s
        pool = pool_of(gpu or "")
        return pool.flex_usd_per_s if pool else None

    @staticmethod
    def from_env(env: Mapping[str, str]) -> Settings:
        """Return the settings in `env`. Raises ConfigError that names the invalid variable."""
        settings = read(
            Settings,
            env,
            bucket=read_bucket(env),
            runpod=read(RunPodVariables, env),
            hub=Hub.from_env(env),
            webhooks=read(WebhookSettings, env),
        )
        webhook = settings.webhooks.default
        if webhook is not None and (faults := settings.webhooks.faults(webhook)):
            raise ConfigError(f"WORKER_WEBHOOK: {faults[0].path} {faults[0].message}")
        directory = settings.comfyui_directory
        if settings.comfyui_is_ours and directory and not (directory / "main.py").is_file():
            raise ConfigError(
                f"COMFYUI_DIR: {directory} has no main.py. Set it to ComfyUI's folder, or set COMFYUI_URL to the URL "
                "of an external ComfyUI (python -m simulators.comfyui is one without a GPU)"
            )
        return settings
