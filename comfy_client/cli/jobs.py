"""The commands about one job that was started before: status, wait, result, logs, cancel."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from comfy_client.cli.call import JSON, STREAM, Call, Command, status_of
from comfy_client.cli.costs import required_log
from comfy_client.cli.flags import Flag, UsageError
from comfy_client.cli.following import WAIT_TIMEOUT, save, wait_with_progress
from comfy_client.cli.output import FORCE, OUTPUT, prepare_output
from comfy_client.cli.results import status_object
from comfy_client.cli.terminal_images import SHOW
from comfy_client.client import Client, Job
from comfy_client.job_log import LoggedJob, job_log_from_env
from comfy_client.providers.interface import JobStatus
from comfy_core.contract import ErrorReport
from comfy_core.error_codes import ErrorCode
from comfy_core.errors import ConfigError, JobError
from comfy_core.workflows import Workflow

JOB_ID = Flag(("job_id",), "The job's id, as `submit` and `jobs` print it.", "JOB_ID", {"nargs": "?"})
LAST = Flag(
    ("--last",),
    "Instead of an id: the newest job in the log of jobs that was sent to the selected provider.",
    settings={"action": "store_true"},
)


def commands(_workflows: Mapping[str, Workflow]) -> tuple[Command, ...]:
    """Return the commands."""
    return (
        Command("status", [JOB_ID, LAST, JSON], _status),
        Command("wait", [JOB_ID, LAST, WAIT_TIMEOUT, OUTPUT, FORCE, SHOW, JSON, STREAM], _wait),
        Command("result", [JOB_ID, LAST, OUTPUT, FORCE, SHOW, JSON], _result),
        Command("logs", [JOB_ID, LAST, JSON], _logs),
        Command("cancel", [JOB_ID, LAST, JSON], _cancel),
    )


def _selected(call: Call, client: Client) -> Job:
    """Return the job that JOB_ID or --last selects. Raises UsageError and ConfigError."""
    if (call.options.job_id is None) != call.options.last:
        raise UsageError("give either a job id or --last. `comfy-client jobs` lists the ids")
    if not call.options.last:
        return client.job(call.options.job_id)
    log, place = required_log(call.environment), str(client.provider)
    try:
        found = [job for job in log.jobs() if job.place == place]
    finally:
        log.close()
    if not found:
        raise ConfigError(f"{log.path} has no job at {place}. `comfy-client jobs` lists the jobs")
    return client.job(found[-1].job_id)


def _logged(call: Call, job_id: str) -> LoggedJob | None:
    """Return what the log has of a job. None if it does not have the job, is off, or cannot be read."""
    log = job_log_from_env(call.environment)
    if log is None:
        return None
    try:
        return log.job(job_id)
    except ConfigError:
        return None
    finally:
        log.close()


@contextmanager
def _explain_expiry(call: Call, client: Client, job_id: str) -> Iterator[None]:
    """Add what the log of jobs has to a job_expired error: where the result is saved, or where the job was sent."""
    try:
        yield
    except JobError as error:
        logged = _logged(call, job_id) if error.code is ErrorCode.JOB_EXPIRED else None
        if logged is None:
            raise
        hint = ""
        if saved := logged.saved_files:
            hint = f" Its result was saved and is unchanged: {', '.join(map(str, saved))}"
        elif logged.place not in {"", str(client.provider)}:
            hint = f" It was sent to {logged.place}, and your settings select {client.provider}"
        raise JobError.of(ErrorReport(error.code, error.report.message + hint, error.report.details), job_id) from error


def _status_of(call: Call, client: Client, job: Job) -> JobStatus:
    """Return a job's status; the logged one if the log has the job's end, and the provider has deleted the job."""
    try:
        with _explain_expiry(call, client, job.id):
            return job.status()
    except JobError as error:
        logged = _logged(call, job.id) if error.code is ErrorCode.JOB_EXPIRED else None
        if logged is None or not logged.state.is_final:
            raise
        call.screen.note(f"the state is that of the log of jobs: {client.provider} does not have the job any more")
        return JobStatus(job.id, logged.state, error=logged.error, execution_s=logged.execution_s, cost=logged.cost)


def _status(call: Call) -> int:
    with call.client() as client:
        status = _status_of(call, client, _selected(call, client))
    progress = status.progress
    percent = f", {progress.percent}% (step {progress.step} of {progress.steps})" if progress else ""
    if progress and progress.bytes_fields:
        percent = f", {progress.done_bytes:,} of {progress.total_bytes:,} bytes of its models"
    problem = f": {status.error.message}" if status.error else ""
    call.screen.show(status_object(status), f"{status.job_id}  {status.state.value}{percent}{problem}")
    return 0


def _wait(call: Call) -> int:
    """Wait for a job and save its outputs. A signal ends the wait but not the job, since others may wait for it too."""
    output = prepare_output(call.options.output, call.screen, is_forced=call.options.force)
    with call.client() as client:
        job = _selected(call, client)
        try:
            with call.screen.progress() as progress, _explain_expiry(call, client, job.id):
                if call.options.last:
                    progress.say(f"job {job.id}")
                result = wait_with_progress(job, call.options.wait_timeout, progress)
        except KeyboardInterrupt as interrupt:
            message = f"Interrupted: job {job.id} continues. To cancel it, run `comfy-client cancel {job.id}`."
            call.screen.interrupted(message, job.id)
            return status_of(interrupt)
        return save(call, client, output, result)


def _result(call: Call) -> int:
    """Fetch the result of a finished job again, and save it. Without -o, a result that is still saved is only shown."""
    output = prepare_output(call.options.output, call.screen, is_forced=call.options.force)
    with call.client() as client:
        job = _selected(call, client)
        logged = _logged(call, job.id)
        if call.options.output == OUTPUT.settings["default"] and logged and (saved := logged.saved_files):
            paths = list(map(str, saved))
            value = {"job_id": job.id, "paths": paths, "sha256": list(logged.hashes), "is_saved_before": True}
            call.screen.show(value, *paths)
            call.screen.note(f"job {job.id} was saved there before. To save it again, use -o")
            return 0
        with _explain_expiry(call, client, job.id):
            result = job.result()
        return save(call, client, output, result)


def _logs(call: Call) -> int:
    """Show the lines of ComfyUI's log that a failed job's error has. The log of jobs keeps them after the job."""
    with call.client() as client:
        job = _selected(call, client)
        logged = _logged(call, job.id)
        state, error = (logged.state, logged.error) if logged else (None, None)
        if state is None or error is None:
            status = _status_of(call, client, job)
            state, error = status.state, status.error
    lines = error.log_tail if error else []
    report = {"code": error.code.value, "message": error.message} if error else {"code": None, "message": ""}
    call.screen.show({"job_id": job.id, "state": state.value, **report, "lines": lines}, *lines)
    why = f"{error.code.value}: {error.message}" if error else "only the errors of failed jobs have log lines"
    call.screen.note(f"job {job.id} has the state {state.value}: {why}")
    return 0


def _cancel(call: Call) -> int:
    with call.client() as client:
        job = _selected(call, client)
        try:
            job.cancel()
        except JobError as error:
            if error.code is not ErrorCode.JOB_EXPIRED:
                raise
        state = _status_of(call, client, job).state.value
    call.screen.show({"job_id": job.id, "state": state}, f"{job.id}  {state}")
    return 0
