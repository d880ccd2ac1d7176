"""The region and the bucket in the URL of an S3 server."""

from __future__ import annotations

import pytest

from comfy_core.s3_hosts import BucketServer, parse_endpoint_url

R2_ACCOUNT = "0123456789abcdef0123456789abcdef"

HOSTS = {
    "https://s3.eu-central-1.amazonaws.com": ("s3.eu-central-1.amazonaws.com", "", "eu-central-1"),
    "https://S3.EU-Central-1.amazonaws.com/": ("S3.EU-Central-1.amazonaws.com/", "", "eu-central-1"),
    "https://my-bucket.s3.eu-central-1.amazonaws.com": ("s3.eu-central-1.amazonaws.com", "my-bucket", "eu-central-1"),
    "https://my.bucket.s3.ap-southeast-2.amazonaws.com/": (
        "s3.ap-southeast-2.amazonaws.com",
        "my.bucket",
        "ap-southeast-2",
    ),
    "https://s3.eu-central-1.amazonaws.com/my-bucket": ("s3.eu-central-1.amazonaws.com", "my-bucket", "eu-central-1"),
    "https://s3.us-east-1.amazonaws.com:443": ("s3.us-east-1.amazonaws.com:443", "", "us-east-1"),
    "https://b.s3.us-east-1.amazonaws.com:443": ("s3.us-east-1.amazonaws.com:443", "b", "us-east-1"),
    "https://s3.amazonaws.com": ("s3.amazonaws.com", "", "us-east-1"),
    "https://b.s3.amazonaws.com": ("s3.amazonaws.com", "b", "us-east-1"),
    "https://s3-external-1.amazonaws.com": ("s3-external-1.amazonaws.com", "", "us-east-1"),
    "https://s3-eu-west-1.amazonaws.com": ("s3-eu-west-1.amazonaws.com", "", "eu-west-1"),
    "https://b.s3-eu-west-1.amazonaws.com": ("s3-eu-west-1.amazonaws.com", "b", "eu-west-1"),
    "https://s3.dualstack.us-west-2.amazonaws.com": ("s3.dualstack.us-west-2.amazonaws.com", "", "us-west-2"),
    "https://b.s3.dualstack.us-west-2.amazonaws.com": ("s3.dualstack.us-west-2.amazonaws.com", "b", "us-west-2"),
    "https://s3-fips.us-gov-west-1.amazonaws.com": ("s3-fips.us-gov-west-1.amazonaws.com", "", "us-gov-west-1"),
    "https://b.s3-fips.dualstack.us-gov-east-1.amazonaws.com": (
        "s3-fips.dualstack.us-gov-east-1.amazonaws.com",
        "b",
        "us-gov-east-1",
    ),
    "https://s3.cn-north-1.amazonaws.com.cn": ("s3.cn-north-1.amazonaws.com.cn", "", "cn-north-1"),
    "https://b.s3.cn-northwest-1.amazonaws.com.cn": ("s3.cn-northwest-1.amazonaws.com.cn", "b", "cn-northwest-1"),
    "https://s3.eusc-de-east-1.amazonaws.eu": ("s3.eusc-de-east-1.amazonaws.eu", "", "eusc-de-east-1"),
    "https://bucket.vpce-1a2b-3c4d.s3.us-east-2.vpce.amazonaws.com": (
        "bucket.vpce-1a2b-3c4d.s3.us-east-2.vpce.amazonaws.com",
        "",
        "us-east-2",
    ),
    "https://b.s3-accelerate.amazonaws.com": ("b.s3-accelerate.amazonaws.com", "", "us-east-1"),
    f"https://{R2_ACCOUNT}.r2.cloudflarestorage.com": (f"{R2_ACCOUNT}.r2.cloudflarestorage.com", "", "auto"),
    f"https://{R2_ACCOUNT}.eu.r2.cloudflarestorage.com/b": (f"{R2_ACCOUNT}.eu.r2.cloudflarestorage.com", "b", "auto"),
    f"https://b.{R2_ACCOUNT}.r2.cloudflarestorage.com": (f"{R2_ACCOUNT}.r2.cloudflarestorage.com", "b", "auto"),
    "https://s3.us-west-004.backblazeb2.com": ("s3.us-west-004.backblazeb2.com", "", "us-west-004"),
    "https://s3.eu-central-2.wasabisys.com": ("s3.eu-central-2.wasabisys.com", "", "eu-central-2"),
    "https://s3.fr-par.scw.cloud": ("s3.fr-par.scw.cloud", "", "fr-par"),
    "https://nyc3.digitaloceanspaces.com": ("nyc3.digitaloceanspaces.com", "", "nyc3"),
    "https://b.fra1.digitaloceanspaces.com": ("fra1.digitaloceanspaces.com", "b", "fra1"),
    "https://fsn1.your-objectstorage.com": ("fsn1.your-objectstorage.com", "", "fsn1"),
    "https://storage.googleapis.com": ("storage.googleapis.com", "", "auto"),
    "http://minio:9000/prefix": ("minio:9000/prefix", "", "auto"),
    "http://[::1]:9000": ("[::1]:9000", "", "auto"),
    "https://s3.example.com": ("s3.example.com", "", "auto"),
    "https://s3.eu-central-1.amazonaws.com.example": ("s3.eu-central-1.amazonaws.com.example", "", "auto"),
    "https://host:99999": ("host:99999", "", "auto"),
    "https://[": ("[", "", "auto"),
}
"""Expected server, bucket and region, by URL."""


@pytest.mark.parametrize("address", HOSTS)
def test_a_url_names_region_and_bucket(address: str) -> None:
    """Every form of AWS and the common providers is recognised; nothing is guessed for other hosts."""
    server, bucket, region = HOSTS[address]

    assert parse_endpoint_url(address) == BucketServer(f"{address.partition('://')[0]}://{server}", bucket, region)
    assert parse_endpoint_url(address, "auto") == parse_endpoint_url(address)


@pytest.mark.parametrize("address", [each for each in HOSTS if "amazonaws" in each and "example" not in each])
def test_a_configured_region_takes_precedence(address: str) -> None:
    """A region takes precedence over the URL's, except `auto`, which is not a region of AWS."""
    assert parse_endpoint_url(address, "sa-east-1").region == "sa-east-1"
    assert parse_endpoint_url(address, "auto").region != "auto"
