"""Selects a job's bucket: the worker's own, or the one in the job's `s3Config`."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeGuard

from comfy_core.contract import Fault
from comfy_core.object_store import Bucket, is_public_url, is_valid_url
from comfy_core.s3_hosts import parse_endpoint_url
from comfy_core.safe_connection import Resolve, resolve_host

_S3_CONFIG_KEYS = ("endpointUrl", "accessId", "accessSecret", "bucketName")
"""Keys of a job's `s3Config` (docs/reference/runpod.md#buckets). `endpointUrl` may contain the bucket instead."""
_REGION_KEY = "region"
"""An additional optional key, for servers whose host name does not contain the region."""


def job_bucket(
    s3_config: object, configured: Bucket | None, resolve: Resolve = resolve_host
) -> tuple[Bucket | None, list[Fault]]:
    """Return the bucket of a job and the faults of the job's `s3Config`.

    The bucket is the one in `s3Config`; None if that has faults. Without `s3Config` it is `configured`. The endpoint of
    `s3Config` must be https and public unless it is the worker's own endpoint, so that no caller can reach addresses
    inside the worker's network. The endpoint is checked here, before ComfyUI runs, and again by the S3 client.
    """
    if s3_config is None:
        return configured, []
    if not isinstance(s3_config, dict):
        return None, [Fault("s3Config", f"must be an object of {', '.join(_S3_CONFIG_KEYS)}")]
    values = {name: s3_config[name] for name in (*_S3_CONFIG_KEYS, _REGION_KEY) if s3_config.get(name) is not None}
    endpoint = values.get("endpointUrl")
    server = (
        parse_endpoint_url(endpoint, str(values.get(_REGION_KEY, ""))) if _is_text(endpoint) else parse_endpoint_url("")
    )
    if not values.get("bucketName"):
        values["bucketName"] = server.bucket
    faults = [
        Fault(f"s3Config.{name}", "is missing, or not a non-empty string")
        for name in (*_S3_CONFIG_KEYS, *values.keys() & {_REGION_KEY})
        if not _is_text(values.get(name))
    ]
    is_own_endpoint = configured is not None and server.endpoint_url == configured.endpoint_url
    if faults:
        return None, faults
    if server.bucket not in {"", values["bucketName"]}:
        faults.append(Fault("s3Config.bucketName", f"must be {server.bucket!r}, which s3Config.endpointUrl names"))
    elif not is_own_endpoint and not is_valid_url(str(endpoint), "https"):
        faults.append(Fault("s3Config.endpointUrl", "must be an address that begins with https://"))
    elif not is_own_endpoint and not is_public_url(str(endpoint), resolve):
        faults.append(Fault("s3Config.endpointUrl", "must be the address of a server on the public internet"))
    if faults:
        return None, faults
    base = configured if is_own_endpoint and configured is not None else Bucket()
    return replace(
        base,
        endpoint_url=server.endpoint_url,
        access_key_id=values["accessId"],
        secret_access_key=values["accessSecret"],
        name=values["bucketName"],
        region=base.region if is_own_endpoint and _REGION_KEY not in values else server.region,
        public_url="",
        must_be_public=not is_own_endpoint,
    ), []


def _is_text(value: object) -> TypeGuard[str]:
    return isinstance(value, str) and bool(value) and value.isprintable()
