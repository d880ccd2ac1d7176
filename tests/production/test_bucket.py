"""Results through a bucket, with the worker in production mode and a real S3 server."""

from __future__ import annotations

import hashlib

import pytest
import requests

from bench.worker_setup import LARGE_IMAGES, SMALL_JOB, code_of, running_worker
from simulators.runpod.queue_api import QueueJob
from tests.fakes.s3 import ACCESS_KEY_ID, SECRET_ACCESS_KEY, S3Server

pytestmark = pytest.mark.slow


def variables(s3: S3Server) -> dict[str, str]:
    """Return the worker's variables for the bucket `pictures`."""
    return {
        "BUCKET_ENDPOINT_URL": s3.url,
        "BUCKET_NAME": "pictures",
        "BUCKET_ACCESS_KEY_ID": ACCESS_KEY_ID,
        "BUCKET_SECRET_ACCESS_KEY": SECRET_ACCESS_KEY,
    }


def downloaded_images(job: QueueJob) -> list[dict[str, object]]:
    """Return the images of a successful job. Each was downloaded from its URL, and its hash was checked."""
    assert code_of(job) is None
    images: list[dict[str, object]] = job.output["images"]
    for image in images:
        assert image["type"] == "s3_url"
        content = requests.get(str(image["data"]), timeout=60).content
        assert hashlib.sha256(content).hexdigest() == image["sha256"]
    return images


def test_a_result_that_does_not_fit_goes_to_the_bucket() -> None:
    """12 MB of images are returned as valid URLs; a small result is returned as base64; no secret is logged."""
    with S3Server() as s3, running_worker(environment=variables(s3)) as setup:
        job = setup.run_large()
        small = setup.run()

        assert len(downloaded_images(job)) == LARGE_IMAGES
        assert [image["type"] for image in small.output["images"]] == ["base64"]
        assert SECRET_ACCESS_KEY not in setup.worker.log
        assert "X-Amz-Signature" not in setup.worker.log


def test_a_job_s_own_bucket_is_used() -> None:
    """The image is stored in the bucket that `s3Config`, sent next to `input`, names."""
    with S3Server(["pictures", "of-the-caller"]) as s3:
        s3_config = {
            "endpointUrl": s3.url,
            "bucketName": "of-the-caller",
            "accessId": ACCESS_KEY_ID,
            "accessSecret": SECRET_ACCESS_KEY,
        }
        with running_worker(environment=variables(s3)) as setup:
            job_id = setup.platform.submit({**SMALL_JOB, "delivery": "s3"}, s3Config=s3_config)
            [image] = downloaded_images(setup.platform.wait_for(job_id, 30))

            assert "/of-the-caller/" in str(image["data"])
            assert SECRET_ACCESS_KEY not in setup.worker.log


def test_a_bucket_that_rejects_the_key_is_output_not_stored() -> None:
    """With a wrong key the job fails with output_not_stored, its error does not name the key, and the next job runs."""
    with (
        S3Server() as s3,
        running_worker(environment={**variables(s3), "BUCKET_ACCESS_KEY_ID": "another-key-id"}) as setup,
    ):
        job = setup.run(delivery="s3")

        assert code_of(job) == "output_not_stored"
        assert "another-key-id" not in str(job.error)
        assert code_of(setup.run()) is None
