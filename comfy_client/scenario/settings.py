"""The shim's variables, once: each with its parser; the environment is an argument. None of Scenario.com's is read."""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from comfy_client.errors import ConfigError
from comfy_client.http import is_base_url
from comfy_client.prices import AS_OF, DEFAULT_POOL, POOLS


@dataclass(frozen=True)
class CostRules:
    """What a job is taken to cost before it has run.

    Attributes:
        usd_per_s: of a worker.
        seconds_per_step: for one step of one megapixel. The default is what is told of an RTX 4090 with the fp8 model;
            it was not measured here.
        seconds_per_job: beside the steps: decoding, encoding, the way.
        units_per_usd: Scenario's creative units for a dollar, for callers that show them.
    """

    usd_per_s: float = POOLS[DEFAULT_POOL].flex_usd_per_s
    seconds_per_step: float = 0.6
    seconds_per_job: float = 2.0
    units_per_usd: float = 100.0


@dataclass(frozen=True)
class ShimSettings:
    """How the shim behaves.

    Attributes:
        directory: where jobs, assets and pictures are kept.
        is_strict: whether a field that cannot be honoured is refused rather than noted.
        loras: from Scenario's ids of LoRAs to the worker's files.
        bucket_prefix: pictures go into the bucket of the variables BUCKET_* below it; into the folder where it is None.
        accounts: from an owner's key to its secret (Basic), see auth.py.
        tokens: bearer tokens, each an owner.
        trusted_proxies: addresses and networks whose X-Forwarded-For and X-Forwarded-Proto are believed.
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
    """One variable of the environment: its meaning, and how its text is read into a setting."""

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
        raise ValueError('must be a JSON object from ids to files, as {"model_x": "knight.safetensors"}, or its path')
    return {str(lora): str(file) for lora, file in table.items()}


def _switch(text: str) -> bool:
    if text.lower() not in {"true", "false"}:
        raise ValueError("must be true or false")
    return text.lower() == "true"


def _positive(text: str) -> float:
    number = float(text)
    if not 0 < number < 1e9:  # noqa: PLR2004 - NaN and infinity are not
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
        "Who may call, with Basic authentication: `key:secret`, several separated by commas. Each sees its own jobs "
        "and assets alone.",
        "",
        "accounts",
        _pairs,
        secret=True,
    ),
    ShimVariable(
        "SCENARIO_SHIM_TOKENS",
        "Who may call with a bearer token; several separated by commas. Each sees its own.",
        "",
        "tokens",
        _tokens,
        secret=True,
    ),
    ShimVariable(
        "SCENARIO_SHIM_DATA_DIR",
        "The folder of jobs, assets and pictures. It is all that is to be kept.",
        "scenario-shim",
        "directory",
        Path,
    ),
    ShimVariable(
        "SCENARIO_SHIM_STRICT",
        "Refuse a field that cannot be honoured, rather than leave it out and say so in the job.",
        "false",
        "is_strict",
        _switch,
    ),
    ShimVariable(
        "SCENARIO_SHIM_LORAS",
        "From Scenario's ids of LoRAs to files of the worker: JSON, or the path of a JSON file.",
        "",
        "loras",
        _loras,
    ),
    ShimVariable(
        "SCENARIO_SHIM_BUCKET_PREFIX",
        "Keep pictures in the bucket of BUCKET_ENDPOINT_URL and its kin, below this prefix, and not in the folder.",
        "",
        "bucket_prefix",
        str,
    ),
    ShimVariable(
        "SCENARIO_SHIM_PUBLIC_URL",
        "The address at which callers reach the shim, for pictures' addresses. Absent: the one that a call came to.",
        "",
        "public_url",
        _public_url,
    ),
    ShimVariable(
        "SCENARIO_SHIM_URL_SECRET",
        "Signs pictures' addresses. Absent: one that is made at the first start and kept in the folder.",
        "",
        "url_secret",
        str,
        secret=True,
    ),
    ShimVariable(
        "SCENARIO_SHIM_REQUESTS_PER_MINUTE",
        "How many calls a key may make in a minute, polls of a single job or asset apart; more are answered 429.",
        "600",
        "requests_per_minute",
        _at_least_one,
    ),
    ShimVariable(
        "SCENARIO_SHIM_POLLS_PER_MINUTE",
        "How often a key may poll single jobs, assets and uploads in a minute. 45 jobs every 3 s are 900.",
        "6000",
        "polls_per_minute",
        _at_least_one,
    ),
    ShimVariable(
        "SCENARIO_SHIM_TRUSTED_PROXIES",
        "Addresses or networks of your reverse proxies, separated by commas: their X-Forwarded-For and "
        "X-Forwarded-Proto are believed, nobody else's. Without it all callers behind a proxy count as one address.",
        "",
        "trusted_proxies",
        _networks,
    ),
    ShimVariable(
        "SCENARIO_SHIM_GPU_USD_PER_S",
        f"What a second of a worker costs, for estimates. The default is the {DEFAULT_POOL} of {AS_OF}.",
        f"{CostRules.usd_per_s:g}",
        f"{_COSTS}usd_per_s",
        _positive,
    ),
    ShimVariable(
        "SCENARIO_SHIM_SECONDS_PER_STEP",
        "Seconds for one step of one megapixel, for estimates. Take it from your own jobs.",
        f"{CostRules.seconds_per_step:g}",
        f"{_COSTS}seconds_per_step",
        _positive,
    ),
    ShimVariable(
        "SCENARIO_SHIM_UNITS_PER_USD",
        "Creative units for a dollar, where callers show them.",
        f"{CostRules.units_per_usd:g}",
        f"{_COSTS}units_per_usd",
        _positive,
    ),
)
"""Every variable of the shim beside the client's, which lead it to the endpoint."""

Environment: TypeAlias = Mapping[str, str]


def read_settings(environment: Environment) -> ShimSettings:
    """Return the settings of `environment`. Empty is absent. Raises ConfigError that names the variable."""
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
            raise ConfigError(f"{variable.name}{shown} cannot be used: {error}. {variable.meaning}") from None
        where, _, name = variable.setting.rpartition(".")
        (costs if where else values)[name] = value
    return ShimSettings(costs=CostRules(**costs), **values)
