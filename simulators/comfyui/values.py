"""What travels along the links of a graph, as frozen values in place of tensors."""

from __future__ import annotations

import random
import string
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from simulators.comfyui.files import Folders
from simulators.comfyui.pictures import Sketch

Given = Mapping[str, Any]
"""A node's inputs by name, links followed."""

Loras = tuple[tuple[str, float], ...]


class NodeFailure(Exception):  # noqa: N818  what a node reports, not what we raise to a caller
    """A node fails the way a real one would; `type_name` is the class that the real one raises."""

    def __init__(self, type_name: str, message: str, tip: str = "") -> None:
        super().__init__(message)
        self.type_name = type_name
        self.tip = tip


@dataclass(frozen=True)
class Model:
    """A diffusion model and the loras applied to it."""

    name: str
    loras: Loras = ()


@dataclass(frozen=True)
class Clip:
    """Text encoders, as the architecture that they were loaded for."""

    architecture: str


@dataclass(frozen=True)
class Vae:
    """An image encoder and decoder."""

    name: str


@dataclass(frozen=True)
class Conditioning:
    """An encoded text."""

    text: str
    architecture: str
    guidance: float = 3.5


@dataclass(frozen=True)
class Noise:
    """Where a sampler's noise starts from."""

    seed: int


@dataclass(frozen=True)
class Sigmas:
    """How a sampler goes: how many steps over which part of the way."""

    steps: int
    denoise: float


@dataclass(frozen=True)
class Guider:
    """A model with what guides it."""

    model: Model
    conditioning: Conditioning


@dataclass(frozen=True)
class Latent:
    """A batch of pictures that are not decoded yet."""

    frames: tuple[Sketch, ...]


@dataclass(frozen=True)
class ImageBatch:
    """A batch of pictures."""

    frames: tuple[Image.Image, ...] = field(repr=False)


@dataclass(frozen=True)
class Mask:
    """White is what may change."""

    image: Image.Image = field(repr=False)


@dataclass(frozen=True)
class Result:
    """What a node gives: values for its outputs, and what /history shows of it."""

    outputs: tuple[Any, ...] = ()
    shown: dict[str, Any] | None = None


def _temp_suffix() -> str:
    return "_temp_" + "".join(random.choices(string.ascii_lowercase, k=5))  # noqa: S311  a name, not a secret


@dataclass(frozen=True)
class NodeContext:
    """What a running node may touch besides its inputs."""

    folders: Folders
    graph: Mapping[str, Any]
    extra_pnginfo: Mapping[str, Any] | None
    sample: Callable[[Latent, int], Awaitable[None]]
    send_picture: Callable[[int, int, bytes], Awaitable[None]]
    temp_suffix: str = field(default_factory=_temp_suffix)


Behaviour = Callable[[NodeContext, Given], "Result | Awaitable[Result]"]
"""What a node does. A coroutine runs on the event loop, anything else in a thread."""
