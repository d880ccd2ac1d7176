"""Starts a worker in a container with the strictest settings, connected to the RunPod simulator."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import docker
from docker.models.containers import Container
from docker.models.networks import Network

from bench.worker_setup import SMALL_JOB
from simulators.runpod.queue_api import QueueJob, RunPodPlatform
from simulators.waiting import until

STRICT_OPTIONS: dict[str, Any] = {
    "read_only": True,
    "cap_drop": ["ALL"],
    "security_opt": ["no-new-privileges:true"],
    "mem_limit": "8g",
    "tmpfs": {"/tmp": "exec,mode=1777"},  # noqa: S108 - the container's
}
"""Options of the container: only /tmp is writable, no capabilities, no new privileges, at most 8 GB of memory."""
SIGNAL_COMFYUI = """\
import os, sys
for entry in os.listdir('/proc'):
    if entry.isdecimal():
        words = open(f'/proc/{entry}/cmdline').read().split(chr(0))
        if 'main.py' in words:
            os.kill(int(entry), int(sys.argv[1]))
            print(*words)
"""
LOG_TAIL_LINES = 60


@dataclass(frozen=True)
class WorkerContainer:
    """A running container and the platform whose jobs it takes.

    Attributes:
        platform: the simulated RunPod.
        container: the container.
        timeout_s: maximum time of one job, and of the wait for its first step.
    """

    platform: RunPodPlatform
    container: Container
    timeout_s: float

    def submit(self, **inputs: object) -> str:
        """Submit a small job, changed by `inputs`, and return its id."""
        return self.platform.submit({**SMALL_JOB, **inputs})

    def run(self, **inputs: object) -> QueueJob:
        """Submit a small job, changed by `inputs`, and return the job once it has ended."""
        return self.await_result(self.submit(**inputs))

    def await_result(self, job_id: str) -> QueueJob:
        """Return the job once it has ended."""
        return self.platform.wait_for(job_id, self.timeout_s)

    def await_sampling(self, job_id: str) -> None:
        """Wait until the platform has received sampling progress of the job."""
        self.platform.wait_until(
            lambda: any(isinstance(value, dict) and value.get("step") for value in self.platform.jobs[job_id].progress),
            self.timeout_s,
        )

    def signal_comfyui(self, number: int) -> None:
        """Send a signal to the ComfyUI inside the container."""
        assert self.output_of("python", "-c", SIGNAL_COMFYUI, str(int(number))), "no ComfyUI runs"

    def output_of(self, *command: str) -> str:
        """Run a command in the container and return its output."""
        result = self.container.exec_run(list(command))
        assert isinstance(result.output, bytes)
        text = result.output.decode()
        assert result.exit_code == 0, text
        return text

    def state(self) -> Mapping[str, Any]:
        """Return the container's current state, as the engine reports it."""
        self.container.reload()
        found: Mapping[str, Any] = self.container.attrs["State"]
        return found

    def log(self) -> str:
        """Return the container's log."""
        text: str = self.container.logs().decode(errors="replace")
        return text

    def await_end(self, timeout_s: float = 60) -> int:
        """Wait until the container ends, and return its exit status."""
        status: int = self.container.wait(timeout=timeout_s)["StatusCode"]
        return status


def gateway_address(network: Network) -> str:
    """Return the host's address in a network."""
    address: str = network.attrs["IPAM"]["Config"][0]["Gateway"]
    return address


@contextlib.contextmanager
def worker_container(
    engine: docker.DockerClient,
    network: Network,
    image: str,
    *,
    environment: Mapping[str, str] | None = None,
    step_s: float = 0.05,
    waits_until_ready: bool = True,
    timeout_s: float = 60,
    **options: Any,  # noqa: ANN401 - the SDK's own
) -> Iterator[WorkerContainer]:
    """Yield a worker in production mode, and remove its container afterwards.

    If `waits_until_ready`, the worker is ready for jobs. `timeout_s` limits its boot and each of its jobs.
    `options` are options of the SDK's `containers.run`.
    """
    with RunPodPlatform(long_poll_s=1.0, host=gateway_address(network)) as platform:
        variables = {
            **platform.worker_env(),
            "RUNPOD_PING_INTERVAL": "1000",
            "COMFYUI_ARGS": f"--step-s {step_s}",
            **(environment or {}),
        }
        container = engine.containers.run(
            image, detach=True, environment=variables, network=network.name, **{**STRICT_OPTIONS, **options}
        )
        worker = WorkerContainer(platform, container, timeout_s)
        try:
            if waits_until_ready:
                assert until(lambda: platform.takes or worker.state()["Status"] == "exited", timeout_s)
                assert platform.takes, worker.log()
            yield worker
        except BaseException:
            print("\n".join(worker.log().splitlines()[-LOG_TAIL_LINES:]))
            raise
        finally:
            container.remove(force=True)
