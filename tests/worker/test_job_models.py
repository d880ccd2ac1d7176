"""Jobs that name models by address: LoRAs of a template, models of a graph, credentials, and the place in the queue."""

from __future__ import annotations

import base64
import errno
import json
import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from comfy_core.comfyui.server import ComfyServer
from comfy_core.error_codes import ErrorCode
from comfy_core.errors import JobError
from comfy_core.progress import Progress
from comfy_core.request.model_address import parse_address
from simulators.comfyui import Simulator
from simulators.hugging_face import ModelResponse, ModelServer
from simulators.waiting import until
from tests.core.models.addresses import CIVITAI_PATH, HF, HF_PATH, LORA, safetensors, sha256
from tests.needs import small_disk
from tests.worker.addressed import Addressed
from worker.job_execution import JobExecution, Service
from worker.job_models import link_error
from worker.jobs import Control, Worker, run_job
from worker.lifecycle import Lifecycle

TEXT_TO_IMAGE = {"prompt": "a knight", "steps": 1, "seed": 1, "width": 64, "height": 64}
TOKEN = "hf_TOPSECRET"  # noqa: S105 - not real
OWN_TOKEN = "c_OWNSECRET"  # noqa: S105 - not real


@pytest.fixture
def addressed(lora_server: ModelServer, tmp_path: Path) -> Addressed:
    """A server with one LoRA, at Hugging Face and at Civitai, and the folders of a worker."""
    return Addressed(lora_server, tmp_path / "volume" / ".by-address", tmp_path / "models")


def run(worker: Worker, job_input: dict[str, Any], control: Control | None = None) -> dict[str, Any]:
    """Run one job; return its result."""
    return run_job(worker, {"id": "job-1", "input": job_input}, control or Control())


def refusal(worker: Worker, job_input: dict[str, Any], code: ErrorCode) -> str:
    """Return the message of the error with which a job ends, after a check of its code."""
    with pytest.raises(JobError) as info:
        run(worker, job_input)
    assert info.value.code is code, info.value
    return info.value.report.message


def lora_graph(name: str) -> dict[str, Any]:
    """Return a graph of the caller that loads a LoRA by `name`."""
    return {
        "1": {
            "class_type": "UNETLoader",
            "inputs": {"unet_name": "flux1-dev-fp8.safetensors", "weight_dtype": "default"},
        },
        "2": {
            "class_type": "LoraLoaderModelOnly",
            "inputs": {"model": ["1", 0], "lora_name": name, "strength_model": 1},
        },
        "3": {"class_type": "EmptyImage", "inputs": {"width": 8, "height": 8, "batch_size": 1, "color": 0}},
        "4": {"class_type": "PreviewAny", "inputs": {"source": ["2", 0]}},
        "5": {"class_type": "SaveImage", "inputs": {"images": ["3", 0], "filename_prefix": "x"}},
    }


# --- where an address may be


@pytest.mark.parametrize(
    "lora",
    [
        {"hf": "studio/loras/knight.safetensors@v1"},
        {"hf": "studio/loras/knight.safetensors@v1", "sha256": sha256(LORA)},
        {"civitai": 123},
        {"name": HF},
        HF,
        "civitai:123",
    ],
)
def test_a_lora_by_address_changes_the_image(worker: Worker, addressed: Addressed, lora: object) -> None:
    """A LoRA by address changes the image. The result has its address with its hash, and the image without it stays."""
    fetching = addressed.worker(worker)
    without = run(fetching, TEXT_TO_IMAGE)
    result = run(fetching, {**TEXT_TO_IMAGE, "loras": [lora]})

    assert result["images"][0]["sha256"] != without["images"][0]["sha256"]
    [used] = result["inputs"]["loras"]
    assert used["name"].endswith(f"#sha256={sha256(LORA)}")
    assert used["strength"] == 1
    assert run(fetching, TEXT_TO_IMAGE)["images"][0]["sha256"] == without["images"][0]["sha256"]
    again = run(fetching, {**TEXT_TO_IMAGE, "loras": result["inputs"]["loras"]})
    assert again["images"][0]["sha256"] == result["images"][0]["sha256"]


def test_a_graph_names_a_model_by_address(worker: Worker, addressed: Addressed) -> None:
    """An address in place of a file name in a graph, or in an override of it, loads the file of that hash."""
    fetching = addressed.worker(worker)
    in_graph = run(fetching, {"workflow": lora_graph(HF)})
    overridden = run(fetching, {"workflow": lora_graph("pixel-art.safetensors"), "overrides": {"2.lora_name": HF}})

    for result in (in_graph, overridden):
        assert f"by-address/{sha256(LORA)}.safetensors" in result["texts"][0]
    assert overridden["inputs"]["overrides"] == {"2.lora_name": f"{HF}#sha256={sha256(LORA)}"}


def test_a_url_for_another_purpose_stays(worker: Worker, addressed: Addressed) -> None:
    """A URL in an input that is no list of models is not downloaded."""
    graph = lora_graph("pixel-art.safetensors")
    graph["6"] = {"class_type": "PrimitiveString", "inputs": {"value": f"{addressed.server.url}{HF_PATH}"}}
    graph["4"]["inputs"]["source"] = ["6", 0]
    result = run(addressed.worker(worker), {"workflow": graph})

    assert result["texts"] == [f"{addressed.server.url}{HF_PATH}"]
    assert addressed.server.received == []


# --- one download


def test_a_file_is_downloaded_once(worker: Worker, addressed: Addressed) -> None:
    """A second job with the same address downloads nothing: with a hash it sends no request, else one that it ends."""
    fetching = addressed.worker(worker)
    run(fetching, {**TEXT_TO_IMAGE, "loras": [HF]})
    first = len(addressed.server.received)
    run(fetching, {**TEXT_TO_IMAGE, "loras": [f"{HF}#sha256={sha256(LORA)}"]})
    assert len(addressed.server.received) == first
    run(fetching, {**TEXT_TO_IMAGE, "loras": [HF]})
    assert len(addressed.server.received) == first + 1


def test_a_changed_file_is_downloaded_again(worker: Worker, addressed: Addressed) -> None:
    """If the server has another file at the address, the next job without a hash uses that file."""
    fetching = addressed.worker(worker)
    run(fetching, {**TEXT_TO_IMAGE, "loras": [HF]})
    newer = safetensors(seed=2, size=90_000)
    addressed.server.put(HF_PATH, newer)
    result = run(fetching, {**TEXT_TO_IMAGE, "loras": [HF]})

    assert result["inputs"]["loras"][0]["name"].endswith(sha256(newer))


# --- what is refused before a request


@pytest.mark.parametrize(
    ("lora", "path", "problem"),
    [
        ({"hf": "knight.safetensors"}, "loras[0]", "must be like hf:owner/repository"),
        ({"civitai": "abc"}, "loras[0]", "not the number of a model version"),
        ({"civitai": "https://civitai.com/models/1?token=s3cret"}, "loras[0]", "not the number of a model version"),
        ({"civitai": 1, "hf": "a/b/c@main"}, "loras[0]", "exactly one of"),
        ({"hf": "a/b/c", "sha256": "12"}, "loras[0]", "not 64 hexadecimal digits"),
        ({"name": "a.safetensors", "sha256": "0" * 64}, "loras[0]", "only for a file with an address"),
        ({"url": "http://127.0.0.1:1/a.safetensors"}, "loras[0]", "port"),
        ({"url": "https://example.com/a.safetensors"}, "loras[0]", "not in WORKER_MODEL_HOSTS"),
        ({"url": "https://user:pass@127.0.0.1/a.safetensors"}, "loras[0]", "user name"),
        ({"url": "https://127.0.0.1/a?token=abc"}, "loras[0]", "credential in its query"),
        ({"url": "https://civitai.com/models/12/knight"}, "loras[0]", "is a page of Civitai"),
        ({"name": f"by-address/{sha256(LORA)}.safetensors"}, "workflow", "use the file's address"),
    ],
)
def test_an_invalid_address_is_a_fault(
    worker: Worker, addressed: Addressed, lora: dict[str, Any], path: str, problem: str
) -> None:
    """An address that is not valid or not allowed is refused with its path, before any request."""
    message = refusal(addressed.worker(worker), {**TEXT_TO_IMAGE, "loras": [lora]}, ErrorCode.INVALID_INPUT)

    assert path in message
    assert problem in message
    assert "s3cret" not in message
    assert addressed.server.received == []


def test_a_worker_may_leave_out_a_host(worker: Worker, addressed: Addressed) -> None:
    """Without Civitai in WORKER_MODEL_HOSTS, its addresses are refused. A mirror of an allowed host is allowed."""
    fetching = addressed.worker(worker, addressed.hosts(allowed=("huggingface.co",)))
    message = refusal(fetching, {**TEXT_TO_IMAGE, "loras": [{"civitai": 123}]}, ErrorCode.INVALID_INPUT)

    assert "WORKER_MODEL_HOSTS (huggingface.co)" in message
    assert addressed.server.received == []
    assert run(fetching, {**TEXT_TO_IMAGE, "loras": [HF]})["images"]


def test_a_worker_without_a_cache_refuses_addresses(worker: Worker) -> None:
    """A worker that downloads no models refuses an address."""
    assert "downloads no models" in refusal(worker, {**TEXT_TO_IMAGE, "loras": [HF]}, ErrorCode.INVALID_INPUT)


# --- credentials


def everything(base: Path, results: list[dict[str, Any]], log: str) -> str:
    """Return the text of all that jobs left: results, images with their metadata, the log, each file and its name."""
    files = [path for path in base.rglob("*") if path.is_file()]
    contents = [file.read_bytes() for file in files]
    contents += [base64.b64decode(image["data"]) for result in results for image in result["images"]]
    return "\n".join([json.dumps(results), log, *map(str, files), *(each.decode("latin-1") for each in contents)])


def test_a_token_is_sent_only_to_its_host(
    worker: Worker, addressed: Addressed, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The request's token is sent to its host and not after a redirect, and is in no result, log or file."""
    server = addressed.server
    server.put("/cdn/file", LORA)
    for _ in range(2):
        redirect = {"Location": f"{server.other_url}/cdn/file?signature=CDNSECRET"}
        server.respond(HF_PATH, ModelResponse(302, redirect))
    with caplog.at_level(logging.DEBUG):
        job = {**TEXT_TO_IMAGE, "loras": [HF], "model_tokens": {"huggingface.co": TOKEN}}
        result = run(addressed.worker(worker), job)

    assert {request.token for request in server.requests(HF_PATH)} == {TOKEN}
    assert {request.token for request in server.requests("/cdn/file")} == {""}
    left = everything(tmp_path, [result], caplog.text)
    assert TOKEN not in left
    assert "CDNSECRET" not in left


def test_a_signed_url_stays_secret(
    worker: Worker, addressed: Addressed, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The query of a URL is sent to its host, and is in no result, log or file, also if the job fails."""
    fetching = addressed.worker(worker)
    url = f"{addressed.server.url}{HF_PATH}?signature=URLSECRET"
    with caplog.at_level(logging.DEBUG):
        result = run(fetching, {**TEXT_TO_IMAGE, "loras": [{"url": url}]})
        graph = run(fetching, {"workflow": lora_graph(url)})
        addressed.server.files.clear()
        failure = refusal(fetching, {**TEXT_TO_IMAGE, "loras": [{"url": url}]}, ErrorCode.INVALID_MODEL)

    assert addressed.server.requests(HF_PATH)[0].query == "signature=URLSECRET"
    left = everything(tmp_path, [result, graph], caplog.text)
    assert f"{HF_PATH}#sha256={sha256(LORA)}" in left, "the metadata of the images has the address"
    assert "URLSECRET" not in f"{left} {failure}"


@pytest.mark.parametrize(
    "tokens", ["hf_TOPSECRET", {"hf_TOPSECRET": "huggingface.co"}, {"huggingface.co": "hf_TOPSECRET\n"}]
)
def test_a_fault_of_the_tokens_does_not_contain_them(worker: Worker, tokens: object) -> None:
    """An invalid `model_tokens` is refused without any part of it."""
    message = refusal(worker, {**TEXT_TO_IMAGE, "model_tokens": tokens}, ErrorCode.INVALID_INPUT)

    assert "model_tokens" in message
    assert TOKEN not in message


def test_the_worker_has_tokens_of_its_own(worker: Worker, addressed: Addressed) -> None:
    """Without a token in the request, the worker's own token is sent, and not to another host."""
    fetching = addressed.worker(worker, addressed.hosts(civitai_token=OWN_TOKEN))
    run(fetching, {**TEXT_TO_IMAGE, "loras": [{"civitai": 123}]})
    run(fetching, {**TEXT_TO_IMAGE, "loras": [HF]})

    assert {request.token for request in addressed.server.requests(CIVITAI_PATH)} == {OWN_TOKEN}
    assert {request.token for request in addressed.server.requests(HF_PATH)} == {""}


# --- what a job ends with


def test_every_failure_of_a_download_is_one_clear_error(worker: Worker, addressed: Addressed) -> None:
    """A refused file is invalid_model, a failing server is model_download_failed; the next job succeeds."""
    fetching = addressed.worker(worker)
    job = {**TEXT_TO_IMAGE, "loras": [HF]}
    addressed.server.respond(HF_PATH, ModelResponse(401), *[ModelResponse(503)] * 3)
    refused = refusal(fetching, job, ErrorCode.INVALID_MODEL)
    with pytest.raises(JobError) as failed:
        run(fetching, job)

    assert refused.startswith(f"{HF} 127.0.0.1 returned 401: no token was sent")
    assert failed.value.code is ErrorCode.MODEL_DOWNLOAD_FAILED
    assert failed.value.report.retryable
    assert failed.value.report.details["models"][0]["address"] == HF
    assert run(fetching, job)["images"]


def test_only_a_full_disk_is_disk_full(worker: Worker, addressed: Addressed) -> None:
    """A model folder that cannot be written for another reason is model_download_failed, with the folder's path."""
    folder = addressed.links / "loras/by-address"
    folder.parent.mkdir(parents=True)
    folder.touch()
    message = refusal(addressed.worker(worker), {**TEXT_TO_IMAGE, "loras": [HF]}, ErrorCode.MODEL_DOWNLOAD_FAILED)
    full = link_error(folder, parse_address(HF), OSError(errno.ENOSPC, "No space left on device"))

    assert f"cannot be linked into {folder} (File exists)" in message
    assert full.code is ErrorCode.DISK_FULL


@pytest.mark.parametrize("ended_by", ["cancel", "time"])
def test_a_cancel_or_the_timeout_ends_a_download(worker: Worker, addressed: Addressed, ended_by: str) -> None:
    """A job that is cancelled or times out during a download ends, and the next job downloads the rest."""
    hold = addressed.server.hold(HF_PATH, after=50_000)
    progress: list[Progress] = []

    def stop_error() -> JobError | None:
        is_cancelled = ended_by == "cancel" and any(each.done_bytes for each in progress)
        return JobError.because(ErrorCode.CANCELLED) if is_cancelled else None

    job = {**TEXT_TO_IMAGE, "loras": [HF]}
    fetching = addressed.worker(worker)
    with pytest.raises(JobError, match=r"was cancelled|its models were not downloaded") as info:
        run(fetching, {**job, "timeout_s": 1} if ended_by == "time" else job, Control(stop_error, progress.append))
    hold.release()

    assert info.value.code in {ErrorCode.CANCELLED, ErrorCode.DEADLINE_EXCEEDED}
    assert run(fetching, job)["images"]
    if ended_by == "cancel":
        assert addressed.server.received[-1].offset == 50_000


def test_eviction_under_load(worker: Worker, addressed: Addressed) -> None:
    """Twelve jobs with four LoRAs, in a cache for two, end with an image or with one clear error. None is mixed up."""
    paths = [f"/o/r/resolve/main/{number}.safetensors" for number in range(4)]
    for number, path in enumerate(paths):
        addressed.server.put(path, safetensors(seed=10 + number))
    fetching = addressed.worker(worker, limit_bytes=int(2.5 * len(LORA)))

    def outcome(number: int) -> str:
        try:
            result = run(fetching, {**TEXT_TO_IMAGE, "loras": [f"hf:o/r/{number}.safetensors"], "metadata": False})
        except JobError as error:
            return str(error)
        assert result["inputs"]["loras"][0]["name"].endswith(sha256(safetensors(seed=10 + number)))
        return str(result["images"][0]["sha256"])

    with ThreadPoolExecutor(4) as threads:
        outcomes = list(threads.map(outcome, [number % 4 for number in range(12)]))
    alone = [outcome(number) for number in range(4)]

    assert len(set(alone)) == 4
    for number, each in enumerate(outcomes):
        is_clear_error = each.startswith("model_download_failed: ") and "WORKER_MODEL_LIMIT_GB" in each
        assert each == alone[number % 4] or is_clear_error


def test_two_workers_share_a_volume(worker: Worker, addressed: Addressed, tmp_path: Path) -> None:
    """Two workers with one cache, each with its own ComfyUI, make the same image, and one downloads the file."""
    job = {**TEXT_TO_IMAGE, "loras": [HF]}
    with Simulator(base_directory=tmp_path / "second") as second_simulator:
        server = ComfyServer(second_simulator.url, directory=tmp_path / "second")
        second = replace(addressed, links=tmp_path / "second" / "models").worker(replace(worker, server=server))
        with ThreadPoolExecutor(2) as threads:
            results = list(threads.map(lambda each: run(each, job), [addressed.worker(worker), second]))
        server.close()

    assert results[0]["images"][0]["sha256"] == results[1]["images"][0]["sha256"]
    assert len(addressed.server.requests(HF_PATH)) == 3, "each asks for the version, and one downloads"


def test_a_comfyui_with_other_folders_is_named(worker: Worker, addressed: Addressed, tmp_path: Path) -> None:
    """If ComfyUI does not list the downloaded file, the error says which folder it does not read."""
    elsewhere = replace(addressed, links=tmp_path / "elsewhere")
    message = refusal(elsewhere.worker(worker), {**TEXT_TO_IMAGE, "loras": [HF]}, ErrorCode.MODEL_MISSING)

    assert "LoraLoaderModelOnly.lora_name" in message
    assert str(tmp_path / "elsewhere" / "loras") in message


@pytest.mark.slow
def test_a_full_disk_is_one_clear_error(worker: Worker, addressed: Addressed, tmp_path: Path) -> None:
    """A file that does not fit the disk is refused before the download; a job without it succeeds."""
    with small_disk(tmp_path / "small", "65m") as disk:
        fetching = replace(addressed, cache=disk / ".by-address").worker(worker)
        large = safetensors(2_000_000)
        addressed.server.put(HF_PATH, large)
        message = refusal(fetching, {**TEXT_TO_IMAGE, "loras": [HF]}, ErrorCode.MODEL_DOWNLOAD_FAILED)
        addressed.server.put(HF_PATH, LORA)
        assert run(fetching, {**TEXT_TO_IMAGE, "loras": [HF]})["images"]

    assert f"{len(large):,} bytes are needed" in message


# --- the queue


def test_progress_reports_the_bytes(worker: Worker, addressed: Addressed) -> None:
    """While a model is downloaded, the progress has the stage `model` and its bytes."""
    progress: list[Progress] = []
    hold = addressed.server.hold(HF_PATH, after=50_000)
    job = {**TEXT_TO_IMAGE, "loras": [HF]}
    thread = threading.Thread(target=run, args=(addressed.worker(worker), job, Control(observe=progress.append)))
    thread.start()
    try:
        assert until(lambda: any(each.done_bytes == 50_000 for each in progress))
    finally:
        hold.release()
        thread.join()

    first = progress[0]
    assert (first.stage, first.total_bytes) == ("model", len(LORA))


def test_a_later_job_does_not_wait_for_a_download(addressed: Addressed, worker: Worker) -> None:
    """While a job downloads a model, a job that arrived later runs; the first one queues its prompts after it."""
    lifecycle = Lifecycle(stop_comfyui=lambda: None, report_unhealthy=lambda _: None, grace_s=0, end=lambda _: None)
    service = Service(addressed.worker(worker), lifecycle)
    hold = addressed.server.hold(HF_PATH, after=50_000)
    first = JobExecution(service, {"id": "1", "input": {**TEXT_TO_IMAGE, "loras": [HF]}}, lambda _: None)
    second = JobExecution(service, {"id": "2", "input": TEXT_TO_IMAGE}, lambda _: None)
    downloading = service.threads.submit(first.run)
    try:
        assert until(hold.reached.is_set)
        assert service.threads.submit(second.run).result(20)["images"]
        assert not downloading.done()
    finally:
        hold.release()
    assert downloading.result(20)["images"]
    service.threads.shutdown()
