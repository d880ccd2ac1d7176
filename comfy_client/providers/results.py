"""Parses the output of this project's worker (docs/api.md) or of worker-comfyui.

Files are decoded or downloaded. Their SHA-256 is verified if the output has one.
"""

from __future__ import annotations

import hashlib
import mimetypes
from collections.abc import Mapping
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

from comfy_client.providers.interface import GeneratedFile, GeneratedImage, GenerationResult, JobStatus
from comfy_core.contract import ErrorReport
from comfy_core.error_codes import ErrorCode
from comfy_core.errors import JobError, RequestError
from comfy_core.http import HttpApi
from comfy_core.images.ai_mark import marked
from comfy_core.images.codec import identify
from comfy_core.prices import busy_s, job_usd
from comfy_core.request.encoded import decode_base64
from comfy_core.request.models_task import MODELS_TASK

DOWNLOAD_TIMEOUT_S = 60.0
_MAX_COST = 1e6
"""A larger number in a result is not the cost of a job."""


def read_result(status: JobStatus, provider: str, usd_per_s: float | None = None) -> GenerationResult:
    """Return the result in a job's output. Files that are given as URLs are downloaded.

    `usd_per_s` is the price of one second of the worker. If it is None, the result has the cost that the worker
    computed, if any.

    Raises JobError: the job's own error if it failed, result_lost if a file is missing or damaged, no_output, or
    unrecognized if the output is not a worker's result. Raises RequestError if a bucket is not reached, or has a
    temporary failure; the caller may then try again.
    """
    if status.error is not None:
        raise JobError.of(status.error, status.job_id)
    match status.output:
        case {"task": "models", **rest}:
            return _models_result(status, provider, usd_per_s, _mapping(rest))
        case {"images": list(images), **rest}:
            output = _mapping(rest)
        case _:
            message = "The job's output is not a result of a ComfyUI worker. Check the endpoint id."
            raise JobError.of(ErrorReport(ErrorCode.UNRECOGNIZED, message), status.job_id)
    files = output.get("files")
    result = GenerationResult(
        images=tuple(_image(entry, status) for entry in images if isinstance(entry, dict)),
        files=tuple(
            _file(entry, status) for entry in (files if isinstance(files, list) else []) if isinstance(entry, dict)
        ),
        texts=tuple(map(str, _list(output.get("texts")))),
        provider=provider,
        job_id=status.job_id,
        warnings=tuple(map(str, [*_list(output.get("warnings")), *_list(output.get("errors"))])),
        inputs=_mapping(output.get("inputs")),
        timings=_mapping(output.get("timings")),
        versions=_mapping(output.get("versions")),
        delay_s=status.delay_s,
        execution_s=status.execution_s,
        worker_id=status.worker_id,
        retries=status.retries,
        gpu=_gpu(output),
        cost=job_cost(status, usd_per_s),
    )
    if not (result.images or result.files or result.texts):
        raise _error(status, ErrorCode.NO_OUTPUT, "The workflow succeeded but saved no output")
    match output:
        case {"workflow": str(workflow)}:
            result = replace(result, workflow=workflow)
    match output:
        case {"seed": int(seed)}:
            result = replace(result, seed=seed)
    return result


def _models_result(
    status: JobStatus, provider: str, usd_per_s: float | None, output: Mapping[str, Any]
) -> GenerationResult:
    return GenerationResult(
        images=(),
        provider=provider,
        job_id=status.job_id,
        workflow=MODELS_TASK,
        timings=_mapping(output.get("timings")),
        delay_s=status.delay_s,
        execution_s=status.execution_s,
        worker_id=status.worker_id,
        report=dict(output),
        gpu=_gpu(output),
        cost=job_cost(status, usd_per_s),
    )


def _gpu(output: Mapping[str, Any]) -> str | None:
    return output["gpu"] if isinstance(output.get("gpu"), str) else None


def job_cost(status: JobStatus, usd_per_s: float | None) -> float | None:
    """Return the cost of a job that has ended, in US dollars; None if it is unknown. See `read_result`."""
    output = _mapping(status.output)
    if usd_per_s is None:
        cost = output.get("cost")
        return cost if isinstance(cost, int | float) and 0 <= cost < _MAX_COST else None
    seconds = busy_s(_mapping(output.get("timings")))
    seconds = status.execution_s if seconds is None else seconds
    return None if seconds is None else job_usd(seconds, usd_per_s)


def _image(entry: Mapping[str, Any], status: JobStatus) -> GeneratedImage:
    file = _file(entry, status)
    found = identify(file.bytes)
    width, height = (found.width, found.height) if found else (0, 0)
    return GeneratedImage(
        filename=file.filename,
        mime_type=file.mime_type,
        sha256=file.sha256,
        bytes=file.bytes,
        width=width,
        height=height,
        seed=entry["seed"] if isinstance(entry.get("seed"), int) else None,
    )


def _file(entry: Mapping[str, Any], status: JobStatus) -> GeneratedFile:
    """Return a file of the result. If the entry has a SHA-256, the bytes must match it.

    A file that was downloaded and does not match is downloaded once more.
    """
    filename = str(entry.get("filename") or "picture.png")
    expected_sha256 = entry.get("sha256")  # any JSON value, maybe unhashable: so tuples below, not sets
    data = _data(entry, filename, status)
    if expected_sha256 not in (None, _sha256(data)) and entry.get("type") == "s3_url":
        data = _data(entry, filename, status)
    if expected_sha256 in (None, _sha256(data)):
        mime_type = entry.get("mime_type") or mimetypes.guess_type(filename)[0] or "application/octet-stream"
        return GeneratedFile(filename, str(mime_type), _sha256(data), data)
    raise _error(
        status,
        ErrorCode.RESULT_LOST,
        f"{filename} is damaged: the SHA-256 of its {len(data):,} bytes does not match",
        filename=filename,
    )


def marked_image(image: GeneratedImage) -> GeneratedImage:
    """Return the image, marked as generated by AI if its format can be marked."""
    data = marked(image.bytes)
    return replace(image, bytes=data, sha256=_sha256(data))


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _data(entry: Mapping[str, Any], filename: str, status: JobStatus) -> bytes:
    match {"data": entry.get("image"), **entry}:  # a worker with WORKER_IMAGE_FIELD=image uses this key
        case {"type": "s3_url", "data": str(url)}:
            return _download(url, filename, status)
        case {"data": str(text)}:
            try:
                return decode_base64(text)
            except ValueError:
                pass
    raise _error(status, ErrorCode.RESULT_LOST, f"{filename} is damaged: its data is not base64.", filename=filename)


def _download(url: str, filename: str, status: JobStatus) -> bytes:
    """Return the bytes of a file in a bucket."""
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise _error(
            status,
            ErrorCode.RESULT_LOST,
            f"{filename} has a local path of the worker, not a URL: the worker's bucket credentials are missing.",
            filename=filename,
        )
    try:
        return fetch_secret_url(url, "The bucket")
    except RequestError as error:
        if error.status is None or error.is_transient:
            raise
        raise _error(
            status,
            ErrorCode.RESULT_LOST,
            f"{filename} is no longer in its bucket, or its URL has expired ({error}).",
            filename=filename,
        ) from error


def fetch_secret_url(url: str, server: str, timeout_s: float = DOWNLOAD_TIMEOUT_S) -> bytes:
    """Return the bytes at a URL, which may be presigned and so a secret. Raises RequestError.

    The messages never contain the URL. They contain `server`, a name for the URL's server, and its host.
    """
    parts = urlsplit(url)
    api = HttpApi(f"{parts.scheme}://{parts.netloc}", name=f"{server} at {parts.hostname}")
    try:
        path = f"{parts.path}?{parts.query}" if parts.query else parts.path
        return api.call("GET", path, timeout_s=timeout_s).content
    finally:
        api.close()


def _error(status: JobStatus, code: ErrorCode, problem: str, **details: Any) -> JobError:  # noqa: ANN401 - any JSON value
    return JobError.of(ErrorReport.because(code, problem, **details), status.job_id)


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _mapping(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
