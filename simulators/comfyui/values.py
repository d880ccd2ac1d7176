"""Values that nodes pass to each other, in place of tensors. A text encoder is the name of its architecture."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from simulators.comfyui.files import Folders
from simulators.comfyui.images import Loras, Sketch

Inputs = Mapping[str, Any]
"""A node's inputs by name. A link is replaced by the value of the linked output."""


class NodeFailure(Exception):  # noqa: N818  a node's failure, not an error of the simulator
    """A node failed as a real one would. `type_name` is the exception class that the real node raises."""

    def __init__(self, type_name: str, message: str, tip: str = "") -> None:
        super().__init__(message)
        self.type_name = type_name
        self.tip = tip


@dataclass(frozen=True)
class Model:
    """A diffusion model, the LoRAs applied to it, and the shift of its sigmas."""

    name: str
    loras: Loras = ()
    shift: float = 1.15


@dataclass(frozen=True)
class Conditioning:
    """An encoded text."""

    text: str
    architecture: str
    guidance: float = 3.5


@dataclass(frozen=True)
class Sigmas:
    """A sampler's schedule: the number of steps, the denoising strength, and the model's shift."""

    steps: int
    denoise: float
    shift: float

    def __str__(self) -> str:
        """Return the text of the sigmas, as torch prints them, for the scheduler `simple` and denoise 1."""
        ends = [1 - step / self.steps for step in range(self.steps + 1)]
        sigmas = [math.exp(self.shift) / (math.exp(self.shift) + 1 / end - 1) if end else 0.0 for end in ends]
        return f"tensor([{', '.join(f'{sigma:.4f}' for sigma in sigmas)}])"


@dataclass(frozen=True)
class Guider:
    """A model with its conditioning."""

    model: Model
    conditioning: Conditioning


@dataclass(frozen=True)
class Latent:
    """A batch of images that are not decoded yet."""

    frames: tuple[Sketch, ...]


@dataclass(frozen=True)
class ImageBatch:
    """A batch of images."""

    frames: tuple[Image.Image, ...] = field(repr=False)


@dataclass(frozen=True)
class Result:
    """A node's result: the values of its outputs, and its UI output, which is its entry in /history."""

    outputs: tuple[Any, ...] = ()
    ui_output: dict[str, Any] | None = None


@dataclass(frozen=True)
class NodeContext:
    """Folders, request data and callbacks that a running node can use besides its inputs."""

    folders: Folders
    graph: Mapping[str, Any]
    extra_pnginfo: Mapping[str, Any] | None
    sample: Callable[[Latent, int], Awaitable[None]]
    send_image: Callable[[int, int, bytes], Awaitable[None]]
    send_pixels: Callable[[int, int, Image.Image], None]


Behaviour = Callable[[NodeContext, Inputs], "Result | Awaitable[Result]"]
"""A node's implementation. A coroutine runs on the event loop, a function in a thread."""
