"""Environment variables of `comfy-client deploy` and `destroy`, in addition to the secrets named in deploy.toml."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from comfy_client.providers import ENDPOINT_BASE_URL as CLIENT_ENDPOINT_BASE_URL
from comfy_client.providers import RUNPOD_API_KEY
from comfy_core.environment import Variable, base_url
from comfy_core.errors import ConfigError


def _https_url(text: str) -> str:
    """Return the URL without a final slash. Raises ValueError if the API key must not be sent to it."""
    if not re.match(r"https://|http://(127\.0\.0\.1|localhost|\[::1\])(?![^:/])", text):
        raise ValueError("must be an https URL (http is allowed for this machine only)")
    return base_url(text)


API_KEY = replace(
    RUNPOD_API_KEY,
    help=f"{RUNPOD_API_KEY.help} It needs write access to Serverless (and to GraphQL for `cached_model`).",
)
REST_BASE_URL = Variable(
    "RUNPOD_REST_BASE_URL", _https_url, "Base URL of RunPod's REST API v2.", "https://api.runpod.io/v2"
)
GRAPHQL_URL = Variable(
    "RUNPOD_GRAPHQL_URL",
    _https_url,
    "URL of RunPod's GraphQL API, which only `cached_model` needs. RunPod retires it early in 2027.",
    "https://api.runpod.io/graphql",
)
ENDPOINT_BASE_URL = replace(
    CLIENT_ENDPOINT_BASE_URL,
    default="",
    help="Base URL of RunPod's queue API, for the test image. Default: the URL in RunPod's response for the endpoint.",
)
VARIABLES = (API_KEY, REST_BASE_URL, GRAPHQL_URL, ENDPOINT_BASE_URL)
"""All environment variables of the two commands."""


def required_api_key(environment: Mapping[str, str]) -> str:
    """Return RunPod's API key. Raises ConfigError that says where to find the key."""
    if key := API_KEY.read(environment):
        return key
    raise ConfigError(f"{API_KEY.name} is not set. {API_KEY.help}")


def secrets_of(environment: Mapping[str, str], names: tuple[str, ...]) -> Mapping[str, str]:
    """Return the values of the secrets that deploy.toml names. Raises ConfigError that lists all missing ones."""
    missing = [name for name in names if not environment.get(name)]
    if missing:
        raise ConfigError(
            f"{', '.join(missing)}: named as a secret in deploy.toml, but not set. Export it, or remove the name"
        )
    return {name: environment[name] for name in names}
