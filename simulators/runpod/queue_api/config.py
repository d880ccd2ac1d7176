"""The settings of the RunPod simulator."""

from __future__ import annotations

from dataclasses import dataclass

MIB = 1 << 20


@dataclass(kw_only=True, eq=False)
class PlatformConfig:
    """Settings that may change while the platform runs. Size limits are bytes of the body as sent.

    A job's own `policy` overrides `execution_timeout_s` and `ttl_s`. RunPod's minimum values (5 s and 10 s) are not
    enforced, so that tests are fast.
    """

    host: str = "127.0.0.1"
    endpoint_id: str = "ep"
    api_key: str = "rpa_stand_in"
    round_trip_s: float = 0.0
    long_poll_s: float = 10.0
    result_limit_bytes: int = 10 * MIB
    request_limit_bytes: int = 10 * MIB
    sync_request_limit_bytes: int = 20_000_000
    retention_s: float = 1800.0
    sync_retention_s: float = 60.0
    execution_timeout_s: float = 600.0
    ttl_s: float = 86_400.0
    lost_job_s: float = 20.0
    poll_error_delay_s: float = 0.2
    """Delay before an error response to a poll. The SDK polls again at once and would spin without it."""
    dispatch_jitter_s: float = 0.0
    """Maximum random delay before a waiting worker looks for a new job, so that a random one of them gets it."""
