"""If the cleanup after a run fails, the next run repeats it.

ComfyUI cannot delete an upload, so the cleanup uploads an empty file with the same name.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from comfy_core.comfyui.graph_rewrite import rewrite_graph
from comfy_core.comfyui.prompt_monitor import Prompt
from comfy_core.comfyui.responses import OutputFile
from comfy_core.comfyui.server import ComfyServer
from comfy_core.error_codes import ErrorCode
from comfy_core.errors import JobError, RequestError
from simulators.comfyui import Simulator
from simulators.waiting import until
from tests.comfyui.conftest import png
from tests.comfyui.test_jobs import b64
from tests.faults.conftest import RunJob
from tests.faults.test_faults_during_a_job import error_of, remaining


def test_history_that_could_not_be_deleted_is_deleted_later(simulator: Simulator, run: RunJob) -> None:
    """If deleting the history gets a 500, the job still succeeds, and the next job deletes both entries."""
    simulator.faults.respond_500("POST /history")
    run()
    assert len(remaining(simulator)) == 1

    run(seed=2)

    assert remaining(simulator) == []


@pytest.mark.parametrize("path", ["POST /queue", "POST /jobs"])
def test_a_prompt_that_could_not_be_stopped_is_stopped_later(simulator: Simulator, run: RunJob, path: str) -> None:
    """If a stuck prompt cannot be stopped because of a 500, the next job stops it before it queues its own prompts."""
    simulator.faults.hang_sampling()
    simulator.faults.respond_500(path)
    assert error_of(lambda: run(job_timeout_s=0.2)).code is ErrorCode.DEADLINE_EXCEEDED
    assert simulator.hanging_step == 1

    assert run(seed=2)["images"]

    assert remaining(simulator) == []


def test_an_upload_that_could_not_be_emptied_is_emptied_later(simulator: Simulator, run: RunJob) -> None:
    """If emptying an upload gets a 500, the next job empties it."""
    simulator.faults.hang_sampling()

    def stop_and_fail() -> JobError | None:
        if simulator.hanging_step is None:
            return None
        simulator.faults.respond_500("POST /upload/image")
        return JobError.because(ErrorCode.CANCELLED, "The job was cancelled.")

    assert error_of(lambda: run(stop_and_fail, image=b64(png(64, 64)))).code is ErrorCode.CANCELLED
    assert [Path(path).name for path in remaining(simulator)] == ["0.png"]

    run()

    assert remaining(simulator) == []


def test_emptying_a_file_is_tried_three_times(simulator: Simulator, server: ComfyServer) -> None:
    """If ComfyUI never accepts the empty file, the cleanup tries three times. Other files are emptied."""
    refused = [OutputFile("", "", "a/b.png", "run-1", "input")]  # ComfyUI returns 500 for a slash in a name
    for files in ([*refused, OutputFile("", "", "c.png", "run-1", "input")], [], []):
        with pytest.raises(RequestError, match="500 for POST /upload/image"):
            server.cleanup.remove_files(files)

    requests_before = len(simulator.requests)
    server.cleanup.remove_files()

    assert len(simulator.requests) == requests_before
    assert (simulator.input_dir / "run-1" / "c.png").is_file()


def test_a_file_of_a_run_that_failed_is_emptied(simulator: Simulator, run: RunJob) -> None:
    """An image that was saved into a file is emptied even if it could not be downloaded."""
    simulator.faults.drop_socket(at_step=2)
    simulator.faults.respond_500("/view", times=2)

    assert error_of(run).code is ErrorCode.COMFYUI_UNAVAILABLE
    assert remaining(simulator) == []


def test_a_prompt_without_its_images_is_not_complete() -> None:
    """A prompt whose last frame arrived, but not its image, is not complete."""
    graph = rewrite_graph(
        {"1": {"class_type": "SaveImage", "inputs": {"images": ["0", 0], "filename_prefix": "x"}}},
        "run",
        saver="SaveImageWebsocket",
    )

    assert not Prompt(graph, "a", finished_at=1.0).is_complete
    assert Prompt(graph, "a", finished_at=1.0, images={"1": {0: b"png"}}).is_complete


def test_cleanup_that_was_refused_is_repeated_by_the_next_job(simulator: Simulator, run: RunJob) -> None:
    """If ComfyUI refuses connections while a job is cleaned up, the job ends, and the next job stops its prompt."""
    simulator.faults.hang_sampling()
    refused: list[bool] = []

    def reason_to_stop() -> JobError | None:
        if simulator.hanging_step is None:
            return None
        if not refused:
            refused.append(True)
            simulator.faults.refuse_connections(0.5)
        return JobError.because(ErrorCode.CANCELLED, "The job was cancelled.")

    assert error_of(lambda: run(reason_to_stop)).code is ErrorCode.CANCELLED
    assert simulator.hanging_step == 1
    assert until(lambda: _responds(simulator))

    assert run(seed=2)["images"]

    assert remaining(simulator) == []


def _responds(simulator: Simulator) -> bool:
    server = ComfyServer(simulator.url)
    try:
        return bool(server.fetch_system())
    except RequestError:
        return False
    finally:
        server.close()
