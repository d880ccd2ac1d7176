"""`comfy-client ui`: the web page for one user on one machine."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import requests
from playwright.sync_api import expect

from comfy_client.profiles import save_profile
from simulators.comfyui import Simulator
from simulators.waiting import until
from tests.browser import WIDTHS, browser, overflows
from tests.processes import killed_at_end

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
WAIT_MS = 60_000
WITHOUT_EXTRA = """
import sys
sys.modules["httpx"] = None
from comfy_client.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


@dataclass(frozen=True)
class Served:
    """A running `comfy-client ui`: its process, and the address that it printed."""

    process: subprocess.Popen[str]
    address: str

    @property
    def url(self) -> str:
        """The address without the token."""
        return self.address.partition("#")[0]

    @property
    def token(self) -> str:
        """The token in the address."""
        return self.address.partition("#token=")[2]

    def stop(self) -> int:
        """Press Ctrl-C; return the exit status."""
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(60)

    def jobs(self, token: str = "") -> requests.Response:
        """Request the list of jobs, as the page does."""
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        return requests.get(f"{self.url}shim/jobs", headers=headers, timeout=60)


@contextmanager
def served_ui(home: Path, variables: Mapping[str, str], *flags: str) -> Iterator[Served]:
    """Start `comfy-client ui` with `home` as the user's folder, and yield it when it has printed its address."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HOME": str(home), **variables}
    for name in ("XDG_STATE_HOME", "XDG_CONFIG_HOME"):
        environment.pop(name, None)
    command = [sys.executable, "-m", "comfy_client.cli.main", "ui", *flags, "--json"]
    with (
        (home / "err").open("w") as err,
        killed_at_end(
            subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=err, text=True, cwd=home)
        ) as process,
    ):
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, (home / "err").read_text()
        yield Served(process, json.loads(line)["url"])


@pytest.fixture(scope="module")
def comfyui() -> Iterator[Simulator]:
    """A simulated ComfyUI."""
    with Simulator() as simulator:
        yield simulator


@pytest.mark.parametrize("width", WIDTHS)
def test_an_image_is_generated_on_the_page(comfyui: Simulator, tmp_path: Path, width: int) -> None:
    """The printed address opens the page signed in; it mentions neither Scenario nor routing, and makes an image."""
    with (
        served_ui(tmp_path, {"COMFYUI_ENDPOINT": comfyui.url}, "--no-open") as served,
        browser() as chromium,
    ):
        window = chromium.new_page(viewport={"width": width, "height": 900})
        window.set_default_timeout(WAIT_MS)
        window.goto(served.address)
        expect(window.locator("#health")).to_contain_text("ComfyUI is idle", timeout=WAIT_MS)
        assert window.url == served.url
        assert window.title() == "Images from your own endpoint"
        assert not re.search("scenario|shim|routing", window.locator("body").inner_text(), re.IGNORECASE)
        if width == min(WIDTHS):
            window.locator("#new summary").click()
        window.get_by_label("Prompt", exact=True).fill("a pixel art knight")
        window.get_by_role("button", name="Generate").click()
        row = window.locator("#jobs li")
        expect(row.locator(".state .word")).to_have_text("done", timeout=WAIT_MS)
        assert not overflows(window)
        assert served.stop() == 0


def test_only_the_token_opens_it_and_it_is_kept(comfyui: Simulator, tmp_path: Path) -> None:
    """Other users of the machine have no token. The next start has the same one, so that it has the same jobs."""
    variables = {"COMFYUI_ENDPOINT": comfyui.url, "SCENARIO_SHIM_ACCOUNTS": "key:secret", "SCENARIO_SHIM_STRICT": "?"}
    with served_ui(tmp_path, variables, "--no-open") as first:
        assert first.jobs().status_code == 401
        assert first.jobs("wrong").status_code == 401
        assert first.jobs(first.token).status_code == 200
        assert urlsplit(first.url).hostname == "127.0.0.1"
        assert first.stop() == 0
    with served_ui(tmp_path, variables, "--no-open") as second:
        assert second.token == first.token
        assert second.stop() == 0

    folder = tmp_path / ".local" / "state" / "comfy-client" / "ui" / "environment"
    assert (folder / "page-token").stat().st_mode & 0o077 == 0
    assert folder.stat().st_mode & 0o077 == 0


def test_each_profile_has_its_own_folder(comfyui: Simulator, tmp_path: Path) -> None:
    """The jobs of a profile are not continued at another endpoint. A second page of a profile is an error."""
    file = tmp_path / ".config" / "comfy-client" / "profiles.toml"
    save_profile(file, "local", {"COMFYUI_ENDPOINT": comfyui.url})
    save_profile(file, "other", {"COMFYUI_ENDPOINT": comfyui.url})
    variables = {"COMFY_CLIENT_PROFILE": "local"}
    with served_ui(tmp_path, {**variables, "COMFYUI_ENDPOINT": comfyui.url}, "--no-open") as of_environment:
        assert of_environment.stop() == 0
    with served_ui(tmp_path, variables, "--no-open") as served:
        with served_ui(tmp_path, variables, "--no-open", "--profile", "other") as other:
            assert other.token != served.token
            assert other.stop() == 0
        again = subprocess.run(
            [sys.executable, "-m", "comfy_client.cli.main", "ui", "--no-open"],
            env={**os.environ, "PYTHONPATH": str(ROOT), "HOME": str(tmp_path), **variables},
            capture_output=True,
            text=True,
            check=False,
        )
        assert served.stop() == 0

    assert again.returncode == 3
    assert f"Another server uses the folder {tmp_path}" in again.stderr
    assert sorted(each.name for each in (tmp_path / ".local/state/comfy-client/ui").iterdir()) == [
        "environment",
        "local",
        "other",
    ]


def test_it_opens_the_browser(comfyui: Simulator, tmp_path: Path) -> None:
    """The browser gets the address with the token. BROWSER selects it."""
    opened = tmp_path / "opened"
    script = tmp_path / "browser"
    script.write_text(f'#!/bin/sh\necho "$1" > {opened}.part && mv {opened}.part {opened}\n')
    script.chmod(0o755)
    with served_ui(tmp_path, {"COMFYUI_ENDPOINT": comfyui.url, "BROWSER": str(script)}) as served:
        assert until(opened.exists)
        assert opened.read_text() == f"{served.address}\n"
        assert served.stop() == 0


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({}, ["RUNPOD_API_KEY is not set", "comfy-client init"]),
        ({"COMFYUI_ENDPOINT": "http://127.0.0.1:9", "HOME": "", "USERPROFILE": ""}, ["--data DIR"]),
    ],
)
def test_a_missing_setting_is_named(tmp_path: Path, variables: dict[str, str], words: Sequence[str]) -> None:
    """Without settings or a folder, the command ends with 3 and the remedy."""
    ended = run_python(["-m", "comfy_client.cli.main", "ui", "--no-open"], {"HOME": str(tmp_path), **variables})
    assert ended.returncode == 3
    assert all(word in ended.stderr for word in words)


@pytest.mark.parametrize(
    ("command", "feature"), [("ui", "The web page"), ("serve", "The server"), ("scenario serve", "The shim")]
)
def test_a_missing_extra_is_named(tmp_path: Path, command: str, feature: str) -> None:
    """Without the optional packages, the commands of the server say what to install."""
    variables = {"HOME": str(tmp_path), "COMFYUI_ENDPOINT": "http://127.0.0.1:9"}
    ended = run_python(["-c", WITHOUT_EXTRA, *command.split()], variables)
    assert ended.returncode == 3
    assert f"{feature} needs the extra `scenario`" in ended.stderr


def run_python(arguments: Sequence[str], variables: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Run Python with `arguments` until it ends."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
    environment.pop("XDG_STATE_HOME", None)
    return subprocess.run(
        [sys.executable, *arguments], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
