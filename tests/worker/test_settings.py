"""The worker's variables: defaults, values, and errors that name the variable."""

from __future__ import annotations

from pathlib import Path

import pytest

from comfy_client.errors import ConfigError
from comfy_client.workflows import default_directory
from worker.settings import VARIABLES, Settings


def test_an_empty_environment_gives_the_defaults() -> None:
    """Nothing has to be set; an empty text counts as absent."""
    settings = Settings.from_env({"COMFYUI_URL": "", "WORKER_LOG_LEVEL": " "})

    assert settings == Settings("http://127.0.0.1:8188", None, default_directory(), 300.0, "INFO")


def test_values_are_read() -> None:
    """Each variable reaches its field."""
    settings = Settings.from_env(
        {
            "COMFYUI_URL": "http://gpu:8188",
            "COMFYUI_DIR": "/comfyui",
            "WORKER_WORKFLOWS": "/workflows",
            "WORKER_JOB_TIMEOUT_S": "45.5",
            "WORKER_LOG_LEVEL": "debug",
        }
    )

    assert settings == Settings("http://gpu:8188", Path("/comfyui"), Path("/workflows"), 45.5, "DEBUG")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("WORKER_JOB_TIMEOUT_S", "soon"),
        ("WORKER_JOB_TIMEOUT_S", "0"),
        ("WORKER_JOB_TIMEOUT_S", "nan"),
        ("WORKER_LOG_LEVEL", "loud"),
    ],
)
def test_a_bad_value_names_its_variable(name: str, value: str) -> None:
    """The error says which variable, what it holds, and what it means."""
    with pytest.raises(ConfigError, match=f"{name}='{value}'"):
        Settings.from_env({name: value})


def test_every_variable_has_its_field_once() -> None:
    """The table and the settings have the same fields."""
    assert sorted(variable.field for variable in VARIABLES) == sorted(Settings.__dataclass_fields__)
