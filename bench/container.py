"""A worker in a container, as strict as can be, and the platform's stand-in that it works for."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import docker
from docker.models.containers import Container
from docker.models.networks import Network

from bench.stage import SMALL
from simulators.runpod.queue_api import Job, RunPodPlatform
from simulators.waiting import until

STRICT: dict[str, Any] = {
    "read_only": True,
    "cap_drop": ["ALL"],
    "security_opt": ["no-new-privileges:true"],
    "mem_limit": "8g",
    "tmpfs": {"/tmp": "exec,mode=1777"},  # noqa: S108 - the container's
}
"""Nothing but /tmp can be written, no capability, no more than 8 GB."""
FIND_COMFYUI = """\
import os, sys
for entry in os.listdir('/proc'):
    if entry.isdecimal():
        words = open(f'/proc/{entry}/cmdline').read().split(chr(0))
        if 'main.py' in words:
            os.kill(int(entry), int(sys.argv[1]))
            print(*words)
"""
LOG_TAIL = 60


@dataclass(frozen=True)
class Box:
    """What a test acts on."""

    platform: RunPodPlatform
    container: Container

    def submit(self, **inputs: object) -> str:
        """Submit a small job, changed by `inputs`, and return its id."""
        return self.platform.submit({**SMALL, **inputs})

    def run(self, **inputs: object) -> Job:
        """Submit a small job, changed by `inputs`, and return it once it has ended."""
        return self.platform.wait_for(self.submit(**inputs), 60)

    def await_sampling(self, job_id: str) -> None:
        """Return when ComfyUI has begun to sample the job, by the progress that the platform has seen."""
        self.platform.wait_until(
            lambda: any(isinstance(seen, dict) and seen.get("step") for seen in self.platform.jobs[job_id].progress), 60
        )

    def signal_comfyui(self, number: int) -> None:
        """Send a signal to the ComfyUI inside."""
        assert self.read("python", "-c", FIND_COMFYUI, str(int(number))), "no ComfyUI runs"

    def read(self, *command: str) -> str:
        """Return what a command prints inside."""
        done = self.container.exec_run(list(command))
        assert isinstance(done.output, bytes)
        text = done.output.decode()
        assert done.exit_code == 0, text
        return text

    def state(self) -> Mapping[str, Any]:
        """Return the container's state as the engine has it now."""
        self.container.reload()
        found: Mapping[str, Any] = self.container.attrs["State"]
        return found

    def log(self) -> str:
        """Return all that the container said."""
        text: str = self.container.logs().decode(errors="replace")
        return text

    def await_end(self, timeout_s: float = 60) -> int:
        """Return the exit status once the container has ended."""
        status: int = self.container.wait(timeout=timeout_s)["StatusCode"]
        return status


def gateway_of(network: Network) -> str:
    """Return the host's address in a network."""
    address: str = network.attrs["IPAM"]["Config"][0]["Gateway"]
    return address


@contextlib.contextmanager
def boxed(
    engine: docker.DockerClient,
    network: Network,
    image: str,
    *,
    environment: Mapping[str, str] | None = None,
    step_s: float = 0.05,
    is_to_be_ready: bool = True,
    boot_timeout_s: float = 60,
    **options: Any,  # noqa: ANN401 - the SDK's own
) -> Iterator[Box]:
    """Yield a worker in production mode that is ready for jobs; nothing of it is left afterwards."""
    with RunPodPlatform(long_poll_s=1.0, host=gateway_of(network)) as platform:
        variables = {
            **platform.worker_env(),
            "RUNPOD_PING_INTERVAL": "1000",
            "COMFYUI_ARGS": f"--step-s {step_s}",
            **(environment or {}),
        }
        container = engine.containers.run(
            image, detach=True, environment=variables, network=network.name, **{**STRICT, **options}
        )
        box = Box(platform, container)
        try:
            if is_to_be_ready:
                assert until(lambda: platform.takes or box.state()["Status"] == "exited", boot_timeout_s)
                assert platform.takes, box.log()
            yield box
        except BaseException:
            print("\n".join(box.log().splitlines()[-LOG_TAIL:]))
            raise
        finally:
            container.remove(force=True)
