"""Timeouts and retries of network access during a restore."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from worker.snapshot.listing import RestoreError

LOG = logging.getLogger(__name__)
_T = TypeVar("_T")


class RetryableFetchError(Exception):
    """A temporary failure: no response, a timeout, or an incomplete response."""


@dataclass(frozen=True)
class RestoreRetryPolicy:
    """Retry limits and timeouts.

    Attributes:
        tries: maximum attempts.
        first_s: pause after the first failure; doubled after each further one.
        step_s: timeout of one git call or one download.
        install_s: timeout of one run of pip or of an install.py.
        silence_s: read timeout.
    """

    tries: int = 3
    first_s: float = 2.0
    step_s: float = 600.0
    install_s: float = 3600.0
    silence_s: float = 60.0

    def pause_s(self, failures: int) -> float:
        """Return the seconds to wait after so many failures."""
        return self.first_s * 2.0 ** (failures - 1)


def with_retries(part: str, attempt: Callable[[], _T], retry_policy: RestoreRetryPolicy) -> _T:
    """Return what `attempt` returns. Retry it after a RetryableFetchError; `attempt` must be safe to repeat.

    Raises RestoreError after the last attempt.
    """
    for failures in range(1, retry_policy.tries):
        pause_s = retry_policy.pause_s(failures)
        try:
            return attempt()
        except RetryableFetchError as error:
            LOG.warning("%s: %s\n  Retrying in %g s", part, error, pause_s)
            time.sleep(pause_s)
    try:
        return attempt()
    except RetryableFetchError as error:
        raise RestoreError(
            part,
            f"{error}\n  Given up after {retry_policy.tries} attempts. Check the network and its proxies, or "
            "try again later",
        ) from error
