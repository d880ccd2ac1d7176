"""`comfy-client batch` on the platform's stand-in: each picture once, whatever ends the run; a bucket; a page."""

from __future__ import annotations

import io
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import pytest

from comfy_client.cli.main import main
from comfy_client.simulator import Simulator
from tests.fakes.runpod_platform import RunPodPlatform
from tests.fakes.s3 import ACCESS_KEY_ID, SECRET_ACCESS_KEY, S3Server, StalledS3
from tests.fakes.scripted_worker import Body, ScriptedWorker, pictured
from tests.needs import small_disk
from tests.stage import ROOT, staged
from tests.waiting import until

FILE = """
game = "castle"
title = "The <Castle>"
[defaults]
steps = 4
width = 64
height = 64
[groups.entities]
type = "entity"
[[groups.entities.assets]]
name = "knight"
prompt = "a knight"
variations = 3
[[groups.entities.assets]]
name = "gold"
from = "knight"
prompt = "a golden knight"
[groups.ui]
[[groups.ui.assets]]
name = "coin"
prompt = "a coin"
[[groups.ui.assets]]
name = "heart"
prompt = "a heart"
"""
PATHS = ["entities/gold", "entities/knight", "entities/knight-2", "entities/knight-3", "ui/coin", "ui/heart"]
KILLS = 5


@pytest.fixture
def platform() -> Iterator[RunPodPlatform]:
    """An endpoint without a worker."""
    with RunPodPlatform(long_poll_s=0.5) as platform:
        yield platform


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """The assets of a game."""
    path = tmp_path / "assets.toml"
    path.write_text(FILE)
    return path


def batch(platform: RunPodPlatform, file: Path, *flags: str, **variables: str) -> tuple[int, Any]:
    """Run the command; return its status and its JSON."""
    out, err = io.StringIO(), io.StringIO()
    arguments = ["batch", str(file), "--json", f"--out={file.parent / 'out'}", *flags]
    status = main(arguments, {**platform.client_env(), **variables}, out, err)
    return status, json.loads(out.getvalue())


def seeds(platform: RunPodPlatform) -> list[int]:
    """Return the seeds of the jobs that were submitted: each is one picture's."""
    return [job.input["seed"] for job in platform.jobs.values() if isinstance(job.input, dict)]


def test_every_asset_is_made_once_and_shown(platform: RunPodPlatform, file: Path) -> None:
    """Pictures, manifest and gallery are there; a second run makes nothing, and costs nothing."""
    with ScriptedWorker(platform, pictured, hands=2):
        first = batch(platform, file)
        second = batch(platform, file)
    out = file.parent / "out"
    manifest = json.loads((out / "manifest.json").read_text())

    assert first[0] == second[0] == 0
    assert first[1]["counts"] == {"made": 6}
    assert second[1]["counts"] == {"reused": 6}
    assert platform.submissions == 6 == len(set(seeds(platform)))
    assert sorted(asset["id"] for asset in manifest["assets"]) == PATHS
    for asset in manifest["assets"]:
        assert (out / asset["file"]).stat().st_size
        assert asset["provider_asset_id"] == f"sha256:{asset['sha256']}"
        assert asset["cost_usd"] > 0
    page = (out / "index.html").read_text()
    assert "The &lt;Castle&gt;" in page
    assert 'src="entities/knight-2.png"' in page


def test_a_chain_starts_from_its_picture(platform: RunPodPlatform, file: Path) -> None:
    """A stage is sent with the picture that the earlier stage made, and made anew when that one changes."""
    with ScriptedWorker(platform, pictured, hands=2):
        batch(platform, file)
        file.write_text(FILE.replace('"a knight"', '"an old knight"'))
        status, told = batch(platform, file, "--type=entity")
    [gold, anew] = [job.input for job in platform.jobs.values() if isinstance(job.input, dict) and "image" in job.input]

    assert status == 0
    assert told["counts"] == {"made": 4}
    assert gold["prompt"] == anew["prompt"] == "a golden knight"
    assert "image" in gold
    assert platform.submissions == 10


def test_a_dry_run_sends_nothing(platform: RunPodPlatform, file: Path) -> None:
    """It shows what would be made."""
    status, told = batch(platform, file, "--dry-run")

    assert status == 0
    assert {asset["state"] for asset in told["assets"]} == {"new"}
    assert platform.submissions == 0


def test_a_failed_picture_does_not_stop_the_others(platform: RunPodPlatform, file: Path) -> None:
    """It is named with its code and remedy, what starts from it too; the next run makes those alone."""

    def answer(job: Body) -> Body:
        return FAILED if job["input"]["prompt"] == "a knight" else pictured(job)

    with ScriptedWorker(platform, answer, hands=2):
        status, told = batch(platform, file)
    with ScriptedWorker(platform, pictured, hands=2):
        again = batch(platform, file)

    assert status == 1
    assert told["counts"] == {"made": 2, "failed": 4}
    assert told["error"]["code"] in {"execution_failed", "invalid_image"}
    assert again[0] == 0
    assert again[1]["counts"] == {"made": 4, "reused": 2}


FAILED: Body = {"error": '{"code": "execution_failed", "message": "A node failed.", "details": {}}'}
FULL: Body = {"error": '{"code": "out_of_memory", "message": "The GPU is full.", "details": {}}'}


def test_what_may_pass_is_tried_again(platform: RunPodPlatform, file: Path) -> None:
    """A job that ended for want of memory is sent once more; the picture is there in the end."""
    failed: set[int] = set()

    def answer(job: Body) -> Body:
        if job["input"]["seed"] not in failed:
            failed.add(job["input"]["seed"])
            return FULL
        return pictured(job)

    with ScriptedWorker(platform, answer, hands=2):
        status, told = batch(platform, file, "--type=ui")

    assert (status, told["counts"]) == (0, {"made": 2})
    assert platform.submissions == 4


def test_a_submit_whose_answer_is_lost_is_not_made_again(platform: RunPodPlatform, file: Path) -> None:
    """It may run: the run says so, a later one does not send it either, unless it is told to."""
    platform.faults.drop_connection("run", after_handling=True)
    with ScriptedWorker(platform, pictured, hands=2):
        lost = batch(platform, file, "--type=ui")
        still = batch(platform, file, "--type=ui")
        before = platform.submissions
        told = batch(platform, file, "--type=ui", "--resend-unsure")

    assert lost[0] == still[0] == 4
    assert still[1]["counts"] == {"reused": 1, "unsure": 1}
    assert before == 2
    assert told == (0, {**told[1], "counts": {"reused": 1, "made": 1}})
    assert platform.submissions == 3


def test_killed_five_times_each_asset_is_there_once(platform: RunPodPlatform, file: Path) -> None:
    """SIGKILL at any moment: the next run goes on, nothing is paid twice but what the owner says may be."""
    file.write_text(FILE.replace("variations = 3", "variations = 16"))
    chance = random.Random(5)  # noqa: S311 - the same moments each time
    held = threading.Semaphore(0)

    def answer(job: Body) -> Body:
        assert held.acquire(timeout=60)
        return pictured(job)

    with ScriptedWorker(platform, answer, hands=4):
        for _ in range(KILLS):
            process = started(platform, file)
            wanted = len(platform.jobs) + chance.randint(0, 3)
            held.release(chance.randint(1, 3))
            assert until(lambda: len(platform.jobs) >= wanted or process.poll() is not None, 60)  # noqa: B023 - asked at once
            process.kill()
            process.wait()
        held.release(1000)
        status, told = batch(platform, file)
        unsure = told["counts"].get("unsure", 0)
        paid_once = len(seeds(platform)) == len(set(seeds(platform)))
        if unsure or told["counts"].get("failed"):
            status, told = batch(platform, file, "--resend-unsure")

    assert paid_once
    assert status == 0
    assert len(told["assets"]) == 19 == sum(asset["state"] == "ready" for asset in told["assets"])
    assert len(seeds(platform)) <= 19 + unsure
    assert unsure <= KILLS


def started(platform: RunPodPlatform, file: Path) -> subprocess.Popen[bytes]:
    """Start the command as a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "comfy_client.cli.main", "batch", str(file), f"--out={file.parent / 'out'}"],
        env={**os.environ, **platform.client_env(), "PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def test_ctrl_c_leaves_jobs_to_the_next_run(platform: RunPodPlatform, file: Path) -> None:
    """The run ends at once with 130; the jobs go on, and the next run fetches their pictures."""
    process = started(platform, file)
    platform.wait_until(lambda: platform.submissions >= 3, 60)
    process.send_signal(signal.SIGINT)
    status = process.wait(30)
    with ScriptedWorker(platform, pictured, hands=2):
        again = batch(platform, file)

    assert status == 130
    assert again[0] == 0
    assert platform.submissions == 6


def test_two_runs_do_not_share_a_folder(platform: RunPodPlatform, file: Path) -> None:
    """The second is refused while the first is under way."""
    process = started(platform, file)
    platform.wait_until(lambda: platform.submissions >= 1, 60)
    status, told = batch(platform, file)
    process.kill()
    process.wait()

    assert status == 3
    assert "Another run" in told["error"]["message"]


def test_a_full_disk_loses_nothing(platform: RunPodPlatform, file: Path, tmp_path: Path) -> None:
    """What cannot be written is fetched by the next run, without being paid for again."""
    with small_disk(tmp_path / "small", "64k") as disk, ScriptedWorker(platform, pictured, hands=2):
        batch(platform, file, f"--out={disk}", "--dry-run")
        filler = disk / "filler"
        filler.write_bytes(bytes(64 * 1024 - 12 * 1024))
        full = batch(platform, file, f"--out={disk}", "--type=entity")
        filler.unlink()
        again = batch(platform, file, f"--out={disk}", "--type=entity")

    assert full[0] == 3
    assert "Make room" in json.dumps(full[1])
    assert again[0] == 0
    assert len(seeds(platform)) == len(set(seeds(platform))) == 4


@pytest.fixture
def s3() -> Iterator[S3Server]:
    """A real S3 server."""
    with S3Server(("assets",)) as s3:
        yield s3


def bucket_variables(s3: S3Server, **changes: str) -> dict[str, str]:
    """Return the variables of a bucket."""
    return {
        "BUCKET_ENDPOINT_URL": s3.url,
        "BUCKET_ACCESS_KEY_ID": ACCESS_KEY_ID,
        "BUCKET_SECRET_ACCESS_KEY": SECRET_ACCESS_KEY,
        **changes,
    }


@pytest.mark.usefixtures("_in_folder")
def test_pictures_go_into_a_bucket(platform: RunPodPlatform, file: Path, s3: S3Server) -> None:
    """Each under its name and type, with the manifest and the gallery; the address was tried, and gives it."""
    with ScriptedWorker(platform, pictured, hands=2):
        status, told = batch(platform, file, "--out=s3://assets/castle", **bucket_variables(s3))

    assert status == 0
    stored = s3.stored("assets")
    assert {f"castle/{path}.png" for path in PATHS} | {"castle/manifest.json", "castle/index.html"} == set(stored)
    [url] = told["assets"][0]["urls"].values()
    assert url.startswith("s3://assets/castle/")


@pytest.mark.usefixtures("_in_folder")
def test_a_wrong_key_loses_no_picture(platform: RunPodPlatform, file: Path, s3: S3Server) -> None:
    """The bucket's refusal is named; the right key then uploads what was made, and pays for nothing."""
    wrong = {**bucket_variables(s3), "BUCKET_SECRET_ACCESS_KEY": "the-wrong-secret"}
    with ScriptedWorker(platform, pictured, hands=2):
        refused = batch(platform, file, "--out=s3://assets/castle", "--type=ui", **wrong)
        again = batch(platform, file, "--out=s3://assets/castle", "--type=ui", **bucket_variables(s3))

    assert refused[0] == 1
    assert refused[1]["error"]["code"] == "output_not_stored"
    assert "the-wrong-secret" not in json.dumps(refused[1])
    assert again[1]["counts"] == {"reused": 2}
    assert "castle/ui/coin.png" in s3.stored("assets")
    assert platform.submissions == 2


@pytest.mark.usefixtures("_in_folder")
def test_a_public_address_that_does_not_load_is_told(platform: RunPodPlatform, file: Path, s3: S3Server) -> None:
    """A bucket whose public address gives nothing is found now, and not by the game."""
    variables = bucket_variables(s3, BUCKET_PUBLIC_URL=f"{s3.url}/nothing")
    with ScriptedWorker(platform, pictured, hands=2):
        status, told = batch(platform, file, "--out=s3://assets/castle", "--type=ui", **variables)

    assert status == 1
    assert "BUCKET_PUBLIC_URL" in told["error"]["message"]


@pytest.fixture
def _in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bucket's pictures are kept in the current folder too."""
    monkeypatch.chdir(tmp_path)


def test_the_real_worker_makes_them(tmp_path: Path) -> None:
    """On the real worker: a chain and two groups; the manifest names versions of nothing that is not there."""
    file = tmp_path / "assets.toml"
    file.write_text(FILE.replace("variations = 3", "variations = 1"))
    with staged(step_s=0.01) as stage:
        status, told = batch(stage.platform, file)

    assert status == 0, told
    assert told["counts"] == {"made": 4}
    assert {(asset["width"], asset["height"]) for asset in told["assets"]} == {(64, 64)}


@pytest.mark.usefixtures("_in_folder")
def test_a_bucket_that_is_too_slow_is_given_up(platform: RunPodPlatform, file: Path, s3: S3Server) -> None:
    """A bucket that takes nothing ends with its time, and names it; the next run uploads, and pays for nothing."""
    with StalledS3() as stalled, ScriptedWorker(platform, pictured, hands=2):
        slow = bucket_variables(s3, BUCKET_ENDPOINT_URL=f"http://127.0.0.1:{stalled.server_port}")
        given_up = batch(platform, file, "--out=s3://assets/castle", "--type=ui", "--upload-timeout=0.5", **slow)
        again = batch(platform, file, "--out=s3://assets/castle", "--type=ui", **bucket_variables(s3))

    assert given_up[0] == 1
    assert "--upload-timeout" in given_up[1]["error"]["message"]
    assert again[1]["counts"] == {"reused": 2}
    assert platform.submissions == 2


@pytest.mark.usefixtures("_in_folder")
def test_a_bucket_that_cuts_uploads_off_loses_nothing(platform: RunPodPlatform, file: Path, s3: S3Server) -> None:
    """It is named; the pictures are there for the next run."""
    with CuttingServer() as cutting, ScriptedWorker(platform, pictured, hands=2):
        slow = bucket_variables(s3, BUCKET_ENDPOINT_URL=cutting.url)
        refused = batch(platform, file, "--out=s3://assets/castle", "--type=ui", **slow)
        again = batch(platform, file, "--out=s3://assets/castle", "--type=ui", **bucket_variables(s3))

    assert refused[0] == 1
    assert refused[1]["error"]["code"] == "output_not_stored"
    assert again[1]["counts"] == {"reused": 2}
    assert platform.submissions == 2


def test_the_script_makes_the_shipped_game(tmp_path: Path) -> None:
    """`scripts/generate_game_assets castle-defence --type=entity` makes its entities."""
    with Simulator() as simulator:
        done = subprocess.run(
            [ROOT / "scripts" / "generate_game_assets", "castle-defence", "--type=entity", f"--out={tmp_path}"],
            env={**os.environ, "COMFYUI_ENDPOINT": simulator.url},
            check=True,
            capture_output=True,
            text=True,
        )

    assert "6 made" in done.stdout
    assert (tmp_path / "entities" / "knight-gold.png").exists()
    assert not (tmp_path / "ui").exists()


class CuttingServer:
    """Takes connections, reads a little, and cuts them."""

    def __enter__(self) -> Self:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self._thread = threading.Thread(target=self._cut, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join()

    def _cut(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            with connection:
                connection.recv(64)
