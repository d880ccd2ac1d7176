"""Completion in real shells: what Tab adds to a command line."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bench.worker_setup import ROOT
from comfy_client.job_log import JobLog
from simulators.waiting import until
from tests.cli.conftest import Shell
from tests.cli.terminals import Terminal
from tests.needs import require_programs

pytestmark = pytest.mark.slow
CASES = {
    "comfy-client txt2": ["txt2img"],
    "comfy-client txt2img x --ste": ["--steps"],
    "comfy-client txt2img x --output-format ": ["png", "webp", "jpeg"],
    "comfy-client img2img x --image kni": ["knight.png"],
    "comfy-client img2img x --image art/": ["art/castle.png"],
    "comfy-client run flux-dev-i": ["flux-dev-img2img", "flux-dev-inpaint"],
    "comfy-client run mi": ["mine"],
    "comfy-client workflows show flux-dev-u": ["flux-dev-upscale"],
    "comfy-client errors result": ["result_lost"],
    "comfy-client wait job-": ["job-1"],
    "comfy-client models list lo": ["loras"],
    "comfy-client help dep": ["deploy"],
    "comfy-client txt2img --profile o": ["off"],
}
"""Completed words, by the command line before Tab."""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Variables for a shell in a folder with files, a workflow, a job and a profile; `comfy-client` is in its PATH."""
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "comfy-client"
    command = shlex.join([sys.executable, "-m", "comfy_client.cli.main"])
    program.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
    program.chmod(0o755)
    (tmp_path / "knight.png").write_bytes(b"")
    (tmp_path / "art").mkdir()
    (tmp_path / "art" / "castle.png").write_bytes(b"")
    (tmp_path / "own").mkdir()
    for suffix in (".json", ".inputs.json"):
        shutil.copy(ROOT / "workflows" / f"flux-dev-txt2img{suffix}", tmp_path / "own" / f"mine{suffix}")
    log = JobLog(tmp_path / "jobs.sqlite3")
    log.note("job-1", state="queued")
    log.close()
    config = tmp_path / "config" / "comfy-client"
    config.mkdir(parents=True)
    (config / "profiles.toml").write_text('[profiles.here]\nCOMFYUI_ENDPOINT = "http://127.0.0.1:8188"\n')
    return {
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "HOME": str(tmp_path),
        "XDG_CONFIG_HOME": str(tmp_path / "config"),
        "COMFY_WORKFLOWS": str(tmp_path / "own"),
        "COMFY_CLIENT_JOB_LOG": str(tmp_path / "jobs.sqlite3"),
        "LC_ALL": "C.UTF-8",
    }


def run_script(command: list[str], environment: dict[str, str], folder: Path) -> list[str]:
    """Run a shell with a script, and return its lines."""
    ended = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=True)
    return [line.strip() for line in ended.stdout.splitlines() if line.strip()]


def test_bash(environment: dict[str, str], tmp_path: Path) -> None:
    """The function that the script registers sets COMPREPLY, as when the user presses Tab."""
    require_programs("bash")
    script = ['eval "$(comfy-client completion bash)"', "set -- $(complete -p comfy-client)", "COMP_TYPE=9"]
    script.append('while [ "$1" != -F ]; do shift; done')
    for line in CASES:
        script += [
            f"COMP_LINE={shlex.quote(line)} COMP_POINT={len(line)}",
            '"$2" comfy-client; echo "${COMPREPLY[@]}"',
        ]
    found = run_script(["bash", "--norc", "-c", "\n".join(script)], environment, tmp_path)

    assert dict(zip(CASES, map(str.split, found), strict=True)) == CASES


def test_fish(environment: dict[str, str], tmp_path: Path) -> None:
    """`complete -C` lists what Tab would offer, with descriptions after a tab."""
    require_programs("fish")
    script = ["comfy-client completion fish | source"]
    for line in CASES:
        script += [f"complete -C {shlex.quote(line)}", "echo NEXT"]
    lines = "\n".join(run_script(["fish", "--no-config", "-c", "\n".join(script)], environment, tmp_path))
    found = [sorted(line.split("\t")[0] for line in case.split("\n") if line) for case in lines.split("NEXT")[:-1]]

    assert found == [sorted(words) for words in CASES.values()]


@pytest.mark.parametrize("line", [line for line, words in CASES.items() if len(words) == 1])
def test_zsh(environment: dict[str, str], tmp_path: Path, line: str) -> None:
    """Tab completes the word on the screen."""
    require_programs("zsh")
    (tmp_path / ".zshrc").write_text(
        "autoload -Uz compinit && compinit -u -d $HOME/.zcompdump\nPS1='ready> '\n"
        'eval "$(comfy-client completion zsh)"\n'
    )
    terminal = Terminal(["-i"], environment, tmp_path, is_stdout_too=True, program=["zsh"])
    terminal.wait_for_lines("ready>")
    terminal.press(f"{line}\t")
    [word] = CASES[line]
    expected = f"ready> {line.rpartition(' ')[0]} {word}"

    try:
        assert until(lambda: terminal.lines[-1] == expected), terminal.lines
    finally:
        terminal.process.kill()
        terminal.wait()


@pytest.mark.parametrize("name", ["bash", "zsh", "fish", "powershell", "tcsh"])
def test_there_is_a_script_for_each_shell(shell: Shell, name: str) -> None:
    """`completion SHELL --json` has the same script."""
    script = shell("completion", name).out

    assert "comfy-client" in script
    assert shell("completion", name, "--json").json == {"shell": name, "script": script[:-1]}
