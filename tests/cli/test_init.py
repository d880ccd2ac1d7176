"""`comfy-client init` with flags, as in a script: it never waits for input."""

from __future__ import annotations

import io
import socket
import stat
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from comfy_client.profiles import read_profiles
from simulators.comfyui import Simulator
from simulators.http_server import free_port
from simulators.runpod.queue_api import RunPodPlatform
from simulators.runpod.rest import RunPodAccount
from simulators.runpod.scripted_worker import ScriptedWorker, image_result
from simulators.scenario import ScenarioSimulator
from tests.cli.conftest import Completed, Shell

ENDPOINT = {
    "name": "flux",
    "image": "ghcr.io/me/worker:1",
    "type": "QUEUE",
    "scaling": {"type": "QUEUE_DELAY", "queueDelay": 1},
}


@dataclass(frozen=True)
class InitSetup:
    """The command in a new folder with a new home folder, and an account with the endpoint of `platform`."""

    shell: Shell
    account: RunPodAccount
    platform: RunPodPlatform

    @property
    def file(self) -> Path:
        """The path of profiles.toml."""
        return Path(self.shell.environment["XDG_CONFIG_HOME"]) / "comfy-client" / "profiles.toml"

    @property
    def profiles(self) -> dict[str, Mapping[str, str]]:
        """The values of every profile."""
        return {name: profile.values for name, profile in read_profiles(self.file).profiles.items()}

    @property
    def worker_values(self) -> dict[str, str]:
        """The profile of the account's endpoint."""
        return {
            "IMAGE_GENERATION_PROVIDER": "comfyui",
            "RUNPOD_API_KEY": self.account.api_key,
            "RUNPOD_COMFYUI_ENDPOINT_ID": self.platform.endpoint_id,
            "RUNPOD_ENDPOINT_BASE_URL": self.platform.base_url,
        }

    def init(self, *arguments: str, **changes: str) -> Completed:
        """Run `comfy-client init`, with RUNPOD_API_KEY in the environment."""
        return self.shell("init", *arguments, **{"RUNPOD_API_KEY": self.account.api_key, **changes})


@pytest.fixture(scope="module")
def platform() -> Iterator[RunPodPlatform]:
    """An endpoint's queue with a worker that responds at once."""
    with RunPodPlatform(long_poll_s=0.1) as platform, ScriptedWorker(platform, image_result):
        yield platform


@pytest.fixture
def setup(platform: RunPodPlatform, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[InitSetup]:
    """The command in a new folder. The environment has no key."""
    monkeypatch.chdir(tmp_path)
    with RunPodAccount(platform) as account:
        account.create_endpoint(ENDPOINT)
        variables = {name: value for name, value in account.environment().items() if name != "RUNPOD_API_KEY"}
        home = {"XDG_CONFIG_HOME": str(tmp_path / "config"), "COMFY_CLIENT_JOB_LOG": "off"}
        yield InitSetup(Shell({**variables, **home}), account, platform)


@contextmanager
def closing_each(server: socket.socket) -> Iterator[None]:
    """Close every connection to `server` at once, in a thread."""

    def accept() -> None:
        with suppress(OSError):
            while True:
                server.accept()[0].close()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    yield
    server.shutdown(socket.SHUT_RDWR)
    thread.join(60)


def test_a_simulator(setup: InitSetup) -> None:
    """The command runs a simulator for the image, writes a profile that is used by default, and says what to run."""
    url = f"http://127.0.0.1:{free_port()}"
    ended = setup.init("--provider", "simulator", "--comfyui-endpoint", url)

    assert ended.status == 0, ended.err
    assert setup.profiles == {"simulator": {"IMAGE_GENERATION_PROVIDER": "comfyui", "COMFYUI_ENDPOINT": url}}
    assert Path("knight.png").exists()
    assert f"comfy-client simulate --port {url.rpartition(':')[2]} " in ended.out
    assert "comfy-client ui " in ended.out
    with Simulator(port=int(url.rpartition(":")[2])):
        assert setup.shell("doctor").status == 0


def test_the_simulator_of_a_used_port(setup: InitSetup) -> None:
    """A ComfyUI at the address is used as it is; if another program has the port, another port is used."""
    with Simulator() as running:
        used = setup.init("--provider", "simulator", "--comfyui-endpoint", running.url, "--profile", "a")
        assert len(running.executed_prompts) == 1
    with socket.create_server(("127.0.0.1", 0)) as other, closing_each(other):
        taken = f"http://127.0.0.1:{other.getsockname()[1]}"
        moved = setup.init("--provider", "simulator", "--comfyui-endpoint", taken, "--profile", "b", "--no-image")

    assert (used.status, moved.status) == (0, 0)
    assert setup.profiles["a"]["COMFYUI_ENDPOINT"] == running.url
    assert setup.profiles["b"]["COMFYUI_ENDPOINT"] not in (running.url, taken)


def test_a_comfyui(setup: InitSetup) -> None:
    """--comfyui-endpoint stores the address of a ComfyUI that responds, and generates an image, which is free."""
    with Simulator() as comfyui:
        ended = setup.init("--comfyui-endpoint", comfyui.url, "-o", "first.webp")
        assert len(comfyui.executed_prompts) == 1

    assert ended.status == 0, ended.err
    assert setup.profiles["comfyui"]["COMFYUI_ENDPOINT"] == comfyui.url
    assert Path("first.webp").exists()


def test_a_comfyui_without_the_models(setup: InitSetup) -> None:
    """The profile is written, because own workflows may need other models; there is no test image."""
    with Simulator(models={"vae": ()}) as comfyui:
        ended = setup.init("--comfyui-endpoint", comfyui.url)
        assert not comfyui.executed_prompts

    assert ended.status == 0
    assert "!!  models     ComfyUI does not have vae/ae.safetensors" in ended.err
    assert list(setup.profiles) == ["comfyui"]


def test_this_projects_worker(setup: InitSetup) -> None:
    """--endpoint-id stores the endpoint with the key of the environment. An image costs money: only with --image."""
    jobs_before = len(setup.platform.jobs)
    ended = setup.init("--endpoint-id", setup.platform.endpoint_id, "--profile", "studio")
    assert len(setup.platform.jobs) == jobs_before
    with_image = setup.init("--endpoint-id", setup.platform.endpoint_id, "--profile", "studio", "--yes", "--image")

    assert (ended.status, with_image.status) == (0, 0), ended.err + with_image.err
    assert setup.profiles == {"studio": setup.worker_values}
    assert stat.S_IMODE(setup.file.stat().st_mode) == 0o600
    assert len(setup.platform.jobs) == jobs_before + 1
    assert Path("knight.png").exists()
    assert setup.account.api_key not in ended.out + ended.err + with_image.out + with_image.err


def test_the_stock_worker(setup: InitSetup) -> None:
    """--provider runpod stores the endpoint for the provider `runpod`."""
    ended = setup.init("--provider", "runpod", "--endpoint-id", setup.platform.endpoint_id)

    assert ended.status == 0, ended.err
    values = setup.profiles["worker-comfyui"]
    assert values["IMAGE_GENERATION_PROVIDER"] == "runpod"
    assert values["RUNPOD_ENDPOINT_ID"] == setup.platform.endpoint_id


def test_scenario(setup: InitSetup, monkeypatch: pytest.MonkeyPatch) -> None:
    """--provider scenario checks key and secret, which two lines of stdin have, and stores them."""
    with ScenarioSimulator() as scenario:
        environment = scenario.client_env()
        key, secret = environment["SCENARIO_SDK_API_KEY"], environment["SCENARIO_SDK_API_SECRET"]
        monkeypatch.setattr("sys.stdin", io.StringIO(f"{key}\n{secret}\n"))
        ended = setup.init("--provider", "scenario", "--key-stdin", SCENARIO_BASE_URL=environment["SCENARIO_BASE_URL"])

    assert ended.status == 0, ended.err
    assert setup.profiles["scenario"] == {**environment, "IMAGE_GENERATION_PROVIDER": "scenario"}
    assert secret not in ended.out + ended.err


def test_the_key_from_stdin(setup: InitSetup, monkeypatch: pytest.MonkeyPatch) -> None:
    """--key-stdin has priority over the environment."""
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{setup.account.api_key}\n"))
    ended = setup.init("--endpoint-id", setup.platform.endpoint_id, "--key-stdin", RUNPOD_API_KEY="rpa_other")

    assert ended.status == 0, ended.err
    assert setup.profiles["runpod"] == setup.worker_values


def test_the_key_of_the_profile_that_is_replaced(setup: InitSetup) -> None:
    """Another endpoint of the same account needs no key; the first image's name is not taken twice."""
    flags = ("--endpoint-id", setup.platform.endpoint_id, "--profile", "studio", "--yes", "--image")
    first, second = setup.init(*flags), setup.init(*flags, RUNPOD_API_KEY="")

    assert (first.status, second.status) == (0, 0), second.err
    assert setup.profiles == {"studio": setup.worker_values}
    assert "warning: knight.png already exists; the new image is knight-1.png\n" in second.err


def test_json(setup: InitSetup) -> None:
    """--json prints one object, without the key; the checks are on stderr."""
    ended = setup.init("--endpoint-id", setup.platform.endpoint_id, "--json")

    assert ended.json == {
        "profile": "runpod",
        "file": str(setup.file),
        "is_default": True,
        "variables": {**setup.worker_values, "RUNPOD_API_KEY": "(set)"},
        "image": None,
    }


@pytest.mark.parametrize(
    ("arguments", "changes", "status", "words"),
    [
        ([], {}, 2, "--comfyui-endpoint URL, --endpoint-id ID or --provider"),
        (["--provider", "comfyui"], {}, 2, "--comfyui-endpoint URL, --endpoint-id ID or --provider"),
        (["--comfyui-endpoint", "http://a", "--endpoint-id", "b"], {}, 2, "excludes --endpoint-id"),
        (["--comfyui-endpoint", "http://127.0.0.1:9"], {}, 4, "Check that it is running"),
        (["--comfyui-endpoint", "ftp://a"], {}, 3, "not a valid ComfyUI URL"),
        (["--endpoint-id", "ep"], {"RUNPOD_API_KEY": ""}, 3, "RUNPOD_API_KEY is not set"),
        (["--endpoint-id", "ep"], {"RUNPOD_API_KEY": "rpa_wrong"}, 3, "rejected the API key"),
        (["--endpoint-id", "unknown"], {}, 4, "unknown"),
        (["--provider", "runpod"], {}, 2, "Endpoints of the account: flux ("),
        (["--endpoint-id", "ep", "--profile", "a b"], {}, 3, "a b"),
        (["--comfyui-endpoint", "http://127.0.0.1:9", "-o", "-"], {}, 2, "-o -"),
    ],
    ids=str,
)
def test_a_wrong_or_missing_value_writes_nothing(
    setup: InitSetup, arguments: list[str], changes: dict[str, str], status: int, words: str
) -> None:
    """The error names the flag, the variable or the address, and no file is written."""
    ended = setup.init(*arguments, RUNPOD_ENDPOINT_BASE_URL=setup.platform.base_url, **changes)

    assert ended.status == status, ended.err
    assert words in ended.err
    assert "rpa_wrong" not in ended.err
    assert not setup.file.exists()


def test_a_profile_is_only_replaced_with_yes(setup: InitSetup) -> None:
    """A profile of the same name is an error. --yes replaces it, --default makes it the default one."""
    with Simulator() as comfyui:
        flags = ("--comfyui-endpoint", comfyui.url, "--no-image")
        first, second = setup.init(*flags), setup.init(*flags)
        other = setup.init(*flags, "--profile", "other", "--json")
        replaced = setup.init(*flags, "--profile", "other", "--yes", "--default", "--json")

    assert (first.status, second.status, other.status, replaced.status) == (0, 3, 0, 0)
    assert "The profile comfyui exists" in second.err
    assert (other.json["is_default"], replaced.json["is_default"]) == (False, True)
    assert read_profiles(setup.file).default == "other"


def test_a_key_that_may_not_list_endpoints(setup: InitSetup) -> None:
    """A restricted key is checked with the endpoint alone; the account's queue is then known from the environment."""
    setup.account.faults.respond("GET /serverless", 403, body={"title": "Forbidden", "status": 403})
    ended = setup.init("--endpoint-id", setup.platform.endpoint_id, RUNPOD_ENDPOINT_BASE_URL=setup.platform.base_url)

    assert ended.status == 0, ended.err
    assert "cannot be listed" in ended.err
    assert setup.profiles["runpod"] == setup.worker_values


def test_variables_that_hide_the_profile_are_named(setup: InitSetup) -> None:
    """The environment has priority over the profile, so the last line names its variables."""
    with Simulator() as comfyui:
        ended = setup.init("--comfyui-endpoint", comfyui.url, "--no-image", RUNPOD_ENDPOINT_ID="mine")
    assert "has other values: IMAGE_GENERATION_PROVIDER, COMFYUI_ENDPOINT" in ended.out


def test_a_failed_image_leaves_the_profile(setup: InitSetup) -> None:
    """The profile was written before the image, and the command says so."""
    with Simulator() as comfyui:
        comfyui.faults.run_out_of_memory(10)
        ended = setup.init("--comfyui-endpoint", comfyui.url)

    assert ended.status == 1
    assert "The profile comfyui is written to" in ended.err
    assert "out_of_memory" in ended.err
    assert list(setup.profiles) == ["comfyui"]


def test_a_folder_that_cannot_be_written(setup: InitSetup) -> None:
    """The error names the file."""
    setup.file.parent.parent.symlink_to("/proc")  # where nobody can create a folder
    with Simulator() as comfyui:
        ended = setup.init("--comfyui-endpoint", comfyui.url, "--no-image")
    assert ended.status == 3
    assert str(setup.file) in ended.err
