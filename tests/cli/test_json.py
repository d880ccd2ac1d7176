"""`--json`: one object on stdout, for every command and every outcome."""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping

import pytest

from bench.worker_setup import ROOT
from comfy_client.cli.commands import commands
from comfy_core.contract import ALIASES, ErrorReport
from comfy_core.error_codes import ErrorCode
from comfy_core.workflows import Workflow
from simulators.runpod.queue_api import RunPodPlatform
from simulators.runpod.scripted_worker import ScriptedWorker
from tests.cli.conftest import Shell

JSON_COMMANDS = (
    ["txt2img", "a knight"],
    ["img2img", "a knight", "--image", "in.png"],
    ["inpaint", "a knight", "--image", "in.png", "--mask", "mask.png"],
    ["upscale", "--image", "in.png"],
    ["run", "txt2img", "-i", "prompt=a knight"],
    ["submit", "txt2img", "-i", "prompt=a knight"],
    ["status", "JOB"],
    ["wait", "JOB"],
    ["cancel", "JOB"],
    ["logs", "JOB"],
    ["jobs"],
    ["health"],
    ["cost", "--since=7d"],
    ["workflows"],
    ["workflows", "txt2img"],
    ["workflows", "img2img", "--schema"],
    ["errors"],
    ["errors", "result_lost"],
    ["doctor", "--generate"],
    ["completion", "bash"],
    ["batch", str(ROOT / "examples" / "castle-defence" / "assets.toml"), "--dry-run"],
)
SERVER_COMMANDS = {"simulate", "serve", "scenario", "mcp"}
"""Commands that run a server."""


def test_every_command_is_tested(workflows: Mapping[str, Workflow]) -> None:
    """JSON_COMMANDS has every command except those that run a server, which have their own tests."""
    assert {arguments[0] for arguments in JSON_COMMANDS} | SERVER_COMMANDS >= {
        each.name for each in commands(workflows)
    }


@pytest.mark.parametrize("arguments", JSON_COMMANDS, ids=lambda words: " ".join(words).replace(str(ROOT), ""))
def test_json_is_one_object(shell: Shell, arguments: list[str]) -> None:
    """With --json every command prints one object on stdout, and on stderr at most the id of its job."""
    if "JOB" in arguments:
        job_id = shell("submit", "txt2img", "-iprompt=x").out.strip()
        arguments = [job_id if argument == "JOB" else argument for argument in arguments]
    ended = shell(*arguments, "--json")

    assert ended.status == 0, ended
    assert isinstance(ended.json, dict)
    assert "error" not in ended.json
    generates = arguments[0] in {*ALIASES, "run"}
    assert ended.err == (f"job {ended.json['job_id']}\n" if generates else "")


@pytest.mark.parametrize(
    ("arguments", "changes", "status", "code"),
    [
        (["txt2img", "x", "--steps", "0"], {}, 1, "invalid_input"),
        (["img2img", "x", "--image", "nowhere.png"], {}, 1, "invalid_image"),
        (["workflows", "nowhere"], {}, 1, "unknown_workflow"),
        (["txt2img"], {}, 2, "invalid_input"),
        (["txt2img", "x", "--steps", "many"], {}, 2, "invalid_input"),
        (["txt2img", "x", "--stepps", "4"], {}, 2, "invalid_input"),
        (["txt2img", "x", "--output-format", "gif"], {}, 2, "invalid_input"),
        (["nowhere"], {}, 2, "invalid_input"),
        (["run", "txt2img", "-i", "prompt"], {}, 2, "invalid_input"),
        (["run"], {}, 2, "invalid_input"),
        (["run", "--graph", "nowhere.json"], {}, 3, "misconfigured"),
        (["run", "--graph", "in.png"], {}, 3, "misconfigured"),
        (["errors", "resultlost"], {}, 3, "misconfigured"),
        (["txt2img", "x", "-o", "in.png/x.png"], {}, 2, "invalid_input"),
        (["health"], {"RUNPOD_API_KEY": ""}, 3, "misconfigured"),
        (["health"], {"IMAGE_GENERATION_PROVIDER": "x"}, 3, "misconfigured"),
        (["health"], {"RUNPOD_API_KEY": "wrong"}, 3, "auth_failed"),
        (["health"], {"RUNPOD_ENDPOINT_ID": "wrong"}, 4, "endpoint_not_found"),
        (["doctor"], {"RUNPOD_API_KEY": ""}, 3, "misconfigured"),
        (["doctor"], {"RUNPOD_API_KEY": "wrong"}, 3, "auth_failed"),
        (["doctor"], {"IMAGE_GENERATION_PROVIDER": "x"}, 3, "misconfigured"),
        (["status", "nobody-knows"], {}, 1, "job_expired"),
        (["batch", "nowhere.toml"], {}, 3, "misconfigured"),
        (["scenario", "serve", "--port", "many"], {}, 2, "invalid_input"),
        (["simulate", "--port", "many"], {}, 2, "invalid_input"),
        (["simulate", "--fault", "nowhere"], {}, 2, "invalid_input"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else str(value),
)
def test_every_error_has_its_status_and_its_object(
    shell: Shell, arguments: list[str], changes: dict[str, str], status: int, code: str
) -> None:
    """With --json an error is `{"error": report}`. Without it, all but `doctor` print only a sentence on stderr."""
    json_output = shell(*arguments, "--json", **changes)
    text_output = shell(*arguments, **changes)

    assert json_output.status == text_output.status == status, json_output
    assert json_output.json["error"]["code"] == code
    assert json_output.json["error"]["message"]
    assert "Traceback" not in text_output.err
    if arguments[:1] != ["doctor"]:
        assert text_output.out == ""
        assert text_output.err.startswith("comfy-client: ")


def test_json_may_precede_the_command(shell: Shell) -> None:
    """`comfy-client --json health` prints the same object as `comfy-client health --json`."""
    assert shell("--json", "health").json == shell("health", "--json").json


def test_every_error_code_is_printed(shell: Shell) -> None:
    """For a job that failed with any code, `wait --json` prints code, message and details, and exits with 1."""
    with RunPodPlatform(long_poll_s=0.1) as other, ScriptedWorker(other, lambda job: {"error": job["input"]["report"]}):
        for code in ErrorCode:
            report = ErrorReport(code, f"That is {code.value}.", {"of": 1})
            job = other.wait_for(other.submit({"report": report.to_json()}))
            ended = shell("wait", job.id, "--json", **other.client_env())
            assert (ended.status, ended.err) == (1, ""), ended
            assert ended.json == {"error": json.loads(report.to_json())}


@pytest.mark.parametrize("command", [["simulate"], ["scenario", "serve", "--insecure-local", "--data=."]], ids=" ".join)
def test_a_port_that_is_taken_is_an_error(shell: Shell, command: list[str]) -> None:
    """The command exits with 3, and the error names --port."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ended = shell(*command, "--port", str(taken.getsockname()[1]), "--json")

    assert ended.status == 3
    assert "--port" in ended.json["error"]["message"]


@pytest.mark.parametrize(
    "arguments",
    [["--port", "65536"], ["--port=-1"], ["--step-s", "nan"], ["--step-s=-1"], ["--prt", "0"]],
    ids=" ".join,
)
def test_an_invalid_flag_of_the_simulator_is_rejected(shell: Shell, arguments: list[str]) -> None:
    """The command exits with 2, and the error is invalid_input."""
    assert shell("simulate", *arguments, "--json").json["error"]["code"] == "invalid_input"
    assert shell("simulate", *arguments).status == 2
