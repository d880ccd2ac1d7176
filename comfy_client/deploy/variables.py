"""Environment variables of `comfy-client deploy` and `destroy`, in addition to the secrets named in deploy.toml."""

from __future__ import annotations

from collections.abc import Mapping

from comfy_client.providers import VARIABLES as CLIENT_VARIABLES
from comfy_client.providers import EnvironmentVariable
from comfy_core.errors import ConfigError

REST_URL = "https://api.runpod.io/v2"
GRAPHQL_URL = "https://api.runpod.io/graphql"

VARIABLES: Mapping[str, EnvironmentVariable] = {
    variable.name: variable
    for variable in (
        EnvironmentVariable(
            "RUNPOD_API_KEY",
            "RunPod's API key. It needs write access to Serverless (and to GraphQL for `cached_model`).",
            CLIENT_VARIABLES["RUNPOD_API_KEY"].where,
            secret=True,
        ),
        EnvironmentVariable("RUNPOD_REST_BASE_URL", "Base URL of RunPod's REST API v2.", f"default `{REST_URL}`"),
        EnvironmentVariable(
            "RUNPOD_GRAPHQL_URL",
            "URL of RunPod's GraphQL API, which only `cached_model` needs. RunPod retires it early in 2027.",
            f"default `{GRAPHQL_URL}`",
        ),
        EnvironmentVariable(
            "RUNPOD_ENDPOINT_BASE_URL",
            "Base URL of RunPod's queue API, for the test image.",
            "default: the URL in RunPod's response for the endpoint",
        ),
    )
}
"""All environment variables of the two commands."""


def value_of(environment: Mapping[str, str], name: str) -> str:
    """Return a variable's value, or an empty string."""
    return environment.get(VARIABLES[name].name, "").strip()


def api_key(environment: Mapping[str, str]) -> str:
    """Return RunPod's API key. Raises ConfigError that says where to find it."""
    if key := value_of(environment, "RUNPOD_API_KEY"):
        return key
    variable = VARIABLES["RUNPOD_API_KEY"]
    raise ConfigError(f"RUNPOD_API_KEY is not set ({variable.where}). {variable.meaning}")


def secrets_of(environment: Mapping[str, str], names: tuple[str, ...]) -> Mapping[str, str]:
    """Return the values of the secrets that deploy.toml names. Raises ConfigError with all missing ones."""
    missing = [name for name in names if not environment.get(name)]
    if missing:
        raise ConfigError(
            f"{', '.join(missing)}: named as a secret in deploy.toml, but not set. Export it, or remove the name"
        )
    return {name: environment[name] for name in names}
