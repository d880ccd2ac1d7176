"""The command `profiles`: lists the profiles, deletes one, or makes one the default."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from comfy_client.cli.call import JSON, Call, Command
from comfy_client.cli.flags import Flag, UsageError
from comfy_client.cli.tables import Column, table_lines
from comfy_client.profiles import delete_profile, read_profiles, required_profiles_path, set_default_profile

if TYPE_CHECKING:
    from comfy_core.workflows import Workflow

_CHANGES: Mapping[str, Callable[[Path, str], None]] = {"default": set_default_profile, "delete": delete_profile}
_FLAGS = (
    Flag(
        ("action",),
        "`list` (the default); `default NAME`: use a profile by default; `delete NAME`: remove a profile.",
        "|".join(("list", *_CHANGES)),
        {"nargs": "?", "default": "list", "choices": ["list", *_CHANGES]},
    ),
    Flag(("name",), "The profile.", "NAME", {"nargs": "?"}),
    JSON,
)
_COLUMNS = (Column("PROFILE"), Column("PROVIDER"), Column("TARGET"), Column())


def commands(_workflows: Mapping[str, Workflow]) -> tuple[Command, ...]:
    """Return the command `profiles`."""
    return (Command("profiles", _FLAGS, _profiles),)


def _profiles(call: Call) -> int:
    """Make the change, if there is one, and show the profiles. Keys are not shown."""
    action, name = call.options.action, call.options.name
    if (action == "list") is bool(name):
        raise UsageError("`list` takes no name" if name else f"`profiles {action}` needs the name of a profile")
    path = required_profiles_path(call.environment)
    if action != "list":
        _CHANGES[action](path, name)
    file = read_profiles(path)
    profiles = file.profiles.values()
    value = {
        "file": str(path),
        "default": file.default or None,
        "profiles": [{"name": each.name, "provider": each.provider, "target": each.target} for each in profiles],
    }
    rows = [
        (each.name, each.provider, each.target, "default" if each.name == file.default else "") for each in profiles
    ]
    call.screen.show(value, *(table_lines(call.screen, _COLUMNS, rows) or [f"There is no profile in {path}."]))
    return 0
