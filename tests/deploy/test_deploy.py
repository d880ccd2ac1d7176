"""`comfy-client deploy` over real sockets, against a stand-in of RunPod that refuses what the real one refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from comfy_client.prices import AS_OF
from tests.deploy.conftest import DESCRIPTION, MODEL, STORED, Desk

SECRETS = 'secrets = ["HF_TOKEN"]\n'
WITH_SECRET = DESCRIPTION.replace("[gpu]", f"{SECRETS}[gpu]") + '[env]\nWORKER_LOG_LEVEL = "DEBUG"\n'
VALUE = "hf_a-very-secret-text"


def test_one_command_from_nothing_to_a_picture(desk: Desk) -> None:
    """Template and endpoint are made as described, a worker is awaited, a picture saved, two variables printed."""
    ended = desk.deploy("--picture")

    assert ended.status == 0, ended.err
    [template] = [each for each in desk.account.templates.values() if each["name"] == "flux"]
    assert (template["image"], template["disk"], template["serverless"]) == ("ghcr.io/me/worker:1.0.0", 40, True)
    assert (template["startSsh"], template["startJupyter"]) == (False, False)
    endpoint = desk.endpoint
    assert endpoint["gpu"] == {
        "pools": ["ADA_24", "ADA_48_PRO"],
        "count": 1,
        "allowedCudaVersions": [],
        "minCudaVersion": "13.0",
    }
    assert endpoint["workers"] == {"min": 0, "max": 3, "idleTimeout": 30}
    assert (endpoint["timeout"], endpoint["flashboot"], endpoint["disk"]) == (600_000, "FLASHBOOT", 40)
    with Image.open("flux.png") as picture:
        assert picture.format == "PNG"
    assert ended.out.splitlines() == [
        "IMAGE_GENERATION_PROVIDER=comfyui",
        f"RUNPOD_COMFYUI_ENDPOINT_ID={endpoint['id']}",
        f"RUNPOD_ENDPOINT_BASE_URL={desk.platform.base_url}",
    ]
    for told in (
        "create template flux",
        "+ workers.max = 3",
        "1 worker is idle",
        "generating a test image",
        "flux.png  8 x 8",
    ):
        assert told in ended.err


def test_the_printed_variables_make_pictures(desk: Desk) -> None:
    """What stdout has is an environment, with RUNPOD_API_KEY beside it."""
    printed = dict(line.split("=", 1) for line in desk.deploy().out.splitlines())

    assert desk.shell("health", "--json", **printed).json["why"] == "idle"


def test_the_second_run_has_nothing_to_do(desk: Desk) -> None:
    """It writes nothing, makes no picture, and exits 0."""
    desk.deploy()
    before = desk.account.writes()
    ended = desk.shell("deploy")  # without --yes: there is nothing to ask

    assert ended.status == 0, ended.err
    assert "Nothing to do" in ended.err
    assert desk.account.writes() == before
    assert not Path("flux.png").exists()


def test_a_dry_run_changes_nothing(desk: Desk) -> None:
    """It shows the changes and the cost on stdout."""
    ended = desk.shell("deploy", "--dry-run")

    assert ended.status == 0
    assert "create endpoint flux" in ended.out
    assert "1. ADA_24: RTX 4090 (24 GB), $0.00031 per second, $1.116 per hour, availability HIGH" in ended.out
    assert "0 to 3 workers: no cost while no worker runs" in ended.out
    assert "idle timeout of 30 s on the first GPU: $0.0093" in ended.out
    assert "all 3 workers busy: at most $5.72 an hour" in ended.out
    assert desk.account.writes() == []


def test_workers_that_always_run_have_their_price(desk: Desk) -> None:
    """Before anything is done: they are paid day and night."""
    desk.write("[workers]\nmin = 2\n")

    assert "2 workers always run: at most $3.82 an hour, busy or idle" in desk.shell("deploy", "--dry-run").out


def test_nobody_to_ask_is_no_yes(desk: Desk) -> None:
    """Without a terminal and without --yes nothing is changed, and the error says so."""
    ended = desk.shell("deploy")

    assert ended.status == 3
    assert "Nothing was changed" in ended.err
    assert "--yes" in ended.err
    assert desk.account.writes() == []


def test_json_has_the_plan_the_prices_and_the_variables(desk: Desk) -> None:
    """One object on stdout, and with --yes nothing on stderr."""
    ended = desk.deploy("--json")
    value = ended.json

    assert ended.err == ""
    assert [(step["verb"], step["what"]) for step in value["steps"]] == [("create", "template"), ("create", "endpoint")]
    assert value["gpus"][0]["pool"] == "ADA_24"
    assert value["endpoint_id"] == value["variables"]["RUNPOD_COMFYUI_ENDPOINT_ID"]
    assert value["picture"] is None
    assert desk.shell("deploy", "--json").json["steps"] == []


def test_an_update_sends_what_has_changed_alone(desk: Desk) -> None:
    """A new image and more workers are one PATCH each of template and endpoint; the rest of the endpoint stays."""
    desk.deploy()
    desk.write("[workers]\nmax = 5\n", DESCRIPTION.replace("1.0.0", "1.1.0"))
    ended = desk.deploy()

    assert ended.status == 0
    assert "~ image: ghcr.io/me/worker:1.0.0 -> ghcr.io/me/worker:1.1.0" in ended.err
    assert "~ workers.max: 3 -> 5" in ended.err
    *_, template, endpoint = (each.body for each in desk.account.received if each.method == "PATCH")
    assert template == {"image": "ghcr.io/me/worker:1.1.0"}
    assert endpoint == {"image": "ghcr.io/me/worker:1.1.0", "workers": {"min": 0, "max": 5, "idleTimeout": 30}}


def test_what_somebody_changed_by_hand_is_put_back(desk: Desk) -> None:
    """The difference is against RunPod, not against an earlier run."""
    desk.deploy()
    desk.endpoint["workers"] = {"min": 2, "max": 9, "idleTimeout": 5}
    ended = desk.deploy()

    assert "~ workers.min: 2 -> 0" in ended.err
    assert desk.endpoint["workers"] == {"min": 0, "max": 3, "idleTimeout": 30}


def test_what_runpod_fills_in_by_itself_is_no_difference(desk: Desk) -> None:
    """Data centres that nobody described, as those of a network volume; an empty list asks for any."""
    desk.deploy()
    desk.endpoint["dataCenterIds"] = ["US-KS-2"]
    left = desk.deploy()
    desk.write("[storage]\ndata_centers = []\n")
    asked_for = desk.deploy()

    assert "Nothing to do" in left.err
    assert "~ storage.data_centers: US-KS-2 -> none" in asked_for.err
    assert desk.endpoint["dataCenterIds"] == []


def test_a_secret_goes_to_the_endpoint_and_nowhere_else(desk: Desk) -> None:
    """It is shown by name alone, in text and in JSON, before, after and when it changes; the template has it not."""
    desk.write(text=WITH_SECRET)
    runs = [
        desk.shell("deploy", "--dry-run", HF_TOKEN=VALUE),
        desk.deploy(HF_TOKEN=VALUE),
        desk.deploy(HF_TOKEN=VALUE),
        desk.deploy("--json", HF_TOKEN=f"{VALUE}2"),
    ]

    assert [ended.status for ended in runs] == [0, 0, 0, 0]
    assert "+ env.HF_TOKEN = (not shown)" in runs[0].out
    assert "+ env.WORKER_LOG_LEVEL = DEBUG" in runs[0].out
    assert "Nothing to do" in runs[2].err
    assert desk.endpoint["env"] == {"HF_TOKEN": f"{VALUE}2", "WORKER_LOG_LEVEL": "DEBUG"}
    for ended in runs:
        assert VALUE not in ended.out + ended.err
        assert desk.account.api_key not in ended.out + ended.err
    assert not [each for each in desk.account.templates.values() if "HF_TOKEN" in each["env"]]


def test_a_secret_that_is_not_set_ends_it_before_anything_is_asked(desk: Desk) -> None:
    """The variable is named, and RunPod hears nothing."""
    desk.write(text=WITH_SECRET)
    ended = desk.deploy()

    assert ended.status == 3
    assert "HF_TOKEN" in ended.err
    assert desk.account.received == []


def test_a_secret_that_runpod_repeats_in_an_error_is_not_shown(desk: Desk) -> None:
    """The field is named and the text is not."""
    desk.write(text=WITH_SECRET)
    body = {"title": "Unprocessable Entity", "status": 422, "detail": f"env.HF_TOKEN: {VALUE!r} is too long"}
    desk.account.faults.respond("POST /serverless", 422, body=body)
    ended = desk.deploy("--json", HF_TOKEN=VALUE)

    assert ended.status == 4
    assert "env.HF_TOKEN" in ended.out
    assert VALUE not in ended.out + ended.err


def test_places_are_found_by_name(desk: Desk) -> None:
    """A network volume and a registry's credential are named as in the console, and sent by their ids."""
    desk.write('[storage]\nnetwork_volume = "models"\n', DESCRIPTION.replace("[gpu]", 'registry = "ghcr"\n[gpu]'))

    assert desk.deploy().status == 0
    assert (desk.endpoint["registry"], desk.endpoint["networkVolumes"]) == ("reg1", ["vol1"])


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ('network_volume = "model"', "no network volume 'model'; existing: models; did you mean \"models\"?"),
        ('network_volume = "models"\ndata_centers = ["EU-RO-1"]', "is in US-KS-2, which is not one of"),
    ],
)
def test_a_place_that_does_not_fit_is_named(desk: Desk, more: str, told: str) -> None:
    """With what there is; nothing is changed."""
    desk.write(f"[storage]\n{more}\n")
    ended = desk.deploy()

    assert ended.status == 3
    assert told in ended.err
    assert desk.account.writes() == []


def test_a_cached_model_is_set_and_nothing_else_is_lost(desk: Desk) -> None:
    """GraphQL replaces an endpoint whole: all the rest is sent back as it was."""
    desk.write(STORED)
    ended = desk.deploy()
    endpoint_id = str(desk.endpoint["id"])

    assert f"cached model set: {MODEL}" in ended.err
    assert desk.account.cached_models == {endpoint_id: [MODEL]}
    again = desk.shell("deploy")
    assert "Nothing to do" in again.err, again.err


def test_a_cached_model_survives_an_update(desk: Desk) -> None:
    """It is looked at after each PATCH, and set again where REST v2 has dropped it."""
    desk.write(STORED)
    desk.deploy()
    desk.account.faults.forgets_models = True
    desk.write(STORED, DESCRIPTION.replace("1.0.0", "1.1.0"))
    ended = desk.deploy()

    assert "cached model set" in ended.err
    assert list(desk.account.cached_models.values()) == [[MODEL]]


def test_a_cached_model_is_taken_away_by_an_empty_text(desk: Desk) -> None:
    """And left alone where the key is absent."""
    desk.write(STORED)
    desk.deploy()
    desk.write('[storage]\nnetwork_volume = "models"\n')
    assert "Nothing to do" in desk.shell("deploy").err
    desk.write('[storage]\nnetwork_volume = "models"\ncached_model = ""\n')
    ended = desk.deploy()

    assert f"- storage.cached_model: {MODEL}" in ended.err
    assert list(desk.account.cached_models.values()) == [[]]


def test_graphql_that_refuses_is_named(desk: Desk) -> None:
    """What was done before stays, and the next run does the rest."""
    desk.write(STORED)
    desk.account.faults.respond("POST /graphql", 200, body={"errors": [{"message": "no such model"}]})
    failed = desk.deploy()
    ended = desk.deploy()

    assert failed.status == 4
    assert "GraphQL API refused to read the cached model: no such model" in failed.err
    assert ended.status == 0
    assert list(desk.account.cached_models.values()) == [[MODEL]]


def test_a_retired_graphql_api_is_explained(desk: Desk) -> None:
    """The error says when RunPod retires the API, and which key of deploy.toml to remove."""
    desk.write(STORED)
    desk.account.faults.respond("POST /graphql", 404)
    failed = desk.deploy()

    assert failed.status == 4
    assert "early in 2027. If it is gone, remove storage.cached_model from deploy.toml" in failed.err


def test_without_the_catalogue_the_table_has_the_prices(desk: Desk) -> None:
    """A price is worth no failure; its date is shown."""
    desk.account.faults.respond("GET /catalog", 404, body={"title": "Not Found", "status": 404, "detail": "gone"})
    ended = desk.shell("deploy", "--dry-run")

    assert ended.status == 0
    assert f"prices of the table of {AS_OF}" in ended.out
    assert "1. ADA_24: RTX 4090 (24 GB), $0.00031 per second" in ended.out


def test_two_of_one_name_are_not_guessed_at(desk: Desk) -> None:
    """Names of endpoints need not be unique at RunPod; both ids are told."""
    desk.deploy()
    desk.account.endpoints["other"] = {**desk.endpoint, "id": "other", "name": "flux -fb"}
    ended = desk.deploy()

    assert ended.status == 3
    assert "2 endpoints with the name flux (ep, other)" in ended.err


def test_an_endpoint_of_another_type_is_not_taken(desk: Desk) -> None:
    """A load balancer of that name cannot become a queue."""
    desk.deploy()
    desk.endpoint["type"] = "LOAD_BALANCER"

    ended = desk.deploy()
    assert (ended.status, "LOAD_BALANCER" in ended.err) == (3, True)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("RUNPOD_API_KEY", ""),
        ("RUNPOD_API_KEY", "two words"),
        ("RUNPOD_REST_BASE_URL", "http://evil.example/v2"),
        ("RUNPOD_GRAPHQL_URL", "graphql"),
    ],
)
def test_a_wrong_variable_is_named(desk: Desk, variable: str, value: str) -> None:
    """No key is sent over plain http but on this machine."""
    ended = desk.deploy(**{variable: value})

    assert ended.status == 3
    assert variable in ended.err
    assert desk.account.received == []
