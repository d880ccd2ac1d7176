"""handler.py: the results for RunPod, and the modes of RunPod's SDK, in separate processes."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import requests
from PIL import Image

from comfy_core.contract import ErrorReport
from comfy_core.error_codes import ErrorCode
from comfy_core.errors import ConfigError
from handler import Handler, make_handler, worker_from_settings
from simulators.comfyui import Simulator
from simulators.http_server import HttpHandler, HttpServer, free_port
from simulators.waiting import until
from tests.fakes.webhook_receiver import SECRETS, WebhookReceiver
from tests.processes import killed_at_end
from tests.worker.workers import configured
from worker.job_execution import Service, make_threads
from worker.lifecycle import Lifecycle
from worker.local_results import write_files
from worker.settings import Settings

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parent.parent
SMALL_INPUT = {"prompt": "a knight", "width": 64, "height": 64, "steps": 2}


@pytest.fixture
def simulator() -> Iterator[Simulator]:
    """A simulated ComfyUI."""
    with Simulator(step_s=0.01) as simulator:
        yield simulator


def make_service(simulator: Simulator) -> Service:
    """Return the worker's service on a simulator. An exit of the worker fails the test."""
    lifecycle = Lifecycle(
        stop_comfyui=lambda: None,
        report_unhealthy=lambda _: None,
        grace_s=1,
        end=lambda status: pytest.fail(str(status)),
    )
    return Service(worker_from_settings(Settings.from_env({"COMFYUI_URL": simulator.url})), lifecycle)


@pytest.fixture
def handler(simulator: Simulator) -> Iterator[Handler]:
    """A handler whose jobs run on `simulator`."""
    service = make_service(simulator)
    yield make_handler(service)
    service.worker.server.close()


def report_of(result: dict[str, Any]) -> ErrorReport:
    """Return the report of a failed result, after a check that the result has no other key."""
    assert list(result) == ["error"]
    assert isinstance(result["error"], str)
    return ErrorReport.from_json(result["error"])


def test_the_module_has_a_handler_that_boots_on_the_first_call(simulator: Simulator) -> None:
    """`from handler import handler`, as in RunPod's examples: the import loads no runpod; a call returns an image."""
    code = """
import asyncio, json, sys
from handler import handler
assert "runpod" not in sys.modules
job = json.loads(sys.argv[1])
results = [asyncio.run(handler(job)) for _ in range(2)]
print(json.dumps([len(result["images"]) for result in results]))
"""
    environment = {**os.environ, "COMFYUI_URL": simulator.url, "PYTHONPATH": str(ROOT)}
    arguments = [sys.executable, "-c", code, json.dumps({"id": "1", "input": SMALL_INPUT})]

    done = subprocess.run(
        arguments, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )

    assert (done.stdout, done.returncode) == ("[1, 1]\n", 0), done.stderr


def test_a_result_has_no_forbidden_keys(handler: Handler) -> None:
    """The SDK removes `error` and `refresh_worker` from a result and nests `output`, so a result has none of them."""
    result = asyncio.run(handler({"id": "1", "input": SMALL_INPUT}))

    assert result["images"]
    assert not {"error", "refresh_worker", "output"} & result.keys()


@pytest.mark.parametrize("job", [{}, {"input": None}, {"input": []}, {"input": "text"}, {"input": {}}, {"input": 5}])
def test_a_job_without_an_input_is_an_invalid_input(handler: Handler, job: dict[str, Any]) -> None:
    """A job whose input is missing or is not a valid request gets an invalid_input report."""
    assert report_of(asyncio.run(handler(job))).code is ErrorCode.INVALID_INPUT


def test_a_bug_is_reported_without_its_traceback(simulator: Simulator, caplog: pytest.LogCaptureFixture) -> None:
    """An unexpected exception is `internal`: the log has the traceback, the caller gets the job's id."""
    service = make_service(simulator)
    broken = configured(service.worker, job_timeout_s=None)  # the bug
    handler = make_handler(replace(service, worker=broken))
    report = report_of(asyncio.run(handler({"id": "job-7", "input": SMALL_INPUT})))
    service.worker.server.close()

    assert report.code is ErrorCode.INTERNAL
    assert "job-7" in report.message
    assert "Traceback" not in report.to_json()
    assert "Traceback" in caplog.text


def test_an_invalid_job_is_reported_to_its_webhook(simulator: Simulator) -> None:
    """A job with an invalid input and a valid webhook sends `failed` with the same report that its caller gets."""
    with WebhookReceiver() as receiver:
        environment = {"COMFYUI_URL": simulator.url, "WORKER_WEBHOOK_SECRETS": SECRETS}
        host = receiver.url.removeprefix("http://")
        settings = Settings.from_env({**environment, "WORKER_WEBHOOK_PRIVATE_HOSTS": host})
        service = make_service(simulator)
        handler = make_handler(replace(service, worker=replace(service.worker, settings=settings)))
        webhook = {"url": receiver.url}
        results = [
            asyncio.run(handler({"id": "1", "input": {**SMALL_INPUT, **wrong}}))
            for wrong in (
                {"webhook": webhook, "steps": 0},
                {"webhook": {**webhook, "secret_id": "other"}},
                {"webhook": {"url": "http://hooks.example/"}},
            )
        ]
        service.worker.server.close()

    assert [report_of(result).details["faults"][0]["path"] for result in results] == [
        "steps",
        "webhook.secret_id",
        "webhook.url",
    ]
    [received] = receiver.received
    assert received.event["data"]["error"] == json.loads(results[0]["error"])


def test_a_cancelled_task_interrupts_the_job_and_leaves_nothing(simulator: Simulator, handler: Handler) -> None:
    """If the SDK cancels the task, the prompts are interrupted, CancelledError is raised, and the next job runs."""
    simulator.faults.hang_sampling(at_step=2)

    async def cancelled_while_sampling() -> None:
        task = asyncio.ensure_future(handler({"id": "1", "input": {**SMALL_INPUT, "num_images": 2}}))
        assert await asyncio.to_thread(until, lambda: simulator.sampled_steps)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(task, 60)

    asyncio.run(cancelled_while_sampling())
    assert list(simulator.queue_ids) == []
    assert asyncio.run(handler({"id": "2", "input": SMALL_INPUT}))["images"]


def test_two_concurrent_jobs_succeed(simulator: Simulator, handler: Handler) -> None:
    """Two concurrent jobs get their own results."""

    async def both() -> list[dict[str, Any]]:
        jobs = [handler({"id": str(seed), "input": {**SMALL_INPUT, "seed": seed}}) for seed in (1, 2)]
        return list(await asyncio.gather(*jobs))

    assert [result["seed"] for result in asyncio.run(both())] == [1, 2]
    assert len(simulator.executed_prompts) == 2


def test_jobs_have_their_own_threads(simulator: Simulator) -> None:
    """A job runs while another call occupies the only thread of the event loop."""
    service = make_service(simulator)
    released = threading.Event()

    async def beside_others() -> dict[str, Any]:
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(1))
        other = loop.run_in_executor(None, released.wait, 60)
        try:
            return await asyncio.wait_for(make_handler(service)({"id": "1", "input": SMALL_INPUT}), 60)
        finally:
            released.set()
            await other

    assert asyncio.run(beside_others())["images"]
    service.worker.server.close()
    service.threads.shutdown()


def test_more_jobs_than_threads_all_end(simulator: Simulator) -> None:
    """Four concurrent jobs succeed with one thread: the local API accepts any number of jobs."""
    service = replace(make_service(simulator), threads=make_threads(1))
    handler = make_handler(service)

    async def all_of_them() -> list[dict[str, Any]]:
        return list(
            await asyncio.gather(*(handler({"id": str(n), "input": {**SMALL_INPUT, "seed": n}}) for n in range(4)))
        )

    assert [result["seed"] for result in asyncio.run(all_of_them())] == [0, 1, 2, 3]
    service.worker.server.close()
    service.threads.shutdown()


def test_an_invalid_setting_is_a_config_error() -> None:
    """An invalid setting raises ConfigError when the worker is created, before any job is served."""
    with pytest.raises(ConfigError, match="not a valid ComfyUI URL"):
        worker_from_settings(Settings.from_env({"COMFYUI_URL": "gpu"}))


def run_handler(simulator: Simulator, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run handler.py as on a command line."""
    env = {**os.environ, "COMFYUI_URL": simulator.url, **environment}
    return subprocess.run(
        [sys.executable, "handler.py", *arguments],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_without_arguments_it_runs_test_input(simulator: Simulator) -> None:
    """`python handler.py` runs test_input.json through RunPod's SDK without a warm-up, and prints the image's path."""
    ended = run_handler(simulator)

    assert ended.returncode == 0, ended.stderr
    assert "completed successfully" in ended.stdout
    assert '"WARNING"' not in ended.stderr
    assert len(simulator.executed_prompts) == 1
    [path] = re.findall(r"'data': '(debug-output/[^']+)'", ended.stdout)
    with Image.open(ROOT / path) as image:
        assert image.size == (1024, 1024)
    (ROOT / path).unlink()
    assert len(ended.stdout) < 4000


def test_a_local_result_has_paths_and_overwrites_nothing(tmp_path: Path) -> None:
    """Inline files are written under unused names, and files in a bucket are not written.

    If the folder cannot be created, the result says so. A failed result is not changed.
    """
    inline = {"filename": "sub/a.png", "type": "base64", "data": base64.b64encode(b"png").decode(), "seed": 7}
    stored = {"filename": "b.png", "type": "s3_url", "data": "https://s3/b.png"}
    result = {"images": [inline, stored], "files": [inline], "seed": 7}
    out = tmp_path / "out"
    (tmp_path / "file").touch()

    assert write_files(result, out) == {
        "images": [{**inline, "type": "path", "data": str(out / "a.png")}, stored],
        "files": [{**inline, "type": "path", "data": str(out / "a-2.png")}],
        "seed": 7,
    }
    assert [path.read_bytes() for path in sorted(out.iterdir())] == [b"png", b"png"]
    assert "not written to" in write_files(result, tmp_path / "file")["images"][0]["data"]
    assert write_files({"error": "{}"}, out) == {"error": "{}"}


def test_a_test_input_can_be_given(simulator: Simulator) -> None:
    """`--test_input` runs the given job; a failed job prints its report."""
    succeeded = run_handler(simulator, "--test_input", json.dumps({"input": SMALL_INPUT}))
    failed = run_handler(simulator, "--test_input", json.dumps({"input": {**SMALL_INPUT, "steps": 0}}))

    assert succeeded.returncode == 0, succeeded.stderr
    assert failed.returncode == 1
    assert "steps: must be at least 1" in failed.stdout


def test_an_invalid_variable_ends_the_process(simulator: Simulator) -> None:
    """The process exits with 1 and names the variable, without a traceback."""
    ended = run_handler(simulator, WORKER_JOB_TIMEOUT_S="soon")

    assert ended.returncode == 1
    assert "WORKER_JOB_TIMEOUT_S='soon'" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.fixture(params=["arguments", "variables"])
def local_api(simulator: Simulator, request: pytest.FixtureRequest) -> Iterator[str]:
    """The URL of the local API, enabled once by arguments and once by variables."""
    port = str(free_port())
    arguments = [sys.executable, "handler.py"]
    environment = {**os.environ, "COMFYUI_URL": simulator.url}
    if request.param == "arguments":
        arguments += ["--rp_serve_api", "--rp_api_port", port]
    else:
        environment |= {"SERVE_API_LOCALLY": "true", "WORKER_API_PORT": port}
    with killed_at_end(
        subprocess.Popen(arguments, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
    ) as process:
        assert process.stderr is not None
        start_limit = threading.Timer(30, process.kill)
        start_limit.start()
        for line in process.stderr:
            if "Uvicorn running" in line:
                break
        start_limit.cancel()
        drain = threading.Thread(target=process.stderr.read, daemon=True)
        drain.start()
        host = "127.0.0.1" if request.param == "arguments" else "127.0.0.2"  # variables: all addresses
        yield f"http://{host}:{port}"
        process.terminate()
        assert process.wait(60) == 0
        drain.join(60)


def test_the_local_api_serves_jobs(local_api: str) -> None:
    """/runsync returns the result, or the report of a failed job. SIGTERM ends the process with status 0."""
    succeeded = requests.post(f"{local_api}/runsync", json={"input": SMALL_INPUT}, timeout=60).json()
    failed = requests.post(f"{local_api}/runsync", json={"input": {"prompt": ""}}, timeout=60).json()

    assert succeeded["output"]["images"][0]["width"] == 64
    assert ErrorReport.from_json(failed["error"]).code is ErrorCode.INVALID_INPUT


class _WebhookHandler(HttpHandler):
    """Records the path of each call."""

    server: WebhookServer

    def do_POST(self) -> None:
        """Accept the call."""
        self.server.calls.append(self.path)
        self.respond(200)


class WebhookServer(HttpServer):
    """A server in the worker's network."""

    def __init__(self) -> None:
        super().__init__(_WebhookHandler)
        self.calls: list[str] = []


def test_the_local_api_calls_no_webhook(simulator: Simulator) -> None:
    """Callers of the local API cannot make the worker post into its network: webhooks are ignored, as the log says."""
    port = free_port()
    environment = {**os.environ, "COMFYUI_URL": simulator.url, "SERVE_API_LOCALLY": "true"}
    environment |= {"WORKER_WARMUP": "false", "WORKER_API_PORT": str(port)}
    with (
        WebhookServer() as inside,
        killed_at_end(
            subprocess.Popen([sys.executable, "handler.py"], cwd=ROOT, env=environment, stderr=subprocess.PIPE)
        ) as process,
    ):
        log: list[bytes] = []
        reader = threading.Thread(target=lambda: log.extend(process.stderr or ()))
        reader.start()
        assert until(lambda: b"Uvicorn running" in b"".join(log))
        assert b"the local API has no login" in b"".join(log)
        body = {"input": SMALL_INPUT, "webhook": f"{inside.url}/inside"}
        result = requests.post(f"http://127.0.0.1:{port}/runsync", json=body, timeout=60).json()
        assert result["output"]["images"]
        assert until(lambda: b"ignored a job's webhook" in b"".join(log))
        process.terminate()
        assert process.wait(60) == 0
        reader.join(60)
    assert inside.calls == []
