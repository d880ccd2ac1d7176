"""The inputs of the shipped workflows as types, for editors and type checkers.

tests/client/test_inputs.py holds them against the schemas in workflows/, which alone are checked at run time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, TypedDict

if TYPE_CHECKING:
    from comfy_client.client import Observer
    from comfy_client.providers.interface import JobOptions


class Lora(TypedDict, total=False):
    """A LoRA file of the worker, and how much it counts."""

    name: str
    strength: float


class CallOptions(TypedDict, total=False):
    """How a call is made, beside what it makes."""

    options: JobOptions
    wait_timeout_s: float | None
    observer: Observer | None


class EnvelopeInputs(TypedDict, total=False):
    """What every request may carry."""

    overrides: dict[str, Any] | None
    output_format: Literal["png", "webp", "jpeg"] | None
    output_quality: int | None
    metadata: bool | None
    delivery: Literal["auto", "base64", "s3"] | None
    timeout_s: float | None


class Txt2ImgInputs(CallOptions, EnvelopeInputs, total=False):
    """What `txt2img` takes beside the prompt."""

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
    """What `img2img` takes beside the picture and the prompt."""

    strength: float | None
