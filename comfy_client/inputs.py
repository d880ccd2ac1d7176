"""The inputs of the shipped workflows as types, for editors and type checkers.

They are not checked at run time: the schemas in workflows/ are. tests/client/test_inputs.py compares the two.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, TypedDict

if TYPE_CHECKING:
    from comfy_client.job import Observer
    from comfy_client.providers.interface import JobOptions


class Lora(TypedDict, total=False):
    """A LoRA and its strength. It is a file on the worker (`name`), or at an address: exactly one of the other keys.

    `sha256` is the expected hash of the file at the address, and is optional.
    """

    name: str
    hf: str
    civitai: int
    url: str
    sha256: str
    strength: float


class WebhookInput(TypedDict, total=False):
    """A URL that the worker calls when the job ends (docs/webhooks.md). Only `url` is required."""

    url: str
    secret_id: str
    events: list[Literal["completed", "failed", "progress"]]


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
    ai_mark: bool | None
    delivery: Literal["auto", "base64", "s3"] | None
    timeout_s: float | None
    model_tokens: dict[str, str] | None
    webhook: WebhookInput | None


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
