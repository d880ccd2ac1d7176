"""Parses the endpoint URL of an S3 server for its region and bucket. Pure.

A presigned URL is signed for one region, and AWS rejects it if the region is wrong. boto3 looks up a bucket's region
when it uploads a file, but not when it signs a URL.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import urlsplit, urlunsplit

_BUCKET = r"(?:(?P<bucket>[a-z0-9][a-z0-9.-]*)\.)?"
_AWS_REGION = r"(?P<region>[a-z]{2,4}(?:-[a-z]+)+-\d+)"
_AWS_DOMAIN = r"(?:amazonaws\.com(?:\.cn)?|amazonaws\.eu|api\.aws)"
_REGION_AFTER_S3 = (
    r"backblazeb2\.com|wasabisys\.com|scw\.cloud|io\.cloud\.ovh\.[a-z]+|cloud-object-storage\.appdomain\.cloud"
)
_REGION_FIRST = r"digitaloceanspaces\.com|linodeobjects\.com|vultrobjects\.com|your-objectstorage\.com"
_HOSTS = tuple(
    re.compile(_BUCKET + server)
    for server in (
        # s3.REGION, s3-REGION, s3.dualstack.REGION, s3-fips.REGION, s3-fips.dualstack.REGION, s3, s3-external-1
        rf"(?P<server>s3(?:-fips)?(?:\.dualstack)?[.-]{_AWS_REGION}\.{_AWS_DOMAIN})",
        rf"(?P<server>s3(?:-external-1)?\.{_AWS_DOMAIN})",
        # Cloudflare R2: the account, and its jurisdiction
        r"(?P<server>[0-9a-f]{32}(?:\.[a-z]+)?\.r2\.cloudflarestorage\.com)",
        # Backblaze B2, Wasabi, Scaleway, OVHcloud, IBM
        rf"(?P<server>s3\.(?P<region>[a-z0-9-]+)\.(?:{_REGION_AFTER_S3}))",
        # DigitalOcean Spaces, Akamai (Linode), Vultr, Hetzner
        rf"(?P<server>(?P<region>[a-z0-9-]+)\.(?:{_REGION_FIRST}))",
    )
)
_IS_AWS = re.compile(rf"(?:.+\.)?{_AWS_DOMAIN}")
_ANY_AWS_REGION = re.compile(rf"(?:.*\.)?{_AWS_REGION}\..*")


@dataclass(frozen=True)
class BucketServer:
    """An S3 server. `bucket` is empty if the URL does not name one."""

    endpoint_url: str
    bucket: str
    region: str


def parse_endpoint_url(endpoint_url: str, region: str = "") -> BucketServer:
    """Return the parts of `endpoint_url`: the URL without the bucket, the bucket in its host or path, and the region.

    `region` is the configured region. If it is empty or `auto`, the region is taken from the host. Default for a host
    without a region: us-east-1 on AWS, else `auto`, which R2, GCS and others accept.
    """
    try:
        parts = urlsplit(endpoint_url)
    except ValueError:  # not a URL: the caller reports it
        return BucketServer(endpoint_url, "", region or "auto")
    host = (parts.hostname or "").lower()
    found = next((match for each in _HOSTS if (match := each.fullmatch(host))), None)
    is_aws = _IS_AWS.fullmatch(host) is not None
    groups = found.groupdict() if found else {}
    other = _ANY_AWS_REGION.fullmatch(host) if is_aws else None
    host_region = groups.get("region") or (other["region"] if other else "us-east-1" if is_aws else "auto")
    chosen_region = host_region if region in {"", "auto"} else region
    bucket = groups.get("bucket") or ""
    if found is None:
        return BucketServer(endpoint_url, "", chosen_region)
    if not bucket and re.fullmatch(r"/[a-z0-9.-]+/?", parts.path):
        bucket = parts.path.strip("/")
    if not bucket:
        return BucketServer(endpoint_url, "", chosen_region)
    _, colon, port = parts.netloc.partition(":")
    return BucketServer(urlunsplit((parts.scheme, groups["server"] + colon + port, "", "", "")), bucket, chosen_region)
