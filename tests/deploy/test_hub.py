"""RunPod's Hub: .runpod/hub.json and .runpod/tests.json match the Hub's schema, the worker and deploy.toml.

Source: docs/reference/runpod.md#hub.

The Hub itself builds the Dockerfile of a release, without weights, and runs the tests of tests.json on a GPU.
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
from comfy_core.environment import variables_of
from comfy_core.object_store import Bucket
from comfy_core.prices import POOLS
from comfy_core.request.reading import read_request
from comfy_core.workflows import default_directory, load_workflows
from worker.settings import Settings

RUNPOD_VARIABLES = {"RUNPOD_INIT_TIMEOUT"}
"""Variables that RunPod reads, and not the worker (docs/reference/runpod.md#environment-variables)."""
TEXT = {"type": "string", "minLength": 1}
VERSIONS = {"type": "array", "minItems": 1, "items": {"type": "string", "pattern": r"^\d+\.\d+$"}}


def closed_object(properties: dict[str, Any], *required: str) -> dict[str, Any]:
    """Return the schema of an object that has the keys of `required` and no keys but those of `properties`."""
    return {"type": "object", "additionalProperties": False, "required": list(required), "properties": properties}


INPUT = closed_object(
    {
        "name": TEXT,
        "type": {"enum": ["string", "number", "boolean", "huggingface"]},
        "description": TEXT,
        "default": {"type": ["string", "number", "boolean"]},
        "required": {"type": "boolean"},
        "advanced": {"type": "boolean"},
        "options": {
            "type": "array",
            "minItems": 1,
            "items": closed_object({"label": TEXT, "value": TEXT}, "label", "value"),
        },
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
        closed_object({"key": TEXT, "value": {"type": "string"}}, "key", "value"),
        closed_object({"key": TEXT, "input": INPUT}, "key", "input"),
    ]
}
HUB = closed_object(
    {
        "title": TEXT,
        "description": TEXT,
        "type": {"const": "serverless"},
        "category": {"enum": ["image", "audio", "embedding", "language", "video"]},
        "iconUrl": {"type": "string", "pattern": "^https://"},
        "config": closed_object(
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
                    "items": closed_object(
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
TESTS = closed_object(
    {
        "tests": {
            "type": "array",
            "minItems": 1,
            "items": closed_object(
                {"name": TEXT, "input": {"type": "object", "minProperties": 1}, "timeout": {"type": "integer"}},
                "name",
                "input",
                "timeout",
            ),
        },
        "config": closed_object(
            {
                "gpuTypeId": TEXT,
                "gpuCount": {"type": "integer", "minimum": 1},
                "env": {
                    "type": "array",
                    "items": closed_object({"key": TEXT, "value": {"type": "string"}}, "key", "value"),
                },
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
    """Return the content of hub.json or tests.json."""
    return json.loads((ROOT / ".runpod" / name).read_text())


@pytest.mark.parametrize(("name", "schema"), [("hub.json", HUB), ("tests.json", TESTS)])
def test_the_files_match_the_hub_s_schema(name: str, schema: dict[str, Any]) -> None:
    """Both files match the schemas above, which have only keys of RunPod's documentation."""
    jsonschema.Draft202012Validator(schema).validate(load(name))


def test_every_variable_exists() -> None:
    """Each environment variable in both files is one that the worker or RunPod reads."""
    known_names = {variable.name for variable in variables_of(Settings, Bucket)} | RUNPOD_VARIABLES
    hub, tests = load("hub.json")["config"], load("tests.json")["config"]
    keys = [each["key"] for each in (*hub["env"], *tests["env"])]
    keys += [key for preset in hub["presets"] for key in preset["defaults"]]

    assert set(keys) <= known_names


def test_the_worker_accepts_every_default(tmp_path: Path) -> None:
    """The worker's settings accept each default, option, preset and test value of a variable."""
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
    """Disk, GPU pools and CUDA versions match the shipped deploy.toml and its defaults."""
    (tmp_path / "deploy.toml").write_text(shipped)
    description = read_description(tmp_path / "deploy.toml")
    config = load("hub.json")["config"]

    assert config["containerDiskInGb"] == description.disk_gb
    assert tuple(config["gpuIds"].split(",")) == description.gpu_pools
    # The Hub has no minimum version and matches exactly; a driver of CUDA 13.2 also runs programs built for 13.0.
    assert config["allowedCudaVersions"] == ["13.0", "13.1", "13.2", "13.3"]
    assert config["allowedCudaVersions"][0] == description.gpu_min_cuda_version
    assert load("tests.json")["config"]["allowedCudaVersions"] == config["allowedCudaVersions"]
    assert all(POOLS[pool].memory_gb >= 24 for pool in config["gpuIds"].split(","))
    minimal = make_description({"name": "flux", "image": "a/b:1", "gpu": {"pools": ["ADA_24"]}})
    assert config["containerDiskInGb"] == minimal.disk_gb


def test_the_hub_s_tests_are_valid_requests() -> None:
    """The worker's validation accepts each test's input, which selects a template."""
    workflows = load_workflows(default_directory())

    for each in load("tests.json")["tests"]:
        assert read_request(each["input"], workflows).template is not None


def test_deploy_toml_names_the_image_that_this_version_builds(shipped: str) -> None:
    """deploy.toml's image has docker-bake.hcl's name, pyproject.toml's version, and an existing target."""
    [name] = re.findall(r'variable "IMAGE" \{ default = "(.*)" \}', (ROOT / "docker-bake.hcl").read_text())
    [version] = re.findall(r'^version = "(.*)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)

    assert f'image = "ghcr.io/OWNER/{name}:{version}-flux1-dev-fp8"' in shipped
    assert 'target "worker-flux1-dev-fp8"' in (ROOT / "docker-bake.hcl").read_text()


def test_other_files_that_the_hub_needs_exist() -> None:
    """handler.py, Dockerfile and README.md exist."""
    for name in ("handler.py", "Dockerfile", "README.md"):
        assert (ROOT / name).is_file()
