"""`scenario import` and `scenario export` as processes: whole libraries, killed, refused and repeated."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, Literal

import pytest

from bench.shim_process import ShimProcess
from bench.worker_setup import ROOT
from comfy_client.gateway.scenario.blobs import make_blobs
from comfy_client.gateway.scenario.models import AssetLink, ShimAsset, Side
from comfy_client.gateway.scenario.store import Store
from simulators.runpod.queue_api import RunPodPlatform
from simulators.runpod.scripted_worker import incompressible_png
from simulators.scenario.api import ScenarioSimulator
from simulators.scenario.records import noise_png
from simulators.waiting import until
from tests.gateway.scenario.bridge.caller import Caller
from tests.gateway.scenario.bridge.conftest import upstream_variables

pytestmark = pytest.mark.slow
TIMEOUT_S = 300.0


class TransferProcess:
    """`comfy-client scenario ACTION --json` on a folder, as a process."""

    def __init__(self, action: str, scenario: ScenarioSimulator, directory: Path) -> None:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("SCENARIO_")}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "comfy_client.cli.main", "scenario", action, f"--data={directory}", "--json"],
            env={**kept, "PYTHONPATH": str(ROOT), **upstream_variables(scenario)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.log = ""
        """The output on stderr, after the end."""

    def kill(self) -> None:
        """Send SIGKILL, and wait for the end."""
        assert self.process.poll() is None, "it ended before the kill"
        self.process.kill()
        self.process.communicate()

    def result(self) -> tuple[int, Any]:
        """Wait for the end, and return the exit status and the report."""
        out, self.log = self.process.communicate(timeout=TIMEOUT_S)
        return self.process.returncode, json.loads(out)


def transferred(action: str, scenario: ScenarioSimulator, directory: Path) -> tuple[int, Any]:
    """Run a transfer to its end, and return the exit status and the report."""
    return TransferProcess(action, scenario, directory).result()


def count_of(scenario: ScenarioSimulator, begin: str) -> int:
    """Return the number of the simulator's calls that begin with a text."""
    return sum(call.startswith(begin) for call in scenario.calls)


def kill_three_times(action: str, scenario: ScenarioSimulator, directory: Path, call: str, step: int) -> None:
    """Run a transfer three times, and kill it when `step` more calls that begin with `call` were made."""
    for _ in range(3):
        limit = count_of(scenario, call) + step
        transfer = TransferProcess(action, scenario, directory)
        assert until(lambda limit=limit: count_of(scenario, call) >= limit, 120)  # type: ignore[misc]
        transfer.kill()


def small_images(count: int) -> list[bytes]:
    """Return different small images."""
    return [noise_png(8, 8, number) for number in range(count)]


def add_own_assets(directory: Path, *originals: bytes) -> dict[str, bytes]:
    """Store own assets of two callers with tags in a shim's folder. Return their images by id."""
    store, blobs = Store(directory), make_blobs(directory, None)
    images = {f"asset_own{number:021d}": data for number, data in enumerate(originals)}
    assets = [
        ShimAsset(
            id=asset_id,
            owner=f"caller {number % 2}",
            created_at=float(number),
            updated_at=float(number),
            sha256=blobs.put(data, "image/png"),
            mime_type="image/png",
            width=8,
            height=8,
            bytes=len(data),
            name="knight.png",
            type="uploaded",
            source="uploaded",
            tags=(f"tag {number}",),
        )
        for number, (asset_id, data) in enumerate(images.items())
    ]
    store.add(*assets)
    store.close()
    return images


def test_an_import_killed_three_times_copies_each_asset_once(scenario: ScenarioSimulator, tmp_path: Path) -> None:
    """After three kills and a run to the end, the folder has 2,000 assets with their ids, tags and images."""
    scenario.add_images(2000)
    kill_three_times("import", scenario, tmp_path, "GET /assets/", 400)
    status, report = transferred("import", scenario, tmp_path)
    again_status, again = transferred("import", scenario, tmp_path)

    assert (status, again_status) == (0, 0)
    assert sum(report["counts"].values()) == 2000
    assert again["counts"] == {"present": 2000}
    assert count_of(scenario, "GET /v1/assets/asset_") == 0, "the list has the records"
    assert count_of(scenario, "GET /assets/") < 2000 + 3 * 100
    store, blobs = Store(tmp_path), make_blobs(tmp_path, None)
    for asset_id, original in scenario.assets.items():
        copy = store.asset(asset_id)
        assert copy is not None
        assert (copy.tags, copy.side) == (tuple(original.tags), Side.SCENARIO)
        assert copy.sha256 == hashlib.sha256(original.data).hexdigest()
        assert blobs.get(copy.sha256) == original.data
    assert store.own_assets_without_link() == []
    store.close()


def test_an_export_killed_three_times_uploads_each_asset_once(scenario: ScenarioSimulator, tmp_path: Path) -> None:
    """After three kills and a run to the end, Scenario has each of 2,000 images once, and the table has their ids."""
    images = add_own_assets(tmp_path, *small_images(2000))
    kill_three_times("export", scenario, tmp_path, "POST /v1/assets", 400)
    status, report = transferred("export", scenario, tmp_path)
    again_status, again = transferred("export", scenario, tmp_path)

    assert (status, again_status) == (0, 0)
    assert sum(report["counts"].values()) == 2000
    assert again["counts"] == {"present": 2000}
    with (tmp_path / "scenario-ids.csv").open(newline="") as file:
        table = {row["id"]: row["scenario_id"] for row in csv.DictReader(file)}
    assert table.keys() == images.keys()
    assert sorted(table.values()) == sorted(scenario.assets)
    for number, (asset_id, data) in enumerate(images.items()):
        copy = scenario.assets[table[asset_id]]
        assert (copy.data, copy.tags) == (data, [f"tag {number}"])


def test_an_import_reports_what_it_did_not_copy(scenario: ScenarioSimulator, tmp_path: Path) -> None:
    """Videos and unreadable images are named with their reasons; throttled and failed reads are repeated."""
    scenario.add_images(6)
    video, broken, *_ = scenario.assets.values()
    video.kind = "video"
    broken.data = b"not an image"
    scenario.faults.respond("assets", 429, body={"reason": "Too many requests", "remainingSeconds": 0.01})
    scenario.faults.respond("assets", 503)
    scenario.faults.cut_response("image", 2)
    status, report = transferred("import", scenario, tmp_path)

    assert status == 1
    assert report["counts"] == {"transferred": 4, "skipped": 1, "failed": 1}
    reasons = {each["asset_id"]: (each["outcome"], each["reason"]) for each in report["not_transferred"]}
    assert reasons[video.asset_id] == ("skipped", "its kind is video, and only images are copied")
    assert reasons[broken.asset_id][0] == "failed"
    assert "was not copied" in reasons[broken.asset_id][1]


def test_a_list_that_cannot_be_read_ends_an_import(scenario: ScenarioSimulator, tmp_path: Path) -> None:
    """After four 503 responses to the list of assets, the report has the error, and the exit status is 1."""
    scenario.faults.respond("assets", 503, 4, {"reason": "maintenance", "remainingSeconds": 0.01})
    status, report = transferred("import", scenario, tmp_path)

    assert (status, report["counts"], report["error"]["message"]) == (1, {}, "maintenance")
    assert count_of(scenario, "GET /v1/assets") == 4


def test_a_terminated_import_can_be_continued(scenario: ScenarioSimulator, tmp_path: Path) -> None:
    """SIGTERM during downloads ends the import with status 143 and no traceback; the next run copies the assets."""
    scenario.add_images(12)
    scenario.faults.stall("image", times=8)
    transfer = TransferProcess("import", scenario, tmp_path)
    assert until(lambda: count_of(scenario, "GET /assets/") == 8, 60)
    transfer.process.terminate()
    status, report = transfer.result()
    scenario.faults.clear()

    assert (status, report["error"]["code"]) == (143, "cancelled")
    assert "Interrupted (no assets)" in transfer.log
    assert "Traceback" not in transfer.log
    assert transferred("import", scenario, tmp_path) == (0, {"counts": {"transferred": 12}, "not_transferred": []})


def test_an_export_ends_if_scenario_refuses_the_key(scenario: ScenarioSimulator, tmp_path: Path) -> None:
    """Twenty refusals in a row end the export with an error; a later run uploads each asset once."""
    add_own_assets(tmp_path, *small_images(50))
    scenario.faults.respond("upload", 401, 100, {"reason": "Unauthorized"})
    status, report = transferred("export", scenario, tmp_path)
    scenario.faults.clear()
    later_status, later = transferred("export", scenario, tmp_path)

    assert status == 1
    assert report["error"]["message"] == "Unauthorized"
    assert report["counts"]["failed"] < 50
    assert (later_status, later["counts"]) == (0, {"transferred": 50})
    assert len(scenario.assets) == 50


def test_an_upload_whose_response_is_lost_is_found(scenario: ScenarioSimulator, tmp_path: Path) -> None:
    """Scenario stored the image and the response was lost: the repeated export finds the copy by its name."""
    [asset_id] = add_own_assets(tmp_path, *small_images(1))
    scenario.faults.drop_connection("upload", after_handling=True)
    status, _ = transferred("export", scenario, tmp_path)
    [copy] = scenario.assets.values()
    store = Store(tmp_path)

    assert status == 0
    assert copy.metadata["name"] == f"knight ({asset_id}).png"
    assert [(link.id, link.scenario_id) for link in store.links()] == [(asset_id, copy.asset_id)]
    store.close()


LARGE = incompressible_png(1400, 1300)
"""An image of 5.5 MB, which is uploaded in two parts."""


@pytest.mark.parametrize("route", ["part", "complete", "uploads"])
def test_a_large_image_is_uploaded_once_whatever_is_cut(
    scenario: ScenarioSimulator, tmp_path: Path, route: Literal["part", "complete", "uploads"]
) -> None:
    """If the response to a part, to the completion or to the creation is lost, the export still makes one copy."""
    [asset_id] = add_own_assets(tmp_path, LARGE)
    scenario.faults.drop_connection(route, after_handling=True)
    status, _ = transferred("export", scenario, tmp_path)
    [copy] = scenario.assets.values()

    assert status == 0
    assert (copy.data, copy.tags) == (LARGE, ["tag 0"])
    assert copy.metadata["name"] == f"knight ({asset_id}).png"


def test_a_killed_export_continues_a_completed_upload(scenario: ScenarioSimulator, tmp_path: Path) -> None:
    """An export that is killed while Scenario validates a large image finds that upload, and sends no part again."""
    [asset_id] = add_own_assets(tmp_path, LARGE)
    scenario.faults.stall("complete")
    transfer = TransferProcess("export", scenario, tmp_path)
    assert until(lambda: any(each.status == "validating" for each in list(scenario.uploads.by_id.values())))
    transfer.kill()
    scenario.faults.clear()
    status, report = transferred("export", scenario, tmp_path)

    assert (status, report["counts"]) == (0, {"transferred": 1})
    assert count_of(scenario, "PUT /parts/") == 2
    [copy] = scenario.assets.values()
    assert (copy.data, copy.metadata["name"]) == (LARGE, f"knight ({asset_id}).png")


def test_a_transfer_needs_the_folder_and_the_key(
    shim: ShimProcess, scenario: ScenarioSimulator, tmp_path: Path
) -> None:
    """While the shim runs, an import exits with status 3 and names the process of the shim."""
    status, report = transferred("import", scenario, tmp_path / "shim")

    assert status == 3
    assert f"process {shim.process_id}" in report["error"]["message"]


def test_both_ids_of_an_exported_asset_are_valid(
    platform: RunPodPlatform, scenario: ScenarioSimulator, tmp_path: Path, released: threading.Event
) -> None:
    """After an export, the shim serves the asset under its own id and under the id at Scenario, and imports no copy."""
    released.set()
    with ShimProcess({**platform.client_env(), **upstream_variables(scenario)}, tmp_path) as shim:
        caller = Caller(shim.base_url)
        made = caller.generate("txt2img", modelId="flux.1-dev", prompt="a knight", width=64, height=64)
        [own_id] = made["metadata"]["assetIds"]
        shim.stop()
        exported = transferred("export", scenario, tmp_path)
        imported = transferred("import", scenario, tmp_path)
        shim.start()
        caller = Caller(shim.base_url)
        [scenario_id] = scenario.assets
        by_new_id = caller.json("GET", f"/assets/{scenario_id}")["asset"]
        refined = caller.generate("img2img", modelId="flux.1-dev", prompt="a knight", image=scenario_id)

        assert exported[1]["counts"] == {"transferred": 1}
        assert imported[1]["counts"] == {"present": 1}
        assert by_new_id["id"] == own_id
        assert caller.image(scenario_id) == caller.image(own_id) == scenario.assets[scenario_id].data
        assert refined["status"] == "success"
        other = Caller(shim.base_url, auth=("another-key", "another-secret"))
        assert other.call("GET", f"/assets/{scenario_id}").status_code == 404


def test_a_link_without_an_id_is_not_a_copy(tmp_path: Path) -> None:
    """An upload whose outcome is unknown counts as not exported, and an empty text is not the id of its asset."""
    [asset_id] = add_own_assets(tmp_path, *small_images(1))
    store = Store(tmp_path)
    store.add(AssetLink(asset_id, "", 0.0))

    assert store.own_assets_without_link() == [asset_id]
    assert store.links() == []
    assert store.asset("") is None
    store.close()
