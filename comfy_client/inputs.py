"""The inputs of the shipped workflows as types, for editors and type checkers.

They are not checked at run time: the schemas in workflows/ are. tests/client/test_inputs.py compares the two.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, TypedDict

if TYPE_CHECKING:
    from comfy_client.job import Observer
    from comfy_client.providers.interface import JobOptions


class Lora(TypedDict, total=False):
    """The name of a LoRA file on the worker, and its strength."""

    name: str
    strength: float


class CallOptions(TypedDict, total=False):
    """Options of the call itself, in addition to the workflow's inputs."""

    options: JobOptions
    wait_timeout_s: float | None
    observer: Observer | None


class EnvelopeInputs(TypedDict, total=False):
    """Optional fields of every request, for any workflow."""

    overrides: dict[str, Any] | None
    output_format: Literal["png", "webp", "jpeg"] | None
    output_quality: int | None
    metadata: bool | None
    delivery: Literal["auto", "base64", "s3"] | None
    timeout_s: float | None


class Txt2ImgInputs(CallOptions, EnvelopeInputs, total=False):
    """Optional inputs of `txt2img`, in addition to the prompt."""

    negative_prompt: str | None
    negative_strength: float | None
    width: int | None
    height: int | None
    steps: int | None
    guidance: float | None
    seed: int | None
    num_images: int | None
    sampler: str | None
    scheduler: str | None
    loras: list[Lora | str] | None


class Img2ImgInputs(Txt2ImgInputs, total=False):
    """Optional inputs of `img2img`, in addition to the image and the prompt."""

    strength: float | None
