"""A job from its submission to its saved pictures. Ctrl-C and SIGTERM cancel it, and never lose its id."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout

from comfy_client.cli.call import Call, status_of
from comfy_client.cli.output import Output, checked_output, fitted, save_result
from comfy_client.cli.progress import Progress
from comfy_client.cli.results import result_lines, result_object
from comfy_client.client import CANCEL_PATIENCE_S, Client, Job
from comfy_client.job import Done
from comfy_client.providers.interface import GenerationRequest, GenerationResult
from comfy_core.errors import ComfyClientError


def make(call: Call, request: GenerationRequest) -> int:
    """Run a job and save what it made. The output is checked before anything is sent."""
    output = checked_output(call.options.output, call.screen, is_forced=call.options.force)
    request = fitted(output, request)
    with call.client() as client:
        sending: Future[Job] = Future()
        try:
            with call.screen.progress() as progress:
                job = sent(client, request, sending, is_followed=True)
                progress.say(f"job {job.id}")
                result = followed(call, job, progress)
        except KeyboardInterrupt as interrupt:
            return interrupted(call, sending, interrupt)
        return save(call, output, result)


def sent(client: Client, request: GenerationRequest, sending: Future[Job], *, is_followed: bool = False) -> Job:
    """Submit a job and return it; `sending` has it too, also when a signal ends this call first.

    A thread submits it, since a signal would end the HTTP call and lose the id of a job that RunPod has taken.
    """

    def send() -> None:
        try:
            sending.set_result(client.submit_request(request, is_followed=is_followed))
        except BaseException as error:  # noqa: BLE001 - raised again where the result is read
            sending.set_exception(error)

    threading.Thread(target=send, name="submit", daemon=True).start()
    return sending.result()


def followed(call: Call, job: Job, progress: Progress) -> GenerationResult:
    """Show a job's events and return its result."""
    for event in job.events(call.options.wait_timeout):
        progress.show(event)
        if isinstance(event, Done):
            return event.result
    raise AssertionError("events end with Done, or raise")


def interrupted(call: Call, sending: Future[Job], interrupt: KeyboardInterrupt) -> int:
    """Cancel the job that was or is being sent, and return the exit status."""
    job = None
    try:
        job = sending.result(CANCEL_PATIENCE_S)
        job.cancel(CANCEL_PATIENCE_S)
        message = f"Interrupted: job {job.id} was cancelled."
    except KeyboardInterrupt:
        message = f"Interrupted again: job {job.id} may go on." if job else "Interrupted again: the job may go on."
    except FutureTimeout:
        message = "Interrupted while the job was sent. RunPod may run it: look at its requests in RunPod's console."
    except ComfyClientError as error:
        message = f"Interrupted, and job {job.id} could not be cancelled: {error}" if job else f"Interrupted: {error}"
    call.screen.interrupted(message, job.id if job else None)
    return status_of(interrupt)


def save(call: Call, output: Output, result: GenerationResult) -> int:
    """Save a result and show it. Returns 1 if it could not be saved where it was wanted."""
    try:
        saved = save_result(output, result, call.screen)
    except KeyboardInterrupt as interrupt:
        message = f"Interrupted while the result of job {result.job_id} was saved: its files may be missing."
        call.screen.interrupted(message, result.job_id)
        return status_of(interrupt)
    if not output.is_stdout:
        call.screen.show(result_object(result, saved.paths, saved.problem), *result_lines(result, saved.paths))
    for note in (*saved.notes, *result.warnings):
        call.screen.say(f"comfy-client: warning: {note}")
    if saved.problem:
        where = f"is saved as {', '.join(map(str, saved.paths))}" if saved.paths else "has no file"
        call.screen.say(f"comfy-client: {saved.problem}. The result of job {result.job_id} {where}")
    return int(bool(saved.problem))
