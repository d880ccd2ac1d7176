"""Storing outputs in a bucket on a real S3 server, their URLs, and errors of the bucket."""

from __future__ import annotations

import hashlib
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from urllib.parse import parse_qs, urlsplit

import pytest
import requests

from comfy_core.error_codes import ErrorCode
from comfy_core.errors import ConfigError, JobError
from comfy_core.object_store import Bucket, ObjectStore, is_valid_url
from comfy_core.safe_fetch import Resolve
from simulators.http_server import HttpHandler, HttpServer
from simulators.waiting import until
from tests.fakes.s3 import ACCESS_KEY_ID, SECRET_ACCESS_KEY, S3Server, StalledS3
from worker.job_bucket import job_bucket
from worker.settings import Settings

pytestmark = pytest.mark.slow
IMAGE = bytes(range(256)) * 64


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    """An S3 server with the bucket `pictures`."""
    with S3Server() as server:
        yield server


def put(bucket: Bucket, key: str = "job-1/knight_00001_.png", mime_type: str = "image/png") -> str:
    """Store the image and return its URL."""
    return ObjectStore(bucket).put(key, IMAGE, mime_type)


def rejected(bucket: Bucket) -> str:
    """Return the error for a bucket that rejects the image; it comes soon and contains no secret."""
    begun_at = time.monotonic()
    with pytest.raises(JobError) as info:
        put(bucket)
    assert time.monotonic() - begun_at < 15
    report = info.value.report
    assert report.code is ErrorCode.OUTPUT_NOT_STORED
    assert report.retryable
    for secret in (bucket.access_key_id, bucket.secret_access_key, "X-Amz-Signature", bucket.endpoint_url, "://"):
        assert not secret or secret not in report.to_json()
    assert info.value.__suppress_context__
    return report.message


def test_an_image_is_stored_under_prefix_job_and_name(s3: S3Server) -> None:
    """The key is prefix/job id/name; the presigned URL returns the bytes, with their type and name."""
    address = put(s3.bucket(prefix="flux/prod"))
    response = requests.get(address, timeout=10)

    assert "flux/prod/job-1/knight_00001_.png" in s3.stored()
    assert hashlib.sha256(response.content).digest() == hashlib.sha256(IMAGE).digest()
    assert response.headers["Content-Type"] == "image/png"
    assert response.headers["Content-Disposition"] == 'inline; filename="knight_00001_.png"'
    assert "X-Amz-Expires=600&" in address


def test_without_a_prefix_the_job_comes_first(s3: S3Server) -> None:
    """Without a prefix the key has no leading slash."""
    put(s3.bucket(), "job-2/a.webp", "image/webp")

    assert "job-2/a.webp" in s3.stored()


@pytest.mark.parametrize("name", ["騎士.png", "König & Co.png", 'a "b".png', "a;b.png", "100%.png", "two\nlines.png"])
def test_any_name_can_be_stored(s3: S3Server, name: str) -> None:
    """A file name with any characters is stored; the header that contains it is plain ASCII."""
    response = requests.get(put(s3.bucket(), f"job-3/{name}"), timeout=10)

    assert response.content == IMAGE
    assert response.headers["Content-Disposition"].isascii()
    assert response.headers["Content-Disposition"].startswith("inline; filename*=UTF-8''")
    assert '"' not in response.headers["Content-Disposition"]


def test_a_url_without_its_signature_is_rejected(s3: S3Server) -> None:
    """The test server checks signatures, as a real bucket does."""
    address = put(s3.bucket())

    assert requests.get(address.partition("?")[0], timeout=10).status_code == 400
    assert requests.get(f"{address[:-4]}0000", timeout=10).status_code == 403


def test_a_public_url_is_used_if_there_is_one(s3: S3Server) -> None:
    """With BUCKET_PUBLIC_URL the URL is that plus the key, percent-encoded, without a signature."""
    bucket = s3.bucket(prefix="a b", public_url="https://cdn.example/x/")

    assert put(bucket, "job-4/König #1.png") == "https://cdn.example/x/a%20b/job-4/K%C3%B6nig%20%231.png"
    assert "a b/job-4/König #1.png" in s3.stored()


def test_a_wrong_key_is_reported(s3: S3Server) -> None:
    """A wrong secret ends in the server's own error."""
    assert "SignatureDoesNotMatch" in rejected(replace(s3.bucket(), secret_access_key="wrong-wrong"))  # noqa: S106 - not a real secret
    assert "InvalidAccessKeyId" in rejected(replace(s3.bucket(), access_key_id="another-key"))


def test_a_missing_bucket_is_named(s3: S3Server) -> None:
    """The error has the bucket, the server's message and the remedy."""
    message = rejected(s3.bucket("paintings"))

    assert "'paintings' returned NoSuchBucket" in message
    assert "`delivery` base64" in message


def test_an_invalid_bucket_name_is_rejected_without_a_request(s3: S3Server) -> None:
    """An invalid name that boto3's own checks reject ends in the same error as a rejected request."""
    assert "ParamValidationError" in rejected(s3.bucket("no bucket"))


@pytest.mark.parametrize(
    "change",
    [{"region": "no such/region"}, {"endpoint_url": "https://"}, {"endpoint_url": "https://["}],
)
def test_settings_that_boto3_rejects_are_an_error_of_the_bucket(s3: S3Server, change: dict[str, str]) -> None:
    """An error that boto3 raises before there is a client is not a bug of the worker."""
    assert "has settings that are not valid" in rejected(replace(s3.bucket(), **change))  # type: ignore[arg-type] # texts


def test_an_unreachable_server_is_an_error_within_seconds(s3: S3Server) -> None:
    """If nothing listens, the error comes within seconds."""
    assert "was not reached" in rejected(replace(s3.bucket(), endpoint_url="http://127.0.0.1:1"))


class _Failing(HttpHandler):
    """Returns 500 for every request."""

    server: _FailingServer

    def do_PUT(self) -> None:
        """Read the image and reject it."""
        self.body()
        self.server.seen.append(self.path)
        self.respond(500)


class _FailingServer(HttpServer):
    """Records the paths that it rejected."""

    def __init__(self) -> None:
        super().__init__(_Failing)
        self.seen: list[str] = []


@pytest.fixture
def failing_server() -> Iterator[_FailingServer]:
    """An S3 server that returns 500."""
    with _FailingServer() as server:
        yield server


def test_a_server_that_returns_500_gets_three_requests(s3: S3Server, failing_server: _FailingServer) -> None:
    """A PUT is safe to repeat and is repeated twice; then the status is the error."""
    bucket = replace(s3.bucket(), endpoint_url=failing_server.url)

    assert "returned 500" in rejected(bucket)
    assert failing_server.seen == ["/pictures/job-1/knight_00001_.png"] * 3


CANCELLED = JobError.because(ErrorCode.CANCELLED, "The job was cancelled.")


def test_a_slow_bucket_ends_with_its_job(s3: S3Server) -> None:
    """A bucket that does not respond is abandoned when the job ends; a late request for the rest gets nothing."""
    with StalledS3() as stalled:
        bucket = stalled.instead_of(s3.bucket())

        def check() -> None:
            if stalled.paths:
                raise CANCELLED

        begun_at = time.monotonic()
        with pytest.raises(JobError) as info:
            ObjectStore(bucket).put("job-1/large.bin", bytes(64 * 1024 * 1024), "image/png", check)

        assert info.value is CANCELLED
        assert time.monotonic() - begun_at < 5
        stalled.resumed.set()
        assert until(lambda: stalled.has_whole_body)
        assert stalled.has_whole_body == [False]
        assert until(lambda: not [thread for thread in threading.enumerate() if thread.name.startswith("store")])


def test_nothing_is_uploaded_for_a_job_that_has_ended(s3: S3Server) -> None:
    """After a cancellation the next file is not uploaded."""

    def check() -> None:
        raise CANCELLED

    with StalledS3() as stalled:
        bucket = stalled.instead_of(s3.bucket())
        with pytest.raises(JobError):
            ObjectStore(bucket).put("job-1/x.png", IMAGE, "image/png", check)

        assert stalled.paths == []


def test_clients_can_be_made_by_many_threads_at_once(s3: S3Server) -> None:
    """Two concurrent jobs create their clients at once, each with its own session."""
    addresses: list[str] = []
    threads = [
        threading.Thread(target=lambda number=number: addresses.append(put(s3.bucket(), f"job-5/{number}.png")))
        for number in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(addresses) == 8
    assert sum(key.startswith("job-5/") for key in s3.stored()) == 8


S3_CONFIG = {
    "endpointUrl": "https://s3.example",
    "accessId": "own-id",
    "accessSecret": "own-secret",
    "bucketName": "own",
}


def public(_host: str, _port: int) -> Sequence[str]:
    """Resolve every host to a public address."""
    return ["93.184.215.14"]


def private(_host: str, _port: int) -> Sequence[str]:
    """Resolve every host to one public and one private address."""
    return ["93.184.215.14", "10.0.0.1"]


def unknown(_host: str, _port: int) -> Sequence[str]:
    """Fail to resolve any host."""
    raise socket.gaierror


def test_a_job_without_s3_config_has_the_worker_s_bucket(s3: S3Server) -> None:
    """Without s3Config the worker's bucket is used, if there is one."""
    assert job_bucket(None, s3.bucket()) == (s3.bucket(), [])
    assert job_bucket(None, None) == (None, [])


def test_a_job_s_own_bucket_is_used(s3: S3Server) -> None:
    """A bucket at another endpoint, described by RunPod's four keys, gets none of the worker's settings."""
    bucket, faults = job_bucket(S3_CONFIG, s3.bucket(prefix="ours", public_url="https://cdn.example"), public)

    assert faults == []
    assert bucket is not None
    assert (bucket.endpoint_url, bucket.name, bucket.access_key_id) == ("https://s3.example", "own", "own-id")
    assert (bucket.secret_access_key, bucket.prefix, bucket.public_url) == ("own-secret", "", "")
    assert bucket.must_be_public


def test_a_job_s_own_bucket_at_the_worker_s_endpoint_keeps_its_region(s3: S3Server) -> None:
    """The worker's endpoint may be http. Region and prefix are used for the job's bucket, the public URL is not."""
    ours = replace(s3.bucket(prefix="p", public_url="https://cdn.example"), region="eu-1")
    bucket, faults = job_bucket({**S3_CONFIG, "endpointUrl": ours.endpoint_url}, ours)

    assert faults == []
    assert bucket is not None
    assert (bucket.region, bucket.prefix, bucket.public_url, bucket.name) == ("eu-1", "p", "", "own")
    assert not bucket.must_be_public


@pytest.mark.parametrize("absent", sorted(S3_CONFIG))
@pytest.mark.parametrize("value", [None, "", 5, ["x"], "\ud800", "two\nlines"])
def test_an_incomplete_s3_config_names_the_missing_keys(absent: str, value: object) -> None:
    """A key that is missing, empty or not a string is a fault at its own path."""
    bucket, faults = job_bucket({**S3_CONFIG, absent: value}, None)

    assert bucket is None
    assert [fault.path for fault in faults] == [f"s3Config.{absent}"]


@pytest.mark.parametrize("value", ["text", 5, [], True])
def test_an_s3_config_that_is_not_an_object_is_a_fault(value: object) -> None:
    """The fault lists the required keys."""
    bucket, [fault] = job_bucket(value, None)

    assert bucket is None
    assert fault.path == "s3Config"
    assert "endpointUrl" in fault.message


@pytest.mark.parametrize(
    "endpoint",
    ["http://169.254.169.254", "http://127.0.0.1:1", "file:///etc/passwd", "https://", "https://[", "s3.example"],
)
def test_an_endpoint_that_is_not_public_https_is_rejected(s3: S3Server, endpoint: str) -> None:
    """An endpoint of the job that is not https, or not a URL, is a fault, whatever the worker's endpoint is."""
    bucket, [fault] = job_bucket({**S3_CONFIG, "endpointUrl": endpoint}, s3.bucket())

    assert bucket is None
    assert fault.path == "s3Config.endpointUrl"


@pytest.mark.parametrize("resolve", [private, unknown, lambda *_: ["no address"]])
def test_an_endpoint_that_resolves_to_a_private_address_is_rejected(resolve: Resolve) -> None:
    """A name that does not resolve, or resolves to any private address, is a fault before ComfyUI is used."""
    bucket, [fault] = job_bucket(S3_CONFIG, None, resolve)

    assert bucket is None
    assert (fault.path, fault.message) == (
        "s3Config.endpointUrl",
        "must be the address of a server on the public internet",
    )


@pytest.mark.parametrize(
    "endpoint",
    ["https://127.0.0.1", "https://[::1]:9000", "https://169.254.169.254/latest", "https://s3.example:99999"],
)
def test_an_endpoint_that_is_a_private_address_is_rejected(endpoint: str) -> None:
    """A private IP address or an invalid port is a fault, without a name lookup."""
    bucket, [fault] = job_bucket({**S3_CONFIG, "endpointUrl": endpoint}, None)

    assert bucket is None
    assert "public internet" in fault.message


def test_an_endpoint_that_later_resolves_to_a_private_address_gets_no_request(s3: S3Server) -> None:
    """The host of each request is checked again: if it is no longer public, nothing is sent and nothing is retried."""
    with StalledS3() as stalled:
        bucket = replace(stalled.instead_of(s3.bucket()), must_be_public=True)
        with pytest.raises(JobError, match="is not on the public internet"):
            ObjectStore(bucket).put("job-1/x.png", IMAGE, "image/png")

        assert stalled.paths == []


def test_the_host_that_boto3_builds_is_checked(s3: S3Server) -> None:
    """boto3 may make the bucket's name a part of the host: that host is checked, not only the endpoint's."""
    resolved_hosts: list[str] = []

    def resolve(host: str, _port: int) -> Sequence[str]:
        resolved_hosts.append(host)
        return ["10.0.0.1"]

    name = "arn:aws:s3:eu-1:123456789012:accesspoint:inside"
    bucket = replace(s3.bucket(name), endpoint_url="https://s3.example", region="eu-1", must_be_public=True)
    with pytest.raises(JobError, match="is not on the public internet"):
        ObjectStore(bucket, resolve).put("job-1/x.png", IMAGE, "image/png")

    assert resolved_hosts == ["inside-123456789012.s3.example"]


def test_no_secret_is_shown(s3: S3Server) -> None:
    """The repr does not contain the secret."""
    assert SECRET_ACCESS_KEY not in repr(s3.bucket())
    assert ACCESS_KEY_ID not in repr(s3.bucket())


def test_an_invalid_endpoint_fails_the_boot(s3: S3Server) -> None:
    """BUCKET_ENDPOINT_URL is checked at boot, not by the first job whose images do not fit."""
    environment = {
        "COMFYUI_URL": "http://gpu:8188",
        "BUCKET_NAME": "pictures",
        "BUCKET_ACCESS_KEY_ID": ACCESS_KEY_ID,
        "BUCKET_SECRET_ACCESS_KEY": SECRET_ACCESS_KEY,
    }
    valid = Settings.from_env({**environment, "BUCKET_ENDPOINT_URL": s3.url})

    assert valid.bucket is not None
    assert valid.bucket.endpoint_url == s3.url
    with pytest.raises(ConfigError, match=r"BUCKET_ENDPOINT_URL='s3\.example': must be a URL that begins with http"):
        Settings.from_env({**environment, "BUCKET_ENDPOINT_URL": "s3.example"})


@pytest.mark.parametrize(
    ("text", "valid"),
    [
        ("https://account.r2.cloudflarestorage.com", True),
        ("http://minio:9000/", True),
        ("http://[::1]:9000", True),
        ("https://-", False),
        ("https://user:password@host", False),
        ("ftp://host", False),
        ("host:9000", False),
        ("https://a b", False),
        ("https://host:port", False),
    ],
)
def test_addresses_are_validated(text: str, valid: bool) -> None:
    """A valid address has scheme, host and port, and no credentials."""
    assert is_valid_url(text, "http", "https") is valid


AWS = {
    "endpointUrl": "https://s3.eu-central-1.amazonaws.com",
    "accessId": "AK",
    "accessSecret": "SK",
    "bucketName": "my-bucket",
}
VARIABLES = {
    "COMFYUI_URL": "http://gpu:8188",
    "BUCKET_ACCESS_KEY_ID": ACCESS_KEY_ID,
    "BUCKET_SECRET_ACCESS_KEY": SECRET_ACCESS_KEY,
}
"""The variables of worker-comfyui, without the endpoint."""


def signed_for(bucket: Bucket | None) -> tuple[str, str]:
    """Return host and path of a presigned URL of the bucket, and the region that it is signed for."""
    assert bucket is not None
    url = urlsplit(ObjectStore(bucket).url("x.png"))
    [credential] = parse_qs(url.query)["X-Amz-Credential"]
    return f"{url.netloc}{url.path}", credential.split("/")[2]


@pytest.mark.parametrize(
    ("changes", "region"),
    [
        ({}, "eu-central-1"),
        ({"region": "eu-west-3"}, "eu-west-3"),
        ({"region": None}, "eu-central-1"),
        ({"region": "auto"}, "eu-central-1"),
        ({"endpointUrl": "https://my-bucket.s3.eu-central-1.amazonaws.com"}, "eu-central-1"),
        ({"endpointUrl": "https://my-bucket.s3.eu-central-1.amazonaws.com", "bucketName": None}, "eu-central-1"),
        ({"endpointUrl": "https://s3.eu-central-1.amazonaws.com/my-bucket", "bucketName": ""}, "eu-central-1"),
    ],
)
def test_a_presigned_address_is_for_the_bucket_s_region(changes: dict[str, str | None], region: str) -> None:
    """A URL is signed for the bucket's region: AWS rejects another one, and boto3 does not check it."""
    bucket, faults = job_bucket({**AWS, **changes}, None, public)

    assert faults == []
    assert signed_for(bucket) == ("s3.eu-central-1.amazonaws.com/my-bucket/x.png", region)


def test_worker_comfyui_s_bucket_needs_no_other_variable() -> None:
    """worker-comfyui's documented endpoint contains bucket and region, so BUCKET_NAME is not needed."""
    endpoint = {"BUCKET_ENDPOINT_URL": "https://my-bucket.s3.eu-central-1.amazonaws.com"}

    for more in ({}, {"BUCKET_NAME": "my-bucket"}, {"BUCKET_REGION": "eu-central-1"}):
        bucket = Settings.from_env({**VARIABLES, **endpoint, **more}).bucket
        assert signed_for(bucket) == ("s3.eu-central-1.amazonaws.com/my-bucket/x.png", "eu-central-1")
    with pytest.raises(ConfigError, match="names the bucket 'my-bucket', and BUCKET_NAME is 'other'"):
        Settings.from_env({**VARIABLES, **endpoint, "BUCKET_NAME": "other"})


def test_the_region_comes_from_the_endpoint_unless_it_is_set() -> None:
    """BUCKET_REGION takes precedence; without it, R2 and self-hosted servers have `auto`."""
    for endpoint, more, region in (
        ("https://s3.ap-south-1.amazonaws.com", {}, "ap-south-1"),
        ("https://s3.ap-south-1.amazonaws.com", {"BUCKET_REGION": "us-west-2"}, "us-west-2"),
        ("http://minio:9000", {}, "auto"),
        ("http://minio:9000", {"BUCKET_REGION": "eu-1"}, "eu-1"),
    ):
        variables = {**VARIABLES, "BUCKET_ENDPOINT_URL": endpoint, "BUCKET_NAME": "b", **more}
        assert signed_for(Settings.from_env(variables).bucket)[1] == region


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"endpointUrl": "https://other.s3.eu-central-1.amazonaws.com"}, "s3Config.bucketName"),
        ({"region": 5}, "s3Config.region"),
        ({"region": "two\nlines"}, "s3Config.region"),
    ],
)
def test_an_s3_config_that_contradicts_itself_is_a_fault(changes: dict[str, object], path: str) -> None:
    """Two different buckets, or a region that is not a string, are faults."""
    bucket, [fault] = job_bucket({**AWS, **changes}, None, public)

    assert bucket is None
    assert fault.path == path


def test_a_job_may_name_the_worker_s_endpoint_with_the_bucket_in_it() -> None:
    """The job's endpoint is the same server, so the configured region applies."""
    variables = {**VARIABLES, "BUCKET_ENDPOINT_URL": "https://ours.s3.amazonaws.com", "BUCKET_REGION": "eu-west-1"}
    ours = Settings.from_env(variables).bucket
    bucket, faults = job_bucket({**AWS, "endpointUrl": "https://my-bucket.s3.amazonaws.com"}, ours, public)

    assert faults == []
    assert bucket is not None
    assert not bucket.must_be_public
    assert signed_for(bucket) == ("s3.amazonaws.com/my-bucket/x.png", "eu-west-1")
