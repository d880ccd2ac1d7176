"""The commands `deploy` and `destroy`: show the changes, ask for confirmation, apply them, generate a test image.

Progress is written to stderr. Without --json and --dry-run, `deploy` writes nothing but the client's variables to
stdout, so that it can be redirected to a file.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from functools import partial
from pathlib import Path

from comfy_client.cli.call import JSON, Call, Command
from comfy_client.cli.first_image import PROMPT, generate_first_image, prepare_first_image
from comfy_client.cli.flags import Flag, OnOff, parse_number
from comfy_client.cli.output import OutputTarget
from comfy_client.cli.questions import Declined, Questions
from comfy_client.client import client_from_env
from comfy_client.deploy.api import RestApi
from comfy_client.deploy.apply import (
    ReadyTimeouts,
    ReportProgress,
    apply,
    await_worker,
    client_variables,
    count_stale_workers,
    destroy,
    plan_destroy,
)
from comfy_client.deploy.description import Description, read_description
from comfy_client.deploy.graphql import cached_models
from comfy_client.deploy.offers import HOUR_S
from comfy_client.deploy.plan import CachedModels, DeployPlan, make_plan
from comfy_client.deploy.variables import (
    ENDPOINT_BASE_URL,
    GRAPHQL_URL,
    REST_BASE_URL,
    required_api_key,
    secrets_of,
)
from comfy_client.job_log import job_log_from_env
from comfy_client.profiles import check_name, read_profiles, required_profiles_path, save_profile
from comfy_client.providers import RUNPOD_API_KEY
from comfy_client.providers.runpod_endpoint import BASE_URL
from comfy_core.contract import JsonObject
from comfy_core.errors import ConfigError
from comfy_core.workflows import Workflow


def _deploy(call: Call) -> int:
    report = _reporter(call)
    description = read_description(Path(call.options.file))
    description.reject_placeholder()
    profiles_file = _profiles_file(call)
    output = prepare_first_image(call.options.output or f"{description.name}.png", call.screen)
    secrets = secrets_of(call.environment, description.secrets)
    models = _cached_models(call.environment)
    with closing(_rest_api(call.environment, tuple(secrets.values()))) as rest:
        plan = make_plan(rest, models, description, secrets)
        lines = [*(line for step in plan.steps for line in step.lines), *_cost_lines(description, plan)]
        if call.options.dry_run:
            call.screen.show(_plan_object(plan), *(lines if plan.steps else ["Nothing to change.", *lines]))
            return 0
        for line in lines:
            report(line)
        if plan.steps:
            _confirm(call, "Do this?")
        else:
            report("Nothing to do: RunPod already matches the description.")
        endpoint = apply(rest, models, description, plan, report)
        variables = client_variables(endpoint, BASE_URL)
        if profiles_file is not None:
            values = {RUNPOD_API_KEY.name: required_api_key(call.environment), **variables}
            save_profile(profiles_file, call.options.save_profile, values)
            report(f"profile {call.options.save_profile} written to {profiles_file}")
        wants_image = bool(plan.steps) if call.options.image is None else call.options.image
        count_stale = partial(count_stale_workers, rest, str(endpoint["id"]))
        image_path = _generate_test_image(call, output, variables, count_stale) if wants_image else None
    value = {
        **_plan_object(plan),
        "endpoint_id": endpoint["id"],
        "variables": dict(variables),
        "image": str(image_path) if image_path else None,
    }
    call.screen.show(value, *(f"{name}={text}" for name, text in variables.items()))
    report(f"Next: {_next_step(call, str(endpoint['id']))}")
    return 0


def _profiles_file(call: Call) -> Path | None:
    """Return the file for --save-profile, or None without that flag. Raises ConfigError if it cannot be used."""
    if not call.options.save_profile:
        return None
    check_name(call.options.save_profile)
    path = required_profiles_path(call.environment)
    read_profiles(path)
    return path


def _next_step(call: Call, endpoint_id: str) -> str:
    command = f'comfy-client txt2img "{PROMPT}" -o knight.png'
    if name := call.options.save_profile:
        return f"`{command} --profile {name}`"
    store = f"`comfy-client init --endpoint-id {endpoint_id}` stores the endpoint, or export these variables"
    return f"{store}. Then `{command}`"


def _destroy(call: Call) -> int:
    report = _reporter(call)
    description = read_description(Path(call.options.file))
    with closing(_rest_api(call.environment)) as rest:
        plan = plan_destroy(rest, description)
        for line in plan.lines:
            report(line)
        if plan.lines:
            _confirm(call, "Delete this? It cannot be undone.")
        destroy(rest, plan, report)
    done = f"{description.name} is deleted." if plan.lines else f"Nothing to do: there is no {description.name}."
    value = {
        "endpoint_id": plan.existing.get("endpoint", {}).get("id"),
        "template_id": plan.existing.get("template", {}).get("id"),
        "stays": list(plan.stays),
    }
    call.screen.show(value, done, *(f"Not deleted: {sentence}." for sentence in plan.stays))
    return 0


def _rest_api(environment: Mapping[str, str], secrets: tuple[str, ...] = ()) -> RestApi:
    return RestApi(required_api_key(environment), REST_BASE_URL.read(environment), secrets)


def _cached_models(environment: Mapping[str, str]) -> CachedModels:
    return partial(cached_models, required_api_key(environment), GRAPHQL_URL.read(environment))


def _reporter(call: Call) -> ReportProgress:
    """Return the function that reports progress. With --json and --yes (no user), it reports nothing."""
    return (lambda _: None) if call.screen.is_json and call.options.yes else call.screen.say


def _confirm(call: Call, question: str) -> None:
    """Ask for confirmation, unless --yes was given. Raises Declined, or ConfigError if stdin is not a terminal."""
    if call.options.yes:
        return
    if not sys.stdin.isatty():
        raise ConfigError(
            f"Nothing was changed: stdin is not a terminal, so the question {question!r} cannot be answered. Use "
            "--yes, or run the command in a terminal"
        )
    if not Questions(call.screen, "Nothing was changed.").is_confirmed(question):
        raise Declined("Nothing was changed.")


def _cost_lines(description: Description, plan: DeployPlan) -> list[str]:
    """Return lines that describe the cost of workers."""
    lines = [
        f"GPUs, prices of {plan.offers.source}:",
        *(f"  {number}. {offer.sentence}" for number, offer in enumerate(plan.offers.pools, 1)),
    ]
    rates = [offer.usd_per_s for offer in plan.offers.pools if offer.usd_per_s is not None]
    if rates:
        low, high = description.workers_min, description.workers_max
        idle_s, dearest_usd_per_h = description.workers_idle_timeout_s, max(rates) * HOUR_S
        lines += [
            f"  {low} workers always run: at most ${low * dearest_usd_per_h:.2f} an hour, busy or idle"
            if low
            else f"  0 to {high} workers: no cost while no worker runs",
            f"  idle timeout of {idle_s} s on the first GPU: ${idle_s * rates[0]:.4f}",
            f"  all {high} workers busy: at most ${high * dearest_usd_per_h:.2f} an hour",
        ]
    return lines


def _plan_object(plan: DeployPlan) -> JsonObject:
    steps = [
        {
            "verb": step.verb,
            "what": step.what,
            "changes": [{"path": each.path, "before": each.before, "after": each.after} for each in step.changes],
        }
        for step in plan.steps
    ]
    gpus = [
        {"pool": each.pool, "usd_per_s": each.usd_per_s, "memory_gb": each.memory_gb, "availability": each.availability}
        for each in plan.offers.pools
    ]
    return {"steps": steps, "gpus": gpus, "prices": plan.offers.source}


def _generate_test_image(
    call: Call, output: OutputTarget, variables: Mapping[str, str], count_stale: Callable[[], int]
) -> Path:
    """Wait for a worker, generate a test image and return its path. Ctrl-C cancels the job."""
    report = _reporter(call)
    base_url = ENDPOINT_BASE_URL.read(call.environment)
    changed = {"COMFYUI_ENDPOINT": "", **variables, **({ENDPOINT_BASE_URL.name: base_url} if base_url else {})}
    begun_at = time.monotonic()
    log = job_log_from_env(call.environment)
    with client_from_env({**call.environment, **changed}, job_log=log) as client:
        await_worker(client.health, count_stale, ReadyTimeouts(call.options.wait_timeout), report)
        left_s = max(1.0, begun_at + call.options.wait_timeout - time.monotonic())
        return generate_first_image(client, output, call.screen, report, left_s)


FILE = Flag(
    ("file",), "The deployment description. [default deploy.toml]", "FILE", {"nargs": "?", "default": "deploy.toml"}
)
YES = Flag(("--yes",), "Do not ask for confirmation.", settings={"action": "store_true"})

DEPLOY_FLAGS = (
    FILE,
    Flag(("--dry-run",), "Show the changes without applying them.", settings={"action": "store_true"}),
    YES,
    Flag(
        ("--image", "--no-image"),
        "Wait for a worker and generate a test image. [default: only if something changed]",
        settings={"dest": "image", "default": None, "action": OnOff},
    ),
    Flag(("-o", "--output"), "File for the test image. [default NAME.png]", "FILE"),
    Flag(
        ("--save-profile",),
        "Store the endpoint and the API key as this profile (docs/profiles.md), in place of one of the same name.",
        "NAME",
    ),
    Flag(
        ("--wait-timeout",),
        "Timeout for the worker and the test image. [default 1200]",
        "SECONDS",
        {"type": parse_number, "default": 1200.0},
    ),
    JSON,
)


def commands(_workflows: Mapping[str, Workflow]) -> tuple[Command, ...]:
    """Return the commands `deploy` and `destroy`."""
    return Command("deploy", DEPLOY_FLAGS, _deploy), Command("destroy", (FILE, YES, JSON), _destroy)
