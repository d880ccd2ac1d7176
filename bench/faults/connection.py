"""Rows of the fault table: the connection to ComfyUI."""

from __future__ import annotations

from bench.faults.rows import fault_row, simulator_of
from bench.worker_setup import WorkerSetup
from simulators.runpod.queue_api import QueueJob


@fault_row(
    "socket dropped while running", "reconnects, runs the save node again with a file output", code=None, within_s=4
)
def _(setup: WorkerSetup) -> QueueJob:
    simulator = simulator_of(setup)
    simulator.faults.drop_socket(at_step=2)
    return setup.run()


@fault_row("run ends while the socket is disconnected", "reads /history after the reconnect", code=None, within_s=4)
def _(setup: WorkerSetup) -> QueueJob:
    simulator = simulator_of(setup)
    simulator.faults.drop_socket(at_step=4)
    return setup.run()


@fault_row("connection reset", "the same as for a dropped socket", code=None, within_s=4)
def _(setup: WorkerSetup) -> QueueJob:
    simulator = simulator_of(setup)
    simulator.faults.reset_socket(at_step=2)
    return setup.run()


@fault_row("socket stalled", "reads /history after one second of silence, opens a new socket", code=None, within_s=6)
def _(setup: WorkerSetup) -> QueueJob:
    simulator = simulator_of(setup)
    simulator.faults.stall_socket(at_step=1)
    return setup.run()


@fault_row("history late by 500 ms", "polls until the entry exists", code=None, within_s=4)
def _(setup: WorkerSetup) -> QueueJob:
    simulator = simulator_of(setup)
    simulator.faults.write_history_late(0.5)
    return setup.run()


@fault_row("500 from /prompt", "fails at once; nothing is queued", code="comfyui_unavailable", within_s=3)
def _(setup: WorkerSetup) -> QueueJob:
    simulator = simulator_of(setup)
    simulator.faults.respond_500("POST /prompt")
    return setup.run()


@fault_row(
    "200 with node_errors",
    "the whole job is rejected, the valid half is removed from the queue",
    code="workflow_rejected",
    within_s=3,
)
def _(setup: WorkerSetup) -> QueueJob:
    graph = {
        "1": {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 64, "batch_size": 1, "color": 0}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "a"}},
        "3": {"class_type": "SaveImage", "inputs": {"filename_prefix": "b"}},
    }
    return setup.platform.wait_for(setup.platform.submit({"workflow": graph}))
