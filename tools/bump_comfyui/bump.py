"""One bump: what each step does, and the folders that it writes. __main__.py runs the steps in their order."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import requests

from tools.bump_comfyui import comparison
from tools.bump_comfyui.engine import ROOT, fetch, install, running, version_of
from tools.bump_comfyui.steps import StepError, Steps, digest

SNAPSHOT = ROOT / "snapshot.json"
LISTS = ("comfyui.txt", "torch.txt")
RECORDING_TESTS = ("tests/comfyui/test_recordings.py", "tests/simulators/comfyui")


@dataclass(frozen=True)
class Bump:
    """One bump: its options, and the folders that it writes.

    Attributes:
        commit: the new commit of ComfyUI.
        repo: the repository that has it.
        torch_index: the package index that has torch for the CPU.
        work: the work folder; bumps to other commits use it too.
        pinned: the content of snapshot.json before the edit.
    """

    commit: str
    repo: str
    torch_index: str
    work: Path
    pinned: Mapping[str, Any]

    @property
    def folder(self) -> Path:
        """The folder of this commit."""
        return self.work / self.commit[:12]

    @property
    def comfyui(self) -> Path:
        """The checkout of the new ComfyUI."""
        return self.folder / "comfyui"

    @property
    def recordings(self) -> Path:
        """The new recordings."""
        return self.folder / "recordings"

    @property
    def lists(self) -> Path:
        """The new lock files."""
        return self.folder / "requirements"

    @property
    def page(self) -> Path:
        """The table of the differences."""
        return self.folder / "changes.md"

    @cached_property
    def steps(self) -> Steps:
        """The steps, whose results are in the folder of this commit."""
        self.folder.mkdir(parents=True, exist_ok=True)
        return Steps(self.folder)

    @property
    def pinned_comfyui(self) -> Path:
        """The checkout of the pinned ComfyUI, for its source alone."""
        commit: str = self.pinned["comfyui"]
        return self.work / commit[:12] / "comfyui"

    @property
    def venv(self) -> Path:
        """The virtual environment of the new ComfyUI. Commits with the same lock files share it."""
        return self.work / f"venv-{digest([self.torch_index, *(self.lists / name for name in LISTS)])[:12]}"

    def fetch(self) -> str:
        """Write the new ComfyUI, and the source of the pinned one; return their versions."""
        fetched = fetch(self.steps, self.repo, self.commit, self.comfyui)
        fetch(self.steps, self.repo, self.pinned["comfyui"], self.pinned_comfyui)
        return f"ComfyUI {fetched}; pinned: {version_of(self.pinned_comfyui)}"

    def lock(self) -> str:
        """Lock the packages of the new ComfyUI."""
        self.lists.mkdir(exist_ok=True)
        script = [ROOT / "scripts/lock", "--comfyui", self.comfyui / "requirements.txt", self.lists]
        remedy = "If two requirements conflict, edit requirements/image-overrides.txt."
        self.steps.command(script, remedy=remedy, timeout_s=600)
        return f"{comparison.changed_packages(ROOT / 'requirements', self.lists)} packages changed"

    def install(self) -> str:
        """Install the locked packages, if no other bump has."""
        complete = self.venv / "complete"
        if not complete.exists():
            complete.write_text(install(self.steps, self.lists, self.torch_index, self.venv))
        return complete.read_text()

    def test(self, file: Path) -> str:
        """Run a test file of tests/comfyui on the new ComfyUI."""
        remedy = "A test failed on the new ComfyUI. Edit comfy_core/comfyui/ or the test, and run again."
        command = [sys.executable, "-m", "pytest", str(file), "-q", "-p", "no:cacheprovider"]
        with running(self.venv / "bin/python", self.comfyui, self.folder / "comfyui.log") as url:
            environment = {**os.environ, "COMFYUI_URL": url}
            output = self.steps.command(command, remedy=remedy, timeout_s=1800, cwd=ROOT, environment=environment)
        return output.rstrip().rpartition("\n")[2]

    def record(self) -> str:
        """Record the new ComfyUI, without previews and with them, and all of its node declarations."""
        shutil.rmtree(self.recordings, ignore_errors=True)
        remedy = "The recorder failed (tools/record_comfyui.py). On a loaded machine, run again."
        for flags in ((), ("--preview-method", "latent2rgb")):
            with running(self.venv / "bin/python", self.comfyui, self.folder / "comfyui.log", *flags) as url:
                declared = requests.get(f"{url}/object_info", timeout=60)
                (self.folder / "object_info.json").write_bytes(declared.content)
                command = [sys.executable, "-m", "tools.record_comfyui", url, "--to", self.recordings]
                self.steps.command(command, remedy=remedy, timeout_s=1800, cwd=ROOT)
        return f"{len(list(self.recordings.glob('*.json')))} recordings"

    def compare(self) -> str:
        """Write the table of the differences."""
        compared = comparison.Compared(
            titles=(
                f"{self.pinned['comfyui_version']} ({self.pinned['comfyui'][:8]})",
                f"{version_of(self.comfyui)} ({self.commit[:8]})",
            ),
            sources=(self.pinned_comfyui, self.comfyui),
            recordings=(comparison.RECORDINGS / self.pinned["comfyui_version"], self.recordings),
            lists=(ROOT / "requirements", self.lists),
            object_info=self.folder / "object_info.json",
        )
        try:
            self.page.write_text(comparison.page_of(compared))
        except OSError as error:
            raise StepError(
                f"A file of ComfyUI or a recording is missing: {error}. See {comparison.__file__}"
            ) from error
        return str(self.page)

    def edit(self) -> str:
        """Edit this repository: lock files, recordings, the simulator's node declarations, snapshot.json."""
        for name in LISTS:
            shutil.copy(self.lists / name, ROOT / "requirements")
        version = version_of(self.comfyui)
        shutil.copytree(self.recordings, ROOT / "tests/recordings" / version, dirs_exist_ok=True)
        shutil.copy(self.recordings / "object_info.json", ROOT / "simulators/comfyui")
        snapshot = {**self.pinned, "comfyui": self.commit, "comfyui_version": version}
        SNAPSHOT.write_text(json.dumps(snapshot, indent=2) + "\n")
        return f"requirements/, tests/recordings/{version}/, simulators/comfyui/object_info.json, snapshot.json"

    def generate(self) -> str:
        """Run scripts/docs."""
        self.steps.command([ROOT / "scripts/docs"], remedy="Run ./scripts/docs, then ./scripts/test.", timeout_s=900)
        return "docs/"

    def check(self) -> str:
        """Run the tests that use the recordings, and add the names of those that fail to the table."""
        command = [sys.executable, "-m", "pytest", *RECORDING_TESTS, "-q", "-p", "no:cacheprovider"]
        remedy = "The tests of the recordings cannot run."
        output = self.steps.command(command, remedy=remedy, timeout_s=900, cwd=ROOT, accepted=(0, 1))
        failed = re.findall(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", output, re.MULTILINE)
        listed = "\n".join(f"- `{test}`" for test in failed) or "None."
        text = self.page.read_text().partition("\n## Tests that fail")[0]
        self.page.write_text(f"{text}\n## Tests that fail with the new recordings\n\n{listed}\n")
        return output.rstrip().rpartition("\n")[2]
