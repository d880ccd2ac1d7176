"""The calls that are needed of Scenario's API, through its official SDK: JSON in and out. No foreign exception leaves.

The SDK repeats what failed up to twice by itself, a POST too, and sends no idempotency key
(docs/reference/scenario.md#sdk-transport): a second generation would be a second job, billed. So `generate` is sent
once. Other calls may be repeated without harm. It is imported when a ScenarioApi is made, and never where another
provider is chosen.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from comfy_client.providers.scenario_responses import cooldown_s, words_of
from comfy_core.contract import ErrorCode, JsonObject
from comfy_core.errors import ConfigError, RequestError, Unauthorized, missing_extra
from comfy_core.http import MAX_RETRY_AFTER_S, Retries, is_base_url, quoted_url

if TYPE_CHECKING:
    import scenario_sdk

BASE_URL = "https://api.cloud.scenario.com/v1"
REPEATS = 2
_SHOWN_BODY = 2000

SdkCall: TypeAlias = Callable[["scenario_sdk.Scenario"], Any]


@dataclass(frozen=True)
class StatusMeaning:
    """What a status means, and what to do about it."""

    code: ErrorCode
    remedy: str
    is_transient: bool = False


_KEYS = "look at SCENARIO_SDK_API_KEY and SCENARIO_SDK_API_SECRET, and if their project may do this"
_AGAIN = "try again"
MEANINGS: dict[int, StatusMeaning] = {
    400: StatusMeaning(ErrorCode.INVALID_INPUT, "correct what it names"),
    401: StatusMeaning(ErrorCode.AUTH_FAILED, _KEYS),
    402: StatusMeaning(ErrorCode.AUTH_FAILED, "look at the plan and the credits of Scenario's team"),
    403: StatusMeaning(ErrorCode.AUTH_FAILED, _KEYS),
    404: StatusMeaning(
        ErrorCode.ENDPOINT_NOT_FOUND, "look at SCENARIO_MODEL_ID, and at SCENARIO_BASE_URL where it is set"
    ),
    408: StatusMeaning(ErrorCode.NETWORK, _AGAIN, is_transient=True),
    409: StatusMeaning(ErrorCode.NETWORK, _AGAIN, is_transient=True),
    413: StatusMeaning(ErrorCode.PAYLOAD_TOO_LARGE, "send a smaller picture, as JPEG or WebP"),
    422: StatusMeaning(ErrorCode.INVALID_INPUT, "correct what it names"),
    429: StatusMeaning(ErrorCode.RATE_LIMITED, "send less at once, or wait", is_transient=True),
}
"""Statuses by what they mean. Those of 500 and above are transient; any other is an answer that we do not know."""


class ScenarioApi:
    """Scenario's API at `base_url`. Safe to use from several threads; keeps its connections until `close`.

    Raises ConfigError for a key or an address that cannot be one, and where the SDK is not installed. Its calls return
    an answer's JSON, and raise RequestError. The keys are shown nowhere.
    """

    def __init__(self, api_key: str, api_secret: str, base_url: str = BASE_URL) -> None:
        for name, value in (("SCENARIO_SDK_API_KEY", api_key), ("SCENARIO_SDK_API_SECRET", api_secret)):
            if not re.fullmatch(r"[!-~]{1,512}", value) or (name.endswith("KEY") and ":" in value):
                raise ConfigError(f"{name} is none of Scenario's: it is empty, or has spaces or other characters in it")
        if not is_base_url(base_url):
            raise ConfigError(
                f"SCENARIO_BASE_URL={quoted_url(base_url)} is no address without user name and query; "
                f"the usual one is {BASE_URL}"
            )
        try:
            import scenario_sdk  # noqa: PLC0415 - an extra, which takes half a second
        except ImportError as error:
            raise missing_extra("The provider 'scenario'", "scenario-sdk") from error
        # The SDK writes whole requests, with prompts and pictures, where debugging is logged.
        logging.getLogger("scenario_sdk._base_client").addFilter(_has_no_body)
        self.base_url = base_url.rstrip("/")
        self._sdk = scenario_sdk.Scenario(
            api_key=api_key,
            api_secret=api_secret,
            bearer_auth="",  # else it reads SCENARIO_SDK_JWT of the process
            base_url=self.base_url,
            max_retries=REPEATS,
        )

    def __repr__(self) -> str:
        return f"ScenarioApi({self.base_url!r})"

    def generate(self, model_id: str, body: JsonObject) -> object:
        """Start a job. It is sent once: `report.details["may_run"]` says whether it may have been accepted."""
        try:
            return self._answer(lambda sdk: sdk.generate.with_raw_response.run_model(model_id, body=body), repeats=0)
        except RequestError as error:
            raise _submit_error(error) from error

    def upload(self, name: str, base64_text: str) -> object:
        """Keep a picture at Scenario, hidden from the lists there. A repeat keeps it twice, and costs nothing."""
        return self._answer(lambda sdk: sdk.assets.with_raw_response.upload(name=name, image=base64_text, hide=True))

    def job(self, job_id: str) -> object:
        """Return a job. Sent once: callers poll."""
        return self._answer(lambda sdk: sdk.jobs.with_raw_response.retrieve(job_id), repeats=0)

    def jobs(self, status: Any) -> object:  # noqa: ANN401 - one of the SDK's words
        """Return the jobs with a status, a page of them."""
        return self._answer(lambda sdk: sdk.jobs.with_raw_response.list(status=status, page_size=100))

    def cancel(self, job_id: str) -> object:
        """End a job; the answer only acknowledges it. Sent once."""
        return self._answer(lambda sdk: sdk.jobs.with_raw_response.trigger_action(job_id, action="cancel"), repeats=0)

    def asset(self, asset_id: str) -> object:
        """Return an asset; its address leads to the picture as it was made."""
        return self._answer(lambda sdk: sdk.assets.with_raw_response.retrieve(asset_id, original_assets=True))

    def model(self, model_id: str) -> object:
        """Return a model."""
        return self._answer(lambda sdk: sdk.models.with_raw_response.retrieve(model_id))

    def close(self) -> None:
        """Close the kept connections."""
        self._sdk.close()

    def _answer(self, ask: SdkCall, *, repeats: int = REPEATS) -> object:
        """Return an answer's JSON as it is: the SDK's own types change what they do not know."""
        import httpx  # noqa: PLC0415 - comes with the SDK
        import scenario_sdk  # noqa: PLC0415 - as above

        try:
            answer: object = ask(self._sdk.with_options(max_retries=repeats)).http_response.json()
        except scenario_sdk.APIStatusError as error:
            raise status_error(error.status_code, error.body, error.response.headers.get("Retry-After")) from error
        except scenario_sdk.APIConnectionError as error:
            cause = error.__cause__
            what = "no answer in time" if isinstance(cause, httpx.TimeoutException) else "connection refused or lost"
            raise RequestError(
                f"Scenario was not reached at {self.base_url} ({what})",
                is_transient=True,
                is_unsent=isinstance(cause, (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)),
            ) from error
        except (ValueError, RecursionError) as error:
            problem = f"Scenario answered with something that is not JSON: is {self.base_url} its address?"
            raise RequestError(problem, status=200, is_transient=True) from error
        return answer


def status_error(status: int, body: object, retry_after: str | None = None) -> RequestError:
    """Return the error of an answer with a status of 400 or above, with what it means, and Scenario's words."""
    is_of_server = status >= 500  # noqa: PLR2004 - HTTP's own
    unknown = StatusMeaning(ErrorCode.NETWORK, _AGAIN, is_transient=is_of_server)
    meaning = MEANINGS.get(status, unknown)
    said = words_of(body)
    kind = Unauthorized if status in {401, 403} else RequestError
    asked_s = cooldown_s(body) or Retries().parse_retry_after(retry_after or "0") or None
    return kind(
        f"Scenario answered {status}{f' ({said})' if said else ''}: {meaning.remedy}",
        status=status,
        body=str(body)[:_SHOWN_BODY],
        code=meaning.code,
        is_transient=meaning.is_transient,
        is_unsent=meaning.code is ErrorCode.RATE_LIMITED,
        retry_after_s=min(asked_s, MAX_RETRY_AFTER_S) if asked_s else None,
    )


def _submit_error(error: RequestError) -> RequestError:
    """Return the error of a submit with what came of the job: one that may have arrived is never repeated."""
    is_refused = error.status is not None and 400 <= error.status < 500  # noqa: PLR2004 - HTTP's own
    if error.is_unsent or is_refused:
        error.report.details["may_run"] = False
        return error
    return RequestError(
        f"{error}. The job was sent, and Scenario may have accepted it: it was not sent again. Look at the jobs in "
        "Scenario's web app before you do",
        status=error.status,
        body=error.body,
        may_run=True,
    )


def _has_no_body(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith("Request options")
