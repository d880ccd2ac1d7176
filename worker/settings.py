"""Every variable that the worker reads, once. The environment is an argument; nothing is read at import."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from comfy_client.errors import ConfigError
from comfy_client.workflows import default_directory


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 1 <= seconds <= 86_400:  # noqa: PLR2004 - said in the message
        raise ValueError("must be from 1 to 86400 seconds")
    return seconds


def _log_level(text: str) -> str:
    if text.upper() not in {"DEBUG", "INFO", "WARNING", "ERROR"}:
        raise ValueError("must be DEBUG, INFO, WARNING or ERROR")
    return text.upper()


@dataclass(frozen=True)
class Variable:
    """One variable of the environment: how its text is read, and what it means. An empty text counts as absent."""

    name: str
    field: str
    parse: Callable[[str], Any]
    default: str
    meaning: str


VARIABLES = (
    Variable("COMFYUI_URL", "comfyui_url", str, "http://127.0.0.1:8188", "Address of the ComfyUI to use."),
    Variable(
        "COMFYUI_DIR",
        "comfyui_directory",
        Path,
        "",
        "ComfyUI's base folder (`input`, `output`, `temp`), where this process reaches it. A job's files are deleted "
        "there; without it they can only be emptied.",
    ),
    Variable(
        "WORKER_WORKFLOWS", "workflows_directory", Path, "", "Folder of workflow templates. Default: those that ship."
    ),
    Variable(
        "WORKER_JOB_TIMEOUT_S",
        "job_timeout_s",
        _seconds,
        "300",
        "Seconds that a job may run; also the default of `timeout_s`, and the longest wait for an earlier job. Keep it "
        "below the endpoint's execution timeout, so that a job ends with an error of ours.",
    ),
    Variable("WORKER_LOG_LEVEL", "log_level", _log_level, "INFO", "DEBUG, INFO, WARNING or ERROR."),
)


@dataclass(frozen=True)
class Settings:
    """The worker's settings, one field a row of VARIABLES."""

    comfyui_url: str
    comfyui_directory: Path | None
    workflows_directory: Path
    job_timeout_s: float
    log_level: str

    @staticmethod
    def from_env(env: Mapping[str, str]) -> Settings:
        """Return the settings in `env`. Raises ConfigError that names the variable at fault."""
        values = {variable.field: _value(variable, env.get(variable.name, "").strip()) for variable in VARIABLES}
        values["workflows_directory"] = values["workflows_directory"] or default_directory()
        return Settings(**values)


def _value(variable: Variable, text: str) -> Any:  # noqa: ANN401 - the field's type
    if not (text or variable.default):
        return None
    try:
        return variable.parse(text or variable.default)
    except ValueError as error:
        raise ConfigError(f"{variable.name}={text!r}: {error}. {variable.meaning}") from error
