"""How long something of the network is waited for, and how often it is asked for again. Both have an end."""

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
    """It may work when asked again: nobody answered, or not in time, or the answer was cut."""


@dataclass(frozen=True)
class RestoreRetryPolicy:
    """The ends of all waits.

    Attributes:
        tries: how often something is asked for.
        first_s: the pause after the first failure; it doubles with each that follows.
        step_s: the longest that one call of git, or one download, may take.
        install_s: the longest that one run of pip, or of an install.py, may take.
        silence_s: the longest silence of a server.
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
            LOG.warning("%s: %s\n  Asking again in %g s", part, error, pause_s)
            time.sleep(pause_s)
    try:
        return attempt()
    except RetryableFetchError as error:
        raise RestoreError(
            part,
            f"{error}\n  Given up after {retry_policy.tries} attempts. Check the network and its proxies, or "
            "try again later",
        ) from error
