"""ComfyUI's launch flags: read from --help with a timeout, then chosen by settings. Unsupported ones are omitted."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

import psutil
import pytest

from bench.worker_setup import ROOT, make_comfyui
from comfy_core.errors import ConfigError
from simulators import comfyui_main as comfyui
from simulators.waiting import until
from worker.comfyui_environment import comfyui_environment
from worker.flag_decisions import NEWER, NOT_PASSED, PASSED
from worker.launch_flags import KNOWN_FLAGS, comfyui_command, flags_in, query_flags, whitelisted_nodes
from worker.settings import Settings

pytestmark = pytest.mark.slow
HANGING_SCRIPT = """\
import subprocess, sys
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]).wait()
"""


def settings_of(directory: Path, main: str = comfyui.MAIN, **environment: str) -> Settings:
    """Return the settings of a worker whose ComfyUI in `directory` has `main` as its main.py."""
    return Settings.from_env({**make_comfyui(directory, main), **environment})


def command(settings: Settings, flags: frozenset[str], *, is_on_volume: bool = False) -> list[str]:
    """Return ComfyUI's command line if it supports `flags`."""
    return comfyui_command(settings, flags, Path("/d/paths.yaml"), Path("/d/web"), is_on_volume=is_on_volume)


def test_the_flags_are_read_from_comfyui_s_help(tmp_path: Path) -> None:
    """The flags are those of --help. The process that prints them gets PYTHONPATH, but no secret of the worker."""
    spy = "import os; open('seen', 'w').write(' '.join(os.environ))\n" + comfyui.MAIN
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_TOKEN": "secret", "BUCKET_NAME": "pictures"}
    flags = query_flags(settings_of(tmp_path, spy), comfyui_environment(environment))

    assert flags == {*comfyui.PINNED_FLAGS, "--help", "--step-s", "--fault"}
    assert flags >= KNOWN_FLAGS
    seen = (tmp_path / "seen").read_text().split()
    assert "PYTHONPATH" in seen
    assert not {"HF_TOKEN", "BUCKET_NAME"} & {*seen}


def test_every_notation_of_a_flag_is_parsed() -> None:
    """Flags with short names, values or two long names are found; flags in the help's sentences are not."""
    text = """\
usage: main.py [-h] [--listen [IP]]

options:
  -h, --help            show this help message and exit
  --listen [IP]         The address; --not-a-flag is no flag
  --fast [FAST ...], --quick [FAST ...]
                        Untested; see --nor-this.
  -v, --verbose {DEBUG,INFO}  How much
"""

    assert flags_in(text) == {"--help", "--listen", "--fast", "--quick", "--verbose"}


@pytest.mark.parametrize(
    "main",
    [HANGING_SCRIPT, "import sys; sys.exit(1)", "print('no flags')", "print(b'\\xff')"],
    ids=["hangs", "fails", "prints other text", "prints bytes"],
)
def test_a_comfyui_without_usable_help_is_treated_as_an_old_version(
    tmp_path: Path, main: str, caplog: pytest.LogCaptureFixture
) -> None:
    """If --help hangs, fails or prints no flags, KNOWN_FLAGS are used with a warning, and no process is left."""
    with caplog.at_level(logging.WARNING):
        flags = query_flags(settings_of(tmp_path, main), os.environ, 1)

    assert flags == KNOWN_FLAGS
    assert "did not print its launch flags" in caplog.text
    assert until(lambda: not [child for child in psutil.process_iter() if _is_running_in(child, tmp_path)])


def _is_running_in(process: psutil.Process, folder: Path) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE and process.cwd() == str(folder)
    except psutil.Error:
        return False


def test_a_missing_python_is_named(tmp_path: Path) -> None:
    """If COMFYUI_PYTHON does not exist, the error names the variable, the path and the reason."""
    with pytest.raises(ConfigError, match=r"COMFYUI_PYTHON: /no/python cannot be started \(No such file"):
        query_flags(settings_of(tmp_path, COMFYUI_PYTHON="/no/python"), os.environ)


def test_the_flags_follow_the_settings(tmp_path: Path) -> None:
    """Port, folders and defaults come from the settings. COMFYUI_ARGS come last, and so take precedence."""
    settings = settings_of(tmp_path, COMFYUI_ARGS="--lowvram --fast", COMFYUI_PORT="9000")
    arguments = command(settings, KNOWN_FLAGS)
    data = str(tmp_path / "data")

    assert arguments[:6] == [sys.executable, "main.py", "--listen", "127.0.0.1", "--port", "9000"]
    for flag, value in {
        "--input-directory": f"{data}/input",
        "--output-directory": f"{data}/output",
        "--temp-directory": data,
        "--user-directory": f"{data}/user",
        "--database-url": f"sqlite:///{data}/user/comfyui.db",
        "--front-end-root": "/d/web",
        "--extra-model-paths-config": "/d/paths.yaml",
        "--preview-method": "none",
    }.items():
        assert arguments[arguments.index(flag) + 1] == value
    assert arguments[-2:] == ["--lowvram", "--fast"]
    assert "--disable-api-nodes" in arguments
    assert "--disable-mmap" not in arguments


def test_previews_and_the_volume_add_flags(tmp_path: Path) -> None:
    """WORKER_PREVIEWS selects a preview method. Models on the network volume are not memory-mapped."""
    arguments = command(settings_of(tmp_path, WORKER_PREVIEWS="true"), KNOWN_FLAGS, is_on_volume=True)

    assert arguments[arguments.index("--preview-method") + 1] == "latent2rgb"
    assert "--disable-mmap" in arguments


@pytest.mark.parametrize(
    "cache_flag", ["--cache-lru 10", "--cache-none", "--cache-ram", "--cache-classic", "--high-ram"]
)
def test_the_classic_cache_is_the_default(tmp_path: Path, cache_flag: str) -> None:
    """--cache-classic is passed, unless COMFYUI_ARGS select a cache: ComfyUI rejects two cache flags."""
    assert "--cache-classic" in command(settings_of(tmp_path), KNOWN_FLAGS)

    arguments = command(settings_of(tmp_path, COMFYUI_ARGS=cache_flag), KNOWN_FLAGS)
    assert [flag for flag in arguments if flag.startswith(("--cache", "--high"))] == cache_flag.split()[:1]


def test_a_newer_comfyui_gets_its_newer_flags(tmp_path: Path) -> None:
    """A newer ComfyUI gets --disable-partner-nodes and --disable-assets; both versions parse their command line."""
    settings = settings_of(tmp_path)
    arguments = command(settings, frozenset(comfyui.FLAGS_0_45))

    assert "--disable-partner-nodes" in arguments
    assert "--disable-api-nodes" not in arguments
    assert "--disable-assets" in arguments
    comfyui.parser(comfyui.FLAGS_0_45).parse_args(arguments[2:])
    comfyui.parser(comfyui.PINNED_FLAGS).parse_args(command(settings, frozenset(comfyui.PINNED_FLAGS))[2:])


def test_every_flag_has_a_reason(tmp_path: Path) -> None:
    """The flags that are passed are those of PASSED. None of them is in NOT_PASSED."""
    arguments = [
        *command(settings_of(tmp_path), frozenset(PASSED), is_on_volume=True),
        *command(settings_of(tmp_path), frozenset(PASSED) - NEWER),
    ]

    assert {argument for argument in arguments if argument.startswith("--")} == {*PASSED}
    assert not {*PASSED} & {*NOT_PASSED}


def test_an_unsupported_flag_is_not_passed(tmp_path: Path) -> None:
    """Flags that this ComfyUI does not list are omitted with their values: ComfyUI would exit with status 2."""
    flags = KNOWN_FLAGS - {"--disable-mmap", "--front-end-root", "--whitelist-custom-nodes"}
    arguments = command(settings_of(tmp_path), flags, is_on_volume=True)

    assert not {"--disable-mmap", "--front-end-root", "--whitelist-custom-nodes", "websocket_image_save"} & {*arguments}


def test_custom_nodes_of_the_image_are_loaded(tmp_path: Path) -> None:
    """Node folders and modules in ComfyUI's folder are whitelisted. websocket_image_save always is.

    Modules are listed with and without .py, because versions of ComfyUI differ. Disabled and hidden folders are not.
    """
    nodes = tmp_path / "custom_nodes"
    for folder in ("ComfyUI-Impact", "gone.disabled", "__pycache__", ".git"):
        (nodes / folder).mkdir(parents=True)
    for file in ("single.py", "example_node.py.example", "notes.txt"):
        (nodes / file).touch()

    assert whitelisted_nodes(tmp_path) == [
        "ComfyUI-Impact",
        "quick_start",
        "quick_start.py",
        "send_pixels",
        "send_pixels.py",
        "single",
        "single.py",
        "websocket_image_save",
        "websocket_image_save.py",
    ]
    assert whitelisted_nodes(tmp_path / "empty") == [
        "quick_start",
        "quick_start.py",
        "send_pixels",
        "send_pixels.py",
        "websocket_image_save",
        "websocket_image_save.py",
    ]
