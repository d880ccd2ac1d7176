"""`comfy-client deploy` over real sockets, with a simulated RunPod that validates requests."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from comfy_core.prices import AS_OF
from tests.cli.conftest import Shell
from tests.deploy.conftest import DESCRIPTION, MODEL, STORAGE_TABLE, DeploySetup

SECRETS = 'secrets = ["HF_TOKEN"]\n'
WITH_SECRET = DESCRIPTION.replace("[gpu]", f"{SECRETS}[gpu]") + '[env]\nWORKER_LOG_LEVEL = "DEBUG"\n'
CREDENTIAL = "hf_a-very-secret-text"


def test_one_command_from_nothing_to_an_image(deploy_setup: DeploySetup) -> None:
    """Template and endpoint are created, an image is saved, and the client's variables are printed."""
    ended = deploy_setup.deploy("--image")

    assert ended.status == 0, ended.err
    [template] = [each for each in deploy_setup.account.templates.values() if each["name"] == "flux"]
    assert (template["image"], template["disk"], template["serverless"]) == ("ghcr.io/me/worker:1.0.0", 40, True)
    assert (template["startSsh"], template["startJupyter"]) == (False, False)
    endpoint = deploy_setup.endpoint
    assert endpoint["gpu"] == {
        "pools": ["ADA_24", "ADA_48_PRO"],
        "count": 1,
        "allowedCudaVersions": [],
        "minCudaVersion": "13.0",
    }
    assert endpoint["workers"] == {"min": 0, "max": 3, "idleTimeout": 30}
    assert (endpoint["timeout"], endpoint["flashboot"], endpoint["disk"]) == (600_000, "FLASHBOOT", 40)
    with Image.open("flux.png") as image:
        assert image.format == "PNG"
    assert ended.out.splitlines() == [
        "IMAGE_GENERATION_PROVIDER=comfyui",
        f"RUNPOD_COMFYUI_ENDPOINT_ID={endpoint['id']}",
        f"RUNPOD_ENDPOINT_BASE_URL={deploy_setup.platform.base_url}",
    ]
    for expected in (
        "create template flux",
        "+ workers.max = 3",
        "1 worker is idle",
        "generating a test image",
        "flux.png  8 x 8",
    ):
        assert expected in ended.err


def test_the_printed_variables_work(deploy_setup: DeploySetup) -> None:
    """With the variables that `deploy` prints and RUNPOD_API_KEY, `comfy-client health` works."""
    printed = dict(line.split("=", 1) for line in deploy_setup.deploy().out.splitlines())

    assert deploy_setup.shell("health", "--json", **printed).json["why"] == "idle"


def test_the_endpoint_is_saved_as_a_profile(deploy_setup: DeploySetup, tmp_path: Path) -> None:
    """--save-profile stores endpoint and key; the next command needs no variable. Without it, `init` is named."""
    home = {"XDG_CONFIG_HOME": str(tmp_path / "config")}
    without = deploy_setup.deploy(**home)
    saved = deploy_setup.deploy("--save-profile", "studio", **home)

    assert f"`comfy-client init --endpoint-id {deploy_setup.endpoint['id']}` stores the endpoint" in without.err
    assert saved.status == 0, saved.err
    assert "--profile studio" in saved.err
    assert Shell(home)("health", "--json", "--profile", "studio").json["why"] == "idle"
    assert deploy_setup.account.api_key not in saved.out + saved.err


def test_a_profile_that_cannot_be_saved_is_an_error_before_any_request(
    deploy_setup: DeploySetup, tmp_path: Path
) -> None:
    """Nothing is created if the name is invalid or the user has no folder."""
    invalid = deploy_setup.deploy("--save-profile", "a b", XDG_CONFIG_HOME=str(tmp_path))
    nowhere = deploy_setup.deploy("--save-profile", "studio")

    assert (invalid.status, nowhere.status) == (3, 3)
    assert "a b" in invalid.err
    assert "XDG_CONFIG_HOME" in nowhere.err
    assert deploy_setup.account.writes() == []


def test_the_second_run_changes_nothing(deploy_setup: DeploySetup) -> None:
    """The second run exits with 0, changes nothing and generates no image, although --yes is missing."""
    deploy_setup.deploy()
    before = deploy_setup.account.writes()
    ended = deploy_setup.shell("deploy")  # without --yes: nothing needs a confirmation

    assert ended.status == 0, ended.err
    assert "Nothing to do" in ended.err
    assert deploy_setup.account.writes() == before
    assert not Path("flux.png").exists()


def test_a_dry_run_changes_nothing(deploy_setup: DeploySetup) -> None:
    """A dry run prints the changes, the GPUs and the costs, and changes nothing."""
    ended = deploy_setup.shell("deploy", "--dry-run")

    assert ended.status == 0
    assert "create endpoint flux" in ended.out
    assert "1. ADA_24: RTX 4090 (24 GB), $0.00031 per second, $1.116 per hour, availability HIGH" in ended.out
    assert "0 to 3 workers: no cost while no worker runs" in ended.out
    assert "idle timeout of 30 s on the first GPU: $0.0093" in ended.out
    assert "all 3 workers busy: at most $5.72 an hour" in ended.out
    assert deploy_setup.account.writes() == []


def test_the_price_of_permanent_workers_is_shown(deploy_setup: DeploySetup) -> None:
    """A dry run prints the price of workers that always run."""
    deploy_setup.write("[workers]\nmin = 2\n")

    assert "2 workers always run: at most $3.82 an hour, busy or idle" in deploy_setup.shell("deploy", "--dry-run").out


def test_without_a_terminal_nothing_is_confirmed(deploy_setup: DeploySetup) -> None:
    """Without a terminal and without --yes nothing is changed, and the error suggests --yes."""
    ended = deploy_setup.shell("deploy")

    assert ended.status == 3
    assert "Nothing was changed" in ended.err
    assert "--yes" in ended.err
    assert deploy_setup.account.writes() == []


def test_json_has_the_plan_the_prices_and_the_variables(deploy_setup: DeploySetup) -> None:
    """--json prints one object with steps, GPUs, variables and the image's path, and nothing on stderr."""
    ended = deploy_setup.deploy("--json")
    value = ended.json

    assert ended.err == ""
    assert [(step["verb"], step["what"]) for step in value["steps"]] == [("create", "template"), ("create", "endpoint")]
    assert value["gpus"][0]["pool"] == "ADA_24"
    assert value["endpoint_id"] == value["variables"]["RUNPOD_COMFYUI_ENDPOINT_ID"]
    assert value["image"] is None
    assert deploy_setup.shell("deploy", "--json").json["steps"] == []


def test_an_update_only_sends_changed_fields(deploy_setup: DeploySetup) -> None:
    """For a new image and more workers, the changes are printed, and the patches have only the changed fields."""
    deploy_setup.deploy()
    deploy_setup.write("[workers]\nmax = 5\n", DESCRIPTION.replace("1.0.0", "1.1.0"))
    ended = deploy_setup.deploy()

    assert ended.status == 0
    assert "~ image: ghcr.io/me/worker:1.0.0 -> ghcr.io/me/worker:1.1.0" in ended.err
    assert "~ workers.max: 3 -> 5" in ended.err
    *_, template, endpoint = (each.body for each in deploy_setup.account.received if each.method == "PATCH")
    assert template == {"image": "ghcr.io/me/worker:1.1.0"}
    assert endpoint == {"image": "ghcr.io/me/worker:1.1.0", "workers": {"min": 0, "max": 5, "idleTimeout": 30}}


def test_a_manual_change_is_reverted(deploy_setup: DeploySetup) -> None:
    """A change that was made in RunPod's console is shown and reverted."""
    deploy_setup.deploy()
    deploy_setup.endpoint["workers"] = {"min": 2, "max": 9, "idleTimeout": 5}
    ended = deploy_setup.deploy()

    assert "~ workers.min: 2 -> 0" in ended.err
    assert deploy_setup.endpoint["workers"] == {"min": 0, "max": 3, "idleTimeout": 30}


def test_values_that_runpod_fills_in_are_not_a_difference(deploy_setup: DeploySetup) -> None:
    """Data centres at RunPod are no difference if deploy.toml has none; an empty list in deploy.toml removes them."""
    deploy_setup.deploy()
    deploy_setup.endpoint["dataCenterIds"] = ["US-KS-2"]
    unchanged = deploy_setup.deploy()
    deploy_setup.write("[storage]\ndata_centers = []\n")
    changed = deploy_setup.deploy()

    assert "Nothing to do" in unchanged.err
    assert "~ storage.data_centers: US-KS-2 -> none" in changed.err
    assert deploy_setup.endpoint["dataCenterIds"] == []


def test_a_secret_is_only_sent_to_the_endpoint(deploy_setup: DeploySetup) -> None:
    """The outputs, text and JSON, have the secret's name but never its value. The template does not have it."""
    deploy_setup.write(text=WITH_SECRET)
    runs = [
        deploy_setup.shell("deploy", "--dry-run", HF_TOKEN=CREDENTIAL),
        deploy_setup.deploy(HF_TOKEN=CREDENTIAL),
        deploy_setup.deploy(HF_TOKEN=CREDENTIAL),
        deploy_setup.deploy("--json", HF_TOKEN=f"{CREDENTIAL}2"),
    ]

    assert [ended.status for ended in runs] == [0, 0, 0, 0]
    assert "+ env.HF_TOKEN = (not shown)" in runs[0].out
    assert "+ env.WORKER_LOG_LEVEL = DEBUG" in runs[0].out
    assert "Nothing to do" in runs[2].err
    assert deploy_setup.endpoint["env"] == {"HF_TOKEN": f"{CREDENTIAL}2", "WORKER_LOG_LEVEL": "DEBUG"}
    for ended in runs:
        assert CREDENTIAL not in ended.out + ended.err
        assert deploy_setup.account.api_key not in ended.out + ended.err
    assert not [each for each in deploy_setup.account.templates.values() if "HF_TOKEN" in each["env"]]


def test_a_missing_secret_is_an_error_before_any_request(deploy_setup: DeploySetup) -> None:
    """If a secret's variable is not set, the error names it, and nothing is sent."""
    deploy_setup.write(text=WITH_SECRET)
    ended = deploy_setup.deploy()

    assert ended.status == 3
    assert "HF_TOKEN" in ended.err
    assert deploy_setup.account.received == []


def test_a_secret_that_runpod_repeats_in_an_error_is_not_shown(deploy_setup: DeploySetup) -> None:
    """If RunPod's error repeats a secret, the printed error has the field, but not the secret."""
    deploy_setup.write(text=WITH_SECRET)
    body = {"title": "Unprocessable Entity", "status": 422, "detail": f"env.HF_TOKEN: {CREDENTIAL!r} is too long"}
    deploy_setup.account.faults.respond("POST /serverless", 422, body=body)
    ended = deploy_setup.deploy("--json", HF_TOKEN=CREDENTIAL)

    assert ended.status == 4
    assert "env.HF_TOKEN" in ended.out
    assert CREDENTIAL not in ended.out + ended.err


def test_volumes_and_credentials_are_found_by_name(deploy_setup: DeploySetup) -> None:
    """Network volume and registry credentials are named in deploy.toml, and sent by their ids."""
    deploy_setup.write(
        '[storage]\nnetwork_volume = "models"\n', DESCRIPTION.replace("[gpu]", 'registry = "ghcr"\n[gpu]')
    )

    assert deploy_setup.deploy().status == 0
    assert (deploy_setup.endpoint["registry"], deploy_setup.endpoint["networkVolumes"]) == ("reg1", ["vol1"])


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ('network_volume = "model"', "no network volume 'model'; existing: models; did you mean \"models\"?"),
        ('network_volume = "models"\ndata_centers = ["EU-RO-1"]', "is in US-KS-2, which is not one of"),
    ],
)
def test_an_unusable_volume_is_reported(deploy_setup: DeploySetup, more: str, expected: str) -> None:
    """An unknown volume, or one in another data centre, is an error with the alternatives; nothing is changed."""
    deploy_setup.write(f"[storage]\n{more}\n")
    ended = deploy_setup.deploy()

    assert ended.status == 3
    assert expected in ended.err
    assert deploy_setup.account.writes() == []


def test_a_cached_model_is_set(deploy_setup: DeploySetup) -> None:
    """A new endpoint gets the cached model, and afterwards no difference to deploy.toml is left."""
    deploy_setup.write(STORAGE_TABLE)
    ended = deploy_setup.deploy()
    endpoint_id = str(deploy_setup.endpoint["id"])

    assert f"cached model set: {MODEL}" in ended.err
    assert deploy_setup.account.cached_models == {endpoint_id: [MODEL]}
    again = deploy_setup.shell("deploy")
    assert "Nothing to do" in again.err, again.err


def test_a_cached_model_survives_an_update(deploy_setup: DeploySetup) -> None:
    """If a PATCH of REST v2 removes the cached model, it is set again."""
    deploy_setup.write(STORAGE_TABLE)
    deploy_setup.deploy()
    deploy_setup.account.faults.forgets_models = True
    deploy_setup.write(STORAGE_TABLE, DESCRIPTION.replace("1.0.0", "1.1.0"))
    ended = deploy_setup.deploy()

    assert "cached model set" in ended.err
    assert list(deploy_setup.account.cached_models.values()) == [[MODEL]]


def test_an_empty_text_removes_a_cached_model(deploy_setup: DeploySetup) -> None:
    """Without `cached_model` in deploy.toml the cached model is not changed; an empty text removes it."""
    deploy_setup.write(STORAGE_TABLE)
    deploy_setup.deploy()
    deploy_setup.write('[storage]\nnetwork_volume = "models"\n')
    assert "Nothing to do" in deploy_setup.shell("deploy").err
    deploy_setup.write('[storage]\nnetwork_volume = "models"\ncached_model = ""\n')
    ended = deploy_setup.deploy()

    assert f"- storage.cached_model: {MODEL}" in ended.err
    assert list(deploy_setup.account.cached_models.values()) == [[]]


def test_a_graphql_error_is_reported(deploy_setup: DeploySetup) -> None:
    """An error of the GraphQL API is reported, and the next run sets the cached model."""
    deploy_setup.write(STORAGE_TABLE)
    deploy_setup.account.faults.respond("POST /graphql", 200, body={"errors": [{"message": "no such model"}]})
    failed = deploy_setup.deploy()
    ended = deploy_setup.deploy()

    assert failed.status == 4
    assert "GraphQL API refused to read the cached model: no such model" in failed.err
    assert ended.status == 0
    assert list(deploy_setup.account.cached_models.values()) == [[MODEL]]


def test_a_retired_graphql_api_is_explained(deploy_setup: DeploySetup) -> None:
    """If the GraphQL API returns 404, the error says when RunPod retires it, and which key to remove."""
    deploy_setup.write(STORAGE_TABLE)
    deploy_setup.account.faults.respond("POST /graphql", 404)
    failed = deploy_setup.deploy()

    assert failed.status == 4
    assert "early in 2027. If it is gone, remove storage.cached_model from deploy.toml" in failed.err


def test_without_the_catalogue_the_table_has_the_prices(deploy_setup: DeploySetup) -> None:
    """If RunPod's catalogue is missing, a dry run shows the prices of our table with their date."""
    deploy_setup.account.faults.respond(
        "GET /catalog", 404, body={"title": "Not Found", "status": 404, "detail": "gone"}
    )
    ended = deploy_setup.shell("deploy", "--dry-run")

    assert ended.status == 0
    assert f"prices of the table of {AS_OF}" in ended.out
    assert "1. ADA_24: RTX 4090 (24 GB), $0.00031 per second" in ended.out


def test_an_ambiguous_name_is_an_error(deploy_setup: DeploySetup) -> None:
    """Two endpoints of the same name, one with RunPod's suffix, are an error with both ids."""
    deploy_setup.deploy()
    deploy_setup.account.endpoints["other"] = {**deploy_setup.endpoint, "id": "other", "name": "flux -fb"}
    ended = deploy_setup.deploy()

    assert ended.status == 3
    assert "2 endpoints with the name flux (ep, other)" in ended.err


def test_an_endpoint_of_another_type_is_not_changed(deploy_setup: DeploySetup) -> None:
    """An endpoint of that name with the type LOAD_BALANCER is an error."""
    deploy_setup.deploy()
    deploy_setup.endpoint["type"] = "LOAD_BALANCER"

    ended = deploy_setup.deploy()
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
def test_an_invalid_variable_is_named(deploy_setup: DeploySetup, variable: str, value: str) -> None:
    """A blank or invalid key, or a URL to which no key may be sent, is an error with the variable; nothing is sent."""
    ended = deploy_setup.deploy(**{variable: value})

    assert ended.status == 3
    assert variable in ended.err
    assert deploy_setup.account.received == []
