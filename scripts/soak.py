"""A soak: many jobs through workers in production mode, while what is around them fails at random.

It runs in lanes side by side. A lane is one worker with two jobs in hand, on a platform and a simulator of its own; one
worker alone cannot do 1,000 jobs in two minutes, as the SDK takes two and then pauses for a second. One more lane has a
worker whose ComfyUI is its child, and kills it. Each job's end is held against what the same request gives without any
fault; at the end of a lane nothing may be left of any job. What fails, and when, follows from the seed that is printed;
how threads and processes interleave does not.
"""

from __future__ import annotations

import argparse
import base64
import collections
import contextlib
import hashlib
import io
import itertools
import json
import logging
import math
import random
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import psutil
import requests
from PIL import Image

from comfy_client.comfyui.server import ComfyServer
from comfy_client.contract import ErrorCode, JsonObject
from comfy_client.simulator import Simulator
from comfy_client.simulator import faults as simulator_faults
from comfy_client.workflows import default_directory, load_workflows, render
from tests.fakes.runpod_platform import Job, JobState, RunPodPlatform
from tests.stage import Stage, staged
from tests.waiting import until
from worker.jobs import Control, Worker, run_job

LANE_JOBS_A_S = 0.8
"""What one lane gets through in a second, faults included; decides how many lanes there are."""
STEP_S = 0.05
TIMEOUT_S = 3.0
"""What each job may take: it finds within two seconds that the end of its run was lost with a socket."""
JOB_TIMEOUT_S = 5.0
BOUND_S = 30.0
"""From a job's handing out to its end: two waits for ComfyUI, a second run for pictures lost, posts tried again."""
LOST_JOB_S = 5.0
CALM_JOBS = 3
"""Jobs of each lane that come last, in fair weather, and must succeed."""
GOOD_REQUESTS = 70
CANCELLED = 0.1
"""Share of jobs that are cancelled."""
MEAN_PAUSE_S = 1.0
"""Between two faults of a lane."""
LASTING_S = 5.5
"""How long what hangs, stalls or is late may do so: the job's time, the stop of its prompt, and a little more."""
MOST_ARMED = 4
TICK_S = 0.02
MEASURE_S = 0.25
RSS_SLACK_MB = 6.0
COUNT_SLACK = 2
KILLED_STEP_S = 0.25
KILLED_WITHIN_S = 1.5
PATIENT_S = 20
TWICE_EVERY = 3
POSTED_S = 1.0
"""How long after its end in ComfyUI a job may be posted."""
GRACE_S = 30.0
"""For what comes after the last job: jobs without faults, clean-up, the worker's end."""


# --- the jobs


@dataclass(frozen=True)
class Case:
    """A request and how it ends where nothing else fails: with this result, or refused with this code."""

    inputs: object
    result: JsonObject | None = None
    code: ErrorCode | None = None
    reaches_comfyui: bool = True


def png(side: int, colour: int) -> bytes:
    """Return a picture of one colour."""
    file = io.BytesIO()
    Image.new("RGB", (side, side), f"#{colour:06x}").save(file, "PNG")
    return file.getvalue()


def base64_of(data: bytes) -> str:
    """Return `data` as a request carries it."""
    return base64.b64encode(data).decode()


def good_requests(dice: random.Random, count: int) -> list[JsonObject]:
    """Return small requests of every kind, no two of which make the same picture."""
    workflow = load_workflows(default_directory())["flux-dev-txt2img"]
    requests_made: list[JsonObject] = []
    for number in range(count):
        drawn = {"prompt": f"knight {number}", "seed": dice.randrange(2**40), "steps": dice.randint(3, 5)}
        drawn |= {side: dice.choice((64, 80, 96)) for side in ("width", "height")}
        picture = base64_of(png(dice.randint(64, 96), dice.randrange(1 << 24)))
        kinds: tuple[JsonObject, ...] = (
            drawn,
            {**drawn, "num_images": dice.randint(2, 3)},
            {**drawn, "image": picture, "strength": 0.7},
            {**drawn, "output_format": dice.choice(("webp", "jpeg"))},
            {"workflow": render(workflow, drawn)[0]},
            {**drawn, "negative_prompt": "blur", "negative_strength": 1.5, "metadata": False},
            {"prompt": drawn["prompt"], "seed": drawn["seed"], "steps": 4, "image": picture, "num_images": 2},
        )
        requests_made.append({**kinds[number % len(kinds)], "timeout_s": TIMEOUT_S})
    return requests_made


def refused(dice: random.Random) -> list[Case]:
    """Return requests that no ComfyUI will run, each with the code that says why."""
    picture = png(64, dice.randrange(1 << 24))
    empty = {"workflow": {"1": {"class_type": "EmptyImage", "inputs": {}}}}
    lora = {"prompt": "x", "loras": [{"name": "no-such.safetensors"}], "timeout_s": TIMEOUT_S}
    return [
        *(
            Case(inputs, code=ErrorCode.INVALID_INPUT, reaches_comfyui=False)
            for inputs in (None, "text", [1], {"promt": "x"}, {"prompt": "x", "steps": 0}, {"prompt": "x", "seed": "1"})
        ),
        Case({"prompt": "x", "image": base64_of(b"none")}, code=ErrorCode.INVALID_IMAGE, reaches_comfyui=False),
        Case({"prompt": "x", "image": base64_of(picture[:-40])}, code=ErrorCode.INVALID_IMAGE, reaches_comfyui=False),
        Case({"workflow": "sdxl", "prompt": "x"}, code=ErrorCode.UNKNOWN_WORKFLOW, reaches_comfyui=False),
        Case(lora, code=ErrorCode.MODEL_MISSING),
        Case({**empty, "timeout_s": TIMEOUT_S}, code=ErrorCode.WORKFLOW_REJECTED),
    ]


def with_results(inputs: Sequence[JsonObject]) -> list[Case]:
    """Return the requests with their results, from a worker around which nothing fails."""
    with Simulator() as simulator:
        server = ComfyServer(simulator.url)
        worker = Worker(server, load_workflows(default_directory()), 60, 8 * 1024 * 1024)
        cases = [Case(each, run_job(worker, {"id": "alone", "input": each}, Control())) for each in inputs]
        server.close()
    return cases


def essence(result: Mapping[str, object]) -> object:
    """Return what of a result does not differ from run to run: all but ids, times and how PNG was compressed."""
    match result:
        case {"images": list(images), "inputs": inputs, "seed": seed, "workflow": workflow}:
            return [inputs, seed, workflow, [_essence_of_image(image) for image in images]]
    return None


def _essence_of_image(image: Mapping[str, Any]) -> object:
    data = base64.b64decode(image["data"])
    sha256 = hashlib.sha256(data).hexdigest()
    with Image.open(io.BytesIO(data)) as decoded:
        pixels = hashlib.sha256(decoded.convert("RGB").tobytes()).hexdigest()
        size = decoded.size
    is_whole = (image["sha256"], image["bytes"], (image["width"], image["height"])) == (sha256, len(data), size)
    return [image["filename"], image["mime_type"], image["seed"], size, pixels, is_whole]


# --- the weather


@dataclass(frozen=True)
class Fault:
    """What can fail, and the code with which it may end a job, two jobs at most as two are in hand."""

    name: str
    act: Callable[[Stage, random.Random], object]
    code: ErrorCode | None = None
    may_lose: bool = False
    """Whether a job or its result may be lost on the way, so that the platform hands the job out again later."""


def _simulator(stage: Stage) -> Simulator:
    assert stage.simulator is not None  # noqa: S101 - a lane has one
    return stage.simulator


def _faults_of(stage: Stage) -> simulator_faults.Faults:
    return _simulator(stage).faults


_UNAVAILABLE = ErrorCode.COMFYUI_UNAVAILABLE
_PATHS = ("POST /prompt", "/history", "/queue", "POST /upload/image", "/view", "POST /interrupt", "/ws")
_NODES = ("VAEDecode", "CLIPTextEncode", "UNETLoader", "KSampler", "SaveImageWebsocket")


def _step(dice: random.Random) -> int:
    return dice.randint(1, 3)


WEATHER = (
    Fault("socket dropped", lambda stage, dice: _faults_of(stage).drop_socket(_step(dice))),
    Fault("socket dropped idle", lambda stage, _: _faults_of(stage).drop_socket(None)),
    Fault("socket reset", lambda stage, dice: _faults_of(stage).reset_socket(_step(dice))),
    Fault("socket stalled", lambda stage, dice: _faults_of(stage).stall_socket(_step(dice))),
    Fault("out of memory once", lambda stage, _: _faults_of(stage).run_out_of_memory(), ErrorCode.OUT_OF_MEMORY),
    Fault("out of memory twice", lambda stage, _: _faults_of(stage).run_out_of_memory(2), ErrorCode.OUT_OF_MEMORY),
    Fault(
        "node fails",
        lambda stage, dice: _faults_of(stage).fail_node(dice.choice(_NODES), "RuntimeError", "boom"),
        ErrorCode.EXECUTION_FAILED,
    ),
    Fault(
        "answer late", lambda stage, dice: _faults_of(stage).answer_slowly(dice.choice(_PATHS), dice.uniform(0, 0.5))
    ),
    Fault("answer 500", lambda stage, dice: _faults_of(stage).answer_500(dice.choice(_PATHS)), _UNAVAILABLE),
    Fault("history late", lambda stage, dice: _faults_of(stage).write_history_late(dice.uniform(0, 0.6))),
    Fault("everything forgotten", lambda stage, _: _faults_of(stage).forget_everything(), _UNAVAILABLE),
    Fault(
        "connections refused",
        lambda stage, dice: _faults_of(stage).refuse_connections(dice.uniform(0.1, 0.5)),
        _UNAVAILABLE,
    ),
    Fault("hangs", lambda stage, dice: _faults_of(stage).hang_sampling(_step(dice)), ErrorCode.DEADLINE_EXCEEDED),
    Fault(
        "hangs deaf",
        lambda stage, dice: _faults_of(stage).hang_sampling(_step(dice), deaf=True),
        ErrorCode.DEADLINE_EXCEEDED,
    ),
    Fault("job-done 500, 500, 200", lambda stage, _: stage.platform.faults.answer("final", 500, 2), may_lose=True),
    Fault("progress 500", lambda stage, _: stage.platform.faults.answer("progress", 500)),
    Fault("job-take 500", lambda stage, _: stage.platform.faults.answer("job-take-batch", 500, 2)),
    Fault("job-take cut", lambda stage, _: stage.platform.faults.drop_connection("job-take-batch")),
    Fault("job-stop 500", lambda stage, _: stage.platform.faults.answer("job-stop", 500)),
    Fault("platform away", lambda stage, dice: stage.platform.faults.outage(dice.uniform(0.1, 0.5)), may_lose=True),
    Fault(
        "jobs lost on their way",
        lambda stage, _: stage.platform.faults.drop_connection("job-take-batch", after_handling=True),
        may_lose=True,
    ),
    Fault("result lost on its way", lambda stage, _: stage.platform.faults.drop_connection("final"), may_lose=True),
    Fault(
        "result's answer lost",
        lambda stage, _: stage.platform.faults.drop_connection("final", after_handling=True),
    ),
)

WEATHER_CODES = frozenset(fault.code for fault in WEATHER if fault.code is not None)


class Weather:
    """Lets faults happen now and then. `counts` says how often each did."""

    def __init__(self, stage: Stage, dice: random.Random) -> None:
        self._stage = stage
        self._simulator = _simulator(stage)
        self._faults = self._simulator.faults
        self._dice = dice
        self._next_at = self._eased_at = time.monotonic()
        self._losing_again_at = 0.0
        self.counts: collections.Counter[str] = collections.Counter()

    def blow(self) -> None:
        """Let the next fault happen when it is time, and end those that would last."""
        now = time.monotonic()
        self.ease(now)
        if now < self._next_at:
            return
        self._next_at = now + self._dice.expovariate(1 / MEAN_PAUSE_S)
        fault = self._dice.choice(WEATHER)
        if len(self._faults.armed) >= MOST_ARMED or (fault.may_lose and not self._may_lose(now)):
            return
        fault.act(self._stage, self._dice)
        self.counts[fault.name] += 1

    def _may_lose(self, now: float) -> bool:
        """Whether a job may be lost: not while an earlier one is; the platform gives up a job that is lost twice."""
        is_recovering = any(job.retries and not job.state.is_final for job in self._stage.platform.jobs.values())
        if now < self._losing_again_at or is_recovering:
            return False
        self._losing_again_at = now + 2 * LOST_JOB_S
        return True

    def ease(self, now: float) -> None:
        """Let go on what hangs, stalls or is late for long."""
        if self._simulator.hanging_step is None and not self._faults.history_delay_s:
            self._eased_at = now
        elif now > self._eased_at + LASTING_S:
            self._faults.go_on()

    def clear(self) -> None:
        """Let nothing more fail."""
        self._faults.clear()
        self._faults.go_on()
        self._stage.platform.faults.clear()


# --- a lane


@dataclass
class Report:
    """What a lane has seen. `wrong` are the promises that were broken."""

    outcomes: collections.Counter[str] = field(default_factory=collections.Counter)
    weather: collections.Counter[str] = field(default_factory=collections.Counter)
    wrong: list[str] = field(default_factory=list)
    durations_s: list[float] = field(default_factory=list)
    handed_out_again: int = 0
    memory: str = ""


@dataclass(frozen=True)
class Sample:
    """What the worker's process holds at one moment."""

    rss_mb: float
    files: int
    threads: int


class Gauge:
    """Samples a process now and then; `faults` are what grew from the second quarter to the last."""

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)
        self._next_at = 0.0
        self._samples: list[Sample] = []

    def look(self) -> None:
        """Take a sample when it is time."""
        now = time.monotonic()
        if now < self._next_at:
            return
        self._next_at = now + MEASURE_S
        with contextlib.suppress(psutil.Error), self._process.oneshot():
            rss_mb = self._process.memory_info().rss / 2**20
            self._samples.append(Sample(rss_mb, self._process.num_fds(), self._process.num_threads()))

    def quarters(self) -> list[Sample]:
        """Return the median of each quarter of the time."""
        quarter = len(self._samples) // 4
        parts = [self._samples[number * quarter : (number + 1) * quarter] for number in range(4)]
        return [
            Sample(
                statistics.median(sample.rss_mb for sample in part),
                round(statistics.median(sample.files for sample in part)),
                round(statistics.median(sample.threads for sample in part)),
            )
            for part in parts
        ]


class Lane:
    """One worker and its jobs."""

    def __init__(self, stage: Stage, dice: random.Random, cases: Sequence[Case]) -> None:
        self._stage = stage
        self._platform = stage.platform
        self._dice = dice
        self._cases = itertools.cycle(dice.sample(cases, len(cases)))
        self._submitted: dict[str, Case] = {}
        self._to_cancel: dict[str, float] = {}
        self._cancelled: set[str] = set()
        self._gauge = Gauge(stage.worker.pid)
        self._pause = threading.Event()
        self.report = Report()

    def run(self, count: int, weather: Weather) -> None:
        """Run so many jobs, the last ones of them in fair weather, and judge what became of them."""
        while len(self._submitted) < count - CALM_JOBS or self._unfinished():
            weather.blow()
            self._submit_some(count - CALM_JOBS)
            self._tick()
        weather.clear()
        last = [self._submit(case) for case in itertools.islice(self._good_cases(), CALM_JOBS)]
        while self._unfinished():
            self._tick()
        self.report.weather = weather.counts
        for job_id in self._submitted:
            self._judge(self._platform.jobs[job_id])
        failed = [self._platform.jobs[job_id] for job_id in last if _outcome(self._platform.jobs[job_id]) != "result"]
        self.report.wrong += [f"after the last fault a job failed: {job}" for job in failed]
        self._check_counts()

    def _good_cases(self) -> Iterator[Case]:
        return (case for case in self._cases if case.result is not None)

    def _submit(self, case: Case) -> str:
        job_id = self._platform.submit(case.inputs)
        self._submitted[job_id] = case
        return job_id

    def _submit_some(self, limit: int) -> None:
        """Keep a few jobs waiting; some of them are cancelled, at once or a moment after they were handed out."""
        waiting = sum(job.state is JobState.IN_QUEUE for job in self._platform.jobs.values())
        for case in itertools.islice(self._cases, min(limit - len(self._submitted), max(0, 4 - waiting))):
            job_id = self._submit(case)
            if self._dice.random() < CANCELLED:
                self._to_cancel[job_id] = self._dice.choice((-math.inf, self._dice.uniform(0, 0.4)))

    def _tick(self) -> None:
        self._gauge.look()
        self._cancel_some()
        self._pause.wait(TICK_S)
        if self._stage.worker.exit_code is not None:
            raise AssertionError("the worker ended")

    def _cancel_some(self) -> None:
        now = time.monotonic()
        for job_id, after_s in list(self._to_cancel.items()):
            job = self._platform.jobs[job_id]
            if job.state.is_final:
                del self._to_cancel[job_id]
            elif after_s < 0 or (job.started_at is not None and now > job.started_at + after_s):
                address = f"{self._platform.endpoint_url}/cancel/{job_id}"
                answer = requests.post(address, headers={"Authorization": self._platform.api_key}, timeout=10)
                if answer.ok:
                    del self._to_cancel[job_id]

    def _unfinished(self) -> bool:
        """Whether a job has not ended. Raises AssertionError for one that hangs."""
        now = time.monotonic()
        unfinished = [job for job in self._platform.jobs.values() if not job.state.is_final]
        for job in unfinished:
            if job.started_at is not None and now > job.started_at + BOUND_S:
                raise AssertionError(f"hangs: {job}")
        return bool(unfinished)

    def _judge(self, job: Job) -> None:
        case = self._submitted[job.id]
        outcome = _outcome(job)
        self.report.outcomes[outcome] += 1
        self.report.handed_out_again += job.retries
        if job.started_at is not None and job.ended_at is not None:
            self.report.durations_s.append(job.ended_at - job.started_at)
        self.report.wrong += [f"{problem}: {job}" for problem in _problems(job, case, WEATHER_CODES)]

    def _check_counts(self) -> None:
        """Every failure has its fault: no more jobs failed with a code than the weather explains."""
        for code in WEATHER_CODES:
            faults = sum(self.report.weather[fault.name] for fault in WEATHER if fault.code is code)
            failed = self.report.outcomes[code.value]
            if failed > 2 * faults:
                self.report.wrong.append(
                    f"{failed} jobs failed with {code.value}, after {faults} faults that explain it"
                )

    def check_flat(self) -> None:
        """Hold what the worker's process held last against what it held before."""
        first, second, third, last = self._gauge.quarters()
        self.report.memory = "  ".join(
            f"{each.rss_mb:.1f} MB/{each.files} files/{each.threads} threads" for each in (first, second, third, last)
        )
        if last.rss_mb > second.rss_mb + RSS_SLACK_MB:
            self.report.wrong.append(f"memory grows: {self.report.memory}")
        if max(last.files - second.files, last.threads - second.threads) > COUNT_SLACK:
            self.report.wrong.append(f"files or threads grow: {self.report.memory}")


def _outcome(job: Job) -> str:
    """Return `result`, the code of an error, or the state of a job without either."""
    if job.state is JobState.CANCELLED:
        return "cancelled"
    if job.state is JobState.COMPLETED and essence(job.output or {}) is not None:
        return "result"
    try:
        return str(json.loads(job.error or "")["code"])
    except (ValueError, TypeError, KeyError):
        return f"nothing ({job.state.value})"


def _problems(job: Job, case: Case, codes: frozenset[ErrorCode]) -> Iterator[str]:
    """Yield which promises the end of a job breaks; where it reaches ComfyUI, it may have ended with one of `codes`."""
    outcome = _outcome(job)
    allowed = {code.value for code in codes} if case.reaches_comfyui else set()
    allowed |= {"cancelled", "result" if case.code is None else case.code.value}
    if outcome not in allowed:
        yield f"ended as {outcome}, and not as {', '.join(sorted(allowed))}"
    if outcome == "result" and case.result is not None and essence(job.output) != essence(case.result):
        yield f"has the result of another request: {essence(job.output)}, and not {essence(case.result)}"
    if job.final_posts > 1 + job.retries:
        yield f"was answered {job.final_posts} times"
    if outcome != "cancelled" and not job.final_posts:
        yield "was not answered"


def soak_lane(name: str, cases: Sequence[Case], count: int, *, shares_files: bool) -> Report:
    """Return what became of `count` jobs of one worker, and of what it left."""
    dice = random.Random(name)  # noqa: S311 - faults, not secrets
    platform = RunPodPlatform(long_poll_s=1.0, lost_job_s=LOST_JOB_S)
    environment = {"WORKER_JOB_TIMEOUT_S": str(JOB_TIMEOUT_S)}
    with staged(shares_files=shares_files, step_s=STEP_S, platform=platform, environment=environment) as stage:
        lane = Lane(stage, dice, cases)
        lane.run(count, Weather(stage, dice))
        lane.check_flat()
        # Over HTTP nobody can learn which files a ComfyUI wrote that has forgotten its history.
        unknowable = 0 if shares_files else lane.report.weather["everything forgotten"]
        lane.report.wrong += leftovers(stage, unknowable)
        return lane.report


def leftovers(stage: Stage, unknowable_files: int = 0) -> list[str]:
    """Return what is left in ComfyUI, and then of the worker once it is told to end."""
    wrong = []
    simulator = stage.simulator
    if simulator is not None and not until(lambda: not (simulator.queue_ids or simulator.history_ids), 5):
        wrong.append(f"ComfyUI still has prompts {simulator.queue_ids} and entries {simulator.history_ids}")
    if len(files := stage.files_left()) > unknowable_files:
        wrong.append(f"files are left: {files}")
    stage.worker.terminate()
    if (status := stage.worker.wait(GRACE_S)) != 0:
        wrong.append(f"the worker ended with {status}")
    if pids := [*stage.worker.leftovers(), *stage.comfyui_processes()]:
        wrong.append(f"processes are left: {pids}")
    if "Traceback" in stage.worker.log:
        wrong.append(
            f"the worker's log has a traceback: {stage.worker.log[stage.worker.log.index('Traceback') :][:4000]}"
        )
    return wrong


# --- the lane whose ComfyUI is killed


def killing_lane(name: str, cases: Sequence[Case], kills: int) -> Report:
    """Return what became of the jobs of workers whose own ComfyUI was killed so often, every third time twice."""
    dice = random.Random(name)  # noqa: S311 - faults, not secrets
    report = Report()
    good = itertools.cycle([case for case in dice.sample(cases, len(cases)) if case.result is not None])
    killed = 0
    while killed < kills:
        with staged(
            own_comfyui=True, step_s=KILLED_STEP_S, environment={"WORKER_JOB_TIMEOUT_S": str(PATIENT_S)}
        ) as stage:
            while killed < kills and stage.worker.exit_code is None:
                killed += 1
                submitted = {
                    stage.platform.submit({**case.inputs, "timeout_s": PATIENT_S}): case
                    for case in itertools.islice(good, 4)
                    if isinstance(case.inputs, dict)
                }
                if killed % TWICE_EVERY:
                    _kill_once(stage, dice, submitted, report)
                else:
                    _kill_twice(stage, dice, submitted, report)
            if stage.worker.exit_code is None:
                report.wrong += leftovers(stage)
    return report


def _kill_once(stage: Stage, dice: random.Random, submitted: Mapping[str, Case], report: Report) -> None:
    """Kill ComfyUI while jobs are in hand: those that it runs fail, the others and the next one work."""
    platform = stage.platform
    _kill(stage, dice, submitted)
    report.weather["ComfyUI killed"] += 1
    killed_at = time.monotonic()
    running = [job for job in platform.jobs.values() if job.state is JobState.IN_PROGRESS and job.progress]
    platform.wait_until(lambda: all(platform.jobs[job_id].state.is_final for job_id in submitted), BOUND_S)
    for job in [platform.jobs[job.id] for job in running]:
        if _outcome(job) == "result" and (job.ended_at or 0) > killed_at + POSTED_S:
            report.wrong.append(f"ran while ComfyUI was killed, and ended well: {job}")
    _judge_killed(stage, submitted, report)
    if _outcome(stage.run(seed=1)) != "result":
        report.wrong.append("after ComfyUI was killed and started again the next job failed")


def _kill_twice(stage: Stage, dice: random.Random, submitted: Mapping[str, Case], report: Report) -> None:
    """Kill ComfyUI, and again once it is started again: the worker answers what it has in hand and retires."""
    dead = _kill(stage, dice, submitted)
    report.weather["ComfyUI killed twice"] += 1
    if not until(lambda: {process.pid for process in stage.comfyui_processes()} - dead, GRACE_S):
        report.wrong.append("ComfyUI was not started again")
    stage.kill_comfyui()
    if (status := stage.worker.wait(2 * GRACE_S)) != 1:
        report.wrong.append(f"the worker ended with {status} when its ComfyUI was lost")
    if not any(ping.is_unhealthy for ping in stage.platform.pings):
        report.wrong.append("the platform was not told that the worker is unhealthy")
    if pids := [*stage.worker.leftovers(), *stage.comfyui_processes()]:
        report.wrong.append(f"processes are left: {pids}")
    waiting = {job_id for job_id in submitted if stage.platform.jobs[job_id].state is JobState.IN_QUEUE}
    report.outcomes["left to the next worker"] += len(waiting)
    _judge_killed(stage, {job_id: case for job_id, case in submitted.items() if job_id not in waiting}, report)


def _kill(stage: Stage, dice: random.Random, submitted: Mapping[str, Case]) -> set[int]:
    """Kill ComfyUI a moment after the first job was handed out; return what was killed."""
    first = next(iter(submitted))
    stage.platform.wait_until(lambda: stage.platform.jobs[first].started_at is not None, BOUND_S)
    threading.Event().wait(dice.uniform(0, KILLED_WITHIN_S))
    dead = {process.pid for process in stage.comfyui_processes()}
    stage.kill_comfyui()
    return dead


def _judge_killed(stage: Stage, submitted: Mapping[str, Case], report: Report) -> None:
    for job_id, case in submitted.items():
        job = stage.platform.jobs[job_id]
        report.outcomes[_outcome(job)] += 1
        report.wrong += [
            f"{problem}: {job}" for problem in _problems(job, case, frozenset({ErrorCode.COMFYUI_UNAVAILABLE}))
        ]
        if job.started_at is not None and job.ended_at is not None:
            report.durations_s.append(job.ended_at - job.started_at)


# --- all of it


def soak(jobs: int, seconds: float, kills: int, seed: int) -> bool:
    """Run the soak and print what it saw; return whether every promise was kept."""
    lanes = max(1, math.ceil(jobs / (seconds * LANE_JOBS_A_S)))
    print(f"{jobs} jobs on {lanes} workers, ComfyUI killed {kills} times; --seed {seed}", flush=True)
    begun_at = time.monotonic()
    dice = random.Random(seed)  # noqa: S311 - faults, not secrets
    cases = [*with_results(good_requests(dice, GOOD_REQUESTS)), *refused(dice)]
    print(f"{len(cases)} requests, their results made in {time.monotonic() - begun_at:.1f} s", flush=True)
    begun_at = time.monotonic()
    with ThreadPoolExecutor(lanes + 1) as threads:
        share = [jobs // lanes + (number < jobs % lanes) for number in range(lanes)]
        running = [
            threads.submit(soak_lane, f"{seed} {number}", cases, count, shares_files=number % 2 == 0)
            for number, count in enumerate(share)
        ]
        killing = threads.submit(killing_lane, f"{seed} kill", cases, kills)
        reports = [each.result() for each in running]
        killed = killing.result()
    elapsed_s = time.monotonic() - begun_at
    _print("jobs while everything fails", reports, elapsed_s)
    _print("jobs while ComfyUI is killed", [killed], elapsed_s)
    for report in reports:
        print(f"  memory by quarter: {report.memory}")
    wrong = [problem for report in (*reports, killed) for problem in report.wrong]
    for problem in wrong:
        print(f"WRONG: {problem}")
    verdict = "all promises were kept" if not wrong else f"{len(wrong)} promises were broken"
    print(f"{verdict}; {elapsed_s:.0f} s, --seed {seed}")
    return not wrong


def _print(title: str, reports: Sequence[Report], elapsed_s: float) -> None:
    outcomes = sum((report.outcomes for report in reports), collections.Counter[str]())
    weather = sum((report.weather for report in reports), collections.Counter[str]())
    durations = sorted(duration for report in reports for duration in report.durations_s)
    print(f"{outcomes.total()} {title}, {weather.total()} faults, {elapsed_s:.0f} s")
    print("  jobs:   " + ", ".join(f"{count} {name}" for name, count in outcomes.most_common()))
    print("  faults: " + ", ".join(f"{count} {name}" for name, count in weather.most_common()))
    again = sum(report.handed_out_again for report in reports)
    if durations:
        print(f"  handed out to ended: median {statistics.median(durations):.2f} s, longest {durations[-1]:.2f} s")
    print(f"  handed out again since the platform's side lost them: {again}")


def main() -> None:
    """Run the soak as asked."""
    logging.getLogger("comfy_client.simulator").setLevel(logging.CRITICAL)  # requests that it cuts, with tracebacks
    parser = argparse.ArgumentParser(prog="scripts/soak", description="Soaks the worker.")
    parser.add_argument("--jobs", type=int, default=1000, help="jobs in all; %(default)s")
    parser.add_argument("--seconds", type=float, default=120, help="how long that may take; more workers for less")
    parser.add_argument("--kills", type=int, default=6, help="how often a worker's ComfyUI is killed; %(default)s")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6), help="what fails when")
    options = parser.parse_args()
    sys.exit(0 if soak(options.jobs, options.seconds, options.kills, options.seed) else 1)


if __name__ == "__main__":
    main()
