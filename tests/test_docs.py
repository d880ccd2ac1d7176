"""Every command on a page for users is run by a test, or is marked with what it needs. Linked files exist.

A block of commands (```sh) has one of these lines right above it:

- `<!-- Run by tests/the/test_that_runs_it.py. -->`: that file names the page, or each of the block's programs.
- `<!-- Run by tests/test_docs.py. -->`: this file runs it unchanged.
- `<!-- Needs an account. -->`, or a GPU, or anything else that is not available here.

A block without a mark has each of its commands in LISTED.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import requests

from bench.worker_setup import ROOT
from comfy_client.cli.main import all_commands
from comfy_core.workflows import default_directory, load_workflows
from simulators.comfyui import Simulator
from tests.needs import require_programs_of

pytestmark = pytest.mark.slow
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^(?P<above>[^\n]*)\n```sh\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
RUN = re.compile(r"<!-- Run by (tests/[\w/]+\.py)\. -->")
NEEDS = re.compile(r"<!-- Needs .+\. -->")
THIS_FILE = "tests/test_docs.py"
LISTED = {
    "./scripts/demo": "tests/test_docs.py::test_the_demo_of_the_readme_runs",
    "./scripts/test": ".github/workflows/ci.yml::./scripts/test",
    "docker compose --profile cpu up": "tests/image/test_local.py::test_compose_prints_the_address_of_a_page",
    "comfy-client deploy": "needs an account",
    "scripts/generate_game_assets castle-defence --type=entity": "tests/batch/test_run.py::generate_game_assets",
}
"""Commands of blocks without a mark: `FILE::TEXT`, a file that runs the command and contains the text, or `needs …`."""


@dataclass(frozen=True)
class Block:
    """A block of commands, and the line above it."""

    page: str
    above: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}: {self.commands[0]}"

    @property
    def commands(self) -> list[str]:
        """The commands without comments; a continued line is one command."""
        lines = self.text.replace("\\\n", " ").splitlines()
        return [stripped for line in lines if (stripped := re.sub(r"(^|\s)#( .*|$)", "", line).strip())]

    @property
    def run_by(self) -> str:
        """The test file that runs the block according to the mark, or an empty string."""
        found = RUN.fullmatch(self.above)
        return found[1] if found else ""


def blocks() -> Iterator[Block]:
    """Yield every block of commands of PAGES."""
    for page in PAGES:
        for found in BLOCK.finditer(page.read_text()):
            yield Block(page.name, found["above"], found["text"])


BLOCKS = list(blocks())


def test_no_block_is_overlooked() -> None:
    """Each fence of commands is in BLOCKS."""
    assert sum(len(re.findall(r"^```sh$", page.read_text(), re.MULTILINE)) for page in PAGES) == len(BLOCKS)


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_a_block_is_marked_or_listed(block: Block) -> None:
    """Each block names a test or a requirement, or LISTED has an entry for each of its commands."""
    if block.run_by or NEEDS.fullmatch(block.above):
        return
    missing = [command for command in block.commands if command not in LISTED]
    assert not missing, (
        f"{block.page}: no test is named for {missing[0]!r}. Put one line right above its ```sh: "
        "<!-- Run by tests/….py. -->, naming a test that runs it (this file, if the command is fast), or "
        "<!-- Needs an account. -->; or put the command into LISTED of tests/test_docs.py"
    )


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.run_by not in {"", THIS_FILE}], ids=str)
def test_a_named_test_mentions_the_block(block: Block) -> None:
    """The test file exists, and contains the page or every program of the block."""
    path = ROOT / block.run_by
    assert path.is_file(), f"{block.page} names {block.run_by}, which does not exist"
    test = path.read_text()
    unknown = [name for command in block.commands if (name := program_of(command)) not in test]
    assert block.page in test or not unknown, (
        f"{block.run_by} names neither {block.page} nor {unknown}: name the test that runs {block.commands[0]!r}"
    )


def program_of(command: str) -> str:
    """Return what a command runs: a script's name, the subcommand of comfy-client, or the program."""
    words = [word for word in shlex.split(command) if not re.match(r"[A-Z_]+=", word)]
    return words[1] if words[0] == "comfy-client" else Path(words[0]).name


@pytest.mark.parametrize(("command", "runner"), LISTED.items(), ids=list(LISTED))
def test_an_entry_of_listed_is_current(command: str, runner: str) -> None:
    """The command is on a page, and the file that runs it contains the word after `::`."""
    assert command in {each for block in BLOCKS for each in block.commands}, f"{command!r} is not on any page"
    if not runner.startswith("needs "):
        path, _, word = runner.partition("::")
        assert word in (ROOT / path).read_text(), f"{path} has no {word!r}"


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_scripts_and_commands_of_a_block_exist(block: Block) -> None:
    """Each script and each subcommand of comfy-client exists, also in a block that cannot be run here."""
    ours = {command.name for command in all_commands(load_workflows(default_directory()))}
    for script in re.findall(r"(?<![\w/-])(?:\./)?scripts/([\w/]+)", block.text):
        assert os.access(ROOT / "scripts" / script, os.X_OK), f"{block.page}: scripts/{script} does not exist"
    for name in re.findall(r"comfy-client ([a-z][\w]*)", block.text):
        assert name in ours, f"{block.page}: comfy-client has no command {name}"


@pytest.fixture(scope="module")
def simulator() -> Iterator[Simulator]:
    """A simulated ComfyUI for the commands that need one."""
    with Simulator(step_s=0.002) as simulator:
        yield simulator


@pytest.fixture(scope="module")
def log_folder(simulator: Simulator, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the worker.log of two workers: the job of the first fails, and that of the second succeeds."""
    folder = tmp_path_factory.mktemp("log")
    jobs = (
        '{"id": "job-1", "input": {"prompt": "x", "steps": 0}}',
        '{"id": "job-2", "input": {"prompt": "x", "steps": 1}}',
    )
    with (folder / "worker.log").open("w") as file:
        for job in jobs:
            subprocess.run(
                [sys.executable, str(ROOT / "handler.py"), "--test_input", job],
                env={**os.environ, "COMFYUI_URL": simulator.url, "WORKER_WARMUP": "false"},
                stdout=subprocess.DEVNULL,
                stderr=file,
                check=False,
            )
    return folder


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.run_by == THIS_FILE], ids=str)
def test_a_block_runs_unchanged(block: Block, simulator: Simulator, log_folder: Path) -> None:
    """A block exits with 0 and prints something. If it calls none of our scripts, it runs next to worker.log."""
    require_programs_of(block.text)
    folder = ROOT if "scripts/" in block.text else log_folder
    ended = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block.text],  # noqa: S607
        cwd=folder,
        env={**os.environ, "COMFYUI_ENDPOINT": simulator.url},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert ended.stdout + ended.stderr


def test_the_log_commands_of_operate_md(log_folder: Path) -> None:
    """The commands print the lines of job-2, the failed job's code, both boots, no ERROR line, and a table of jobs."""
    [block] = [block for block in BLOCKS if block.page == "operate.md" and block.run_by == THIS_FILE]
    require_programs_of("\n".join(block.commands))
    job_lines, codes, boots, errors, table = (
        subprocess.run(["bash", "-c", command], cwd=log_folder, capture_output=True, text=True, check=True).stdout  # noqa: S607
        for command in block.commands
    )

    begun, ended, last = (json.loads(line)[1] for line in job_lines.splitlines())
    assert (begun, ended[:4], last) == ("flux-dev-txt2img, 1 prompts, 0 input images", "done", "job ended")
    assert codes.split() == ["1", "invalid_input"]
    assert all(float(line) > 0 for line in boots.splitlines())
    assert len(boots.splitlines()) == 2
    assert errors == ""
    assert [line.split(",")[:3] for line in table.splitlines()] == [
        ['"job-1"', '"FAILED"', '"invalid_input"'],
        ['"job-2"', '"COMPLETED"', ""],
    ]


def test_the_demo_of_the_readme_runs() -> None:
    """`./scripts/demo` generates its two images."""
    ended = subprocess.run([str(ROOT / "scripts" / "demo")], capture_output=True, text=True, timeout=120, check=False)

    assert ended.returncode == 0, ended.stderr
    assert re.findall(r"^(\w+): debug-output/", ended.stdout, re.MULTILINE) == ["txt2img", "img2img"]


def test_the_demo_serves_a_page_until_ctrl_c() -> None:
    """`./scripts/demo --ui` prints the address of a page after its images, and exits with 0 on Ctrl-C."""
    with subprocess.Popen(
        [str(ROOT / "scripts" / "demo"), "--ui"],
        env={**os.environ, "BROWSER": "true"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        process_group=0,
    ) as demo:
        assert demo.stdout is not None
        lines = iter(demo.stdout)
        address = next(found[0] for line in lines if (found := re.search(r"http://\S+/#token=\S+", line)))
        page = requests.get(address, timeout=60)
        os.killpg(demo.pid, signal.SIGINT)
        rest = list(lines)

    assert page.status_code == 200
    assert demo.returncode == 0, rest


@pytest.mark.parametrize("listens", [False, True], ids=["nothing listens", "nothing responds"])
def test_the_demo_reports_that_no_comfyui_responds(listens: bool) -> None:
    """The demo exits with 3. The error has the URL and the remedy."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        if listens:
            silent.listen()
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        ended = subprocess.run(
            [str(ROOT / "scripts" / "demo")],
            env={**os.environ, "COMFYUI_URL": address},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    assert ended.returncode == 3
    assert f"COMFYUI_URL={address}: no response" in ended.stderr
    assert "unset COMFYUI_URL" in ended.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_linked_files_exist(page: Path) -> None:
    """Every page, file and image of this repository that a page links to exists."""
    text = page.read_text()

    for target in re.findall(r"\]\((?!https?://)([^)#\s]+)(?:#[^)]*)?\)", text):
        assert (page.parent / target).exists(), f"{page.name} links to {target}, which does not exist"
