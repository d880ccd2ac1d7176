"""A model server, and models that are on it."""

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
    """A model on the server: what the list says of it, its right bytes, and its path there."""

    model: ModelFile
    content: bytes
    path: str


class ModelSetup:
    """A server that stands for Hugging Face, and what is put there."""

    def __init__(self, server: ModelServer) -> None:
        self.server = server
        self.hub = Hub(server.url)

    def put(self, path: str = "vae/ae.safetensors", size: int = SIZE, *, served: bytes | None = None) -> Served:
        """Put a model on the server; with `served`, other bytes than the list will have of it."""
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
