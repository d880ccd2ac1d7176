"""`comfy-client` with profiles: --profile, COMFY_CLIENT_PROFILE, the default, and what `doctor` shows of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from comfy_client.profiles import save_profile
from simulators.comfyui import Simulator
from simulators.runpod.queue_api import RunPodPlatform
from tests.cli.conftest import Shell

SMALL = ("--width", "64", "--height", "64", "--steps", "1", "--seed", "1")


@pytest.fixture
def profiled(platform: RunPodPlatform, shell: Shell, tmp_path: Path) -> Shell:
    """A Shell without the platform's variables: they are the default profile `studio`. `gone` is a dead ComfyUI.

    `secret` has a password in its URL, which is not valid.
    """
    file = tmp_path / "config" / "comfy-client" / "profiles.toml"
    save_profile(file, "studio", platform.client_env())
    save_profile(file, "gone", {"COMFYUI_ENDPOINT": "http://127.0.0.1:9"})
    save_profile(file, "secret", {"COMFYUI_ENDPOINT": "http://user:hunter2@127.0.0.1:9"})
    others = {name: value for name, value in shell.environment.items() if name not in platform.client_env()}
    return Shell({**others, "XDG_CONFIG_HOME": str(file.parent.parent)})


def test_commands_use_the_default_profile(profiled: Shell, platform: RunPodPlatform) -> None:
    """Without a variable, a command uses the default profile; so does a command that uses no provider's client."""
    assert profiled("health").status == 0
    assert profiled("txt2img", "a knight", *SMALL).status == 0
    assert profiled("deploy", "missing.toml").status == 3
    assert len(platform.jobs) == 1


@pytest.mark.parametrize("arguments", [("--profile", "gone", "doctor"), ("doctor", "--profile=gone")])
def test_the_option_selects_a_profile(profiled: Shell, arguments: tuple[str, ...]) -> None:
    """--profile may precede or follow the command, and has priority over COMFY_CLIENT_PROFILE."""
    ended = profiled(*arguments, COMFY_CLIENT_PROFILE="studio")
    assert ended.status == 4
    assert "http://127.0.0.1:9" in ended.out
    assert ended.err == ""


def test_the_variable_selects_a_profile(profiled: Shell) -> None:
    """COMFY_CLIENT_PROFILE has priority over the default profile; `off` is no profile."""
    assert profiled("health", COMFY_CLIENT_PROFILE="gone").status == 4
    without = profiled("health", COMFY_CLIENT_PROFILE="off")
    assert without.status == 3
    assert "RUNPOD_API_KEY is not set" in without.err


def test_the_environment_has_priority_and_the_command_says_so(profiled: Shell) -> None:
    """A profile selected by --profile whose target is not used is named on stderr; a default one is not."""
    with Simulator() as simulator:
        named = profiled("health", "--json", "--profile", "studio", COMFYUI_ENDPOINT=simulator.url)
        default = profiled("health", COMFYUI_ENDPOINT=simulator.url)

    assert (named.status, default.status, default.err) == (0, 0, "")
    assert "RUNPOD_ENDPOINT_ID" in named.err
    assert "priority over these values of the profile studio: " in named.err


def test_the_doctor_shows_the_source_of_each_value(profiled: Shell, platform: RunPodPlatform) -> None:
    """Provider, profile and each variable have a source, and no key is shown."""
    ended = profiled("doctor", RUNPOD_API_KEY=platform.api_key)

    assert ended.status == 0, ended.out
    lines = {line.split()[1]: line for line in ended.out.splitlines()}
    assert lines["provider"].endswith("comfyui (the default of IMAGE_GENERATION_PROVIDER)")
    assert "studio in " in lines["profile"]
    assert "not used, because the environment has priority: its RUNPOD_API_KEY" in lines["profile"]
    assert "RUNPOD_API_KEY=(set) (environment)" in lines["variables"]
    assert "(profile studio)" in lines["variables"]
    assert platform.api_key not in ended.out


def test_a_mistake_in_the_file_ends_a_command_that_uses_it(profiled: Shell, tmp_path: Path) -> None:
    """The error names the file and the remedy, with status 3. Commands without settings still work."""
    (tmp_path / "config" / "comfy-client" / "profiles.toml").write_text("[profiles.a]\nCOMFYUI_ENPOINT = 'x'\n")
    ended = profiled("health")

    assert ended.status == 3
    assert 'did you mean "COMFYUI_ENDPOINT"' in ended.err
    assert profiled("errors").status == profiled("help").status == profiled("completion", "bash").status == 0


def test_the_profiles_are_listed_and_changed(profiled: Shell, platform: RunPodPlatform) -> None:
    """`profiles` shows name, provider and target of each, and no key; it changes the default one, and deletes one."""
    listed = profiled("profiles")
    assert [line.split() for line in listed.out.splitlines()] == [
        ["studio", "comfyui", platform.endpoint_id, "default"],
        ["gone", "comfyui", "http://127.0.0.1:9"],
        ["secret", "comfyui", "(invalid", "URL)"],
    ]
    assert platform.api_key not in listed.out

    assert profiled("profiles", "default", "gone", "--json").json["default"] == "gone"
    assert profiled("health").status == 4
    deleted = profiled("profiles", "delete", "gone", "--json").json
    assert (deleted["default"], [each["name"] for each in deleted["profiles"]]) == (None, ["studio", "secret"])
    assert "There is no profile in " in profiled("profiles", XDG_CONFIG_HOME="/nowhere").out


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["default"], 2, "needs the name"),
        (["list", "studio"], 2, "takes no name"),
        (["delete", "off"], 3, "'off'"),
        (["delete", "studoi"], 3, 'did you mean "studio"'),
    ],
)
def test_a_wrong_change_changes_nothing(profiled: Shell, arguments: list[str], status: int, words: str) -> None:
    """The error has the remedy."""
    ended = profiled("profiles", *arguments)
    assert ended.status == status
    assert words in ended.err
    assert profiled("profiles", "--json").json["default"] == "studio"


def test_an_unknown_profile_is_an_error(profiled: Shell) -> None:
    """The error suggests the closest name, with status 3; a missing value of --profile has status 2."""
    ended = profiled("health", "--profile", "studi")
    assert ended.status == 3
    assert 'did you mean "studio"' in ended.err
    assert profiled("health", "--profile").status == 2
