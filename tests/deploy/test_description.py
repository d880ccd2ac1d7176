"""Parsing deploy.toml: valid content, defaults, secrets, and errors with all faults at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from comfy_client.deploy.description import SCHEMA, find_faults, read_description
from comfy_client.deploy.variables import secrets_of
from comfy_core.errors import ConfigError
from comfy_core.prices import DEFAULT_POOL, POOLS

MINIMAL = 'name = "flux"\nimage = "ghcr.io/me/worker:1.0.0"\n[gpu]\npools = ["ADA_24"]\n'


def read(folder: Path, text: str) -> object:
    """Parse a text as deploy.toml."""
    (folder / "deploy.toml").write_text(text)
    return read_description(folder / "deploy.toml")


def test_the_shipped_file_is_valid_except_for_the_owner(tmp_path: Path, shipped: str) -> None:
    """The shipped file has these defaults.

    `OWNER` in the image's name must be replaced: reject_placeholder reports it.
    """
    (tmp_path / "deploy.toml").write_text(shipped)
    description = read_description(tmp_path / "deploy.toml")

    assert (description.disk_gb, description.workers_min, description.workers_max) == (40, 0, 3)
    assert (description.workers_idle_timeout_s, description.workers_flashboot) == (30, "FLASHBOOT")
    assert description.gpu_pools[0] == DEFAULT_POOL
    assert all(POOLS[pool].memory_gb >= 24 for pool in description.gpu_pools)
    assert "L40" in POOLS[description.gpu_pools[-1]].gpus
    with pytest.raises(ConfigError, match="OWNER"):
        description.reject_placeholder()


def test_the_commented_lines_of_the_shipped_file_are_valid(tmp_path: Path, shipped: str) -> None:
    """Uncommenting all optional settings together gives a valid file."""
    keys = {"registry", "secrets", "excluded", "network_volume", "cached_model", "data_centers"}
    lines = [
        line[2:] if line.startswith("# ") and line[2:].split(" ")[0] in keys else line for line in shipped.splitlines()
    ]
    (tmp_path / "deploy.toml").write_text("\n".join(lines))
    description = read_description(tmp_path / "deploy.toml")

    assert description.registry == "ghcr"
    assert description.storage_network_volume == "models"
    assert description.storage_cached_model == "https://huggingface.co/you/a-repository-with-just-these-files:main"
    assert len(description.secrets) == 2


def test_a_minimal_file_has_the_defaults(tmp_path: Path, shipped: str) -> None:
    """Name, image and pools are enough. These defaults are the values in the shipped file; no model is cached."""
    (tmp_path / "deploy.toml").write_text(shipped)
    shipped_description = read_description(tmp_path / "deploy.toml")
    (tmp_path / "deploy.toml").write_text(MINIMAL)
    minimal = read_description(tmp_path / "deploy.toml")

    for field in (
        "disk_gb",
        "workers_min",
        "workers_max",
        "workers_idle_timeout_s",
        "workers_queue_delay_s",
        "workers_flashboot",
        "gpu_order",
    ):
        assert getattr(minimal, field) == getattr(shipped_description, field)
    assert minimal.storage_cached_model is None


def test_all_faults_are_reported_at_once_with_their_paths(tmp_path: Path) -> None:
    """One error lists all twelve faults, each with its path. It does not contain the values that look like secrets."""
    text = """\
name = "x"
image = "ghcr.io/me/worker:latest"
discs = 40
secrets = ["A_B"]
[gpu]
pools = []
min_cuda_version = "13"
[workers]
min = 5
idle_timeout_s = 0
queue_delay_s = nan
flashboot = "on"
[env]
HF_TOKEN = "hf_very_secret"
BUCKET_SECRET_ACCESS_KEY = 8155321
A_B = "c"
"""
    with pytest.raises(ConfigError) as info:
        read(tmp_path, text)
    message = str(info.value)

    assert "12 faults" in message
    for fault in (
        "name:",
        "image: has the tag latest",
        "discs: is not known",
        "gpu.pools:",
        "gpu.min_cuda_version:",
        "workers.min: must be at most workers.max, 3",
        "workers.idle_timeout_s: must be at least 1",
        "workers.queue_delay_s: must be a finite number",
        'workers.flashboot: must be one of "OFF", "FLASHBOOT", "PRIORITY_FLASHBOOT"',
        "env.HF_TOKEN: looks like a secret",
        "env.BUCKET_SECRET_ACCESS_KEY: looks like a secret",
        "env.A_B: is also in secrets",
    ):
        assert fault in message, message
    assert "hf_very_secret" not in message
    assert "8155321" not in message


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('name = "a', "is not TOML"),
        ("", "image: is missing"),
        (MINIMAL.replace(":1.0.0", ""), "does not. The worker's container image, with a"),
        (MINIMAL + "[env]\nA = 1\n", "env.A: must be text"),
        (MINIMAL + '[storage]\ncached_model = "org/name"\n', "storage.cached_model"),
    ],
)
def test_one_fault_is_reported_without_a_list(tmp_path: Path, text: str, problem: str) -> None:
    """The error names the file, and the key if there is one, and says what is wrong."""
    with pytest.raises(ConfigError, match=r"deploy\.toml") as info:
        read(tmp_path, text)

    assert problem in str(info.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """The error has the file's path and the reason."""
    with pytest.raises(ConfigError, match=r"nowhere.toml cannot be read: No such file"):
        read_description(tmp_path / "nowhere.toml")


def test_a_reference_to_a_runpod_secret_may_be_in_env() -> None:
    """A value that refers to a RunPod secret is not itself a secret."""
    value = {
        "name": "flux",
        "image": "a/b:1",
        "gpu": {"pools": ["ADA_24"]},
        "env": {"HF_TOKEN": "{{ RUNPOD_SECRET_hf_token }}"},
    }

    assert find_faults(value) == []


def test_all_missing_secrets_are_named() -> None:
    """The error names each secret that is unset or empty. If none is, the secrets are returned with their values."""
    with pytest.raises(ConfigError, match="B, C"):
        secrets_of({"A": "1", "C": ""}, ("A", "B", "C"))
    assert secrets_of({"A": "1"}, ("A",)) == {"A": "1"}


def test_every_key_has_a_description() -> None:
    """docs/deploy.md's table of settings is generated from these descriptions."""
    tables = [SCHEMA, *(rule for rule in SCHEMA["properties"].values() if "properties" in rule)]

    for table in tables:
        for name, rule in table["properties"].items():
            assert rule["description"], name
