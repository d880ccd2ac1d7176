"""Processes that tests start."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import AnyStr


@contextmanager
def killed_at_end(process: subprocess.Popen[AnyStr]) -> Iterator[subprocess.Popen[AnyStr]]:
    """Yield `process`, and kill it at the end. `with process` alone would wait forever after a failed assertion."""
    with process:
        try:
            yield process
        finally:
            process.kill()
