"""`--json --stream`: a line of JSON for each event of a job, and a last one with the result or the error."""

from __future__ import annotations

import dataclasses
import io
import json
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from bench.worker_setup import ROOT, running_worker
from comfy_client.cli.progress import EVENT_NAMES, EventStream
from comfy_client.job import Downloading, Event, ProviderUnavailable, Queued, Running, Sampling, Waiting
from simulators.runpod.queue_api import RunPodPlatform
from tests.cli.conftest import Completed, Shell
from tests.cli.terminals import COMMAND, Terminal
from tests.processes import killed_at_end

SMALL_FLAGS = ["--width", "64", "--height", "64", "--steps", "4"]


def events_of(ended: Completed) -> list[Any]:
    """Return the objects of the lines on stdout."""
    return [json.loads(line) for line in ended.out.splitlines()]


def test_every_event_has_its_name_and_fields() -> None:
    """Each event of a job but `Done` and previews is an object with its name, the job's id and the event's fields."""
    written: list[Any] = []
    stream = EventStream(io.StringIO(), lambda name, value: written.append({"event": name, **value}))
    stream.follow("job-1")
    events: list[Event] = [
        Queued("job-1"),
        Waiting("cold", "1 worker is starting"),
        Running(None),
        Downloading(1, 2),
        Sampling(1, 2, 3, 4, 5),
        ProviderUnavailable("no response"),
    ]
    for event in events:
        stream.show(event)

    assert [type(event) for event in events] == list(EVENT_NAMES)
    assert written == [
        {"event": EVENT_NAMES[type(event)], "job_id": "job-1", **dataclasses.asdict(event)} for event in events
    ]


def test_the_last_line_is_the_result(shell: Shell) -> None:
    """Its keys are those of the object that `--json` prints alone."""
    events = events_of(shell("--json", "--stream", "txt2img", "a knight"))
    alone = shell("txt2img", "a knight", "--json").json

    assert events[0] == {"event": "queued", "job_id": events[-1]["job_id"]}
    assert events[-1].keys() == {"event", *alone}
    assert [each["event"] for each in events].index("done") == len(events) - 1


@pytest.mark.parametrize(
    ("arguments", "status", "code"),
    [(["txt2img", "x", "--steps", "0"], 1, "invalid_input"), (["wait", "nowhere"], 1, "job_expired")],
    ids=["invalid", "expired"],
)
def test_the_last_line_may_be_an_error(shell: Shell, arguments: list[str], status: int, code: str) -> None:
    """An error is the event `error`, with the same object as without `--stream`."""
    ended = shell(*arguments, "--json", "--stream")
    *_, last = events_of(ended)

    assert ended.status == status
    assert last["event"] == "error"
    assert last["error"]["code"] == code


def test_a_stream_needs_json(shell: Shell) -> None:
    """`--stream` without `--json` is a usage error. Both may precede the command."""
    ended = shell("txt2img", "x", "--stream")

    assert (ended.status, ended.out) == (2, "")
    assert "--stream needs --json" in ended.err
    assert events_of(shell("--json", "--stream", "txt2img", "x"))[-1]["event"] == "done"


@pytest.mark.slow
def test_events_are_written_while_the_job_runs(tmp_path: Path) -> None:
    """A reader of the pipe gets the steps before the result; stderr on a terminal has the job's id and no bar."""
    with running_worker(step_s=0.3) as setup:
        arguments = ["txt2img", "a knight", "-o", "x.png", *SMALL_FLAGS, "--json", "--stream"]
        terminal = Terminal(arguments, setup.platform.client_env(), tmp_path)
        status, out = terminal.wait()

    events = [json.loads(line) for line in out.splitlines()]
    steps = [event["step"] for event in events if event["event"] == "sampling"]
    assert status == 0
    assert steps
    assert steps == sorted(steps)
    assert {event["job_id"] for event in events} == {events[-1]["job_id"]}
    assert events[-1]["images"][0]["path"] == "x.png"
    assert terminal.lines == [f"job {events[-1]['job_id']}"]


@pytest.mark.slow
def test_an_interrupt_is_the_last_event(tmp_path: Path) -> None:
    """The first line is there while the job waits; after SIGTERM the last one is the error `cancelled`."""
    with RunPodPlatform(long_poll_s=0.1) as platform:
        command = [*COMMAND, "txt2img", "a knight", "--json", "--stream"]
        environment = {**platform.client_env(), "PYTHONPATH": str(ROOT), "HOME": str(tmp_path), "PATH": ""}
        with killed_at_end(
            subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=tmp_path)
        ) as process:
            assert process.stdout is not None
            assert json.loads(process.stdout.readline())["event"] == "queued"
            process.send_signal(signal.SIGTERM)
            *_, last = process.stdout.read().splitlines()
            status = process.wait(60)

    assert status == 143
    assert json.loads(last)["event"] == "error"
    assert json.loads(last)["error"]["code"] == "cancelled"
