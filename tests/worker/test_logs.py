"""The worker's log: one JSON object a line, with the job's id. The level does not apply to other libraries."""

from __future__ import annotations

import contextvars
import json
import logging
from collections.abc import Iterator

import pytest

from worker import logs


@pytest.fixture(autouse=True)
def _restored_logging() -> Iterator[None]:
    root = logging.getLogger()
    before = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = before


def logged_objects(capsys: pytest.CaptureFixture[str]) -> list[dict[str, object]]:
    """Return the logged lines, parsed."""
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_a_line_is_one_object_with_the_job_s_id(capsys: pytest.CaptureFixture[str]) -> None:
    """Each line has time, level, logger, job id and message. A message with a line break is still one line."""
    logs.configure("INFO")

    def job() -> None:
        logs.job_id.set("job-7")
        logging.getLogger("worker.jobs").info("done in %.2f s\nand well", 1.5)

    contextvars.copy_context().run(job)
    logging.getLogger("handler").warning("the worker ends")
    first, second = logged_objects(capsys)

    assert first.keys() == {"time", "level", "logger", "job_id", "message"}
    assert (first["level"], first["logger"], first["job_id"]) == ("INFO", "worker.jobs", "job-7")
    assert first["message"] == "done in 1.50 s\nand well"
    assert second["job_id"] is None


def test_a_traceback_is_in_the_json_object(capsys: pytest.CaptureFixture[str]) -> None:
    """A record with an exception is one line of JSON, whose `exc_info` has the traceback."""
    logs.configure("INFO")
    try:
        int("a bug")
    except ValueError:
        logging.getLogger("handler").exception("a bug")
    [line] = logged_objects(capsys)

    assert "ValueError: invalid literal" in str(line["exc_info"])


def test_existing_handlers_are_replaced(capsys: pytest.CaptureFixture[str]) -> None:
    """`configure` replaces existing handlers, such as the one that runpod installs: each line is logged once."""
    logging.getLogger().addHandler(logging.StreamHandler())
    logs.configure("INFO")
    logs.configure("INFO")
    logging.getLogger("handler").info("once")

    assert [line["message"] for line in logged_objects(capsys)] == ["once"]


def test_the_level_applies_to_our_loggers_only(capsys: pytest.CaptureFixture[str]) -> None:
    """The level applies to our loggers only: at DEBUG, boto3 would log signatures, and urllib3 would log URLs."""
    logs.configure("DEBUG")
    for name in ("urllib3.connectionpool", "botocore.auth", "boto3", "PIL.PngImagePlugin", "asyncio"):
        logging.getLogger(name).debug("https://signed")
    logging.getLogger("comfyui").debug("got prompt")
    logs.configure("WARNING")
    logging.getLogger("comfyui").info("got prompt")

    assert [line["message"] for line in logged_objects(capsys)] == ["got prompt"]
