"""Wrapper for Scenario's official SDK: the calls this project needs, with JSON in and out, raising RequestError.

The SDK retries failed calls up to twice, including POSTs, and sends no idempotency key
(docs/reference/scenario.md#sdk-transport). A second generation would be a second, billed job, so `generate` is not
retried. The other calls are safe to repeat. `job` and `cancel` are not retried here, because their callers repeat them.
The SDK is imported only when a ScenarioApi is created.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from comfy_client.providers.interface import submit_error
from comfy_client.providers.scenario_responses import retry_after_s
from comfy_core.backoff import parse_retry_after
from comfy_core.contract import JsonObject
from comfy_core.error_codes import ErrorCode
from comfy_core.errors import RequestError, Unauthorized, missing_extra
from comfy_core.http import MAX_RETRY_AFTER_S, error_message

if TYPE_CHECKING:
    import scenario_sdk

BASE_URL = "https://api.cloud.scenario.com/v1"
RETRIES = 2
_MAX_BODY = 2000

SdkCall: TypeAlias = Callable[["scenario_sdk.Scenario"], Any]


@dataclass(frozen=True)
class StatusMeaning:
    """The error code for an HTTP status, and the remedy if the code's own remedy does not fit Scenario."""

    code: ErrorCode
    remedy: str = ""
    is_transient: bool = False


_KEYS = "Check SCENARIO_SDK_API_KEY and SCENARIO_SDK_API_SECRET, and whether their project has this permission."
_FIELDS = "Correct the fields in the message."
_AGAIN = "Try again."
MEANINGS: dict[int, StatusMeaning] = {
    400: StatusMeaning(ErrorCode.INVALID_INPUT, _FIELDS),
    401: StatusMeaning(ErrorCode.AUTH_FAILED, _KEYS),
    402: StatusMeaning(ErrorCode.AUTH_FAILED, "Check the plan and the credits of the Scenario team."),
    403: StatusMeaning(ErrorCode.AUTH_FAILED, _KEYS),
    404: StatusMeaning(ErrorCode.ENDPOINT_NOT_FOUND, "Check SCENARIO_MODEL_ID, and SCENARIO_BASE_URL if it is set."),
    408: StatusMeaning(ErrorCode.NETWORK, _AGAIN, is_transient=True),
    409: StatusMeaning(ErrorCode.NETWORK, _AGAIN, is_transient=True),
    413: StatusMeaning(ErrorCode.PAYLOAD_TOO_LARGE),
    422: StatusMeaning(ErrorCode.INVALID_INPUT, _FIELDS),
    429: StatusMeaning(ErrorCode.RATE_LIMITED, is_transient=True),
}
"""Known HTTP statuses. Statuses of 500 and above are transient; other unknown statuses are not."""


class ScenarioApi:
    """Scenario's API at `base_url`. Thread-safe. Keeps its connections open until `close`.

    Raises ConfigError if the SDK is not installed. Methods return the response's JSON and raise RequestError. The keys
    never appear in messages.
    """

    def __init__(self, api_key: str, api_secret: str, base_url: str = BASE_URL) -> None:
        try:
            import scenario_sdk  # noqa: PLC0415 - an optional extra; the import takes half a second
        except ImportError as error:
            raise missing_extra("The provider 'scenario'", "scenario-sdk") from error
        # At debug level, the SDK logs whole requests with their prompts and images.
        logging.getLogger("scenario_sdk._base_client").addFilter(_has_no_body)
        self.base_url = base_url.rstrip("/")
        self._sdk = scenario_sdk.Scenario(
            api_key=api_key,
            api_secret=api_secret,
            bearer_auth="",  # otherwise the SDK reads SCENARIO_SDK_JWT
            base_url=self.base_url,
            max_retries=RETRIES,
        )

    def __repr__(self) -> str:
        return f"ScenarioApi({self.base_url!r})"

    def generate(self, model_id: str, body: JsonObject) -> object:
        """Submit a job. Not retried: `report.details["may_run"]` says whether it may have been accepted."""
        try:
            return self._json(lambda sdk: sdk.generate.with_raw_response.run_model(model_id, body=body), retries=0)
        except RequestError as error:
            raise submit_error(error, "Scenario", "the jobs in Scenario's web app") from error

    def upload(self, name: str, base64_text: str) -> object:
        """Upload an image to Scenario, hidden from its listings. A retry may store it twice, which is free."""
        return self._json(lambda sdk: sdk.assets.with_raw_response.upload(name=name, image=base64_text, hide=True))

    def job(self, job_id: str) -> object:
        """Return a job. Not retried: callers poll."""
        return self._json(lambda sdk: sdk.jobs.with_raw_response.retrieve(job_id), retries=0)

    def jobs(self, status: Any) -> object:  # noqa: ANN401 - a literal type of the SDK
        """Return the first page of the jobs with a status."""
        return self._json(lambda sdk: sdk.jobs.with_raw_response.list(status=status, page_size=100))

    def cancel(self, job_id: str) -> object:
        """Cancel a job. The response only acknowledges the request. Not retried."""
        return self._json(lambda sdk: sdk.jobs.with_raw_response.trigger_action(job_id, action="cancel"), retries=0)

    def asset(self, asset_id: str) -> object:
        """Return an asset, with the URL of the original image."""
        return self._json(lambda sdk: sdk.assets.with_raw_response.retrieve(asset_id, original_assets=True))

    def model(self, model_id: str) -> object:
        """Return a model."""
        return self._json(lambda sdk: sdk.models.with_raw_response.retrieve(model_id))

    def close(self) -> None:
        """Close the connections."""
        self._sdk.close()

    def _json(self, call: SdkCall, *, retries: int = RETRIES) -> object:
        """Make a call and return the response's raw JSON, because the SDK's types modify unknown values."""
        import httpx  # noqa: PLC0415 - comes with the SDK
        import scenario_sdk  # noqa: PLC0415 - as above

        try:
            response: object = call(self._sdk.with_options(max_retries=retries)).http_response.json()
        except scenario_sdk.APIStatusError as error:
            raise status_error(error.status_code, error.body, error.response.headers.get("Retry-After")) from error
        except scenario_sdk.APIConnectionError as error:
            cause = error.__cause__
            what = "timeout" if isinstance(cause, httpx.TimeoutException) else "connection refused or lost"
            raise RequestError(
                f"Scenario did not respond at {self.base_url} ({what})",
                is_transient=True,
                is_unsent=isinstance(cause, (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)),
            ) from error
        except (ValueError, RecursionError) as error:
            problem = f"The response of {self.base_url} is not JSON. Check SCENARIO_BASE_URL if it is set"
            raise RequestError(problem, status=200, is_transient=True) from error
        return response


def status_error(status: int, body: object, retry_after: str | None = None) -> RequestError:
    """Return the error for a response with a status of 400 or above, with Scenario's message and the remedy."""
    is_server_error = status >= 500  # noqa: PLR2004 - an HTTP status
    unknown = StatusMeaning(ErrorCode.NETWORK, _AGAIN, is_transient=is_server_error)
    meaning = MEANINGS.get(status, unknown)
    message = error_message(body)
    kind = Unauthorized if status in {401, 403} else RequestError
    delay_s = retry_after_s(body) or parse_retry_after(retry_after)
    problem = f"Scenario responded with {status}{f' ({message})' if message else ''}"
    remedy = "" if is_server_error else f". {meaning.remedy or meaning.code.remedy}"
    return kind(
        f"{problem}{remedy}",
        status=status,
        body=str(body)[:_MAX_BODY],
        code=meaning.code,
        is_transient=meaning.is_transient,
        is_unsent=meaning.code is ErrorCode.RATE_LIMITED,
        retry_after_s=min(delay_s, MAX_RETRY_AFTER_S) if delay_s else None,
    )


def _has_no_body(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith("Request options")
