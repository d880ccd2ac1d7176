"""Pictures into a bucket: S3, and what speaks it (R2, GCS, MinIO). One file a call; the only module that sees boto3.

boto3 knows neither a job's deadline nor its cancel, so each file is put by a thread that can be left behind. It ends
with the next piece that it asks for, or with its timeouts.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from comfy_client.contract import ErrorCode, Fault
from comfy_client.errors import JobError
from comfy_client.fetch import Resolve, is_public_host, resolve_host

if TYPE_CHECKING:
    from botocore.client import BaseClient

_CONNECT_TIMEOUT_S = 10
_READ_TIMEOUT_S = 60
_HTTPS_PORT = 443
_TICK_S = 0.1
"""How long one wait for the bucket lasts before the job's end is looked at again."""


@dataclass(frozen=True)
class Bucket:
    """Where pictures are put. Without `public_url` their addresses are presigned, and expire."""

    endpoint_url: str
    access_key_id: str
    secret_access_key: str = field(repr=False)
    name: str
    region: str
    prefix: str
    public_url: str
    url_expires_s: int
    must_be_public: bool = False
    """Whether it was named by a caller, who must not lead the worker to an address inside."""

    def client(self, resolve: Resolve = resolve_host) -> BaseClient:
        """Return a client for it. Nothing is sent yet. Raises JobError (output_not_stored) where there can be none."""
        from boto3.session import Session  # noqa: PLC0415 - takes 0.3 s, and most workers have no bucket
        from botocore.config import Config  # noqa: PLC0415 - as above
        from botocore.exceptions import BotoCoreError  # noqa: PLC0415 - as above

        config = Config(
            signature_version="s3v4",
            connect_timeout=_CONNECT_TIMEOUT_S,
            read_timeout=_READ_TIMEOUT_S,
            retries={"total_max_attempts": 3, "mode": "standard"},
            # R2 and GCS refuse the checksums that boto3 sends by default since 1.36 (worker-comfyui #156).
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        )
        try:
            # A session of its own: boto3's default one is not safe where two jobs make their clients at once.
            client = Session().client(
                "s3",
                endpoint_url=self.endpoint_url,
                aws_access_key_id=self.access_key_id,
                aws_secret_access_key=self.secret_access_key,
                region_name=self.region,
                config=config,
            )
        except (BotoCoreError, ValueError) as error:
            raise _not_stored(self, f"has settings that are not valid ({type(error).__name__})") from None
        if self.must_be_public:
            # Looked at with every request, as boto3 may make another host of endpoint and bucket (`bucket.host`), and
            # the DNS may answer otherwise by now. Not covered: an answer of the DNS that differs once more for boto3's
            # own look-up, where only TLS stands between (a server inside cannot prove the host's name), and a proxy of
            # the environment, which looks the host up by itself.
            client.meta.events.register("before-send.s3", lambda request, **_: self._check_public(request.url, resolve))
        return client

    def _check_public(self, url: str, resolve: Resolve) -> None:
        if not _is_public(url, resolve):
            raise _not_stored(self, "is not on the public internet")


class _GivenUpError(Exception):
    """Nobody waits for the PUT any more."""


class _Body(io.BytesIO):
    """What is put; `give_up` ends the PUT when it asks for more, also where it is sent again."""

    is_given_up = False

    def give_up(self) -> None:
        self.is_given_up = True

    def read(self, size: int | None = -1, /) -> bytes:
        if self.is_given_up:
            raise _GivenUpError
        return super().read(size)


def store(
    client: Any,  # noqa: ANN401 - boto3 has no types
    bucket: Bucket,
    key: str,
    data: bytes,
    mime_type: str,
    check: Callable[[], None] = lambda: None,
) -> str:
    """Put `data` into the bucket under its prefix and return its address.

    A PUT of the same content under the same key is safe to repeat, and boto3 does, twice. `check` is called before and
    ten times a second meanwhile; the JobError that it raises ends this. Raises JobError (output_not_stored) with the
    bucket's answer, and never an address.
    """
    from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415 - as above

    path = f"{bucket.prefix}/{key}" if bucket.prefix else key
    filename = key.rpartition("/")[2]
    body = _Body(data)
    check()
    thread = ThreadPoolExecutor(1, "store")
    put = thread.submit(
        client.put_object,
        Bucket=bucket.name,
        Key=path,
        Body=body,
        ContentType=mime_type,
        ContentDisposition=_disposition(filename),
    )
    thread.shutdown(wait=False)
    try:
        while not wait([put], _TICK_S).done:
            check()
        put.result()
        if bucket.public_url:
            return f"{bucket.public_url.rstrip('/')}/{quote(path)}"
        url: str = client.generate_presigned_url(
            "get_object", Params={"Bucket": bucket.name, "Key": path}, ExpiresIn=bucket.url_expires_s
        )
    except ClientError as error:
        problem = error.response.get("Error", {}).get("Code", "an error")
        raise _not_stored(bucket, f"answered {problem}") from None
    except BotoCoreError as error:
        raise _not_stored(bucket, f"was not reached ({type(error).__name__})") from None
    finally:
        body.give_up()
    return url


def _disposition(filename: str) -> str:
    """Return the header that names the file to a browser; what is no plain ASCII stands as RFC 6266 has it."""
    if re.fullmatch(r"[\w .()-]+", filename, re.ASCII):
        return f'inline; filename="{filename}"'
    return f"inline; filename*=UTF-8''{quote(filename, safe='')}"


def _not_stored(bucket: Bucket, problem: str) -> JobError:
    return JobError.because(
        ErrorCode.OUTPUT_NOT_STORED,
        f"The bucket {bucket.name!r} {problem}. Check its name, keys and rights, or ask for delivery base64.",
    )


_HOST = r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?)(:[0-9]{1,5})?"


def is_address(text: str, *schemes: str) -> bool:
    """Return whether `text` is the address of a server, of one of `schemes`."""
    return bool(re.fullmatch(rf"({'|'.join(schemes)})://{_HOST}(/\S*)?", text))


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
    elif not faults and not is_ours and not _is_public(endpoint, resolve):
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


def _is_public(url: str, resolve: Resolve) -> bool:
    """Return whether `url` leads to the public internet."""
    try:
        parts = urlsplit(url)
        return is_public_host(parts.hostname or "", parts.port or _HTTPS_PORT, resolve=resolve)
    except ValueError:  # a port that is none
        return False


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
