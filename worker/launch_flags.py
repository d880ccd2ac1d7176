"""Builds ComfyUI's command line: headless, with the worker's folders, and only with flags that this ComfyUI supports.

ComfyUI exits with status 2 for an unknown flag, and its flags change between versions. Its --help takes 0.1 s,
because ComfyUI parses arguments before it imports torch.
"""

from __future__ import annotations

import logging
import os
import re
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from comfy_core.errors import ConfigError
from worker import nodes
from worker.flag_decisions import NEWER, PASSED
from worker.settings import Settings

HELP_TIMEOUT_S = 5.0
KNOWN_FLAGS = frozenset(PASSED) - NEWER
"""The flags of the pinned ComfyUI that the worker uses. Fallback for a ComfyUI whose --help fails."""

_WEBSOCKET_NODE = "websocket_image_save"

log = logging.getLogger(__name__)


def query_flags(
    settings: Settings, environment: Mapping[str, str], timeout_s: float = HELP_TIMEOUT_S
) -> frozenset[str]:
    """Return the launch flags of the ComfyUI in COMFYUI_DIR; KNOWN_FLAGS if it does not print them in time.

    `environment` is the complete environment of the process. Raises ConfigError if COMFYUI_PYTHON cannot be started.
    """
    try:
        child = subprocess.Popen(  # noqa: S603 - the command is the worker's own
            [settings.comfyui_python, "main.py", "--help"],
            cwd=settings.comfyui_directory,
            env={**environment, "COLUMNS": "120", "NO_COLOR": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            errors="replace",
            start_new_session=True,
        )
    except OSError as error:
        raise ConfigError(
            f"COMFYUI_PYTHON: {settings.comfyui_python} cannot be started ({error.strerror}). Set it to the Python "
            "that has ComfyUI's packages"
        ) from error
    with child:
        try:
            text, _ = child.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)  # including children, which would keep the pipe open
            text = ""
    flags = flags_in(text)
    if "--port" in flags:
        return flags
    log.warning("ComfyUI did not print its launch flags within %g s; using those of snapshot.json's ComfyUI", timeout_s)
    return KNOWN_FLAGS


def flags_in(text: str) -> frozenset[str]:
    """Return the flags that a --help text defines, not those that its sentences mention."""
    explained = re.findall(r"^ {2}(-\S.*?)(?: {2}|$)", text, re.MULTILINE)
    return frozenset(flag for option in explained for flag in re.findall(r"(?<!\S)--[\w-]+", option))


def whitelisted_nodes(comfyui: Path) -> list[str]:
    """Return the names for ComfyUI's whitelist of custom nodes: the folders and modules in its custom_nodes, and ours.

    The whitelist keeps out nodes from additional paths, so that nothing from a network volume is run as code. A module
    is listed with and without its file extension. ComfyUI itself ships the module with SaveImageWebsocket.
    """
    try:
        found = sorted((comfyui / "custom_nodes").iterdir())
    except OSError:
        found = []
    folders = {each.name for each in found if each.is_dir() and not each.name.endswith(".disabled")}
    modules = {each.stem for each in found if each.is_file() and each.suffix == ".py"} | {
        _WEBSOCKET_NODE,
        *nodes.MODULES,
    }
    names = {name for name in folders if not name.startswith((".", "__"))}
    return sorted(names | modules | {f"{name}.py" for name in modules})


def comfyui_command(
    settings: Settings, flags: frozenset[str], paths_config: Path, front_end: Path, *, is_on_volume: bool
) -> list[str]:
    """Return ComfyUI's command line, limited to supported `flags`. COMFYUI_ARGS come last and take precedence.

    `flag_decisions` has the reason for each flag.

    Args:
        settings: the settings of a worker with its own ComfyUI.
        flags: the flags that this ComfyUI supports.
        paths_config: the file that lists the model folders and the folder of the worker's custom nodes.
        front_end: an empty folder for ComfyUI's web pages, which are not used. The packages with them have 583 MB.
        is_on_volume: whether models are read from the network volume, where memory-mapping them takes 30 to 50 times as
            long as reading them.
    """
    data = settings.comfyui_data_directory
    assert settings.comfyui_directory is not None  # noqa: S101 - always set for our own ComfyUI
    assert data is not None  # noqa: S101 - always set for our own ComfyUI
    # Since 0.39 --disable-api-nodes disables all network access.
    api_nodes = "--disable-partner-nodes" if "--disable-partner-nodes" in flags else "--disable-api-nodes"
    wanted: list[tuple[str, Sequence[str]]] = [
        ("--listen", ["127.0.0.1"]),
        ("--port", [str(settings.comfyui_port)]),
        ("--disable-auto-launch", []),
        ("--disable-metadata", []),
        (api_nodes, []),
        ("--disable-assets", []),
        ("--disable-all-custom-nodes", []),
        ("--whitelist-custom-nodes", whitelisted_nodes(settings.comfyui_directory)),
        ("--input-directory", [str(data / "input")]),
        ("--output-directory", [str(data / "output")]),
        ("--temp-directory", [str(data)]),  # ComfyUI appends `temp`, and empties that folder
        ("--user-directory", [str(data / "user")]),
        # With an in-memory database, ComfyUI logs an SQLAlchemy traceback, which would end up in error log tails.
        ("--database-url", [f"sqlite:///{data}/user/comfyui.db"]),
        ("--front-end-root", [str(front_end)]),
        ("--extra-model-paths-config", [str(paths_config)]),
        ("--preview-method", ["latent2rgb" if settings.previews else "none"]),
        *([("--disable-mmap", [])] if is_on_volume else []),
        *([] if _chooses_cache(settings.comfyui_arguments) else [("--cache-classic", [])]),
    ]
    passed = [text for flag, values in wanted if flag in flags for text in (flag, *values)]
    return [settings.comfyui_python, "main.py", *passed, *settings.comfyui_arguments]


def _chooses_cache(arguments: Sequence[str]) -> bool:
    """Return whether COMFYUI_ARGS select a cache. ComfyUI rejects two such flags together."""
    return any(argument.startswith("--cache-") or argument == "--high-ram" for argument in arguments)
