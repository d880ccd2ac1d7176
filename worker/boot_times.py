"""When each step of the boot ended, in seconds since the process began. The log has them all in one line at its end."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

log = logging.getLogger("worker.boot")


def process_age_s() -> float:
    """Return the seconds since this process began; where the system does not tell, its own time on the CPU."""
    try:
        # The 22nd field (proc_pid_stat(5)), counted from behind the name, which may hold anything.
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        began_s = int(fields[19]) / os.sysconf("SC_CLK_TCK")
        return time.clock_gettime(time.CLOCK_BOOTTIME) - began_s
    except (OSError, ValueError, IndexError, AttributeError):
        return time.process_time()


class BootTimes:
    """The steps of one boot."""

    def __init__(self, age_s: Callable[[], float] = process_age_s) -> None:
        self._began_at = time.monotonic() - age_s()
        self.ends_s: dict[str, float] = {}

    def note(self, step: str) -> None:
        """Note that `step` has ended now."""
        self.ends_s[step] = round(time.monotonic() - self._began_at, 3)

    def log(self, version: str) -> None:
        """Note the end of all, and log every step with ComfyUI's version."""
        self.note("total")
        log.info("booted", extra={"boot_s": dict(self.ends_s), "comfyui": version})
