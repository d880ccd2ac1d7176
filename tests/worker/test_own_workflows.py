"""Workflows of the owner: a folder of the worker that changes while it runs, and templates in requests."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from comfy_core.contract import JsonObject
from comfy_core.error_codes import ErrorCode
from comfy_core.errors import ConfigError, JobError
from comfy_core.workflow_folder import WorkflowFolder
from comfy_core.workflows import default_directory
from handler import worker_from_settings
from tests.worker.workers import configured
from worker.boot import required_models
from worker.jobs import Control, Worker, run_job
from worker.settings import Settings

GRAPH: JsonObject = {
    "1": {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 64, "batch_size": 1, "color": 255}},
    "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "x"}},
}
SCHEMA: JsonObject = {
    "x-models": ["vae/other.safetensors"],
    "properties": {"color": {"type": "integer", "minimum": 0, "maximum": 255, "x-node": "1.color"}},
}


def run(worker: Worker, **job_input: Any) -> JsonObject:  # noqa: ANN401 - JSON values
    """Run one job; return its result."""
    return run_job(worker, {"id": "job-1", "input": job_input}, Control())


def write(folder: Path, schema: object = SCHEMA) -> None:
    """Write the workflow `plain` into a folder."""
    folder.mkdir(exist_ok=True)
    (folder / "plain.json").write_text(json.dumps(GRAPH))
    (folder / "plain.inputs.json").write_text(schema if isinstance(schema, str) else json.dumps(schema))


def of_environment(**environment: str) -> Worker:
    """Return the worker for these environment variables."""
    return worker_from_settings(Settings.from_env({"COMFYUI_URL": "http://127.0.0.1:9", **environment}))


def test_a_new_workflow_is_used_without_a_restart(worker: Worker, tmp_path: Path) -> None:
    """The folder may be created after the boot. Its files are read again when they change."""
    folder = tmp_path / "volume"
    worker = replace(worker, workflows=WorkflowFolder(folder, worker.workflows))
    with pytest.raises(JobError) as unknown:
        run(worker, workflow="plain")
    write(folder)
    first = run(worker, workflow="plain", color=7)
    write(folder, schema={**SCHEMA, "title": "Changed"})
    second = run(worker, workflow="plain")

    assert unknown.value.code is ErrorCode.UNKNOWN_WORKFLOW
    assert (first["workflow"], first["inputs"], len(first["images"])) == ("plain", {"color": 7}, 1)
    assert first["versions"]["workflow"] != second["versions"]["workflow"]


def test_an_invalid_workflow_fails_only_its_own_jobs(worker: Worker, tmp_path: Path) -> None:
    """The error names the file. Other workflows of the folder and the shipped ones work."""
    write(tmp_path / "volume")
    shutil.copy(tmp_path / "volume" / "plain.json", tmp_path / "volume" / "cut.json")
    (tmp_path / "volume" / "cut.inputs.json").write_text('{"properties": {')
    worker = replace(worker, workflows=WorkflowFolder(tmp_path / "volume", worker.workflows))

    with pytest.raises(JobError, match=r"invalid_workflow: .*cut\.inputs\.json is not JSON"):
        run(worker, workflow="cut")
    assert run(worker, workflow="plain")["images"]
    assert run(worker, prompt="a knight", width=64, height=64, steps=1)["images"]


def test_a_template_in_a_request_is_run(worker: Worker) -> None:
    """The result is that of a template: its inputs are validated and returned. WORKER_ALLOW_GRAPHS=false refuses it."""
    template = {"workflow": GRAPH, "inputs_schema": {**SCHEMA, "x-name": "mine"}}
    result = run(worker, **template, color=7)

    assert (result["workflow"], result["inputs"], len(result["images"])) == ("mine", {"color": 7}, 1)
    with pytest.raises(JobError, match="at most 255"):
        run(worker, **template, color=256)
    with pytest.raises(JobError, match="custom graph, which this worker does not accept"):
        run(configured(worker, allow_graphs=False), **template)


def test_a_template_in_a_request_cannot_read_other_files(worker: Worker) -> None:
    """The graph is the caller's, so the rules for file names are those of a graph."""
    graph = {**GRAPH, "1": {"class_type": "LoadImage", "inputs": {"image": "../../etc/passwd"}}}

    with pytest.raises(JobError, match=r"must not contain \"\.\.\""):
        run(worker, workflow=graph, inputs_schema={"properties": {}})


def test_models_of_own_workflows_are_not_required_beside_the_shipped_ones(tmp_path: Path) -> None:
    """A workflow without its model does not keep the worker from its other jobs, unless there are no shipped ones."""
    write(tmp_path)
    beside = of_environment(WORKER_WORKFLOWS=str(tmp_path))
    alone = of_environment(WORKER_WORKFLOWS=str(tmp_path), WORKER_SHIPPED_WORKFLOWS="false")

    assert {"plain", "flux-dev-txt2img"} <= set(beside.workflows)
    assert "vae/other.safetensors" not in required_models(beside.workflows)
    assert set(alone.workflows) == {"plain"}
    assert required_models(alone.workflows) == ["vae/other.safetensors"]


def test_a_worker_without_any_workflow_is_a_wrong_setting() -> None:
    """Without shipped workflows there must be a folder."""
    assert set(of_environment().workflows) == {
        file.name.removesuffix(".inputs.json") for file in default_directory().glob("*.inputs.json")
    }
    with pytest.raises(ConfigError, match="set WORKER_WORKFLOWS"):
        of_environment(WORKER_SHIPPED_WORKFLOWS="false")
