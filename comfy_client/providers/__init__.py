"""The providers that IMAGE_GENERATION_PROVIDER can select, and the environment variables of each.

To add a provider, write a module with a class that implements `interface.Provider`, add an entry to PROVIDERS and its
variables to VARIABLES. Then add a fixture for tests/providers/test_contract.py to tests/providers/provider_fixtures.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeAlias

from comfy_client.providers.direct import DirectProvider
from comfy_client.providers.interface import Provider
from comfy_client.providers.runpod_endpoint import BASE_URL, RunPodEndpoint
from comfy_client.providers.scenario import ScenarioProvider
from comfy_client.providers.scenario_api import BASE_URL as SCENARIO_URL
from comfy_client.providers.scenario_api import ScenarioApi
from comfy_client.providers.scenario_request import MODEL_ID
from comfy_client.providers.stock_worker import StockWorkerProvider
from comfy_client.providers.worker import WorkerProvider
from comfy_core.environment import Variable, base_url, names, optional, positive, read, table
from comfy_core.errors import ConfigError
from comfy_core.models.address_source import DEFAULT_HOSTS, ModelHosts
from comfy_core.models.source import Hub
from comfy_core.validation import nearest
from comfy_core.workflow_folder import WorkflowFolder
from comfy_core.workflows import Workflow, default_directory, load_workflows


def _key(text: str) -> str:
    """Return the text, if it is an API key that an HTTP header can contain. Raises ValueError otherwise."""
    if not re.fullmatch(r"[!-~]{0,512}", text):
        raise ValueError("must be an API key, without spaces or other invalid characters")
    return text


def _key_of_login(text: str) -> str:
    """Return the text, if it is an API key that can be the user name of Basic authentication. Raises ValueError."""
    if ":" in text:
        raise ValueError("must be an API key, without a colon")
    return _key(text)


_ENDPOINT_ID = "RunPod console > Serverless, next to the endpoint's name."

SWITCH = Variable("IMAGE_GENERATION_PROVIDER", str, "The provider that generates the images.", "comfyui")
RUNPOD_API_KEY = Variable(
    "RUNPOD_API_KEY", _key, "RunPod's API key: RunPod console > Settings > API Keys.", secret=True
)
COMFYUI_ENDPOINT_ID = Variable(
    "RUNPOD_COMFYUI_ENDPOINT_ID",
    str,
    f"Id of the endpoint of this project's worker: {_ENDPOINT_ID} Default: RUNPOD_ENDPOINT_ID.",
)
ENDPOINT_ID = Variable("RUNPOD_ENDPOINT_ID", str, f"Id of the endpoint: {_ENDPOINT_ID}")
ENDPOINT_BASE_URL = Variable("RUNPOD_ENDPOINT_BASE_URL", base_url, "Base URL of RunPod's queue API.", BASE_URL)
GPU_USD_PER_S = Variable(
    "COMFY_CLIENT_GPU_USD_PER_S",
    optional(positive(1)),
    "Price of one second of a RunPod worker in US dollars, such as 0.00031, for the `cost` of results, and for the "
    "estimates of the Scenario shim and `scripts/benchmark`. Default: see docs/cost.md.",
)
COMFYUI_ENDPOINT = Variable(
    "COMFYUI_ENDPOINT", str, "URL of a ComfyUI to call directly, without RunPod, for example `http://127.0.0.1:8188`."
)
COMFYUI_DIR = Variable(
    "COMFYUI_DIR",
    optional(Path),
    "Base folder of that ComfyUI, which contains its `input`, `output` and `models`, if this process can access it. "
    "The files of each job are then deleted, and `comfy-client models` can download and delete models.",
)
MODEL_HOSTS = Variable(
    "COMFYUI_MODEL_HOSTS",
    names,
    "Comma-separated hosts from which `comfy-client models` may download to COMFYUI_DIR. `*.example.com` stands for "
    "all hosts below example.com.",
    DEFAULT_HOSTS,
)
SCENARIO_API_KEY = Variable(
    "SCENARIO_SDK_API_KEY",
    _key_of_login,
    "Scenario's API key: Scenario's web app, the project's API keys. Scenario's own SDK reads it too.",
    secret=True,
)
SCENARIO_API_SECRET = Variable(
    "SCENARIO_SDK_API_SECRET",
    _key,
    "The secret of that key. Scenario's web app shows it once, when the key is created.",
    secret=True,
)
SCENARIO_BASE_URL = Variable(
    "SCENARIO_BASE_URL",
    base_url,
    "Base URL of Scenario's API. Scenario's SDK reads it too; with the shim, it is the shim's URL.",
    SCENARIO_URL,
)
SCENARIO_MODEL_ID = Variable("SCENARIO_MODEL_ID", str, "Id of the Scenario model that generates the images.", MODEL_ID)
SCENARIO_LORAS = Variable(
    "SCENARIO_LORAS",
    table,
    "JSON object that maps the worker's LoRA files to Scenario model ids, for example "
    '`{"knight.safetensors": "model_x"}`. Other LoRAs are rejected.',
)
WORKFLOWS = Variable(
    "COMFY_WORKFLOWS",
    optional(Path),
    "Folder of own workflow templates, in addition to the shipped ones. A template of the same name replaces a shipped "
    "one.",
)
VARIABLES: Mapping[str, Variable[Any]] = {
    variable.name: variable
    for variable in (
        SWITCH,
        RUNPOD_API_KEY,
        COMFYUI_ENDPOINT_ID,
        ENDPOINT_ID,
        ENDPOINT_BASE_URL,
        GPU_USD_PER_S,
        COMFYUI_ENDPOINT,
        COMFYUI_DIR,
        MODEL_HOSTS,
        WORKFLOWS,
        SCENARIO_API_KEY,
        SCENARIO_API_SECRET,
        SCENARIO_BASE_URL,
        SCENARIO_MODEL_ID,
        SCENARIO_LORAS,
    )
}
"""All environment variables of the client."""

Environment: TypeAlias = Mapping[str, str]
Workflows: TypeAlias = Mapping[str, Workflow]


@dataclass(frozen=True)
class ProviderEntry:
    """One provider.

    Attributes:
        description: what it is, for the documentation.
        needs: the environment variables that it requires, for the documentation.
        make: returns the provider.
        advice: text for the error that reports a missing variable.
    """

    description: str
    needs: str
    make: Callable[[Environment, Workflows], Provider]
    advice: str = ""


def _comfyui(environment: Environment, workflows: Workflows) -> Provider:
    if comfyui_url := COMFYUI_ENDPOINT.read(environment):
        directory = COMFYUI_DIR.read(environment)
        return DirectProvider(
            comfyui_url, workflows, directory=directory, model_hosts=lambda: _model_hosts(environment)
        )
    endpoint = _endpoint(environment, "comfyui", COMFYUI_ENDPOINT_ID, ENDPOINT_ID)
    return WorkerProvider(endpoint, workflows, usd_per_s=GPU_USD_PER_S.read(environment))


def _model_hosts(environment: Environment) -> ModelHosts:
    """Return the hosts for `models download`, without tokens: they are part of the request. Raises ConfigError."""
    hub = Hub(read(Hub, environment).endpoint)
    return ModelHosts(MODEL_HOSTS.read(environment), hub, variable=MODEL_HOSTS.name)


def _stock_worker(environment: Environment, workflows: Workflows) -> Provider:
    endpoint = _endpoint(environment, "runpod", ENDPOINT_ID)
    return StockWorkerProvider(endpoint, workflows, usd_per_s=GPU_USD_PER_S.read(environment))


def _scenario(environment: Environment, workflows: Workflows) -> Provider:
    api = ScenarioApi(
        _required(environment, "scenario", SCENARIO_API_KEY),
        _required(environment, "scenario", SCENARIO_API_SECRET),
        SCENARIO_BASE_URL.read(environment),
    )
    model_id, loras = SCENARIO_MODEL_ID.read(environment), SCENARIO_LORAS.read(environment)
    return ScenarioProvider(api, workflows, model_id=model_id, loras=loras)


def _endpoint(environment: Environment, provider: str, *ids: Variable[str]) -> RunPodEndpoint:
    api_key = _required(environment, provider, RUNPOD_API_KEY)
    return RunPodEndpoint(_required(environment, provider, *ids), api_key, ENDPOINT_BASE_URL.read(environment))


def _required(environment: Environment, provider: str, *variables: Variable[str]) -> str:
    """Return the value of the first variable that is set. Raises ConfigError that says where to find a value."""
    for variable in variables:
        if value := variable.read(environment):
            return value
    names = [variable.name for variable in variables]
    advice = _misspelled_hint(environment, names) + PROVIDERS[provider].advice
    if "COMFYUI_URL" in environment:
        advice += ". COMFYUI_URL is a variable of the worker; the client reads COMFYUI_ENDPOINT"
    raise ConfigError(
        f"{' or '.join(names)} is not set, and the provider {provider!r} requires it. {variables[-1].help} "
        "`comfy-client init` stores all settings in a profile, which Python uses with client_from_env(profile=…)."
        f"{advice}"
    )


def _misspelled_hint(environment: Environment, names: Sequence[str]) -> str:
    """Return a hint if a variable with a similar name is set, else an empty string. Values are not shown."""
    others = [name for name, value in environment.items() if name not in VARIABLES and value.strip()]
    close = next((near[0] for name in names if (near := get_close_matches(name, others, n=1, cutoff=0.8))), "")
    return f" {close} is set, but is not a variable of this program: is it misspelled?" if close else ""


PROVIDERS: Mapping[str, ProviderEntry] = {
    "comfyui": ProviderEntry(
        "this project's worker on RunPod serverless, or a ComfyUI directly if `COMFYUI_ENDPOINT` is set",
        "`RUNPOD_API_KEY` and `RUNPOD_COMFYUI_ENDPOINT_ID` (or `RUNPOD_ENDPOINT_ID`), or `COMFYUI_ENDPOINT`",
        _comfyui,
        " Without RunPod, set COMFYUI_ENDPOINT to the URL of a ComfyUI. Without a GPU, run `comfy-client simulate` "
        "and set COMFYUI_ENDPOINT=http://127.0.0.1:8188",
    ),
    "runpod": ProviderEntry(
        "RunPod's stock worker-comfyui, not this project's worker; the client renders the graph",
        "`RUNPOD_API_KEY` and `RUNPOD_ENDPOINT_ID`",
        _stock_worker,
        f" {SWITCH.name}=runpod is for RunPod's stock worker-comfyui; this project's worker, a ComfyUI without RunPod "
        f"(COMFYUI_ENDPOINT) and `comfy-client simulate` need {SWITCH.name}=comfyui, the default",
    ),
    "scenario": ProviderEntry(
        "Scenario.com, through its official SDK (the extra `scenario-sdk`), to switch back to it",
        "`SCENARIO_SDK_API_KEY` and `SCENARIO_SDK_API_SECRET`",
        _scenario,
    ),
}
"""All providers by name."""


def provider_name(environment: Environment) -> str:
    """Return the provider name in IMAGE_GENERATION_PROVIDER. Raises ConfigError if it is unknown."""
    name = SWITCH.read(environment)
    if name not in PROVIDERS:
        raise ConfigError(
            f"{SWITCH.name}={name!r} is not a provider{nearest(name, PROVIDERS) or '.'} Providers: "
            f"{', '.join(PROVIDERS)}"
        )
    return name


def provider_from_env(environment: Environment, workflows: Path | None = None) -> Provider:
    """Return the provider that the environment selects. Variables of other providers are not read.

    `workflows` is a folder of own templates, by default that of COMFY_WORKFLOWS. Raises ConfigError.
    """
    return PROVIDERS[provider_name(environment)].make(environment, workflows_from_env(environment, workflows))


def workflows_from_env(environment: Environment, directory: Path | None = None) -> Workflows:
    """Return the shipped templates and those of a folder, by default of COMFY_WORKFLOWS.

    Raises ConfigError if the folder does not exist.
    """
    shipped = load_workflows(default_directory())
    directory = directory or WORKFLOWS.read(environment)
    if directory is None:
        return shipped
    if not directory.is_dir():
        raise ConfigError(f"{WORKFLOWS.name}: the folder {directory} does not exist. {WORKFLOWS.help}")
    return WorkflowFolder(directory, shipped)
