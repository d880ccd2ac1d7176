"""The command `ui`: serves the web page for this user on this machine, and opens it in the browser."""

from __future__ import annotations

import threading
import webbrowser
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from comfy_client.cli.call import JSON, Call, Command
from comfy_client.cli.flags import Flag, parse_port
from comfy_client.profiles import TARGETS
from comfy_client.user_folders import state_folder
from comfy_core.environment import Variable
from comfy_core.errors import ConfigError, requiring_extra

if TYPE_CHECKING:
    from comfy_core.workflows import Workflow

BROWSER = Variable("BROWSER", str, "Browser that `comfy-client ui` opens. Python's `webbrowser` reads it.")
HOST = "127.0.0.1"
_SERVER_PREFIX = "SCENARIO_SHIM_"
"""The prefix of the variables of a server for others, which do not apply to this one."""
_FLAGS = (
    Flag(("--port",), "The port. [default: a free one]", "N", {"type": parse_port, "default": 0}),
    Flag(
        ("--data",),
        "The folder for jobs and images. [default: `ui/PROFILE` beside the log of jobs]",
        "DIR",
        {"type": Path},
    ),
    Flag(("--no-open",), "Do not open the browser.", settings={"action": "store_true"}),
    JSON,
)


def commands(_workflows: Mapping[str, Workflow]) -> tuple[Command, ...]:
    """Return the command `ui`."""
    return (Command("ui", _FLAGS, _ui),)


def _ui(call: Call) -> int:
    """Serve the page until Ctrl-C or SIGTERM."""
    with requiring_extra("The web page", "scenario"):
        from comfy_client.gateway.scenario.auth import page_token  # noqa: PLC0415 - optional dependencies
        from comfy_client.gateway.serve import serve  # noqa: PLC0415 - as above
    is_chosen = bool(BROWSER.read(call.environment))
    directory = call.options.data or _default_directory(call)

    def ready(url: str) -> None:
        address = f"{url}/#token={page_token(directory)}"
        if call.screen.is_json:
            call.screen.show({"url": address})
        call.screen.say(f"The page is at {address}\nPress Ctrl-C to stop. The images are in {directory}")
        if not call.options.no_open:
            threading.Thread(target=open_browser, args=(address,), kwargs={"is_chosen": is_chosen}, daemon=True).start()

    own = {name: value for name, value in call.environment.items() if not name.startswith(_SERVER_PREFIX)}
    return serve(
        {**own, f"{_SERVER_PREFIX}DRAIN_S": "0"},
        host=HOST,
        port=call.options.port,
        directory=directory,
        has_page_token=True,
        is_quiet=True,
        apis=(),
        log_stream=call.screen.err,
        on_ready=ready,
    )


def _default_directory(call: Call) -> Path:
    """Return the folder of the profile, or `environment` if the environment selects where images are generated.

    Jobs continue at the next start, and must belong to one endpoint.
    """
    folder = state_folder(call.environment)
    if folder is None:
        raise ConfigError("There is no folder for the page's jobs and images: pass --data DIR, or set HOME")
    profile = call.settings.profile
    if profile is None or set(TARGETS) & set(call.settings.replaced):
        return folder / "ui" / "environment"
    return folder / "ui" / profile.name


def open_browser(url: str, *, is_chosen: bool) -> None:
    """Open a browser window.

    A browser that runs in the terminal would cover the output, so it is only used if the user has chosen it.
    """
    try:
        browser = webbrowser.get()
    except webbrowser.Error:
        return
    is_in_terminal = isinstance(browser, webbrowser.GenericBrowser) and not isinstance(
        browser, webbrowser.BackgroundBrowser
    )
    if not is_in_terminal or is_chosen:
        browser.open(url)
