"""The routes of the web page without HTTP: changes, run again, delete, and the rights of administrators."""

from __future__ import annotations

import asyncio
import base64
import sqlite3
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from comfy_client.client import client_from_env
from comfy_client.gateway.scenario.auth import owner_of
from comfy_client.gateway.scenario.blobs import make_blobs
from comfy_client.gateway.scenario.errors import ShimError
from comfy_client.gateway.scenario.service import ShimService
from comfy_client.gateway.scenario.settings import ShimSettings
from comfy_core.errors import ConfigError
from simulators.runpod.queue_api import RunPodPlatform
from simulators.runpod.scripted_worker import ScriptedWorker, image_result, png
from tests.gateway.scenario.page.stored import BASE_MODEL

ADMIN, CALLER, TOKEN = "admin", "caller", "a-secret-token"
ADMIN_ID, CALLER_ID, TOKEN_ID = map(owner_of, (ADMIN, CALLER, TOKEN))
Work = Callable[[ShimService], Awaitable[None]]


@pytest.fixture
def platform() -> Iterator[RunPodPlatform]:
    """An endpoint whose worker returns a small image for each job."""
    with RunPodPlatform(long_poll_s=0.5) as platform, ScriptedWorker(platform, image_result, threads=2):
        yield platform


@pytest.fixture
def use(platform: RunPodPlatform, tmp_path: Path) -> Callable[[Work], None]:
    """Return a function that runs a coroutine with a shim of an administrator, a caller and a token."""
    settings = ShimSettings(tmp_path, accounts={ADMIN: "x", CALLER: "y"}, tokens=(TOKEN,), admin_keys=(ADMIN,))

    async def run(work: Work) -> None:
        with client_from_env(platform.client_env()) as client:
            service = ShimService(
                client, settings, make_blobs(tmp_path, None), url_of=lambda each: each, part_of=lambda *_: ("", 0.0)
            )
            async with service:
                await work(service)

    return lambda work: asyncio.run(run(work))


async def made(shim: ShimService, owner: str = CALLER_ID, **fields: object) -> str:
    """Start a job, wait until it has ended, and return its id."""
    body = {"prompt": "a knight", "width": 64, "height": 64, "seed": "7", **fields}
    job_id = (await shim.generate(owner, "custom", body, model_id=BASE_MODEL))["job"]["jobId"]
    await ended(shim, owner, job_id)
    return str(job_id)


async def ended(shim: ShimService, owner: str, job_id: str) -> dict[str, Any]:
    """Return a job when it has ended, which the changes show."""
    token = (await shim.page.list(owner, {"pageSize": "1"}))["changeToken"]
    async with asyncio.timeout(20):
        while (job := (await shim.job(owner, job_id))["job"])["status"] != "success":
            changes = await shim.page.changes(owner, {"since": token})
            token = changes["changeToken"]
            await asyncio.sleep(0.01)
    return dict(job)


async def listed(shim: ShimService, owner: str) -> list[str]:
    """Return the ids of the jobs on a caller's page."""
    return [each["job"]["jobId"] for each in (await shim.page.list(owner, {}))["jobs"]]


def test_the_changes_have_each_job_that_changed(use: Callable[[Work], None]) -> None:
    """After a list, the changes have a new job until its end, and whether it matches the filter; then nothing."""

    async def work(shim: ShimService) -> None:
        token = (await shim.page.list(CALLER_ID, {}))["changeToken"]
        job_id = await made(shim)
        changes = await shim.page.changes(CALLER_ID, {"since": token, "search": "knight"})
        filtered = await shim.page.changes(CALLER_ID, {"since": token, "status": "failure"})
        hidden = await shim.page.changes(TOKEN_ID, {"since": token})
        later = await shim.page.changes(CALLER_ID, {"since": changes["changeToken"]})

        [job] = changes["jobs"]
        assert (job["job"]["jobId"], job["job"]["status"], job["prompt"]) == (job_id, "success", "a knight")
        assert job["wholeSeconds"] >= 0
        assert [asset["metadata"]["seed"] for asset in job["assets"]] == ["7"]
        assert changes["matching"] == [job_id]
        assert ([each["job"]["jobId"] for each in filtered["jobs"]], filtered["matching"]) == ([job_id], [])
        assert hidden["jobs"] == later["jobs"] == []
        assert (later["isComplete"], later["hasMore"]) == (True, False)
        assert not (await shim.page.changes(CALLER_ID, {"since": "another-process.1"}))["isComplete"]

    use(work)


@pytest.mark.parametrize("seed", ["same", "new"])
def test_a_job_runs_again(use: Callable[[Work], None], seed: str) -> None:
    """A new job has the inputs of the first one, with its seed or another, and its start image."""

    async def work(shim: ShimService) -> None:
        start = await shim.assets.add(CALLER_ID, png(64, 1), "start.png")
        first = await made(shim, image=start.id, strength=0.5, numInferenceSteps=9)
        again = (await shim.page.run_again(CALLER_ID, first, {"seed": seed}))["job"]["jobId"]
        await ended(shim, CALLER_ID, again)
        inputs = [(await shim.job(CALLER_ID, each))["job"]["metadata"]["input"] for each in (first, again)]

        assert again != first
        assert (inputs[0]["seed"] == inputs[1]["seed"]) is (seed == "same")
        assert {**inputs[0], "seed": ""} == {**inputs[1], "seed": ""}
        assert inputs[1]["image"] == start.id

    use(work)


def test_an_image_of_the_call_runs_again_only_if_it_is_an_asset(
    use: Callable[[Work], None], platform: RunPodPlatform
) -> None:
    """The shim deletes an image of a call with its job: the error has the remedy. With an equal asset the job runs."""

    async def work(shim: ShimService) -> None:
        image = base64.b64encode(png(64, 1)).decode()
        first = await made(shim, image=image, strength=0.5)
        with pytest.raises(ShimError, match="Upload it"):
            await shim.page.run_again(CALLER_ID, first, {"seed": "same"})
        await shim.assets.add(CALLER_ID, png(64, 1), "start.png")
        again = (await shim.page.run_again(CALLER_ID, first, {"seed": "same"}))["job"]["jobId"]
        await ended(shim, CALLER_ID, again)

    use(work)
    sent = [job.input for job in platform.jobs.values()]
    assert len(sent) == 2
    assert sent[0] == sent[1]


def test_a_deleted_job_is_gone_and_its_cost_stays(use: Callable[[Work], None], tmp_path: Path) -> None:
    """No list, search or request by id has it, the changes report it, and the table of jobs has none of its text."""

    async def work(shim: ShimService) -> None:
        job_id = await made(shim, prompt="a secret plan")
        before = await shim.overview.read(CALLER_ID)
        token = (await shim.page.list(CALLER_ID, {}))["changeToken"]
        await shim.page.delete(CALLER_ID, job_id)

        assert (await shim.page.changes(CALLER_ID, {"since": token}))["deleted"] == [job_id]
        assert await listed(shim, CALLER_ID) == []
        assert (await shim.jobs(CALLER_ID, {}))["jobs"] == []
        assert before["cost"]["jobs"] == 1
        assert (await shim.overview.read(CALLER_ID))["cost"] == before["cost"]
        for call in (shim.job(CALLER_ID, job_id), shim.page.delete(CALLER_ID, job_id)):
            with pytest.raises(ShimError) as info:
                await call
            assert info.value.status == 404

    use(work)
    with closing(sqlite3.connect(tmp_path / "shim.sqlite3")) as database:
        [row] = database.execute("SELECT * FROM jobs")
    assert "secret" not in str(row)


def test_an_unfinished_job_is_not_deleted(use: Callable[[Work], None], platform: RunPodPlatform) -> None:
    """The error says to cancel it first."""
    platform.faults.cold_start(60)

    async def work(shim: ShimService) -> None:
        started = await shim.generate(CALLER_ID, "custom", {"prompt": "a knight"}, model_id=BASE_MODEL)
        job_id = started["job"]["jobId"]
        with pytest.raises(ShimError, match="Cancel it first"):
            await shim.page.delete(CALLER_ID, job_id)
        await shim.act(CALLER_ID, job_id, {"action": "cancel"})

    use(work)
    platform.faults.clear()


def test_a_caller_sees_its_own_jobs_and_an_administrator_all(use: Callable[[Work], None]) -> None:
    """The overview lists the callers that each of them sees. The name of a token does not contain the token."""

    async def work(shim: ShimService) -> None:
        of_caller, of_token = await made(shim), await made(shim, TOKEN_ID)
        names = {}
        for owner in (ADMIN_ID, CALLER_ID):
            overview = await shim.overview.read(owner)
            names[owner] = [each["name"] for each in overview["callers"]]
            assert overview["cost"]["jobs"] == (2 if owner == ADMIN_ID else 1)

        assert await listed(shim, ADMIN_ID) == [of_token, of_caller]
        assert await listed(shim, CALLER_ID) == [of_caller]
        assert names[CALLER_ID] == [CALLER]
        assert set(names[ADMIN_ID]) == {ADMIN, CALLER, f"token {TOKEN_ID.removeprefix('proj_')[:6]}"}

    use(work)


def test_only_an_administrator_acts_for_another_caller(use: Callable[[Work], None]) -> None:
    """The header that names another caller is refused (403) from other callers, and for anything but a caller."""

    async def work(shim: ShimService) -> None:
        assert shim.callers.acting_for(ADMIN_ID, CALLER_ID) == CALLER_ID
        assert shim.callers.acting_for(CALLER_ID, CALLER_ID) == shim.callers.acting_for(CALLER_ID, "") == CALLER_ID
        for owner, other in ((CALLER_ID, ADMIN_ID), (TOKEN_ID, CALLER_ID), (ADMIN_ID, "scenario"), (ADMIN_ID, "x\n")):
            with pytest.raises(ShimError) as info:
                shim.callers.acting_for(owner, other)
            assert info.value.status == 403

    use(work)


def test_an_administrator_must_have_a_key() -> None:
    """A key of SCENARIO_SHIM_ADMIN_KEYS that is no key of the shim is refused, without repeating it."""
    environment = {"SCENARIO_SHIM_ACCOUNTS": "a:b", "SCENARIO_SHIM_TOKENS": "t", "SCENARIO_SHIM_ADMIN_KEYS": "a,wrong"}
    with pytest.raises(ConfigError, match="SCENARIO_SHIM_ADMIN_KEYS") as info:
        ShimSettings.from_env(environment)

    assert "wrong" not in str(info.value)
    assert ShimSettings.from_env({**environment, "SCENARIO_SHIM_ADMIN_KEYS": "a,t"}).admin_keys == ("a", "t")
