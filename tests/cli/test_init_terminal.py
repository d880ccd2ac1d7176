"""`comfy-client init` on a terminal: the questions, the checks of the replies, and Ctrl-C at each question."""

from __future__ import annotations

import re
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from comfy_client.profiles import read_profiles
from simulators.comfyui import Simulator
from simulators.http_server import free_port
from simulators.waiting import until
from tests.cli.conftest import Shell
from tests.cli.terminals import Terminal
from tests.cli.test_init import InitSetup, platform, setup

__all__ = ["platform", "setup"]  # fixtures
pytestmark = pytest.mark.slow
WHERE = "Number (1): "


class Dialogue(Terminal):
    """A terminal with `init`, whose questions are answered one by one."""

    def __init__(self, setup: InitSetup, *arguments: str) -> None:
        self.setup = setup
        environment = {**setup.shell.environment, "COMFY_CLIENT_PROFILE": "", "TERM": "xterm"}
        super().__init__(["init", *arguments], environment, setup.file.parent.parent.parent, is_stdout_too=True)
        self._seen = 0

    @property
    def screen(self) -> str:
        """The terminal's content so far, without styles."""
        return re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", super().screen)

    def expect(self, text: str) -> None:
        """Wait until the terminal shows `text` after what was expected before."""

        def is_shown() -> bool:
            return text in self.screen[self._seen :]

        assert until(is_shown), f"no {text!r} after {self.screen[self._seen :]!r}"
        self._seen = self.screen.index(text, self._seen) + len(text)

    def reply(self, question: str, text: str) -> None:
        """Wait for a question, and type the reply."""
        self.expect(question)
        self.type(text)

    def reply_hidden(self, question: str, text: str) -> None:
        """Wait for a question whose reply is not shown, and type it."""
        self.expect(question)
        assert until(lambda: not self.shows_typing)
        self.type(text)


def test_a_simulator_in_four_replies(setup: InitSetup) -> None:
    """Four empty replies make a profile and an image. The image needs no question, because it is free."""
    url = f"http://127.0.0.1:{free_port()}"
    dialogue = Dialogue(setup, "--comfyui-endpoint", url, "--provider", "simulator")
    dialogue.reply("Name of the profile (simulator): ", "")
    dialogue.expect("is written to")
    dialogue.expect("knight.png  1024 x 1024")
    dialogue.expect("comfy-client simulate")

    assert dialogue.wait()[0] == 0, dialogue.screen
    assert setup.profiles["simulator"]["COMFYUI_ENDPOINT"] == url
    assert (setup.file.parent.parent.parent / "knight.png").exists()


def test_a_comfyui_is_asked_for_until_it_responds(setup: InitSetup) -> None:
    """An address at which nothing responds is shown as an error, and asked for again."""
    with Simulator() as comfyui:
        dialogue = Dialogue(setup, "--no-image")
        dialogue.reply(WHERE, "2")
        dialogue.reply("URL of ComfyUI (http://127.0.0.1:8188): ", f"http://127.0.0.1:{free_port()}")
        dialogue.expect("Check that it is running")
        dialogue.reply("URL of ComfyUI", comfyui.url)
        dialogue.expect("ok  models")
        dialogue.reply("Name of the profile (comfyui): ", "no name")
        dialogue.expect("!!  'no name' cannot be the name of a profile")
        dialogue.reply("Name of the profile", "local")
        assert dialogue.wait()[0] == 0, dialogue.screen

    assert setup.profiles["local"]["COMFYUI_ENDPOINT"] == comfyui.url


def test_a_worker_at_runpod(setup: InitSetup) -> None:
    """The key is not shown and asked for until RunPod accepts it; the account's endpoints are listed."""
    jobs_before = len(setup.platform.jobs)
    dialogue = Dialogue(setup)
    dialogue.reply(WHERE, "3")
    dialogue.reply_hidden("it is not shown: ", "rpa_wrong")
    dialogue.expect("!!  RunPod rejected the API key")
    dialogue.reply_hidden("it is not shown: ", setup.account.api_key)
    dialogue.expect(f"1  flux  {setup.platform.endpoint_id}  ghcr.io/me/worker:1")
    dialogue.reply(WHERE, "2")
    dialogue.reply("Id of the endpoint", "unknown")
    dialogue.expect("!!  ")
    dialogue.reply(WHERE, "")
    dialogue.expect("the key is accepted")
    dialogue.reply("Name of the profile (runpod): ", "studio")
    dialogue.reply("Generate a test image now? RunPod bills the GPU's time. [y/N]: ", "")

    assert dialogue.wait()[0] == 0, dialogue.screen
    assert setup.profiles == {"studio": setup.worker_values}
    assert len(setup.platform.jobs) == jobs_before
    for key in ("rpa_wrong", setup.account.api_key):
        assert key not in dialogue.screen


def test_an_account_without_endpoints(setup: InitSetup) -> None:
    """The key alone is stored, for `comfy-client deploy`."""
    setup.account.endpoints.clear()
    dialogue = Dialogue(setup)
    dialogue.reply(WHERE, "3")
    dialogue.reply_hidden("it is not shown: ", setup.account.api_key)
    dialogue.expect("The account has no endpoint yet. `comfy-client deploy` creates one")
    dialogue.reply("Store only the key for now? [Y/n]: ", "")
    dialogue.reply("Name of the profile", "")
    dialogue.expect("comfy-client deploy --profile runpod --save-profile runpod")

    assert dialogue.wait()[0] == 0, dialogue.screen
    assert setup.profiles["runpod"] == {
        "IMAGE_GENERATION_PROVIDER": "comfyui",
        "RUNPOD_API_KEY": setup.account.api_key,
    }


def test_an_existing_profile_is_replaced_only_after_a_yes(setup: InitSetup) -> None:
    """The command asks before it replaces a profile, and which of two profiles is the default one."""
    with Simulator() as comfyui:
        flags = ("--comfyui-endpoint", comfyui.url, "--no-image")
        assert setup.init(*flags, "--profile", "old").status == 0
        dialogue = Dialogue(setup, *flags)
        dialogue.reply("Name of the profile", "old")
        dialogue.reply("The profile old exists. Replace it? [y/N]: ", "")
        dialogue.reply("Name of the profile", "new")
        dialogue.reply("Use it by default, in place of old? [Y/n]: ", "n")
        assert dialogue.wait()[0] == 0, dialogue.screen

    assert read_profiles(setup.file).default == "old"
    assert list(setup.profiles) == ["old", "new"]
    assert "--profile new" in dialogue.screen


def test_the_key_of_the_environment_is_offered(setup: InitSetup) -> None:
    """A key of the environment is used after a yes; after a no, the command asks for one."""
    variables = {**setup.shell.environment, "RUNPOD_API_KEY": setup.account.api_key}
    dialogue = Dialogue(replace(setup, shell=Shell(variables)), "--endpoint-id", setup.platform.endpoint_id)
    dialogue.reply("Use RUNPOD_API_KEY of the environment? [Y/n]: ", "n")
    dialogue.reply_hidden("it is not shown: ", "rpa_wrong")
    dialogue.expect("!!  RunPod rejected the API key")
    dialogue.reply("Use RUNPOD_API_KEY of the environment? [Y/n]: ", "")
    dialogue.reply("Name of the profile", "")
    dialogue.reply("[y/N]: ", "")

    assert dialogue.wait()[0] == 0, dialogue.screen
    assert setup.profiles == {"runpod": setup.worker_values}


@pytest.mark.parametrize(
    ("number", "module", "words"),
    [
        ("1", "aiohttp", "The simulator needs the extra `simulator`"),
        ("5", "scenario_sdk", "needs the extra `scenario-sdk`"),
    ],
)
def test_a_missing_extra_ends_the_command(setup: InitSetup, number: str, module: str, words: str) -> None:
    """The choice names what to install, before the command asks for a key."""
    blocked = setup.file.parent.parent.parent / f"{module}.py"  # in the current folder, where Python looks first
    blocked.write_text(f"raise ImportError('{module} is not installed')\n")
    dialogue = Dialogue(setup)
    dialogue.reply(WHERE, number)

    assert dialogue.wait()[0] == 3
    assert words in dialogue.screen
    assert not setup.file.exists()


@pytest.mark.parametrize("question", range(5))
@pytest.mark.parametrize("way", ["Ctrl-C", "Ctrl-D"])
def test_ctrl_c_at_a_question_writes_nothing(setup: InitSetup, question: int, way: str) -> None:
    """Ctrl-C ends the command with 130, and Ctrl-D with 1, at any question. There is no file and no image."""
    replies = [(WHERE, "3"), ("it is not shown: ", setup.account.api_key), (WHERE, "1"), ("Name of the profile", "a")]
    dialogue = Dialogue(setup)
    for text, reply in replies[:question]:
        (dialogue.reply_hidden if "not shown" in text else dialogue.reply)(text, reply)
    last = [*replies, ("[y/N]: ", "")][question][0]
    dialogue.expect(last)
    assert until(lambda: dialogue.shows_typing is ("not shown" not in last))
    if way == "Ctrl-C":
        dialogue.process.send_signal(signal.SIGINT)
    else:
        dialogue.press_ctrl_d()
    status = dialogue.wait()[0]

    assert status == (130 if way == "Ctrl-C" else 1), dialogue.screen
    assert "Nothing was written." in dialogue.screen
    assert "Traceback" not in dialogue.screen
    assert not setup.file.exists()
    assert not list(Path(setup.file.parent.parent.parent).glob("*.png"))
