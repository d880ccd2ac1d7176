"""Each fault of the simulator does what its row in the table of faults says, over real sockets."""

from __future__ import annotations

import contextlib
import re
import socket
import time
from collections.abc import Callable
from urllib.parse import urlsplit

import pytest
import requests
import websocket

from simulators.comfyui import ComfyUIFaults, Simulator, faults
from tools.recorded_graphs import TXT2IMG, changed, to_websocket

from .driver import FIRST, SECOND, THIRD, Driver, simulated, wait_until

ArmFault = Callable[[ComfyUIFaults], None]


def is_refused(url: str) -> bool:
    """Return whether a new TCP connection is refused."""
    address = urlsplit(url)
    try:
        socket.create_connection((address.hostname or "", address.port or 0), timeout=5).close()
    except ConnectionRefusedError:
        return True
    return False


def test_the_table_lists_every_fault() -> None:
    """The table in the module's docstring has one row for each fault, with the arguments of its method."""
    rows = re.findall(r"^\| (\w+)\((.*?)\) \|", faults.__doc__ or "", re.MULTILINE)
    declared = {
        name: [str(parameter).split(":")[0] for parameter in faults.parameters_of(name)] for name in faults.FAULTS
    }

    assert {name: [part.split("=")[0].strip() for part in row.split(",") if part] for name, row in rows} == declared


def test_a_dropped_socket_is_closed_in_order(sim: Simulator, driver: Driver) -> None:
    """The step's progress is sent, then a close frame; the run continues, and a new socket works."""
    sim.faults.drop_socket(at_step=2)
    with driver.listening() as listener:
        prompt_id = driver.queue(TXT2IMG).json()["prompt_id"]
        listener.frames_until("progress", value=2)
        assert listener.raw_event()[0] == websocket.ABNF.OPCODE_CLOSE

    assert driver.history(prompt_id)["status"]["completed"]
    assert sim.sampled_steps == 3


def test_a_reset_socket_ends_with_an_rst(sim: Simulator, driver: Driver) -> None:
    """The step's progress is sent, then the connection is reset; the run continues."""
    sim.faults.reset_socket()
    with driver.listening() as listener:
        prompt_id = driver.queue(TXT2IMG).json()["prompt_id"]
        listener.frames_until("progress", value=1)
        with pytest.raises(ConnectionResetError):
            listener.raw_event()

    assert driver.history(prompt_id)["status"]["completed"]


def test_a_stalled_socket_is_silent_and_a_new_one_is_not(sim: Simulator, driver: Driver) -> None:
    """A new socket of the same client gets all frames; the stalled one gets none, not even pings."""
    sim.faults.stall_socket(at_step=1)
    sim.faults.hang_sampling(at_step=3)
    with driver.listening() as silent:
        driver.queue(TXT2IMG)
        silent.frames_until("progress", value=1)
        wait_until(lambda: sim.hanging_step == 3)
        with driver.listening() as listener:
            assert listener.frames(2)[1]["ws"] == {"type": "executing", "data": {"node": "ks"}}
            sim.faults.release()
            listener.frames_until("executing", node=None)
        assert silent.is_silent(), "frames that were not sent are lost"


def test_a_stalled_socket_can_resume(sim: Simulator, driver: Driver) -> None:
    """After `release` a stalled socket gets frames again. The frames of an earlier prompt are lost."""
    with driver.listening() as listener:
        listener.frame()
        sim.faults.stall_socket(at_step=None)
        driver.run(TXT2IMG, prompt_id=FIRST)
        sim.faults.release()
        driver.queue(TXT2IMG, prompt_id=SECOND)
        assert listener.frames_until("execution_start")[-1]["ws"]["data"]["prompt_id"] == SECOND


@pytest.mark.parametrize("fault", ["drop_socket", "reset_socket"])
def test_idle_sockets_can_be_cut_at_once(sim: Simulator, driver: Driver, fault: str) -> None:
    """With at_step=None the sockets of all clients are closed immediately."""
    with driver.listening("one") as one, driver.listening("two") as two:
        one.frame()
        two.frame()
        getattr(sim.faults, fault)(at_step=None)
        for listener in (one, two):
            with contextlib.suppress(ConnectionResetError):
                assert listener.raw_event()[0] == websocket.ABNF.OPCODE_CLOSE
        wait_until(lambda: sim.sockets == 0)


def test_connections_are_refused_for_a_while(sim: Simulator, driver: Driver) -> None:
    """Open connections are closed, new ones are refused, and later the same port responds again."""
    with driver.listening() as listener:
        listener.frame()
        sim.faults.refuse_connections(0.2)
        assert is_refused(sim.url)
        with pytest.raises((websocket.WebSocketException, ConnectionError)):
            listener.raw_event()

    wait_until(lambda: not is_refused(sim.url))
    assert driver.get("/queue").status_code == 200


def test_a_second_refusal_replaces_the_first(sim: Simulator) -> None:
    """The port opens after the duration of the second refusal, although the first refusal is longer."""
    sim.faults.refuse_connections(60)
    sim.faults.refuse_connections(0.05)

    wait_until(lambda: not is_refused(sim.url))


def test_out_of_memory_is_an_execution_error(sim: Simulator, driver: Driver) -> None:
    """The sampler fails the given number of times before the first step, and requests to /free are recorded."""
    sim.faults.run_out_of_memory(times=2)
    for _ in range(2):
        event, data = driver.run(TXT2IMG)["status"]["messages"][-1]
        assert (event, data["node_id"], data["exception_type"]) == ("execution_error", "ks", "torch.OutOfMemoryError")
        assert "memory" in data["exception_message"].split("\n")[1]
        driver.post("/free", {"free_memory": True})
    assert sim.sampled_steps == 0
    assert sim.requests.count(("POST", "/free")) == 2

    assert driver.run(TXT2IMG)["status"]["completed"]


def test_a_class_of_nodes_can_fail(sim: Simulator, driver: Driver) -> None:
    """The error has the given type and message, names the node, and happens once."""
    sim.faults.fail_node("VAEDecode", "RuntimeError", "boom")
    status = driver.run(TXT2IMG)["status"]
    event, data = status["messages"][-1]

    assert (status["status_str"], event, data["node_id"]) == ("error", "execution_error", "dec")
    assert (data["exception_type"], data["exception_message"]) == ("RuntimeError", "boom\n")
    assert driver.run(TXT2IMG)["status"]["completed"]


def test_die_closes_everything_and_refuses(driver: Driver, sim: Simulator) -> None:
    """At that step sockets end without a close frame, and the port refuses connections permanently."""
    sim.faults.die(at_step=2)
    with driver.listening() as listener:
        driver.queue(TXT2IMG)
        listener.frames_until("progress", value=2)
        with pytest.raises((websocket.WebSocketConnectionClosedException, ConnectionError)):
            listener.raw_event()
    wait_until(lambda: is_refused(sim.url))

    assert sim.history_ids == []
    with pytest.raises(requests.ConnectionError):
        driver.get("/queue")


def test_die_may_act_at_once(sim: Simulator) -> None:
    """`die` with at_step=None acts without a running prompt."""
    sim.faults.die(at_step=None)

    assert is_refused(sim.url)


def test_a_response_can_be_slow(sim: Simulator, driver: Driver) -> None:
    """A response that is delayed is otherwise a normal response."""
    sim.faults.respond_slowly("/queue", 0.1)
    began = time.monotonic()
    assert driver.get("/api/queue").status_code == 200

    assert time.monotonic() - began >= 0.1


@pytest.mark.parametrize("path", ["/history", "GET /history", "/history/some-id"])
def test_a_response_can_be_a_500(sim: Simulator, driver: Driver, path: str) -> None:
    """A fault of a path, with or without a method, also applies to the paths below it, but to no other path."""
    sim.faults.respond_500(path, times=2)

    statuses = [driver.get(route).status_code for route in ("/queue", "/history/some-id", "/history/some-id")]
    assert statuses == [200, 500, 500]
    assert driver.get("/history/some-id").status_code == 200


def test_a_500_has_no_effect(sim: Simulator, driver: Driver) -> None:
    """A prompt that got a 500 is not queued. A fault that names a method does not apply to other methods."""
    sim.faults.respond_500("POST /prompt")

    assert driver.get("/prompt").status_code == 200
    assert driver.queue(TXT2IMG).status_code == 500
    assert sim.executed_prompts == []


def test_a_response_can_be_cut(sim: Simulator, driver: Driver) -> None:
    """The connection is closed instead of a response, the request has no effect, and the next one gets a response."""
    sim.faults.cut_response("POST /prompt")

    with pytest.raises(requests.ConnectionError):
        driver.queue(TXT2IMG)
    assert sim.executed_prompts == []
    assert driver.queue(TXT2IMG).status_code == 200


def test_a_handshake_can_be_a_500(sim: Simulator, driver: Driver) -> None:
    """`respond_500` also applies to the path of the websocket, whose handshake then fails."""
    sim.faults.respond_500("/ws")

    with pytest.raises(websocket.WebSocketBadStatusException), driver.listening():
        pass


def test_history_can_be_late(sim: Simulator, driver: Driver) -> None:
    """The history entry appears after `execution_success`; `executing null` is sent after the entry."""
    sim.faults.write_history_late(0.2)
    with driver.listening() as listener:
        prompt_id = driver.queue(TXT2IMG).json()["prompt_id"]
        listener.frames_until("execution_success")
        assert driver.get(f"/history/{prompt_id}").json() == {}
        listener.frames_until("executing", node=None)
        assert prompt_id in driver.get(f"/history/{prompt_id}").json()

    sim.faults.release()
    driver.run(changed(TXT2IMG, ks={"seed": 1}))


def test_everything_can_be_forgotten(sim: Simulator, driver: Driver) -> None:
    """As after a restart, sockets are closed, and queue, history, cache and the running prompt are lost.

    Files are kept.
    """
    driver.run(TXT2IMG, prompt_id=FIRST)
    sim.faults.hang_sampling(ignores_interrupt=True)
    with driver.listening() as listener:
        driver.queue(changed(TXT2IMG, ks={"seed": 1}), prompt_id=SECOND)
        driver.queue(TXT2IMG, prompt_id=THIRD)
        listener.frames_until("executing", node="ks")
        sim.faults.forget_everything()
        listener.frames_until_closed()

    assert (sim.queue_ids, sim.history_ids, sim.sockets) == ([], [], 0)
    assert [path.name for path in sim.output_dir.iterdir()] == ["rec_00001_.png"]
    before = sim.sampled_steps
    assert driver.run(TXT2IMG)["prompt"][0] == 0
    assert sim.sampled_steps == before + 3


def test_a_hanging_step_ends_when_interrupted(sim: Simulator, driver: Driver) -> None:
    """The prompt is interrupted, and the next one runs."""
    sim.faults.hang_sampling(at_step=2)
    driver.queue(TXT2IMG, prompt_id=FIRST)
    wait_until(lambda: sim.hanging_step == 2)
    driver.post("/interrupt", {"prompt_id": FIRST})

    assert driver.history(FIRST)["status"]["messages"][-1][0] == "execution_interrupted"
    assert driver.run(TXT2IMG)["status"]["completed"]


def test_a_hanging_step_may_ignore_an_interrupt(sim: Simulator, driver: Driver) -> None:
    """Only `release` ends the step. The interruption then takes effect."""
    sim.faults.hang_sampling(at_step=2, ignores_interrupt=True)
    driver.queue(TXT2IMG, prompt_id=FIRST)
    wait_until(lambda: sim.hanging_step == 2)
    driver.post("/interrupt", {"prompt_id": FIRST})
    assert driver.get("/queue").json()["queue_running"][0][1] == FIRST

    sim.faults.release()
    assert driver.history(FIRST)["status"]["status_str"] == "error"


def test_a_long_step_can_be_interrupted() -> None:
    """A step of an hour ends when the prompt is interrupted, and when the simulator stops."""
    with simulated(step_s=3600) as (sim, driver):
        driver.queue(TXT2IMG, prompt_id=FIRST)
        driver.queue(TXT2IMG, prompt_id=SECOND)
        wait_until(lambda: sim.executed_prompts == [FIRST])
        driver.post("/interrupt", {"prompt_id": FIRST})
        assert driver.history(FIRST)["status"]["status_str"] == "error"
        wait_until(lambda: sim.executed_prompts == [FIRST, SECOND])


def test_socket_faults_without_a_socket_change_nothing(sim: Simulator, driver: Driver) -> None:
    """A prompt succeeds although faults of websockets are set, if no websocket is open."""
    sim.faults.drop_socket()
    sim.faults.reset_socket()
    sim.faults.stall_socket()

    assert driver.run(to_websocket(TXT2IMG))["status"]["completed"]


@pytest.mark.parametrize(
    ("text", "arm"),
    [
        ("drop_socket", lambda faults: faults.drop_socket()),
        ("die:3", lambda faults: faults.die(3)),
        ("hang_sampling:2:true:4", lambda faults: faults.hang_sampling(2, ignores_interrupt=True, times=4)),
        ("respond_slowly:/history:0.5:2", lambda faults: faults.respond_slowly("/history", 0.5, 2)),
        ("fail_node:VAEDecode:RuntimeError:boom", lambda faults: faults.fail_node("VAEDecode", "RuntimeError", "boom")),
    ],
)
def test_fault_arguments_are_parsed(text: str, arm: ArmFault) -> None:
    """The text of --fault has the same effect as a call of the method with these arguments."""
    by_text, by_call = Simulator().faults, Simulator().faults
    faults.parse_fault(text)(by_text)
    arm(by_call)

    assert by_text.armed == by_call.armed


@pytest.mark.parametrize("text", ["explode", "armed", "respond_500", "drop_socket:1:2", "drop_socket:soon"])
def test_invalid_fault_arguments_are_rejected(text: str) -> None:
    """An unknown fault, too few or too many arguments, or an invalid argument raise a ValueError."""
    with pytest.raises(ValueError, match=re.escape(text.rsplit(":", maxsplit=1)[-1])):
        faults.parse_fault(text)


def test_immediate_faults_need_a_running_simulator() -> None:
    """A fault that acts at once raises an error before the start and after the end of the simulator."""
    simulator = Simulator()
    with pytest.raises(RuntimeError, match="not running"):
        simulator.faults.forget_everything()
    with simulator:
        simulator.faults.release()
    with pytest.raises(RuntimeError, match="not running"):
        simulator.faults.release()
