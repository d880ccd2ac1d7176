"""The shim's settings and the environment variables that set them. Scenario.com's own variables are not read."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from comfy_client.gateway.scenario.bridge.upstream import OnCall, Upstream
from comfy_client.gateway.scenario.studio_models import StudioModel, lora_model, parse_table, studio_models, table_text
from comfy_client.providers import GPU_USD_PER_S
from comfy_core.contract import JsonObject
from comfy_core.environment import base_url, names, number, optional, positive, read, switch, table, variable
from comfy_core.errors import ConfigError
from comfy_core.object_store import REQUIRED_VARIABLES, Bucket, read_bucket
from comfy_core.prices import DEFAULT_POOL, POOLS
from comfy_core.request.model_address import public_name


def _pairs(text: str) -> dict[str, str]:
    """Return the secrets by key. `text` has `key:secret` pairs, separated by commas."""
    listed = [pair.partition(":")[::2] for pair in names(text)]
    if not all(key and secret for key, secret in listed):
        raise ValueError("must be key:secret, several separated by commas")
    pairs = dict(listed)
    if len(pairs) < len(listed):
        raise ValueError("has one key twice: each key has one secret")
    return pairs


def _loras(text: str) -> dict[str, str]:
    """Return the files or addresses of LoRAs by id. `text` is a JSON object, or the path of a file with one."""
    try:
        loras = table(table_text(text) if text else "")
        for name in loras.values():
            public_name(name)  # raises ValueError for an invalid address
    except ValueError as error:
        raise ValueError(
            f'must be a JSON object that maps ids to files, such as {{"model_x": "knight.safetensors"}}, or the path '
            f"of such a file ({error})"
        ) from error
    return loras


def _networks(text: str) -> tuple[str, ...]:
    found = names(text)
    for each in found:
        ipaddress.ip_network(each)
    return found


_price = positive(1e9)
_rate = number(int, 1)


@dataclass(frozen=True)
class CostRules:
    """The prices and durations from which the cost of a job is estimated. A job that has ended has its result's cost.

    Attributes:
        usd_per_s: the price of one second of a worker: COMFY_CLIENT_GPU_USD_PER_S, or the price of DEFAULT_POOL.
        seconds_per_step: the default is a reported value for an RTX 4090 with the fp8 model; this project has not
            measured it.
        seconds_per_job: seconds for everything except the steps: decoding, encoding and transfer.
    """

    usd_per_s: float = POOLS[DEFAULT_POOL].flex_usd_per_s
    seconds_per_step: float = variable(
        "SCENARIO_SHIM_SECONDS_PER_STEP",
        _price,
        "Seconds for one step of one megapixel, for estimates. Measure it with your own jobs.",
        "0.6",
    )
    units_per_usd: float = variable(
        "SCENARIO_SHIM_UNITS_PER_USD", _price, "Creative units per US dollar, for callers that show them.", "100"
    )
    seconds_per_job: float = 2.0


@dataclass(frozen=True)
class ShimSettings:
    """The shim's settings.

    Attributes:
        bucket: the bucket for images; None stores them in `directory`.
        accounts: maps API keys to their secrets (Basic authentication); see auth.py.
        tokens: bearer tokens. Each one is a separate owner.
        trusted_proxies: addresses and networks whose X-Forwarded-For and X-Forwarded-Proto headers are used.
    """

    directory: Path = variable(
        "SCENARIO_SHIM_DATA_DIR",
        Path,
        "The folder for jobs, assets and images. It has all of the shim's data: back it up.",
        "scenario-shim",
    )
    accounts: Mapping[str, str] = variable(
        "SCENARIO_SHIM_ACCOUNTS",
        _pairs,
        "Accounts for Basic authentication: `key:secret`, several separated by commas. Each account only sees its own "
        "jobs and assets.",
        secret=True,
    )
    tokens: tuple[str, ...] = variable(
        "SCENARIO_SHIM_TOKENS",
        names,
        "Bearer tokens, separated by commas. Each token only sees its own jobs and assets.",
        secret=True,
    )
    admin_keys: tuple[str, ...] = variable(
        "SCENARIO_SHIM_ADMIN_KEYS",
        names,
        "Keys of SCENARIO_SHIM_ACCOUNTS and tokens of SCENARIO_SHIM_TOKENS, separated by commas, that see the jobs of "
        "all callers on the web page, and can act for them.",
        secret=True,
    )
    is_strict: bool = variable(
        "SCENARIO_SHIM_STRICT",
        switch,
        "Reject requests with unsupported fields. Otherwise such fields are ignored and listed in the job's "
        "`metadata.hint`.",
        "false",
    )
    loras: Mapping[str, str] = variable(
        "SCENARIO_SHIM_LORAS",
        _loras,
        "A JSON object that maps Scenario's LoRA ids to LoRA files of the worker or their addresses, or the path of "
        "such a JSON file.",
        secret=True,  # a URL's query may be
    )
    models: JsonObject = variable(
        "SCENARIO_SHIM_MODELS",
        parse_table,
        "A JSON object that maps Scenario's model ids to a workflow, inputs and LoRAs, or the path of such a JSON "
        "file; `comfy-client scenario models` writes it.",
        "{}",
        secret=True,  # as above
    )
    bucket_prefix: str | None = variable(
        "SCENARIO_SHIM_BUCKET_PREFIX",
        optional(str),
        "Store images in the S3 bucket configured by the BUCKET_* variables, under this prefix, instead of on disk.",
    )
    public_url: str = variable(
        "SCENARIO_SHIM_PUBLIC_URL",
        base_url,
        "The URL at which callers reach the shim, used in image URLs. Default: the URL of the current request.",
    )
    url_secret: str = variable(
        "SCENARIO_SHIM_URL_SECRET",
        str,
        "The secret that signs image URLs. Default: a random secret, created at the first start and stored in the "
        "folder.",
        secret=True,
    )
    metrics_token: str = variable(
        "SCENARIO_SHIM_METRICS_TOKEN",
        str,
        "The bearer token with which Prometheus reads /metrics. Without it, /metrics is closed.",
        secret=True,
    )
    drain_s: float = variable(
        "SCENARIO_SHIM_DRAIN_S",
        number(float, 0, 600),
        "Seconds after SIGTERM in which /health responds with 503 while requests are still served, so that a load "
        "balancer stops sending them.",
        "5",
    )
    requests_per_minute: int = variable(
        "SCENARIO_SHIM_REQUESTS_PER_MINUTE",
        _rate,
        "Requests per minute for each key, without polls of single jobs and assets. Further requests get 429.",
        "600",
    )
    polls_per_minute: int = variable(
        "SCENARIO_SHIM_POLLS_PER_MINUTE",
        _rate,
        "Polls of single jobs, assets and uploads per minute for each key. Polling 45 jobs every 3 s makes 900.",
        "6000",
    )
    trusted_proxies: tuple[str, ...] = variable(
        "SCENARIO_SHIM_TRUSTED_PROXIES",
        _networks,
        "Addresses or networks of your reverse proxies, separated by commas. X-Forwarded-For and X-Forwarded-Proto are "
        "only used from these. Without it, all callers behind a proxy count as one address.",
    )
    upstream_api_key: str = variable(
        "SCENARIO_SHIM_UPSTREAM_API_KEY",
        str,
        "Scenario's own API key. With it, the shim forwards to Scenario what it does not serve itself.",
        secret=True,
    )
    upstream_api_secret: str = variable(
        "SCENARIO_SHIM_UPSTREAM_API_SECRET", str, "The secret of SCENARIO_SHIM_UPSTREAM_API_KEY.", secret=True
    )
    upstream_url: str = variable(
        "SCENARIO_SHIM_UPSTREAM_URL",
        base_url,
        "The URL of Scenario's API.",
        "https://api.cloud.scenario.com/v1",
    )
    costs: CostRules = field(default_factory=CostRules)
    bucket: Bucket | None = None

    def upstream(self, on_call: OnCall = lambda *_: None) -> Upstream:
        """Return Scenario's API. Raises ConfigError if the shim has no key of Scenario."""
        if not self.upstream_api_key:
            raise ConfigError(
                "SCENARIO_SHIM_UPSTREAM_API_KEY is not set. Set it and SCENARIO_SHIM_UPSTREAM_API_SECRET to Scenario's "
                "own key"
            )
        return Upstream(self.upstream_url, self.upstream_api_key, self.upstream_api_secret, on_call=on_call)

    @property
    def all_models(self) -> dict[str, StudioModel]:
        """The models of both tables, by id."""
        return {**{name: lora_model(file) for name, file in self.loras.items()}, **studio_models(self.models)}

    @staticmethod
    def from_env(environment: Mapping[str, str]) -> ShimSettings:
        """Return the settings in `environment`. Raises ConfigError that names the invalid variable."""
        usd_per_s = GPU_USD_PER_S.read(environment) or CostRules.usd_per_s
        settings = read(ShimSettings, environment, costs=read(CostRules, environment, usd_per_s=usd_per_s))
        if bool(settings.upstream_api_key) != bool(settings.upstream_api_secret):
            raise ConfigError(
                "Set both SCENARIO_SHIM_UPSTREAM_API_KEY and SCENARIO_SHIM_UPSTREAM_API_SECRET to forward calls to "
                "Scenario, or neither"
            )
        if set(settings.admin_keys) - {*settings.accounts, *settings.tokens}:
            raise ConfigError(
                "SCENARIO_SHIM_ADMIN_KEYS has a key that is neither in SCENARIO_SHIM_ACCOUNTS nor in "
                "SCENARIO_SHIM_TOKENS. Add its account or token there"
            )
        if settings.bucket_prefix is None:
            return settings
        bucket = read_bucket(environment)
        if bucket is None:
            raise ConfigError(
                f"SCENARIO_SHIM_BUCKET_PREFIX is set, but no bucket is configured. Set {', '.join(REQUIRED_VARIABLES)}"
            )
        return replace(settings, bucket=replace(bucket, prefix=settings.bucket_prefix.strip("/")))
