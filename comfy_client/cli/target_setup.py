"""Collects the settings of a profile for `init`: asks for each, or takes it from a flag, and checks it at once."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import TypeVar
from urllib.parse import urlsplit

from comfy_client.cli.doctor import check_endpoint
from comfy_client.cli.flags import UsageError
from comfy_client.cli.questions import Declined, Questions
from comfy_client.cli.screen import Screen
from comfy_client.client import client_from_env
from comfy_client.deploy.api import RestApi
from comfy_client.deploy.apply import queue_url
from comfy_client.deploy.variables import REST_BASE_URL
from comfy_client.profiles import Settings
from comfy_client.providers import (
    COMFYUI_ENDPOINT,
    COMFYUI_ENDPOINT_ID,
    ENDPOINT_BASE_URL,
    ENDPOINT_ID,
    RUNPOD_API_KEY,
    SCENARIO_API_KEY,
    SCENARIO_API_SECRET,
    SCENARIO_BASE_URL,
    SWITCH,
)
from comfy_client.providers.runpod_endpoint import BASE_URL
from comfy_core.contract import JsonObject
from comfy_core.environment import Variable
from comfy_core.error_codes import ErrorCode
from comfy_core.errors import ComfyClientError, ConfigError, RequestError, requiring_extra

LOCAL_URL = "http://127.0.0.1:8188"
"""The address of ComfyUI and of `comfy-client simulate`, unless they are started with another one."""
FORBIDDEN = 403
NOTHING_WRITTEN = "Nothing was written."
_T = TypeVar("_T")


class Target(Enum):
    """A place where images are generated. The value is the name of its profile, by default."""

    SIMULATOR = "simulator"
    DIRECT = "comfyui"
    WORKER = "runpod"
    STOCK_WORKER = "worker-comfyui"
    SCENARIO = "scenario"

    @property
    def title(self) -> str:
        """What it is, for the user."""
        return _TITLES[self]

    @property
    def key_count(self) -> int:
        """How many keys it needs."""
        return 0 if self.is_free else 2 if self is Target.SCENARIO else 1

    @property
    def is_free(self) -> bool:
        """Whether an image costs nothing."""
        return self in {Target.SIMULATOR, Target.DIRECT}


_TITLES = {
    Target.SIMULATOR: "a simulated ComfyUI on this machine: no GPU, no account, placeholder images",
    Target.DIRECT: "a ComfyUI that is running, at a URL",
    Target.WORKER: "RunPod, with this project's worker",
    Target.STOCK_WORKER: "RunPod, with its stock image worker-comfyui",
    Target.SCENARIO: "Scenario.com",
}
_HOW_TO_DEPLOY = {
    Target.WORKER: "`comfy-client deploy` creates one (docs/deploy.md).",
    Target.STOCK_WORKER: "Create one in RunPod's console: Hub > worker-comfyui.",
}


@dataclass(frozen=True)
class TargetSettings:
    """The variables of a target. With `is_incomplete`, the endpoint is missing, so no image can be generated yet."""

    target: Target
    variables: Mapping[str, str] = field(repr=False)
    is_incomplete: bool = False
    has_models: bool = True


def target_of(options: argparse.Namespace) -> Target | None:
    """Return the target that the flags select, or None if they select none. Raises UsageError for contradictions."""
    match options.provider:
        case "simulator":
            return Target.SIMULATOR
        case "runpod":
            return Target.STOCK_WORKER
        case "scenario":
            return Target.SCENARIO
    if options.comfyui_endpoint and options.endpoint_id:
        raise UsageError("--comfyui-endpoint is a ComfyUI without RunPod, so it excludes --endpoint-id")
    if options.comfyui_endpoint:
        return Target.DIRECT
    return Target.WORKER if options.endpoint_id else None


class TargetSetup:
    """Collects the variables of a target.

    Without `questions`, a missing value raises UsageError or ConfigError.

    Args:
        known: the environment, completed with the keys of the profile that is replaced; it may have base URLs.
        screen: gets the findings of the checks on stderr.
        questions: asks the user.
        comfyui_url: the address of ComfyUI, or an empty text.
        endpoint_id: the id of RunPod's endpoint, or an empty text.
        keys: the keys that were read from stdin.
    """

    def __init__(
        self,
        known: Settings,
        screen: Screen,
        questions: Questions | None,
        *,
        comfyui_url: str = "",
        endpoint_id: str = "",
        keys: Sequence[str] = (),
    ) -> None:
        self._known = known
        self._environment = known.environment
        self._screen = screen
        self._questions = questions
        self._comfyui_url = comfyui_url
        self._endpoint_id = endpoint_id
        self._keys = list(keys)

    def settings(self, target: Target) -> TargetSettings:
        """Return the settings of `target`, after they were checked. Raises ComfyClientError."""
        match target:
            case Target.SIMULATOR | Target.DIRECT:
                return self._repeated(lambda: self._comfyui(target), is_given=bool(self._comfyui_url))
            case Target.WORKER | Target.STOCK_WORKER:
                return self._runpod(target)
            case Target.SCENARIO:
                with requiring_extra("Scenario.com", "scenario-sdk"):
                    importlib.import_module("scenario_sdk")
                return self._repeated(self._scenario)

    def _comfyui(self, target: Target) -> TargetSettings:
        url = self._comfyui_url
        if not url and self._questions is None:
            raise UsageError("--comfyui-endpoint is missing")
        if not url and self._questions:
            url = self._questions.text("URL of ComfyUI", LOCAL_URL)
        return self._checked(TargetSettings(target, {SWITCH.name: "comfyui", COMFYUI_ENDPOINT.name: url}))

    def _runpod(self, target: Target) -> TargetSettings:
        key, endpoints = self._repeated(self._runpod_key)
        name, provider = (
            (ENDPOINT_ID.name, "runpod") if target is Target.STOCK_WORKER else (COMFYUI_ENDPOINT_ID.name, "comfyui")
        )
        common = {SWITCH.name: provider, RUNPOD_API_KEY.name: key}
        if endpoints == [] and not self._endpoint_id and self._questions:
            self._screen.say(f"The account has no endpoint yet. {_HOW_TO_DEPLOY[target]}")
            if not self._questions.is_confirmed("Store only the key for now?", default=True):
                raise Declined(NOTHING_WRITTEN)
            return TargetSettings(target, common, is_incomplete=True)

        def checked() -> TargetSettings:
            endpoint_id = self._endpoint(endpoints or [])
            base_url = self._base_url(endpoint_id, endpoints or [])
            other = {} if base_url == BASE_URL else {ENDPOINT_BASE_URL.name: base_url}
            return self._checked(TargetSettings(target, {**common, name: endpoint_id, **other}))

        return self._repeated(checked, is_given=bool(self._endpoint_id))

    def _runpod_key(self) -> tuple[str, list[JsonObject] | None]:
        """Return RunPod's API key, and the account's endpoints; None if the key may not list them."""
        key = self._secret(RUNPOD_API_KEY, "RunPod's API key (RunPod console > Settings > API Keys)")
        with closing(RestApi(key, REST_BASE_URL.read(self._environment))) as rest:
            try:
                endpoints = rest.endpoints()
            except RequestError as error:
                if error.code is ErrorCode.AUTH_FAILED and error.status != FORBIDDEN:
                    raise
                self._screen.say(f"The account's endpoints cannot be listed: {error}")
                return key, None
        self._screen.say(f"ok  key        RunPod accepts it; endpoints of the account: {len(endpoints)}")
        return key, endpoints

    def _endpoint(self, endpoints: Sequence[JsonObject]) -> str:
        """Return the id of an endpoint, from the flag or the user. Raises UsageError."""
        if self._endpoint_id:
            return self._endpoint_id
        if self._questions is None:
            known = ", ".join(f"{each.get('name')} ({each['id']})" for each in endpoints)
            raise UsageError(f"--endpoint-id is missing. Endpoints of the account: {known or 'none'}")
        if endpoints:
            listed = [f"{each.get('name', '')}  {each['id']}  {each.get('image', '')}".rstrip() for each in endpoints]
            number = self._questions.choice("Which endpoint?", [*listed, "another one, by its id"])
            if number < len(endpoints):
                return str(endpoints[number]["id"])
        return self._questions.text("Id of the endpoint (RunPod console > Serverless)")

    def _base_url(self, endpoint_id: str, endpoints: Sequence[JsonObject]) -> str:
        """Return the base URL of the endpoint's queue: the environment's, else that in RunPod's record."""
        if self._has(ENDPOINT_BASE_URL):
            return ENDPOINT_BASE_URL.read(self._environment)
        return next((url for each in endpoints if each["id"] == endpoint_id and (url := queue_url(each))), BASE_URL)

    def _scenario(self) -> TargetSettings:
        variables = {
            SWITCH.name: "scenario",
            SCENARIO_API_KEY.name: self._secret(SCENARIO_API_KEY, "Scenario's API key"),
            SCENARIO_API_SECRET.name: self._secret(SCENARIO_API_SECRET, "The secret of that key"),
        }
        if self._has(SCENARIO_BASE_URL):
            variables[SCENARIO_BASE_URL.name] = SCENARIO_BASE_URL.read(self._environment)
        return self._checked(TargetSettings(Target.SCENARIO, variables))

    def _secret(self, variable: Variable[str], question: str) -> str:
        """Return a key from stdin, the environment, the profile or the user. Raises ConfigError."""
        if self._keys:
            return variable.read({variable.name: self._keys.pop(0)})
        if self._has(variable) and self._questions is None:
            return variable.read(self._environment)
        if self._questions is None:
            raise ConfigError(f"{variable.name} is not set. Export it, or pass it on stdin with --key-stdin")
        source = self._known.source(variable.name)
        if self._has(variable) and self._questions.is_confirmed(f"Use {variable.name} of the {source}?", default=True):
            return variable.read(self._environment)
        return variable.read({variable.name: self._questions.secret(f"{question}; it is not shown")})

    def _has(self, variable: Variable[str]) -> bool:
        return bool(self._environment.get(variable.name, "").strip())

    def _checked(self, settings: TargetSettings) -> TargetSettings:
        """Check the settings as `doctor` does, and show the findings. Raises the error of the first failed check.

        Missing models are no error, because own workflows may need others: the result then has no `has_models`.
        """
        with client_from_env(settings.variables) as client:
            for finding in check_endpoint(client):
                if isinstance(finding.error, RequestError):
                    raise finding.error.explained(finding.sentence)
                if finding.error and finding.what != "models":
                    raise finding.error
                self._screen.say(f"{finding.mark}  {finding.what:11}{finding.sentence}")
                settings = replace(settings, has_models=finding.error is None)
        return settings

    def _repeated(self, attempt: Callable[[], _T], *, is_given: bool = False) -> _T:
        """Return the result of `attempt`. If the user can change the value, show an error and try again."""
        while True:
            try:
                return attempt()
            except (ConfigError, RequestError) as error:
                if self._questions is None or is_given or self._keys:
                    raise
                self._questions.show(error)


@contextmanager
def running_simulator(url: str) -> Iterator[str]:
    """Run the simulated ComfyUI in this process, and yield its URL: `url`, or one with a free port.

    If a ComfyUI listens at `url` already, that one is used. Raises ConfigError.
    """
    with requiring_extra("The simulator", "simulator"):
        simulators = importlib.import_module("simulators.comfyui.simulator")
    port = urlsplit(url).port or 80
    for number in (port, 0):
        simulator = simulators.Simulator(port=number)
        try:
            simulator.start()
        except OSError:
            if number == port and _responds(url):
                yield url
                return
            continue
        try:
            yield str(simulator.url)
        finally:
            simulator.stop()
        return
    raise ConfigError("The simulator cannot listen on 127.0.0.1")


def _responds(url: str) -> bool:
    with client_from_env({COMFYUI_ENDPOINT.name: url}) as client:
        try:
            client.health()
        except ComfyClientError:
            return False
    return True
