"""A model server, and models on it."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from simulators.hugging_face import ModelServer
from worker.models.listing import ModelFile
from worker.models.source import HUGGING_FACE, Hub

SIZE = 1_000_000


@dataclass(frozen=True)
class Served:
    """A model on the server: its line in the list, its correct content, and its path on the server."""

    model: ModelFile
    content: bytes
    path: str


class ModelSetup:
    """A stand-in for Hugging Face, and its files."""

    def __init__(self, server: ModelServer) -> None:
        self.server = server
        self.hub = Hub(server.url)

    def put(self, path: str = "vae/ae.safetensors", size: int = SIZE, *, served: bytes | None = None) -> Served:
        """Put a model on the server; with `served`, with content other than listed."""
        content = random.Random(path).randbytes(size)  # noqa: S311 - bytes that no compression shortens
        there = f"/org/repo/resolve/abc/{path}"
        self.server.put(there, content if served is None else served)
        return Served(
            ModelFile(hashlib.sha256(content).hexdigest(), size, path, HUGGING_FACE + there, "MIT"), content, there
        )


@pytest.fixture
def models() -> Iterator[ModelSetup]:
    """A fresh server."""
    with ModelServer() as server:
        yield ModelSetup(server)
