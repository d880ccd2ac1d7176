"""Records the seconds from process start to the end of each boot step, and logs them in one line after the boot."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

log = logging.getLogger("worker.boot")


def process_age_s() -> float:
    """Return the seconds since this process started, or its CPU time if the system does not report the start."""
    try:
        # Field 22 of proc_pid_stat(5). Count after the process name, which may contain spaces and parentheses.
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        began_s = int(fields[19]) / os.sysconf("SC_CLK_TCK")
        return time.clock_gettime(time.CLOCK_BOOTTIME) - began_s
    except (OSError, ValueError, IndexError, AttributeError):
        return time.process_time()


class BootTimes:
    """The times of one boot. `age_s` returns the seconds since the process started."""

    def __init__(self, age_s: Callable[[], float] = process_age_s) -> None:
        self._began_at = time.monotonic() - age_s()
        self.ends_s: dict[str, float] = {}

    def note(self, step: str) -> None:
        """Record that `step` ended now."""
        self.ends_s[step] = round(time.monotonic() - self._began_at, 3)

    def log(self, version: str) -> None:
        """Record the total, and log all steps with ComfyUI's version."""
        self.note("total")
        log.info("booted", extra={"boot_s": dict(self.ends_s), "comfyui": version})
