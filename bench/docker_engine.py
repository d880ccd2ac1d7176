"""Connects to the Docker engine, and builds images with the command line, because the SDK does not use BuildKit."""

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

from bench.worker_setup import ROOT

BASE_IMAGE = "comfy-client/base:bookworm"
BUILD_TIMEOUT_S = 900


def connect() -> docker.DockerClient | None:
    """Return the SDK's client of the engine, or None if no engine responds."""
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
    """Build the base image with scripts/release/base_image if it does not exist."""
    try:
        client.images.get(BASE_IMAGE)
    except ImageNotFound:
        subprocess.run(
            [str(ROOT / "scripts" / "release" / "base_image"), BASE_IMAGE], check=True, timeout=BUILD_TIMEOUT_S
        )


@dataclass(frozen=True)
class Build:
    """How an image is built: a target of docker-bake.hcl, and replacements for parts of the target.

    Attributes:
        target: the target in docker-bake.hcl.
        args: build arguments that override those of the bake file.
        contexts: folders that replace stages of the Dockerfile, by the stage's name.
        environment: variables for the build, in addition to those of this process. Secrets are read from variables.
    """

    target: str
    args: Mapping[str, str] = field(default_factory=dict)
    contexts: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)

    def run(self, tag: str, *options: str, context: Path = ROOT) -> str:
        """Build from the folder `context`, name the result `tag`, and return the log. Raises BuildFailedError."""
        plan = self._bake_target()
        command = ["docker", "buildx", "build", "--progress=plain", "--network=host", f"--target={plan['target']}"]
        command += [f"--tag={tag}", *options]
        for name, value in {**plan.get("args", {}), "BASE_IMAGE": BASE_IMAGE, **self.args}.items():
            command.append(f"--build-arg={name}={value}")
        command += [f"--build-context={name}={folder}" for name, folder in self.contexts.items()]
        command += [f"--secret={secret}" for secret in plan.get("secret", [])]
        environment = {**os.environ, **self.environment}
        build = subprocess.run(
            [*command, "."],
            cwd=context,
            env=environment,
            capture_output=True,
            text=True,
            timeout=BUILD_TIMEOUT_S,
            check=False,
        )
        if build.returncode:
            raise BuildFailedError(build.stderr)
        return build.stderr

    def _bake_target(self) -> dict[str, Any]:
        """Return the target's definition in docker-bake.hcl.

        `run` passes the definition to `buildx build`, because `buildx bake` cannot build with the host's network.
        """
        printed = subprocess.run(
            [str(ROOT / "scripts" / "build"), "--print", self.target], check=True, capture_output=True, text=True
        )
        plan: dict[str, Any] = json.loads(printed.stdout)["target"][self.target]
        return plan


class BuildFailedError(Exception):
    """A build failed. The message is the build's log."""
