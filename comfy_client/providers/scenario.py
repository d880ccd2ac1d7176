"""Provider for Scenario.com, through its official SDK.

To switch an application back to Scenario, set IMAGE_GENERATION_PROVIDER=scenario.
"""

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
from comfy_client.providers.results import fetch_secret_url, marked_image
from comfy_client.providers.scenario_api import BASE_URL, ScenarioApi
from comfy_client.providers.scenario_request import (
    MAX_SCENARIO_SEED,
    MODEL_ID,
    check_supported,
    our_inputs,
    scenario_body,
)
from comfy_client.providers.scenario_responses import ScenarioAsset, Status, asset_ids_of, body_of, read_asset, read_job
from comfy_client.providers.submitted_requests import RequestCache, SubmittedRequest
from comfy_core.comfyui.outputs import parameters_text
from comfy_core.contract import ALIASES, ErrorReport, Fault, is_asset_id
from comfy_core.error_codes import ErrorCode
from comfy_core.errors import ConfigError, JobError, RequestError, invalid_input
from comfy_core.images.child_process import check_image, encode_image
from comfy_core.images.codec import EncodedImage
from comfy_core.request import intake
from comfy_core.request.reading import read_request
from comfy_core.workflows import Workflow

UPLOAD_LIMIT_BYTES = 6_000_000
"""Maximum size of an uploaded image as base64.

Source: docs/reference/scenario.md#uploads. Scenario's own plugin mentions 4 MB. If that is right, an upload between the
two limits fails with Scenario's 413.
"""
_ID = r"[\w.-]{1,128}"


class ScenarioProvider:
    """Generates images with one model of Scenario, by default Flux.1-dev. Raises ConfigError for a malformed model id.

    Args:
        api: connection to Scenario.
        workflows: the templates whose schemas validate requests. Only txt2img and img2img are supported.
        model_id: id of the Scenario model that runs the jobs.
        loras: maps the worker's LoRA files to the Scenario ids of the same LoRAs.
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
            raise ConfigError(f"SCENARIO_MODEL_ID={model_id!r} is not a model id. Flux.1-dev is {MODEL_ID}")
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
        """Submit a job. `image` is uploaded first, unless it is the id of a Scenario asset.

        `wait_s` is ignored: a submit to Scenario never waits for the job's end.

        Raises JobError: invalid_input for what Scenario does not support or rejects; invalid_image, unknown_workflow.
        Raises RequestError for other failures of a call.
        """
        del wait_s
        asset_id = request.input.get("image") if is_asset_id(request.input.get("image")) else None
        if asset_id is not None:
            request = replace(request, input={**request.input, "image": self._stored_image(asset_id)})
        parsed = read_request(request.input, self._workflows)
        check_supported(parsed, request.options, self._loras)
        rendered = intake.render_request(parsed, random_seed=lambda: secrets.randbelow(MAX_SCENARIO_SEED + 1))
        body = scenario_body(rendered.inputs, self._loras)
        try:
            for upload in rendered.uploads:
                body["image"] = asset_id or self._upload(upload.file)
            response = self._api.generate(self._model_id, body)
        except RequestError as error:
            if error.code is ErrorCode.INVALID_INPUT:
                raise invalid_input([Fault("", str(error))]) from error
            raise
        status = read_job(response)
        if status is None:
            raise RequestError("Scenario's response to the submit is not a job", may_run=True)
        self._submitted.remember(status.job_id, SubmittedRequest(parsed, rendered))
        return status

    def status(self, job_id: str) -> JobStatus:
        """Return a job's status. Not retried: callers poll. Raises JobError (job_expired)."""
        _check_id(job_id)
        try:
            response = self._api.job(job_id)
        except RequestError as error:
            raise _job_error(error, job_id) from error
        status = read_job(response)
        if status is None:
            raise RequestError("Scenario's response is not a job", is_transient=True)
        return status

    def result(self, status: JobStatus) -> GenerationResult:
        """Return a job's result. Images are encoded as requested if the request is still cached in this process.

        Raises JobError: the job's own error if it failed, no_output, or result_lost if an image is missing or damaged.
        Raises RequestError if Scenario is not reached; retry then.
        """
        if status.error is not None:
            raise JobError.of(status.error, status.job_id)
        submitted, body = self._submitted.get(status.job_id), body_of(status.output)
        ids = asset_ids_of(status.output)
        if not ids:
            report = ErrorReport(ErrorCode.NO_OUTPUT, "Scenario's job succeeded but has no image.")
            raise JobError.of(report, status.job_id)
        inputs = submitted.rendered.inputs if submitted else our_inputs(body)
        downloads = [self._download_image(asset_id, status.job_id) for asset_id in ids]
        seed = inputs.get("seed")
        images = tuple(
            _generated_image(image, asset, submitted, number, seed if len(ids) == 1 else None)
            for number, (asset, image) in enumerate(downloads, 1)
        )
        return GenerationResult(
            images=images,
            provider=self.name,
            job_id=status.job_id,
            workflow=submitted.rendered.workflow
            if submitted
            else ALIASES["img2img" if body.get("image") else "txt2img"],
            inputs=inputs,
            seed=seed,
            warnings=_format_warnings(images, submitted),
            versions={"scenario_model": self._model_id},
            delay_s=status.delay_s,
            execution_s=status.execution_s,
        )

    def cancel(self, job_id: str) -> None:
        """Cancel a job. No effect on a finished job.

        Raises RequestError if Scenario refuses to cancel an unfinished job, and JobError (job_expired).
        """
        _check_id(job_id)
        try:
            self._api.cancel(job_id)
        except RequestError as error:
            if error.code in {ErrorCode.INVALID_INPUT, ErrorCode.NETWORK} and error.status in {400, 409, 422}:
                if self.status(job_id).state.is_final:
                    return
                raise
            raise _job_error(error, job_id) from error

    def retry(self, job_id: str) -> JobStatus:
        """Raises RequestError: Scenario has no retry. The caller must submit the request again."""
        raise RequestError(f"Scenario has no retry: send the request of {job_id} again", code=ErrorCode.MISCONFIGURED)

    def health(self) -> Health:
        """Return the numbers of queued and running jobs of the Scenario project, each counted up to 100.

        The calls also verify the URL, the keys and the model id.
        """
        self._api.model(self._model_id)
        jobs = {
            "inQueue": _count(self._api.jobs(Status.QUEUED)),
            "inProgress": _count(self._api.jobs(Status.IN_PROGRESS)),
        }
        active = sum(jobs.values())
        doing = f"{active} jobs of this project are active" if active else "no job of this project is active"
        address = "" if self._api.base_url == BASE_URL else f"; {self._api.base_url} is not Scenario's own URL"
        return Health(jobs, {}, "busy" if active else "idle", f"Scenario has {self._model_id}, and {doing}{address}")

    def missing_models(self) -> None:
        """Return None: Scenario hosts the models. `health` verifies the model id."""

    def purge_queue(self) -> int:
        """Raises RequestError: Scenario can only cancel single jobs."""
        raise RequestError("Scenario cannot purge its queue: cancel jobs by their ids", code=ErrorCode.MISCONFIGURED)

    def pause_s(self, waited_s: float) -> float:
        """Return a quarter of `waited_s`, from 0.25 s to 3 s. Scenario recommends polling every 2 to 3 s."""
        return min(3.0, max(0.25, waited_s / 4))

    def close(self) -> None:
        """Close the connections."""
        self._api.close()

    def _upload(self, image: EncodedImage) -> str:
        """Upload an image to Scenario and return its asset id."""
        text = base64.b64encode(image.data).decode("ascii")
        if len(text) > UPLOAD_LIMIT_BYTES:
            raise RequestError.because(
                ErrorCode.PAYLOAD_TOO_LARGE,
                f"The image has {len(text):,} bytes as base64; Scenario accepts {UPLOAD_LIMIT_BYTES:,}. Nothing was "
                "sent",
                is_unsent=True,
                bytes=len(text),
                limit=UPLOAD_LIMIT_BYTES,
            )
        match self._api.upload(f"image{mimetypes.guess_extension(image.mime_type) or ''}", text):
            case {"asset": {"id": str(asset_id)}} if asset_id:
                return asset_id
        raise RequestError("Scenario's response to the upload is not an asset", is_transient=True, may_run=False)

    def _stored_image(self, asset_id: str) -> str:
        """Return an asset's image as base64, from which the job's size is read.

        Raises JobError (invalid_image) and RequestError.
        """
        try:
            _, image = self._download_image(asset_id, "")
        except JobError as error:
            message = f"image: the asset {asset_id} of Scenario cannot be used. {error.report.message}"
            raise JobError(ErrorReport(ErrorCode.INVALID_IMAGE, message, {"path": "image"})) from error
        return base64.b64encode(image.data).decode("ascii")

    def _download_image(self, asset_id: str, job_id: str) -> tuple[ScenarioAsset, EncodedImage]:
        """Return an asset and its image. The image is downloaded a second time if it is damaged.

        Raises JobError (result_lost) if the image is missing or damaged, and RequestError.
        """
        name = f"Scenario's image {asset_id}"
        try:
            asset = read_asset(self._api.asset(asset_id))
            if asset is None or urlsplit(asset.url).scheme not in {"http", "https"}:
                raise _error(job_id, ErrorCode.RESULT_LOST, f"{name} has no URL.", filename=asset_id)
            image = _decode_complete(fetch_secret_url(asset.url, "Scenario's store")) or _decode_complete(
                fetch_secret_url(asset.url, "Scenario's store")
            )
        except RequestError as error:
            if error.status is None or error.is_transient or error.code is ErrorCode.AUTH_FAILED:
                raise
            raise _error(
                job_id, ErrorCode.RESULT_LOST, f"{name} does not exist any more ({error}).", filename=asset_id
            ) from error
        if image is None:
            raise _error(job_id, ErrorCode.RESULT_LOST, f"{name} is damaged", filename=asset_id)
        return asset, image


def _generated_image(
    image: EncodedImage,
    asset: ScenarioAsset,
    submitted: SubmittedRequest | None,
    number: int,
    requested_seed: int | None,
) -> GeneratedImage:
    """Return an image in the requested format, or only with the AI mark if `submitted` is None.

    Scenario's files do not contain the prompt and the seed, so they are added if the request asks for metadata.
    """
    seed = asset.seed if asset.seed is not None else requested_seed
    if submitted is not None:
        adds_text = submitted.request.metadata and seed is not None
        text = {"parameters": parameters_text(submitted.rendered, seed or 0)} if adds_text else {}
        image = encode_image(image.data, submitted.request.output_format, submitted.request.output_quality, text)
    generated = GeneratedImage(
        filename=f"scenario_{number:05}_{mimetypes.guess_extension(image.mime_type) or ''}",
        mime_type=image.mime_type,
        sha256=hashlib.sha256(image.data).hexdigest(),
        bytes=image.data,
        asset_id=asset.asset_id,
        width=image.width,
        height=image.height,
        seed=seed,
    )
    return marked_image(generated) if submitted is None or submitted.request.ai_mark else generated


def _format_warnings(images: tuple[GeneratedImage, ...], submitted: SubmittedRequest | None) -> tuple[str, ...]:
    requested_type = f"image/{submitted.request.output_format}" if submitted else ""
    others = sorted({image.mime_type for image in images if requested_type and image.mime_type != requested_type})
    return tuple(
        f"Scenario returned {kind}, which was not converted to {requested_type}: only PNG is converted"
        for kind in others
    )


def _decode_complete(data: bytes) -> EncodedImage | None:
    """Return the image in `data`, or None if it cannot be decoded completely."""
    try:
        image = check_image(data, "image", form="as_sent")
    except JobError:
        return None
    return image if image.is_complete else None


def _count(response: object) -> int:
    match response:
        case {"jobs": list(jobs)}:
            return len(jobs)
    return 0


def _check_id(job_id: str) -> None:
    if not re.fullmatch(_ID, job_id):
        raise JobError.of(_expired(job_id[:128]), job_id)


def _job_error(error: RequestError, job_id: str) -> RequestError | JobError:
    return JobError.of(_expired(job_id), job_id) if error.code is ErrorCode.ENDPOINT_NOT_FOUND else error


def _expired(job_id: str) -> ErrorReport:
    problem = f"Scenario does not know the job {job_id}. It may belong to another provider."
    return ErrorReport.because(ErrorCode.JOB_EXPIRED, problem)


def _error(job_id: str, code: ErrorCode, problem: str, **details: str) -> JobError:
    return JobError.of(ErrorReport.because(code, problem, **details), job_id)
