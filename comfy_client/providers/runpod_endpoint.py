"""HTTP client for the queue API of one RunPod serverless endpoint. The providers interpret a job's input and output.

`health` and `purge_queue` are retried after server errors. `status` and `cancel` are safe to repeat, but are not
retried here. `submit` and `retry` are retried only if the request certainly did not arrive: no connection was made, or
RunPod returned 429. RunPod has no idempotency key (docs/reference/runpod.md#submitting-a-job), so a second submit would
be a second, billed job.
"""

from __future__ import annotations

import json
import re
from typing import Any

import requests

from comfy_client.providers.interface import GenerationRequest, Health, JobStatus, submit_error
from comfy_client.providers.runpod_responses import (
    expired,
    read_health,
    read_status,
    request_error,
)
from comfy_core.contract import Fault, JsonObject
from comfy_core.error_codes import ErrorCode
from comfy_core.errors import ConfigError, JobError, RequestError, invalid_input
from comfy_core.http import HttpApi, error_message, retries

BASE_URL = "https://api.runpod.ai/v2"
RUN_LIMIT_BYTES = 10 * 1024 * 1024
SYNC_LIMIT_BYTES = 20_000_000
MAX_SYNC_WAIT_S = 90.0
"""Cloudflare, in front of RunPod, cuts calls after about 100 s, even if /runsync was given a longer wait.

Source: docs/reference/runpod.md#submitting-a-job.
"""
MIN_SYNC_WAIT_S = 1.0
SUBMIT_TIMEOUT_S = 90.0
"""Enough to upload 20 MB over a slow connection."""
READ_TIMEOUT_S = 60.0
"""Timeout of the other calls. Their responses may contain a whole result."""
CONNECTIONS = 32

_TOO_MANY = frozenset({429})


class RunPodEndpoint:
    """The endpoint `endpoint_id`. Thread-safe. Keeps its connections open until `close`.

    Raises ConfigError for a malformed id. The key never appears in messages.
    """

    def __init__(self, endpoint_id: str, api_key: str, base_url: str = BASE_URL) -> None:
        if not re.fullmatch(r"[\w.-]{1,128}", endpoint_id):
            raise ConfigError(f"{endpoint_id!r} is not an endpoint id. Copy it from RunPod's console (Serverless)")
        self.endpoint_id = endpoint_id
        self._api = HttpApi(
            f"{base_url.rstrip('/')}/{endpoint_id}",
            name="RunPod",
            headers={"Authorization": f"Bearer {api_key}"},
            policies={
                "/run": retries(4, statuses=_TOO_MANY, is_repeatable=False),  # also matches /runsync
                "/retry": retries(4, statuses=_TOO_MANY, is_repeatable=False),
                "/health": retries(4),
                "/purge-queue": retries(4),
            },
            connections=CONNECTIONS,
        )

    def __repr__(self) -> str:
        return f"RunPodEndpoint({self.endpoint_id!r})"

    def submit(self, request: GenerationRequest, wait_s: float | None = None) -> JobStatus:
        """Submit a job with /run, or with /runsync if `wait_s` is above 0. /runsync waits for the job's end.

        /runsync accepts requests of twice the size, but RunPod keeps its result for one minute only. With `wait_s` 0, a
        request that is too large for /run is sent to /runsync, and the caller must poll at once. With None, every
        request is sent to /run.

        Raises:
            JobError: invalid_input if the request's input is empty; nothing was sent.
            RequestError: payload_too_large, auth_failed, endpoint_not_found, rate_limited, or network. If the request
                was sent, `report.details["may_run"]` says whether the job may have been accepted.
        """
        if not request.input:
            # RunPod drops an empty input, and the job then fails after 40 s with "job timed out after 1 retries".
            raise invalid_input([Fault("", "must not be empty: give it at least a prompt")])
        body = {"input": request.input, **request.options.envelope()}
        size = len(json.dumps(body))
        is_sync = bool(wait_s) or (wait_s is not None and size > RUN_LIMIT_BYTES)
        _check_size(size, SYNC_LIMIT_BYTES if is_sync else RUN_LIMIT_BYTES)
        try:
            if is_sync:
                wait_s = wait_s or 0.0
                wait_s = max(MIN_SYNC_WAIT_S, min(wait_s, MAX_SYNC_WAIT_S))
                params = {"wait": str(round(wait_s * 1000))}
                response = self._json("POST", "/runsync", SUBMIT_TIMEOUT_S + wait_s, body=body, params=params)
            else:
                response = self._json("POST", "/run", SUBMIT_TIMEOUT_S, body=body)
            return _job(response)
        except RequestError as error:
            raise submit_error(error, "RunPod", "the endpoint's requests in RunPod's console") from error

    def status(self, job_id: str) -> JobStatus:
        """Return a job's status. Not retried: callers poll. Raises JobError (job_expired)."""
        return _job(self._job_call("GET", "status", job_id))

    def cancel(self, job_id: str) -> None:
        """Cancel a job. Not retried. Raises JobError (job_expired)."""
        self._job_call("POST", "cancel", job_id)

    def retry(self, job_id: str) -> JobStatus:
        """Queue a failed or timed out job again under the same id.

        Raises RequestError (400) for a job in another state, and JobError (job_expired).
        """
        return _job(self._job_call("POST", "retry", job_id))

    def health(self) -> Health:
        """Return the numbers of jobs and workers."""
        return read_health(self._json("GET", "/health", READ_TIMEOUT_S))

    def purge_queue(self) -> int:
        """Remove all queued jobs and return how many were removed, or 0 if RunPod's response does not say it."""
        match self._json("POST", "/purge-queue", READ_TIMEOUT_S):
            case {"removed": int(removed)}:
                return removed
        return 0

    def close(self) -> None:
        """Close the connections."""
        self._api.close()

    def _job_call(self, method: str, verb: str, job_id: str) -> Any:  # noqa: ANN401 - any JSON value
        if not re.fullmatch(r"[\w.-]{1,128}", job_id):
            raise JobError.of(expired(job_id[:128]), job_id)
        try:
            return self._json(method, f"/{verb}/{job_id}", READ_TIMEOUT_S)
        except RequestError as error:
            if error.status == requests.codes.not_found and "endpoint" not in error_message(error.body):
                raise JobError.of(expired(job_id), job_id) from error
            raise

    def _json(
        self,
        method: str,
        path: str,
        timeout_s: float,
        body: JsonObject | None = None,
        params: dict[str, str] | None = None,
    ) -> Any:  # noqa: ANN401 - any JSON value
        try:
            return self._api.json(method, path, timeout_s=timeout_s, json=body, params=params)
        except RequestError as error:
            raise request_error(error, self.endpoint_id) from error


def _job(response: object) -> JobStatus:
    status = read_status(response)
    if status is None:
        raise RequestError("RunPod's response is not a job", is_transient=True)
    return status


def _check_size(size: int, limit: int) -> None:
    if size > limit:
        more = " With `run` instead of `submit`, a request may have up to 20 MB."
        raise RequestError.because(
            ErrorCode.PAYLOAD_TOO_LARGE,
            f"The request has {size:,} bytes; RunPod accepts {limit:,}. Nothing was sent."
            f"{more if size <= SYNC_LIMIT_BYTES else ''}",
            is_unsent=True,
            bytes=size,
            limit=limit,
        )
