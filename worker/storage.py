"""The bucket of one job: the worker's own, or that of the job's `s3Config`."""

from __future__ import annotations

from dataclasses import replace

from comfy_client.buckets import Bucket, is_address, is_public_address
from comfy_client.contract import Fault
from comfy_client.fetch import Resolve, resolve_host

_S3_CONFIG = ("endpointUrl", "accessId", "accessSecret", "bucketName")
"""The keys of a job's `s3Config` (reference/runpod.md 1.9, 3.1)."""


def job_bucket(
    s3_config: object, configured: Bucket | None, resolve: Resolve = resolve_host
) -> tuple[Bucket | None, list[Fault]]:
    """Return the bucket of a job: that of its `s3Config`, else the worker's; and the faults of `s3Config`.

    An endpoint of the job's own must be https and public, unless it is the worker's: an address inside is nobody's to
    choose. It is looked at here, before ComfyUI does anything, and by the client again.
    """
    if s3_config is None:
        return configured, []
    if not isinstance(s3_config, dict):
        return None, [Fault("s3Config", f"must be an object of {', '.join(_S3_CONFIG)}")]
    values = {name: s3_config.get(name) for name in _S3_CONFIG}
    faults = [
        Fault(f"s3Config.{name}", "is missing, or no plain text")
        for name, value in values.items()
        if not (isinstance(value, str) and value and value.isprintable())
    ]
    endpoint = str(values["endpointUrl"])
    is_ours = configured is not None and endpoint == configured.endpoint_url
    if not faults and not is_ours and not is_address(endpoint, "https"):
        faults.append(Fault("s3Config.endpointUrl", "must be an address that begins with https://"))
    elif not faults and not is_ours and not is_public_address(endpoint, resolve):
        faults.append(Fault("s3Config.endpointUrl", "must be the address of a server on the public internet"))
    if faults:
        return None, faults
    base = configured if is_ours and configured is not None else _DEFAULTS
    return replace(
        base,
        endpoint_url=endpoint,
        access_key_id=str(values["accessId"]),
        secret_access_key=str(values["accessSecret"]),
        name=str(values["bucketName"]),
        public_url="",
        must_be_public=not is_ours,
    ), []


_DEFAULTS = Bucket(
    endpoint_url="",
    access_key_id="",
    secret_access_key="",
    name="",
    region="auto",
    prefix="",
    public_url="",
    url_expires_s=86_400,
)
