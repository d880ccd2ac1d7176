"""docs/deploy.md: its commands run or are marked. docs/cost.md: its figures are computed. Both: their links."""

from __future__ import annotations

import math
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from bench.worker_setup import ROOT
from comfy_client.cli.main import SUMMARIES, all_commands
from comfy_client.cli.parser import make_parser
from comfy_core.prices import POOLS, job_usd
from comfy_core.workflows import default_directory, load_workflows
from tests.deploy.conftest import DeploySetup

pytestmark = pytest.mark.slow
PAGE = (ROOT / "docs" / "deploy.md").read_text()
BLOCK = re.compile(r"^(?P<mark>[^\n]*)\n```sh\n(?P<lines>.*?)```", re.MULTILINE | re.DOTALL)
RUN_HERE = "<!-- Run by tests/deploy/test_docs.py. -->"
NEEDS_ACCOUNT = "<!-- Needs an account. -->"


def commands_of(mark: str) -> list[list[str]]:
    """Return the commands of all blocks with this mark, in order, without comments, each split into words."""
    lines = [line for block in BLOCK.finditer(PAGE) if block["mark"] == mark for line in block["lines"].splitlines()]
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def test_every_block_of_commands_is_marked() -> None:
    """Each block of commands is marked as run by this test or as needing an account."""
    assert {block["mark"] for block in BLOCK.finditer(PAGE)} == {RUN_HERE, NEEDS_ACCOUNT}
    assert PAGE.count("```sh") == len(BLOCK.findall(PAGE))


def test_the_commands_run_one_after_another(deploy_setup: DeploySetup, shipped: str) -> None:
    """The page's commands, with the shipped deploy.toml and an owner, exit with 0. At the end there is no endpoint."""
    deploy_setup.write(text=shipped.replace("OWNER", "me"))

    for program, *arguments in commands_of(RUN_HERE):
        if program == "set":
            loads = f"{' '.join([program, *arguments])}; env"
            loaded = subprocess.run(["bash", "-euc", loads], capture_output=True, text=True, check=True)  # noqa: S607
            assert "RUNPOD_COMFYUI_ENDPOINT_ID=ep\n" in loaded.stdout
            continue
        assert program == "comfy-client"
        given, _, target = " ".join(arguments).partition(" > ")
        ended = deploy_setup.shell(*given.split())
        assert ended.status == 0, (arguments, ended.err)
        if target:
            assert "comfy-client txt2img" in ended.err
            Path(target).write_text(ended.out)

    assert Path("flux-comfyui.png").exists()
    assert deploy_setup.account.endpoints == {}


def test_commands_that_need_an_account_exist() -> None:
    """Commands that need an account exist: our subcommands with their flags, our scripts, or a known program."""
    parser = make_parser(SUMMARIES, all_commands(load_workflows(default_directory())))

    for words in commands_of(NEEDS_ACCOUNT):
        program, *arguments = (word for word in words if not re.match("[A-Z]+=", word))
        if program == "comfy-client":
            assert parser.parse_args(arguments).command == arguments[0]
        elif program.startswith("scripts/"):
            assert (ROOT / program).is_file()
        else:
            assert program in {"docker", "gh", "export"}


@pytest.mark.parametrize("page", ["deploy.md", "cost.md"])
def test_linked_files_exist(page: str) -> None:
    """Each page or file that the page links exists."""
    text = (ROOT / "docs" / page).read_text()

    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
        assert (ROOT / "docs" / target).exists(), target


def test_the_worked_example_is_correct() -> None:
    """Each row of the worked example follows from the times on the page and our price table."""
    text = (ROOT / "docs" / "cost.md").read_text()
    found = re.search(r"(\d+) s an image, (\d+) s of cold start,\n(\d+) s idle", text)
    assert found is not None
    image_s, start_s, idle_s = map(int, found.groups())
    price = POOLS["ADA_24"]
    assert f"`ADA_24`, ${price.flex_usd_per_s} a second" in text
    month_s = 30 * 86_400
    assert price.active_usd_per_s is not None
    wanted = [
        (image_s, job_usd(image_s, price.flex_usd_per_s)),
        (start_s + image_s + idle_s, (start_s + image_s + idle_s) * price.flex_usd_per_s),
        (start_s + 100 * image_s + idle_s, (start_s + 100 * image_s + idle_s) * price.flex_usd_per_s),
        (3 * (start_s + idle_s) + 100 * image_s, (3 * (start_s + idle_s) + 100 * image_s) * price.flex_usd_per_s),
        (month_s, month_s * price.active_usd_per_s),
    ]
    table = text.partition("<!-- Computed by tests/deploy/test_docs.py. -->")[2]
    rows = re.findall(r"^\| .* \| (\d+) \| ([\d.]+) \|$", table, re.MULTILINE)

    assert [int(seconds) for seconds, _ in rows] == [seconds for seconds, _ in wanted]
    for (_, figure), (_, usd) in zip(rows, wanted, strict=True):
        assert math.isclose(float(figure), usd, abs_tol=0.00006), (figure, usd)
