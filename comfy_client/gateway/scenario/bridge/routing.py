"""The routing table: for each capability, the side that serves it. `comfy-client scenario route` edits its file.

A capability is a route (`POST /generate/txt2img`), a model id, or a task (`txt2img`, `img2img`). The first of these
that the table has decides. The shim reads the file again when it has changed, so a switch needs no restart.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from comfy_client.gateway.scenario.models import Side
from comfy_core.errors import ConfigError
from comfy_core.files import write_atomically

ROUTING_FILE = "routes.json"
EVERYTHING = "*"
"""The capability of every generate call."""
_ALL_PERCENT = 100


@dataclass(frozen=True)
class RoutingRule:
    """The side of a capability. `percent` of its requests go to `side`, and the rest to the other side."""

    side: Side
    percent: int = _ALL_PERCENT

    @staticmethod
    def parse(text: str) -> RoutingRule:
        """Parse `own`, `scenario`, or a side with a percentage, such as `own:25`. Raises ValueError."""
        match = re.fullmatch(r"(own|scenario)(?::([0-9]{1,3}))?", text, re.ASCII)
        percent = int(match[2] or _ALL_PERCENT) if match else -1
        if match is None or percent > _ALL_PERCENT:
            raise ValueError(f"{text!r} is not own, scenario, or one of them with a percentage, such as own:25")
        return RoutingRule(Side(match[1]), percent)

    @property
    def shares(self) -> str:
        """Both sides with their shares, such as `own 25 %, scenario 75 %`."""
        rest = _ALL_PERCENT - self.percent
        return f"{self.side.value} {self.percent} %" + (f", {self.side.other.value} {rest} %" if rest else "")

    def __str__(self) -> str:
        return self.side.value if self.percent == _ALL_PERCENT else f"{self.side.value}:{self.percent}"

    def side_of(self, request_key: str) -> Side:
        """Return the side of one request. Equal keys get the same side, so that a retry goes where the request went."""
        share = int.from_bytes(hashlib.sha256(request_key.encode()).digest()[:8], "big") % _ALL_PERCENT
        return self.side if share < self.percent else self.side.other


class RoutingTable:
    """The table in `directory`. Without a file, the table is empty."""

    def __init__(self, directory: Path) -> None:
        self.file = directory / ROUTING_FILE
        self._read_at: tuple[int, int] | None = None
        self._rules: Mapping[str, RoutingRule] = {}

    @property
    def rules(self) -> Mapping[str, RoutingRule]:
        """The rules by capability, read again if the file has changed. Raises ConfigError if it is not valid."""
        try:
            status = self.file.stat()
            changed_at = (status.st_mtime_ns, status.st_ino)
            if changed_at != self._read_at:
                self._rules = _parse(self.file.read_text(encoding="utf-8"))
                self._read_at = changed_at
        except FileNotFoundError:
            self._rules, self._read_at = {}, None
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"{self.file} is not a routing table ({error}). Correct it, or delete it, and use `comfy-client "
                "scenario route` to change it"
            ) from error
        return self._rules

    def side_of(self, capabilities: Iterable[str], request_key: str = "") -> Side | None:
        """Return the side of the first of these capabilities that the table has, or None. Raises ConfigError."""
        rules = self.rules
        rule = next((rules[each] for each in capabilities if each in rules), None)
        return None if rule is None else rule.side_of(request_key)

    def change(
        self, changes: Mapping[str, RoutingRule | None], *, keeps_others: bool = True
    ) -> Mapping[str, RoutingRule]:
        """Set these rules, remove those that are None, and return the new table. Raises ConfigError.

        Without `keeps_others`, every other rule is removed.
        """
        others = self.rules if keeps_others else {}
        rules = {name: rule for name, rule in {**others, **changes}.items() if rule is not None}
        text = json.dumps({name: str(rule) for name, rule in sorted(rules.items())}, indent=2)
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self.file, f"{text}\n".encode())
        except OSError as error:
            raise ConfigError(f"{self.file} cannot be written: {error.strerror}") from error
        return rules


def _parse(text: str) -> dict[str, RoutingRule]:
    value = json.loads(text)
    if not isinstance(value, dict) or not all(isinstance(each, str) for each in value.values()):
        raise ValueError('it must be a JSON object such as {"txt2img": "own:25", "img2img": "scenario"}')
    return {name: RoutingRule.parse(each) for name, each in value.items()}
