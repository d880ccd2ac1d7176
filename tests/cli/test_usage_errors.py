"""Errors for invalid command lines: the flag, the suggestion, and the remedy."""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
from pathlib import Path

import pytest

from bench.worker_setup import ROOT
from comfy_client.cli import workflows
from comfy_client.cli.call import Call
from comfy_client.cli.screen import Screen
from comfy_client.profiles import Settings
from comfy_core.workflows import default_directory, load_workflows
from simulators.runpod.queue_api import RunPodPlatform
from tests.cli.conftest import Shell
from tests.cli.terminals import COMMAND

pytestmark = pytest.mark.slow
GRAPH = {
    "3": {"class_type": "KSampler", "inputs": {"seed": 1}, "_meta": {"title": "KSampler"}},
    "9": {"class_type": "SaveImage", "inputs": {"images": ["3", 0], "filename_prefix": "x"}},
}


@pytest.mark.parametrize(
    ("arguments", "lines"),
    [
        (["txt2img", "x", "--width", "1000"], ["--width must be a multiple of 16; the nearest is 992"]),
        (["run", "txt2img", "-iprompt=x", "-iwidth=1000"], ["-i width must be a multiple of 16; the nearest is 992"]),
        (["txt2img", ""], ["PROMPT must not be empty"]),
        (["txt2img", "x", "--ttl", "1"], ["--ttl must be from 10 s to 604,800 s (7 days), not 1.0"]),
        (
            ["txt2img", "x", "--execution-timeout", "1"],
            ["--execution-timeout must be from 5 s to 604,800 s (7 days), not 1.0"],
        ),
        (["txt2img", "x", "--webhook", "ftp://x"], ["--webhook must be an https URL"]),
        (
            ["txt2img", "x", "--steps", "0", "--guidance", "99"],
            ["--steps must be at least 1, not 0", "--guidance must be at most 30, not 99.0"],
        ),
        (
            ["run", "txt2img", "-iprompt=x", '-iwebhook={"url": "https://a.example/", "events": []}'],
            ["-i webhook (webhook.events) must not be empty"],
        ),
        (["run", "txt2img", "-iprompt=x", "-istepz=1"], ['-i stepz is not known; did you mean "steps"?']),
        (
            ["run", "--graph", "g.json", "-iprompt=x"],
            ["-i prompt: a graph has no such input. Set values of the graph with --set NODE.INPUT=VALUE"],
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) and len(value) > 1 else "",
)
def test_a_fault_names_the_flag(shell: Shell, platform: RunPodPlatform, arguments: list[str], lines: list[str]) -> None:
    """Each fault is one line about the flag that was given; nothing is sent."""
    Path("g.json").write_text(json.dumps(GRAPH))
    ended = shell(*arguments)
    fault_lines = [
        line.removeprefix("comfy-client: ") for line in ended.err.splitlines() if line.startswith("comfy-client: ")
    ]

    assert sorted(fault_lines) == sorted(lines)
    assert platform.submissions == 0


def test_json_names_the_field(shell: Shell) -> None:
    """With --json a fault has the path of the field in the request, and not the flag."""
    error = shell("txt2img", "x", "--width", "1000", "--json").json["error"]

    assert error["details"]["faults"][0]["path"] == "width"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["txt2im", "a"], "did you mean txt2img?"),
        (["txt2img", "a", "--step", "1"], "did you mean --steps?"),
        (["txt2img", "a", "--step=1"], "did you mean --steps?"),
        (["txt2img", "a", "--colour", "red"], "there is no flag --colour. `"),
        (["run", "txt2img", "--seed", "3"], "Inputs are given as -i seed=VALUE."),
        (["txt2img", "a", "--colour", "red"], "comfy-client txt2img --help"),
        (["img2img", "a", "--imge", "in.png"], "did you mean --image?"),
        (["txt2img", "a", "pixel", "art", "knight"], "comfy-client txt2img 'a pixel art knight'"),
        (["txt2img", "a", "red", "fox", "--steps", "4"], "put the prompt in quotes"),
        (["run", "txt2img", "a", "red", "fox"], "-i prompt="),
        (["run", "in.png"], "--graph in.png"),
        (["run", "my.json"], "--graph my.json"),
        (["txt2img", "a", "--steps", "many"], "--steps: must be a whole number, not 'many'"),
        (["img2img", "a", "--image", "in.png", "--image", "in.png"], "--image takes one image"),
        (["run", "img2img", "-iprompt=a", "--image", "in.png", "--image", "b.png"], "--image takes one image"),
        (["run", "txt2img", "-iprompt=a", "-iprompt=b"], "-i prompt= is given twice"),
        (["run", "txt2img", "-iprompt=a", "--set=K.x=1", "--set=K.x=2"], "--set K.x= is given twice"),
        (["help", "txt2im"], "did you mean txt2img?"),
        (["--verison"], "did you mean --version?"),
        (["txt2img", "--prompt", "a"], "prompt is a positional argument"),
        (["txt2img", "a", "--wait-timeout", "nan"], "--wait-timeout: must be a finite number"),
        (["txt2img", "a", "--wait-timeout=-1"], "--wait-timeout: must be a number of seconds from 0"),
        (["txt2img", "a", "--ttl", "inf"], "--ttl: must be a finite number"),
        (["txt2img", "a", "--guidance", "nan"], "--guidance: must be a finite number"),
        (["scenario", "serve", "--port", "65536"], "--port: must be from 0 to 65535"),
        (["batch", "a.toml", "--concurrency", "0"], "--concurrency: must be at least 1"),
        (["batch", "a.toml", "--upload-timeout", "nan"], "--upload-timeout: must be a finite number"),
        (
            ["batch", str(ROOT / "examples" / "castle-defence" / "assets.toml"), "--out", "https://host/x"],
            "the only supported URL is",
        ),
        (["scenario", "serve", "--port=-1"], "--port: must be from 0 to 65535"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_an_invalid_command_line_is_explained(
    shell: Shell, platform: RunPodPlatform, arguments: list[str], expected: str
) -> None:
    """The command exits with 2, the message has the problem or the remedy, and nothing is sent."""
    ended = shell(*arguments)

    assert ended.status == 2
    assert expected in ended.err
    assert platform.submissions == 0


def test_an_unlike_flag_is_not_suggested(shell: Shell) -> None:
    """--colour is no misspelt --loras; --stepps is a misspelt --steps."""
    assert "did you mean" not in shell("txt2img", "x", "--colour", "red").err
    assert "did you mean --steps?" in shell("txt2img", "x", "--stepps", "4").err


def test_help_is_available_in_each_way(shell: Shell) -> None:
    """`help` and `--help` list the commands or describe one, also after other arguments."""
    for arguments in (["help"], ["--help"], ["-h"]):
        assert "txt2img" in shell(*arguments).out
        assert shell(*arguments).status == 0
    assert "--num-images" in shell("help", "txt2img").out
    assert "txt2img" in shell("help", "help").out
    assert shell("txt2img", "a knight", "--help").out == shell("help", "txt2img").out
    assert "usage" in shell("txt2img", "--help", "--json").json["help"]


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, "RunPod console > Settings > API Keys"),
        ({}, "COMFYUI_ENDPOINT=http://127.0.0.1:8188"),
        ({}, "comfy-client simulate"),
        ({"COMFYUI_URL": "http://127.0.0.1:8188"}, "COMFYUI_URL is a variable of the worker"),
        ({"IMAGE_GENERATION_PROVIDER": "runpod"}, "IMAGE_GENERATION_PROVIDER=comfyui"),
        ({"RUNPOD_API_KEY": "k"}, "RUNPOD_COMFYUI_ENDPOINT_ID"),
        ({"RUNPOD_APIKEY": "k"}, "RUNPOD_APIKEY is set, but is not a variable"),
        ({"IMAGE_GENERATION_PROVIDER": "comfy"}, 'did you mean "comfyui"? Providers: comfyui'),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_an_invalid_environment_is_explained(environment: dict[str, str], expected: str) -> None:
    """Without variables the error has every alternative; with wrong ones it has the correct variable or value."""
    ended = Shell(environment)("txt2img", "a knight")

    assert ended.status == 3
    assert expected in ended.err


def test_simulate_has_help_without_aiohttp(tmp_path: Path) -> None:
    """The help of `simulate` lists the faults on a machine that only has the client installed."""
    (tmp_path / "aiohttp.py").write_text("raise ImportError")
    for arguments in (["simulate", "--help"], ["help", "simulate"]):
        ended = subprocess.run(
            [*COMMAND, *arguments],
            env={**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert ended.returncode == 0, ended.stderr
        assert "run_out_of_memory" in ended.stdout


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_a_console_without_unicode_shows_no_traceback(platform: RunPodPlatform, tmp_path: Path, encoding: str) -> None:
    """File names and help texts may have characters that the console lacks, and --json prints valid JSON."""
    environment = {**os.environ, **platform.client_env(), "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": encoding}
    for arguments in (
        ["txt2img", "x", "-o", "城😀.png"],
        ["help", "batch"],
        ["txt2img", "x", "-o", "城😀.png", "--json"],
    ):
        ended = subprocess.run([*COMMAND, *arguments], cwd=tmp_path, env=environment, capture_output=True, check=False)
        assert ended.returncode == 0, ended.stderr
        assert b"Traceback" not in ended.stderr
    assert json.loads(ended.stdout)["images"][0]["path"] == "城😀-1.png"


def test_an_input_without_a_description_is_listed(tmp_path: Path) -> None:
    """A custom workflow may have inputs without a description."""
    for file in default_directory().glob("flux-dev-txt2img*.json"):
        value = json.loads(file.read_text())
        for rule in value.get("properties", {}).values():
            rule.pop("description", None)
        (tmp_path / file.name).write_text(json.dumps(value))
    out = io.StringIO()
    options = argparse.Namespace(action="show", subject="flux-dev-txt2img", schema=False)
    [listed] = workflows.commands({})

    assert listed.run(Call(options, Screen(out, out), Settings({}), load_workflows(tmp_path))) == 0
    assert "  width " in out.getvalue()


def test_the_version_is_printed_quickly() -> None:
    """`--version` and `--help` load neither the HTTP client nor modules of other commands."""
    code = (
        "import sys, comfy_client.cli.main as m; m.main(['--version']); m.main(['--help']); "
        "print(*{'requests', 'jsonschema', 'PIL', 'rich', 'argcomplete', 'asyncio', 'boto3'} & set(sys.modules), "
        "file=sys.stderr)"
    )
    ended = subprocess.run([COMMAND[0], "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)

    assert ended.stderr.strip() == ""
