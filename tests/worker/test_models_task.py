"""Jobs of the task `models`: list, download and delete, and what they refuse."""

from __future__ import annotations

import asyncio
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from comfy_core.error_codes import ErrorCode
from comfy_core.errors import JobError
from comfy_core.models.address_cache import AddressCache
from comfy_core.models.file_locks import is_in_use
from comfy_core.models.folders import search_paths
from comfy_core.models.listing import ModelFile
from comfy_core.models.store import ModelStore
from comfy_core.progress import Progress
from simulators.comfyui import Simulator
from simulators.hugging_face import ModelServer
from simulators.waiting import until
from tests.core.models.addresses import CIVITAI_PATH, HF, HF_PATH, LORA, sha256
from tests.fakes.webhook_receiver import WebhookReceiver, webhook_settings
from tests.worker.addressed import Addressed
from tests.worker.workers import configured
from worker.jobs import Control, Worker, run_job
from worker.models_task import run_models_task

TEXT_TO_IMAGE = {"prompt": "a knight", "steps": 2, "seed": 1, "width": 64, "height": 64}
DOWNLOAD = {"action": "download", "hf": "studio/loras/knight.safetensors@v1", "folder": "loras"}
KNIGHT = {"folder": "loras", "name": "knight.safetensors"}
LISTED = ModelFile("0" * 64, 5, "vae/ae.safetensors", "https://huggingface.co/a/b/resolve/main/ae.safetensors")


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """The folder in which files are added: the one of the simulated ComfyUI."""
    return tmp_path / "models"


@pytest.fixture
def storing(worker: Worker, lora_server: ModelServer, models: Path) -> Worker:
    """A worker that downloads from the server, with an image that has other models."""
    addressed = Addressed(lora_server, models / ".by-address", models)
    image = models.parent / "image"
    write(image / "checkpoints/baked.safetensors")
    store = ModelStore(partial(search_paths, (models, image)), models, addressed.cache, [LISTED])
    return replace(addressed.worker(worker), store=store)


def write(file: Path, content: bytes = b"model") -> Path:
    """Write a file with its folders, and return it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    return file


def task(worker: Worker, request: dict[str, Any], control: Control | None = None) -> dict[str, Any]:
    """Run one job of the task; return its result."""
    return run_models_task(worker, {"id": "job-1", "input": {"task": "models", **request}}, control or Control())


def error_of(worker: Worker, request: dict[str, Any]) -> tuple[ErrorCode, str]:
    """Return code and message of the error with which a job of the task ends."""
    with pytest.raises(JobError) as info:
        task(worker, request)
    return info.value.code, info.value.report.message


def listed(worker: Worker, folder: str | None = None) -> dict[str, dict[str, Any]]:
    """Return the entries of the list by `folder/name`."""
    result = task(worker, {"action": "list", "folder": folder})
    return {f"{each['folder']}/{each['name']}": each for each in result["models"]}


def rendering(worker: Worker, simulator: Simulator, job_input: dict[str, Any]) -> threading.Thread:
    """Return a thread that runs a job, which stops while it samples until `simulator.faults.release`."""
    simulator.faults.hang_sampling(at_step=1)
    thread = threading.Thread(target=run_job, args=(worker, {"id": "render", "input": job_input}, Control()))
    thread.start()
    assert until(lambda: bool(simulator.hanging_step))
    return thread


# --- list


def test_the_list_has_what_comfyui_finds(storing: Worker, models: Path) -> None:
    """The list has size, hash and address of each file, the first of equal names, and the disk; no other files."""
    write(models / "vae/ae.safetensors")
    write(models / "checkpoints/baked.safetensors", b"newer!")
    write(models / "loras/styles/ink.pt")
    write(models / "mine/own.gguf")
    for other in ("loras/notes.txt", "loras/.hidden.safetensors", "custom_nodes/x.pt", "loras/ink.pt.part"):
        write(models / other)
    task(storing, DOWNLOAD)
    result = task(storing, {"action": "list"})
    entries = listed(storing)

    assert entries.keys() == {
        "vae/ae.safetensors",
        "checkpoints/baked.safetensors",
        "loras/styles/ink.pt",
        "mine/own.gguf",
        "loras/knight.safetensors",
    }
    assert entries["checkpoints/baked.safetensors"]["bytes"] == 6
    assert entries["vae/ae.safetensors"]["source"] == LISTED.url
    assert entries["loras/styles/ink.pt"]["sha256"] is None
    knight = entries["loras/knight.safetensors"]
    assert (knight["sha256"], knight["source"], knight["in_use"]) == (sha256(LORA), HF, False)
    assert 0 < result["disk"]["free_bytes"] < result["disk"]["total_bytes"]
    assert result["timings"]["total_s"] > 0
    assert listed(storing, "mine").keys() == {"mine/own.gguf"}


def test_unknown_hashes_are_found_and_kept(storing: Worker, models: Path) -> None:
    """With `hash`, a file of the folder is read once. Files of the image stay unknown, as they cannot have a marker."""
    for name in ("a", "b"):
        write(models / f"loras/{name}.safetensors", name.encode())
    observed: list[Progress] = []
    result = task(storing, {"action": "list", "hash": True}, Control(observe=observed.append))
    task(storing, {"action": "list", "hash": True}, Control(observe=observed.append))

    known = {each["name"]: each["sha256"] for each in result["models"]}
    assert known == {"a.safetensors": sha256(b"a"), "b.safetensors": sha256(b"b"), "baked.safetensors": None}
    assert {each["sha256"] for each in listed(storing, "loras").values()} == {sha256(b"a"), sha256(b"b")}
    assert [(each.done_bytes, each.total_bytes) for each in observed] == [(1, 2), (2, 2)]


def test_a_cancelled_list_keeps_the_hashes_so_far(storing: Worker, models: Path) -> None:
    """A list that is cancelled while it reads the second file ends, and the first file's hash is known."""
    for name in ("a", "b"):
        write(models / f"loras/{name}.safetensors", name.encode())
    cancelled: list[Progress] = []

    def stop_error() -> JobError | None:
        return JobError.because(ErrorCode.CANCELLED) if cancelled else None

    with pytest.raises(JobError, match="cancelled"):
        task(storing, {"action": "list", "hash": True}, Control(stop_error, cancelled.append))

    assert [each["sha256"] for each in listed(storing, "loras").values()] == [sha256(b"a"), None]


def test_the_list_hides_the_hashes_of_the_cache(storing: Worker) -> None:
    """A file of the cache is listed with the first digits of its hash only: the whole hash would give access to it."""
    run_job(storing, {"id": "render", "input": {**TEXT_TO_IMAGE, "loras": [HF]}}, Control())
    result = task(storing, {"action": "list"})

    [cached] = [each for each in result["models"] if each["folder"] == "by-address"]
    assert cached["name"] == sha256(LORA)[:12]
    assert cached["bytes"] == len(LORA)
    assert sha256(LORA) not in str(result)


# --- download


def test_a_download_adds_a_file_under_its_name(storing: Worker, models: Path) -> None:
    """A downloaded LoRA is used by its name, is not in the cache, and is downloaded once."""
    without = run_job(storing, {"id": "a", "input": TEXT_TO_IMAGE}, Control())
    first, second = task(storing, DOWNLOAD), task(storing, DOWNLOAD)
    with_lora = run_job(storing, {"id": "b", "input": {**TEXT_TO_IMAGE, "loras": ["knight.safetensors"]}}, Control())

    assert (first["downloaded"], second["downloaded"]) == (True, False)
    assert first["model"]["sha256"] == second["model"]["sha256"] == sha256(LORA)
    assert with_lora["images"][0]["sha256"] != without["images"][0]["sha256"]
    assert listed(storing, "by-address") == {}
    assert (models / "loras/knight.safetensors").read_bytes() == LORA


def test_another_file_of_the_name_is_replaced_only_with_force(storing: Worker, models: Path) -> None:
    """A file of the name that is not the wanted one is kept and named, and replaced with `force`."""
    write(models / "loras/knight.safetensors", b"other")
    code, message = error_of(storing, DOWNLOAD)
    assert code is ErrorCode.INVALID_INPUT
    assert "exists already" in message
    assert (models / "loras/knight.safetensors").read_bytes() == b"other"

    task(storing, {**DOWNLOAD, "force": True})
    assert (models / "loras/knight.safetensors").read_bytes() == LORA


def test_a_download_has_progress_and_a_name_of_its_own(storing: Worker, lora_server: ModelServer, models: Path) -> None:
    """Progress has the stage `model` and bytes. `name` may have a subfolder; a file of Civitai is named by number."""
    seen: list[Progress] = []
    hold = lora_server.hold(CIVITAI_PATH, after=50_000)
    request = {"action": "download", "civitai": 123, "folder": "loras", "name": "styles/ink.safetensors"}
    thread = threading.Thread(target=task, args=(storing, request, Control(observe=seen.append)))
    thread.start()
    assert until(lambda: any(each.done_bytes == 50_000 for each in seen))
    hold.release()
    thread.join()

    assert (seen[0].stage, seen[0].total_bytes) == ("model", len(LORA))
    assert (models / "loras/styles/ink.safetensors").is_file()
    assert task(storing, {"action": "download", "civitai": 123, "folder": "loras"})["model"]["name"] == (
        "civitai-123.safetensors"
    )


def test_a_file_that_is_no_model_is_not_added(storing: Worker, lora_server: ModelServer, models: Path) -> None:
    """A download that is not a safetensors file ends with `invalid_model`, and nothing of it is kept."""
    lora_server.put(HF_PATH, b"PK\x03\x04" + b"x" * 1000)
    assert error_of(storing, DOWNLOAD)[0] is ErrorCode.INVALID_MODEL
    assert not list((models / "loras").glob("*"))
    assert not list((models / ".by-address").glob("*.part"))


def test_a_cancelled_download_is_resumed(storing: Worker, lora_server: ModelServer) -> None:
    """A cancelled download ends at once, and the next one requests only the rest."""
    hold = lora_server.hold(HF_PATH, after=50_000)
    cancelled = threading.Event()
    control = Control(stop_error=lambda: JobError.because(ErrorCode.CANCELLED) if cancelled.is_set() else None)
    with ThreadPoolExecutor(1) as threads:
        future = threads.submit(task, storing, DOWNLOAD, control)
        assert hold.reached.wait(20)
        cancelled.set()
        with pytest.raises(JobError, match="cancelled"):
            future.result(20)
    hold.release()
    result = task(storing, DOWNLOAD)

    assert result["model"]["sha256"] == sha256(LORA)
    assert lora_server.requests(HF_PATH)[-1].offset > 0


def test_of_two_downloads_to_one_name_the_second_waits(storing: Worker, lora_server: ModelServer, models: Path) -> None:
    """Two workers on one volume that get the same request download the file once. A cancelled one stops waiting."""
    hold = lora_server.hold(HF_PATH, after=50_000)
    locked = models / ".by-address"
    cancelled = Control(lambda: JobError.because(ErrorCode.CANCELLED))
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(task, storing, DOWNLOAD)
        assert until(lambda: list(locked.glob("*.lock")))
        with pytest.raises(JobError, match="cancelled"):
            task(storing, DOWNLOAD, cancelled)
        second = threads.submit(task, storing, DOWNLOAD)
        assert hold.reached.wait(60)
        hold.release()
        results = [first.result(60), second.result(60)]

    assert [result["downloaded"] for result in results] == [True, False]
    assert {result["model"]["sha256"] for result in results} == {sha256(LORA)}
    assert list(locked.glob("*.lock")) == []


def test_a_cache_on_another_disk_is_copied_from(storing: Worker, models: Path) -> None:
    """Without hard links the file is copied, and its hash stays known."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as other_disk:
        fetcher = storing.models
        assert fetcher is not None
        cache = AddressCache(Path(other_disk) / "cache", 10**9)
        result = task(replace(storing, models=replace(fetcher, cache=cache)), DOWNLOAD)

    assert result["model"]["sha256"] == sha256(LORA)
    assert (models / "loras/knight.safetensors").read_bytes() == LORA
    assert listed(storing)["loras/knight.safetensors"]["sha256"] == sha256(LORA)


# --- delete


def test_a_file_is_deleted_with_its_companions(storing: Worker, models: Path) -> None:
    """A deleted file is gone for ComfyUI and from the list, with its marker and its address."""
    task(storing, DOWNLOAD)
    result = task(storing, {"action": "delete", **KNIGHT})

    assert result["model"]["bytes"] == len(LORA)
    assert list((models / "loras").iterdir()) == []
    assert "knight.safetensors" not in storing.server.models("loras")


def test_a_file_of_models_txt_is_deleted_only_with_force(storing: Worker, models: Path) -> None:
    """A file that the shipped workflows load needs `force`."""
    file = write(models / "vae/ae.safetensors")
    request = {"action": "delete", "folder": "vae", "name": "ae.safetensors"}
    assert "models.txt" in error_of(storing, request)[1]
    assert file.exists()
    task(storing, {**request, "force": True})
    assert not file.exists()


@pytest.mark.parametrize("lora", ["knight.safetensors", HF])
def test_a_file_that_a_running_job_loads_is_kept(storing: Worker, simulator: Simulator, lora: str) -> None:
    """While a job uses a file by name or by address, it is listed as in use, and a delete is refused."""
    task(storing, DOWNLOAD)
    job = rendering(storing, simulator, {**TEXT_TO_IMAGE, "loras": [lora]})
    try:
        [used] = [each for each in listed(storing).values() if each["in_use"]]
        request = {"action": "delete", "folder": used["folder"], "name": used["name"], "force": True}
        code, message = error_of(storing, request)
    finally:
        simulator.faults.release()
        job.join()

    assert code is ErrorCode.MODEL_IN_USE
    assert used["name"] in message
    task(storing, request)
    assert f"{used['folder']}/{used['name']}" not in listed(storing)


def test_a_graph_holds_no_file_outside_the_folders(storing: Worker, models: Path) -> None:
    """A graph that names another file, by an absolute path or with `..`, does not lock it."""
    outside = write(models.parent / "secret.safetensors")
    inside = write(models / "loras/knight.safetensors")
    names = [str(outside), "../../secret.safetensors", "knight.safetensors"]
    graph = {str(n): {"class_type": "LoraLoader", "inputs": {"lora_name": name}} for n, name in enumerate(names)}
    assert storing.store is not None
    with storing.store.held([graph]):
        assert (is_in_use(outside), is_in_use(inside)) == (False, True)


def test_of_two_deletes_at_once_one_succeeds(storing: Worker, models: Path) -> None:
    """Two deletes of one file end: one succeeds, and the other says that the file does not exist."""
    for _ in range(20):
        write(models / "loras/knight.safetensors")

        def outcome(_number: int) -> str:
            try:
                task(storing, {"action": "delete", **KNIGHT})
            except JobError as error:
                return error.code.value
            return "deleted"

        with ThreadPoolExecutor(2) as threads:
            assert sorted(threads.map(outcome, range(2))) == ["deleted", "invalid_input"]


@pytest.mark.parametrize(
    "place",
    [
        {"name": "../../secret.safetensors"},
        {"name": "/etc/passwd"},
        {"name": "a/../../secret.safetensors"},
        {"name": "..\\secret.safetensors"},
        {"name": ".by-address/x.safetensors"},
        {"folder": ".."},
        {"folder": "../image/checkpoints"},
        {"folder": ".by-address"},
        {"folder": "custom_nodes"},
        {"folder": "unet"},
        {"name": "by-address/x.safetensors"},
        {"name": "link.safetensors"},
        {"name": "outside/secret.safetensors"},
        {"name": "notes.txt"},
        {"folder": "checkpoints", "name": "baked.safetensors"},
    ],
)
@pytest.mark.parametrize("action", ["download", "delete"])
def test_nothing_outside_the_folder_is_written_or_deleted(
    storing: Worker, models: Path, place: dict[str, str], action: str
) -> None:
    """A path that leaves the models folder, a link out of it, and a file of the image are refused and unchanged.

    A download to the name of a file of the image writes to the models folder.
    """
    secret = write(models.parent / "secret.safetensors")
    notes = write(models / "loras/notes.txt")
    write(models / "unet/knight.safetensors")
    write(models / "loras/by-address/x.safetensors")
    (models / "loras/link.safetensors").symlink_to(secret)
    (models / "loras/outside").symlink_to(models.parent)
    request = {**({"hf": DOWNLOAD["hf"]} if action == "download" else {}), **KNIGHT, **place, "action": action}
    is_new_name = action == "download" and place.get("folder") == "checkpoints"
    if is_new_name:
        assert task(storing, {**request, "force": True})["downloaded"] is True
        assert (models / "checkpoints/baked.safetensors").read_bytes() == LORA
    else:
        assert error_of(storing, {**request, "force": True})[0] is ErrorCode.INVALID_INPUT

    assert secret.read_bytes() == notes.read_bytes() == b"model"
    assert (models.parent / "image/checkpoints/baked.safetensors").read_bytes() == b"model"
    assert (models / "unet/knight.safetensors").exists()
    assert (models / "loras/by-address/x.safetensors").read_bytes() == b"model"


# --- requests


@pytest.mark.parametrize(
    ("request_", "path", "problem"),
    [
        ({}, "action", "is missing"),
        ({"action": "remove"}, "action", "must be one of"),
        ({"action": "list", "foldr": "loras"}, "foldr", 'did you mean "folder"'),
        ({"action": "list", "folder": "lora"}, "folder", 'did you mean "loras"'),
        ({"action": "list", "force": True}, "force", "is not for the action list"),
        ({**DOWNLOAD, "hash": True}, "hash", "is not for the action download"),
        ({"action": "delete", "folder": "loras"}, "name", "is missing"),
        ({"action": "download", "folder": "loras"}, "url", "exactly one of hf, civitai and url"),
        ({**DOWNLOAD, "civitai": 1}, "civitai", "one address too many"),
        ({**DOWNLOAD, "folder": "lora"}, "folder", 'did you mean "loras"'),
        ({**DOWNLOAD, "name": "a.ckpt"}, "name", "must end in .safetensors"),
        ({**DOWNLOAD, "sha256": "12"}, "hf", "64 hexadecimal digits"),
        ({"action": "download", "url": "https://example.com/x.safetensors", "folder": "loras"}, "url", "MODEL_HOSTS"),
        ({"action": "download", "url": "https://127.0.0.1/x", "folder": "loras"}, "name", "does not end in the name"),
    ],
)
def test_an_invalid_request_names_its_faults(
    storing: Worker, lora_server: ModelServer, request_: dict[str, Any], path: str, problem: str
) -> None:
    """A fault has the path of its key and the remedy, and nothing is requested."""
    code, message = error_of(storing, request_)

    assert code is ErrorCode.INVALID_INPUT
    assert f"{path}: " in message
    assert problem in message
    assert lora_server.received == []


def test_a_webhook_gets_the_result(storing: Worker) -> None:
    """A webhook is checked as that of any job, and its event has the downloaded model."""
    with WebhookReceiver() as receiver:
        request = {**DOWNLOAD, "webhook": {"url": receiver.url}}
        hooked = configured(storing, webhooks=webhook_settings(receiver.url))
        events = hooked.webhooks.events_of({"id": "job-1", "input": {"task": "models", **request}})
        code, message = error_of(storing, request)
        asyncio.run(events.end(task(hooked, request)))
        [received] = receiver.received

    assert code is ErrorCode.INVALID_INPUT
    assert "webhook.secret_id: " in message
    assert received.event["data"]["result"]["model"]["name"] == KNIGHT["name"]


def test_a_worker_may_allow_only_lists(storing: Worker) -> None:
    """With WORKER_ALLOW_MODEL_CHANGES=false, downloads and deletions are refused."""
    readonly = configured(storing, allow_model_changes=False)
    for request in (DOWNLOAD, {"action": "delete", **KNIGHT}):
        assert "WORKER_ALLOW_MODEL_CHANGES" in error_of(readonly, request)[1]
    assert listed(readonly)


def test_a_token_is_in_no_result_and_no_file(storing: Worker, lora_server: ModelServer, models: Path) -> None:
    """The token of a download is sent to its host, and is in no result and no file."""
    result = task(storing, {**DOWNLOAD, "model_tokens": {"huggingface.co": "hf_TOPSECRET"}})
    left = [str(result), *(path.read_bytes().decode("latin-1") for path in models.rglob("*") if path.is_file())]

    assert {request.token for request in lora_server.requests(HF_PATH)} == {"hf_TOPSECRET"}
    assert "hf_TOPSECRET" not in "".join(left)
    assert (models / "loras/knight.safetensors").exists()
