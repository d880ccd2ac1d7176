"""Starts the Scenario shim as a separate process with `comfy-client scenario serve`, or `comfy-client serve`."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

from bench.worker_setup import ROOT
from simulators.waiting import until

START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 120.0
KEY, SECRET = "shim-key", "shim-secret"
OTHER_KEY, OTHER_SECRET = "another-key", "another-secret"
NO_ENDPOINT = {
    "RUNPOD_API_KEY": "x",
    "RUNPOD_COMFYUI_ENDPOINT_ID": "x",
    "RUNPOD_ENDPOINT_BASE_URL": "http://127.0.0.1:1/v2",
}
"""The environment of a shim whose endpoint refuses every connection."""


class ShimProcess:
    """A shim process. `environment` configures its provider.

    The shim's data stay in `directory` after the process ends. `command` starts it.
    """

    def __init__(
        self,
        environment: Mapping[str, str],
        directory: Path,
        *flags: str,
        command: Sequence[str] = ("scenario", "serve"),
    ) -> None:
        self._command = [sys.executable, "-m", "comfy_client.cli.main", *command]
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("RUNPOD_", "SCENARIO_"))},
            "PYTHONPATH": str(ROOT),
            "SCENARIO_SHIM_ACCOUNTS": f"{KEY}:{SECRET},{OTHER_KEY}:{OTHER_SECRET}",
            "SCENARIO_SHIM_REQUESTS_PER_MINUTE": "100000",
            "SCENARIO_SHIM_DRAIN_S": "0",
            **environment,
        }
        self._flags = ["--port=0", f"--data={directory}", *flags]
        self._process: subprocess.Popen[str] | None = None
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed at the end
        self.url = ""

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        try:
            if self.is_alive:
                self.stop()
        finally:
            self.kill()
            self._log.close()

    @property
    def base_url(self) -> str:
        """What a client of this shim sets as SCENARIO_BASE_URL."""
        return f"{self.url}/v1"

    @property
    def log(self) -> str:
        """The output of the process, including the output of earlier starts."""
        self._log.seek(0)
        return self._log.read()

    def start(self) -> None:
        """Start the process, and wait until it listens. Raises AssertionError if it does not."""
        log_start = len(self.log)
        self._process = subprocess.Popen(
            [*self._command, *self._flags],
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            text=True,
        )

        def address() -> str:
            found = re.search(r"listens on (http://\S+)", self.log[log_start:])
            return found[1] if found else ""

        if not until(lambda: address() or not self.is_alive, START_TIMEOUT_S) or not address():
            raise AssertionError(f"the shim did not start: {self.log[log_start:]}")
        self.url = address()

    def run_to_exit(self, *flags: str) -> tuple[int, str]:
        """Run a second shim that is expected to refuse to start, with `flags` added.

        Return its exit status and output.
        """
        completed = subprocess.run(
            [*self._command, *self._flags, *flags],
            env=self._environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=START_TIMEOUT_S,
            check=False,
        )
        return completed.returncode, completed.stdout + completed.stderr

    @property
    def process_id(self) -> int:
        """The id of the last started process."""
        if self._process is None:
            raise AssertionError("the shim was never started")
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        """Whether the process runs."""
        return self._process is not None and self._process.poll() is None

    def kill(self) -> None:
        """Send SIGKILL to the process, and wait until it has ended."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def stop(self) -> int:
        """Send SIGTERM, as an orchestrator does, wait for the process to end, and return its exit status."""
        if self._process is None:
            raise AssertionError("the shim was never started")
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(STOP_TIMEOUT_S)
