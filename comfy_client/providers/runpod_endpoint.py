"""One serverless endpoint of RunPod: its queue API over HTTP. What a job's input and output mean is for its providers.

Every call but `submit` and `retry` may be repeated without harm, and is, where RunPod or its edge does not answer well.
A submit is repeated only where it surely did not arrive: no connection was made, or it was refused with 429. There is
no idempotency key (docs/reference/runpod.md#submitting-a-job), so that a second one would be a second job, billed.
"""

from __future__ import annotations

import json
import re
from typing import Any

import requests

from comfy_client.providers.interface import GenerationRequest, Health, JobStatus
from comfy_client.providers.runpod_responses import SMALLER, expired, read_health, read_status, request_error, words_of
from comfy_core.contract import ErrorCode, JsonObject
from comfy_core.errors import ConfigError, JobError, RequestError
from comfy_core.http import HttpApi, is_base_url, quoted_url, retries

BASE_URL = "https://api.runpod.ai/v2"
RUN_LIMIT_BYTES = 10 * 1024 * 1024
SYNC_LIMIT_BYTES = 20_000_000
MAX_SYNC_WAIT_S = 90.0
"""The edge (Cloudflare) cuts calls of about 100 s, whatever /runsync is asked for.

Source: docs/reference/runpod.md#submitting-a-job.
"""
MIN_SYNC_WAIT_S = 1.0
SUBMIT_TIMEOUT_S = 90.0
"""For 20 MB on a slow line, and what the edge needs to pass them on."""
ASK_TIMEOUT_S = 60.0
"""For answers that may carry a whole result."""
CONNECTIONS = 32

_TOO_MANY = frozenset({429})


class RunPodEndpoint:
    """The endpoint `endpoint_id`. Safe to use from several threads; keeps its connections until `close`.

    Raises ConfigError for an id, a key or an address that cannot be one; the key is shown nowhere.
    """

    def __init__(self, endpoint_id: str, api_key: str, base_url: str = BASE_URL) -> None:
        if not re.fullmatch(r"[\w.-]{1,128}", endpoint_id):
            raise ConfigError(f"{endpoint_id!r} is no id of an endpoint; copy it from RunPod's console (Serverless)")
        if not re.fullmatch(r"[!-~]{1,512}", api_key):
            raise ConfigError("RUNPOD_API_KEY is no API key: it is empty, or has spaces or other characters in it")
        if not is_base_url(base_url):
            raise ConfigError(
                f"RUNPOD_ENDPOINT_BASE_URL={quoted_url(base_url)} is no address without user name and query; "
                f"the usual one is {BASE_URL}"
            )
        self.endpoint_id = endpoint_id
        self._api = HttpApi(
            f"{base_url.rstrip('/')}/{endpoint_id}",
            name="RunPod",
            headers={"Authorization": f"Bearer {api_key}"},
            policies={
                "/run": retries(4, statuses=_TOO_MANY, is_repeatable=False),  # and /runsync
                "/retry": retries(4, statuses=_TOO_MANY, is_repeatable=False),
                "/health": retries(4),
                "/purge-queue": retries(4),
            },
            connections=CONNECTIONS,
        )

    def __repr__(self) -> str:
        return f"RunPodEndpoint({self.endpoint_id!r})"

    def submit(self, request: GenerationRequest, wait_s: float | None = None) -> JobStatus:
        """Queue a job by /run; with `wait_s` above 0, by /runsync, which answers at the job's end, or after that time.

        /runsync takes twice the bytes and keeps a result for a minute only: so a caller that follows the job at once
        (`wait_s` 0) gets it where /run would refuse the size, and one that leaves the job alone (None) does not.

        Raises:
            RequestError: payload_too_large (nothing was sent), auth_failed, endpoint_not_found, rate_limited, or
                network, where `report.details["may_run"]` says whether the job may have been accepted.
        """
        if not request.input:
            # RunPod strips an empty input, and the job dies after 40 s with "job timed out after 1 retries".
            raise JobError.because(
                ErrorCode.INVALID_INPUT, "The request is empty. Give it at least a prompt.", faults=[]
            )
        body = {"input": request.input, **request.options.envelope()}
        size = len(json.dumps(body))
        is_sync = bool(wait_s) or (wait_s is not None and size > RUN_LIMIT_BYTES)
        _check_size(size, SYNC_LIMIT_BYTES if is_sync else RUN_LIMIT_BYTES)
        try:
            if is_sync:
                wait_s = wait_s or 0.0
                wait_s = max(MIN_SYNC_WAIT_S, min(wait_s, MAX_SYNC_WAIT_S))
                params = {"wait": str(round(wait_s * 1000))}
                answer = self._json("POST", "/runsync", SUBMIT_TIMEOUT_S + wait_s, body=body, params=params)
            else:
                answer = self._json("POST", "/run", SUBMIT_TIMEOUT_S, body=body)
            return _job(answer)
        except RequestError as error:
            raise _submit_error(error) from error

    def status(self, job_id: str) -> JobStatus:
        """Return how a job stands. Sent once: callers poll. Raises JobError (job_expired)."""
        return _job(self._of_job("GET", "status", job_id))

    def cancel(self, job_id: str) -> None:
        """End a job. Sent once. Raises JobError (job_expired)."""
        self._of_job("POST", "cancel", job_id)

    def retry(self, job_id: str) -> JobStatus:
        """Queue a job anew that failed or timed out, under its own id. Raises RequestError (400) for any other."""
        return _job(self._of_job("POST", "retry", job_id))

    def health(self) -> Health:
        """Return how many jobs and workers there are."""
        return read_health(self._json("GET", "/health", ASK_TIMEOUT_S))

    def purge_queue(self) -> int:
        """Drop all jobs that wait, and return how many those were."""
        match self._json("POST", "/purge-queue", ASK_TIMEOUT_S):
            case {"removed": int(removed)}:
                return removed
        return 0

    def close(self) -> None:
        """Close the kept connections."""
        self._api.close()

    def _of_job(self, method: str, verb: str, job_id: str) -> Any:  # noqa: ANN401 - any JSON value
        if not re.fullmatch(r"[\w.-]{1,128}", job_id):
            raise JobError.of(expired(job_id[:128]), job_id)
        try:
            return self._json(method, f"/{verb}/{job_id}", ASK_TIMEOUT_S)
        except RequestError as error:
            if error.status == requests.codes.not_found and "endpoint" not in words_of(error.body):
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


def _job(answer: object) -> JobStatus:
    status = read_status(answer)
    if status is None:
        raise RequestError("RunPod answered with something else than a job", is_transient=True)
    return status


def _check_size(size: int, limit: int) -> None:
    if size > limit:
        more = " A call that waits for its result, `run` in place of `submit`, may have 20 MB."
        raise RequestError(
            f"The request has {size:,} bytes; RunPod takes {limit:,}. Nothing was sent. {SMALLER}"
            f"{more if size <= SYNC_LIMIT_BYTES else ''}",
            code=ErrorCode.PAYLOAD_TOO_LARGE,
            is_unsent=True,
            bytes=size,
            limit=limit,
        )


def _submit_error(error: RequestError) -> RequestError:
    """Return the error with what came of the job: a submit that may have arrived is never repeated."""
    refused = error.status is not None and error.status < requests.codes.server_error
    may_run = not (error.is_unsent or refused) or error.status == requests.codes.ok
    if not may_run:
        error.report.details["may_run"] = False
        return error
    return RequestError(
        f"{error}. The job was sent, and RunPod may have accepted it: it was not sent again. Look at the endpoint's "
        "requests in RunPod's console before you do",
        status=error.status,
        body=error.body,
        may_run=True,
    )
