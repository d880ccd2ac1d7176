"""The key `webhook` of a request: the URL that the worker calls with the job's events. No I/O."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from comfy_core.contract import ENVELOPE, Fault, JsonObject
from comfy_core.request.foreign_keys import NOT_A_WEBHOOK
from comfy_core.request.spellings import respelled_item
from comfy_core.request.wrappers import parsed, unwrapped, with_parsed_graph
from comfy_core.validation import Faults, filled, plain, schema_faults

_RULE: JsonObject = ENVELOPE["webhook"]


@dataclass(frozen=True)
class Webhook:
    """A valid webhook. The URL may contain a secret of its receiver.

    Attributes:
        secret_id: name of the worker's secret that signs the events.
        events: the events to deliver: `completed`, `failed`, `progress`.
    """

    url: str = field(repr=False)
    secret_id: str
    events: frozenset[str]

    @staticmethod
    def of(value: JsonObject | None) -> Webhook | None:
        """Return the webhook for a valid value of the key; None for None."""
        if value is None:
            return None
        complete = filled(value, _RULE)
        return Webhook(complete["url"], complete["secret_id"], frozenset(complete["events"]))


def webhook_faults(value: object) -> list[Fault]:
    """Return the faults of a value of the key that its schema does not find, or describes with the URL."""
    if not isinstance(value, dict):
        return [Fault("webhook", NOT_A_WEBHOOK)]
    url = value.get("url", "https://")
    is_url = isinstance(url, str) and re.match("https?://", url, re.IGNORECASE)
    return [] if is_url else [Fault("webhook.url", "must be an https URL")]


def read_webhook(text: str) -> Webhook | None:
    """Return the webhook in a JSON text; None for an empty text. Raises ValueError without the URL."""
    if not text:
        return None
    value = respelled_item(parsed(text), _RULE)
    if faults := [*webhook_faults(value), *schema_faults({"webhook": value}, {"properties": {"webhook": _RULE}})]:
        raise ValueError(f"must be an object as in docs/webhooks.md: {faults[0].path} {faults[0].message}")
    return Webhook.of(value)


def requested_webhook(raw: object) -> Webhook | None:
    """Return the webhook in a job's `input`, which may be invalid otherwise. None if there is no valid one."""
    value = with_parsed_graph(parsed(raw) if isinstance(raw, str) else raw)
    if not isinstance(value, dict):
        return None
    request = unwrapped({name: item for name, item in value.items() if item is not None}, [])
    faults = Faults()
    webhook = respelled_item(plain(request.get("webhook"), faults), _RULE)
    return None if faults or webhook_faults(webhook) or schema_faults(webhook, _RULE) else Webhook.of(webhook)
