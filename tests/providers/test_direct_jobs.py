"""Jobs on a ComfyUI that is called directly, found by a client that did not submit them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from bench.worker_setup import ROOT
from comfy_client.client import Client, client_from_env
from comfy_client.providers.direct_jobs import new_job_id, prompt_id
from comfy_client.providers.interface import JobState
from comfy_core.error_codes import ErrorCode
from comfy_core.errors import JobCancelled, JobError
from simulators.comfyui import Simulator
from simulators.waiting import until

SMALL: dict[str, Any] = {"prompt": "a knight", "width": 64, "height": 64, "steps": 3, "seed": 5}
KNIGHT = ROOT / "examples" / "knight.png"


@pytest.fixture
def simulator(tmp_path: Path) -> Iterator[Simulator]:
    """A simulated ComfyUI."""
    with Simulator(base_directory=tmp_path) as simulator:
        yield simulator


@pytest.fixture
def client(simulator: Simulator) -> Iterator[Client]:
    """A client that did not submit the jobs."""
    with client_of(simulator) as client:
        yield client


def client_of(simulator: Simulator) -> Client:
    """Return a new client, which has the memory of a new process."""
    return client_from_env({"COMFYUI_ENDPOINT": simulator.url}, timeout_s=60)


def submit(simulator: Simulator, **inputs: Any) -> str:  # noqa: ANN401 - as in Client
    """Submit a job with a client that is closed at once, and return its id."""
    with client_of(simulator) as client:
        return client.submit(**{**SMALL, **inputs}).id


def files_in(simulator: Simulator) -> list[Path]:
    """Return the files in ComfyUI's folders, except empty ones."""
    folders = (simulator.input_dir, simulator.output_dir, simulator.temp_dir)
    files = [path for folder in folders for path in folder.rglob("*")]
    return [path for path in files if path.is_file() and path.stat().st_size]


@pytest.mark.parametrize("inputs", [{}, {"output_format": "webp"}, {"image": KNIGHT, "strength": 0.5}], ids=str)
def test_another_client_gets_the_same_result(simulator: Simulator, client: Client, inputs: dict[str, Any]) -> None:
    """The result equals that of a job which its client follows: pixels, seeds, names, format and inputs."""
    followed = client.run(**SMALL, **inputs, num_images=2)
    found = client.job(submit(simulator, **inputs, num_images=2)).wait()

    assert [image.seed for image in found.images] == [5, 6]
    for image, expected in zip(found.images, followed.images, strict=True):
        assert image.pil().tobytes() == expected.pil().tobytes()
        assert (image.filename, image.mime_type, image.size) == (expected.filename, expected.mime_type, expected.size)
    assert (found.workflow, found.inputs, found.seed) == (followed.workflow, followed.inputs, followed.seed)


def test_a_result_can_be_read_again(simulator: Simulator, client: Client) -> None:
    """The files stay in ComfyUI, so that each client can read the result. The prompt runs once."""
    job_id = submit(simulator)
    first = client.job(job_id).wait()
    with client_of(simulator) as other:
        again = other.job(job_id).result()

    assert again.image.bytes == first.image.bytes
    assert len(simulator.executions) == 1


def test_the_states_of_a_job_are_found(simulator: Simulator, client: Client) -> None:
    """Another client sees that a job waits, runs and has succeeded."""
    simulator.faults.hang_sampling()
    running = submit(simulator)
    assert until(lambda: simulator.hanging_step)
    queued = submit(simulator, seed=6)
    states = [client.job(job_id).status().state for job_id in (running, queued)]
    simulator.faults.release()

    assert states == [JobState.RUNNING, JobState.QUEUED]
    assert client.job(queued).wait().image.seed == 6
    assert client.job(running).status().state is JobState.SUCCEEDED


def test_another_client_cancels_a_job(simulator: Simulator, client: Client) -> None:
    """A cancelled job leaves neither prompts nor files in ComfyUI; a finished job does not change."""
    finished = submit(simulator)
    client.job(finished).wait()
    client.job(finished).cancel()
    before = files_in(simulator)
    simulator.faults.hang_sampling()
    job = client.job(submit(simulator, image=KNIGHT, strength=0.5, num_images=2))
    assert until(lambda: simulator.hanging_step)
    job.cancel()

    assert job.status().state is JobState.CANCELLED
    with pytest.raises(JobCancelled):
        job.wait()
    assert until(lambda: not simulator.queue_ids)
    assert len(simulator.history_ids) == 1
    assert files_in(simulator) == before


def test_a_failed_job_is_found(simulator: Simulator, client: Client) -> None:
    """Another client gets the error of a failed node; the job's other prompts are removed from the queue."""
    simulator.faults.fail_node("KSampler", "RuntimeError", "the tensor is wrong")
    with client_of(simulator) as submitter:
        job_id = submitter.submit(**SMALL, num_images=3).id
        with pytest.raises(JobError, match="the tensor is wrong"):
            submitter.job(job_id).wait()
        assert until(lambda: not simulator.queue_ids)
    with pytest.raises(JobError, match="the tensor is wrong") as info:
        client.job(job_id).wait()

    assert info.value.code is ErrorCode.EXECUTION_FAILED
    assert info.value.report.details["node_type"] == "KSampler"


def test_a_restarted_comfyui_has_lost_the_job(simulator: Simulator, client: Client) -> None:
    """The error for a job that ComfyUI does not have any more has the possible reasons."""
    job_id = submit(simulator)
    client.job(job_id).wait()
    simulator.faults.forget_everything()
    with client_of(simulator) as other, pytest.raises(JobError, match="it was restarted") as info:
        other.job(job_id).status()

    assert info.value.code is ErrorCode.JOB_EXPIRED


def test_a_job_that_cannot_be_queued_fails_the_submit(simulator: Simulator) -> None:
    """`submit` raises the reason, with the job's id, and leaves nothing in ComfyUI."""
    with pytest.raises(JobError) as info:
        submit(simulator, image=KNIGHT, loras=[{"name": "nowhere.safetensors"}])

    assert info.value.code is ErrorCode.MODEL_MISSING
    assert info.value.job_id
    assert not simulator.queue_ids
    assert files_in(simulator) == []


def test_many_submitted_jobs_keep_their_results(simulator: Simulator) -> None:
    """Results that the client has dropped from its memory are read from ComfyUI."""
    with client_of(simulator) as client:
        jobs = [client.submit(**{**SMALL, "seed": seed, "steps": 1}) for seed in range(40)]
        seeds = [job.wait().image.seed for job in jobs]
        client.submit(**SMALL).wait()
        again = client.job(jobs[0].id).result()

    assert seeds == list(range(40))
    assert again.image.seed == 0


@pytest.mark.parametrize("job_id", ["", "local-", "local-7", "../queue", "b1c2-u1"])
def test_other_ids_are_unknown(client: Client, job_id: str) -> None:
    """Any text that is not the id of such a job is job_expired, without a request."""
    with pytest.raises(JobError) as info:
        client.provider.status(job_id)

    assert info.value.code is ErrorCode.JOB_EXPIRED


@pytest.mark.parametrize(
    "change", [{"prompts": "1"}, {"graph": []}, {"inputs": None}, {"seed": "5"}, {"new": 1}], ids=str
)
def test_data_of_another_version_is_a_lost_result(simulator: Simulator, client: Client, change: dict[str, Any]) -> None:
    """A job whose data this version cannot read is an error, and not a crash, for each command about the job."""
    first = submit(simulator)
    client.job(first).wait()
    [entry] = requests.get(f"{simulator.url}/history/{prompt_id(first, 0)}", timeout=60).json().values()
    _, _, graph, extra, _ = entry["prompt"]
    other = new_job_id()
    changed = {"comfy_client": {**extra["comfy_client"], **change}}
    body = {"prompt": graph, "prompt_id": prompt_id(other, 0), "extra_data": changed}
    assert requests.post(f"{simulator.url}/prompt", json=body, timeout=60).ok

    for call in (client.job(other).wait, client.job(other).status, client.job(other).result):
        with pytest.raises(JobError) as raised:
            call()
        assert raised.value.code is ErrorCode.RESULT_LOST
