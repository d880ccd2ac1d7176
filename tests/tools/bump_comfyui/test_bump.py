"""Bumps to a commit of a git repository whose ComfyUI is the simulator."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.worker_setup import ROOT
from tests.fakes.git_server import GitServer
from tools.bump_comfyui.__main__ import main
from tools.bump_comfyui.bump import LISTS, SNAPSHOT, Bump
from tools.bump_comfyui.engine import commit_of
from tools.bump_comfyui.steps import StepError, Steps
from tools.random_models import MODEL_FILES

pytestmark = pytest.mark.slow
MAIN = "import sys\nfrom simulators.comfyui.__main__ import main\nsys.exit(main([*sys.argv[1:], '--step-s', '0.3']))\n"
COMFYUI = {
    "comfyui_version.py": '__version__ = "9.9.0"\n',
    "main.py": MAIN,
    "nodes.py": 'NODE_CLASS_MAPPINGS = {"LoadImage": LoadImage}\n',
    "comfy/cli_args.py": 'parser.add_argument("--port")\n',
    "folder_paths.py": 'folder_names_and_paths["loras"] = ()\n',
    "server.py": '@routes.get("/queue")\n',
    **{f"models/{file}": "" for file in MODEL_FILES},
}
NEWER = {
    "comfyui_version.py": '__version__ = "9.9.1"\n',
    "comfy/cli_args.py": 'parser.add_argument("--cache-classic")\n',
}


BROKEN = {"main.py": "raise SystemExit('No module named torchaudio')\n"}


@pytest.fixture
def git(tmp_path: Path) -> Iterator[GitServer]:
    """A git server without repositories."""
    with GitServer(tmp_path / "git") as git:
        yield git


def bump_to(commit: str, repo: str, work: Path, pinned: str) -> Bump:
    """Return a bump whose packages are locked and installed: those of this process, which the simulator needs."""
    version = json.loads(SNAPSHOT.read_text())["comfyui_version"]
    bump = Bump(commit, repo, "", work, {"comfyui": pinned, "comfyui_version": version})
    bump.folder.mkdir(parents=True)
    bump.lists.mkdir()
    for name in LISTS:
        (bump.lists / name).write_text((ROOT / "requirements" / name).read_text())
    bump.venv.symlink_to(sys.prefix)
    return bump


def test_the_recordings_and_the_source_are_compared(git: GitServer, tmp_path: Path) -> None:
    """A bump fetches both commits, records the new ComfyUI and writes a table. It does not change this repository."""
    snapshot = SNAPSHOT.read_text()
    first, second = git.put("ComfyUI", COMFYUI, NEWER)
    bump = bump_to(second, git.url("ComfyUI"), tmp_path / "work", first)

    assert bump.fetch() == f"ComfyUI 9.9.1 ({second[:12]}); pinned: 9.9.0"
    assert bump.record().endswith(" recordings")
    bump.compare()

    page = bump.page.read_text()
    assert page.startswith(f"# ComfyUI {bump.pinned['comfyui_version']} ({first[:8]}) to 9.9.1 ({second[:8]})\n")
    assert "| --port | yes | - | " in page
    assert "| --cache-classic | - | yes | `worker/" in page
    assert SNAPSHOT.read_text() == snapshot


def test_a_comfyui_that_does_not_start_is_reported(git: GitServer, tmp_path: Path) -> None:
    """The error of a ComfyUI that exits has the end of its log."""
    first, second = git.put("ComfyUI", COMFYUI, BROKEN)
    bump = bump_to(second, git.url("ComfyUI"), tmp_path / "work", first)
    bump.fetch()

    with pytest.raises(StepError, match=r"does not start with the locked packages[^$]*No module named torchaudio$"):
        bump.test(Path("test_jobs.py"))


def test_a_missing_recording_is_named(git: GitServer, tmp_path: Path) -> None:
    """A comparison without recordings fails with the path of the first file that is missing."""
    first, second = git.put("ComfyUI", COMFYUI, NEWER)
    bump = bump_to(second, git.url("ComfyUI"), tmp_path / "work", first)
    bump.fetch()

    with pytest.raises(StepError, match=str(bump.recordings / "object_info.json")):
        bump.compare()


def test_a_repository_on_this_machine_may_lack_files(git: GitServer, tmp_path: Path) -> None:
    """A file whose content a local repository lacks is named, and all others are written."""
    [commit] = git.put("ComfyUI", {**COMFYUI, "tokenizer.json": "large"})
    repo = git.folder / "ComfyUI"
    git.forget("ComfyUI", "tokenizer.json")
    bump = bump_to(commit, str(repo), tmp_path / "work", commit)

    assert bump.fetch() == f"ComfyUI 9.9.0 ({commit[:12]}); the repository lacks tokenizer.json; pinned: 9.9.0"
    assert (bump.comfyui / "server.py").exists()


def test_the_newest_release_and_a_tag_are_commits(git: GitServer, tmp_path: Path) -> None:
    """`newest` and a tag's name are the tagged commit, not the tag itself; an unknown name is an error."""
    [commit] = git.put("ComfyUI", COMFYUI)
    git.tag("ComfyUI")
    steps, repo = Steps(tmp_path), git.url("ComfyUI")

    assert commit_of(steps, repo, "newest") == commit_of(steps, repo, "v1") == commit_of(steps, repo, commit) == commit
    with pytest.raises(StepError, match="has no tag v2: name a full commit hash"):
        commit_of(steps, repo, "v2")


def test_a_failed_step_ends_the_command(tmp_path: Path) -> None:
    """The command exits with the name of the failed step or of the option, and what to do."""
    missing = str(tmp_path / "none")
    with pytest.raises(SystemExit, match=f"Check --repo {missing}"):
        main(["v1", "--repo", missing, "--work", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"tools.bump_comfyui: fetch failed after .* s\. Check that --repo"):
        main(["0" * 40, "--repo", missing, "--work", str(tmp_path)])
