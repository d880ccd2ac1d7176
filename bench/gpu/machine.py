"""Describes the machine, and watches the GPU's memory with nvidia-smi. Without nvidia-smi, both say so."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import subprocess
import threading
from pathlib import Path
from typing import Any, Self

from bench.gpu.results import NOT_AVAILABLE

GPU_FIELDS = ("name", "driver_version", "memory.total", "power.limit", "compute_cap")
PACKAGES = ("torch", "triton", "comfy-kitchen", "comfy-aimdo", "safetensors", "numpy")
SAMPLE_INTERVAL_S = 0.25
QUERY_TIMEOUT_S = 30.0
_PRINT_VERSIONS = """\
import importlib.metadata, platform, sys
print("python", platform.python_version())
for name in sys.argv[1:]:
    try:
        print(name, importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        pass
"""


def describe() -> dict[str, Any]:
    """Return the GPU with its driver, the CPU and the system."""
    gpu: dict[str, str] | str = NOT_AVAILABLE
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        values = _output("nvidia-smi", f"--query-gpu={','.join(GPU_FIELDS)}", "--format=csv,noheader", *_which_gpu())
        gpu = dict(zip(GPU_FIELDS, values.strip().split(", "), strict=True))
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {"gpu": gpu, "cpus": os.cpu_count(), "memory_gib": round(memory_gib, 1), "system": platform.platform()}


def versions(comfyui: Path, python: Path) -> dict[str, str]:
    """Return the versions of ComfyUI, of its Python and of the packages that decide the speed."""
    found = re.search(r'__version__ = "(.+)"', (comfyui / "comfyui_version.py").read_text())
    lines = _output(str(python), "-c", _PRINT_VERSIONS, *PACKAGES).splitlines()
    pairs = [(name, version) for name, version in map(str.split, lines)]
    return {"comfyui": found[1] if found else "unknown", **dict(pairs)}


def _output(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=QUERY_TIMEOUT_S).stdout


def _which_gpu() -> tuple[str, str]:
    """Return nvidia-smi's arguments for the first GPU that CUDA uses."""
    return ("--id", os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0] or "0")


def used_memory_mib() -> int | None:
    """Return the GPU's used memory, of all processes, or None if nvidia-smi does not report it."""
    with contextlib.suppress(OSError, subprocess.SubprocessError, ValueError):
        return int(_output("nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits", *_which_gpu()))
    return None


class PeakMemory:
    """Records the peak of the GPU's used memory inside its `with` block."""

    def __init__(self) -> None:
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="gpu-memory", daemon=True)
        self.mib: int | None = None
        """The peak in MiB so far, or None if it is not known."""

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while (used_mib := used_memory_mib()) is not None:
            self.mib = max(self.mib or 0, used_mib)
            if self._ended.wait(SAMPLE_INTERVAL_S):
                return
