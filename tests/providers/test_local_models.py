"""`client.models` with a ComfyUI on this machine: its folders, the checks that they are its own, and the downloads."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from comfy_client.aio import AsyncClient
from comfy_client.client import Client, client_from_env
from comfy_client.job import Downloading, Event
from comfy_client.models import ModelEntry, ModelList
from comfy_client.providers.direct import DirectProvider
from comfy_core.error_codes import ErrorCode
from comfy_core.errors import ConfigError, JobError
from comfy_core.workflows import default_directory, load_workflows
from simulators.comfyui import Simulator
from simulators.comfyui.files import Folders
from simulators.hugging_face import ModelServer
from simulators.waiting import until
from tests.core.models.addresses import CIVITAI_PATH, HF, HF_PATH, LORA, local_hosts, safetensors, sha256

KNIGHT = "loras/knight.safetensors"
TOKEN = "hf_TOPSECRET"  # noqa: S105 - not real


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """The base folder of a ComfyUI."""
    (tmp_path / "base/models/loras").mkdir(parents=True)
    return tmp_path / "base"


@pytest.fixture
def simulator(base: Path) -> Iterator[Simulator]:
    """A simulated ComfyUI with that folder."""
    with Simulator(base_directory=base) as simulator:
        yield simulator


def client_of(simulator: Simulator, lora_server: ModelServer, directory: Path) -> Client:
    """Return a client of the ComfyUI that downloads from the server to `directory`."""
    workflows = load_workflows(default_directory())
    hosts = local_hosts(lora_server.server_port)
    return Client(DirectProvider(simulator.url, workflows, directory=directory, model_hosts=lambda: hosts))


@pytest.fixture
def client(simulator: Simulator, lora_server: ModelServer, base: Path) -> Iterator[Client]:
    """A client of the ComfyUI."""
    with client_of(simulator, lora_server, base) as client:
        yield client


def write(file: Path, content: bytes = LORA) -> Path:
    """Write a file with its folders, and return it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    return file


def by_path(found: ModelList) -> dict[str, ModelEntry]:
    """Return the models by `folder/name`."""
    return {model.path: model for model in found.models}


def test_a_file_is_downloaded_used_and_deleted(client: Client, simulator: Simulator, base: Path) -> None:
    """A downloaded file is listed with hash and address, a job uses it by name, and a delete leaves nothing of it."""
    added = client.models.download(HF, "loras")
    again = client.models.download(HF, "loras")
    listed = client.models.list("loras")
    image = client.txt2img("a knight", width=64, height=64, steps=1, loras=["knight.safetensors"]).image
    deleted = client.models.delete(KNIGHT)

    assert added.path == KNIGHT
    assert (added.bytes, added.sha256, added.source) == (len(LORA), sha256(LORA), HF)
    assert (again.path, again.sha256) == (added.path, added.sha256)
    assert by_path(listed)[KNIGHT].sha256 == sha256(LORA)
    assert by_path(listed)[KNIGHT].in_use is False
    assert 0 < (listed.free_bytes or 0) < (listed.total_bytes or 0)
    assert image.bytes
    assert deleted.path == KNIGHT
    assert list((base / "models/loras").iterdir()) == []
    assert KNIGHT not in by_path(client.models.list())
    assert "knight.safetensors" not in simulator.listed_models("loras")


def test_the_list_has_all_files_that_comfyui_finds(lora_server: ModelServer, base: Path, tmp_path: Path) -> None:
    """Files of extra_model_paths.yaml are listed. A download goes to the base folder; only its files are deleted."""
    shared = write(tmp_path / "shared/Lora/ink.safetensors")
    own = write(base / "models/unet/own.safetensors")
    folders = Folders(base, extra_models={"loras": (shared.parent,)})
    with Simulator(base_directory=folders) as simulator, client_of(simulator, lora_server, base) as client:
        added = client.models.download(HF, "loras", name="styles/knight.safetensors")
        found = by_path(client.models.list())
        with pytest.raises(JobError, match="only files of") as refused:
            client.models.delete("loras/ink.safetensors")
        client.models.delete("diffusion_models/own.safetensors")

    assert found["loras/ink.safetensors"].bytes == len(LORA)
    assert added.path in found
    assert (base / "models" / added.path).read_bytes() == LORA
    assert str(shared) in str(refused.value)
    assert shared.exists()
    assert not own.exists()


def test_a_list_can_hash_the_files(client: Client, base: Path) -> None:
    """`with_hashes` reads a file that was copied to the folder by hand; later lists know its hash."""
    write(base / "models/loras/own.safetensors")
    before = by_path(client.models.list("loras"))["loras/own.safetensors"]
    hashed = by_path(client.models.list("loras", with_hashes=True))["loras/own.safetensors"]
    after = by_path(client.models.list())["loras/own.safetensors"]

    assert (before.sha256, hashed.sha256, after.sha256) == (None, sha256(LORA), sha256(LORA))


@pytest.mark.parametrize("directory", ["", "models"])
def test_the_models_folder_itself_may_be_given(
    simulator: Simulator, lora_server: ModelServer, base: Path, tmp_path: Path, directory: str
) -> None:
    """The base folder and the models folder are recognised, also through a link."""
    link = tmp_path / "link"
    link.symlink_to(base / directory)
    with client_of(simulator, lora_server, link) as client:
        client.models.download(HF, "loras")

    assert (base / "models" / KNIGHT).read_bytes() == LORA
    assert "knight.safetensors" in simulator.listed_models("loras")


@pytest.mark.parametrize("is_old", [False, True])
def test_a_comfyui_in_a_container_is_recognised_by_its_list(
    lora_server: ModelServer, base: Path, *, is_old: bool
) -> None:
    """If ComfyUI's paths are those of a container, or not reported, its list of files decides whose folder it is."""
    write(base / "models/vae/own.safetensors")
    folders = Folders(base, base_in_container=None if is_old else Path("/comfyui-of-a-container"))
    with Simulator(base_directory=folders) as simulator, client_of(simulator, lora_server, base) as client:
        if is_old:
            simulator.faults.lack_experiments()
        client.models.download(HF, "loras")
        client.models.delete("vae/own.safetensors")

        assert by_path(client.models.list())[KNIGHT].sha256 == sha256(LORA)
    assert not (base / "models/vae/own.safetensors").exists()


def test_a_folder_that_comfyui_does_not_read_from_the_base_is_refused(
    lora_server: ModelServer, base: Path, tmp_path: Path
) -> None:
    """Another folder's files are not added to the base folder: the error has the places that ComfyUI reads."""
    shared = tmp_path / "shared/ink"
    shared.mkdir(parents=True)
    folders = Folders(base, extra_models={"inks": (shared,)})
    with (
        Simulator(base_directory=folders) as simulator,
        client_of(simulator, lora_server, base) as client,
        pytest.raises(JobError, match="is inks, which ComfyUI reads from") as info,
    ):
        client.models.download(HF, "inks")

    assert str(shared) in str(info.value)
    assert lora_server.received == []


def test_a_folder_that_cannot_be_written_is_one_clear_error(client: Client, base: Path) -> None:
    """The error names the folder, and can be sent again after it was made writable."""
    (base / "models/.by-address").touch()
    with pytest.raises(JobError, match=r"\.by-address cannot be written") as info:
        client.models.download(HF, "loras")

    assert info.value.code is ErrorCode.MODEL_DOWNLOAD_FAILED


@pytest.mark.parametrize("in_container", [False, True])
def test_the_folder_of_another_comfyui_is_refused(
    lora_server: ModelServer, base: Path, tmp_path: Path, *, in_container: bool
) -> None:
    """A folder whose files this ComfyUI does not list is neither listed nor changed."""
    other = write(tmp_path / "other/models" / KNIGHT)
    folders = Folders(base, base_in_container=Path("/comfyui-of-a-container") if in_container else None)
    with (
        Simulator(base_directory=folders) as simulator,
        client_of(simulator, lora_server, tmp_path / "other") as client,
    ):
        for call in (
            lambda: client.models.download(HF, "loras", name="new.safetensors"),
            lambda: client.models.delete(KNIGHT),
            client.models.list,
        ):
            with pytest.raises(ConfigError, match="COMFYUI_DIR") as info:
                call()
            assert ("does not list" if in_container else str(base)) in str(info.value)

    assert list(other.parent.iterdir()) == [other]
    assert lora_server.received == []


def test_a_file_that_comfyui_does_not_list_is_deleted_again(
    lora_server: ModelServer, base: Path, tmp_path: Path
) -> None:
    """The empty folder of another ComfyUI is noticed after the download: nothing of it stays."""
    (tmp_path / "empty/models/loras").mkdir(parents=True)
    folders = Folders(base, base_in_container=Path("/comfyui-of-a-container"))
    with (
        Simulator(base_directory=folders) as simulator,
        client_of(simulator, lora_server, tmp_path / "empty") as client,
        pytest.raises(JobError, match="does not list it, so it was deleted again") as info,
    ):
        client.models.download(HF, "loras")

    assert info.value.code is ErrorCode.MISCONFIGURED
    assert list((tmp_path / "empty/models/loras").iterdir()) == []


@pytest.mark.parametrize("is_old", [False, True])
@pytest.mark.parametrize("directory", ["nothing", "file"])
def test_a_directory_without_models_is_refused(
    simulator: Simulator, lora_server: ModelServer, tmp_path: Path, directory: str, *, is_old: bool
) -> None:
    """A folder that does not exist, or is a file, is an error that names the variable and the problem."""
    (tmp_path / "file").touch()
    if is_old:
        simulator.faults.lack_experiments()
    with client_of(simulator, lora_server, tmp_path / directory) as client, pytest.raises(ConfigError) as info:
        client.models.list()

    assert f"COMFYUI_DIR (--comfyui-dir) {tmp_path / directory}: " in str(info.value)
    assert ("it has no folder `models`" if is_old else "reads its models elsewhere") in str(info.value)


def test_a_file_of_a_queued_prompt_is_kept(client: Client, simulator: Simulator, base: Path) -> None:
    """While a prompt in ComfyUI's queue names a file, it is listed as in use, and neither deleted nor replaced."""
    write(base / "models" / KNIGHT, safetensors(seed=2))
    simulator.faults.hang_sampling(at_step=1)
    job = client.submit(prompt="a knight", width=64, height=64, steps=1, loras=["knight.safetensors"])
    assert until(lambda: simulator.hanging_step)
    used = by_path(client.models.list("loras"))[KNIGHT]
    with pytest.raises(JobError) as deleted:
        client.models.delete(KNIGHT)
    with pytest.raises(JobError) as replaced:
        client.models.download(HF, "loras", force=True)
    simulator.faults.release()
    job.wait()

    assert used.in_use is True
    assert deleted.value.code is replaced.value.code is ErrorCode.MODEL_IN_USE
    assert client.models.download(HF, "loras", force=True).sha256 == sha256(LORA)


@pytest.mark.parametrize(
    ("address", "code", "problem"),
    [
        ({"url": "https://example.com/knight.safetensors"}, ErrorCode.INVALID_INPUT, "not in COMFYUI_MODEL_HOSTS"),
        ({"hf": "studio/loras/pickle.safetensors@v1"}, ErrorCode.INVALID_MODEL, "is a pickle"),
        ({"hf": "studio/loras/gone.safetensors@v1"}, ErrorCode.INVALID_MODEL, "returned 404"),
        ({"hf": HF.removeprefix("hf:"), "sha256": "0" * 64}, ErrorCode.INVALID_MODEL, "wrong bytes"),
    ],
)
def test_a_wrong_file_is_refused(
    simulator: Simulator, lora_server: ModelServer, base: Path, address: dict[str, str], code: ErrorCode, problem: str
) -> None:
    """A host that is not allowed, a pickle, a missing file and another hash leave nothing in the models folder."""
    lora_server.put("/studio/loras/resolve/v1/pickle.safetensors", b"PK\x03\x04" + bytes(1000))
    hosts = replace(local_hosts(lora_server.server_port), variable="COMFYUI_MODEL_HOSTS")
    provider = DirectProvider(simulator.url, {}, directory=base, model_hosts=lambda: hosts)
    with Client(provider) as client, pytest.raises(JobError, match=problem) as info:
        client.models.download(address, "loras")

    assert info.value.code is code
    assert list((base / "models/loras").iterdir()) == []


def test_a_token_is_sent_to_its_host_and_kept_nowhere(client: Client, lora_server: ModelServer, base: Path) -> None:
    """The token of a download reaches its host only, and is in no file."""
    client.models.download(HF, "loras", tokens={"huggingface.co": TOKEN})
    client.models.download("civitai:123", "loras", tokens={"huggingface.co": TOKEN})

    assert {request.token for request in lora_server.requests(HF_PATH)} == {TOKEN}
    assert {request.token for request in lora_server.requests(CIVITAI_PATH)} == {""}
    files = [file for file in base.rglob("*") if file.is_file()]
    assert TOKEN.encode() not in b"".join(file.read_bytes() for file in files)


def test_a_cancelled_download_is_resumed(client: Client, lora_server: ModelServer, simulator: Simulator) -> None:
    """The bytes are reported. A cancel ends the download, and the same call downloads only the rest."""
    hold = lora_server.hold(HF_PATH, after=50_000)
    seen: list[Event] = []
    failed: list[JobError] = []

    def observe(event: Event) -> None:
        seen.append(event)
        if isinstance(event, Downloading) and event.done_bytes == 50_000:
            client.close()

    def download() -> None:
        try:
            client.models.download(HF, "loras", observer=observe)
        except JobError as error:
            failed.append(error)

    thread = threading.Thread(target=download)
    thread.start()
    assert hold.reached.wait(60)
    thread.join(60)
    hold.release()
    added = client.models.download(HF, "loras")

    assert [error.code for error in failed] == [ErrorCode.CANCELLED]
    assert {event.total_bytes for event in seen if isinstance(event, Downloading)} == {len(LORA)}
    assert added.sha256 == sha256(LORA)
    assert lora_server.requests(HF_PATH)[-1].offset == 50_000
    assert "knight.safetensors" in simulator.listed_models("loras")


def test_the_asynchronous_client_does_the_same(client: Client) -> None:
    """AsyncClient downloads, lists and deletes."""

    async def run() -> tuple[ModelEntry, ModelList, ModelEntry]:
        models = AsyncClient(client).models
        return await models.download(HF, "loras"), await models.list("loras"), await models.delete(KNIGHT)

    added, found, deleted = asyncio.run(run())

    assert added.path == deleted.path == KNIGHT
    assert KNIGHT in by_path(found)


def test_a_mirror_of_the_environment_is_used(simulator: Simulator, base: Path) -> None:
    """HF_ENDPOINT replaces Hugging Face, and its private address is refused as any other."""
    environment = {
        "COMFYUI_ENDPOINT": simulator.url,
        "COMFYUI_DIR": str(base),
        "HF_ENDPOINT": "https://localhost",
    }
    with client_from_env(environment) as client, pytest.raises(JobError, match="localhost") as info:
        client.models.download(HF, "loras")

    assert info.value.code is ErrorCode.INVALID_MODEL


@pytest.mark.slow
def test_without_file_locks_only_this_is_refused(simulator: Simulator, base: Path) -> None:
    """On a system without `fcntl` the client works, and its refusal of local models says why."""
    script = (
        "import sys; sys.modules['fcntl'] = None\n"
        "import comfy_client.cli.main\n"
        "from comfy_client import Client, ConfigError\n"
        "from pathlib import Path\n"
        f"print(len(Client(comfyui_url={simulator.url!r}).models.list('loras').models))\n"
        "try:\n"
        f"    Client(comfyui_url={simulator.url!r}, comfyui_dir=Path({str(base)!r})).models.list()\n"
        "except ConfigError as error:\n"
        "    print(error)\n"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)

    assert ended.stdout.splitlines()[0] == "2"
    assert "Windows lacks the file locks" in ended.stdout.splitlines()[1]
