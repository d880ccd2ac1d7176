"""What this package's commands share: a parser whose refusal is a ConfigError, and a log that is shown meanwhile."""

from __future__ import annotations

import argparse
import contextlib
import logging
from collections.abc import Iterator
from typing import NoReturn

from comfy_core.errors import ConfigError


class Parser(argparse.ArgumentParser):
    """Raises ConfigError, with the usage, where others end the process."""

    def error(self, message: str) -> NoReturn:
        """Raise ConfigError."""
        raise ConfigError(f"{self.format_usage()}{self.prog}: {message}")


@contextlib.contextmanager
def shown(name: str, handler: logging.Handler, level: int) -> Iterator[None]:
    """Have the logger `name` write to `handler` from `level` on, for as long as the context lasts."""
    log = logging.getLogger(name)
    log.addHandler(handler)
    log.setLevel(level)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(logging.NOTSET)
