"""Faults of ComfyUI, or of the connection to it, while a job runs: the job returns its image or one clear error."""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Callable
from typing import Any

import pytest
from PIL import Image

from comfy_core.comfyui.prompt_monitor import WaitLimits
from comfy_core.comfyui.responses import OutputFile
from comfy_core.comfyui.run import run_graphs
from comfy_core.comfyui.server import ComfyServer
from comfy_core.error_codes import ErrorCode
from comfy_core.errors import JobError, RequestError
from simulators.comfyui import Simulator
from tests.faults.conftest import RunJob
from tools.recorded_graphs import TXT2IMG


def error_of(run: Callable[[], object]) -> JobError:
    """Call `run`; return the JobError that it raises."""
    with pytest.raises(JobError) as info:
        run()
    return info.value


def remaining(simulator: Simulator) -> list[str]:
    """Return what is left in ComfyUI's queue, history, and input and output folders. Empty files do not count."""
    files = [path for folder in (simulator.input_dir, simulator.output_dir) for path in folder.rglob("*")]
    not_empty = [str(path) for path in files if path.is_file() and path.stat().st_size]
    return [*simulator.queue_ids, *simulator.history_ids, *not_empty]


def pixels(result: dict[str, Any]) -> bytes:
    """Return the pixels of a result's first image."""
    return Image.open(io.BytesIO(base64.b64decode(result["images"][0]["data"]))).tobytes()


@pytest.fixture
def expected_sha256(run: RunJob) -> str:
    """The hash of the small job's image without any fault."""
    sha256: str = run()["images"][0]["sha256"]
    return sha256


def test_a_lost_websocket_is_reopened_and_the_job_succeeds(
    simulator: Simulator, run: RunJob, expected_sha256: str
) -> None:
    """If the websocket is dropped during sampling, the job succeeds and no step is sampled twice."""
    steps = simulator.sampled_steps
    simulator.faults.drop_socket(at_step=1)
    result = run(seed=2)

    assert result["images"][0]["sha256"] != expected_sha256
    assert simulator.sampled_steps - steps == 4
    assert run()["images"][0]["sha256"] == expected_sha256
    assert remaining(simulator) == []


def test_the_image_after_a_lost_websocket_is_the_same(simulator: Simulator, run: RunJob) -> None:
    """After a lost websocket the image is saved into a file, with the same pixels."""
    expected = pixels(run())
    run(seed=9)
    simulator.faults.drop_socket(at_step=2)

    assert pixels(run()) == expected


def test_a_reset_connection_does_not_fail_the_job(simulator: Simulator, run: RunJob) -> None:
    """A TCP reset is handled like any lost websocket; the stock worker fails the job."""
    simulator.faults.reset_socket(at_step=1)

    assert run()["images"]
    assert simulator.sampled_steps == 4
    assert remaining(simulator) == []


def test_a_run_that_ends_without_a_websocket_is_detected(simulator: Simulator, server: ComfyServer) -> None:
    """ComfyUI does not report the end to a new websocket, so /history is read right after the reconnect.

    Without that, it would be read only after `silence_s`, when the run has timed out.
    """
    simulator.faults.drop_socket(at_step=3)
    limits = WaitLimits(timeout_s=60, queue_timeout_s=60, silence_s=3600)

    assert run_graphs(server, [TXT2IMG], [], limits, lambda: None).prompts[0].images


@pytest.mark.slow
def test_a_stalled_websocket_is_detected(simulator: Simulator, run: RunJob) -> None:
    """The websocket stays open without frames: /history is polled, and the next job uses a new websocket."""
    simulator.faults.stall_socket(at_step=1)
    assert run()["images"]
    assert run(seed=2)["images"]

    assert simulator.requests.count(("GET", "/ws")) == 2
    assert remaining(simulator) == []


@pytest.mark.parametrize("lost", [1, 3])
def test_lost_frames_of_raw_pixels_are_detected(
    simulator: Simulator, run_input: Callable[[dict[str, Any]], dict[str, Any]], lost: int
) -> None:
    """If frames are lost on an open websocket, the save node runs again, saves files, and all images are returned."""
    graph = {
        "1": {"class_type": "EmptyImage", "inputs": {"width": 320, "height": 300, "batch_size": 3, "color": 255}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "fox"}},
    }
    expected = run_input({"workflow": graph})
    simulator.faults.lose_image(lost)
    result = run_input({"workflow": graph})

    assert [image["filename"] for image in result["images"]] == [f"fox_0000{number}_.png" for number in (1, 2, 3)]
    assert pixels(result) == pixels(expected) == bytes([0, 0, 255]) * (320 * 300)
    assert not simulator.faults.armed
    assert remaining(simulator) == []


def test_late_history_is_waited_for(simulator: Simulator, run: RunJob) -> None:
    """If the last frame arrives before the history entry exists, the job waits for the entry and succeeds."""
    simulator.faults.write_history_late(0.5)

    assert run()["images"]


def test_memory_is_freed_once_and_the_job_is_repeated(simulator: Simulator, run: RunJob) -> None:
    """After one out-of-memory error /free is called, the prompts run again, and the job returns all its images."""
    simulator.faults.run_out_of_memory(times=1)
    result = run(num_images=2)

    assert [image["seed"] for image in result["images"]] == [1, 2]
    assert ("POST", "/free") in simulator.requests
    assert remaining(simulator) == []


def test_repeated_out_of_memory_is_an_error_with_advice(simulator: Simulator, run: RunJob) -> None:
    """After a second out-of-memory error the job fails with advice, and the next job runs."""
    simulator.faults.run_out_of_memory(times=2)
    error = error_of(run)

    assert error.code is ErrorCode.OUT_OF_MEMORY
    assert error.report.retryable
    assert "smaller" in error.report.message
    assert run()["images"]
    assert remaining(simulator) == []


def test_a_failing_node_ends_the_job_and_its_other_prompts(simulator: Simulator, run: RunJob) -> None:
    """If the first of three prompts fails, the error has the node and the traceback, no path, and no prompt is left."""
    simulator.faults.fail_node("KSampler", "ValueError", "bad /comfyui/models/x.safetensors")
    error = error_of(lambda: run(num_images=3))

    assert error.code is ErrorCode.EXECUTION_FAILED
    lines = error.report.details.pop("log_tail")
    assert error.report.details == {"node_id": "8", "node_type": "KSampler", "exception_type": "ValueError"}
    assert any("sampling.py" in line or "executor.py" in line for line in lines)
    assert all(" in " in line for line in lines if line.lstrip().startswith("File "))
    assert "/" not in "".join(line.partition('"')[2].partition('"')[0] for line in lines)
    assert "/comfyui" not in error.report.message
    assert remaining(simulator) == []


def test_an_interrupt_by_another_client_is_retryable(simulator: Simulator, server: ComfyServer, run: RunJob) -> None:
    """If another client interrupts ComfyUI, the error is retryable."""
    simulator.faults.hang_sampling()

    def interrupt_once_queued() -> JobError | None:
        if simulator.queue_ids:
            server.stop_prompts(simulator.queue_ids)
        return None

    error = error_of(lambda: run(interrupt_once_queued))
    assert error.code is ErrorCode.INTERRUPTED
    assert error.report.retryable


def test_a_500_for_the_prompt_is_comfyui_unavailable(simulator: Simulator, run: RunJob) -> None:
    """If ComfyUI returns 500 for /prompt, the job fails with comfyui_unavailable, and the next job succeeds."""
    simulator.faults.respond_500("POST /prompt")
    error = error_of(run)

    assert error.code is ErrorCode.COMFYUI_UNAVAILABLE
    assert "500" in error.report.message
    assert run()["images"]


@pytest.mark.parametrize("fault", ["respond_500", "cut_response"])
def test_a_failed_image_download_is_retried_once(simulator: Simulator, run: RunJob, fault: str) -> None:
    """One 500 or one lost connection of /view does not fail a job; two in a row do."""
    fail: Callable[..., None] = getattr(simulator.faults, fault)
    for times in (1, 2):
        simulator.faults.drop_socket(at_step=2)  # so that the image is saved into a file
        fail("/view", times=times)
        if times == 1:
            assert run(seed=times)["images"]
        else:
            assert error_of(lambda: run(seed=2)).code is ErrorCode.COMFYUI_UNAVAILABLE
        assert remaining(simulator) == []

    assert simulator.requests.count(("GET", "/view")) == 4


def test_a_missing_image_is_requested_once(simulator: Simulator, server: ComfyServer) -> None:
    """A 404 is not retried."""
    with pytest.raises(RequestError, match="404 for GET /view"):
        server.view(OutputFile("", "", "none.png", "", "output"))

    assert simulator.requests.count(("GET", "/view")) == 1


def test_a_slow_response_is_waited_for(simulator: Simulator, run: RunJob) -> None:
    """A job succeeds although ComfyUI responds slowly, as it does while it loads a model."""
    simulator.faults.respond_slowly("/history", 0.3)

    assert run()["images"]


def test_a_restarted_comfyui_fails_the_job_soon(simulator: Simulator, run: RunJob) -> None:
    """If a restart of ComfyUI deleted the job's prompt, the job fails soon and the error has this reason."""
    simulator.faults.hang_sampling()
    forgot = False

    def forget_once_queued() -> JobError | None:
        nonlocal forgot
        if simulator.queue_ids and not forgot:
            forgot = True
            simulator.faults.forget_everything()
        return None

    error = error_of(lambda: run(forget_once_queued))

    assert error.code is ErrorCode.COMFYUI_UNAVAILABLE
    assert "lost the job" in error.report.message


@pytest.mark.slow
def test_a_sampler_that_cannot_be_interrupted_does_not_hang_the_job(simulator: Simulator, run: RunJob) -> None:
    """The job ends even if ComfyUI ignores the interrupt. A later job deletes the history entry of its prompt."""
    simulator.faults.hang_sampling(ignores_interrupt=True)
    error = error_of(lambda: run(job_timeout_s=0.2))
    assert error.code is ErrorCode.DEADLINE_EXCEEDED
    simulator.faults.release()

    assert run()["images"]
    assert remaining(simulator) == []


@pytest.mark.slow
def test_a_dead_comfyui_fails_the_job_within_the_limit(simulator: Simulator, server: ComfyServer) -> None:
    """If ComfyUI stops for good, the job fails after `unreachable_s` without a response."""
    simulator.faults.die(at_step=1)
    limits = WaitLimits(timeout_s=60, queue_timeout_s=60, unreachable_s=1.5)
    begun = time.monotonic()
    error = error_of(lambda: run_graphs(server, [TXT2IMG], [], limits, lambda: None))

    assert error.code is ErrorCode.COMFYUI_UNAVAILABLE
    assert time.monotonic() - begun > 1.5


def test_an_unreachable_comfyui_fails_the_job_at_once(simulator: Simulator, run: RunJob) -> None:
    """If ComfyUI's port is closed, the job fails with the remedy.

    It does not wait for the ten seconds that a silent ComfyUI gets.
    """
    simulator.stop()
    begun = time.monotonic()
    error = error_of(run)

    assert error.code is ErrorCode.COMFYUI_UNAVAILABLE
    assert "Send the job again" in error.report.message
    assert time.monotonic() - begun < 10


def test_a_job_survives_a_short_outage(simulator: Simulator, run: RunJob) -> None:
    """If connections are closed and refused for 0.3 seconds while a job runs, the job succeeds."""
    run()
    refused = False

    def refuse_once_queued() -> JobError | None:
        nonlocal refused
        if simulator.queue_ids and not refused:
            refused = True
            simulator.faults.refuse_connections(0.3)
        return None

    assert run(refuse_once_queued, seed=5)["images"]


def test_connections_are_reused(simulator: Simulator, run: RunJob) -> None:
    """Later jobs use the connections of the first job: one for HTTP and one for the websocket."""
    run()
    connections_before = simulator.connections
    for seed in range(3):
        run(seed=seed)

    assert simulator.connections == connections_before
