"""The Docker engine. Images are built with the command line, which uses BuildKit; the rest goes through the SDK."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import docker
import requests
from docker.errors import DockerException, ImageNotFound

from bench.stage import ROOT

BASE_IMAGE = "comfy-client/base:bookworm"
BUILD_TIMEOUT_S = 900


def connected() -> docker.DockerClient | None:
    """Return a client of the engine, or None if no engine responds."""
    with suppress(DockerException, requests.RequestException):
        client = docker.from_env(timeout=60)
        client.ping()
        return client
    with warnings.catch_warnings():
        # The SDK does not close its socket after a failed connection.
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()
    return None


def ensure_base_image(client: docker.DockerClient) -> None:
    """Make sure that the base image exists. It is built from Debian's packages, so no registry is needed."""
    try:
        client.images.get(BASE_IMAGE)
    except ImageNotFound:
        subprocess.run(
            [str(ROOT / "scripts" / "release" / "base_image"), BASE_IMAGE], check=True, timeout=BUILD_TIMEOUT_S
        )


@dataclass(frozen=True)
class Build:
    """How an image is built: a target of docker-bake.hcl, and the replacements for external resources.

    Attributes:
        target: in docker-bake.hcl.
        args: of the build, over those of the bake file.
        contexts: folders in place of the Dockerfile's stages, by name.
        environment: what the build's secrets are read from.
    """

    target: str
    args: Mapping[str, str] = field(default_factory=dict)
    contexts: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)

    def run(self, tag: str, *options: str, context: Path = ROOT) -> str:
        """Build from the folder `context`, name the result `tag`, and return the log. Raises BuildFailedError."""
        plan = self._plan()
        command = ["docker", "buildx", "build", "--progress=plain", "--network=host", f"--target={plan['target']}"]
        command += [f"--tag={tag}", *options]
        for name, value in {**plan.get("args", {}), "BASE_IMAGE": BASE_IMAGE, **self.args}.items():
            command.append(f"--build-arg={name}={value}")
        command += [f"--build-context={name}={folder}" for name, folder in self.contexts.items()]
        command += [f"--secret={secret}" for secret in plan.get("secret", [])]
        environment = {**os.environ, **self.environment}
        done = subprocess.run(
            [*command, "."],
            cwd=context,
            env=environment,
            capture_output=True,
            text=True,
            timeout=BUILD_TIMEOUT_S,
            check=False,
        )
        if done.returncode:
            raise BuildFailedError(done.stderr)
        return done.stderr

    def _plan(self) -> dict[str, Any]:
        """Return the target as docker-bake.hcl has it; `bake` cannot use the host's network."""
        printed = subprocess.run(
            [str(ROOT / "scripts" / "build"), "--print", self.target], check=True, capture_output=True, text=True
        )
        plan: dict[str, Any] = json.loads(printed.stdout)["target"][self.target]
        return plan


class BuildFailedError(Exception):
    """The build failed. The message is its log."""
