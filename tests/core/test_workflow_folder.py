"""A folder of workflows: changed files are used at once, and an invalid file affects only its own workflow."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import pytest

from comfy_core.error_codes import ErrorCode
from comfy_core.errors import JobError
from comfy_core.workflow_folder import WorkflowFolder
from comfy_core.workflows import default_directory, find_workflow, load_workflows
from tests.core.test_workflows import INPUTS, write_workflow

SHIPPED = load_workflows(default_directory())


def test_own_workflows_are_beside_the_others(tmp_path: Path) -> None:
    """The folder's workflows are added, and one with the same name replaces a shipped one."""
    folder = WorkflowFolder(write_workflow(tmp_path), SHIPPED)
    for file in default_directory().glob("flux-dev-txt2img*"):
        shutil.copy(file, tmp_path)
    (tmp_path / "flux-dev-txt2img.inputs.json").write_text(json.dumps(INPUTS | {"properties": {}}))

    assert set(folder) == {*SHIPPED, "style"}
    assert folder["flux-dev-img2img"] is SHIPPED["flux-dev-img2img"]
    assert folder["flux-dev-txt2img"].inputs == {}
    assert (folder.is_own("style"), folder.is_own("flux-dev-img2img")) == (True, False)


def test_files_are_read_again_when_they_change(tmp_path: Path) -> None:
    """Added, changed and removed files are seen at the next access; unchanged ones are not read again."""
    folder = WorkflowFolder(tmp_path / "later", {})
    assert list(folder) == []

    (tmp_path / "later").mkdir()
    first = WorkflowFolder(write_workflow(tmp_path / "later"), {})["style"]
    assert folder["style"] == first
    assert folder["style"] is folder["style"]

    write_workflow(tmp_path / "later", inputs={**INPUTS, "title": "Changed"})
    assert folder["style"].schema["title"] == "Changed"
    assert folder["style"].version != first.version

    (tmp_path / "later" / "style.inputs.json").unlink()
    assert "style" not in folder


def test_an_invalid_workflow_affects_no_other(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Its name is an error with the file and the reason, which is also logged once. A corrected file is used."""
    folder = WorkflowFolder(write_workflow(tmp_path), SHIPPED)
    (tmp_path / "half.json").write_text("{}")
    (tmp_path / "half.inputs.json").write_text('{"title": "cut o')

    with caplog.at_level(logging.ERROR), pytest.raises(JobError) as info:
        find_workflow("half", folder)
    assert set(folder) == {*SHIPPED, "style"}
    assert len(folder) == len(SHIPPED) + 1
    assert info.value.code is ErrorCode.INVALID_WORKFLOW
    assert "half.inputs.json is not JSON" in info.value.report.message
    assert len(caplog.records) == 1
    assert folder.problems().keys() == {"half"}

    shutil.copy(tmp_path / "style.json", tmp_path / "half.json")
    shutil.copy(tmp_path / "style.inputs.json", tmp_path / "half.inputs.json")
    assert folder["half"].inputs == folder["style"].inputs
