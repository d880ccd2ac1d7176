"""What goes wrong between a deployment and RunPod, and that the next run goes on where the last one was."""

from __future__ import annotations

import pytest

from tests.deploy.conftest import MODEL, STORED, Desk

PROBLEM = {"title": "Internal Server Error", "status": 500, "detail": "oops"}


def made(desk: Desk) -> tuple[int, int]:
    """Return how many templates of ours and endpoints there are."""
    templates = [each for each in desk.account.templates.values() if each["name"] == "flux"]
    return len(templates), len(desk.account.endpoints)


@pytest.mark.parametrize("asked", ["POST /templates", "POST /serverless"])
def test_a_create_whose_answer_is_lost_is_not_sent_again(desk: Desk, asked: str) -> None:
    """The connection is cut behind it: what it made is found by name, and there is one of each."""
    desk.account.faults.drop_connection(asked, after_handling=True)
    ended = desk.deploy()

    assert ended.status == 0, ended.err
    assert made(desk) == (1, 1)
    assert desk.account.writes().count(asked) == 1


@pytest.mark.parametrize("status", [500, 502, 504])
def test_a_create_that_fails_at_runpod_is_not_sent_again(desk: Desk, status: int) -> None:
    """It may have worked: it is looked for, once, and else the error says what to do. Then it goes on."""
    desk.account.faults.respond("POST /serverless", status, body=PROBLEM)
    failed = desk.deploy()
    ended = desk.deploy()

    assert failed.status == 4
    assert f"RunPod responded with {status} to create the endpoint flux: oops" in failed.err
    assert "Run the command again" in failed.err
    assert ended.status == 0
    assert "create template" not in ended.err
    assert "create endpoint flux" in ended.err
    assert made(desk) == (1, 1)


def test_a_create_that_fails_and_yet_worked_counts(desk: Desk) -> None:
    """A gateway's 504 in front of an endpoint that was made."""
    desk.account.faults.respond("POST /serverless", 504, body="<html>504</html>", after_handling=True)
    ended = desk.deploy()

    assert ended.status == 0, ended.err
    assert made(desk) == (1, 1)


def test_what_only_reads_or_repeats_is_tried_again(desk: Desk) -> None:
    """Lists and changes are sent again after a cut connection and a 503."""
    desk.account.faults.drop_connection("GET /serverless")
    desk.account.faults.respond("GET /templates", 503)
    assert desk.deploy().status == 0
    desk.write("[workers]\nmax = 7\n")
    desk.account.faults.respond("PATCH /serverless", 502)
    ended = desk.deploy()

    assert ended.status == 0, ended.err
    assert desk.endpoint["workers"] == {"min": 0, "max": 7, "idleTimeout": 30}


def test_a_rate_limit_is_waited_for(desk: Desk) -> None:
    """A create that is refused with 429 did not happen, and is sent again after Retry-After."""
    desk.account.faults.rate_limit("POST /templates")
    ended = desk.deploy()

    assert ended.status == 0, ended.err
    assert [each.status for each in desk.account.received if each.line == "POST /templates"] == [429, 201]


def test_a_field_that_runpod_no_longer_knows_is_named(desk: Desk) -> None:
    """A 422 has the field, and is an error of the request."""
    errors = ["body.flashboot: Additional properties are not allowed"]
    body = {"title": "Unprocessable Entity", "status": 422, "detail": "Request validation failed.", "errors": errors}
    desk.account.faults.respond("POST /serverless", 422, body=body)
    ended = desk.deploy()

    assert ended.status == 4
    assert "422 to create the endpoint flux: Request validation failed; body.flashboot: Additional" in ended.err
    assert "RunPod's API has changed" in ended.err


def test_a_wrong_key_is_named(desk: Desk) -> None:
    """401: which variable, where to look; the status of a wrong setting."""
    ended = desk.deploy(RUNPOD_API_KEY="rpa_wrong")

    assert ended.status == 3
    assert "RUNPOD_API_KEY" in ended.err
    assert "rpa_wrong" not in ended.err


def test_a_key_that_may_only_read_is_named(desk: Desk) -> None:
    """403: the plan can be seen, and what the key lacks is said."""
    desk.account.faults.forbids_writing = True
    ended = desk.deploy("--json")

    assert ended.status == 3
    assert ended.json["error"]["code"] == "auth_failed"
    assert "may read and write Serverless" in ended.json["error"]["message"]


def test_nobody_there_is_not_reached(desk: Desk) -> None:
    """The status of a server that does not answer, and the sentence that nothing is lost by trying again."""
    ended = desk.deploy(RUNPOD_REST_BASE_URL="http://127.0.0.1:1/v2")

    assert ended.status == 4
    assert "RunPod was not reached to list the templates" in ended.err


@pytest.mark.parametrize("body", [{"templates": {}}, {"templates": [{"name": "flux"}]}, [], "<html>", {"id": 5}])
def test_an_answer_of_another_shape_is_an_error(desk: Desk, body: object) -> None:
    """Nothing is taken for an empty list: that would create what is there."""
    desk.account.faults.respond("GET /templates", 200, body=body)
    ended = desk.deploy()

    assert ended.status == 4
    assert desk.account.writes() == []


def test_destroy_undoes_it_in_order(desk: Desk) -> None:
    """Workers to 0, the endpoint, the template; what stays is said, and a second time nothing is to do."""
    desk.write('[storage]\nnetwork_volume = "models"\n')
    desk.deploy()
    before = len(desk.account.writes())
    ended = desk.destroy()
    again = desk.shell("destroy")

    assert desk.account.writes()[before:] == ["PATCH /serverless/ep", "DELETE /serverless/ep", "DELETE /templates/tpl1"]
    assert made(desk) == (0, 0)
    assert "flux is gone" in ended.out
    assert "It stays: the network volume models, which is billed monthly until you delete it." in ended.out
    assert (again.status, "Nothing to do" in again.out) == (0, True)


@pytest.mark.parametrize("asked", ["PATCH /serverless", "DELETE /serverless", "DELETE /templates"])
def test_destroy_goes_on_where_it_was(desk: Desk, asked: str) -> None:
    """Refused in the middle, it does the rest the next time."""
    desk.deploy()
    desk.account.faults.respond(asked, 403, body={"title": "Forbidden", "status": 403, "detail": "access denied"})

    assert desk.destroy().status == 3
    assert desk.destroy().status == 0
    assert made(desk) == (0, 0)


CALLS = (0, 4, 5, 6, 7)
"""Calls of a deployment that succeed, of its eight. The first four only read, so one of them is enough."""


@pytest.mark.parametrize("last_counts", [False, True])
def test_ended_anywhere_the_next_run_does_the_rest(desk: Desk, *, last_counts: bool) -> None:
    """After each of its calls, the last done or not: in the end there is one of each, as described, and then none."""
    desk.write(STORED)
    for calls in CALLS:
        desk.account.faults.end_after(calls, handles_last=last_counts)
        assert desk.deploy().status == 3
        desk.account.faults.clear()
        ended = desk.deploy()
        assert ended.status == 0, ended.err
        assert made(desk) == (1, 1)
        assert desk.endpoint["networkVolumes"] == ["vol1"]
        assert list(desk.account.cached_models.values()) == [[MODEL]]
        assert "Nothing to do" in desk.deploy().err

        desk.account.faults.end_after(calls, handles_last=last_counts)
        desk.destroy()
        desk.account.faults.clear()
        assert desk.destroy().status == 0
        assert made(desk) == (0, 0)


def test_destroy_whose_answer_is_lost_has_happened(desk: Desk) -> None:
    """A DELETE is sent again, and what is gone is no error."""
    desk.deploy()
    for asked in ("DELETE /serverless", "DELETE /templates"):
        desk.account.faults.drop_connection(asked, after_handling=True)

    assert desk.destroy().status == 0
    assert made(desk) == (0, 0)


def test_destroy_asks_first(desk: Desk) -> None:
    """Without a terminal and without --yes nothing is deleted."""
    desk.deploy()
    ended = desk.shell("destroy")

    assert ended.status == 3
    assert "delete endpoint flux (ep), its workers and queued jobs" in ended.err
    assert made(desk) == (1, 1)
