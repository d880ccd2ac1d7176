"""`-o`: an invalid value is found before a job is sent, and a generated image is never discarded."""

from __future__ import annotations

import io
import json
import os
import select
import signal
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from bench.worker_setup import ROOT
from simulators.runpod.queue_api import RunPodPlatform
from simulators.runpod.scripted_worker import Body, ScriptedWorker, image_entry, image_result, png
from simulators.waiting import until
from tests.cli.conftest import Shell
from tests.cli.terminals import COMMAND, Terminal
from tests.needs import small_disk

pytestmark = pytest.mark.slow


def respond_in_format(job: Body) -> Body:
    """Return a result with an image in the format that the job requests."""
    wanted = job["input"].get("output_format", "png")
    encoded = io.BytesIO()
    Image.new("RGB", (8, 8)).save(encoded, wanted)
    written = image_entry(encoded.getvalue(), 4, mime_type=f"image/{wanted}") | {"filename": f"flux_00001_.{wanted}"}
    return {"output": {"images": [written], "workflow": "flux-dev-txt2img"}}


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["-o", "in.png/x.png"], "in.png is not a folder"),
        (["-o", "in.png/sub/x.png"], "is not a folder"),
        (["-o", "in.png/"], "is not a folder"),
        (["-o", "a\0.png"], "null"),
        (["-o", "/proc/x.png"], "/proc/x.png"),
        (["-o", f"{'x' * 300}.png"], "File name too long"),
        (["-o", "x.gif"], ".png, .jpg and .webp"),
        (["-o", "x.webp", "--output-format", "jpeg"], "the request has jpeg"),
        (["-o", "x.JPG", "--output-format", "png"], "the request has png"),
        (["-o", "-", "--num-images", "2"], "one image"),
        (["-o", "-", "--json"], "--json"),
        (["-o", "/dev/stdout", "--json"], "--json"),
        (["-o", "/dev/fd/1", "--num-images", "2"], "one image"),
        (["-o", "https://example.com/x.png"], "is a URL"),
        (["-o", "S3://bucket/x.png"], "is a URL"),
        (["-o", "{seed}/x.png"], "not in a folder name"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
@pytest.mark.parametrize("command", [["txt2img", "a knight"], ["img2img", "a knight", "--image", "in.png"]])
def test_an_invalid_output_is_rejected_before_anything_is_sent(
    shell: Shell, platform: RunPodPlatform, command: list[str], arguments: list[str], reason: str
) -> None:
    """The command exits with status 2 and the reason, and submits no job."""
    ended = shell(*command, *arguments)

    assert ended.status == 2
    assert reason in ended.err + ended.out
    assert "Nothing was sent" in ended.err + ended.out
    assert platform.submissions == 0


def test_an_image_is_not_written_to_a_terminal(platform: RunPodPlatform, tmp_path: Path) -> None:
    """`-o -` without a pipe is rejected before anything is sent."""
    terminal = Terminal(["txt2img", "a knight", "-o", "-"], platform.client_env(), tmp_path, is_stdout_too=True)

    assert terminal.wait()[0] == 2
    assert "terminal" in terminal.screen
    assert platform.submissions == 0


@pytest.mark.parametrize("output", ["new/folder/x.png", "new/folder/"])
def test_missing_folders_are_created(shell: Shell, output: str) -> None:
    """The folders of a file, and a folder that is named with a final slash, are created."""
    ended = shell("txt2img", "a knight", "--seed", "7", "-o", output)

    assert ended.status == 0, ended.err
    [written] = Path("new/folder").iterdir()
    assert written.name == ("x.png" if output.endswith("x.png") else "flux-dev-txt2img-7.png")
    assert written.read_bytes() == png(8, 7)


@pytest.mark.parametrize(
    ("name", "kind"), [("a.jpg", "JPEG"), ("a.JPEG", "JPEG"), ("a.webp", "WEBP"), ("a.png", "PNG"), ("a", "PNG")]
)
@pytest.mark.parametrize("command", [["txt2img", "x"], ["run", "txt2img", "-iprompt=x"]], ids=" ".join)
def test_the_suffix_selects_the_format(shell: Shell, command: list[str], name: str, kind: str) -> None:
    """A file has the format of its suffix."""
    with RunPodPlatform(long_poll_s=0.1) as other, ScriptedWorker(other, respond_in_format):
        assert shell(*command, "-o", name, **other.client_env()).status == 0
    with Image.open(name) as image:
        assert image.format == kind


def test_a_job_of_another_format_gets_its_own_suffix(shell: Shell) -> None:
    """`wait` cannot choose the format: the file gets the format's suffix, and a message has the MIME type."""
    with RunPodPlatform(long_poll_s=0.1) as other, ScriptedWorker(other, respond_in_format):
        job_id = shell("submit", "txt2img", "-iprompt=x", "-ioutput_format=webp", **other.client_env()).out.strip()
        ended = shell("wait", job_id, "-o", "a.png", **other.client_env())

    assert ended.out == "a.webp  8 x 8  seed 4\n"
    assert "image/webp" in ended.err
    assert not Path("a.png").exists()


@pytest.mark.parametrize("output", [["-o", "knight.png"], []], ids=["named", "default"])
def test_nothing_is_overwritten_without_force(shell: Shell, output: list[str]) -> None:
    """The same command twice writes two images; --force replaces the first."""
    command = ["txt2img", "a knight", "--seed", "7", *output]
    first, second = shell(*command), shell(*command)
    paths = [Path(ended.out.split()[0]) for ended in (first, second)]
    paths[0].write_bytes(b"old")
    forced = shell(*command, "--force")

    assert len(set(paths)) == 2
    assert paths[1].name == f"{paths[0].stem}-1.png"
    assert all(path.read_bytes() == png(8, 7) for path in paths)
    assert Path(forced.out.split()[0]) == paths[0]
    assert ("--force to overwrite" in second.err) == bool(output)


def test_a_graph_that_runs_twice_keeps_both_images(shell: Shell) -> None:
    """The second file gets another name, although ComfyUI numbers the images of each job from 1."""
    Path("g.json").write_text(json.dumps({"1": {"class_type": "SaveImage", "inputs": {}}}))
    response: Body = {"output": {"images": [image_entry(png(8, 3), None)]}}
    with RunPodPlatform(long_poll_s=0.1) as other, ScriptedWorker(other, lambda _: response):
        ended = [shell("run", "--graph", "g.json", **other.client_env()) for _ in range(2)]

    assert [each.out for each in ended] == ["flux-dev_00001_.png  8 x 8\n", "flux-dev_00001_-1.png  8 x 8\n"]
    assert len(list(Path().glob("flux-dev_*"))) == 2


def test_the_name_may_contain_the_seed(shell: Shell) -> None:
    """`{seed}` is replaced by each image's seed; then the images are not numbered."""
    two_images = {
        "output": {"images": [image_entry(png(8, 1), 1), image_entry(png(8, 2), 2)], "workflow": "flux-dev-txt2img"}
    }
    with RunPodPlatform(long_poll_s=0.1) as other, ScriptedWorker(other, lambda _: two_images):
        ended = shell("txt2img", "x", "-o", "k-{seed}.png", **other.client_env())

    assert [line.split()[0] for line in ended.out.splitlines()] == ["k-1.png", "k-2.png"]


def test_the_name_may_contain_the_job_id(shell: Shell) -> None:
    """`{id}` is replaced by the job's id, without characters that a file name cannot have on Windows."""
    with RunPodPlatform(long_poll_s=0.1) as other, ScriptedWorker(other, image_result):
        ended = shell("txt2img", "x", "--seed=7", "-o", "k-{id}-{seed}.png", "--json", **other.client_env())

    assert ended.json["images"][0]["path"] == f"k-{ended.json['job_id']}-7.png"


def test_a_tilde_is_the_home_folder(shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--output=~/x.png` is written to the home folder, although a shell does not expand this tilde."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))

    assert shell("txt2img", "a knight", "--output=~/x.png").status == 0
    assert (tmp_path / "home" / "x.png").is_file()


def test_a_signal_while_a_result_is_saved_names_the_job(tmp_path: Path) -> None:
    """A pipe with a slow reader delays the save. A signal then ends the command, which prints the job's id again."""
    incompressible_png = io.BytesIO()
    Image.frombytes("RGB", (300, 300), os.urandom(270_000)).save(incompressible_png, "png")  # more than a pipe holds
    response = {"output": {"images": [image_entry(incompressible_png.getvalue(), 4)], "workflow": "flux-dev-txt2img"}}
    os.mkfifo(tmp_path / "x.png")
    reader = os.open(tmp_path / "x.png", os.O_RDONLY | os.O_NONBLOCK)
    with RunPodPlatform(long_poll_s=0.1) as platform, ScriptedWorker(platform, lambda _: response):
        terminal = Terminal(["txt2img", "a knight", "-o", "x.png"], platform.client_env(), tmp_path)
        assert until(lambda: select.select([reader], [], [], 0)[0])
        terminal.process.send_signal(signal.SIGTERM)

        assert terminal.wait() == (143, "")
        assert f"while saving the result of job {next(iter(platform.jobs))}" in terminal.screen
    os.close(reader)


def test_a_worker_s_file_name_cannot_leave_the_folder(shell: Shell) -> None:
    """A result's file is written into the folder, whatever its name is."""
    response: Body = {
        "output": {"images": [image_entry(png(), None, filename=name) for name in ("../../a.png", "c:\\b.png")]}
    }
    Path("g.json").write_text(json.dumps({"1": {"class_type": "SaveImage", "inputs": {}}}))
    with RunPodPlatform(long_poll_s=0.1) as other, ScriptedWorker(other, lambda _: response):
        ended = shell("run", "--graph", "g.json", "-o", "out/", **other.client_env())

    assert [line.split()[0] for line in ended.out.splitlines()] == ["out/a.png", "out/b.png"]


@pytest.mark.parametrize("flags", [[], ["--json"]], ids=["lines", "json"])
def test_a_full_disk_loses_no_image(shell: Shell, tmp_path: Path, flags: list[str]) -> None:
    """The image is written into the current folder; the message has the path and the job's id; the status is 1."""
    with small_disk(tmp_path / "small", "64k") as disk, RunPodPlatform(long_poll_s=0.1) as other:

        def respond(job: Body) -> Body:
            (disk / "filler").write_bytes(bytes(free_bytes(disk)))
            return image_result(job)

        with ScriptedWorker(other, respond):
            ended = shell("txt2img", "x", "--seed", "7", "-o", str(disk / "x.png"), *flags, **other.client_env())
        [job_id] = other.jobs

    assert ended.status == 1
    assert Path("x.png").read_bytes() == png(8, 7)
    assert "No space left" in ended.err
    assert f"The result of job {job_id} is saved as x.png" in ended.err
    if flags:
        assert ended.json["images"][0]["path"] == "x.png"
        assert ended.json["job_id"] == job_id


def free_bytes(disk: Path) -> int:
    """Return the number of free bytes of a disk."""
    found = os.statvfs(disk)
    return found.f_bavail * found.f_frsize


def test_a_broken_pipe_loses_no_image(platform: RunPodPlatform, tmp_path: Path) -> None:
    """`comfy-client txt2img … -o - | false`: the image is in the current folder."""
    process = subprocess.Popen(
        [*COMMAND, "txt2img", "x", "--seed", "7", "-o", "-"],
        cwd=tmp_path,
        env={**os.environ, **platform.client_env(), "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    process.stdout.close()
    _, err = process.communicate(timeout=60)

    assert process.returncode == 1
    assert (tmp_path / "flux-dev-txt2img-7.png").read_bytes() == png(8, 7)
    assert b"is saved as flux-dev-txt2img-7.png" in err
    assert b"Traceback" not in err


def test_a_device_is_written_to(shell: Shell) -> None:
    """`-o` writes to a device and never replaces it by a file, even if the write fails."""
    assert shell("txt2img", "x", "-o", "/dev/null").status == 0
    assert Path("/dev/null").is_char_device()
    assert shell("txt2img", "x", "--seed", "7", "-o", "/dev/full").status == 1
    assert Path("/dev/full").is_char_device()
