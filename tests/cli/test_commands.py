"""Each command of `comfy-client`, in this process, on the simulated platform: its output, files, and status."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest
from PIL import Image

from bench.worker_setup import ROOT
from comfy_core.contract import ErrorReport
from comfy_core.error_codes import ErrorCode
from comfy_core.workflows import Workflow, render
from simulators.comfyui import Simulator
from simulators.runpod.queue_api import RunPodPlatform
from simulators.runpod.scripted_worker import Body, ScriptedWorker, image_entry, png
from tests.cli.conftest import Shell
from tests.cli.terminals import COMMAND


def test_an_image_is_written_to_its_file(shell: Shell, platform: RunPodPlatform) -> None:
    """`txt2img "…" -o knight.png` writes the image, and prints its path, size and seed."""
    ended = shell("txt2img", "a knight", "-o", "knight.png", "--seed", "7", "--width", "512", "--no-metadata")

    [job] = platform.jobs.values()
    assert ended.status == 0
    assert ended.err.splitlines()[0] == f"job {job.id}"
    assert ended.out == "knight.png  8 x 8  seed 7\n"
    assert Path("knight.png").read_bytes() == png(8, 7)
    expected = {"workflow": "txt2img", "prompt": "a knight", "seed": 7, "width": 512, "metadata": False}
    assert job.input == expected


def test_the_cost_is_shown(shell: Shell) -> None:
    """A job's cost is a line on stderr and a field with --json; without a known price there is no line, and null."""
    priced = shell("txt2img", "a knight", COMFY_CLIENT_GPU_USD_PER_S="0.5")
    as_json = shell("txt2img", "a knight", "--json", COMFY_CLIENT_GPU_USD_PER_S="0.5")
    unpriced = shell("txt2img", "a knight")

    assert re.fullmatch(r"\$0\.[05]000 of GPU time", priced.err.splitlines()[-1])
    assert as_json.json["cost"] in (0, 0.5)
    assert "of GPU time" not in unpriced.err
    assert shell("txt2img", "a knight", "--json").json["cost"] is None


def test_the_default_name_has_workflow_and_seed(shell: Shell) -> None:
    """The default file name has the workflow and the seed, so an image with another seed gets another file."""
    shell("txt2img", "a knight", "--seed", "7")

    assert Path("flux-dev-txt2img-7.png").exists()


def test_an_image_is_written_to_stdout(shell: Shell) -> None:
    """`-o -` writes only the image's bytes to stdout."""
    ended = shell("txt2img", "a knight", "-o", "-", "--seed", "7")

    assert ended.status == 0
    assert ended.data == png(8, 7)


def test_an_image_is_sent(shell: Shell, platform: RunPodPlatform) -> None:
    """`img2img --image in.png` sends the file as base64."""
    assert shell("img2img", "Refine", "--image", "in.png", "--strength", "0.4", "-o", "out.png").status == 0
    [job] = platform.jobs.values()

    assert job.input["strength"] == 0.4
    assert job.input["image"].startswith("iVBOR")


@pytest.mark.parametrize(
    "words",
    [["inpaint", "a door", "--mask", "mask.png"], ["run", "inpaint", "-iprompt=a door", "-imask=mask.png"]],
    ids=["inpaint", "run"],
)
def test_every_image_of_a_workflow_is_sent(shell: Shell, platform: RunPodPlatform, words: list[str]) -> None:
    """The file of `--mask`, which only the workflow's schema declares, is sent as base64."""
    assert shell(*words, "--image", "in.png", "-o", "out.png").status == 0
    [job] = platform.jobs.values()

    assert (job.input["workflow"], job.input["prompt"]) == ("inpaint", "a door")
    assert job.input["image"].startswith("iVBOR")
    assert base64.b64decode(job.input["mask"]) == Path("mask.png").read_bytes()


def test_a_prompt_that_a_workflow_does_not_require_may_be_left_out(shell: Shell, platform: RunPodPlatform) -> None:
    """`upscale --image in.png` sends no prompt."""
    assert shell("upscale", "--image", "in.png", "-o", "out.png").status == 0
    [job] = platform.jobs.values()

    assert job.input.keys() == {"workflow", "image"}


def test_a_workflow_runs_by_name_with_pairs(shell: Shell, platform: RunPodPlatform) -> None:
    """Values are parsed by the schema: text stays text, numbers become numbers."""
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
    """`--loras name:strength` may be repeated, and the strength may be left out."""
    shell("txt2img", "x", "--loras", "a.safetensors:0.8", "--loras", "b.safetensors")
    [job] = platform.jobs.values()

    assert job.input["loras"] == [{"name": "a.safetensors", "strength": 0.8}, {"name": "b.safetensors"}]


def test_a_graph_runs_from_its_file(shell: Shell, platform: RunPodPlatform, workflows: Mapping[str, Workflow]) -> None:
    """`run --graph` sends the graph of a file, the files of `--image name=path`, and the overrides of `--set`."""
    [graph] = render(workflows["flux-dev-img2img"], {"prompt": "x", "seed": 1, "image": "knight.png"})
    Path("graph.json").write_text(json.dumps(graph))
    ended = shell("run", "--graph", "graph.json", "--image", "knight.png=in.png", "--set", "KSampler.steps=3")

    assert ended.status == 0, ended.err
    [job] = platform.jobs.values()
    assert job.input["workflow"] == graph
    assert job.input["images"][0]["name"] == "knight.png"
    assert job.input["overrides"] == {"KSampler.steps": 3}


def test_an_image_of_a_graph_may_be_a_url_with_a_query(shell: Shell, platform: RunPodPlatform) -> None:
    """`--image URL` is not read as `NAME=PATH`; the image's name is the last part of the URL's path."""
    Path("graph.json").write_text(json.dumps({"1": {"class_type": "LoadImage", "inputs": {"image": "a.png"}}}))
    ended = shell("run", "--graph", "graph.json", "--image", "https://host/b/a.png?key=1")

    assert ended.status == 0, ended.err
    [job] = platform.jobs.values()
    assert job.input["images"] == [{"name": "a.png", "image": "https://host/b/a.png?key=1"}]


def test_options_are_sent_to_runpod(shell: Shell, platform: RunPodPlatform) -> None:
    """Flags set RunPod's policy, whose times are in milliseconds."""
    shell("submit", "txt2img", "-iprompt=x", "--ttl", "60", "--execution-timeout", "30", "--low-priority")
    [job] = platform.jobs.values()

    assert job.body["policy"] == {"ttl": 60_000, "executionTimeout": 30_000, "lowPriority": True}


def test_a_job_is_submitted_queried_awaited_and_cancelled(shell: Shell) -> None:
    """`submit` prints an id that `wait`, `status` and `cancel` accept."""
    job_id = shell("submit", "txt2img", "-i", "prompt=a knight", "-i", "seed=3").out.strip()
    waited = shell("wait", job_id, "-o", "x.png")
    queried = shell("status", job_id)
    cancelled = shell("cancel", job_id)

    assert (waited.status, queried.status, cancelled.status) == (0, 0, 0)
    assert Path("x.png").read_bytes() == png(8, 3)
    assert queried.out == f"{job_id}  succeeded\n"
    assert cancelled.out == f"{job_id}  succeeded\n"


def test_several_images_are_numbered(platform: RunPodPlatform, shell: Shell) -> None:
    """With two images `-o knight.png` numbers the files; `-o -` writes both into files and exits with 1."""
    two_images = {
        "output": {"images": [image_entry(png(8, 1), 1), image_entry(png(8, 2), 2)], "workflow": "flux-dev-txt2img"}
    }
    with RunPodPlatform(long_poll_s=0.1) as other, ScriptedWorker(other, lambda _: two_images):
        both = shell("txt2img", "x", "-o", "knight.png", **other.client_env())
        piped = shell("txt2img", "x", "-o", "-", **other.client_env())

    assert both.out.splitlines() == ["knight-1.png  8 x 8  seed 1", "knight-2.png  8 x 8  seed 2"]
    assert (piped.status, piped.data) == (1, b"")
    assert sorted(Path().glob("flux-dev-txt2img-*.png")) == [Path(f"flux-dev-txt2img-{seed}.png") for seed in (1, 2)]
    assert platform.submissions == 0


def test_a_failed_job_exits_with_1_and_a_wait_timeout_with_5(platform: RunPodPlatform, shell: Shell) -> None:
    """The exit status alone distinguishes a failed job from a wait timeout."""
    failure = {"error": ErrorReport(ErrorCode.OUT_OF_MEMORY, "The GPU is full.").to_json()}
    with RunPodPlatform(long_poll_s=0.1) as other, ScriptedWorker(other, lambda _: failure):
        failed = shell("txt2img", "x", **other.client_env())
        other.faults.throttle_workers()
        timed_out = shell("txt2img", "x", "--wait-timeout", "0.5", "--json", **other.client_env())

    assert failed.status == 1
    assert failed.err.endswith("comfy-client: out_of_memory: The GPU is full.\n")
    assert timed_out.status == 5
    assert timed_out.json["error"]["details"]["why"] == "throttled"
    assert platform.submissions == 0


def test_doctor_reports_each_check(shell: Shell, platform: RunPodPlatform) -> None:
    """`doctor` prints one line for each check, and no API key."""
    ended = shell("doctor", "--generate")

    assert ended.status == 0
    assert [line.split()[:2] for line in ended.out.splitlines()] == [
        ["ok", name] for name in ("provider", "variables", "address", "workers", "models", "image")
    ]
    assert platform.api_key not in ended.out


def test_doctor_names_missing_models(shell: Shell) -> None:
    """For a direct ComfyUI, `doctor` checks the files of the workflows' models."""
    with Simulator() as complete, Simulator(models={"vae": ()}) as incomplete:
        healthy = shell("doctor", COMFYUI_ENDPOINT=complete.url)
        unhealthy = shell("doctor", COMFYUI_ENDPOINT=incomplete.url)

    assert healthy.status == 0
    assert unhealthy.status == 3
    assert "!!  models     ComfyUI does not have vae/ae.safetensors" in unhealthy.out


def test_doctor_warns_of_an_endpoint_without_workers(shell: Shell) -> None:
    """A condition that may resolve itself is a warning, not an error."""
    with RunPodPlatform(long_poll_s=0.1) as empty:
        ended = shell("doctor", **empty.client_env())

    assert ended.status == 0
    assert "??  workers" in ended.out


def test_a_workflow_s_inputs_are_listed(shell: Shell, workflows: Mapping[str, Workflow]) -> None:
    """`workflows NAME` lists the inputs with ranges and defaults; `--schema` prints the schema."""
    listed = shell("workflows", "txt2img").out
    schema = json.loads(shell("workflows", "txt2img", "--schema").out)

    for name in workflows["flux-dev-txt2img"].inputs:
        assert f"  {name} " in listed
    assert "[64 to 2048; default 1024]" in listed
    assert schema == workflows["flux-dev-txt2img"].schema


@pytest.mark.slow
def test_the_prompt_may_come_from_stdin(platform: RunPodPlatform, tmp_path: Path) -> None:
    """`txt2img -` reads the prompt from stdin, without the line's end."""
    ended = subprocess.run(
        [*COMMAND, "txt2img", "-", "--json"],
        input="a red fox\n",
        env={**os.environ, **platform.client_env(), "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )

    [job] = platform.jobs.values()
    assert job.input["prompt"] == "a red fox"
    assert json.loads(ended.stdout)["job_id"] == job.id


def test_every_error_is_explained(shell: Shell) -> None:
    """`errors CODE` prints the code's remedy."""
    for code in ErrorCode:
        assert code.remedy in shell("errors", code.value).out


def test_a_webp_image_has_its_suffix(shell: Shell, platform: RunPodPlatform) -> None:
    """The file's suffix matches the image's type."""
    encoded = io.BytesIO()
    Image.new("RGB", (8, 8)).save(encoded, "WEBP")
    image: Body = image_entry(encoded.getvalue(), 4, mime_type="image/webp") | {"filename": "flux-dev_00001_.webp"}
    response = {"output": {"images": [image], "workflow": "flux-dev-txt2img"}}
    with RunPodPlatform(long_poll_s=0.1) as other, ScriptedWorker(other, lambda _: response):
        shell("txt2img", "x", "--output-format", "webp", **other.client_env())

    assert Path("flux-dev-txt2img-4.webp").exists()
    assert platform.submissions == 0


def test_an_unreachable_endpoint_leads_to_the_doctor(shell: Shell) -> None:
    """Without a response the error names the doctor, and the doctor names the URL."""
    nowhere = {"COMFYUI_ENDPOINT": "http://127.0.0.1:1"}

    assert "comfy-client doctor" in shell("txt2img", "a knight", **nowhere).err
    assert "http://127.0.0.1:1" in shell("doctor", **nowhere).out.splitlines()[-1]
