"""Where pictures go beside the folder: a bucket, and the check that what it serves is what was put there."""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any
from urllib.parse import urlsplit

from comfy_core import object_store
from comfy_core.contract import ErrorCode
from comfy_core.errors import ConfigError, JobError, RequestError
from comfy_core.http import HttpApi

CHECK_TIMEOUT_S = 30.0
CHECK = ".comfy-client-check"
UPLOAD_TIMEOUT_S = 120.0
"""For one file; a picture has some megabytes."""
CACHE_CONTROL = "public, max-age=300"
"""A picture may be made anew under its name: what a game has cached is looked at again after five minutes."""


class BucketDestination:
    """A bucket, and what stands in front of each name in it. Its client is made when something is first put.

    A file that is not there after `timeout_s` is given up; the next run puts it.
    """

    def __init__(self, bucket: object_store.Bucket, timeout_s: float = UPLOAD_TIMEOUT_S) -> None:
        self.bucket = bucket
        self._timeout_s = timeout_s

    @cached_property
    def _client(self) -> Any:  # noqa: ANN401 - boto3 has no types
        return self.bucket.client()

    @property
    def place(self) -> str:
        """Its name, as `--out` has it."""
        return f"s3://{self.bucket.name}/{self.bucket.prefix}".rstrip("/")

    def check(self) -> None:
        """Put a small file, read it back through its address, and delete it: what a picture needs works.

        Raises JobError (output_not_stored), and ConfigError without boto3.
        """
        self.put(CHECK, b"comfy-client batch checks that this bucket works", "text/plain")
        from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415 - an extra, which is there by now

        with contextlib.suppress(BotoCoreError, ClientError):  # a key that may not delete is good enough
            self._client.delete_object(Bucket=self.bucket.name, Key=self.bucket.key(CHECK))

    def put(self, name: str, data: bytes, mime_type: str) -> str:
        """Put a file and return its address, which was asked for and gives those bytes.

        Raises JobError (output_not_stored) where the bucket refuses it, is too slow, or serves something else.
        """
        give_up_at = time.monotonic() + self._timeout_s

        def check() -> None:
            if time.monotonic() > give_up_at:
                raise JobError.because(
                    ErrorCode.OUTPUT_NOT_STORED,
                    f"The bucket {self.bucket.name!r} did not take {name} within {self._timeout_s:g} s. "
                    "Pictures that were made are kept: run again, or allow more time with --upload-timeout.",
                )

        url = object_store.store(self._client, self.bucket, name, data, mime_type, check, cache_control=CACHE_CONTROL)
        self._check(url, name, data)
        return url.partition("?")[0] if self.bucket.public_url else f"{self.place}/{name}"

    def _check(self, url: str, name: str, data: bytes) -> None:
        parts = urlsplit(url)
        api = HttpApi(f"{parts.scheme}://{parts.netloc}", name=f"The bucket's address at {parts.hostname}")
        try:
            path = f"{parts.path}?{parts.query}" if parts.query else parts.path
            served = api.call("GET", path, timeout_s=CHECK_TIMEOUT_S).content
        except RequestError as error:
            raise _not_served(name, str(error)) from error
        finally:
            api.close()
        if hashlib.sha256(served).digest() != hashlib.sha256(data).digest():
            raise _not_served(name, f"it serves {len(served):,} other bytes")


def _not_served(name: str, problem: str) -> JobError:
    return JobError.because(
        ErrorCode.OUTPUT_NOT_STORED,
        f"{name} was put into the bucket, and its address does not give it: {problem}. Check BUCKET_PUBLIC_URL, and "
        "that the bucket may be read there.",
    )


def bucket_destination(
    url: str, environment: Mapping[str, str], timeout_s: float = UPLOAD_TIMEOUT_S
) -> BucketDestination:
    """Return the destination that `s3://bucket/prefix` names; its keys are of the variables BUCKET_*.

    Raises ConfigError that names what is missing.
    """
    parts = urlsplit(url)
    if not parts.netloc:
        raise ConfigError(f"--out {url}: name a bucket, as s3://bucket/prefix")
    bucket = object_store.read_bucket({**environment, "BUCKET_NAME": parts.netloc})
    if bucket is None:
        raise ConfigError(f"--out {url} needs {', '.join(object_store.NEEDED)}")
    return BucketDestination(replace(bucket, prefix=parts.path.strip("/")), timeout_s)
