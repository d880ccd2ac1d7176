"""Scenario.com itself, through its official SDK: the way back. IMAGE_GENERATION_PROVIDER=scenario is all of it."""

from __future__ import annotations

import base64
import hashlib
import mimetypes
import re
import secrets
from collections.abc import Mapping
from dataclasses import replace
from urllib.parse import urlsplit

from comfy_client.providers.interface import (
    GeneratedImage,
    GenerationRequest,
    GenerationResult,
    Health,
    JobStatus,
)
from comfy_client.providers.results import fetch_signed
from comfy_client.providers.scenario_api import BASE_URL, ScenarioApi
from comfy_client.providers.scenario_request import MAX_SEED, MODEL_ID, check_possible, our_inputs, scenario_body
from comfy_client.providers.scenario_responses import ScenarioAsset, asset_ids_of, body_of, read_asset, read_job
from comfy_client.providers.submitted_requests import RequestCache, SubmittedRequest
from comfy_core.comfyui.outputs import parameters_text
from comfy_core.contract import ALIASES, ErrorCode, ErrorReport, is_asset_id
from comfy_core.errors import ConfigError, JobError, RequestError
from comfy_core.images.child_process import check_picture, encode_picture
from comfy_core.images.codec import Picture
from comfy_core.request import intake
from comfy_core.request.reading import read_request
from comfy_core.workflows import Workflow

UPLOAD_LIMIT_BYTES = 6_000_000
"""Of a picture's base64.

Source: docs/reference/scenario.md#uploads; its own plugin speaks of 4 MB, and then its 413 is told.
"""
_ID = r"[\w.-]{1,128}"


class ScenarioProvider:
    """Scenario's Flux.1-dev.

    Args:
        api: where it is.
        workflows: the templates by whose schemas requests are checked; txt2img and img2img alone can be asked for.
        model_id: the model that jobs go to.
        loras: from the worker's files to Scenario's ids of the same LoRAs.
    """

    name = "scenario"
    jobs_outlive_process = True

    def __init__(
        self,
        api: ScenarioApi,
        workflows: Mapping[str, Workflow],
        *,
        model_id: str = MODEL_ID,
        loras: Mapping[str, str] | None = None,
    ) -> None:
        if not re.fullmatch(_ID, model_id):
            raise ConfigError(f"SCENARIO_MODEL_ID={model_id!r} is no id of a model; Flux.1-dev is {MODEL_ID}")
        self._api = api
        self._workflows = workflows
        self._model_id = model_id
        self._loras = dict(loras or {})
        self._submitted = RequestCache()

    def __repr__(self) -> str:
        return f"ScenarioProvider({self._api.base_url!r}, {self._model_id!r})"

    def __str__(self) -> str:
        return f"Scenario at {self._api.base_url}"

    def submit(self, request: GenerationRequest, wait_s: float | None = None) -> JobStatus:
        """Start a job. A picture to start from is uploaded first, or named by its id if `image` is a Scenario asset's.

        Scenario answers at once, whatever `wait_s` is.

        Raises JobError: invalid_input for what Scenario cannot do, or refuses; invalid_image, unknown_workflow.
        """
        del wait_s
        asset_id = request.input.get("image") if is_asset_id(request.input.get("image")) else None
        if asset_id is not None:
            request = replace(request, input={**request.input, "image": self._stored_picture(asset_id)})
        asked = read_request(request.input, self._workflows)
        check_possible(asked, request.options, self._loras)
        rendered = intake.rendered(asked, random_seed=lambda: secrets.randbelow(MAX_SEED + 1))
        body = scenario_body(rendered.inputs, self._loras)
        try:
            for upload in rendered.uploads:
                body["image"] = asset_id or self._uploaded(upload.picture)
            answer = self._api.generate(self._model_id, body)
        except RequestError as error:
            if error.code is ErrorCode.INVALID_INPUT:
                raise JobError.because(error.code, str(error), faults=[{"path": "", "message": str(error)}]) from error
            raise
        status = read_job(answer)
        if status is None:
            raise RequestError("Scenario answered the submit with something else than a job", may_run=True)
        self._submitted.remember(status.job_id, SubmittedRequest(asked, rendered))
        return status

    def status(self, job_id: str) -> JobStatus:
        """Return how a job stands. Sent once: callers poll. Raises JobError (job_expired)."""
        _check_id(job_id)
        try:
            answer = self._api.job(job_id)
        except RequestError as error:
            raise _of_job(error, job_id) from error
        status = read_job(answer)
        if status is None:
            raise RequestError("Scenario answered with something else than a job", is_transient=True)
        return status

    def result(self, status: JobStatus) -> GenerationResult:
        """Return what a job made, encoded as it was asked for where this process asked for it.

        Raises JobError: the job's own where it failed, no_output, or result_lost where a picture is gone or not whole.
        Raises RequestError where Scenario is not reached: ask again then.
        """
        if status.error is not None:
            raise JobError.of(status.error, status.job_id)
        asked, body = self._submitted.of(status.job_id), body_of(status.output)
        ids = asset_ids_of(status.output)
        if not ids:
            raise _error(status.job_id, ErrorCode.NO_OUTPUT, "Scenario's job ended well and has no picture.")
        inputs = asked.rendered.inputs if asked else our_inputs(body)
        pictures = [self._picture(asset_id, status.job_id) for asset_id in ids]
        seed = inputs.get("seed")
        images = tuple(
            _image(picture, asset, asked, number, seed if len(ids) == 1 else None)
            for number, (asset, picture) in enumerate(pictures, 1)
        )
        return GenerationResult(
            images=images,
            provider=self.name,
            job_id=status.job_id,
            workflow=asked.rendered.workflow if asked else ALIASES["img2img" if body.get("image") else "txt2img"],
            inputs=inputs,
            seed=seed,
            warnings=_format_warnings(images, asked),
            versions={"scenario_model": self._model_id},
            delay_s=status.delay_s,
            execution_s=status.execution_s,
        )

    def cancel(self, job_id: str) -> None:
        """End a job; one that has ended stays as it is. Raises RequestError where Scenario does not cancel it."""
        _check_id(job_id)
        try:
            self._api.cancel(job_id)
        except RequestError as error:
            if error.code in {ErrorCode.INVALID_INPUT, ErrorCode.NETWORK} and error.status in {400, 409, 422}:
                if self.status(job_id).state.is_final:
                    return
                raise
            raise _of_job(error, job_id) from error

    def retry(self, job_id: str) -> JobStatus:
        """Raises RequestError: a job of Scenario is sent again by its caller."""
        raise RequestError(f"Scenario has no retry: send the request of {job_id} again", code=ErrorCode.MISCONFIGURED)

    def health(self) -> Health:
        """Return how many jobs of the project are under way; no worker is told of. It proves address, keys, model."""
        self._api.model(self._model_id)
        jobs = {"inQueue": _count(self._api.jobs("queued")), "inProgress": _count(self._api.jobs("in-progress"))}
        under_way = sum(jobs.values())
        doing = (
            f"{under_way} jobs of this project are under way" if under_way else "no job of this project is under way"
        )
        address = "" if self._api.base_url == BASE_URL else f"; {self._api.base_url} is not Scenario's own address"
        return Health(jobs, {}, "busy" if under_way else "idle", f"Scenario has {self._model_id}, and {doing}{address}")

    def missing_models(self) -> None:
        """Return None: Scenario has models by its own ids, and `health` asks for the one."""

    def purge_queue(self) -> int:
        """Raises RequestError: jobs of Scenario are cancelled one by one."""
        raise RequestError("Scenario has no purge: cancel jobs by their ids", code=ErrorCode.MISCONFIGURED)

    def pause_s(self, waited_s: float) -> float:
        """Return a quarter of the wait so far, 0.25 s to 3 s: Scenario asks for polls every 2 to 3 s."""
        return min(3.0, max(0.25, waited_s / 4))

    def close(self) -> None:
        """Close the connections."""
        self._api.close()

    def _uploaded(self, picture: Picture) -> str:
        """Return the id of a picture, kept at Scenario."""
        text = base64.b64encode(picture.data).decode("ascii")
        if len(text) > UPLOAD_LIMIT_BYTES:
            raise RequestError(
                f"The picture has {len(text):,} bytes as base64; Scenario takes {UPLOAD_LIMIT_BYTES:,}. Nothing was "
                "sent. Send a smaller one, as JPEG or WebP",
                code=ErrorCode.PAYLOAD_TOO_LARGE,
                is_unsent=True,
                bytes=len(text),
                limit=UPLOAD_LIMIT_BYTES,
            )
        match self._api.upload(f"image{mimetypes.guess_extension(picture.mime_type) or ''}", text):
            case {"asset": {"id": str(asset_id)}} if asset_id:
                return asset_id
        raise RequestError("Scenario took the picture, and answered with no asset", is_transient=True, may_run=False)

    def _stored_picture(self, asset_id: str) -> str:
        """Return an asset's picture as base64: its size is the job's. Raises JobError (invalid_image), RequestError."""
        try:
            _, picture = self._picture(asset_id, "")
        except JobError as error:
            message = f"image: the asset {asset_id} of Scenario cannot be used. {error.report.message}"
            raise JobError.because(ErrorCode.INVALID_IMAGE, message, path="image") from error
        return base64.b64encode(picture.data).decode("ascii")

    def _picture(self, asset_id: str, job_id: str) -> tuple[ScenarioAsset, Picture]:
        """Return one picture, whole: fetched again where it came damaged."""
        lost = f"Scenario's picture {asset_id}"
        try:
            asset = read_asset(self._api.asset(asset_id))
            if asset is None or urlsplit(asset.url).scheme not in {"http", "https"}:
                raise _error(job_id, ErrorCode.RESULT_LOST, f"{lost} has no address.", filename=asset_id)
            picture = _whole(fetch_signed(asset.url, "Scenario's store")) or _whole(
                fetch_signed(asset.url, "Scenario's store")
            )
        except RequestError as error:
            if error.status is None or error.is_transient or error.code is ErrorCode.AUTH_FAILED:
                raise
            raise _error(job_id, ErrorCode.RESULT_LOST, f"{lost} is gone ({error}).", filename=asset_id) from error
        if picture is None:
            raise _error(job_id, ErrorCode.RESULT_LOST, f"{lost} is damaged. Send the job again.", filename=asset_id)
        return asset, picture


def _image(
    picture: Picture, asset: ScenarioAsset, asked: SubmittedRequest | None, number: int, seed_asked: int | None
) -> GeneratedImage:
    """Return a picture as it was asked for: Scenario gives PNG alone, without prompt and seed in it."""
    seed = asset.seed if asset.seed is not None else seed_asked
    if asked is not None:
        keeps_text = asked.request.metadata and seed is not None
        text = {"parameters": parameters_text(asked.rendered, seed or 0)} if keeps_text else {}
        picture = encode_picture(picture.data, asked.request.output_format, asked.request.output_quality, text)
    return GeneratedImage(
        filename=f"scenario_{number:05}_{mimetypes.guess_extension(picture.mime_type) or ''}",
        mime_type=picture.mime_type,
        sha256=hashlib.sha256(picture.data).hexdigest(),
        bytes=picture.data,
        asset_id=asset.asset_id,
        width=picture.width,
        height=picture.height,
        seed=seed,
    )


def _format_warnings(images: tuple[GeneratedImage, ...], asked: SubmittedRequest | None) -> tuple[str, ...]:
    wanted = f"image/{asked.request.output_format}" if asked else ""
    others = sorted({image.mime_type for image in images if wanted and image.mime_type != wanted})
    return tuple(f"Scenario gave {kind}, which is left as it is; PNG alone is encoded as {wanted}" for kind in others)


def _whole(data: bytes) -> Picture | None:
    """Return the picture in `data`, or None where it cannot be decoded to its end."""
    try:
        picture = check_picture(data, "image", flatten=False)
    except JobError:
        return None
    return picture if picture.is_whole else None


def _count(answer: object) -> int:
    match answer:
        case {"jobs": list(jobs)}:
            return len(jobs)
    return 0


def _check_id(job_id: str) -> None:
    if not re.fullmatch(_ID, job_id):
        raise JobError.of(_expired(job_id[:128]), job_id)


def _of_job(error: RequestError, job_id: str) -> RequestError | JobError:
    return JobError.of(_expired(job_id), job_id) if error.code is ErrorCode.ENDPOINT_NOT_FOUND else error


def _expired(job_id: str) -> ErrorReport:
    return ErrorReport(
        ErrorCode.JOB_EXPIRED,
        f"Scenario does not know the job {job_id}. Look at the id, and if another provider gave it: an id is "
        "good there alone.",
    )


def _error(job_id: str, code: ErrorCode, message: str, **details: str) -> JobError:
    return JobError.of(ErrorReport(code, message, details), job_id)
