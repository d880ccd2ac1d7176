"""RunPod's Hub: .runpod/hub.json and tests.json match the Hub's schema and the worker.

Source: docs/reference/runpod.md#hub.

The Hub builds a release's Dockerfile itself, without weights, and runs tests.json on its own GPU.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from bench.worker_setup import ROOT
from comfy_client.deploy.description import make_description, read_description
from comfy_client.prices import POOLS
from comfy_core.environment import variables_of
from comfy_core.object_store import Bucket
from comfy_core.request.reading import read_request
from comfy_core.workflows import default_directory, load_workflows
from worker.settings import Settings

OF_RUNPOD = {"RUNPOD_INIT_TIMEOUT"}
"""Variables that the platform reads instead of the worker (docs/reference/runpod.md#environment-variables)."""
TEXT = {"type": "string", "minLength": 1}
VERSIONS = {"type": "array", "minItems": 1, "items": {"type": "string", "pattern": r"^\d+\.\d+$"}}


def closed(properties: dict[str, Any], *required: str) -> dict[str, Any]:
    """Return the schema of an object with exactly these keys."""
    return {"type": "object", "additionalProperties": False, "required": list(required), "properties": properties}


INPUT = closed(
    {
        "name": TEXT,
        "type": {"enum": ["string", "number", "boolean", "huggingface"]},
        "description": TEXT,
        "default": {"type": ["string", "number", "boolean"]},
        "required": {"type": "boolean"},
        "advanced": {"type": "boolean"},
        "options": {"type": "array", "minItems": 1, "items": closed({"label": TEXT, "value": TEXT}, "label", "value")},
        "min": {"type": "number"},
        "max": {"type": "number"},
        "trueValue": TEXT,
        "falseValue": TEXT,
    },
    "name",
    "type",
    "description",
)
VARIABLE = {
    "oneOf": [
        closed({"key": TEXT, "value": {"type": "string"}}, "key", "value"),
        closed({"key": TEXT, "input": INPUT}, "key", "input"),
    ]
}
HUB = closed(
    {
        "title": TEXT,
        "description": TEXT,
        "type": {"const": "serverless"},
        "category": {"enum": ["image", "audio", "embedding", "language", "video"]},
        "iconUrl": {"type": "string", "pattern": "^https://"},
        "config": closed(
            {
                "runsOn": {"enum": ["GPU", "CPU"]},
                "endpointType": {"const": "LB"},
                "containerDiskInGb": {"type": "integer", "minimum": 1},
                "gpuCount": {"type": "integer", "minimum": 1},
                "gpuIds": {"type": "string", "pattern": "^[A-Z0-9_]+(,[A-Z0-9_]+)*$"},
                "allowedCudaVersions": VERSIONS,
                "env": {"type": "array", "items": VARIABLE},
                "presets": {
                    "type": "array",
                    "items": closed(
                        {"name": TEXT, "defaults": {"type": "object", "additionalProperties": {"type": "string"}}},
                        "name",
                        "defaults",
                    ),
                },
            },
            "runsOn",
            "containerDiskInGb",
            "gpuCount",
            "gpuIds",
        ),
    },
    "title",
    "description",
    "type",
    "category",
    "config",
)
TESTS = closed(
    {
        "tests": {
            "type": "array",
            "minItems": 1,
            "items": closed(
                {"name": TEXT, "input": {"type": "object", "minProperties": 1}, "timeout": {"type": "integer"}},
                "name",
                "input",
                "timeout",
            ),
        },
        "config": closed(
            {
                "gpuTypeId": TEXT,
                "gpuCount": {"type": "integer", "minimum": 1},
                "env": {"type": "array", "items": closed({"key": TEXT, "value": {"type": "string"}}, "key", "value")},
                "allowedCudaVersions": VERSIONS,
            },
            "gpuTypeId",
            "gpuCount",
        ),
    },
    "tests",
    "config",
)


def load(name: str) -> Any:  # noqa: ANN401 - any JSON value
    """Return one of the two files."""
    return json.loads((ROOT / ".runpod" / name).read_text())


@pytest.mark.parametrize(("name", "schema"), [("hub.json", HUB), ("tests.json", TESTS)])
def test_the_files_match_the_hub_s_schema(name: str, schema: dict[str, Any]) -> None:
    """Every key is in RunPod's documentation."""
    jsonschema.Draft202012Validator(schema).validate(load(name))


def test_every_variable_exists() -> None:
    """Each key of both files is a variable of the worker, or one that RunPod reads itself."""
    known = {variable.name for variable in variables_of(Settings, Bucket)} | OF_RUNPOD
    hub, tests = load("hub.json")["config"], load("tests.json")["config"]
    keys = [each["key"] for each in (*hub["env"], *tests["env"])]
    keys += [key for preset in hub["presets"] for key in preset["defaults"]]

    assert set(keys) <= known


def test_the_worker_accepts_every_default(tmp_path: Path) -> None:
    """Each default, each choice and each preset is accepted by the worker's settings."""
    (tmp_path / "main.py").touch()
    variables = [each for each in load("hub.json")["config"]["env"] if "input" in each]
    values = [(each["key"], _text(each["input"], each["input"]["default"])) for each in variables]
    values += [(each["key"], option["value"]) for each in variables for option in each["input"].get("options", [])]
    presets = load("hub.json")["config"]["presets"]
    values += [pair for preset in presets for pair in preset["defaults"].items()]
    values += [(each["key"], each["value"]) for each in load("tests.json")["config"]["env"]]

    for key, value in values:
        Settings.from_env({"COMFYUI_DIR": str(tmp_path), key: value})


def _text(rule: dict[str, Any], default: object) -> str:
    if isinstance(default, bool):
        return str(rule["trueValue"] if default else rule["falseValue"])
    return str(default)


def test_the_hub_s_endpoint_matches_deploy_toml(tmp_path: Path, shipped: str) -> None:
    """Disk, GPUs and CUDA version are the same."""
    (tmp_path / "deploy.toml").write_text(shipped)
    described = read_description(tmp_path / "deploy.toml")
    config = load("hub.json")["config"]

    assert config["containerDiskInGb"] == described.disk_gb
    assert tuple(config["gpuIds"].split(",")) == described.gpu_pools
    # The Hub has no minimum version and matches exactly; a driver of CUDA 13.2 also runs programs built for 13.0.
    assert config["allowedCudaVersions"] == ["13.0", "13.1", "13.2", "13.3"]
    assert config["allowedCudaVersions"][0] == described.gpu_min_cuda_version
    assert load("tests.json")["config"]["allowedCudaVersions"] == config["allowedCudaVersions"]
    assert all(POOLS[pool].memory_gb >= 24 for pool in config["gpuIds"].split(","))
    least = make_description({"name": "flux", "image": "a/b:1", "gpu": {"pools": ["ADA_24"]}})
    assert config["containerDiskInGb"] == least.disk_gb


def test_the_hub_s_tests_are_valid_requests() -> None:
    """Each input passes the worker's validation."""
    workflows = load_workflows(default_directory())

    for each in load("tests.json")["tests"]:
        assert read_request(each["input"], workflows).template is not None


def test_deploy_toml_names_the_image_that_this_version_builds(shipped: str) -> None:
    """The name in docker-bake.hcl, the version in pyproject.toml, and the target with the weights."""
    [name] = re.findall(r'variable "IMAGE" \{ default = "(.*)" \}', (ROOT / "docker-bake.hcl").read_text())
    [version] = re.findall(r'^version = "(.*)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)

    assert f'image = "ghcr.io/OWNER/{name}:{version}-flux1-dev-fp8"' in shipped
    assert 'target "worker-flux1-dev-fp8"' in (ROOT / "docker-bake.hcl").read_text()


def test_other_files_that_the_hub_needs_exist() -> None:
    """handler.py, Dockerfile and README.md."""
    for name in ("handler.py", "Dockerfile", "README.md"):
        assert (ROOT / name).is_file()
