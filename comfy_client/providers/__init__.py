"""The providers that IMAGE_GENERATION_PROVIDER can select, and the environment variables of each.

To add a provider, write a module with a class that implements `interface.Provider`, add an entry to PROVIDERS and its
variables to VARIABLES. tests/providers/test_contract.py then needs a fixture for it in tests/providers/stagings.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import TypeAlias

from comfy_client.providers.direct import DirectProvider
from comfy_client.providers.interface import Provider
from comfy_client.providers.runpod_endpoint import BASE_URL, RunPodEndpoint
from comfy_client.providers.scenario import ScenarioProvider
from comfy_client.providers.scenario_api import BASE_URL as SCENARIO_URL
from comfy_client.providers.scenario_api import ScenarioApi
from comfy_client.providers.scenario_request import MODEL_ID
from comfy_client.providers.stock_worker import StockWorkerProvider
from comfy_client.providers.worker import WorkerProvider
from comfy_core.errors import ConfigError
from comfy_core.validation import nearest
from comfy_core.workflows import Workflow, default_directory, load_workflows

SWITCH = "IMAGE_GENERATION_PROVIDER"
DEFAULT = "comfyui"


@dataclass(frozen=True)
class EnvironmentVariable:
    """An environment variable. `where` says where to find its value, or what its default is."""

    name: str
    meaning: str
    where: str
    secret: bool = False


VARIABLES: Mapping[str, EnvironmentVariable] = {
    variable.name: variable
    for variable in (
        EnvironmentVariable(SWITCH, "The provider that generates the images.", f"default `{DEFAULT}`"),
        EnvironmentVariable("RUNPOD_API_KEY", "RunPod's API key.", "RunPod console > Settings > API Keys", secret=True),
        EnvironmentVariable(
            "RUNPOD_COMFYUI_ENDPOINT_ID",
            "Id of the endpoint of this project's worker. Default: RUNPOD_ENDPOINT_ID.",
            "RunPod console > Serverless, next to the endpoint's name",
        ),
        EnvironmentVariable(
            "RUNPOD_ENDPOINT_ID",
            "Id of the endpoint.",
            "RunPod console > Serverless, next to the endpoint's name",
        ),
        EnvironmentVariable("RUNPOD_ENDPOINT_BASE_URL", "Base URL of RunPod's queue API.", f"default `{BASE_URL}`"),
        EnvironmentVariable(
            "COMFYUI_ENDPOINT",
            "URL of a ComfyUI to call directly, without RunPod.",
            "for example `http://127.0.0.1:8188`",
        ),
        EnvironmentVariable(
            "COMFYUI_DIR",
            "Base folder of that ComfyUI, if this process can access it. The files of each job are then deleted.",
            "the folder that contains ComfyUI's `input` and `output`",
        ),
        EnvironmentVariable(
            "SCENARIO_SDK_API_KEY",
            "Scenario's API key. Scenario's own SDK reads it too.",
            "Scenario's web app: the project's API keys",
            secret=True,
        ),
        EnvironmentVariable(
            "SCENARIO_SDK_API_SECRET",
            "The secret of that key.",
            "Scenario's web app, shown once when the key is made",
            secret=True,
        ),
        EnvironmentVariable(
            "SCENARIO_BASE_URL",
            "Base URL of Scenario's API. Scenario's SDK reads it too; with the shim, it is the shim's URL.",
            f"default `{SCENARIO_URL}`",
        ),
        EnvironmentVariable(
            "SCENARIO_MODEL_ID", "Id of the Scenario model that generates the images.", f"default `{MODEL_ID}`"
        ),
        EnvironmentVariable(
            "SCENARIO_LORAS",
            "JSON object that maps the worker's LoRA files to Scenario model ids. Other LoRAs are rejected.",
            'for example `{"knight.safetensors": "model_x"}`',
        ),
    )
}
"""All environment variables of the client."""


@dataclass(frozen=True)
class ProviderEnvironment:
    """Reads the environment variables of one provider. An empty value counts as not set."""

    environment: Mapping[str, str] = field(repr=False)
    provider: str = DEFAULT

    def optional(self, name: str) -> str:
        """Return a variable's value, or an empty string."""
        return self.environment.get(name, "").strip()

    def required(self, *names: str) -> str:
        """Return the value of the first variable that is set. Raises ConfigError that says where to find it."""
        for name in names:
            if value := self.optional(name):
                return value
        advice = self._misspelled_hint(names) + PROVIDERS[self.provider].advice
        if self.optional("COMFYUI_URL"):
            advice += ". COMFYUI_URL is a variable of the worker; the client reads COMFYUI_ENDPOINT"
        raise ConfigError(
            f"{' or '.join(names)} is not set ({VARIABLES[names[-1]].where}), and the provider {self.provider!r} "
            f"requires it.{advice}"
        )

    def _misspelled_hint(self, names: Sequence[str]) -> str:
        """Return a hint if a variable with a similar name is set, else an empty string. Its value is not shown."""
        others = [name for name, value in self.environment.items() if name not in VARIABLES and value.strip()]
        close = next((near[0] for name in names if (near := get_close_matches(name, others, n=1, cutoff=0.8))), "")
        return f" {close} is set, but is not a variable of this program: is it misspelled?" if close else ""


Workflows: TypeAlias = Mapping[str, Workflow]


@dataclass(frozen=True)
class ProviderEntry:
    """One provider: description, required variables, factory, and advice for the error if a variable is missing."""

    reaches: str
    needs: str
    make: Callable[[ProviderEnvironment, Workflows], Provider]
    advice: str = ""


def _comfyui(read: ProviderEnvironment, workflows: Workflows) -> Provider:
    if url := read.optional("COMFYUI_ENDPOINT"):
        directory = read.optional("COMFYUI_DIR")
        return DirectProvider(url, workflows, directory=Path(directory) if directory else None)
    return WorkerProvider(_endpoint(read, "RUNPOD_COMFYUI_ENDPOINT_ID", "RUNPOD_ENDPOINT_ID"), workflows)


def _stock_worker(read: ProviderEnvironment, workflows: Workflows) -> Provider:
    return StockWorkerProvider(_endpoint(read, "RUNPOD_ENDPOINT_ID"), workflows)


def _scenario(read: ProviderEnvironment, workflows: Workflows) -> Provider:
    keys = read.required("SCENARIO_SDK_API_KEY"), read.required("SCENARIO_SDK_API_SECRET")
    loras = _table("SCENARIO_LORAS", read.optional("SCENARIO_LORAS"))
    model_id = read.optional("SCENARIO_MODEL_ID") or MODEL_ID
    api = ScenarioApi(*keys, read.optional("SCENARIO_BASE_URL") or SCENARIO_URL)
    return ScenarioProvider(api, workflows, model_id=model_id, loras=loras)


def _table(name: str, text: str) -> dict[str, str]:
    """Return the JSON object of strings in a variable's value. Raises ConfigError."""
    try:
        table = json.loads(text or "{}")
    except ValueError:
        table = None
    if not isinstance(table, dict) or not all(isinstance(value, str) and value for value in table.values()):
        raise ConfigError(f"{name} is not a JSON object of strings, {VARIABLES[name].where}. {VARIABLES[name].meaning}")
    return table


def _endpoint(read: ProviderEnvironment, *names: str) -> RunPodEndpoint:
    api_key = read.required("RUNPOD_API_KEY")
    return RunPodEndpoint(read.required(*names), api_key, read.optional("RUNPOD_ENDPOINT_BASE_URL") or BASE_URL)


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
        f" {SWITCH}=runpod is for RunPod's stock worker-comfyui; this project's worker, a ComfyUI without RunPod "
        f"(COMFYUI_ENDPOINT) and `comfy-client simulate` need {SWITCH}=comfyui, the default",
    ),
    "scenario": ProviderEntry(
        "Scenario.com, through its official SDK (the extra `scenario-sdk`), to switch back to it",
        "`SCENARIO_SDK_API_KEY` and `SCENARIO_SDK_API_SECRET`",
        _scenario,
    ),
}
"""All providers by name."""


def provider_name(environment: Mapping[str, str]) -> str:
    """Return the provider name in IMAGE_GENERATION_PROVIDER. Raises ConfigError if it is unknown."""
    name = ProviderEnvironment(environment).optional(SWITCH) or DEFAULT
    if name not in PROVIDERS:
        raise ConfigError(
            f"{SWITCH}={name!r} is not a provider{nearest(name, PROVIDERS) or '.'} Providers: {', '.join(PROVIDERS)}"
        )
    return name


def provider_from_env(environment: Mapping[str, str], workflows: Path | None = None) -> Provider:
    """Return the provider that the environment selects. Only its own variables are read. Raises ConfigError."""
    name = provider_name(environment)
    return PROVIDERS[name].make(
        ProviderEnvironment(environment, name), load_workflows(workflows or default_directory())
    )
