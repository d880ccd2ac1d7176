"""Faults between `deploy` or `destroy` and RunPod: retries, errors, and a next run that does the rest."""

from __future__ import annotations

import pytest

from tests.deploy.conftest import MODEL, STORAGE_TABLE, DeploySetup

pytestmark = pytest.mark.slow

PROBLEM = {"title": "Internal Server Error", "status": 500, "detail": "oops"}


def created_counts(deploy_setup: DeploySetup) -> tuple[int, int]:
    """Return the numbers of the templates named flux and of the endpoints."""
    templates = [each for each in deploy_setup.account.templates.values() if each["name"] == "flux"]
    return len(templates), len(deploy_setup.account.endpoints)


@pytest.mark.parametrize("route", ["POST /templates", "POST /serverless"])
def test_a_create_whose_response_is_lost_is_not_repeated(deploy_setup: DeploySetup, route: str) -> None:
    """If the connection is lost after a create, the new object is found by its name, and there is one of each kind."""
    deploy_setup.account.faults.drop_connection(route, after_handling=True)
    ended = deploy_setup.deploy()

    assert ended.status == 0, ended.err
    assert created_counts(deploy_setup) == (1, 1)
    assert deploy_setup.account.writes().count(route) == 1


@pytest.mark.parametrize("status", [500, 502, 504])
def test_a_create_with_a_server_error_is_not_repeated(deploy_setup: DeploySetup, status: int) -> None:
    """If a create gets a server error and created nothing, the error has the remedy; the next run continues."""
    deploy_setup.account.faults.respond("POST /serverless", status, body=PROBLEM)
    failed = deploy_setup.deploy()
    ended = deploy_setup.deploy()

    assert failed.status == 4
    assert f"RunPod responded with {status} to create the endpoint flux: oops" in failed.err
    assert "Run the command again" in failed.err
    assert ended.status == 0
    assert "create template" not in ended.err
    assert "create endpoint flux" in ended.err
    assert created_counts(deploy_setup) == (1, 1)


def test_a_create_that_worked_despite_an_error_is_used(deploy_setup: DeploySetup) -> None:
    """An endpoint that was created although the response was 504 is found and used."""
    deploy_setup.account.faults.respond("POST /serverless", 504, body="<html>504</html>", after_handling=True)
    ended = deploy_setup.deploy()

    assert ended.status == 0, ended.err
    assert created_counts(deploy_setup) == (1, 1)


def test_reads_and_updates_are_retried(deploy_setup: DeploySetup) -> None:
    """Lists and patches are sent again after a lost connection, a 503 or a 502."""
    deploy_setup.account.faults.drop_connection("GET /serverless")
    deploy_setup.account.faults.respond("GET /templates", 503)
    assert deploy_setup.deploy().status == 0
    deploy_setup.write("[workers]\nmax = 7\n")
    deploy_setup.account.faults.respond("PATCH /serverless", 502)
    ended = deploy_setup.deploy()

    assert ended.status == 0, ended.err
    assert deploy_setup.endpoint["workers"] == {"min": 0, "max": 7, "idleTimeout": 30}


def test_a_rate_limit_is_waited_for(deploy_setup: DeploySetup) -> None:
    """A create with the response 429 created nothing, and is sent again."""
    deploy_setup.account.faults.rate_limit("POST /templates")
    ended = deploy_setup.deploy()

    assert ended.status == 0, ended.err
    assert [each.status for each in deploy_setup.account.received if each.line == "POST /templates"] == [429, 201]


def test_a_field_that_runpod_rejects_is_named(deploy_setup: DeploySetup) -> None:
    """The error for a 422 has the field and its fault, and says that RunPod's API has changed."""
    errors = ["body.flashboot: Additional properties are not allowed"]
    body = {"title": "Unprocessable Entity", "status": 422, "detail": "Request validation failed.", "errors": errors}
    deploy_setup.account.faults.respond("POST /serverless", 422, body=body)
    ended = deploy_setup.deploy()

    assert ended.status == 4
    assert "422 to create the endpoint flux: Request validation failed; body.flashboot: Additional" in ended.err
    assert "RunPod's API has changed" in ended.err


def test_a_wrong_key_is_reported(deploy_setup: DeploySetup) -> None:
    """For a 401 the error names RUNPOD_API_KEY without showing the key; the exit status is 3."""
    ended = deploy_setup.deploy(RUNPOD_API_KEY="rpa_wrong")

    assert ended.status == 3
    assert "RUNPOD_API_KEY" in ended.err
    assert "rpa_wrong" not in ended.err


def test_a_read_only_key_is_reported(deploy_setup: DeploySetup) -> None:
    """For a 403 the error is auth_failed, and names the permission that the key lacks; the exit status is 3."""
    deploy_setup.account.faults.forbids_writing = True
    ended = deploy_setup.deploy("--json")

    assert ended.status == 3
    assert ended.json["error"]["code"] == "auth_failed"
    assert "may read and write Serverless" in ended.json["error"]["message"]


def test_an_unreachable_api_is_reported(deploy_setup: DeploySetup) -> None:
    """If RunPod's API is not reachable, the error says so, and the exit status is 4."""
    ended = deploy_setup.deploy(RUNPOD_REST_BASE_URL="http://127.0.0.1:1/v2")

    assert ended.status == 4
    assert "RunPod did not respond to the request to list the templates" in ended.err


@pytest.mark.parametrize("body", [{"templates": {}}, {"templates": [{"name": "flux"}]}, [], "<html>", {"id": 5}])
def test_a_response_of_another_shape_is_an_error(deploy_setup: DeploySetup, body: object) -> None:
    """An unexpected response to a list is an error, and nothing is created."""
    deploy_setup.account.faults.respond("GET /templates", 200, body=body)
    ended = deploy_setup.deploy()

    assert ended.status == 4
    assert deploy_setup.account.writes() == []


def test_destroy_deletes_in_order(deploy_setup: DeploySetup) -> None:
    """`destroy` patches the endpoint, and deletes the endpoint and then the template.

    It says that the network volume is kept. A second run has nothing to do.
    """
    deploy_setup.write('[storage]\nnetwork_volume = "models"\n')
    deploy_setup.deploy()
    before = len(deploy_setup.account.writes())
    ended = deploy_setup.destroy()
    again = deploy_setup.shell("destroy")

    assert deploy_setup.account.writes()[before:] == [
        "PATCH /serverless/ep",
        "DELETE /serverless/ep",
        "DELETE /templates/tpl1",
    ]
    assert created_counts(deploy_setup) == (0, 0)
    assert "flux is deleted" in ended.out
    assert "Not deleted: the network volume models, which is billed monthly until you delete it." in ended.out
    assert (again.status, "Nothing to do" in again.out) == (0, True)


@pytest.mark.parametrize("route", ["PATCH /serverless", "DELETE /serverless", "DELETE /templates"])
def test_destroy_continues_after_an_error(deploy_setup: DeploySetup, route: str) -> None:
    """If one call of `destroy` fails, the next run deletes the rest."""
    deploy_setup.deploy()
    deploy_setup.account.faults.respond(
        route, 403, body={"title": "Forbidden", "status": 403, "detail": "access denied"}
    )

    assert deploy_setup.destroy().status == 3
    assert deploy_setup.destroy().status == 0
    assert created_counts(deploy_setup) == (0, 0)


CALLS = (0, 4, 5, 6, 7)
"""After how many of its eight calls a deployment fails. The first four only read, so one of them is enough."""


@pytest.mark.parametrize("handles_first_refused", [False, True])
def test_after_any_failed_call_the_next_run_does_the_rest(
    deploy_setup: DeploySetup, *, handles_first_refused: bool
) -> None:
    """If a call of a deployment fails, the next run creates the rest; `destroy` likewise deletes everything.

    With `handles_first_refused` RunPod executes the first failed call.
    """
    deploy_setup.write(STORAGE_TABLE)
    for calls in CALLS:
        deploy_setup.account.faults.refuse_after(calls, handles_first_refused=handles_first_refused)
        assert deploy_setup.deploy().status == 3
        deploy_setup.account.faults.clear()
        ended = deploy_setup.deploy()
        assert ended.status == 0, ended.err
        assert created_counts(deploy_setup) == (1, 1)
        assert deploy_setup.endpoint["networkVolumes"] == ["vol1"]
        assert list(deploy_setup.account.cached_models.values()) == [[MODEL]]
        assert "Nothing to do" in deploy_setup.deploy().err

        deploy_setup.account.faults.refuse_after(calls, handles_first_refused=handles_first_refused)
        deploy_setup.destroy()
        deploy_setup.account.faults.clear()
        assert deploy_setup.destroy().status == 0
        assert created_counts(deploy_setup) == (0, 0)


def test_a_delete_whose_response_is_lost_is_repeated(deploy_setup: DeploySetup) -> None:
    """A delete whose response is lost is sent again, and succeeds although the object no longer exists."""
    deploy_setup.deploy()
    for route in ("DELETE /serverless", "DELETE /templates"):
        deploy_setup.account.faults.drop_connection(route, after_handling=True)

    assert deploy_setup.destroy().status == 0
    assert created_counts(deploy_setup) == (0, 0)


def test_destroy_needs_a_confirmation(deploy_setup: DeploySetup) -> None:
    """Without a terminal and without --yes, `destroy` lists the deletions, exits with 3 and deletes nothing."""
    deploy_setup.deploy()
    ended = deploy_setup.shell("destroy")

    assert ended.status == 3
    assert "delete endpoint flux (ep), its workers and queued jobs" in ended.err
    assert created_counts(deploy_setup) == (1, 1)
