"""The command `init`: asks where images are generated, checks the replies, writes a profile, generates an image.

Nothing is written before the last question is answered. Without a terminal it asks nothing, and flags, the environment
and stdin have the values.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from comfy_client.cli.call import JSON, Call, Command, status_of
from comfy_client.cli.first_image import PROMPT, generate_first_image, prepare_first_image
from comfy_client.cli.flags import Flag, OnOff, UsageError
from comfy_client.cli.output import OutputTarget
from comfy_client.cli.questions import Questions
from comfy_client.cli.target_setup import (
    LOCAL_URL,
    NOTHING_WRITTEN,
    Target,
    TargetSettings,
    TargetSetup,
    running_simulator,
    target_of,
)
from comfy_client.client import TIMEOUT_S, client_from_env
from comfy_client.job_log import job_log_from_env
from comfy_client.profiles import (
    OFF,
    PROFILE,
    PROFILE_VARIABLES,
    Profile,
    ProfilesFile,
    Settings,
    check_name,
    complete,
    read_profiles,
    required_profiles_path,
    save_profile,
)
from comfy_client.providers import COMFYUI_ENDPOINT
from comfy_core.errors import ConfigError

if TYPE_CHECKING:
    from comfy_core.workflows import Workflow

_FLAGS = (
    Flag(
        ("--provider",),
        "Where images are generated: `simulator`, a simulated ComfyUI on this machine; `comfyui`, a ComfyUI "
        "(--comfyui-endpoint) or this project's worker on RunPod (--endpoint-id); `runpod`, RunPod's stock "
        "worker-comfyui (--endpoint-id); `scenario`, Scenario.com.",
        "simulator|comfyui|runpod|scenario",
        {"choices": ["simulator", "comfyui", "runpod", "scenario"]},
    ),
    Flag(("--comfyui-endpoint",), "URL of a ComfyUI that is called directly.", "URL", {"default": ""}),
    Flag(("--endpoint-id",), "Id of the endpoint at RunPod.", "ID", {"default": ""}),
    Flag(
        ("--key-stdin",),
        "Read RunPod's API key from the first line of stdin; for Scenario, the key and the secret from two lines. "
        "[default: the environment, or the terminal]",
        settings={"action": "store_true"},
    ),
    Flag(("--default",), "Use the profile, which --profile names, by default.", settings={"action": "store_true"}),
    Flag(
        ("--image", "--no-image"),
        "Generate a test image. [default: if it is free; on a terminal, the command asks if it is not]",
        settings={"dest": "image", "default": None, "action": OnOff},
    ),
    Flag(("-o", "--output"), "File for the test image. [default knight.png]", "FILE", {"default": "knight.png"}),
    Flag(
        ("--yes",),
        "Ask nothing, also on a terminal, and replace a profile of the same name.",
        settings={"action": "store_true"},
    ),
    JSON,
)


def commands(_workflows: Mapping[str, Workflow]) -> tuple[Command, ...]:
    """Return the command `init`."""
    return (Command("init", _FLAGS, _init),)


@dataclass(frozen=True)
class _Plan:
    """What is written and generated after the last question."""

    name: str
    is_default: bool
    has_image: bool


def _init(call: Call) -> int:
    options, screen = call.options, call.screen
    is_asking = not (options.yes or screen.is_json) and Questions.are_possible(screen)
    questions = Questions(screen, NOTHING_WRITTEN) if is_asking else None
    path = required_profiles_path(call.environment)
    with ExitStack() as stack:
        try:
            file = read_profiles(path)
            output = prepare_first_image(options.output, screen)
            target = target_of(options) or _asked_target(questions)
            known = complete(call.environment, _stored_keys(file, PROFILE.read(call.environment)))
            settings = _settings(call, target, known, questions, stack.enter_context)
            plan = _plan(call, file, settings, questions)
        except KeyboardInterrupt as interrupt:
            screen.interrupted(f"Interrupted. {NOTHING_WRITTEN}")
            return status_of(interrupt)
        save_profile(path, plan.name, settings.variables, is_default=plan.is_default)
        file = read_profiles(path)
        screen.say(f"The profile {plan.name} is written to {path}")
        image = _first_image(call, settings, output) if plan.has_image else None
    value = {
        "profile": plan.name,
        "file": str(path),
        "is_default": file.default == plan.name,
        "variables": {
            name: "(set)" if PROFILE_VARIABLES[name].secret else text for name, text in settings.variables.items()
        },
        "image": str(image) if image else None,
    }
    screen.show(value, *_next_steps(call, file, plan.name, settings))
    return 0


def _asked_target(questions: Questions | None) -> Target:
    if questions is None:
        raise UsageError(
            "without a terminal, `init` needs --comfyui-endpoint URL, --endpoint-id ID or --provider. "
            f"{NOTHING_WRITTEN}"
        )
    targets = list(Target)
    return targets[questions.choice("Where are the images generated?", [target.title for target in targets])]


def _stored_keys(file: ProfilesFile, name: str) -> Profile | None:
    """Return the keys of the profile that is replaced, if there is one."""
    if (replaced := file.profiles.get(name)) is None:
        return None
    keys = {each: value for each, value in replaced.values.items() if PROFILE_VARIABLES[each].secret}
    return replace(replaced, values=keys)


def _settings(
    call: Call,
    target: Target,
    known: Settings,
    questions: Questions | None,
    enter: Callable[[AbstractContextManager[str]], str],
) -> TargetSettings:
    """Return the checked settings of the target. `enter` keeps the simulator running, if that is the target."""
    options = call.options
    url = options.comfyui_endpoint
    if target is Target.SIMULATOR:
        url = enter(running_simulator(url or LOCAL_URL))
    keys = [sys.stdin.readline().strip() for _ in range(target.key_count)] if options.key_stdin else []
    setup = TargetSetup(known, call.screen, questions, comfyui_url=url, endpoint_id=options.endpoint_id, keys=keys)
    return setup.settings(target)


def _plan(call: Call, file: ProfilesFile, settings: TargetSettings, questions: Questions | None) -> _Plan:
    """Return what to write and generate, after asking for it. Raises ConfigError if the profile's name is taken."""
    options = call.options
    given = PROFILE.read(call.environment)
    name = _profile_name("" if given == OFF else given, file, settings.target, questions, is_replacing=options.yes)
    is_default = options.default or file.default in ("", name)
    if not is_default and questions is not None:
        is_default = questions.is_confirmed(f"Use it by default, in place of {file.default}?", default=True)
    return _Plan(name, is_default, _wants_image(options.image, settings, questions))


def _profile_name(
    given: str, file: ProfilesFile, target: Target, questions: Questions | None, *, is_replacing: bool
) -> str:
    """Return the name of the profile: the given one, else the user's, else the target's."""
    if questions is not None:
        name = given
        while not name or not _is_accepted(name, file, questions):
            name = questions.text("Name of the profile", target.value)
        return name
    name = given or target.value
    check_name(name)
    if name in file.profiles and not is_replacing:
        raise ConfigError(
            f"The profile {name} exists in {file.path}. {NOTHING_WRITTEN} Choose another --profile, or pass --yes to "
            "replace it"
        )
    return name


def _is_accepted(name: str, file: ProfilesFile, questions: Questions) -> bool:
    try:
        check_name(name)
    except ConfigError as error:
        questions.show(error)
        return False
    return name not in file.profiles or questions.is_confirmed(f"The profile {name} exists. Replace it?")


def _wants_image(wanted: bool | None, settings: TargetSettings, questions: Questions | None) -> bool:
    if settings.is_incomplete or wanted is False:
        return False
    if wanted or settings.target.is_free:
        return wanted or settings.has_models
    cost = "It costs creative units" if settings.target is Target.SCENARIO else "RunPod bills the GPU's time"
    return questions is not None and questions.is_confirmed(f"Generate a test image now? {cost}.")


def _first_image(call: Call, settings: TargetSettings, output: OutputTarget) -> Path:
    """Generate the test image with the profile's variables only, and return its path."""
    report = (lambda _: None) if call.screen.is_json else call.screen.say
    with client_from_env(settings.variables, job_log=job_log_from_env(call.environment)) as client:
        return generate_first_image(client, output, call.screen, report, TIMEOUT_S)


def _next_steps(call: Call, file: ProfilesFile, name: str, settings: TargetSettings) -> list[str]:
    """Return the lines that say which commands to run next."""
    option = "" if file.default == name else f" --profile {name}"
    steps = [
        *_steps_before_the_first_image(name, settings),
        (f'comfy-client txt2img "{PROMPT}" -o knight.png{option}', "generate an image"),
        (f"comfy-client ui{option}", "generate images on a web page"),
        (f"comfy-client doctor{option}", "check the settings again"),
    ]
    width = max(len(command) for command, _ in steps)
    lines = [
        f"Next ({'the profile is not the default' if option else 'the profile is used by default'}):",
        *(f"  {command:{width}}  # {purpose}" for command, purpose in steps),
    ]
    if replaced := complete(call.environment, file.profiles[name]).replaced:
        lines.append(
            f"The environment has priority over the profile, and has other values: {', '.join(replaced)}. Unset the "
            "variables to use the profile."
        )
    return lines


def _steps_before_the_first_image(name: str, settings: TargetSettings) -> Iterator[tuple[str, str]]:
    """Yield the commands, each with its purpose, without which the profile generates no image."""
    if settings.target is Target.SIMULATOR:
        port = urlsplit(settings.variables[COMFYUI_ENDPOINT.name]).port
        flag = "" if port == urlsplit(LOCAL_URL).port else f" --port {port}"
        yield f"comfy-client simulate{flag}", "in another terminal: the simulator has to run"
    elif settings.is_incomplete and settings.target is Target.WORKER:
        yield f"comfy-client deploy --profile {name} --save-profile {name}", "create the endpoint (docs/deploy.md)"
    elif settings.is_incomplete:
        yield f"comfy-client init --profile {name}", "again, when the endpoint exists"
