"""Each command of `comfy-client`, in this process, on a platform's stand-in: what it shows, writes, and returns."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from comfy_client.cli.main import main
from comfy_client.contract import ERRORS, ErrorCode, ErrorReport
from comfy_client.simulator import Simulator
from comfy_client.workflows import Workflow, render
from tests.fakes.runpod_platform import RunPodPlatform
from tests.fakes.scripted_worker import Body, ScriptedWorker, entry, pictured, png

JSON_COMMANDS = (
    ["txt2img", "a knight"],
    ["img2img", "a knight", "--image", "in.png"],
    ["run", "txt2img", "-i", "prompt=a knight"],
    ["submit", "txt2img", "-i", "prompt=a knight"],
    ["status", "JOB"],
    ["wait", "JOB"],
    ["cancel", "JOB"],
    ["health"],
    ["workflows"],
    ["workflows", "txt2img"],
    ["workflows", "img2img", "--schema"],
    ["errors"],
    ["errors", "result_lost"],
    ["doctor", "--generate"],
)


@dataclass(frozen=True)
class Ended:
    """A command that ended."""

    status: int
    data: bytes
    err: str

    @property
    def out(self) -> str:
        """What it printed."""
        return self.data.decode("utf-8")

    @property
    def json(self) -> Any:  # noqa: ANN401 - any JSON value
        """The one object that it printed."""
        return json.loads(self.out)


@dataclass(frozen=True)
class Shell:
    """Calls the command with the variables of a platform."""

    environment: Mapping[str, str]

    def __call__(self, *arguments: str, **changes: str) -> Ended:
        """Call `comfy-client` with `arguments`."""
        data, err = io.BytesIO(), io.StringIO()
        with io.TextIOWrapper(data, encoding="utf-8", write_through=True) as out:
            status = main(arguments, {**self.environment, **changes}, out, err)
            return Ended(status, data.getvalue(), err.getvalue())


@pytest.fixture
def platform() -> Iterator[RunPodPlatform]:
    """A platform with a worker that answers at once."""
    with RunPodPlatform(long_poll_s=0.5) as platform, ScriptedWorker(platform, pictured):
        yield platform


@pytest.fixture
def shell(platform: RunPodPlatform, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shell:
    """The command in an empty folder, but for one picture."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in.png").write_bytes(png(16))
    return Shell(platform.client_env())


def test_a_picture_goes_to_its_file(shell: Shell, platform: RunPodPlatform) -> None:
    """`txt2img "…" -o knight.png` writes it and says where, how large and with which seed."""
    ended = shell("txt2img", "a knight", "-o", "knight.png", "--seed", "7", "--width", "512", "--no-metadata")

    assert (ended.status, ended.err) == (0, "")
    assert ended.out == "knight.png  8 x 8  seed 7\n"
    assert Path("knight.png").read_bytes() == png(8, 7)
    [job] = platform.jobs.values()
    expected = {"workflow": "txt2img", "prompt": "a knight", "seed": 7, "width": 512, "metadata": False}
    assert job.input == expected


def test_without_a_name_it_has_workflow_and_seed(shell: Shell) -> None:
    """Nothing is overwritten by another seed."""
    shell("txt2img", "a knight", "--seed", "7")

    assert Path("flux-dev-txt2img-7.png").exists()


def test_a_picture_goes_to_stdout(shell: Shell) -> None:
    """`-o -` writes the bytes, and nothing else."""
    ended = shell("txt2img", "a knight", "-o", "-", "--seed", "7")

    assert ended.status == 0
    assert ended.data == png(8, 7)


def test_a_picture_is_sent(shell: Shell, platform: RunPodPlatform) -> None:
    """`img2img --image in.png` sends the file as base64."""
    assert shell("img2img", "Refine", "--image", "in.png", "--strength", "0.4", "-o", "out.png").status == 0
    [job] = platform.jobs.values()

    assert job.input["strength"] == 0.4
    assert job.input["image"].startswith("iVBOR")


def test_a_workflow_runs_by_name_with_pairs(shell: Shell, platform: RunPodPlatform) -> None:
    """Values are read by the schema: text stays text, numbers become numbers."""
    pairs = ["prompt=12", "steps=4", 'loras=[{"name": "a", "strength": 0.5}]', "metadata=false"]
    ended = shell("run", "txt2img", *(f"-i{pair}" for pair in pairs), "--set", "KSampler.seed=5")

    assert ended.status == 0, ended.err
    [job] = platform.jobs.values()
    assert job.input == {
        "workflow": "txt2img",
        "prompt": "12",
        "steps": 4,
        "loras": [{"name": "a", "strength": 0.5}],
        "metadata": False,
        "overrides": {"KSampler.seed": 5},
    }


def test_loras_have_flags(shell: Shell, platform: RunPodPlatform) -> None:
    """`--loras name:strength`, as often as there are."""
    shell("txt2img", "x", "--loras", "a.safetensors:0.8", "--loras", "b.safetensors")
    [job] = platform.jobs.values()

    assert job.input["loras"] == [{"name": "a.safetensors", "strength": 0.8}, {"name": "b.safetensors"}]


def test_a_graph_runs_from_its_file(shell: Shell, platform: RunPodPlatform, workflows: Mapping[str, Workflow]) -> None:
    """`run --graph file.json --image name=path --set …`."""
    [graph] = render(workflows["flux-dev-img2img"], {"prompt": "x", "seed": 1, "image": "knight.png"})
    Path("graph.json").write_text(json.dumps(graph))
    ended = shell("run", "--graph", "graph.json", "--image", "knight.png=in.png", "--set", "KSampler.steps=3")

    assert ended.status == 0, ended.err
    [job] = platform.jobs.values()
    assert job.input["workflow"] == graph
    assert job.input["images"][0]["name"] == "knight.png"
    assert job.input["overrides"] == {"KSampler.steps": 3}


def test_how_it_is_run_goes_to_runpod(shell: Shell, platform: RunPodPlatform) -> None:
    """Policy and webhook have flags."""
    shell("submit", "txt2img", "-iprompt=x", "--ttl", "60", "--execution-timeout", "30", "--low-priority")
    [job] = platform.jobs.values()

    assert job.body["policy"] == {"ttl": 60_000, "executionTimeout": 30_000, "lowPriority": True}


def test_a_job_is_submitted_looked_at_waited_for_and_cancelled(shell: Shell) -> None:
    """`submit` prints an id that the others take."""
    job_id = shell("submit", "txt2img", "-i", "prompt=a knight", "-i", "seed=3").out.strip()
    waited = shell("wait", job_id, "-o", "x.png")
    looked = shell("status", job_id)
    cancelled = shell("cancel", job_id)

    assert (waited.status, looked.status, cancelled.status) == (0, 0, 0)
    assert Path("x.png").read_bytes() == png(8, 3)
    assert looked.out == f"{job_id}  succeeded\n"
    assert cancelled.out == f"{job_id}  succeeded\n"


def test_several_pictures_are_numbered(platform: RunPodPlatform, shell: Shell) -> None:
    """`-o knight.png` with two pictures writes knight-1.png and knight-2.png; `-o -` refuses them."""
    two = {"output": {"images": [entry(png(8, 1), 1), entry(png(8, 2), 2)], "workflow": "flux-dev-txt2img"}}
    with RunPodPlatform(long_poll_s=0.5) as other, ScriptedWorker(other, lambda _: two):
        both = shell("txt2img", "x", "-o", "knight.png", **other.client_env())
        piped = shell("txt2img", "x", "-o", "-", **other.client_env())

    assert both.out.splitlines() == ["knight-1.png  8 x 8  seed 1", "knight-2.png  8 x 8  seed 2"]
    assert (piped.status, piped.data) == (3, b"")
    assert platform.submissions == 0


@pytest.mark.parametrize("arguments", JSON_COMMANDS, ids=" ".join)
def test_json_is_one_object(shell: Shell, arguments: list[str]) -> None:
    """With --json every command prints one object on stdout, and nothing on stderr."""
    if "JOB" in arguments:
        job_id = shell("submit", "txt2img", "-iprompt=x").out.strip()
        arguments = [job_id if argument == "JOB" else argument for argument in arguments]
    ended = shell(*arguments, "--json")

    assert ended.status == 0, ended
    assert isinstance(ended.json, dict)
    assert "error" not in ended.json
    assert ended.err == ""


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
        ([], {}, 2, "invalid_input"),
        (["run", "txt2img", "-i", "prompt"], {}, 2, "invalid_input"),
        (["run"], {}, 3, "misconfigured"),
        (["run", "--graph", "nowhere.json"], {}, 3, "misconfigured"),
        (["run", "--graph", "in.png"], {}, 3, "misconfigured"),
        (["errors", "resultlost"], {}, 3, "misconfigured"),
        (["txt2img", "x", "-o", "no/such/folder/x.png"], {}, 3, "misconfigured"),
        (["health"], {"RUNPOD_API_KEY": ""}, 3, "misconfigured"),
        (["health"], {"IMAGE_GENERATION_PROVIDER": "x"}, 3, "misconfigured"),
        (["health"], {"RUNPOD_API_KEY": "wrong"}, 3, "auth_failed"),
        (["health"], {"RUNPOD_ENDPOINT_ID": "wrong"}, 4, "endpoint_not_found"),
        (["doctor"], {"RUNPOD_API_KEY": ""}, 3, "misconfigured"),
        (["doctor"], {"RUNPOD_API_KEY": "wrong"}, 3, "auth_failed"),
        (["doctor"], {"IMAGE_GENERATION_PROVIDER": "x"}, 3, "misconfigured"),
        (["status", "nobody-knows"], {}, 1, "job_expired"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else str(value),
)
def test_every_error_has_its_status_and_its_object(
    shell: Shell, arguments: list[str], changes: dict[str, str], status: int, code: str
) -> None:
    """With --json an error is `{"error": report}`; without, a sentence on stderr and nothing on stdout."""
    told = shell(*arguments, "--json", **changes)
    said = shell(*arguments, **changes)

    assert told.status == said.status == status, told
    assert told.json["error"]["code"] == code
    assert told.json["error"]["message"]
    assert "Traceback" not in said.err
    if arguments[:1] != ["doctor"]:
        assert said.out == ""
        assert said.err.startswith("comfy-client: ")


def test_a_failed_job_exits_1_and_a_wait_that_is_over_5(platform: RunPodPlatform, shell: Shell) -> None:
    """The two can be told apart without reading anything."""
    failure = {"error": ErrorReport(ErrorCode.OUT_OF_MEMORY, "The GPU is full.").to_json()}
    with RunPodPlatform(long_poll_s=0.5) as other, ScriptedWorker(other, lambda _: failure):
        failed = shell("txt2img", "x", **other.client_env())
        other.faults.throttle_workers()
        over = shell("txt2img", "x", "--wait-timeout", "0.5", "--json", **other.client_env())

    assert (failed.status, failed.err) == (1, "comfy-client: out_of_memory: The GPU is full.\n")
    assert over.status == 5
    assert over.json["error"]["details"]["why"] == "throttled"
    assert platform.submissions == 0


def test_doctor_says_what_is_well(shell: Shell, platform: RunPodPlatform) -> None:
    """Each line has a mark; a key is not shown."""
    ended = shell("doctor", "--generate")

    assert ended.status == 0
    assert [line.split()[:2] for line in ended.out.splitlines()] == [
        ["ok", name] for name in ("provider", "variables", "address", "workers", "models", "picture")
    ]
    assert platform.api_key not in ended.out


def test_doctor_names_models_that_are_missing(shell: Shell) -> None:
    """Of a ComfyUI that is reached directly, the workflows' files are looked for."""
    with Simulator() as whole, Simulator(models={"vae": ()}) as poor:
        well = shell("doctor", COMFYUI_ENDPOINT=whole.url)
        ill = shell("doctor", COMFYUI_ENDPOINT=poor.url)

    assert well.status == 0
    assert ill.status == 3
    assert "!!  models     ComfyUI does not have vae/ae.safetensors" in ill.out


def test_doctor_warns_of_an_endpoint_without_workers(shell: Shell) -> None:
    """What may become well by itself is no error."""
    with RunPodPlatform(long_poll_s=0.5) as empty:
        ended = shell("doctor", **empty.client_env())

    assert ended.status == 0
    assert "??  workers" in ended.out


def test_a_workflow_s_inputs_are_listed(shell: Shell, workflows: Mapping[str, Workflow]) -> None:
    """Types, ranges and defaults, or the schema itself."""
    listed = shell("workflows", "txt2img").out
    schema = json.loads(shell("workflows", "txt2img", "--schema").out)

    for name in workflows["flux-dev-txt2img"].inputs:
        assert f"  {name} " in listed
    assert "[64 to 2048; default 1024]" in listed
    assert schema == workflows["flux-dev-txt2img"].schema


def test_every_error_is_explained(shell: Shell) -> None:
    """`errors CODE` says cause and remedy."""
    for code, facts in ERRORS.items():
        assert facts.remedy in shell("errors", code.value).out


@pytest.mark.parametrize("shell_name", ["bash", "zsh"])
def test_completion_is_a_script(shell: Shell, shell_name: str) -> None:
    """It knows the commands and the flags of the schemas."""
    script = shell("completion", shell_name).out

    assert "img2img" in script
    assert "--num-images" in script


def test_pictures_of_webp_are_named_so(shell: Shell, platform: RunPodPlatform) -> None:
    """The file's ending is that of its type."""
    encoded = io.BytesIO()
    Image.new("RGB", (8, 8)).save(encoded, "WEBP")
    picture: Body = entry(encoded.getvalue(), 4, mime_type="image/webp") | {"filename": "flux-dev_00001_.webp"}
    answer = {"output": {"images": [picture], "workflow": "flux-dev-txt2img"}}
    with RunPodPlatform(long_poll_s=0.5) as other, ScriptedWorker(other, lambda _: answer):
        shell("txt2img", "x", "--output-format", "webp", **other.client_env())

    assert Path("flux-dev-txt2img-4.webp").exists()
    assert platform.submissions == 0


def test_json_may_stand_before_the_command(shell: Shell) -> None:
    """`comfy-client --json health` is `comfy-client health --json`."""
    assert shell("--json", "health").json == shell("health", "--json").json


def test_what_is_not_reached_leads_to_the_doctor(shell: Shell) -> None:
    """Where no answer came the way on is named, and the doctor names the address that it asked."""
    nowhere = {"COMFYUI_ENDPOINT": "http://127.0.0.1:1"}

    assert "comfy-client doctor" in shell("txt2img", "a knight", **nowhere).err
    assert "http://127.0.0.1:1" in shell("doctor", **nowhere).out.splitlines()[-1]
