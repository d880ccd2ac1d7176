"""Runs a job from submission to saved files. Until the job ends, Ctrl-C and SIGTERM cancel it and print its id."""

from __future__ import annotations

from comfy_client.cli.call import Call, status_of
from comfy_client.cli.flags import Flag, parse_seconds
from comfy_client.cli.models_result import models_lines, models_object
from comfy_client.cli.output import OutputTarget, fetch_again, prepare_output, save_result, with_output_format
from comfy_client.cli.progress import ProgressDisplay
from comfy_client.cli.results import cost_line, result_lines, result_object
from comfy_client.cli.terminal_images import show_images
from comfy_client.client import Client, Job
from comfy_client.job import Done
from comfy_client.providers.interface import GenerationRequest, GenerationResult
from comfy_client.tasks import CANCEL_PATIENCE_S
from comfy_core.contract import ErrorReport
from comfy_core.error_codes import ErrorCode
from comfy_core.errors import ComfyClientError, JobError, WaitTimeout
from comfy_core.thread_call import NotStarted, ThreadCall

WAIT_TIMEOUT = Flag(
    ("--wait-timeout",),
    "Stop waiting after this time. The job continues, except one that this command started on a directly called "
    "ComfyUI. [default 600]",
    "SECONDS",
    {"type": parse_seconds},
)


def run_and_save(call: Call, request: GenerationRequest) -> int:
    """Run a job, save its outputs and return the exit status. The path of `-o` is checked before the submit."""
    output = prepare_output(call.options.output, call.screen, is_forced=call.options.force)
    request = with_output_format(output, request)
    with call.client() as client:
        submission = submission_of(client, request, is_followed=True)
        try:
            with call.screen.progress() as progress:
                job = submission.run()
                progress.say(f"job {job.id}")
                result = wait_with_progress(job, call.options.wait_timeout, progress)
        except WaitTimeout as error:
            remedy = "Allow more time, or start the job with `comfy-client submit`: a submitted job continues"
            raise after_wait_timeout(client, error, remedy) from error
        except KeyboardInterrupt as interrupt:
            return cancel_interrupted(call, submission, interrupt)
        return save(call, client, output, result, is_kept=client.provider.jobs_outlive_process)


def submission_of(client: Client, request: GenerationRequest, *, is_followed: bool = False) -> ThreadCall[Job]:
    """Return the call that submits a job. It has a thread, so that a signal cannot lose the id of a created job."""
    return ThreadCall(lambda: client.submit_request(request, is_followed=is_followed))


def wait_with_progress(job: Job, timeout_s: float | None, progress: ProgressDisplay) -> GenerationResult:
    """Wait for a job up to `timeout_s` or the client's default, show its progress, and return its result.

    A signal only interrupts this function: the wait continues in its thread, and shows nothing more.
    """
    is_shown = True

    def follow() -> GenerationResult:
        progress.follow(job.id)
        for event in job.events(timeout_s):
            if is_shown:
                progress.show(event)
            if isinstance(event, Done):
                return event.result
        raise AssertionError("events end with Done, or raise")

    try:
        return ThreadCall(follow).run()
    finally:
        is_shown = False


def after_wait_timeout(client: Client, error: WaitTimeout, remedy: str) -> ComfyClientError:
    """Return the error of a command whose own job has not ended in time.

    It is `error` if the job continues. A job on a directly called ComfyUI ends with the command; the message then has
    `remedy`.
    """
    if client.provider.jobs_outlive_process:
        return error
    problem = f"Job {error.job_id} has not ended within --wait-timeout, and was cancelled with this command. {remedy}"
    return JobError.of(ErrorReport(ErrorCode.DEADLINE_EXCEEDED, problem), error.job_id)


def cancel_interrupted(call: Call, submission: ThreadCall[Job], interrupt: KeyboardInterrupt) -> int:
    """Cancel the job of an interrupted command, if that is possible, and return the exit status."""
    job = None
    try:
        job = submission.result(CANCEL_PATIENCE_S)
        job.cancel(CANCEL_PATIENCE_S)
        message = f"Interrupted: job {job.id} was cancelled."
    except KeyboardInterrupt:
        message = (
            f"Interrupted again: job {job.id} may continue." if job else "Interrupted again: the job may continue."
        )
    except NotStarted:
        message = "Interrupted: nothing was sent."
    except TimeoutError:
        message = "Interrupted during the submit. RunPod may run the job: check its requests in RunPod's console."
    except ComfyClientError as error:
        message = f"Interrupted, and job {job.id} could not be cancelled: {error}" if job else f"Interrupted: {error}"
    call.screen.interrupted(message, job.id if job else None)
    return status_of(interrupt)


def save(call: Call, client: Client, output: OutputTarget, result: GenerationResult, *, is_kept: bool = True) -> int:
    """Save a result, show it, log its files, and return the exit status.

    The status is 0, 1 if the result could not be saved at the requested path, or the status of an interrupt. `is_kept`
    says whether the provider still has the result. Raises NotSaved.

    The result of a job of the task `models` has no files, and is only shown.
    """
    if result.report:
        call.screen.show(models_object(result), *models_lines(call.screen, result))
        return 0
    seed = f"generate it again with the seed {result.seed}: ComfyUI keeps only the results of `submit`"
    remedy = fetch_again(result) if is_kept else seed
    try:
        saved = save_result(output, result, call.screen, remedy)
    except KeyboardInterrupt as interrupt:
        message = (
            f"Interrupted while saving the result of job {result.job_id}: files may be missing. To get them, {remedy}."
        )
        call.screen.interrupted(message, result.job_id)
        return status_of(interrupt)
    client.note_files(result.job_id, saved.paths)
    if not output.is_stdout:
        call.screen.show(result_object(result, saved.paths, saved.problem), *result_lines(result, saved.paths))
    if not call.screen.is_json and (line := cost_line(result)):
        call.screen.say(line)
    show_images(call, result)
    for note in (*saved.notes, *result.warnings):
        call.screen.say(f"comfy-client: warning: {note}")
    if saved.problem:
        where = f"is saved as {', '.join(map(str, saved.paths))}" if saved.paths else "has no files"
        call.screen.say(f"comfy-client: {saved.problem}. The result of job {result.job_id} {where}")
    return int(bool(saved.problem))
