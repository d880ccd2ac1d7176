"""One shim per folder: a second shim, a port in use and a damaged database are errors without effect on jobs."""

from __future__ import annotations

import contextlib
import socket
import sqlite3
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests

from bench.shim_process import KEY, NO_ENDPOINT, SECRET, ShimProcess
from comfy_client.client import client_from_env
from comfy_client.gateway.scenario import ScenarioShim
from comfy_client.gateway.scenario.folder import FolderLock
from comfy_client.gateway.scenario.settings import ShimSettings
from comfy_client.gateway.scenario.store import Store
from comfy_core.errors import ConfigError
from simulators.runpod.queue_api import RunPodPlatform
from simulators.runpod.scripted_worker import Body
from simulators.waiting import until

pytestmark = pytest.mark.slow
AUTH = (KEY, SECRET)
SMALL: Body = {"prompt": "a knight", "width": 64, "height": 64}


def start_jobs(shim: ShimProcess, count: int) -> list[str]:
    """Start `count` jobs; return their ids when the endpoint has accepted all of them."""

    def start(seed: int) -> str:
        url = f"{shim.base_url}/generate/custom/model_bfl-flux-1-dev"
        response = requests.post(url, json={**SMALL, "seed": seed}, auth=AUTH, timeout=60)
        return str(response.json()["job"]["jobId"])

    with ThreadPoolExecutor(8) as pool:
        ids = list(pool.map(start, range(count)))
    assert until(lambda: all("endpointJobId" in job(shim, job_id)["metadata"] for job_id in ids))
    return ids


def job(shim: ShimProcess, job_id: str) -> Any:  # noqa: ANN401 - JSON
    """Return a job's record from the shim."""
    return requests.get(f"{shim.base_url}/jobs/{job_id}", auth=AUTH, timeout=60).json()["job"]


@pytest.mark.parametrize("same_port", [False, True], ids=["another port", "the same port"])
def test_a_second_shim_on_a_folder_exits(
    platform: RunPodPlatform, released: threading.Event, tmp_path: Path, *, same_port: bool
) -> None:
    """The second shim exits with status 3, and its error has the first shim's process id.

    All jobs of the first shim succeed, each sent once.
    """
    with ShimProcess(platform.client_env(), tmp_path) as shim:
        ids = start_jobs(shim, 12)
        flags = [f"--port={shim.url.rpartition(':')[2]}"] if same_port else []
        status, output = shim.run_to_exit(*flags)
        released.set()
        assert until(lambda: all(job(shim, job_id)["status"] == "success" for job_id in ids), 60)

        assert status == 3
        assert f"process {shim.process_id} on {socket.gethostname()}" in output
        assert "--data" in output
        assert "Traceback" not in output
        assert platform.submissions == 12
        assert {job(shim, job_id)["metadata"].get("error") for job_id in ids} == {None}
        assert len(requests.get(f"{shim.base_url}/assets", auth=AUTH, timeout=60).json()["assets"]) == 12


def test_a_lock_ends_with_its_process(platform: RunPodPlatform, tmp_path: Path) -> None:
    """After a kill the next shim can use the folder."""
    with ShimProcess(platform.client_env(), tmp_path) as shim:
        shim.kill()
        shim.start()
        assert shim.is_alive


def test_a_taken_port_is_an_error_and_affects_no_job(
    platform: RunPodPlatform, released: threading.Event, tmp_path: Path
) -> None:
    """With a port in use the shim exits with status 3 and changes no job; the next start continues the job."""
    with ShimProcess(platform.client_env(), tmp_path) as shim, socket.create_server(("127.0.0.1", 0)) as listener:
        [job_id] = start_jobs(shim, 1)
        shim.kill()
        before = Store(tmp_path).job(job_id)
        status, output = shim.run_to_exit(f"--port={listener.getsockname()[1]}")

        assert status == 3
        assert "Use a free --port" in output
        assert "Traceback" not in output
        assert Store(tmp_path).job(job_id) == before
        released.set()
        shim.start()
        assert until(lambda: job(shim, job_id)["status"] == "success", 60)
        assert platform.submissions == 1


def test_the_shim_without_http_uses_the_same_lock(tmp_path: Path) -> None:
    """A second ScenarioShim of a folder, in this process or next to a shim process, is a ConfigError.

    Closing the first one releases the folder.
    """
    settings = ShimSettings(tmp_path)
    with ScenarioShim(client_from_env(NO_ENDPOINT), settings):
        client = client_from_env(NO_ENDPOINT)
        with pytest.raises(ConfigError, match="Another server uses the folder"):
            ScenarioShim(client, settings)
        client.close()
    with ShimProcess(NO_ENDPOINT, tmp_path):
        client = client_from_env(NO_ENDPOINT)
        with pytest.raises(ConfigError, match="process"):
            ScenarioShim(client, settings)
        client.close()
    FolderLock(tmp_path).release()


# --- a damaged database


@pytest.fixture
def stopped_shim(platform: RunPodPlatform, tmp_path: Path) -> Iterator[ShimProcess]:
    """A stopped shim whose database has the rows of fifty jobs."""
    with ShimProcess(platform.client_env(), tmp_path) as shim:
        for _ in range(50):
            requests.post(f"{shim.base_url}/generate/custom/flux.1-dev", json=SMALL, auth=AUTH, timeout=60)
        shim.stop()
        with contextlib.closing(sqlite3.connect(tmp_path / "shim.sqlite3")) as database:
            database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        yield shim


@pytest.mark.parametrize(
    ("at", "damage"), [(0, b"no database"), (5000, b"\x00" * 20_000), (None, b"")], ids=["header", "pages", "half"]
)
def test_a_damaged_database_is_reported_with_the_remedies(
    stopped_shim: ShimProcess, tmp_path: Path, at: int | None, damage: bytes
) -> None:
    """If the header or pages are damaged, or half the file is missing, the shim exits with 3, and names the file."""
    file = tmp_path / "shim.sqlite3"
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2] if at is None else data[:at] + damage + data[at + len(damage) :])
    status, output = stopped_shim.run_to_exit()

    assert status == 3
    assert f"database {file} is damaged" in output
    assert "backup" in output
    assert "--port" not in output
    assert "Traceback" not in output


def test_a_row_that_cannot_be_parsed_is_damage(stopped_shim: ShimProcess, tmp_path: Path) -> None:
    """If a job's row has invalid JSON, the shim exits with 3, and names the file and the row."""
    file = tmp_path / "shim.sqlite3"
    with contextlib.closing(sqlite3.connect(file)) as database, database:
        database.execute("UPDATE jobs SET phase = 'sent', asked = '{\"half\": ' WHERE rowid = 3")
        [row_id] = database.execute("SELECT id FROM jobs WHERE rowid = 3").fetchone()
    status, output = stopped_shim.run_to_exit()

    assert status == 3
    assert str(file) in output
    assert row_id in output
    assert "Traceback" not in output
