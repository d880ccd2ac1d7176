"""client_from_env: which provider the environment selects, which variables are read, and errors of variables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from comfy_client.client import client_from_env
from comfy_client.providers import PROVIDERS, VARIABLES, provider_from_env
from comfy_client.providers.direct import DirectProvider
from comfy_client.providers.scenario import ScenarioProvider
from comfy_client.providers.stock_worker import StockWorkerProvider
from comfy_client.providers.worker import WorkerProvider
from comfy_core.errors import ConfigError

RUNPOD = {"RUNPOD_API_KEY": "rpa_secret", "RUNPOD_ENDPOINT_ID": "ep1"}
SCENARIO = {"SCENARIO_SDK_API_KEY": "api_secret", "SCENARIO_SDK_API_SECRET": "sec_secret"}


class WatchedEnvironment(Mapping[str, str]):
    """An environment that records which variables are read, and must not be iterated."""

    def __init__(self, values: Mapping[str, str]) -> None:
        self._values = values
        self.read: set[str] = set()

    def __getitem__(self, name: str) -> str:
        self.read.add(name)
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        raise AssertionError("the environment must not be iterated")

    def __len__(self) -> int:
        return len(self._values)


@pytest.mark.parametrize(
    ("environment", "provider_class", "read"),
    [
        (RUNPOD, WorkerProvider, {"COMFYUI_ENDPOINT", "RUNPOD_COMFYUI_ENDPOINT_ID", *RUNPOD}),
        ({**RUNPOD, "IMAGE_GENERATION_PROVIDER": "comfyui"}, WorkerProvider, {"COMFYUI_ENDPOINT", *RUNPOD}),
        ({**RUNPOD, "RUNPOD_COMFYUI_ENDPOINT_ID": "ep2"}, WorkerProvider, {"RUNPOD_API_KEY"}),
        ({"COMFYUI_ENDPOINT": "http://127.0.0.1:8188"}, DirectProvider, {"COMFYUI_ENDPOINT", "COMFYUI_DIR"}),
        ({**RUNPOD, "IMAGE_GENERATION_PROVIDER": "runpod"}, StockWorkerProvider, set(RUNPOD)),
        ({**SCENARIO, "IMAGE_GENERATION_PROVIDER": "scenario"}, ScenarioProvider, set(SCENARIO)),
    ],
)
def test_the_environment_selects_the_provider(
    environment: dict[str, str], provider_class: type, read: set[str]
) -> None:
    """The environment selects the provider, and no variable of the other services is read."""
    watched = WatchedEnvironment(environment)
    with client_from_env(watched) as client:
        assert isinstance(client.provider, provider_class)

    assert read <= watched.read <= set(VARIABLES)
    assert (provider_class is ScenarioProvider) == any(name.startswith("SCENARIO") for name in watched.read)
    if provider_class in {DirectProvider, ScenarioProvider}:
        assert not {name for name in watched.read if name.startswith("RUNPOD")}
    if provider_class in {StockWorkerProvider, ScenarioProvider}:
        assert not {name for name in watched.read if "COMFYUI" in name}


def test_runpod_comfyui_endpoint_id_takes_precedence() -> None:
    """If both ids are set, `comfyui` uses RUNPOD_COMFYUI_ENDPOINT_ID, and `runpod` uses RUNPOD_ENDPOINT_ID."""
    environment = {**RUNPOD, "RUNPOD_COMFYUI_ENDPOINT_ID": "ep2"}

    assert "'ep2'" in repr(provider_from_env(environment))
    assert "'ep1'" in repr(provider_from_env({**environment, "IMAGE_GENERATION_PROVIDER": "runpod"}))


@pytest.mark.parametrize("name", ["comfyui", "runpod"])
@pytest.mark.parametrize("missing", RUNPOD)
@pytest.mark.parametrize("value", [None, "", "  "])
def test_a_missing_variable_is_named_with_its_provider_and_source(name: str, missing: str, value: str | None) -> None:
    """The error names the variable, its provider, where to find it, and `simulate`. A blank value is missing too."""
    environment = {**RUNPOD, "IMAGE_GENERATION_PROVIDER": name, **({} if value is None else {missing: value})}
    if value is None:
        del environment[missing]
    with pytest.raises(ConfigError) as info:
        provider_from_env(environment)

    assert missing in str(info.value)
    assert repr(name) in str(info.value)
    assert "RunPod console >" in str(info.value)
    assert "comfy-client simulate" in str(info.value)
    assert info.value.exit_status == 3


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"IMAGE_GENERATION_PROVIDER": "comfui"}, 'did you mean "comfyui"'),
        ({"IMAGE_GENERATION_PROVIDER": "dalle"}, "Providers: comfyui, runpod, scenario"),
        ({"RUNPOD_API_KEY": "with a space"}, "RUNPOD_API_KEY"),
        ({"RUNPOD_API_KEY": "newline\nin it"}, "RUNPOD_API_KEY"),
        ({"RUNPOD_API_KEY": "ключ"}, "RUNPOD_API_KEY"),
        ({"RUNPOD_ENDPOINT_ID": "https://api.runpod.ai/v2/x"}, "not an endpoint id"),
        ({"RUNPOD_ENDPOINT_BASE_URL": "api.runpod.ai"}, "RUNPOD_ENDPOINT_BASE_URL"),
        ({"RUNPOD_ENDPOINT_BASE_URL": "http://[::1"}, "RUNPOD_ENDPOINT_BASE_URL"),
        ({"COMFYUI_ENDPOINT": "gpu"}, "is not a valid ComfyUI URL"),
        ({"COMFYUI_ENDPOINT": "http://[::1"}, "is not a valid ComfyUI URL"),
        ({"COMFYUI_ENDPOINT": "http://gpu:99999"}, "is not a valid ComfyUI URL"),
        ({"COMFYUI_ENDPOINT": "http://me:rpa_secret@gpu"}, "without user name"),
    ],
)
def test_an_invalid_variable_is_named(changes: dict[str, str], expected: str) -> None:
    """An invalid value is a ConfigError that explains the fault, and does not show the key."""
    with pytest.raises(ConfigError, match=expected) as info:
        provider_from_env({**RUNPOD, **changes})

    assert changes.get("RUNPOD_API_KEY", "rpa_secret") not in str(info.value)


def test_white_space_around_a_value_is_ignored() -> None:
    """White space around a key, such as a newline, is removed."""
    assert provider_from_env({**RUNPOD, "RUNPOD_API_KEY": " rpa_secret\n"}).name == "comfyui"


def test_the_key_is_in_no_representation() -> None:
    """The repr of the client, its provider and a job, and the provider's attributes, do not show the key."""
    for name in PROVIDERS:
        with client_from_env({**RUNPOD, **SCENARIO, "IMAGE_GENERATION_PROVIDER": name}) as client:
            shown = f"{client!r} {client.provider!r} {vars(client.provider)!r} {client.job('x')!r}"
            assert "secret" not in shown


@pytest.mark.parametrize("is_argument", [True, False])
def test_a_folder_of_workflows_must_exist(tmp_path: Path, *, is_argument: bool) -> None:
    """A typing error in COMFY_WORKFLOWS, or in the argument, is not taken for an empty folder."""
    typo = tmp_path / "typo"
    environment = RUNPOD if is_argument else {**RUNPOD, "COMFY_WORKFLOWS": str(typo)}
    with pytest.raises(ConfigError, match=r"COMFY_WORKFLOWS: the folder .*typo does not exist"):
        client_from_env(environment, workflows=typo if is_argument else None)
