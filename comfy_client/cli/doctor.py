"""`comfy-client doctor`: checks provider, variables, address, key, endpoint, workers and models, with remedies."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from comfy_client.cli.call import JSON, Call, Command
from comfy_client.cli.flags import Flag
from comfy_client.cli.tables import MARK_STYLES, Column, table_lines
from comfy_client.client import Client
from comfy_client.profiles import Settings
from comfy_client.providers import SWITCH, VARIABLES, provider_name
from comfy_client.providers.direct import DirectProvider
from comfy_core.contract import JsonObject
from comfy_core.error_codes import ErrorCode
from comfy_core.errors import ComfyClientError, ConfigError
from comfy_core.workflows import Workflow

TINY_REQUEST: JsonObject = {"prompt": "a pixel art knight", "width": 128, "height": 128, "steps": 1, "seed": 1}


@dataclass(frozen=True)
class Finding:
    """The result of one check. `error` is None if the check passed or found only a possible problem (`is_warning`)."""

    what: str
    sentence: str
    error: ComfyClientError | None = None
    is_warning: bool = False

    @property
    def mark(self) -> str:
        """`ok`; `??` for a problem that may be temporary; `!!` for an error that needs a change."""
        return "!!" if self.error else "??" if self.is_warning else "ok"


def commands(_workflows: Mapping[str, Workflow]) -> tuple[Command, ...]:
    """Return the command `doctor`."""
    generate = Flag(("--generate",), "Also generate a tiny image.", settings={"action": "store_true"})
    return (Command("doctor", [generate, JSON], _doctor),)


def _doctor(call: Call) -> int:
    findings = list(_findings(call))
    found = [{"what": each.what, "mark": each.mark, "sentence": each.sentence} for each in findings]
    failed = next((finding.error for finding in findings if finding.error), None)
    report = {"error": json.loads(failed.report.to_json())} if failed else {}
    columns = (Column(styles=MARK_STYLES), Column(), Column(is_prose=True))
    rows = [(each.mark, each.what, each.sentence) for each in findings]
    call.screen.show({"findings": found, **report}, *table_lines(call.screen, columns, rows))
    return failed.exit_status if failed else 0


def _findings(call: Call) -> Iterator[Finding]:
    try:
        name = provider_name(call.environment)
    except ConfigError as error:
        yield Finding("provider", str(error), error)
        return
    source = call.settings.source(SWITCH.name)
    yield Finding("provider", f"{name} (the default of {SWITCH.name})" if source == "default" else f"{name} ({source})")
    if profile := call.settings.profile:
        replaced = ", ".join(call.settings.replaced)
        note = f"; not used, because the environment has priority: its {replaced}" if replaced else ""
        yield Finding("profile", f"{profile.name} in {profile.file}{note}")
    try:
        client = call.client()
    except ConfigError as error:
        yield Finding("variables", str(error), error)
        return
    yield Finding("variables", describe_variables(call.settings))
    with client:
        has_passed = True
        for finding in check_endpoint(client):
            has_passed = has_passed and finding.error is None
            yield finding
        if call.options.generate and has_passed:
            yield check_generation(client)


def describe_variables(settings: Settings) -> str:
    """Return the client's variables that are set, except IMAGE_GENERATION_PROVIDER, with secrets masked.

    With a profile, each has its source.
    """
    return ", ".join(
        f"{each}={'(set)' if variable.secret else settings.environment[each]}"
        + (f" ({settings.source(each)})" if settings.profile else "")
        for each, variable in VARIABLES.items()
        if settings.environment.get(each) and each != SWITCH.name
    )


def check_endpoint(client: Client) -> Iterator[Finding]:
    """Check the provider's address, key, endpoint, workers and models, and yield the findings.

    Nothing else is checked after a failed request for the provider's health.
    """
    try:
        health = client.health()
    except ComfyClientError as error:
        what = {ErrorCode.AUTH_FAILED: "key", ErrorCode.ENDPOINT_NOT_FOUND: "endpoint"}.get(error.code, "address")
        hint = ". Check that it is running and that this is its address" if what == "address" else ""
        if hint and isinstance(client.provider, DirectProvider):
            hint += ". `comfy-client simulate` runs a simulated ComfyUI"
        yield Finding(what, f"{client.provider}: {error}{hint}", error)
        return
    key = "; the key is accepted" if client.provider.jobs_outlive_process else ""
    yield Finding("address", f"{client.provider} responds{key}")
    counts = ", ".join(f"{count} {state}" for state, count in {**health.workers, **health.jobs}.items() if count)
    is_warning = health.why in {"throttled", "unhealthy", "no_worker"}
    nothing = "no worker, no job" if health.workers else "no job"
    yield Finding("workers", f"{health.sentence} ({counts or nothing})", is_warning=is_warning)
    missing = client.provider.missing_models()
    if missing is None:
        yield Finding("models", "cannot be checked remotely; this project's worker takes no jobs without its models")
    elif missing:
        problem = (
            f"ComfyUI does not have {', '.join(missing)}. Copy them into its models folder with these names, or run "
            "scripts/download_models"
        )
        yield Finding("models", problem, ConfigError(problem))
    else:
        yield Finding("models", "ComfyUI has all files of the workflows")


def check_generation(client: Client) -> Finding:
    """Generate a tiny image and return the finding."""
    begun_at = time.monotonic()
    try:
        image = client.run(
            **TINY_REQUEST, observer=lambda _: None
        ).image  # With an observer the job id is known at once, so that Ctrl-C can cancel the job.
    except ComfyClientError as error:
        return Finding("image", str(error), error)
    return Finding("image", f"{image.width} x {image.height} in {time.monotonic() - begun_at:.1f} s")
