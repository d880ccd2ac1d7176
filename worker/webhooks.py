"""Delivers the events of jobs to webhooks. Each job with a webhook has a thread that sends its events in order.

A job's result waits at most RESULT_DELAY_S for the first attempt to deliver its last event. Further attempts follow in
the background for as long as the worker's process lives, up to the limits below. So an event may be lost with the
process, and may arrive twice if a receiver's response is lost. docs/webhooks.md explains this to receivers.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import operator
import queue
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any, TypeAlias

from comfy_core.backoff import backoff_s, parse_retry_after
from comfy_core.contract import ErrorReport, JsonObject
from comfy_core.error_codes import ErrorCode
from comfy_core.request.webhook import Webhook, requested_webhook
from comfy_core.safe_connection import (
    FAILURES,
    HttpRequest,
    RequestDeadline,
    Resolve,
    exchange,
    problem_of,
    read_url,
    resolve_host,
)
from worker import logs
from worker.webhook_events import WebhookEvent, outcome_event, progress_event
from worker.webhook_settings import ATTEMPT_TIMEOUT_S, WebhookSettings

RESULT_DELAY_S = 2.0
"""Maximum delay of a job's result by its webhook."""
MAX_ATTEMPTS = 10
FIRST_RETRY_S = 1.0
"""Wait before the second attempt; doubled before each further attempt, up to LONGEST_RETRY_S."""
LONGEST_RETRY_S = 60.0
PROGRESS_INTERVAL_S = 5.0
"""Minimum time between two progress events of a job."""
MAX_WAITING = 100
"""Maximum number of jobs that wait for a further attempt. The events of other jobs are attempted once."""
SHUTDOWN_TIMEOUT_S = 5.0
"""Seconds that the last attempts may take when the worker shuts down."""
_MAX_RESPONSE_BYTES = 64 * 1024
"""Maximum size of a response's head. Its body is not read."""

_MakeEvent: TypeAlias = Callable[[], WebhookEvent]
"""Makes an event in the thread that sends it: a large result takes 0.3 s, which must not stop the worker's loop."""

log = logging.getLogger(__name__)


class Webhooks:
    """The webhooks of all jobs of this process.

    Args:
        settings: the secrets, and the rules for URLs.
        retry_for_s: time after an event in which its delivery is attempted.
        resolve: resolves host names.
        first_retry_s: wait before the second attempt.
    """

    def __init__(
        self,
        settings: WebhookSettings,
        retry_for_s: float,
        *,
        resolve: Resolve = resolve_host,
        first_retry_s: float = FIRST_RETRY_S,
    ) -> None:
        self._settings = settings
        self._retry_for_s = retry_for_s
        self._resolve = resolve
        self._first_retry_s = first_retry_s
        self._ending = threading.Event()
        self._lock = threading.Lock()
        self._threads: set[threading.Thread] = set()

    def events_of(self, job: Mapping[str, Any]) -> JobEvents:
        """Return the events of a job. None are sent if it has no webhook, or one that this worker does not allow."""
        webhook = requested_webhook(job.get("input")) or self._settings.default
        if webhook is not None and self._settings.faults(webhook):
            webhook = None  # the job fails with these faults
        return JobEvents(self, webhook, str(job.get("id", "unknown"))[:256])

    def end(self) -> None:
        """Attempt each waiting event once more, and return when all have ended or after SHUTDOWN_TIMEOUT_S."""
        self._ending.set()
        deadline = time.monotonic() + SHUTDOWN_TIMEOUT_S
        for thread in self._alive():
            thread.join(max(0.0, deadline - time.monotonic()))

    def start(self, thread: threading.Thread) -> None:
        """Start the thread of a job's events."""
        thread.start()
        with self._lock:
            self._threads = {thread, *self._alive()}

    def _alive(self) -> set[threading.Thread]:
        return {thread for thread in self._threads if thread.is_alive()}

    def deliver(self, event: WebhookEvent, webhook: Webhook, attempted: Future[None]) -> None:
        """Send an event until the receiver accepts it, or a limit is reached. Resolve `attempted` after one attempt.

        Every response but 2xx is a failed attempt; 410 ends the delivery. Repeating is safe: the receiver recognises
        the event by its id.
        """
        deadline = time.monotonic() + self._retry_for_s
        for attempt in range(MAX_ATTEMPTS):
            is_last = self._ending.is_set() or attempt == MAX_ATTEMPTS - 1 or len(self._alive()) > MAX_WAITING
            response = self.send(event, webhook)
            if not attempted.done():
                attempted.set_result(None)
            if response.is_accepted:
                log.info("webhook: %s delivered, attempt %d", event.kind, attempt + 1)
                return
            wait_s = backoff_s(attempt, first_s=self._first_retry_s, longest_s=LONGEST_RETRY_S)
            wait_s = max(wait_s, response.retry_after_s)
            if is_last or response.is_gone or time.monotonic() + wait_s > deadline:
                break
            log.warning("webhook: attempt %d for %s failed: %s", attempt + 1, event.kind, response.problem)
            self._ending.wait(wait_s)
        log.warning("webhook: %s was not delivered in %d attempts: %s", event.kind, attempt + 1, response.problem)

    def send(self, event: WebhookEvent, webhook: Webhook, given_up: threading.Event | None = None) -> ReceiverResponse:
        """Send an event once and return the receiver's response. `given_up` ends the wait for it within a second."""
        rules = self._settings.rules(webhook.url)
        headers = event.headers(self._settings.secrets[webhook.secret_id], datetime.now(UTC))
        deadline = RequestDeadline(time.monotonic() + rules.timeout_s, time.monotonic, given_up or threading.Event())
        host = ""
        try:
            target = read_url(webhook.url, rules)
            host = target.host
            request = HttpRequest("POST", target, headers, event.body.encode())
            with exchange(request, rules, self._resolve, deadline, limit=_MAX_RESPONSE_BYTES) as response:
                retry_after_s = parse_retry_after(response.getheader("Retry-After")) or 0.0
                hint = "; redirects are not followed" if response.getheader("Location") else ""
                return ReceiverResponse(response.status, f"{host} returned {response.status}{hint}", retry_after_s)
        except FAILURES as error:
            return ReceiverResponse(0, f"{host}: {problem_of(error, 'the request', ATTEMPT_TIMEOUT_S)}")


@dataclass(frozen=True)
class ReceiverResponse:
    """A receiver's response. The status is 0 if there is none."""

    status: int
    problem: str
    retry_after_s: float = 0.0

    @property
    def is_accepted(self) -> bool:
        """Whether the receiver has the event."""
        return HTTPStatus.OK <= self.status < HTTPStatus.MULTIPLE_CHOICES

    @property
    def is_gone(self) -> bool:
        """Whether the receiver wants no more events of the job."""
        return self.status == HTTPStatus.GONE


class JobEvents:
    """The events of one job. `report` is thread-safe."""

    def __init__(self, webhooks: Webhooks, webhook: Webhook | None, job_id: str) -> None:
        self._webhooks = webhooks
        self._webhook = webhook
        self._job_id = job_id
        self._next_progress_at = 0.0
        self._has_ended = threading.Event()
        self._attempted: Future[None] = Future()
        self._queue: queue.SimpleQueue[_MakeEvent | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def report(self, progress: JsonObject) -> None:
        """Send progress, unless the last one was sent less than PROGRESS_INTERVAL_S ago or is still being sent."""
        now = time.monotonic()
        if self._has_ended.is_set() or now < self._next_progress_at or not self._queue.empty():
            return
        if self._wants("progress"):
            self._next_progress_at = now + PROGRESS_INTERVAL_S
            self._put(functools.partial(progress_event, self._job_id, progress))

    async def end(self, outcome: JsonObject) -> None:
        """Send what the handler returns. Return after one attempt, or after RESULT_DELAY_S."""
        if self._put_last(outcome):
            await asyncio.wait({asyncio.wrap_future(self._attempted)}, timeout=RESULT_DELAY_S)

    def cancel(self) -> None:
        """Send that the job was cancelled, unless its outcome was sent. Returns immediately."""
        self._put_last({"error": ErrorReport.because(ErrorCode.CANCELLED).to_json()})

    def _wants(self, kind: str) -> bool:
        return self._webhook is not None and kind in self._webhook.events

    def _put_last(self, outcome: JsonObject) -> bool:
        """Put the job's last event into the queue. Return whether there is one to wait for."""
        if self._has_ended.is_set():
            return False
        self._has_ended.set()
        is_wanted = self._wants("failed" if "error" in outcome else "completed")
        if is_wanted:
            self._put(functools.partial(outcome_event, self._job_id, outcome))
        if self._thread is not None:
            self._queue.put(None)
        return is_wanted

    def _put(self, make_event: _MakeEvent) -> None:
        self._queue.put(make_event)
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="webhook", daemon=True)
            self._webhooks.start(self._thread)

    def _run(self) -> None:
        logs.job_id.set(self._job_id)
        webhook = self._webhook
        is_gone = False
        for event in map(operator.call, iter(self._queue.get, None)):
            if webhook is None or is_gone:
                continue
            if event.kind != "progress":
                self._webhooks.deliver(event, webhook, self._attempted)
            elif not self._has_ended.is_set():
                response = self._webhooks.send(event, webhook, given_up=self._has_ended)
                is_gone = response.is_gone
                self._next_progress_at = max(self._next_progress_at, time.monotonic() + response.retry_after_s)
                if not response.is_accepted:
                    log.warning("webhook: progress was not delivered: %s", response.problem)
        if not self._attempted.done():
            self._attempted.set_result(None)
