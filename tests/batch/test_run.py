"""`comfy-client batch` on the simulated platform: each image is generated once, however a run ends."""

from __future__ import annotations

import io
import json
import math
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import pytest

from bench.worker_setup import ROOT, running_worker
from comfy_client.batch.journal import Journal
from comfy_client.batch.plan import AssetPlan
from comfy_client.batch.run import Batch, BatchSettings
from comfy_client.cli.main import main
from comfy_client.client import Client
from comfy_client.job_log import JobLog
from simulators.comfyui import Simulator
from simulators.runpod.queue_api import RunPodPlatform
from simulators.runpod.scripted_worker import Body, ScriptedWorker, image_result
from simulators.waiting import until
from tests.fakes.s3 import ACCESS_KEY_ID, SECRET_ACCESS_KEY, S3Server, StalledS3
from tests.interrupts import is_interrupted_at
from tests.needs import small_disk

pytestmark = pytest.mark.slow
ASSETS_TOML = """
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
    """The path of an assets.toml."""
    path = tmp_path / "assets.toml"
    path.write_text(ASSETS_TOML)
    return path


def batch(platform: RunPodPlatform, file: Path, *flags: str, **variables: str) -> tuple[int, Any]:
    """Run the command; return its status and its JSON."""
    out, err = io.StringIO(), io.StringIO()
    arguments = ["batch", str(file), "--json", f"--out={file.parent / 'out'}", *flags]
    status = main(arguments, {**platform.client_env(), **variables}, out, err)
    return status, json.loads(out.getvalue())


def seeds(platform: RunPodPlatform) -> list[int]:
    """Return the seeds of the submitted jobs; each image has its own seed."""
    return [job.input["seed"] for job in platform.jobs.values() if isinstance(job.input, dict)]


def test_every_asset_is_generated_once(platform: RunPodPlatform, file: Path) -> None:
    """Images, manifest and gallery exist; a second run generates nothing and keeps the costs."""
    with ScriptedWorker(platform, image_result, threads=2):
        first = batch(platform, file, COMFY_CLIENT_GPU_USD_PER_S="0.5")
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
        assert asset["cost_usd"] == math.ceil(round(asset["execution_s"], 3)) * 0.5
    assert manifest["cost_usd"] == sum(asset["cost_usd"] for asset in manifest["assets"])
    page = (out / "index.html").read_text()
    assert "The &lt;Castle&gt;" in page
    assert 'src="entities/knight-2.png"' in page


def test_a_chain_uses_the_earlier_image(platform: RunPodPlatform, file: Path) -> None:
    """A derived image is generated from its source, and again when the source's prompt changes."""
    with ScriptedWorker(platform, image_result, threads=2):
        batch(platform, file)
        file.write_text(ASSETS_TOML.replace('"a knight"', '"an old knight"'))
        status, report = batch(platform, file, "--type=entity")
    [first, again] = [
        job.input for job in platform.jobs.values() if isinstance(job.input, dict) and "image" in job.input
    ]

    assert status == 0
    assert report["counts"] == {"made": 4}
    assert first["prompt"] == again["prompt"] == "a golden knight"
    assert "image" in first
    assert platform.submissions == 10


def test_a_dry_run_sends_nothing(platform: RunPodPlatform, file: Path) -> None:
    """A dry run prints the plan, writes nothing and sends nothing."""
    status, report = batch(platform, file, "--dry-run")

    assert status == 0
    assert {asset["state"] for asset in report["assets"]} == {"new"}
    assert platform.submissions == 0
    assert not (file.parent / "out").exists()


def test_a_failed_image_does_not_stop_the_others(platform: RunPodPlatform, file: Path) -> None:
    """A failed image and the images derived from it are counted as failed.

    The next run generates only those.
    """

    def respond(job: Body) -> Body:
        return FAILED_RESPONSE if job["input"]["prompt"] == "a knight" else image_result(job)

    with ScriptedWorker(platform, respond, threads=2):
        status, report = batch(platform, file)
    with ScriptedWorker(platform, image_result, threads=2):
        again = batch(platform, file)

    assert status == 1
    assert report["counts"] == {"made": 2, "failed": 4}
    assert report["error"]["code"] in {"execution_failed", "invalid_image"}
    assert again[0] == 0
    assert again[1]["counts"] == {"made": 4, "reused": 2}


FAILED_RESPONSE: Body = {"error": '{"code": "execution_failed", "message": "A node failed.", "details": {}}'}
OUT_OF_MEMORY_RESPONSE: Body = {"error": '{"code": "out_of_memory", "message": "The GPU is full.", "details": {}}'}


def test_a_retryable_failure_is_retried(platform: RunPodPlatform, file: Path) -> None:
    """A job that ran out of memory is sent once more, and the image is generated."""
    failed: set[int] = set()

    def respond(job: Body) -> Body:
        if job["input"]["seed"] not in failed:
            failed.add(job["input"]["seed"])
            return OUT_OF_MEMORY_RESPONSE
        return image_result(job)

    with ScriptedWorker(platform, respond, threads=2):
        status, report = batch(platform, file, "--type=ui")

    assert (status, report["counts"]) == (0, {"made": 2})
    assert platform.submissions == 4


def test_a_submit_whose_response_is_lost_is_not_repeated(platform: RunPodPlatform, file: Path) -> None:
    """The image is `unsure`, because its job may run; a later run sends the job again only with --resend-unsure."""
    platform.faults.drop_connection("run", after_handling=True)
    with ScriptedWorker(platform, image_result, threads=2):
        lost = batch(platform, file, "--type=ui")
        still = batch(platform, file, "--type=ui")
        submissions_before = platform.submissions
        report = batch(platform, file, "--type=ui", "--resend-unsure")

    assert lost[0] == still[0] == 4
    assert still[1]["counts"] == {"reused": 1, "unsure": 1}
    assert submissions_before == 2
    assert report == (0, {**report[1], "counts": {"reused": 1, "made": 1}})
    assert platform.submissions == 3


def test_killed_five_times_each_asset_is_generated_once(platform: RunPodPlatform, file: Path) -> None:
    """After SIGKILL at random moments the next run continues; --resend-unsure is needed to send a job twice.

    The costs in the log of jobs are those of the images.
    """
    log = JobLog(file.parent / "jobs.sqlite3")
    logged = {"COMFY_CLIENT_JOB_LOG": str(log.path), "COMFY_CLIENT_GPU_USD_PER_S": "0.001"}
    file.write_text(ASSETS_TOML.replace("variations = 3", "variations = 16"))
    chance = random.Random(5)  # noqa: S311 - reproducible, not secret
    permits = threading.Semaphore(0)

    def respond(job: Body) -> Body:
        assert permits.acquire(timeout=60)
        return image_result(job)

    with ScriptedWorker(platform, respond, threads=4):
        for _ in range(KILLS):
            process = start_process(platform, file, **logged)
            expected_jobs = len(platform.jobs) + chance.randint(0, 3)
            permits.release(chance.randint(1, 3))
            assert until(lambda: len(platform.jobs) >= expected_jobs or process.poll() is not None, 60)  # noqa: B023 - called in the same iteration
            process.kill()
            process.wait()
        permits.release(1000)
        status, report = batch(platform, file, **logged)
        unsure = report["counts"].get("unsure", 0)
        paid_once = len(seeds(platform)) == len(set(seeds(platform)))
        if unsure or report["counts"].get("failed"):
            status, report = batch(platform, file, "--resend-unsure", **logged)
    costs = [job.cost for job in log.jobs() if job.cost is not None]
    log.close()

    assert paid_once
    assert status == 0
    assert len(report["assets"]) == 19 == sum(asset["state"] == "ready" for asset in report["assets"])
    assert len(seeds(platform)) <= 19 + unsure
    assert unsure <= KILLS
    assert len(costs) == 19
    assert sum(costs) == pytest.approx(report["cost_usd"])


def start_process(platform: RunPodPlatform, file: Path, **variables: str) -> subprocess.Popen[bytes]:
    """Start the command as a process."""
    return subprocess.Popen(
        [sys.executable, "-m", "comfy_client.cli.main", "batch", str(file), f"--out={file.parent / 'out'}"],
        env={**os.environ, **platform.client_env(), **variables, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


@pytest.mark.parametrize(("number", "ended_with"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_leaves_jobs_for_the_next_run(
    platform: RunPodPlatform, file: Path, number: signal.Signals, ended_with: int
) -> None:
    """The run ends at once on Ctrl-C and SIGTERM; its jobs continue, and the next run downloads their images."""
    process = start_process(platform, file)
    platform.wait_until(lambda: platform.submissions >= 3, 60)
    process.send_signal(number)
    status = process.wait(60)
    with ScriptedWorker(platform, image_result, threads=2):
        again = batch(platform, file)

    assert status == ended_with
    assert again[0] == 0
    assert platform.submissions == 6


def test_two_runs_do_not_share_a_folder(platform: RunPodPlatform, file: Path) -> None:
    """A second run for the same folder is rejected while the first one is running."""
    process = start_process(platform, file)
    platform.wait_until(lambda: platform.submissions >= 1, 60)
    status, report = batch(platform, file)
    process.kill()
    process.wait()

    assert status == 3
    assert "Another run" in report["error"]["message"]


def test_a_full_disk_loses_no_image(platform: RunPodPlatform, file: Path, tmp_path: Path) -> None:
    """Images that cannot be written are downloaded by the next run, without being paid for again."""
    with small_disk(tmp_path / "small", "256k") as disk:
        filler = disk / "filler"

        def respond(job: Body) -> Body:
            if not filler.exists():
                filler.write_bytes(bytes(shutil.disk_usage(disk).free))
            return image_result(job)

        with ScriptedWorker(platform, respond):
            full = batch(platform, file, f"--out={disk}", "--type=entity")
            filler.unlink()
        with ScriptedWorker(platform, image_result, threads=2):
            again = batch(platform, file, f"--out={disk}", "--type=entity")

    assert full[0] == 3
    assert "Make room" in json.dumps(full[1])
    assert again[0] == 0
    assert len(seeds(platform)) == len(set(seeds(platform))) == 4


def test_too_little_disk_space_is_found_before_the_first_job(
    platform: RunPodPlatform, file: Path, tmp_path: Path
) -> None:
    """The error has the approximate required space."""
    file.write_text(ASSETS_TOML.replace("width = 64\nheight = 64", ""))
    with small_disk(tmp_path / "small", "1m") as disk:
        status, report = batch(platform, file, f"--out={disk}")

    assert status == 3
    assert "6 images need about 9.4 MB" in report["error"]["message"]
    assert platform.submissions == 0


def test_a_partial_run_is_merged_into_the_manifest(platform: RunPodPlatform, file: Path) -> None:
    """After `--type` the manifest and the gallery have all images, also one whose prompt has changed since."""
    with ScriptedWorker(platform, image_result, threads=2):
        whole = batch(platform, file, COMFY_CLIENT_GPU_USD_PER_S="0.5")
        file.write_text(ASSETS_TOML.replace('"a knight"', '"an old knight"').replace('"a coin"', '"a gold coin"'))
        part = batch(platform, file, "--type=ui", COMFY_CLIENT_GPU_USD_PER_S="0.5")
    out = file.parent / "out"
    prompts = {asset["id"]: asset["prompt"] for asset in json.loads((out / "manifest.json").read_text())["assets"]}

    assert part[1]["counts"] == {"made": 1, "reused": 1}
    assert sorted(prompts) == PATHS
    assert (prompts["ui/coin"], prompts["entities/knight"]) == ("a gold coin", "a knight")
    assert (out / "index.html").read_text().count("<figure") == 6
    assert part[1]["cost_usd"] == pytest.approx(whole[1]["cost_usd"])


@pytest.mark.usefixtures("_in_folder")
def test_each_game_has_its_own_folder(platform: RunPodPlatform, file: Path) -> None:
    """It is `assets/GAME`. A folder with another game's images, or with a foreign index.html, is rejected."""
    arguments = ["batch", str(file), "--type=ui", "--json"]
    site = Path("site")
    site.mkdir()
    (site / "index.html").write_text("my page")
    with ScriptedWorker(platform, image_result, threads=2):
        assert main(arguments, platform.client_env(), io.StringIO(), io.StringIO()) == 0
        file.write_text(ASSETS_TOML.replace('"castle"', '"farm"'))
        assert main(arguments, platform.client_env(), io.StringIO(), io.StringIO()) == 0
        refused = batch(platform, file, "--out=assets/castle")
        mine = batch(platform, file, "--out=site")

    for game in ("castle", "farm"):
        assert json.loads(Path("assets", game, "manifest.json").read_text())["game"] == game
    assert refused[0] == mine[0] == 3
    assert "another game, 'castle'" in refused[1]["error"]["message"]
    assert "index.html was not written by this command" in mine[1]["error"]["message"]
    assert (site / "index.html").read_text() == "my page"
    assert platform.submissions == 4


@pytest.mark.usefixtures("_in_folder")
def test_a_direct_comfyui_has_no_price(file: Path) -> None:
    """Images of a direct ComfyUI cost nothing."""
    out = io.StringIO()
    with Simulator() as simulator:
        status = main(["batch", str(file), "--type=ui"], {"COMFYUI_ENDPOINT": simulator.url}, out, io.StringIO())
    manifest = json.loads(Path("assets/castle/manifest.json").read_text())

    assert status == 0
    assert "$" not in out.getvalue()
    assert manifest["cost_usd"] is None
    assert [asset["cost_usd"] for asset in manifest["assets"]] == [None, None]
    assert "$" not in Path("assets/castle/index.html").read_text()


@pytest.fixture
def s3() -> Iterator[S3Server]:
    """An S3 server on this machine with the bucket `assets`."""
    with S3Server(("assets",)) as s3:
        yield s3


def bucket_variables(s3: S3Server, **changes: str) -> dict[str, str]:
    """Return the variables for buckets of `s3`, with `changes`."""
    return {
        "BUCKET_ENDPOINT_URL": s3.url,
        "BUCKET_ACCESS_KEY_ID": ACCESS_KEY_ID,
        "BUCKET_SECRET_ACCESS_KEY": SECRET_ACCESS_KEY,
        **changes,
    }


@pytest.mark.usefixtures("_in_folder")
def test_images_are_uploaded_to_a_bucket(platform: RunPodPlatform, file: Path, s3: S3Server) -> None:
    """The bucket has every image, the manifest and the gallery; the report has an image's URL in the bucket."""
    with ScriptedWorker(platform, image_result, threads=2):
        status, report = batch(platform, file, "--out=s3://assets/castle", **bucket_variables(s3))

    assert status == 0
    stored = s3.stored("assets")
    assert {f"castle/{path}.png" for path in PATHS} | {"castle/manifest.json", "castle/index.html"} == set(stored)
    [url] = report["assets"][0]["urls"].values()
    assert url.startswith("s3://assets/castle/")


@pytest.mark.usefixtures("_in_folder")
def test_a_bucket_without_variables_names_those_that_it_needs(platform: RunPodPlatform, file: Path) -> None:
    """`--out s3://…` names the bucket, so the error asks for the other variables."""
    status, report = batch(platform, file, "--out=s3://assets/castle")

    assert status == 3
    needed = "BUCKET_ENDPOINT_URL, BUCKET_ACCESS_KEY_ID, BUCKET_SECRET_ACCESS_KEY"
    assert f"--out s3://assets/castle needs {needed}" in report["error"]["message"]
    assert not platform.jobs


@pytest.mark.usefixtures("_in_folder")
@pytest.mark.parametrize(
    ("changes", "code", "expected"),
    [
        ({"BUCKET_SECRET_ACCESS_KEY": "the-wrong-secret"}, "output_not_stored", "assets"),
        ({"BUCKET_PUBLIC_URL": "{url}/nothing"}, "output_not_stored", "BUCKET_PUBLIC_URL"),
        ({"BUCKET_ENDPOINT_URL": "{stalled}"}, "output_not_stored", "--upload-timeout"),
        ({"BUCKET_ENDPOINT_URL": "{cutting}"}, "output_not_stored", "assets"),
    ],
    ids=["key", "public address", "too slow", "cuts uploads off"],
)
def test_an_unusable_bucket_is_found_before_the_first_job(
    platform: RunPodPlatform, file: Path, s3: S3Server, changes: dict[str, str], code: str, expected: str
) -> None:
    """The command fails with the reason before it submits a job, and shows no secret."""
    with StalledS3() as stalled, CuttingServer() as cutting:
        upload_timeout_s = 1 if "stalled" in str(changes) else 60
        addresses = {"url": s3.url, "stalled": f"http://127.0.0.1:{stalled.server_port}", "cutting": cutting.url}
        variables = bucket_variables(s3, **{name: text.format(**addresses) for name, text in changes.items()})
        status, report = batch(
            platform, file, "--out=s3://assets/castle", f"--upload-timeout={upload_timeout_s}", **variables
        )

    assert status == 1
    assert report["error"]["code"] == code
    assert expected in report["error"]["message"]
    assert "the-wrong-secret" not in json.dumps(report)
    assert platform.submissions == 0


@pytest.mark.usefixtures("_in_folder")
def test_a_bucket_that_fails_later_loses_no_image(platform: RunPodPlatform, file: Path, s3: S3Server) -> None:
    """The run fails with output_not_stored; the next run uploads the generated images without a new job."""
    with S3Server(("assets",)) as dying:

        def respond(job: Body) -> Body:
            dying.stop()
            return image_result(job)

        with ScriptedWorker(platform, respond, threads=2):
            refused = batch(platform, file, "--out=s3://assets/castle", "--type=ui", **bucket_variables(dying))
    again = batch(platform, file, "--out=s3://assets/castle", "--type=ui", **bucket_variables(s3))

    assert refused[0] == 1
    assert refused[1]["error"]["code"] == "output_not_stored"
    assert again[1]["counts"] == {"reused": 2}
    assert {"castle/ui/coin.png", "castle/ui/heart.png"} < set(s3.stored("assets"))
    assert platform.submissions == 2


@pytest.fixture
def _in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the test in `tmp_path`, because images for a bucket are also written into the current folder."""
    monkeypatch.chdir(tmp_path)


def test_the_real_worker_generates_the_assets(tmp_path: Path) -> None:
    """The real worker generates the images of two groups, one of them derived from another, in the requested size."""
    file = tmp_path / "assets.toml"
    file.write_text(ASSETS_TOML.replace("variations = 3", "variations = 1"))
    with running_worker(step_s=0.01) as setup:
        status, report = batch(setup.platform, file)

    assert status == 0, report
    assert report["counts"] == {"made": 4}
    assert {(asset["width"], asset["height"]) for asset in report["assets"]} == {(64, 64)}


def test_the_script_generates_the_shipped_game(tmp_path: Path) -> None:
    """`scripts/generate_game_assets castle-defence --type=entity` generates the game's entities."""
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
    """Accepts connections, reads a little, and closes them."""

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


def test_ctrl_c_at_any_moment_ends_the_run(tmp_path: Path) -> None:
    """Also before the run has begun. The plan has no assets: only the wait for the run is interrupted."""
    plan = AssetPlan("empty", "No assets", ())
    moments = 0
    with Client(comfyui_url="http://127.0.0.1:1") as client, Journal(tmp_path / "journal.jsonl") as journal:
        while is_interrupted_at(moments, lambda: Batch(client, journal, tmp_path, BatchSettings()).run(plan)):
            moments += 1

    assert moments
