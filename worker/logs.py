"""Configures the worker's log: one JSON object per line, with the id of the job that the line is about."""

from __future__ import annotations

import contextvars
import logging
import sys

from pythonjsonlogger.json import JsonFormatter

job_id: contextvars.ContextVar[str | None] = contextvars.ContextVar("job_id", default=None)
"""Id of the job of the current thread or task."""


def _with_job_id(record: logging.LogRecord) -> bool:
    record.job_id = job_id.get()
    return True


def configure(level: str) -> None:
    """Log to stderr from `level` on, and remove earlier handlers."""
    handler = logging.StreamHandler(sys.stderr)
    fields = {"asctime": "time", "levelname": "level", "name": "logger"}
    form = "%(asctime)s %(levelname)s %(name)s %(job_id)s %(message)s"
    handler.setFormatter(JsonFormatter(form, rename_fields=fields))
    handler.addFilter(_with_job_id)
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for noisy in ("urllib3", "botocore", "boto3", "s3transfer", "asyncio", "PIL"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
