"""Profiles: named sets of the client's variables, in the user's file `profiles.toml`.

    default = "studio"

    [profiles.studio]
    RUNPOD_API_KEY = "rpa_…"
    RUNPOD_COMFYUI_ENDPOINT_ID = "abc123"

The environment has priority over a profile. The variables in TARGETS select where images are generated, and count as
one setting: if the environment has one of them, no variable of TARGET_GROUP is taken from the profile. So a profile
never redirects a process whose environment selects an endpoint.

`comfy-client` reads the file. Python code reads it only if it names a profile.
"""

from __future__ import annotations

import logging
import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from comfy_client.job_log import JOB_LOG
from comfy_client.providers import (
    COMFYUI_DIR,
    COMFYUI_ENDPOINT,
    COMFYUI_ENDPOINT_ID,
    ENDPOINT_BASE_URL,
    ENDPOINT_ID,
    SWITCH,
)
from comfy_client.providers import VARIABLES as PROVIDER_VARIABLES
from comfy_client.user_folders import CONFIG_HOME, HOME, config_folder
from comfy_core.environment import Variable
from comfy_core.errors import ConfigError
from comfy_core.files import write_atomically
from comfy_core.urls import may_have_password
from comfy_core.validation import nearest

PROFILE = Variable(
    "COMFY_CLIENT_PROFILE",
    str,
    "The profile that `comfy-client` uses, or `off` for none. Default: the `default` of profiles.toml, if it has one.",
)

PROFILE_VARIABLES: Mapping[str, Variable[Any]] = {**PROVIDER_VARIABLES, JOB_LOG.name: JOB_LOG}
"""The variables that a profile can set."""
TARGETS = (COMFYUI_ENDPOINT.name, COMFYUI_ENDPOINT_ID.name, ENDPOINT_ID.name)
TARGET_GROUP = frozenset({*TARGETS, SWITCH.name, ENDPOINT_BASE_URL.name, COMFYUI_DIR.name})
OFF = "off"
"""The name that stands for no profile."""
PRIVATE_MODE = 0o600
_OTHERS = 0o077
"""The permission bits of everyone but the file's owner."""
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Profile:
    """A profile: values by the names of PROFILE_VARIABLES, and the file that it is in."""

    name: str
    values: Mapping[str, str] = field(repr=False)
    file: Path

    @property
    def provider(self) -> str:
        """The value of IMAGE_GENERATION_PROVIDER with this profile alone."""
        return self.values.get(SWITCH.name, SWITCH.default)

    @property
    def target(self) -> str:
        """The URL of ComfyUI or the id of the endpoint, or an empty text. A URL with a password is not shown."""
        target = next((self.values[name] for name in TARGETS if self.values.get(name)), "")
        return "(invalid URL)" if may_have_password(target) else target


@dataclass(frozen=True)
class ProfilesFile:
    """The content of a profiles.toml. `default` is the name of the default profile, or empty."""

    path: Path
    default: str = ""
    profiles: Mapping[str, Profile] = field(default_factory=dict)

    def find(self, name: str) -> Profile | None:
        """Return a profile, by default the default one; None if there is none, or the name is OFF.

        Raises ConfigError that lists the profiles if there is none of this name.
        """
        wanted = name or self.default
        if wanted in ("", OFF):
            return None
        if wanted not in self.profiles:
            listed = ", ".join(self.profiles) or "none"
            raise ConfigError(
                f"There is no profile {wanted!r} in {self.path}{nearest(wanted, self.profiles) or '.'} "
                f"Profiles: {listed}. `comfy-client init --profile {wanted}` makes one"
            )
        return self.profiles[wanted]


@dataclass(frozen=True)
class Settings:
    """The environment, completed with a profile.

    Attributes:
        environment: the variables of both.
        profile: the profile, if there is one.
        replaced: the names of the profile's values that are not used, because the environment has priority.
    """

    environment: Mapping[str, str] = field(repr=False)
    profile: Profile | None = None
    replaced: tuple[str, ...] = ()

    def source(self, name: str) -> str:
        """Return where a variable's value comes from: `environment`, `profile NAME` or `default`."""
        if self.profile is not None and name in self.profile.values and name not in self.replaced:
            return f"profile {self.profile.name}"
        return "environment" if _is_set(self.environment, name) else "default"


def complete(environment: Mapping[str, str], profile: Profile | None) -> Settings:
    """Return the environment, completed with the values of a profile."""
    if profile is None:
        return Settings(environment)
    has_target = any(_is_set(environment, name) for name in TARGETS)
    replaced = tuple(
        name for name in profile.values if _is_set(environment, name) or (has_target and name in TARGET_GROUP)
    )
    used = {name: value for name, value in profile.values.items() if name not in replaced}
    return Settings({**environment, **used}, profile, replaced)


def with_profile(environment: Mapping[str, str], name: str) -> Mapping[str, str]:
    """Return the environment, completed with the values of the profile `name`. Raises ConfigError."""
    return complete(environment, read_profiles(required_profiles_path(environment)).find(name)).environment


def _is_set(environment: Mapping[str, str], name: str) -> bool:
    return bool(environment.get(name, "").strip())


def selected_profile(environment: Mapping[str, str]) -> Profile | None:
    """Return the profile of COMFY_CLIENT_PROFILE, else the default one, else None.

    Raises ConfigError if the profile does not exist, or the file is invalid.
    """
    name = PROFILE.read(environment)
    if name == OFF or not (name or profiles_path(environment)):
        return None
    return read_profiles(required_profiles_path(environment)).find(name)


def profiles_path(environment: Mapping[str, str]) -> Path | None:
    """Return the path of the user's profiles.toml, or None if the user has no folder."""
    config = config_folder(environment)
    return config / "profiles.toml" if config else None


def required_profiles_path(environment: Mapping[str, str]) -> Path:
    """Return the path of the user's profiles.toml. Raises ConfigError if the user has no folder."""
    if path := profiles_path(environment):
        return path
    raise ConfigError(f"There is no folder for profiles: set {HOME.name} or {CONFIG_HOME.name}")


def read_profiles(path: Path) -> ProfilesFile:
    """Return the profiles of a file; none if it does not exist.

    Logs a warning if the file has a secret and other users can read it. Raises ConfigError that names the file and
    the key.
    """
    try:
        text = path.read_text(encoding="utf-8")
        mode = path.stat().st_mode
    except FileNotFoundError:
        return ProfilesFile(path)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ConfigError(f"{path} cannot be read: {reason}") from error
    try:
        content = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(f"{path} is not TOML: {error}") from None  # the cause has the text, and so the keys
    _reject_unknown(path, content, ("default", "profiles"))
    default, tables = content.get("default", ""), content.get("profiles", {})
    if not isinstance(default, str) or not isinstance(tables, dict):
        raise ConfigError(f"{path}: `default` must be the name of a profile, and `profiles` a table")
    profiles = {name: Profile(name, _values(path, name, table), path) for name, table in tables.items()}
    if os.name == "posix" and mode & _OTHERS and any(map(_has_secret, profiles.values())):
        _logger.warning("Other users can read the keys in %s. Run: chmod 600 '%s'", path, path)
    return ProfilesFile(path, default, profiles)


def _values(path: Path, name: str, table: Any) -> Mapping[str, str]:  # noqa: ANN401 - any TOML value
    check_name(name)
    place = f"{path}, profile {name}"
    if not isinstance(table, dict):
        raise ConfigError(f'{place}: write [profiles.{name}], and a line NAME = "value" for each variable')
    _reject_unknown(place, table, PROFILE_VARIABLES)
    for key, value in table.items():
        if not isinstance(value, str):
            raise ConfigError(f'{place}: {key} must be text in quotes: {key} = "…"')
    return table


def _reject_unknown(place: object, table: Mapping[str, Any], known: Mapping[str, Any] | tuple[str, ...]) -> None:
    for key in table:
        if key not in known:
            advice = nearest(key, known) or f". Known: {', '.join(known)}"
            raise ConfigError(f"{place}: there is no setting {key!r}{advice}")


def _has_secret(profile: Profile) -> bool:
    return any(PROFILE_VARIABLES[name].secret for name in profile.values)


def check_name(name: str) -> None:
    """Raise ConfigError if a profile cannot have this name."""
    if name == OFF or not _NAME.fullmatch(name):
        raise ConfigError(
            f"{name!r} cannot be the name of a profile: use up to 64 letters, digits, - and _, and not {OFF!r}"
        )


def save_profile(path: Path, name: str, values: Mapping[str, str], *, is_default: bool = False) -> None:
    """Write a profile into the file, which only its owner can read then. Comments and other profiles are kept.

    The first profile is always the default one. Raises ConfigError.
    """
    check_name(name)
    with _changing(path) as document:
        if is_default or not document.get("profiles"):
            document["default"] = name
        document.setdefault("profiles", {})[name] = dict(values)


def delete_profile(path: Path, name: str) -> None:
    """Remove a profile from the file. If it was the default one, there is none then. Raises ConfigError."""
    check_name(name)
    read_profiles(path).find(name)
    with _changing(path) as document:
        del document["profiles"][name]
        if document.get("default") == name:
            del document["default"]


def set_default_profile(path: Path, name: str) -> None:
    """Make a profile the default one. Raises ConfigError."""
    check_name(name)
    read_profiles(path).find(name)
    with _changing(path) as document:
        document["default"] = name


@contextmanager
def _changing(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the content of the file, and write what the block has changed. Raises ConfigError."""
    import tomlkit  # noqa: PLC0415 - only needed here

    read_profiles(path)  # so that no invalid file is changed
    try:
        document = tomlkit.parse(path.read_text(encoding="utf-8")) if path.exists() else tomlkit.document()
        yield document
        write_atomically(path.resolve(), tomlkit.dumps(document).encode(), mode=PRIVATE_MODE)
    except OSError as error:
        raise ConfigError(f"The profiles cannot be written to {path}: {error.strerror}") from error
