"""`comfy-client models` and `client.models`: with the worker's own code for such jobs, and with a ComfyUI directly."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from comfy_client.aio import AsyncClient
from comfy_client.client import client_from_env
from comfy_core.comfyui.server import ComfyServer
from comfy_core.errors import JobError
from comfy_core.models.folders import search_paths
from comfy_core.models.store import ModelStore
from simulators.comfyui import Simulator
from simulators.http_server import free_port
from simulators.hugging_face import ModelServer
from simulators.runpod.queue_api import RunPodPlatform
from simulators.runpod.scripted_worker import Body, ScriptedWorker
from tests.cli.conftest import Shell
from tests.core.models.addresses import HF, HF_PATH, LORA, sha256
from tests.worker.addressed import Addressed
from worker.jobs import Control, Worker
from worker.models_task import run_models_task
from worker.settings import Settings

KNIGHT = "loras/knight.safetensors"
TOKEN = "hf_TOPSECRET"  # noqa: S105 - not real


@pytest.fixture
def platform(lora_server: ModelServer, tmp_path: Path) -> Iterator[RunPodPlatform]:
    """A platform whose worker runs jobs of the task `models` with the code of the real worker."""
    folder = tmp_path / "worker" / "models"
    addressed = Addressed(lora_server, folder / ".by-address", folder)
    store = ModelStore(partial(search_paths, (folder,)), folder, addressed.cache)
    bare = Worker(ComfyServer(f"http://127.0.0.1:{free_port()}"), {}, Settings(), store=store)
    worker = addressed.worker(bare)

    def outcome(job: Body) -> Body:
        try:
            return {"output": run_models_task(worker, job, Control())}
        except JobError as error:
            return {"error": error.report.to_json()}

    with RunPodPlatform(long_poll_s=0.1) as platform, ScriptedWorker(platform, outcome):
        yield platform


def test_models_are_downloaded_listed_and_deleted(shell: Shell, platform: RunPodPlatform) -> None:
    """The commands show the file with its size, hash and address, and the free space."""
    downloaded = shell("models", "download", HF, "--folder=loras")
    again = shell("models", "download", HF, "--folder=loras", "--json")
    listed = shell("models")
    deleted = shell("models", "delete", KNIGHT)
    missing = shell("models", "delete", KNIGHT)

    assert downloaded.out == f"downloaded {KNIGHT}  {len(LORA):,} bytes  sha256 {sha256(LORA)}\n"
    assert again.json["downloaded"] is False
    assert again.json["model"]["source"] == HF
    line, end = listed.out.splitlines()
    assert [KNIGHT, "0.1", "MB", sha256(LORA)[:12]] == line.split()[:4]
    assert line.endswith(HF)
    assert end.startswith("1 file, 0.1 MB; ")
    assert end.endswith(" GB are free")
    assert deleted.out.startswith(f"deleted {KNIGHT}")
    assert missing.status == 1
    assert "name is not a model in the folder loras" in missing.err
    assert platform.submissions == 5


def test_the_result_of_an_earlier_job_is_shown(shell: Shell, platform: RunPodPlatform) -> None:
    """`wait` and `result` with the id of such a job show the file or the list, and save nothing."""
    downloaded = shell("models", "download", HF, "--folder=loras", "--json").json
    listed = shell("models", "--json").json
    waited = shell("wait", downloaded["job_id"])
    fetched = shell("result", listed["job_id"])
    as_json = shell("result", listed["job_id"], "--json").json

    assert (waited.status, fetched.status) == (0, 0)
    assert waited.out == f"downloaded {KNIGHT}  {len(LORA):,} bytes  sha256 {sha256(LORA)}\n"
    assert fetched.out.startswith(KNIGHT)
    assert fetched.out.splitlines()[-1].endswith(" GB are free")
    assert as_json == listed
    assert platform.submissions == 2


@pytest.mark.parametrize("way", ["variable", "file"])
def test_a_token_is_sent_and_not_shown(
    shell: Shell, platform: RunPodPlatform, lora_server: ModelServer, tmp_path: Path, way: str
) -> None:
    """The token of a variable or a file reaches the address's host, and is in no output and no log of jobs."""
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    flags = [f"--token-file={tmp_path / 'token'}"] if way == "file" else []
    variables = {"CIVITAI_TOKEN": "c_OTHER", **({"HF_TOKEN": TOKEN} if way == "variable" else {})}
    done = shell("models", "download", HF, "--folder=loras", *flags, **variables)
    [job] = platform.jobs.values()

    assert isinstance(job.input, dict)
    assert job.input["model_tokens"] == {"huggingface.co": TOKEN}
    assert {request.token for request in lora_server.requests(HF_PATH)} == {TOKEN}
    left = [done.out, done.err, *(path.read_bytes().decode("latin-1") for path in (tmp_path / "state").iterdir())]
    assert TOKEN not in "".join(left)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["delete", "knight.safetensors"], "give the file as in the list"),
        (["download", HF], "give an address and a folder"),
        (["download", "knight.safetensors", "--folder=loras"], "is not a valid URL"),
        (["remove"], "invalid choice"),
    ],
)
def test_a_wrong_command_sends_nothing(
    shell: Shell, platform: RunPodPlatform, arguments: list[str], problem: str
) -> None:
    """A command line without a file, a folder or a valid address is refused with the correct form."""
    done = shell("models", *arguments)

    assert done.status == 2
    assert problem in done.err
    assert platform.submissions == 0


def test_an_invalid_request_is_not_sent(shell: Shell, platform: RunPodPlatform) -> None:
    """A path that leaves the folder is refused by the client."""
    done = shell("models", "delete", "loras/../x.safetensors")

    assert done.status == 1
    assert "name must be the path of a file in its folder" in done.err
    assert platform.submissions == 0


def test_a_comfyui_lists_its_models(shell: Shell, tmp_path: Path) -> None:
    """With COMFYUI_ENDPOINT the list has ComfyUI's files and sizes. Without its folder, changes are refused."""
    (tmp_path / "models/loras").mkdir(parents=True)
    (tmp_path / "models/loras/knight.safetensors").write_bytes(LORA)
    with Simulator(base_directory=tmp_path) as simulator:
        listed = shell("models", "list", "loras", "--json", COMFYUI_ENDPOINT=simulator.url).json
        unknown = shell("models", "list", "lora", COMFYUI_ENDPOINT=simulator.url)
        refused = [
            shell("models", *arguments, COMFYUI_ENDPOINT=simulator.url)
            for arguments in (["download", HF, "--folder=loras"], ["delete", KNIGHT])
        ]

    sizes = {each["name"]: each["bytes"] for each in listed["models"]}
    assert sizes["knight.safetensors"] == len(LORA)
    assert 'did you mean "loras"' in unknown.err
    assert [each.status for each in refused] == [1, 1]
    assert all("give its folder: --comfyui-dir DIR" in each.err for each in refused)


def test_the_folder_of_a_comfyui_needs_its_url(shell: Shell, platform: RunPodPlatform, tmp_path: Path) -> None:
    """--comfyui-dir without COMFYUI_ENDPOINT is refused, and nothing is sent to RunPod."""
    done = shell("models", "delete", KNIGHT, f"--comfyui-dir={tmp_path}")

    assert done.status == 2
    assert "COMFYUI_ENDPOINT, which is not set" in done.err
    assert platform.submissions == 0


def test_other_providers_refuse(shell: Shell, platform: RunPodPlatform) -> None:
    """A provider without such jobs refuses before it sends anything."""
    done = shell("models", IMAGE_GENERATION_PROVIDER="runpod")

    assert done.status == 1
    assert "only this project's worker" in done.err
    assert platform.submissions == 0


def test_the_client_manages_models(platform: RunPodPlatform) -> None:
    """Both clients return the list and the files."""
    with client_from_env(platform.client_env(), timeout_s=60) as client:
        added = client.models.download({"hf": HF.removeprefix("hf:")}, "loras", name="styles/a.safetensors")

        async def listed_and_deleted() -> tuple[Any, Any]:
            asynchronous = AsyncClient(client)
            return await asynchronous.models.list("loras"), await asynchronous.models.delete(added.path)

        found, deleted = asyncio.run(listed_and_deleted())

    assert added.path == deleted.path == "loras/styles/a.safetensors"
    assert [model.path for model in found.models] == [added.path]
    assert 0 < found.free_bytes < found.total_bytes
