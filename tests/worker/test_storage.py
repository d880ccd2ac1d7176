"""Storing outputs in a bucket over real sockets, their URLs, the settings of buckets, and their errors."""

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
from comfy_core.safe_connection import Resolve
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


def rejection_message(bucket: Bucket) -> str:
    """Return the error message of a bucket that rejects the image.

    The error is output_not_stored and retryable, comes within 60 s, and contains no secret and no URL.
    """
    begun_at = time.monotonic()
    with pytest.raises(JobError) as info:
        put(bucket)
    assert time.monotonic() - begun_at < 60
    report = info.value.report
    assert report.code is ErrorCode.OUTPUT_NOT_STORED
    assert report.retryable
    for secret in (bucket.access_key_id, bucket.secret_access_key, "X-Amz-Signature", bucket.endpoint_url, "://"):
        assert not secret or secret not in report.to_json()
    assert info.value.__suppress_context__
    return report.message


def test_an_image_is_stored_under_prefix_job_and_name(s3: S3Server) -> None:
    """The key is prefix/job id/name; the presigned URL returns the bytes, with their type and name."""
    url = put(s3.bucket(prefix="flux/prod"))
    response = requests.get(url, timeout=60)

    assert "flux/prod/job-1/knight_00001_.png" in s3.stored()
    assert hashlib.sha256(response.content).digest() == hashlib.sha256(IMAGE).digest()
    assert response.headers["Content-Type"] == "image/png"
    assert response.headers["Content-Disposition"] == 'inline; filename="knight_00001_.png"'
    assert "X-Amz-Expires=600&" in url


def test_without_a_prefix_the_job_comes_first(s3: S3Server) -> None:
    """Without a prefix the key is job id/name, without a leading slash."""
    put(s3.bucket(), "job-2/a.webp", "image/webp")

    assert "job-2/a.webp" in s3.stored()


@pytest.mark.parametrize("name", ["騎士.png", "König & Co.png", 'a "b".png', "a;b.png", "100%.png", "two\nlines.png"])
def test_any_name_can_be_stored(s3: S3Server, name: str) -> None:
    """A file is stored under any name; the name is percent-encoded in the Content-Disposition header."""
    response = requests.get(put(s3.bucket(), f"job-3/{name}"), timeout=60)

    assert response.content == IMAGE
    assert response.headers["Content-Disposition"].isascii()
    assert response.headers["Content-Disposition"].startswith("inline; filename*=UTF-8''")
    assert '"' not in response.headers["Content-Disposition"]


def test_a_url_without_its_signature_is_rejected(s3: S3Server) -> None:
    """A URL without its signature, or with a changed one, returns an error: the test server checks signatures."""
    url = put(s3.bucket())

    assert requests.get(url.partition("?")[0], timeout=60).status_code == 400
    assert requests.get(f"{url[:-4]}0000", timeout=60).status_code == 403


def test_a_public_url_is_used_if_there_is_one(s3: S3Server) -> None:
    """With BUCKET_PUBLIC_URL an object's URL is that URL and the percent-encoded key, without a signature."""
    bucket = s3.bucket(prefix="a b", public_url="https://cdn.example/x/")

    assert put(bucket, "job-4/König #1.png") == "https://cdn.example/x/a%20b/job-4/K%C3%B6nig%20%231.png"
    assert "a b/job-4/König #1.png" in s3.stored()


def test_a_wrong_key_is_reported(s3: S3Server) -> None:
    """A wrong secret key and a wrong access key id are reported with the server's error code."""
    assert "SignatureDoesNotMatch" in rejection_message(replace(s3.bucket(), secret_access_key="wrong-wrong"))  # noqa: S106 - not a real secret
    assert "InvalidAccessKeyId" in rejection_message(replace(s3.bucket(), access_key_id="another-key"))


def test_a_missing_bucket_is_named(s3: S3Server) -> None:
    """The error has the bucket's name, the server's error code and the remedy."""
    message = rejection_message(s3.bucket("paintings"))

    assert "'paintings' returned NoSuchBucket" in message
    assert "`delivery` base64" in message


def test_an_invalid_bucket_name_is_rejected_without_a_request(s3: S3Server) -> None:
    """A name that boto3 itself rejects has the same error code as a rejected request."""
    assert "ParamValidationError" in rejection_message(s3.bucket("no bucket"))


@pytest.mark.parametrize(
    "change",
    [{"region": "no such/region"}, {"endpoint_url": "https://"}, {"endpoint_url": "https://["}],
)
def test_settings_that_boto3_rejects_are_an_error_of_the_bucket(s3: S3Server, change: dict[str, str]) -> None:
    """Settings with which boto3 creates no client are output_not_stored, and not an internal error."""
    assert "has settings that are not valid" in rejection_message(replace(s3.bucket(), **change))  # type: ignore[arg-type] # texts


def test_an_unreachable_server_is_reported_soon(s3: S3Server) -> None:
    """If nothing listens at the endpoint, the error comes within 15 s."""
    assert "was not reached" in rejection_message(replace(s3.bucket(), endpoint_url="http://127.0.0.1:1"))


class _Failing(HttpHandler):
    """Returns 500 for every request."""

    server: _FailingServer

    def do_PUT(self) -> None:
        """Read the body, record the path, and return 500."""
        self.body()
        self.server.paths.append(self.path)
        self.respond(500)


class _FailingServer(HttpServer):
    """An S3 server that returns 500, and records the paths of the requests."""

    def __init__(self) -> None:
        super().__init__(_Failing)
        self.paths: list[str] = []


@pytest.fixture
def failing_server() -> Iterator[_FailingServer]:
    """An S3 server that returns 500."""
    with _FailingServer() as server:
        yield server


def test_a_server_that_returns_500_gets_three_requests(s3: S3Server, failing_server: _FailingServer) -> None:
    """A PUT is safe to repeat and is repeated twice; then the status is the error."""
    bucket = replace(s3.bucket(), endpoint_url=failing_server.url)

    assert "returned 500" in rejection_message(bucket)
    assert failing_server.paths == ["/pictures/job-1/knight_00001_.png"] * 3


CANCELLED = JobError.because(ErrorCode.CANCELLED, "The job was cancelled.")


def test_a_slow_bucket_ends_with_its_job(s3: S3Server) -> None:
    """An upload to a bucket that stalls is aborted when its job is cancelled: the rest of the body is never sent."""
    with StalledS3() as stalled:
        bucket = stalled.instead_of(s3.bucket())

        def check() -> None:
            if stalled.paths:
                raise CANCELLED

        with pytest.raises(JobError) as info:
            ObjectStore(bucket).put("job-1/large.bin", bytes(64 * 1024 * 1024), "image/png", check)

        assert info.value is CANCELLED
        stalled.resumed.set()
        assert until(lambda: stalled.are_complete)
        assert stalled.are_complete == [False]
        assert until(lambda: not [thread for thread in threading.enumerate() if thread.name.startswith("store")])


def test_nothing_is_uploaded_for_a_job_that_has_ended(s3: S3Server) -> None:
    """If the job is already cancelled, the file is not uploaded."""

    def check() -> None:
        raise CANCELLED

    with StalledS3() as stalled:
        bucket = stalled.instead_of(s3.bucket())
        with pytest.raises(JobError):
            ObjectStore(bucket).put("job-1/x.png", IMAGE, "image/png", check)

        assert stalled.paths == []


def test_clients_can_be_made_by_many_threads_at_once(s3: S3Server) -> None:
    """Eight threads that store a file at the same time all succeed."""
    urls: list[str] = []
    threads = [
        threading.Thread(target=lambda number=number: urls.append(put(s3.bucket(), f"job-5/{number}.png")))
        for number in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(urls) == 8
    assert sum(key.startswith("job-5/") for key in s3.stored()) == 8


S3_CONFIG = {
    "endpointUrl": "https://s3.example",
    "accessId": "own-id",
    "accessSecret": "own-secret",
    "bucketName": "own",
}


def resolve_to_public(_host: str, _port: int) -> Sequence[str]:
    """Resolve every host to a public address."""
    return ["93.184.215.14"]


def resolve_to_private(_host: str, _port: int) -> Sequence[str]:
    """Resolve every host to one public and one private address."""
    return ["93.184.215.14", "10.0.0.1"]


def fail_to_resolve(_host: str, _port: int) -> Sequence[str]:
    """Fail to resolve any host."""
    raise socket.gaierror


def test_a_job_without_s3_config_has_the_worker_s_bucket(s3: S3Server) -> None:
    """Without s3Config the worker's bucket is used, if there is one."""
    assert job_bucket(None, s3.bucket()) == (s3.bucket(), [])
    assert job_bucket(None, None) == (None, [])


def test_a_job_s_own_bucket_is_used(s3: S3Server) -> None:
    """A job's bucket at another endpoint uses RunPod's four keys, and none of the worker's settings."""
    bucket, faults = job_bucket(
        S3_CONFIG, s3.bucket(prefix="ours", public_url="https://cdn.example"), resolve_to_public
    )

    assert faults == []
    assert bucket is not None
    assert (bucket.endpoint_url, bucket.name, bucket.access_key_id) == ("https://s3.example", "own", "own-id")
    assert (bucket.secret_access_key, bucket.prefix, bucket.public_url) == ("own-secret", "", "")
    assert bucket.must_be_public


def test_a_job_s_own_bucket_at_the_worker_s_endpoint_keeps_its_region(s3: S3Server) -> None:
    """The job's bucket gets the worker's region and prefix, but not the public URL. The endpoint may be http."""
    ours = replace(s3.bucket(prefix="p", public_url="https://cdn.example"), region="eu-1")
    bucket, faults = job_bucket({**S3_CONFIG, "endpointUrl": ours.endpoint_url}, ours)

    assert faults == []
    assert bucket is not None
    assert (bucket.region, bucket.prefix, bucket.public_url, bucket.name) == ("eu-1", "p", "", "own")
    assert not bucket.must_be_public


@pytest.mark.parametrize("absent", sorted(S3_CONFIG))
@pytest.mark.parametrize("value", [None, "", 5, ["x"], "\ud800", "two\nlines"])
def test_an_invalid_key_of_s3_config_is_a_fault_with_its_path(absent: str, value: object) -> None:
    """A key that is null, empty, not a string, or an invalid text is a fault with the key's path."""
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
def test_an_endpoint_that_is_not_an_https_url_is_rejected(s3: S3Server, endpoint: str) -> None:
    """A job's endpoint that is not an https URL is a fault, although the worker's own endpoint is http."""
    bucket, [fault] = job_bucket({**S3_CONFIG, "endpointUrl": endpoint}, s3.bucket())

    assert bucket is None
    assert fault.path == "s3Config.endpointUrl"


@pytest.mark.parametrize("resolve", [resolve_to_private, fail_to_resolve, lambda *_: ["no address"]])
def test_an_endpoint_that_resolves_to_a_private_address_is_rejected(resolve: Resolve) -> None:
    """A host name is a fault if it does not resolve, or if any of its addresses is private or invalid."""
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
    """An endpoint with a private IP address or an invalid port is a fault."""
    bucket, [fault] = job_bucket({**S3_CONFIG, "endpointUrl": endpoint}, None)

    assert bucket is None
    assert "public internet" in fault.message


def test_an_endpoint_that_later_resolves_to_a_private_address_gets_no_request(s3: S3Server) -> None:
    """The host is checked again before each request: if it is not public then, nothing is sent."""
    with StalledS3() as stalled:
        bucket = replace(stalled.instead_of(s3.bucket()), must_be_public=True)
        with pytest.raises(JobError, match="is not on the public internet"):
            ObjectStore(bucket).put("job-1/x.png", IMAGE, "image/png")

        assert stalled.paths == []


def test_the_host_that_boto3_builds_is_checked(s3: S3Server) -> None:
    """If boto3 makes the bucket's name a part of the host, that host is checked instead of the endpoint's."""
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
    """A bucket's repr contains neither the secret key nor the access key id."""
    assert SECRET_ACCESS_KEY not in repr(s3.bucket())
    assert ACCESS_KEY_ID not in repr(s3.bucket())


def test_an_invalid_endpoint_fails_the_boot(s3: S3Server) -> None:
    """An invalid BUCKET_ENDPOINT_URL is a ConfigError when the settings are read, at boot."""
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
def test_urls_are_validated(text: str, valid: bool) -> None:
    """A valid URL has one of the schemes and a host, may have a valid port, and has no credentials."""
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
"""worker-comfyui's variables of a bucket, without BUCKET_ENDPOINT_URL."""


def signed_for(bucket: Bucket | None) -> tuple[str, str]:
    """Return host and path of a presigned URL of the bucket, and the region in its signature."""
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
def test_a_presigned_url_is_for_the_bucket_s_region(changes: dict[str, str | None], region: str) -> None:
    """A URL is signed for the bucket's region, which s3Config or AWS's host name gives. AWS rejects another region."""
    bucket, faults = job_bucket({**AWS, **changes}, None, resolve_to_public)

    assert faults == []
    assert signed_for(bucket) == ("s3.eu-central-1.amazonaws.com/my-bucket/x.png", region)


def test_worker_comfyui_s_bucket_needs_no_other_variable() -> None:
    """worker-comfyui's documented endpoint contains bucket and region; a different BUCKET_NAME is an error."""
    endpoint = {"BUCKET_ENDPOINT_URL": "https://my-bucket.s3.eu-central-1.amazonaws.com"}

    for more in ({}, {"BUCKET_NAME": "my-bucket"}, {"BUCKET_REGION": "eu-central-1"}):
        bucket = Settings.from_env({**VARIABLES, **endpoint, **more}).bucket
        assert signed_for(bucket) == ("s3.eu-central-1.amazonaws.com/my-bucket/x.png", "eu-central-1")
    with pytest.raises(ConfigError, match="names the bucket 'my-bucket', and BUCKET_NAME is 'other'"):
        Settings.from_env({**VARIABLES, **endpoint, "BUCKET_NAME": "other"})


def test_the_region_comes_from_the_endpoint_unless_it_is_set() -> None:
    """BUCKET_REGION takes precedence over the region in AWS's host name; for other hosts the default is `auto`."""
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
def test_an_invalid_region_or_a_second_bucket_name_is_a_fault(changes: dict[str, object], path: str) -> None:
    """Two different bucket names, or a region that is not a valid text, are faults."""
    bucket, [fault] = job_bucket({**AWS, **changes}, None, resolve_to_public)

    assert bucket is None
    assert fault.path == path


def test_a_job_may_name_the_worker_s_endpoint_with_the_bucket_in_it() -> None:
    """AWS's host with another bucket in it is the worker's endpoint, so the worker's region applies."""
    variables = {**VARIABLES, "BUCKET_ENDPOINT_URL": "https://ours.s3.amazonaws.com", "BUCKET_REGION": "eu-west-1"}
    ours = Settings.from_env(variables).bucket
    bucket, faults = job_bucket({**AWS, "endpointUrl": "https://my-bucket.s3.amazonaws.com"}, ours, resolve_to_public)

    assert faults == []
    assert bucket is not None
    assert not bucket.must_be_public
    assert signed_for(bucket) == ("s3.amazonaws.com/my-bucket/x.png", "eu-west-1")
