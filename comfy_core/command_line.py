"""Shared by commands: an ArgumentParser that raises ConfigError, and a context manager for a log handler."""

from __future__ import annotations

import argparse
import contextlib
import logging
from collections.abc import Iterator
from typing import NoReturn

from comfy_core.errors import ConfigError


class ConfigErrorParser(argparse.ArgumentParser):
    """An ArgumentParser that raises ConfigError instead of exiting the process."""

    def error(self, message: str) -> NoReturn:
        """Raise ConfigError."""
        raise ConfigError(f"{message.removeprefix('argument ')}. `{self.prog} --help` lists all options")


@contextlib.contextmanager
def logging_to(name: str, handler: logging.Handler, level: int) -> Iterator[None]:
    """Attach `handler` to the logger `name`, and set that logger to `level`, while the context lasts."""
    log = logging.getLogger(name)
    log.addHandler(handler)
    log.setLevel(level)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(logging.NOTSET)
