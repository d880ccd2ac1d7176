"""The command `models`: lists, downloads and deletes the model files of the worker, or of a ComfyUI on this machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from comfy_client.cli.call import JSON, STREAM, Call, Command
from comfy_client.cli.flags import Flag, UsageError
from comfy_client.cli.following import (
    WAIT_TIMEOUT,
    after_wait_timeout,
    cancel_interrupted,
    submission_of,
    wait_with_progress,
)
from comfy_client.cli.models_result import models_lines, models_object
from comfy_client.providers import COMFYUI_DIR, COMFYUI_ENDPOINT
from comfy_core.environment import Variable
from comfy_core.errors import ConfigError, WaitTimeout
from comfy_core.request.model_address import CIVITAI, parse_address
from comfy_core.request.models_task import ACTIONS, DELETE, DOWNLOAD
from comfy_core.urls import HUGGING_FACE

if TYPE_CHECKING:
    from comfy_client.providers.interface import GenerationRequest
    from comfy_core.workflows import Workflow

HF_TOKEN = Variable("HF_TOKEN", str, "Token for `comfy-client models download` from Hugging Face.", secret=True)
CIVITAI_TOKEN = Variable("CIVITAI_TOKEN", str, "Token for `comfy-client models download` from Civitai.", secret=True)
VARIABLES = (HF_TOKEN, CIVITAI_TOKEN)
_FLAGS = (
    Flag(
        ("action",),
        "`list [FOLDER]` (the default), `download ADDRESS --folder FOLDER`, or `delete FOLDER/NAME`.",
        "|".join(ACTIONS),
        {"nargs": "?", "default": "list", "choices": ACTIONS},
    ),
    Flag(
        ("subject",),
        "For `list`: a folder, such as loras. For `download`: hf:owner/repository/file.safetensors@revision, "
        "civitai:VERSION or an https URL, optionally with #sha256=HASH. For `delete`: the file as in the list.",
        "FOLDER|ADDRESS|FOLDER/NAME",
        {"nargs": "?"},
    ),
    Flag(("--folder",), "With `download`: the folder below ComfyUI's models.", "FOLDER", {"dest": "to_folder"}),
    Flag(
        ("--name",),
        "With `download`: the file's name there. [default: the name in the address]",
        "NAME",
        {"dest": "new_name"},
    ),
    Flag(
        ("--token-file",),
        "With `download`: a file with the token for the address's host. [default HF_TOKEN or CIVITAI_TOKEN]",
        "FILE",
        {"type": Path},
    ),
    Flag(
        ("--comfyui-dir",),
        "The base folder of the ComfyUI at COMFYUI_ENDPOINT, if it runs on this machine: `download` and `delete` need "
        "it, and `list` then has hashes and the free space. [default COMFYUI_DIR]",
        "DIR",
        {"type": Path},
    ),
    Flag(
        ("--hash",),
        "With `list`: also read the files without a known hash, which takes about a second for each GB.",
        settings={"action": "store_true"},
    ),
    Flag(
        ("--force",),
        "With `download`: replace another file of the name. With `delete`: also delete a file of models.txt.",
        settings={"action": "store_true"},
    ),
)


def commands(_workflows: Mapping[str, Workflow]) -> tuple[Command, ...]:
    """Return the command `models`."""
    return (Command("models", [*_FLAGS, WAIT_TIMEOUT, JSON, STREAM], _models),)


def _models(call: Call) -> int:
    from comfy_client.models import wait_limit_s  # noqa: PLC0415 - `--help` needs no client

    request = _request(call)
    with _with_directory(call).client() as client:
        submission = submission_of(client, request, is_followed=True)
        try:
            with call.screen.progress() as progress:
                job = submission.run()
                result = wait_with_progress(job, wait_limit_s(client, call.options.wait_timeout), progress)
        except WaitTimeout as error:
            raise after_wait_timeout(client, error, "The same command continues a download") from error
        except KeyboardInterrupt as interrupt:
            return cancel_interrupted(call, submission, interrupt)
    call.screen.show(models_object(result), *models_lines(call.screen, result))
    return 0


def _with_directory(call: Call) -> Call:
    """Return the call with --comfyui-dir in place of COMFYUI_DIR. Raises UsageError without COMFYUI_ENDPOINT."""
    directory = call.options.comfyui_dir
    if directory is None:
        return call
    if not COMFYUI_ENDPOINT.read(call.environment):
        raise UsageError(f"--comfyui-dir is the folder of the ComfyUI at {COMFYUI_ENDPOINT.name}, which is not set")
    environment = {**call.environment, COMFYUI_DIR.name: str(directory)}
    return replace(call, settings=replace(call.settings, environment=environment))


def _request(call: Call) -> GenerationRequest:
    """Return the request of the command line. Raises UsageError, or ConfigError for the file of a token."""
    from comfy_client.models import delete_request, download_request, list_request  # noqa: PLC0415 - as above

    options = call.options
    if options.action == DELETE:
        if "/" not in (options.subject or ""):
            raise UsageError("give the file as in the list: comfy-client models delete loras/knight.safetensors")
        return delete_request(options.subject, force=options.force)
    if options.action != DOWNLOAD:
        return list_request(options.subject, with_hashes=options.hash)
    if not options.subject or not options.to_folder:
        raise UsageError(
            "give an address and a folder: comfy-client models download hf:owner/repository/file.safetensors "
            "--folder loras"
        )
    return download_request(
        options.subject, options.to_folder, options.new_name, force=options.force, tokens=_tokens(call)
    )


def _tokens(call: Call) -> dict[str, str]:
    """Return the token for the address's host, if there is one. Raises UsageError or ConfigError."""
    try:
        host = urlsplit(parse_address(call.options.subject).url).hostname or ""
    except ValueError as error:
        raise UsageError(f"the address {error}") from error
    if file := call.options.token_file:
        try:
            return {host: file.read_text(encoding="utf-8").strip()}
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"--token-file {file} cannot be read") from error
    variables = {HUGGING_FACE: HF_TOKEN, CIVITAI: CIVITAI_TOKEN}
    token = next((each.read(call.environment) for url, each in variables.items() if url.endswith(f"//{host}")), "")
    return {host: token} if token else {}
