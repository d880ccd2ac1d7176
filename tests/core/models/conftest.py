"""Fixture: a simulated Hugging Face server, to which a test adds model files."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from comfy_core.models.listing import ModelFile
from comfy_core.models.source import Hub
from comfy_core.urls import HUGGING_FACE
from simulators.hugging_face import ModelServer

SIZE = 1_000_000


@dataclass(frozen=True)
class Served:
    """A model on the server.

    Attributes:
        model: the model's line of models.txt, parsed.
        content: the content that the line describes.
        path: the path of the file's URL.
    """

    model: ModelFile
    content: bytes
    path: str


class ModelSetup:
    """A simulated Hugging Face server, and the `Hub` that names it."""

    def __init__(self, server: ModelServer) -> None:
        self.server = server
        self.hub = Hub(server.url)

    def put(self, path: str = "vae/ae.safetensors", size: int = SIZE, *, served: bytes | None = None) -> Served:
        """Put a model on the server and return it. If `served` is set, the server sends that content instead."""
        content = random.Random(path).randbytes(size)  # noqa: S311 - incompressible bytes, not secret
        url_path = f"/org/repo/resolve/abc/{path}"
        self.server.put(url_path, content if served is None else served)
        return Served(
            ModelFile(hashlib.sha256(content).hexdigest(), size, path, HUGGING_FACE + url_path, "MIT"),
            content,
            url_path,
        )


@pytest.fixture
def models() -> Iterator[ModelSetup]:
    """A new, empty server."""
    with ModelServer() as server:
        yield ModelSetup(server)
