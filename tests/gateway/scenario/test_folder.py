"""One process a folder: a second one, a taken port and a damaged database end with a sentence and touch no job."""

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

from bench.shim_process import KEY, SECRET, ShimProcess
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
NOWHERE = {"RUNPOD_API_KEY": "x", "RUNPOD_COMFYUI_ENDPOINT_ID": "x"}


def started(shim: ShimProcess, count: int) -> list[str]:
    """Start so many jobs; return their ids once all of them are at the endpoint."""

    def start(seed: int) -> str:
        url = f"{shim.base_url}/generate/custom/model_bfl-flux-1-dev"
        answer = requests.post(url, json={**SMALL, "seed": seed}, auth=AUTH, timeout=30)
        return str(answer.json()["job"]["jobId"])

    with ThreadPoolExecutor(8) as pool:
        ids = list(pool.map(start, range(count)))
    assert until(lambda: all("endpointJobId" in job(shim, job_id)["metadata"] for job_id in ids))
    return ids


def job(shim: ShimProcess, job_id: str) -> Any:  # noqa: ANN401 - JSON
    """Return how a job stands."""
    return requests.get(f"{shim.base_url}/jobs/{job_id}", auth=AUTH, timeout=30).json()["job"]


@pytest.mark.parametrize("same_port", [False, True], ids=["another port", "the same port"])
def test_a_second_shim_on_a_folder_says_who_has_it_and_touches_nothing(
    platform: RunPodPlatform, may_answer: threading.Event, tmp_path: Path, *, same_port: bool
) -> None:
    """It ends with status 3 and the process's id; all jobs of the first one end well, once."""
    with ShimProcess(platform.client_env(), tmp_path) as shim:
        ids = started(shim, 12)
        flags = [f"--port={shim.url.rpartition(':')[2]}"] if same_port else []
        status, told = shim.refused(*flags)
        may_answer.set()
        assert until(lambda: all(job(shim, job_id)["status"] == "success" for job_id in ids), 60)

        assert status == 3
        assert f"process {shim.process_id} on {socket.gethostname()}" in told
        assert "--data" in told
        assert "Traceback" not in told
        assert platform.submissions == 12
        assert {job(shim, job_id)["metadata"].get("error") for job_id in ids} == {None}
        assert len(requests.get(f"{shim.base_url}/assets", auth=AUTH, timeout=30).json()["assets"]) == 12


def test_a_lock_ends_with_its_process(platform: RunPodPlatform, tmp_path: Path) -> None:
    """Killed, it leaves a folder that the next one has at once."""
    with ShimProcess(platform.client_env(), tmp_path) as shim:
        shim.kill()
        shim.start()
        assert shim.is_alive


def test_a_taken_port_is_a_sentence_and_touches_no_job(
    platform: RunPodPlatform, may_answer: threading.Event, tmp_path: Path
) -> None:
    """A start on a port that something else has ends with status 3 before any job of the folder is continued."""
    with ShimProcess(platform.client_env(), tmp_path) as shim, socket.create_server(("127.0.0.1", 0)) as taken:
        [job_id] = started(shim, 1)
        shim.kill()
        before = Store(tmp_path).job(job_id)
        status, told = shim.refused(f"--port={taken.getsockname()[1]}")

        assert status == 3
        assert "Use a free --port" in told
        assert "Traceback" not in told
        assert Store(tmp_path).job(job_id) == before
        may_answer.set()
        shim.start()
        assert until(lambda: job(shim, job_id)["status"] == "success", 60)
        assert platform.submissions == 1


def test_the_shim_without_http_takes_the_same_lock(tmp_path: Path) -> None:
    """Two of them in one process, and one beside a server, are refused; after `close` the folder is free."""
    settings = ShimSettings(tmp_path)
    with ScenarioShim(client_from_env(NOWHERE), settings):
        client = client_from_env(NOWHERE)
        with pytest.raises(ConfigError, match="Another shim uses the folder"):
            ScenarioShim(client, settings)
        client.close()
    with ShimProcess(NOWHERE, tmp_path):
        client = client_from_env(NOWHERE)
        with pytest.raises(ConfigError, match="process"):
            ScenarioShim(client, settings)
        client.close()
    FolderLock(tmp_path).release()


# --- a damaged database


@pytest.fixture
def stopped(platform: RunPodPlatform, tmp_path: Path) -> Iterator[ShimProcess]:
    """A shim that has stored some rows, and was stopped."""
    with ShimProcess(platform.client_env(), tmp_path) as shim:
        for _ in range(50):
            requests.post(f"{shim.base_url}/generate/custom/flux.1-dev", json=SMALL, auth=AUTH, timeout=30)
        shim.stop()
        with contextlib.closing(sqlite3.connect(tmp_path / "shim.sqlite3")) as database:
            database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        yield shim


@pytest.mark.parametrize(
    ("at", "damage"), [(0, b"no database"), (5000, b"\x00" * 20_000), (None, b"")], ids=["header", "pages", "half"]
)
def test_a_damaged_database_says_which_file_and_what_to_do(
    stopped: ShimProcess, tmp_path: Path, at: int | None, damage: bytes
) -> None:
    """A damaged header, damaged pages, the half of a file: status 3, its name and the ways out; no traceback."""
    file = tmp_path / "shim.sqlite3"
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2] if at is None else data[:at] + damage + data[at + len(damage) :])
    status, told = stopped.refused()

    assert status == 3
    assert f"database {file} is damaged" in told
    assert "backup" in told
    assert "--port" not in told
    assert "Traceback" not in told


def test_a_row_that_cannot_be_read_is_damage_too(stopped: ShimProcess, tmp_path: Path) -> None:
    """A job whose text is no JSON any more: the sentence names the file and the row."""
    file = tmp_path / "shim.sqlite3"
    with contextlib.closing(sqlite3.connect(file)) as database, database:
        database.execute("UPDATE jobs SET phase = 'sent', asked = '{\"half\": ' WHERE rowid = 3")
        [row_id] = database.execute("SELECT id FROM jobs WHERE rowid = 3").fetchone()
    status, told = stopped.refused()

    assert status == 3
    assert str(file) in told
    assert row_id in told
    assert "Traceback" not in told
