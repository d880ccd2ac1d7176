"""The user's folders for configuration and for state files, in which this client has the subfolder `comfy-client`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from comfy_core.environment import Variable, folder, optional

CONFIG_HOME = Variable(
    "XDG_CONFIG_HOME",
    optional(folder),
    "The user's folder for configuration, which has `comfy-client/profiles.toml`. Default: APPDATA, else `.config` in "
    "HOME.",
)
APP_DATA = Variable("APPDATA", optional(folder), "The user's folder for configuration on Windows.")
STATE_HOME = Variable(
    "XDG_STATE_HOME", optional(folder), "The user's folder for state files. Default: `.local/state` in HOME."
)
HOME = Variable("HOME", optional(folder), "The user's folder. Default: USERPROFILE, which Windows sets.")
USER_PROFILE = Variable("USERPROFILE", optional(folder), "The user's folder on Windows.")
VARIABLES = (CONFIG_HOME, APP_DATA, STATE_HOME, HOME, USER_PROFILE)
_OWN = "comfy-client"


def config_folder(environment: Mapping[str, str]) -> Path | None:
    """Return the client's folder for configuration, or None if the user has no folder."""
    config = CONFIG_HOME.read(environment) or APP_DATA.read(environment) or _in_home(environment, ".config")
    return config / _OWN if config else None


def state_folder(environment: Mapping[str, str]) -> Path | None:
    """Return the client's folder for state files, or None if the user has no folder."""
    state = STATE_HOME.read(environment) or _in_home(environment, ".local/state")
    return state / _OWN if state else None


def _in_home(environment: Mapping[str, str], path: str) -> Path | None:
    home = HOME.read(environment) or USER_PROFILE.read(environment)
    return home / path if home else None
