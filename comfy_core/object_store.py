"""A bucket for pictures: S3, and what speaks it (R2, GCS, MinIO). One file a call; the only module that sees boto3.

boto3 knows neither a job's deadline nor its cancel, so each file is put by a thread that can be left behind. It ends
with the next piece that it asks for, or with its timeouts.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from comfy_core.contract import ErrorCode
from comfy_core.errors import ConfigError, JobError, missing_extra
from comfy_core.s3_hosts import located
from comfy_core.safe_fetch import Resolve, is_public_host, resolve_host

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

    def key(self, name: str) -> str:
        """Return the key of the file `name`, under the prefix."""
        return f"{self.prefix}/{name}" if self.prefix else name

    def client(self, resolve: Resolve = resolve_host) -> BaseClient:
        """Return a client for it. Nothing is sent yet.

        Raises JobError (output_not_stored) where there can be none, ConfigError where boto3 is missing.
        """
        try:
            from boto3.session import Session  # noqa: PLC0415 - takes 0.3 s, and most callers have no bucket
        except ImportError as error:
            raise missing_extra("A bucket", "batch") from error
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
        if not is_public_address(url, resolve):
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
    *,
    cache_control: str = "",
) -> str:
    """Put `data` into the bucket under its prefix and return its address.

    A PUT of the same content under the same key is safe to repeat, and boto3 does, twice. `check` is called before and
    ten times a second meanwhile; the JobError that it raises ends this. Raises JobError (output_not_stored) with the
    bucket's answer, and never an address.
    """
    from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415 - as above

    path = bucket.key(key)
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
        **({"CacheControl": cache_control} if cache_control else {}),
    )
    thread.shutdown(wait=False)
    try:
        while not wait([put], _TICK_S).done:
            check()
        put.result()
        return address(client, bucket, key)
    except ClientError as error:
        raise _not_stored(bucket, f"answered {_code(error)}") from None
    except BotoCoreError as error:
        raise _not_stored(bucket, f"was not reached ({type(error).__name__})") from None
    finally:
        body.give_up()


def address(client: Any, bucket: Bucket, key: str) -> str:  # noqa: ANN401 - as above
    """Return where a file of the bucket is to be had: its public address, else one that is signed and expires."""
    path = bucket.key(key)
    if bucket.public_url:
        return f"{bucket.public_url.rstrip('/')}/{quote(path)}"
    url: str = client.generate_presigned_url(
        "get_object", Params={"Bucket": bucket.name, "Key": path}, ExpiresIn=bucket.url_expires_s
    )
    return url


def fetch(client: Any, bucket: Bucket, key: str) -> bytes:  # noqa: ANN401 - as above
    """Return a file of the bucket. Raises FileNotFoundError, or JobError (output_not_stored)."""
    from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415 - as above

    try:
        data: bytes = client.get_object(Bucket=bucket.name, Key=bucket.key(key))["Body"].read()
    except ClientError as error:
        if _code(error) in _ABSENT:
            raise FileNotFoundError(key) from None
        raise _not_stored(bucket, f"answered {_code(error)}") from None
    except BotoCoreError as error:
        raise _not_stored(bucket, f"was not reached ({type(error).__name__})") from None
    return data


def delete(client: Any, bucket: Bucket, key: str) -> None:  # noqa: ANN401 - as above
    """Remove a file of the bucket; nothing happens where there is none. Raises JobError (output_not_stored)."""
    from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415 - as above

    try:
        client.delete_object(Bucket=bucket.name, Key=bucket.key(key))
    except ClientError as error:
        raise _not_stored(bucket, f"answered {_code(error)}") from None
    except BotoCoreError as error:
        raise _not_stored(bucket, f"was not reached ({type(error).__name__})") from None


_ABSENT = frozenset({"NoSuchKey", "404", "NotFound"})


def _code(error: Any) -> str:  # noqa: ANN401 - botocore's
    return str(error.response.get("Error", {}).get("Code", "an error"))[:100]


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


def is_public_address(url: str, resolve: Resolve) -> bool:
    """Return whether `url` leads to the public internet."""
    try:
        parts = urlsplit(url)
        return is_public_host(parts.hostname or "", parts.port or _HTTPS_PORT, resolve=resolve)
    except ValueError:  # a port that is none
        return False


def _server(text: str) -> str:
    if not is_address(text, "http", "https"):
        raise ValueError("must be an address that begins with http:// or https://")
    return text


def _expiry(text: str) -> int:
    seconds = int(text)
    if not 60 <= seconds <= 604_800:  # noqa: PLR2004 - S3's own limit is seven days
        raise ValueError("must be from 60 to 604800")
    return seconds


@dataclass(frozen=True)
class BucketVariable:
    """One variable of a bucket: how its text is read into the field of `Bucket`, and what it means."""

    name: str
    field: str
    parse: Callable[[str], Any]
    default: str
    meaning: str
    secret: bool = False


VARIABLES = (
    BucketVariable(
        "BUCKET_ENDPOINT_URL",
        "endpoint_url",
        _server,
        "",
        "S3 address of the bucket's provider. It may name the bucket: `https://BUCKET.s3.REGION.amazonaws.com`.",
    ),
    BucketVariable("BUCKET_NAME", "name", str, "", "The bucket for pictures. Absent: the one that the address names."),
    BucketVariable("BUCKET_ACCESS_KEY_ID", "access_key_id", str, "", "Its access key.", secret=True),
    BucketVariable("BUCKET_SECRET_ACCESS_KEY", "secret_access_key", str, "", "Its secret key.", secret=True),
    BucketVariable(
        "BUCKET_REGION",
        "region",
        str,
        "",
        "Its region. Absent: the one that the address names, else `auto`, as R2 has it.",
    ),
    BucketVariable(
        "BUCKET_PREFIX", "prefix", lambda text: text.strip("/"), "", "Folder in it, in front of a file's name."
    ),
    BucketVariable(
        "BUCKET_PUBLIC_URL",
        "public_url",
        str,
        "",
        "Public address of the bucket. Absent: addresses are presigned, and expire.",
    ),
    BucketVariable(
        "BUCKET_URL_EXPIRES_S", "url_expires_s", _expiry, "86400", "Seconds until a presigned address expires."
    ),
)
"""What says which bucket it is, to the worker, to the shim and to `comfy-client batch`."""
NEEDED = ("BUCKET_ENDPOINT_URL", "BUCKET_NAME", "BUCKET_ACCESS_KEY_ID", "BUCKET_SECRET_ACCESS_KEY")


def read_bucket(environment: Mapping[str, str]) -> Bucket | None:
    """Return the bucket of the variables, or None where none of the needed ones is set. Empty is absent.

    Raises ConfigError for a bad value, and where some of the needed ones are missing.
    """
    values: dict[str, Any] = {}
    for variable in VARIABLES:
        text = environment.get(variable.name, "").strip() or variable.default
        try:
            values[variable.field] = variable.parse(text) if text else ""
        except ValueError as error:
            shown = "(not shown)" if variable.secret else repr(text)
            raise ConfigError(f"{variable.name}={shown}: {error}. {variable.meaning}") from error
    if values["endpoint_url"]:
        server = located(values["endpoint_url"], values["region"])
        values["name"] = values["name"] or server.bucket
        if server.bucket not in {"", values["name"]}:
            raise ConfigError(
                f"BUCKET_ENDPOINT_URL names the bucket {server.bucket!r}, and BUCKET_NAME is {values['name']!r}. "
                "Leave the bucket out of the address, or set BUCKET_NAME to the same"
            )
        values |= {"endpoint_url": server.endpoint_url, "region": server.region}
    missing = [variable.name for variable in VARIABLES if variable.name in NEEDED and not values[variable.field]]
    if len(missing) == len(NEEDED):
        return None
    if missing:
        raise ConfigError(
            f"{', '.join(missing)}: absent, while other BUCKET_ variables are set. A bucket needs all of "
            f"{', '.join(NEEDED)}; set them all, or none"
        )
    return Bucket(**values)
