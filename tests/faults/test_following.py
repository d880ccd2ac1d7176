"""What can go wrong between us and ComfyUI while a job runs: each fault ends in a picture or in one clear error."""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Callable
from typing import Any

import pytest
from PIL import Image

from comfy_core.comfyui.responses import OutputFile
from comfy_core.comfyui.server import ComfyServer
from comfy_core.error_codes import ErrorCode
from comfy_core.errors import JobError, RequestError
from simulators.comfyui import Simulator
from tests.faults.conftest import RunJob


def error_of(run: Callable[[], object]) -> JobError:
    """Return the error that `run` ends in."""
    with pytest.raises(JobError) as info:
        run()
    return info.value


def left_behind(simulator: Simulator) -> list[str]:
    """Return what is still in ComfyUI's queue, history and folders, empty files apart."""
    files = [path for folder in (simulator.input_dir, simulator.output_dir) for path in folder.rglob("*")]
    full = [str(path) for path in files if path.is_file() and path.stat().st_size]
    return [*simulator.queue_ids, *simulator.history_ids, *full]


def pixels(result: dict[str, Any]) -> bytes:
    """Return the pixels of a result's first picture."""
    return Image.open(io.BytesIO(base64.b64decode(result["images"][0]["data"]))).tobytes()


@pytest.fixture
def expected(run: RunJob) -> str:
    """The hash of the picture that the small job makes where nothing goes wrong."""
    sha256: str = run()["images"][0]["sha256"]
    return sha256


def test_a_lost_socket_is_reopened_and_the_picture_comes(simulator: Simulator, run: RunJob, expected: str) -> None:
    """The socket is dropped while sampling: the run is followed on, and the save alone is done again."""
    steps = simulator.sampled_steps
    simulator.faults.drop_socket(at_step=1)
    result = run(seed=2)

    assert result["images"][0]["sha256"] != expected
    assert simulator.sampled_steps - steps == 4
    assert run()["images"][0]["sha256"] == expected
    assert left_behind(simulator) == []


def test_the_picture_after_a_lost_socket_is_the_same(simulator: Simulator, run: RunJob) -> None:
    """A picture that was saved again into a file has the pixels that it should have."""
    expected = pixels(run())
    run(seed=9)
    simulator.faults.drop_socket(at_step=2)

    assert pixels(run()) == expected


def test_a_reset_connection_is_no_end(simulator: Simulator, run: RunJob) -> None:
    """A TCP reset, where the stock worker fails the job at once, is a lost socket like any other."""
    simulator.faults.reset_socket(at_step=1)

    assert run()["images"]
    assert simulator.sampled_steps == 4
    assert left_behind(simulator) == []


def test_a_run_that_ends_while_the_socket_is_away_is_found(simulator: Simulator, run: RunJob) -> None:
    """ComfyUI says nothing of an end to a new socket; /history does, at once after the reconnect."""
    simulator.faults.drop_socket(at_step=4)
    begun = time.monotonic()
    assert run()["images"]

    assert time.monotonic() - begun < 2.5


def test_a_stalled_socket_is_found_by_its_silence(simulator: Simulator, run: RunJob) -> None:
    """The socket stays open and says nothing more: /history is asked, and the next job has a socket that works."""
    simulator.faults.stall_socket(at_step=1)
    begun = time.monotonic()
    assert run()["images"]
    assert time.monotonic() - begun < 4
    begun = time.monotonic()
    assert run(seed=2)["images"]

    assert time.monotonic() - begun < 1.5
    assert left_behind(simulator) == []


def test_late_history_is_waited_for(simulator: Simulator, run: RunJob) -> None:
    """The last frame comes before the history entry can be read: it is asked for until it is there."""
    simulator.faults.write_history_late(0.5)

    assert run()["images"]


def test_memory_that_does_not_suffice_once_is_freed_and_the_job_goes_on(simulator: Simulator, run: RunJob) -> None:
    """Out of memory once: /free is called, the prompts run again, the caller sees nothing of it."""
    simulator.faults.run_out_of_memory(times=1)
    result = run(num_images=2)

    assert [image["seed"] for image in result["images"]] == [1, 2]
    assert ("POST", "/free") in simulator.requests
    assert left_behind(simulator) == []


def test_memory_that_never_suffices_is_an_error_with_advice(simulator: Simulator, run: RunJob) -> None:
    """Out of memory twice: the error says what to ask for instead, and the next job runs."""
    simulator.faults.run_out_of_memory(times=2)
    error = error_of(run)

    assert error.code is ErrorCode.OUT_OF_MEMORY
    assert error.report.retryable
    assert "smaller" in error.report.message
    assert run()["images"]
    assert left_behind(simulator) == []


def test_a_failing_node_ends_the_job_and_its_other_prompts(simulator: Simulator, run: RunJob) -> None:
    """The first of three prompts fails: the others do not run."""
    simulator.faults.fail_node("KSampler", "ValueError", "bad /comfyui/models/x.safetensors")
    error = error_of(lambda: run(num_images=3))

    assert error.code is ErrorCode.EXECUTION_FAILED
    assert error.report.details == {"node_id": "8", "node_type": "KSampler", "exception_type": "ValueError"}
    assert "/comfyui" not in error.report.message
    assert left_behind(simulator) == []


def test_a_stranger_s_interrupt_is_told_from_a_failure(simulator: Simulator, server: ComfyServer, run: RunJob) -> None:
    """Someone interrupts ComfyUI: the job may be sent again."""
    simulator.faults.hang_sampling()

    def interrupt_once_sampling() -> JobError | None:
        if simulator.queue_ids:
            server.stop_prompts(simulator.queue_ids)
        return None

    error = error_of(lambda: run(interrupt_once_sampling))
    assert error.code is ErrorCode.INTERRUPTED
    assert error.report.retryable


def test_a_server_error_for_the_prompt_is_unavailability(simulator: Simulator, run: RunJob) -> None:
    """ComfyUI answers 500 to /prompt: the job fails at once and may be sent again."""
    simulator.faults.answer_500("POST /prompt")
    error = error_of(run)

    assert error.code is ErrorCode.COMFYUI_UNAVAILABLE
    assert "500" in error.report.message
    assert run()["images"]


@pytest.mark.parametrize("fault", ["answer_500", "cut_answer"])
def test_a_picture_that_could_not_be_fetched_is_fetched_once_more(
    simulator: Simulator, run: RunJob, fault: str
) -> None:
    """A finished job is not lost over one 500 or one lost connection to /view; two in a row fail it."""
    fail: Callable[..., None] = getattr(simulator.faults, fault)
    for times in (1, 2):
        simulator.faults.drop_socket(at_step=2)  # so that its picture is saved into a file
        fail("/view", times=times)
        if times == 1:
            assert run(seed=times)["images"]
        else:
            assert error_of(lambda: run(seed=2)).code is ErrorCode.COMFYUI_UNAVAILABLE
        assert left_behind(simulator) == []

    assert simulator.requests.count(("GET", "/view")) == 4


def test_a_picture_that_is_gone_is_asked_for_once(simulator: Simulator, server: ComfyServer) -> None:
    """A 404 is the same the second time."""
    with pytest.raises(RequestError, match="404 to GET /view"):
        server.view(OutputFile("", "", "none.png", "", "output"))

    assert simulator.requests.count(("GET", "/view")) == 1


def test_a_slow_answer_is_waited_for(simulator: Simulator, run: RunJob) -> None:
    """ComfyUI answers late, as while it loads a model."""
    simulator.faults.answer_slowly("/history", 1.0)

    assert run()["images"]


def test_a_comfyui_that_lost_everything_fails_the_job_soon(simulator: Simulator, run: RunJob) -> None:
    """ComfyUI was started anew while the job ran: it knows nothing of the prompt, and the job says so."""
    simulator.faults.hang_sampling()
    forgot = False

    def forget_once_queued() -> JobError | None:
        nonlocal forgot
        if simulator.queue_ids and not forgot:
            forgot = True
            simulator.faults.forget_everything()
        return None

    begun = time.monotonic()
    error = error_of(lambda: run(forget_once_queued))

    assert error.code is ErrorCode.COMFYUI_UNAVAILABLE
    assert "lost the job" in error.report.message
    assert time.monotonic() - begun < 5


def test_a_sampler_that_hangs_ends_with_the_deadline(simulator: Simulator, run: RunJob) -> None:
    """No step ever ends: the deadline does, the prompt is interrupted, and the next job runs."""
    simulator.faults.hang_sampling()
    error = error_of(lambda: run(timeout_s=1))

    assert error.code is ErrorCode.DEADLINE_EXCEEDED
    assert error.report.details["after_s"] == pytest.approx(1, abs=0.5)
    assert run()["images"]
    assert left_behind(simulator) == []


def test_a_sampler_that_cannot_be_interrupted_does_not_hang_the_job(simulator: Simulator, run: RunJob) -> None:
    """Even where ComfyUI does not heed the interrupt the job ends; its history goes with a later job's."""
    simulator.faults.hang_sampling(deaf=True)
    begun = time.monotonic()
    error = error_of(lambda: run(timeout_s=1))
    assert error.code is ErrorCode.DEADLINE_EXCEEDED
    assert time.monotonic() - begun < 5
    simulator.faults.go_on()

    assert run()["images"]
    assert left_behind(simulator) == []


def test_a_comfyui_that_dies_is_given_up_in_time(simulator: Simulator, run: RunJob) -> None:
    """ComfyUI is gone for good: the job ends once it has not answered for ten seconds."""
    run()
    simulator.faults.die(at_step=1)
    begun = time.monotonic()
    error = error_of(lambda: run(seed=2))

    assert error.code is ErrorCode.COMFYUI_UNAVAILABLE
    assert time.monotonic() - begun < 16


def test_a_comfyui_that_is_not_there_fails_the_job_at_once(simulator: Simulator, run: RunJob) -> None:
    """Nothing listens: the job fails before anything is sent, and says what to do."""
    simulator.stop()
    begun = time.monotonic()
    error = error_of(run)

    assert error.code is ErrorCode.COMFYUI_UNAVAILABLE
    assert "Send the job again" in error.report.message
    assert time.monotonic() - begun < 2


def test_a_short_outage_is_survived(simulator: Simulator, run: RunJob) -> None:
    """Connections are cut and refused for a second while the job runs: the picture comes all the same."""
    run()
    refused = False

    def refuse_once_queued() -> JobError | None:
        nonlocal refused
        if simulator.queue_ids and not refused:
            refused = True
            simulator.faults.refuse_connections(1.0)
        return None

    assert run(refuse_once_queued, seed=5)["images"]


def test_one_connection_is_kept(simulator: Simulator, run: RunJob) -> None:
    """Ten jobs take no more connections than one does: one for HTTP, one for the websocket."""
    run()
    before = simulator.connections
    for seed in range(10):
        run(seed=seed)

    assert simulator.connections == before
