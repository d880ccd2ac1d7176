"""Stores images in an S3-compatible bucket (AWS S3, R2, GCS, MinIO). The only module that imports boto3.

boto3 supports neither a deadline nor cancellation, so each upload runs in a thread that can be abandoned. An abandoned
upload ends at its next read of the body, or at boto3's timeouts.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any
from urllib.parse import quote, urlsplit

from comfy_core.environment import number, read, variable
from comfy_core.error_codes import ErrorCode
from comfy_core.errors import ConfigError, JobError, missing_extra
from comfy_core.s3_hosts import parse_endpoint_url
from comfy_core.safe_connection import Resolve, is_public_host, resolve_host

_CONNECT_TIMEOUT_S = 10
_READ_TIMEOUT_S = 60
_HTTPS_PORT = 443
_HOST = r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?)(:[0-9]{1,5})?"
_CHECK_INTERVAL_S = 0.1
"""Interval between calls of `raise_if_stopped` during an upload."""


def is_valid_url(text: str, *schemes: str) -> bool:
    """Return whether `text` is a URL with a valid host and one of `schemes`."""
    return bool(re.fullmatch(rf"({'|'.join(schemes)})://{_HOST}(/\S*)?", text))


def _parse_endpoint(text: str) -> str:
    if text and not is_valid_url(text, "http", "https"):
        raise ValueError("must be a URL that begins with http:// or https://")
    return text


@dataclass(frozen=True)
class Bucket:
    """Configuration of a bucket. Without `public_url`, URLs are presigned and expire."""

    endpoint_url: str = variable(
        "BUCKET_ENDPOINT_URL",
        _parse_endpoint,
        "S3 endpoint URL. It may contain the bucket: `https://BUCKET.s3.REGION.amazonaws.com`.",
    )
    name: str = variable("BUCKET_NAME", str, "Bucket for images. Default: the bucket in BUCKET_ENDPOINT_URL.")
    access_key_id: str = variable("BUCKET_ACCESS_KEY_ID", str, "Access key of the bucket.", secret=True)
    secret_access_key: str = variable("BUCKET_SECRET_ACCESS_KEY", str, "Secret key of the bucket.", secret=True)
    region: str = variable(
        "BUCKET_REGION",
        str,
        "Region of the bucket. Default: the region in BUCKET_ENDPOINT_URL, else `auto` (as R2 expects).",
    )
    prefix: str = variable(
        "BUCKET_PREFIX", lambda text: text.strip("/"), "Folder in the bucket, put before file names."
    )
    public_url: str = variable(
        "BUCKET_PUBLIC_URL", str, "Public base URL of the bucket. Default: none; URLs are presigned and expire."
    )
    url_expires_s: int = variable(
        "BUCKET_URL_EXPIRES_S", number(int, 60, 604_800), "Seconds until a presigned URL expires.", "86400"
    )
    must_be_public: bool = False
    """Whether the endpoint must not be on an internal network (SSRF). True for a bucket that a request configures."""

    def key(self, name: str) -> str:
        """Return the object key for the file `name`: the prefix and the name."""
        return f"{self.prefix}/{name}" if self.prefix else name


class _AbandonedError(Exception):
    """The upload was abandoned."""


class _AbandonableBody(io.BytesIO):
    """The body of an upload. After `abandon`, every read raises _AbandonedError, also during a retry by boto3."""

    is_abandoned = False

    def abandon(self) -> None:
        self.is_abandoned = True

    def read(self, size: int | None = -1, /) -> bytes:
        if self.is_abandoned:
            raise _AbandonedError
        return super().read(size)


class ObjectStore:
    """The files in a bucket, below the bucket's `prefix`. The S3 client is created at the first call.

    A method raises JobError (output_not_stored) if its request fails. The message has the bucket's error code and no
    URL.
    """

    def __init__(self, bucket: Bucket, resolve: Resolve = resolve_host) -> None:
        self.bucket = bucket
        self._resolve = resolve

    def put(
        self,
        name: str,
        data: bytes,
        mime_type: str,
        raise_if_stopped: Callable[[], None] = lambda: None,
        *,
        cache_control: str = "",
    ) -> str:
        """Upload a file and return its URL.

        boto3 retries the upload twice, which is safe because content and name are the same. `raise_if_stopped` is
        called before the upload and ten times a second during it. An exception that it raises ends the upload.
        """
        body = _AbandonableBody(data)
        raise_if_stopped()
        client = self._client
        executor = ThreadPoolExecutor(1, "store")
        upload = executor.submit(
            client.put_object,
            Bucket=self.bucket.name,
            Key=self.bucket.key(name),
            Body=body,
            ContentType=mime_type,
            ContentDisposition=_content_disposition(name.rpartition("/")[2]),
            **({"CacheControl": cache_control} if cache_control else {}),
        )
        executor.shutdown(wait=False)
        try:
            while not wait([upload], _CHECK_INTERVAL_S).done:
                raise_if_stopped()
            with self._errors():
                upload.result()
        finally:
            body.abandon()
        return self.url(name)

    def url(self, name: str) -> str:
        """Return the URL of a file: public if the bucket has a public base URL, otherwise presigned."""
        path = self.bucket.key(name)
        if self.bucket.public_url:
            return f"{self.bucket.public_url.rstrip('/')}/{quote(path)}"
        client = self._client
        with self._errors():
            url: str = client.generate_presigned_url(
                "get_object",
                Params={"Bucket": self.bucket.name, "Key": path},
                ExpiresIn=self.bucket.url_expires_s,
            )
        return url

    def get(self, name: str) -> bytes:
        """Return the content of a file. Raises FileNotFoundError if it does not exist."""
        client = self._client
        with self._errors(_NOT_FOUND_CODES):
            data: bytes = client.get_object(Bucket=self.bucket.name, Key=self.bucket.key(name))["Body"].read()
        return data

    def delete(self, name: str) -> None:
        """Delete a file, if it exists."""
        client = self._client
        with self._errors():
            client.delete_object(Bucket=self.bucket.name, Key=self.bucket.key(name))

    @contextmanager
    def _errors(self, not_found: frozenset[str] = frozenset()) -> Iterator[None]:
        """Raise JobError instead of boto3's exceptions, and FileNotFoundError for the error codes `not_found`."""
        from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415 - as in _client

        try:
            yield
        except ClientError as error:
            code = str(error.response.get("Error", {}).get("Code", "an error"))[:100]
            if code in not_found:
                raise FileNotFoundError(code) from None
            raise _not_stored_error(self.bucket, f"returned {code}") from None
        except BotoCoreError as error:
            raise _not_stored_error(self.bucket, f"was not reached ({type(error).__name__})") from None

    @cached_property
    def _client(self) -> Any:  # noqa: ANN401 - boto3 has no types
        try:
            from boto3.session import Session  # noqa: PLC0415 - the import takes 0.3 s, and most callers have no bucket
        except ImportError as error:
            raise missing_extra("A bucket", "batch") from error
        from botocore.config import Config  # noqa: PLC0415 - as above
        from botocore.exceptions import BotoCoreError  # noqa: PLC0415 - as above

        config = Config(
            signature_version="s3v4",
            connect_timeout=_CONNECT_TIMEOUT_S,
            read_timeout=_READ_TIMEOUT_S,
            retries={"total_max_attempts": 3, "mode": "standard"},
            # R2 and GCS reject the checksums that boto3 sends by default since 1.36 (worker-comfyui #156).
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        )
        try:
            # A new session for each client: boto3's default session is not thread-safe.
            client = Session().client(
                "s3",
                endpoint_url=self.bucket.endpoint_url,
                aws_access_key_id=self.bucket.access_key_id,
                aws_secret_access_key=self.bucket.secret_access_key,
                region_name=self.bucket.region,
                config=config,
            )
        except (BotoCoreError, ValueError) as error:
            raise _not_stored_error(self.bucket, f"has settings that are not valid ({type(error).__name__})") from None
        if self.bucket.must_be_public:
            # Checked before every request, because boto3 may derive another host from endpoint and bucket
            # (`bucket.host`), and the DNS record may have changed. Two cases are not covered: a DNS response that
            # differs for boto3's own lookup (only TLS protects against that: an internal server has no certificate for
            # the host name), and a proxy that the environment configures, which resolves the host itself.
            client.meta.events.register("before-send.s3", lambda request, **_: self._check_public(request.url))
        return client

    def _check_public(self, url: str) -> None:
        if not is_public_url(url, self._resolve):
            raise _not_stored_error(self.bucket, "is not on the public internet")


_NOT_FOUND_CODES = frozenset({"NoSuchKey", "404", "NotFound"})


def _content_disposition(filename: str) -> str:
    """Return the Content-Disposition header for `filename`. Special characters are encoded as in RFC 6266."""
    if re.fullmatch(r"[\w .()-]+", filename, re.ASCII):
        return f'inline; filename="{filename}"'
    return f"inline; filename*=UTF-8''{quote(filename, safe='')}"


def _not_stored_error(bucket: Bucket, problem: str) -> JobError:
    return JobError.because(ErrorCode.OUTPUT_NOT_STORED, f"The bucket {bucket.name!r} {problem}")


def is_public_url(url: str, resolve: Resolve) -> bool:
    """Return whether the host of `url` is on the public internet."""
    try:
        parts = urlsplit(url)
        return is_public_host(parts.hostname or "", parts.port or _HTTPS_PORT, resolve=resolve)
    except ValueError:  # an invalid port
        return False


REQUIRED_VARIABLES = ("BUCKET_ENDPOINT_URL", "BUCKET_NAME", "BUCKET_ACCESS_KEY_ID", "BUCKET_SECRET_ACCESS_KEY")


def read_bucket(environment: Mapping[str, str]) -> Bucket | None:
    """Return the bucket that the variables BUCKET_* configure, or None if none of REQUIRED_VARIABLES is set.

    Raises ConfigError for an invalid value, or if only some of REQUIRED_VARIABLES are set.
    """
    bucket = read(Bucket, environment)
    if bucket.endpoint_url:
        server = parse_endpoint_url(bucket.endpoint_url, bucket.region)
        name = bucket.name or server.bucket
        if server.bucket not in {"", name}:
            raise ConfigError(
                f"BUCKET_ENDPOINT_URL names the bucket {server.bucket!r}, and BUCKET_NAME is {name!r}. "
                "Remove the bucket from the URL, or set BUCKET_NAME to the same name"
            )
        bucket = replace(bucket, endpoint_url=server.endpoint_url, name=name, region=server.region)
    values = (bucket.endpoint_url, bucket.name, bucket.access_key_id, bucket.secret_access_key)
    missing = [name for name, value in zip(REQUIRED_VARIABLES, values, strict=True) if not value]
    if len(missing) == len(REQUIRED_VARIABLES):
        return None
    if missing:
        raise ConfigError(
            f"{', '.join(missing)}: not set, but other BUCKET_ variables are. A bucket needs all of "
            f"{', '.join(REQUIRED_VARIABLES)}; set all of them, or none"
        )
    return bucket
