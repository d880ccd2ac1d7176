"""Uploads files to an S3 bucket, and verifies that the bucket serves them."""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Mapping
from dataclasses import replace
from urllib.parse import urlsplit

from comfy_client.providers.results import fetch_secret_url
from comfy_core.contract import ErrorReport
from comfy_core.error_codes import ErrorCode
from comfy_core.errors import ConfigError, JobError, RequestError
from comfy_core.object_store import REQUIRED_VARIABLES, Bucket, ObjectStore, read_bucket

CHECK_TIMEOUT_S = 30.0
CHECK_FILE = ".comfy-client-check"
UPLOAD_TIMEOUT_S = 120.0
"""Default timeout for one file, which usually has a few megabytes."""
CACHE_CONTROL = "public, max-age=300"
"""An image may be replaced under the same name, so caches must revalidate it after five minutes."""


class BucketDestination:
    """A bucket with a key prefix.

    An upload that takes longer than `timeout_s` fails; the next run tries again.
    """

    def __init__(self, bucket: Bucket, timeout_s: float = UPLOAD_TIMEOUT_S) -> None:
        self.bucket = bucket
        self._store = ObjectStore(bucket)
        self._timeout_s = timeout_s

    @property
    def url(self) -> str:
        """The destination as an s3:// URL, as in `--out`."""
        return f"s3://{self.bucket.name}/{self.bucket.prefix}".rstrip("/")

    def check(self) -> None:
        """Upload a small file, read it back through its URL, and delete it.

        Raises JobError (output_not_stored), and ConfigError without boto3.
        """
        self.put(CHECK_FILE, b"comfy-client batch checks that this bucket works", "text/plain")
        with contextlib.suppress(JobError):  # credentials without permission to delete are sufficient
            self._store.delete(CHECK_FILE)

    def put(self, name: str, data: bytes, mime_type: str) -> str:
        """Upload a file and verify that its URL serves the same bytes.

        Return the public URL if the bucket has a public base URL, otherwise the address as an s3:// URL.

        Raises JobError (output_not_stored) if the bucket rejects the file, is too slow, or serves other bytes.
        """
        give_up_at = time.monotonic() + self._timeout_s

        def raise_if_late() -> None:
            if time.monotonic() > give_up_at:
                message = (
                    f"The upload of {name} to the bucket {self.bucket.name!r} took longer than {self._timeout_s:g} s. "
                    "Finished images are kept: run again, or allow more time with --upload-timeout."
                )
                raise JobError(ErrorReport(ErrorCode.OUTPUT_NOT_STORED, message))

        url = self._store.put(name, data, mime_type, raise_if_late, cache_control=CACHE_CONTROL)
        self._require_served(url, name, data)
        return url.partition("?")[0] if self.bucket.public_url else f"{self.url}/{name}"

    def _require_served(self, url: str, name: str, data: bytes) -> None:
        try:
            served = fetch_secret_url(url, "The bucket's URL", CHECK_TIMEOUT_S)
        except RequestError as error:
            raise _not_served(name, str(error)) from error
        if hashlib.sha256(served).digest() != hashlib.sha256(data).digest():
            raise _not_served(name, f"the URL serves other content ({len(served):,} bytes)")


def _not_served(name: str, problem: str) -> JobError:
    message = (
        f"{name} was uploaded to the bucket, but its URL does not serve it: {problem}. Check "
        "BUCKET_PUBLIC_URL, and that the bucket allows reading there."
    )
    return JobError(ErrorReport(ErrorCode.OUTPUT_NOT_STORED, message))


def bucket_destination(
    url: str, environment: Mapping[str, str], timeout_s: float = UPLOAD_TIMEOUT_S
) -> BucketDestination:
    """Return the destination for `s3://bucket/prefix`, with the credentials in the variables BUCKET_*.

    Raises ConfigError if the URL names no bucket, or if variables are missing.
    """
    parts = urlsplit(url)
    if not parts.netloc:
        raise ConfigError(f"--out {url}: name a bucket, for example s3://bucket/prefix")
    needed = [name for name in REQUIRED_VARIABLES if name != "BUCKET_NAME"]
    bucket = read_bucket({**environment, "BUCKET_NAME": parts.netloc}) if any(map(environment.get, needed)) else None
    if bucket is None:
        raise ConfigError(f"--out {url} needs {', '.join(needed)}")
    return BucketDestination(replace(bucket, prefix=parts.path.strip("/")), timeout_s)
