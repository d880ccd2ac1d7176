"""The command `errors`, which lists and explains error codes. It sends no request."""

from __future__ import annotations

from collections.abc import Mapping

from comfy_client.cli.call import JSON, Call, Command
from comfy_client.cli.flags import Flag
from comfy_client.cli.tables import Column, table_lines
from comfy_core.error_codes import ErrorCode, Retry
from comfy_core.errors import ConfigError
from comfy_core.validation import nearest
from comfy_core.workflows import Workflow


def _errors(call: Call) -> int:
    known = {code.value: code for code in ErrorCode}
    if call.options.code is None:
        listed = {name: code.cause for name, code in known.items()}
        columns = (Column("CODE"), Column("RETRY"), Column("CAUSE", is_prose=True))
        rows = [(name, code.retry.value, code.cause) for name, code in known.items()]
        call.screen.show({"errors": listed}, *table_lines(call.screen, columns, rows))
        return 0
    if call.options.code not in known:
        raise ConfigError(f"{call.options.code!r} is not an error code{nearest(call.options.code, known)}")
    code = known[call.options.code]
    value = {
        "code": code.value,
        "retry": code.retry.value,
        "retryable": code.retry is Retry.RESEND,
        "cause": code.cause,
        "remedy": code.remedy,
        "details": code.details,
    }
    retry = f"  {code.retry.value}: {code.retry.meaning}"
    call.screen.show(value, code.value, f"  {code.cause}", f"  {code.remedy}", retry)
    return 0


def commands(_workflows: Mapping[str, Workflow]) -> tuple[Command, ...]:
    """Return the command `errors`."""
    code = Flag(("code",), "The error code.", "CODE", {"nargs": "?"})
    return (Command("errors", [code, JSON], _errors),)
