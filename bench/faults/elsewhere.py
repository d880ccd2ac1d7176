"""Rows of the fault table whose faults are caused by tests other than tests/production/test_faults.py."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class FaultTestedElsewhere:
    """A row of the table whose fault another test causes: the test with the name `test`, as `file::function`."""

    fault: str
    reaction: str
    caller_gets: str
    within_s: float
    next_job: str
    test: str


FAULTS_TESTED_ELSEWHERE = (
    FaultTestedElsewhere(
        "ComfyUI never becomes ready",
        "no job is taken; the worker reports itself unhealthy and exits 1",
        "nothing: the job stays queued for another worker",
        300,
        "another worker",
        "tests/production/test_shutdown_and_failed_boot.py::test_a_comfyui_that_never_becomes_ready_keeps_the_worker_from_taking_jobs",
    ),
    FaultTestedElsewhere(
        "a workflow's model is missing at boot",
        "the error has the file and every location searched; ComfyUI is not started, no job is taken; the "
        "worker exits 1",
        "nothing: the job stays queued for another worker",
        5,
        "another worker",
        "tests/production/test_worker.py::test_a_missing_model_keeps_the_worker_from_taking_jobs",
    ),
    FaultTestedElsewhere(
        "a model cannot be downloaded at boot (WORKER_FETCH_MODELS)",
        "the error has the file, what was expected and what was received; no job is taken; the worker exits 1",
        "nothing: the job stays queued for another worker",
        1800,
        "another worker",
        "tests/worker/test_boot.py::test_a_failed_model_download_fails_the_boot",
    ),
    FaultTestedElsewhere(
        "ComfyUI does not print its launch flags",
        "started with those of the pinned ComfyUI after five seconds",
        "a result",
        10,
        "yes",
        "tests/worker/test_launch_flags.py::test_a_comfyui_without_usable_help_is_treated_as_an_old_version",
    ),
    FaultTestedElsewhere(
        "SIGTERM during a model download",
        "the download ends, partial files are kept, nothing is reported, exit 0",
        "nothing: the job stays queued for another worker",
        20,
        "another worker",
        "tests/production/test_shutdown_and_failed_boot.py::test_sigterm_during_a_model_download_keeps_the_partial_file",
    ),
    FaultTestedElsewhere(
        "the warm-up fails, such as for lack of memory",
        "the worker reports itself unhealthy with the error, and exits 1",
        "nothing: the job stays queued for another worker",
        5,
        "another worker",
        "tests/production/test_warm_up.py::test_a_failed_warm_up_is_reported",
    ),
    FaultTestedElsewhere(
        "ComfyUI killed while an interrupted warm-up still loads a model",
        "ComfyUI is restarted, and the job that waited runs",
        "a result",
        20,
        "yes",
        "tests/production/test_warm_up.py::test_a_death_during_the_warm_up_fails_no_job",
    ),
    FaultTestedElsewhere(
        "SIGTERM while idle",
        "ComfyUI is stopped, exit 0",
        "nothing",
        4,
        "another worker",
        "tests/production/test_shutdown_and_failed_boot.py::test_sigterm_while_idle_exits_at_once",
    ),
    FaultTestedElsewhere(
        "SIGTERM while busy",
        "the job is finished and posted, then exit 0",
        "a result",
        20,
        "another worker",
        "tests/production/test_shutdown_and_failed_boot.py::test_sigterm_while_busy_lets_the_job_finish",
    ),
    FaultTestedElsewhere(
        "SIGTERM, and the job exceeds the grace period",
        "interrupted and posted, then exit 0",
        "`interrupted`",
        22,
        "another worker",
        "tests/production/test_shutdown_and_failed_boot.py::test_sigterm_interrupts_the_job_after_the_grace_period",
    ),
    FaultTestedElsewhere(
        "image URL that redirects to a private address",
        "the redirect is checked like the first URL; no connection is made",
        "`invalid_image`",
        20,
        "yes",
        "tests/core/test_safe_fetch.py::test_redirect_to_a_private_address",
    ),
    FaultTestedElsewhere(
        "the receiver of a job's webhook does not run",
        "the result is returned at once; the event is sent again in the background",
        "a result",
        60,
        "yes",
        "tests/production/test_webhooks.py::test_the_receiver_of_the_page_is_killed_and_gets_the_event_later",
    ),
    FaultTestedElsewhere(
        "the receiver of a job's webhook does not respond",
        "the result is returned two seconds later; the event is sent again after 15 s",
        "a result",
        15,
        "yes",
        "tests/production/test_webhooks.py::test_a_slow_receiver_delays_no_result",
    ),
    FaultTestedElsewhere(
        "webhook to a private address, or one that redirects",
        "no connection is made to a private address; a redirect is not followed",
        "a result",
        30,
        "yes",
        "tests/worker/test_webhooks.py::test_a_host_with_a_private_address_is_not_contacted",
    ),
    FaultTestedElsewhere(
        "ComfyUI ignores an interrupt",
        "the job still ends; the worker's own ComfyUI is killed after 30 s and restarted",
        "`deadline_exceeded`, or cancelled",
        5,
        "yes, after ComfyUI's restart",
        "tests/faults/test_faults_during_a_job.py::test_a_sampler_that_cannot_be_interrupted_does_not_hang_the_job",
    ),
    FaultTestedElsewhere(
        "external ComfyUI (COMFYUI_URL) stops while a job runs",
        "retried for ten seconds, then given up",
        "`comfyui_unavailable`",
        16,
        "when ComfyUI responds again",
        "tests/faults/test_faults_during_a_job.py::test_a_dead_comfyui_fails_the_job_within_the_limit",
    ),
    FaultTestedElsewhere(
        "a result of 12 MB, with a bucket",
        "delivered through the bucket",
        "a result",
        30,
        "yes",
        "tests/production/test_bucket.py::test_a_result_that_does_not_fit_goes_to_the_bucket",
    ),
)
"""Faults that other tests cause. `test_a_fault_tested_elsewhere_has_its_test` checks that those tests exist."""
