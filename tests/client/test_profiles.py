"""Profiles: the file, its mistakes, and the priority of the environment."""

from __future__ import annotations

import logging
import stat
from pathlib import Path

import pytest

from comfy_client import client_from_env
from comfy_client.profiles import (
    PROFILE_VARIABLES,
    complete,
    profiles_path,
    read_profiles,
    save_profile,
    selected_profile,
)
from comfy_core.errors import ConfigError

LOCAL = {"COMFYUI_ENDPOINT": "http://127.0.0.1:8188"}
STUDIO = {"RUNPOD_API_KEY": "rpa_studio", "RUNPOD_COMFYUI_ENDPOINT_ID": "studio"}
SCENARIO = {
    "IMAGE_GENERATION_PROVIDER": "scenario",
    "SCENARIO_SDK_API_KEY": "key",
    "SCENARIO_SDK_API_SECRET": "secret",
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A profiles.toml with the profiles local (the default), studio and scenario."""
    path = tmp_path / "comfy-client" / "profiles.toml"
    for name, values in {"local": LOCAL, "studio": STUDIO, "scenario": SCENARIO}.items():
        save_profile(path, name, values)
    return path


def environment(file: Path, **variables: str) -> dict[str, str]:
    """Return an environment whose profiles.toml is `file`."""
    return {"XDG_CONFIG_HOME": str(file.parent.parent), **variables}


def provider_of(file: Path, profile: str, **variables: str) -> str:
    """Return the text of the provider that a client with `profile` and `variables` uses."""
    with client_from_env(environment(file, **variables), profile=profile) as client:
        return str(client.provider)


def test_a_saved_profile_is_read(file: Path) -> None:
    """The first profile is the default one, until another is saved as such."""
    assert selected_profile(environment(file)) == read_profiles(file).profiles["local"]
    save_profile(file, "studio", STUDIO, is_default=True)

    found = selected_profile(environment(file))
    assert found is not None
    assert (found.name, found.values, found.file) == ("studio", STUDIO, file)


def test_only_the_owner_can_read_the_file(file: Path) -> None:
    """The file has the mode 0600, also if it had another one before."""
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    file.chmod(0o644)
    save_profile(file, "other", LOCAL)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_comments_and_other_profiles_are_kept(file: Path) -> None:
    """Saving a profile changes nothing else in the file, and follows a symbolic link."""
    target = file.with_name("dotfiles.toml")
    target.write_text(f"# my profiles\n{file.read_text()}")
    file.unlink()
    file.symlink_to(target)
    save_profile(file, "studio", {"RUNPOD_API_KEY": 'a "quoted" \\ key'})

    assert file.is_symlink()
    assert target.read_text().startswith("# my profiles\n")
    profiles = read_profiles(file).profiles
    assert profiles["studio"].values == {"RUNPOD_API_KEY": 'a "quoted" \\ key'}
    assert profiles["local"].values == LOCAL


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[profiles.a]\nRUNPOD_API_KY = 'x'", ["profile a", 'did you mean "RUNPOD_API_KEY"']),
        ("[profile.a]\n", ['did you mean "profiles"']),
        ("[profiles.a]\nCOMFYUI_ENDPOINT = 8188", ["profile a", "COMFYUI_ENDPOINT", "in quotes"]),
        ("[profiles]\na = 'x'", ["profile a", "[profiles.a]"]),
        ("default = 3", ["`default`"]),
        ("[profiles.off]\n", ["'off'"]),
        ("[profiles.'a b']\n", ["'a b'"]),
        ("[profiles.a]\nRUNPOD_API_KEY = rpa_secret", ["is not TOML"]),
        (f"a = {'[' * 20_000}", ["is not TOML"]),
    ],
)
def test_a_mistake_in_the_file_is_named(file: Path, text: str, words: list[str]) -> None:
    """The error has the path, the profile and the key, and no value."""
    file.write_text(text)
    with pytest.raises(ConfigError) as raised:
        read_profiles(file)

    assert str(file) in str(raised.value) or "name of a profile" in str(raised.value)
    assert all(word in str(raised.value) for word in words)
    assert "rpa_secret" not in str(raised.value)


def test_an_unknown_profile_is_named_with_the_known_ones(file: Path) -> None:
    """The error suggests the closest name and lists all."""
    with pytest.raises(ConfigError, match=r'did you mean "studio".*local, studio, scenario'):
        selected_profile(environment(file, COMFY_CLIENT_PROFILE="studoi"))
    with pytest.raises(ConfigError, match="HOME"):
        selected_profile({"COMFY_CLIENT_PROFILE": "studio"})


def test_a_readable_file_with_keys_is_warned_about(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A file with keys that other users can read is a warning with the remedy; one without keys is not."""
    file.chmod(0o640)
    read_profiles(file)
    assert f"chmod 600 '{file}'" in caplog.text
    assert caplog.records[0].levelno == logging.WARNING
    assert "rpa_studio" not in caplog.text

    caplog.clear()
    without_keys = file.with_name("other.toml")
    without_keys.write_text('[profiles.a]\nCOMFYUI_ENDPOINT = "http://127.0.0.1:1"\n')
    without_keys.chmod(0o644)
    read_profiles(without_keys)
    assert caplog.text == ""


def test_an_unreadable_file_is_an_error(file: Path) -> None:
    """The error has the path and the reason."""
    file.unlink()
    file.mkdir()
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        read_profiles(file)


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"HOME": "/home/a"}, "/home/a/.config/comfy-client/profiles.toml"),
        ({"HOME": "/home/a", "XDG_CONFIG_HOME": "/c"}, "/c/comfy-client/profiles.toml"),
        ({"USERPROFILE": "/users/a", "APPDATA": "/users/a/roaming"}, "/users/a/roaming/comfy-client/profiles.toml"),
        ({}, None),
    ],
)
def test_the_path_of_the_file(variables: dict[str, str], expected: str | None) -> None:
    """XDG_CONFIG_HOME, then Windows' APPDATA, then HOME."""
    assert profiles_path(variables) == (Path(expected) if expected else None)


def test_the_environment_has_priority(file: Path) -> None:
    """A variable of the environment replaces the profile's; an empty one does not."""
    studio = read_profiles(file).profiles["studio"]
    settings = complete({"RUNPOD_API_KEY": "rpa_mine", "RUNPOD_COMFYUI_ENDPOINT_ID": " "}, studio)

    assert settings.environment == {"RUNPOD_API_KEY": "rpa_mine", "RUNPOD_COMFYUI_ENDPOINT_ID": "studio"}
    assert settings.replaced == ("RUNPOD_API_KEY",)
    assert settings.source("RUNPOD_API_KEY") == "environment"
    assert settings.source("RUNPOD_COMFYUI_ENDPOINT_ID") == "profile studio"
    assert settings.source("RUNPOD_ENDPOINT_BASE_URL") == "default"


@pytest.mark.parametrize(
    ("profile", "variables", "provider"),
    [
        ("local", {}, "http://127.0.0.1:8188"),
        ("studio", {}, "studio"),
        # The environment selects another target than the profile.
        ("local", {"RUNPOD_API_KEY": "k", "RUNPOD_COMFYUI_ENDPOINT_ID": "mine"}, "mine"),
        ("local", {"RUNPOD_API_KEY": "k", "RUNPOD_ENDPOINT_ID": "mine"}, "mine"),
        ("studio", {"COMFYUI_ENDPOINT": "http://127.0.0.1:9"}, "http://127.0.0.1:9"),
        ("studio", {"RUNPOD_ENDPOINT_ID": "mine"}, "mine"),  # with the profile's key
        ("scenario", {"COMFYUI_ENDPOINT": "http://127.0.0.1:9"}, "http://127.0.0.1:9"),
        # A key or a provider alone is no target.
        ("local", {"RUNPOD_API_KEY": "k"}, "http://127.0.0.1:8188"),
        ("local", {"IMAGE_GENERATION_PROVIDER": "comfyui"}, "http://127.0.0.1:8188"),
        (
            "studio",
            {"IMAGE_GENERATION_PROVIDER": "scenario", "SCENARIO_SDK_API_KEY": "k", "SCENARIO_SDK_API_SECRET": "s"},
            "https://api.cloud.scenario.com",
        ),
    ],
)
def test_the_target_of_the_environment_has_priority(
    file: Path, profile: str, variables: dict[str, str], provider: str
) -> None:
    """A profile never redirects a process whose environment selects a target or a provider."""
    assert provider in provider_of(file, profile, **variables)


def test_the_folder_of_another_comfyui_is_not_used(file: Path) -> None:
    """COMFYUI_DIR of a profile is used with the profile's ComfyUI only, because files in it are deleted."""
    save_profile(file, "local", {**LOCAL, "COMFYUI_DIR": "/comfyui", "RUNPOD_ENDPOINT_BASE_URL": "https://a.example"})
    profile = read_profiles(file).profiles["local"]

    assert complete({}, profile).environment["COMFYUI_DIR"] == "/comfyui"
    assert set(complete({"RUNPOD_ENDPOINT_ID": "x"}, profile).environment) == {"RUNPOD_ENDPOINT_ID"}


def test_python_code_reads_no_profile_unless_it_names_one(file: Path) -> None:
    """Neither the default profile nor COMFY_CLIENT_PROFILE changes `client_from_env`."""
    with pytest.raises(ConfigError, match="RUNPOD_API_KEY is not set"):
        client_from_env(environment(file, COMFY_CLIENT_PROFILE="studio"))
    assert "studio" in provider_of(file, "studio")


def test_every_variable_of_the_client_can_be_in_a_profile(file: Path) -> None:
    """Each is accepted by the file, and completes the environment."""
    save_profile(file, "all", dict.fromkeys(PROFILE_VARIABLES, "x"))
    assert set(complete({}, read_profiles(file).profiles["all"]).environment) == set(PROFILE_VARIABLES)
