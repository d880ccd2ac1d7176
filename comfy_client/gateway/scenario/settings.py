"""The shim's settings and the environment variables that set them. Scenario.com's own variables are not read."""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from comfy_client.prices import AS_OF, DEFAULT_POOL, POOLS
from comfy_core.errors import ConfigError
from comfy_core.http import is_base_url


@dataclass(frozen=True)
class CostRules:
    """How the cost of a job is estimated before it runs.

    Attributes:
        usd_per_s: the price of one second of a worker.
        seconds_per_step: seconds for one step of one megapixel. The default is a reported value for an RTX 4090 with
            the fp8 model; this project has not measured it.
        seconds_per_job: seconds for everything except the steps: decoding, encoding and transfer.
        units_per_usd: Scenario's creative units per US dollar, for callers that show them.
    """

    usd_per_s: float = POOLS[DEFAULT_POOL].flex_usd_per_s
    seconds_per_step: float = 0.6
    seconds_per_job: float = 2.0
    units_per_usd: float = 100.0


@dataclass(frozen=True)
class ShimSettings:
    """The shim's settings.

    Attributes:
        directory: the folder for jobs, assets and images.
        is_strict: whether unsupported fields are rejected instead of ignored.
        loras: maps Scenario's LoRA ids to the worker's file names.
        bucket_prefix: prefix in the S3 bucket of the BUCKET_* variables. None stores images in `directory`.
        accounts: maps API keys to their secrets (Basic authentication); see auth.py.
        tokens: bearer tokens. Each one is a separate owner.
        trusted_proxies: addresses and networks whose X-Forwarded-For and X-Forwarded-Proto headers are used.
    """

    directory: Path
    is_strict: bool = False
    loras: Mapping[str, str] = field(default_factory=dict)
    costs: CostRules = CostRules()
    bucket_prefix: str | None = None
    accounts: Mapping[str, str] = field(default_factory=dict, repr=False)
    tokens: tuple[str, ...] = field(default=(), repr=False)
    url_secret: str = field(default="", repr=False)
    public_url: str = ""
    requests_per_minute: int = 600
    polls_per_minute: int = 6000
    trusted_proxies: tuple[str, ...] = ()


@dataclass(frozen=True)
class ShimVariable:
    """An environment variable: its documentation, the setting that it sets, and its parser."""

    name: str
    meaning: str
    default: str
    setting: str
    read: Callable[[str], Any]
    secret: bool = False


def _pairs(text: str) -> dict[str, str]:
    """Return `key:secret` pairs, separated by commas."""
    listed = [pair.strip().partition(":")[::2] for pair in text.split(",") if pair.strip()]
    if not all(key and secret for key, secret in listed):
        raise ValueError("must be key:secret, several separated by commas")
    pairs = dict(listed)
    if len(pairs) < len(listed):
        raise ValueError("has one key twice: each key has one secret")
    return pairs


def _public_url(text: str) -> str:
    if text and not is_base_url(text):
        raise ValueError("must be an address like https://shim.example, without user name, password or query")
    return text.rstrip("/")


def _tokens(text: str) -> tuple[str, ...]:
    return tuple(token.strip() for token in text.split(",") if token.strip())


def _loras(text: str) -> dict[str, str]:
    table = json.loads(text if text.lstrip().startswith("{") else Path(text).read_text(encoding="utf-8"))
    if not isinstance(table, dict) or not all(isinstance(file, str) and file for file in table.values()):
        raise ValueError(
            'must be a JSON object that maps ids to files, such as {"model_x": "knight.safetensors"}, or the path of '
            "such a file"
        )
    return {str(lora): str(file) for lora, file in table.items()}


def _switch(text: str) -> bool:
    if text.lower() not in {"true", "false"}:
        raise ValueError("must be true or false")
    return text.lower() == "true"


def _positive(text: str) -> float:
    number = float(text)
    if not 0 < number < 1e9:  # noqa: PLR2004 - also rejects NaN and infinity
        raise ValueError("must be a number above 0")
    return number


def _at_least_one(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError("must be a whole number of at least 1")
    return number


def _networks(text: str) -> tuple[str, ...]:
    found = tuple(part.strip() for part in text.split(",") if part.strip())
    for each in found:
        ipaddress.ip_network(each)
    return found


_COSTS = "costs."
VARIABLES: tuple[ShimVariable, ...] = (
    ShimVariable(
        "SCENARIO_SHIM_ACCOUNTS",
        "Accounts for Basic authentication: `key:secret`, several separated by commas. Each account only sees its own "
        "jobs and assets.",
        "",
        "accounts",
        _pairs,
        secret=True,
    ),
    ShimVariable(
        "SCENARIO_SHIM_TOKENS",
        "Bearer tokens, separated by commas. Each token only sees its own jobs and assets.",
        "",
        "tokens",
        _tokens,
        secret=True,
    ),
    ShimVariable(
        "SCENARIO_SHIM_DATA_DIR",
        "The folder for jobs, assets and images. It has all of the shim's data: back it up.",
        "scenario-shim",
        "directory",
        Path,
    ),
    ShimVariable(
        "SCENARIO_SHIM_STRICT",
        "Reject requests with unsupported fields. Otherwise such fields are ignored and listed in the job's "
        "`metadata.hint`.",
        "false",
        "is_strict",
        _switch,
    ),
    ShimVariable(
        "SCENARIO_SHIM_LORAS",
        "A JSON object that maps Scenario's LoRA ids to LoRA files of the worker, or the path of such a JSON file.",
        "",
        "loras",
        _loras,
    ),
    ShimVariable(
        "SCENARIO_SHIM_BUCKET_PREFIX",
        "Store images in the S3 bucket configured by the BUCKET_* variables, under this prefix, instead of on disk.",
        "",
        "bucket_prefix",
        str,
    ),
    ShimVariable(
        "SCENARIO_SHIM_PUBLIC_URL",
        "The URL at which callers reach the shim, used in image URLs. Default: the URL of the current request.",
        "",
        "public_url",
        _public_url,
    ),
    ShimVariable(
        "SCENARIO_SHIM_URL_SECRET",
        "The secret that signs image URLs. Default: a random secret, created at the first start and stored in the "
        "folder.",
        "",
        "url_secret",
        str,
        secret=True,
    ),
    ShimVariable(
        "SCENARIO_SHIM_REQUESTS_PER_MINUTE",
        "Requests per minute for each key, without polls of single jobs and assets. Further requests get 429.",
        "600",
        "requests_per_minute",
        _at_least_one,
    ),
    ShimVariable(
        "SCENARIO_SHIM_POLLS_PER_MINUTE",
        "Polls of single jobs, assets and uploads per minute for each key. Polling 45 jobs every 3 s makes 900.",
        "6000",
        "polls_per_minute",
        _at_least_one,
    ),
    ShimVariable(
        "SCENARIO_SHIM_TRUSTED_PROXIES",
        "Addresses or networks of your reverse proxies, separated by commas. X-Forwarded-For and X-Forwarded-Proto are "
        "only used from these. Without it, all callers behind a proxy count as one address.",
        "",
        "trusted_proxies",
        _networks,
    ),
    ShimVariable(
        "SCENARIO_SHIM_GPU_USD_PER_S",
        f"Price of one second of a worker, for estimates. The default is the price of {DEFAULT_POOL} on {AS_OF}.",
        f"{CostRules.usd_per_s:g}",
        f"{_COSTS}usd_per_s",
        _positive,
    ),
    ShimVariable(
        "SCENARIO_SHIM_SECONDS_PER_STEP",
        "Seconds for one step of one megapixel, for estimates. Measure it with your own jobs.",
        f"{CostRules.seconds_per_step:g}",
        f"{_COSTS}seconds_per_step",
        _positive,
    ),
    ShimVariable(
        "SCENARIO_SHIM_UNITS_PER_USD",
        "Creative units per US dollar, for callers that show them.",
        f"{CostRules.units_per_usd:g}",
        f"{_COSTS}units_per_usd",
        _positive,
    ),
)
"""The shim's own variables. The client's variables, which select the endpoint, apply too."""

Environment: TypeAlias = Mapping[str, str]


def read_settings(environment: Environment) -> ShimSettings:
    """Return the settings in `environment`. An empty variable counts as not set. Raises ConfigError that names it."""
    values: dict[str, Any] = {}
    costs: dict[str, Any] = {}
    for variable in VARIABLES:
        text = environment.get(variable.name, "").strip() or variable.default
        if not text:
            continue
        try:
            value = variable.read(text)
        except (ValueError, OSError) as error:
            shown = "" if variable.secret else f"={text[:80]!r}"
            raise ConfigError(f"{variable.name}{shown} is invalid: {error}. {variable.meaning}") from None
        where, _, name = variable.setting.rpartition(".")
        (costs if where else values)[name] = value
    return ShimSettings(costs=CostRules(**costs), **values)
