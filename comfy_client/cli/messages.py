"""Formats errors for a terminal. Names of request fields are replaced by the flags that set them. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from comfy_client.cli.flags import Flag
from comfy_core.errors import ComfyClientError, JobError, RequestError, WaitTimeout

_OTHER_FLAGS = {
    "options.execution_timeout_s": "--execution-timeout",
    "options.ttl_s": "--ttl",
    "options.webhook": "--webhook",
    "overrides": "--set",
    "images": "--image",
    "workflow": "--graph",
}
"""The flag for each request field that a flag with another name sets."""
_WITHOUT_DOCTOR = frozenset({"deploy", "destroy", "init"})
"""Commands that use other settings or another API than those that `comfy-client doctor` checks."""


def flags_by_field(flags: Sequence[Flag]) -> Mapping[str, str]:
    """Return the flag for each request field that a command can set, such as `--width` for `width`.

    If the command has the flag `-i`, the key "" maps to it: other fields are set with `-i`.
    """
    names = {name for flag in flags for name in flag.names}
    by_field = {flag.field: _shown_name(flag) for flag in flags}
    by_field.pop("webhook", None)  # the flag --webhook sets `options.webhook`; this field is the worker's own webhook
    by_field |= {field: name for field, name in _OTHER_FLAGS.items() if name in names}
    return {**by_field, "": "-i"} if "--input" in names else by_field


def _shown_name(flag: Flag) -> str:
    """Return the name of a flag; that of an argument is its metavar, unless that is a list of choices."""
    argument = flag.names[0] if "choices" in flag.settings else flag.metavar
    return next((name for name in flag.names if name.startswith("--")), argument)


def error_lines(error: ComfyClientError, field_flags: Mapping[str, str], command: str = "") -> list[str]:
    """Return the lines that explain an error to the user of the command line."""
    match error:
        case JobError(report=report) if faults := report.details.get("faults"):
            return [_fault(str(fault["path"]), str(fault["message"]), field_flags) for fault in faults]
        case JobError(report=report) if path := str(report.details.get("path", "")):
            return [_fault(path, report.message.removeprefix(path).lstrip(": "), field_flags)]
        case WaitTimeout(job_id=job_id):
            return [
                str(error),
                f"To wait again, run `comfy-client wait {job_id}`. To cancel it, run `comfy-client cancel {job_id}`",
            ]
        case RequestError(status=None) if command not in _WITHOUT_DOCTOR:
            return [str(error), "To find the reason, run `comfy-client doctor`"]
    return [str(error)]


def _fault(field_path: str, message: str, field_flags: Mapping[str, str]) -> str:
    """Return a fault as a sentence that names the flag of the faulty field."""
    message = re.sub(r"`(\w+)`", lambda found: field_flags.get(found[1], found[0]), message)
    place = _place(field_path, field_flags)
    is_sentence = re.match(r"[a-z]", message) is not None
    return f"{place}{' ' if is_sentence else ': '}{message}" if place else message


def _place(field_path: str, field_flags: Mapping[str, str]) -> str:
    """Return the flag for a request field, with the path of the field if the flag alone does not identify it."""
    root = field_path if field_path in field_flags else re.split(r"\W", field_path, maxsplit=1)[0]
    rest = field_path[len(root) :]
    if root == "overrides" and rest and root in field_flags:
        node_input = rest.strip('."[]')
        return f"{field_flags[root]} {node_input}"
    flag = field_flags.get(root) or (f"{field_flags['']} {root}" if root and "" in field_flags else root)
    return f"{flag} ({field_path})" if rest and flag != root else field_path if flag == root else flag
