"""The worker's variables: defaults, values, and errors that name the variable."""

from __future__ import annotations

from pathlib import Path

import pytest

from comfy_core.errors import ConfigError
from comfy_core.prices import POOLS
from worker.settings import Settings

EXTERNAL_COMFYUI = {"COMFYUI_URL": "http://gpu:8188"}
BUCKET = {
    "BUCKET_ENDPOINT_URL": "https://s3.example",
    "BUCKET_NAME": "pictures",
    "BUCKET_ACCESS_KEY_ID": "key-id-value",
    "BUCKET_SECRET_ACCESS_KEY": "secret-value",
}


def test_only_the_url_of_an_external_comfyui_is_required() -> None:
    """All other settings have defaults; a blank value counts as unset."""
    settings = Settings.from_env({**EXTERNAL_COMFYUI, "WORKER_LOG_LEVEL": " "})

    assert settings.comfyui_url == "http://gpu:8188"
    assert not settings.comfyui_is_ours
    assert settings.comfyui_directory is None
    assert settings.workflows_directory is None
    assert (settings.concurrency, settings.warmup, settings.allow_graphs) == (2, True, True)
    assert settings.max_result_bytes == 8 * 1024 * 1024
    assert settings.bucket is None


def test_values_are_parsed(tmp_path: Path) -> None:
    """Numbers, switches, arguments and paths are parsed into their fields."""
    (tmp_path / "main.py").touch()
    settings = Settings.from_env(
        {
            "COMFYUI_DIR": str(tmp_path),
            "COMFYUI_PORT": "9000",
            "COMFYUI_ARGS": "--lowvram --cache-lru '10'",
            "WORKER_JOB_TIMEOUT_S": "45.5",
            "WORKER_WARMUP": "Off",
            "WORKER_WARMUP_SIZE": "1344X768",
            "WORKER_LOG_LEVEL": "debug",
            "WORKER_IMAGE_FIELD": "both",
        }
    )

    assert settings.comfyui_is_ours
    assert settings.comfyui_url == "http://127.0.0.1:9000"
    assert settings.comfyui_directory == tmp_path
    assert settings.comfyui_arguments == ("--lowvram", "--cache-lru", "10")
    assert settings.image_fields == ("data", "image")
    assert (settings.job_timeout_s, settings.warmup, settings.log_level) == (45.5, False, "DEBUG")
    assert settings.warmup_size == (1344, 768)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("WORKER_JOB_TIMEOUT_S", "soon"),
        ("WORKER_JOB_TIMEOUT_S", "0"),
        ("WORKER_JOB_TIMEOUT_S", "nan"),
        ("WORKER_CONCURRENCY", "1.5"),
        ("WORKER_CONCURRENCY", "9"),
        ("WORKER_ALLOW_GRAPHS", "perhaps"),
        ("WORKER_WARMUP_SIZE", "1024"),
        ("WORKER_WARMUP_SIZE", "1000x1024"),
        ("WORKER_WARMUP_SIZE", "4096x1024"),
        ("WORKER_LOG_LEVEL", "loud"),
        ("WORKER_IMAGE_FIELD", "picture"),
        ("COMFYUI_ARGS", "'unclosed"),
        ("BUCKET_URL_EXPIRES_S", "1"),
    ],
)
def test_an_invalid_value_names_its_variable(name: str, value: str) -> None:
    """The error has the variable and its value."""
    with pytest.raises(ConfigError, match=name) as info:
        Settings.from_env({**EXTERNAL_COMFYUI, name: value})

    assert value.strip("'") in str(info.value)


def test_a_folder_without_comfyui_is_reported_with_the_alternative(tmp_path: Path) -> None:
    """If COMFYUI_DIR has no main.py, the error says so and names the alternative, COMFYUI_URL."""
    with pytest.raises(ConfigError, match=r"COMFYUI_DIR: .* has no main.py.*COMFYUI_URL"):
        Settings.from_env({"COMFYUI_DIR": str(tmp_path)})


@pytest.mark.parametrize("missing", sorted(BUCKET))
def test_an_incomplete_bucket_names_the_missing_variables(missing: str) -> None:
    """If one of a bucket's four required variables is not set, the error begins with its name, and has no secret."""
    with pytest.raises(ConfigError, match=f"^{missing}: not set") as info:
        Settings.from_env({**EXTERNAL_COMFYUI, **{name: value for name, value in BUCKET.items() if name != missing}})

    assert "secret-value" not in str(info.value)


def test_a_complete_bucket_is_one_value() -> None:
    """The bucket's variables become one Bucket. Unset ones get their defaults, and its repr hides the secret."""
    bucket = Settings.from_env({**EXTERNAL_COMFYUI, **BUCKET, "BUCKET_PREFIX": "/a/b/"}).bucket

    assert bucket is not None
    assert (bucket.name, bucket.region, bucket.prefix, bucket.url_expires_s) == ("pictures", "auto", "a/b", 86400)
    assert "secret-value" not in repr(bucket)


@pytest.mark.parametrize(
    ("variables", "gpu", "usd_per_s"),
    [
        ({}, "NVIDIA H200", None),
        ({"RUNPOD_WEBHOOK_GET_JOB": "https://runpod.example/take"}, "NVIDIA H200", POOLS["HOPPER_141"].flex_usd_per_s),
        ({"RUNPOD_WEBHOOK_GET_JOB": "https://runpod.example/take"}, None, None),
        ({"RUNPOD_WEBHOOK_GET_JOB": "https://runpod.example/take"}, "NVIDIA GeForce RTX 5090", None),
        ({"WORKER_GPU_USD_PER_S": "0.0009"}, "NVIDIA GeForce RTX 5090", 0.0009),
    ],
)
def test_the_price_is_the_own_one_or_the_gpu_s_on_runpod(
    variables: dict[str, str], gpu: str | None, usd_per_s: float | None
) -> None:
    """WORKER_GPU_USD_PER_S is the price; without it, a GPU on RunPod has the price of the table."""
    assert Settings.from_env({**EXTERNAL_COMFYUI, **variables}).usd_per_s(gpu) == usd_per_s
