"""The environment variables of webhooks: signing secrets, the default webhook, and hosts in a private network."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_network
from urllib.parse import urlsplit

from comfy_core.contract import Fault
from comfy_core.environment import names, table, variable
from comfy_core.request.webhook import Webhook, read_webhook
from comfy_core.safe_connection import FetchError, FetchRules, read_url

ATTEMPT_TIMEOUT_S = 15.0
"""Seconds within which a receiver must respond."""
_PREFIX = "whsec_"
_SECRET_BYTES = range(24, 65)
"""Sizes of a secret that Standard Webhooks recommends."""
_ALL_NETWORKS = (ip_network("0.0.0.0/0"), ip_network("::/0"))


def signing_secrets(text: str) -> dict[str, tuple[str, ...]]:
    """Return the secrets by id. Raises ValueError without a secret."""
    secrets = {name: tuple(value.split()) for name, value in table(text).items()}
    if not all(values and all(map(_is_secret, values)) for values in secrets.values()):
        raise ValueError(f"each value must be {_PREFIX} and 24 to 64 bytes in base64")
    return secrets


def _is_secret(text: str) -> bool:
    try:
        return text.startswith(_PREFIX) and len(base64.b64decode(text[len(_PREFIX) :], validate=True)) in _SECRET_BYTES
    except binascii.Error:
        return False


@dataclass(frozen=True)
class WebhookSettings:
    """The settings of the webhooks that the worker delivers."""

    secrets: Mapping[str, tuple[str, ...]] = variable(
        "WORKER_WEBHOOK_SECRETS",
        signing_secrets,
        'Secrets that sign webhooks, by id: `{"default": "whsec_…"}`. Two secrets with a space between them both sign, '
        "for a change of secret.",
        secret=True,
    )
    default: Webhook | None = variable(
        "WORKER_WEBHOOK", read_webhook, "`webhook` of jobs that have none, as in a request.", secret=True
    )
    private_hosts: tuple[str, ...] = variable(
        "WORKER_WEBHOOK_PRIVATE_HOSTS",
        names,
        "Comma-separated hosts, written as in the URL, with a port if it has one. Their webhooks may use http and "
        "private addresses. All others need https, port 443 and a public address.",
    )

    def faults(self, webhook: Webhook) -> list[Fault]:
        """Return what this worker does not allow in a webhook. The host's addresses are checked at each delivery."""
        faults = []
        if webhook.secret_id not in self.secrets:
            faults.append(Fault("webhook.secret_id", "is not the id of a secret in WORKER_WEBHOOK_SECRETS"))
        try:
            read_url(webhook.url, self.rules(webhook.url))
        except FetchError as error:
            faults.append(Fault("webhook.url", f"is not allowed: {error}"))
        return faults

    def rules(self, url: str) -> FetchRules:
        """Return the rules for a webhook's URL."""
        try:
            parts = urlsplit(url)
            is_private = parts.netloc.lower() in map(str.lower, self.private_hosts)
            port = parts.port
        except ValueError:
            is_private = False
        if not is_private:
            return FetchRules(timeout_s=ATTEMPT_TIMEOUT_S)
        ports = frozenset({port} if port else ())
        return FetchRules(
            allow_http=True, allowed_networks=_ALL_NETWORKS, extra_ports=ports, timeout_s=ATTEMPT_TIMEOUT_S
        )
