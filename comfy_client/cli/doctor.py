"""What is wrong between this machine and a picture, step by step; each finding says what to do about it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from comfy_client.client import Client
from comfy_client.contract import ErrorCode, JsonObject
from comfy_client.errors import ComfyClientError, ConfigError
from comfy_client.providers import PROVIDERS, SWITCH, VARIABLES, provider_name

TINY: JsonObject = {"prompt": "a pixel art knight", "width": 128, "height": 128, "steps": 1, "seed": 1}


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. `error` is there where it is not well."""

    what: str
    sentence: str
    error: ComfyClientError | None = None
    is_warning: bool = False

    @property
    def mark(self) -> str:
        """`ok`, `??` where it may become well by itself, `!!` where something is to be done."""
        return "!!" if self.error else "??" if self.is_warning else "ok"


def find_settings(environment: Mapping[str, str]) -> Iterator[Finding]:
    """Yield what the variables say: the provider, and which of the client's variables are set. No key is shown."""
    try:
        name = provider_name(environment)
    except ConfigError as error:
        yield Finding("provider", str(error), error)
        return
    yield Finding("provider", f"{name}: {PROVIDERS[name].reaches}. It needs {PROVIDERS[name].needs}")
    shown = [
        f"{each}={'(set)' if variable.secret else environment[each]}"
        for each, variable in VARIABLES.items()
        if environment.get(each) and each != SWITCH
    ]
    yield Finding("variables", ", ".join(shown) or "none of the client's is set")


def find_endpoint(client: Client) -> Iterator[Finding]:
    """Yield what the provider answers: its address, the key, the endpoint, the workers, its models."""
    try:
        health = client.health()
    except ComfyClientError as error:
        what = {ErrorCode.AUTH_FAILED: "key", ErrorCode.ENDPOINT_NOT_FOUND: "endpoint"}.get(error.code, "address")
        ask = ". Does it run there, and is this its address?" if what == "address" else ""
        yield Finding(what, f"{client.provider!r}: {error}{ask}", error)
        return
    yield Finding("address", f"{client.provider!r} answers, and takes the key")
    counts = ", ".join(f"{count} {state}" for state, count in {**health.workers, **health.jobs}.items() if count)
    is_warning = health.why in {"throttled", "unhealthy", "no_worker"}
    nothing = "no worker, no job" if health.workers else "no job"
    yield Finding("workers", f"{health.sentence} ({counts or nothing})", is_warning=is_warning)
    missing = client.provider.missing_models()
    if missing is None:
        yield Finding("models", "not to be asked here; this project's worker takes no job without them")
    elif missing:
        problem = f"ComfyUI does not have {', '.join(missing)}. scripts/download_models fetches them"
        yield Finding("models", problem, ConfigError(problem))
    else:
        yield Finding("models", "all files of the workflows are there")


def find_picture(client: Client) -> Finding:
    """Return whether a tiny picture can be made."""
    begun_at = time.monotonic()
    try:
        image = client.run(**TINY).image
    except ComfyClientError as error:
        return Finding("picture", str(error), error)
    return Finding("picture", f"{image.width} x {image.height} in {time.monotonic() - begun_at:.1f} s")
