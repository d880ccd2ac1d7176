"""Samples the memory, open files and threads of the worker's process during a soak."""

from __future__ import annotations

import contextlib
import statistics
import time
from dataclasses import dataclass

import psutil

SAMPLING_INTERVAL_S = 0.25


@dataclass(frozen=True)
class ProcessSample:
    """Memory, open files and threads of a process at one moment."""

    rss_mb: float
    files: int
    threads: int


class LeakMonitor:
    """Samples a process at intervals of SAMPLING_INTERVAL_S."""

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)
        self._next_at = 0.0
        self._samples: list[ProcessSample] = []

    def sample(self) -> None:
        """Take a sample if one is due."""
        now = time.monotonic()
        if now < self._next_at:
            return
        self._next_at = now + SAMPLING_INTERVAL_S
        with contextlib.suppress(psutil.Error), self._process.oneshot():
            rss_mb = self._process.memory_info().rss / 2**20
            self._samples.append(ProcessSample(rss_mb, self._process.num_fds(), self._process.num_threads()))

    def quarters(self) -> list[ProcessSample]:
        """Return the medians of each quarter of the samples."""
        quarter = len(self._samples) // 4
        parts = [self._samples[number * quarter : (number + 1) * quarter] for number in range(4)]
        return [
            ProcessSample(
                statistics.median(sample.rss_mb for sample in part),
                round(statistics.median(sample.files for sample in part)),
                round(statistics.median(sample.threads for sample in part)),
            )
            for part in parts
        ]
