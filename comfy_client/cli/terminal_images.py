"""Shows images in terminals with kitty's graphics protocol or with iTerm2's inline images.

Sources: sw.kovidgoyal.net/kitty/graphics-protocol and iterm2.com/documentation-images.html. A terminal is recognized by
the variables that it sets. Inside tmux and screen, which do not pass these sequences on, no image is shown.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from typing import TypeAlias

from comfy_client.cli.call import Call
from comfy_client.cli.flags import Flag
from comfy_client.cli.terminal import TERM, Sequences
from comfy_client.providers.interface import GenerationResult
from comfy_core.environment import Variable, switch

_Encode: TypeAlias = Callable[[bytes, int], str]
_CHUNK_CHARACTERS = 4096
"""The most base64 that kitty's protocol allows in one sequence."""
_IMAGE_COLUMNS = 40
NAMES = "kitty, Ghostty, WezTerm, iTerm2 and VS Code"

SHOW = Flag(
    ("--show",),
    f"Also show the images in the terminal, if it is one of {NAMES}. [default COMFY_CLIENT_SHOW]",
    settings={"action": "store_true"},
)
SHOW_VARIABLE = Variable("COMFY_CLIENT_SHOW", switch, "Whether commands that save images behave as with `--show`.", "0")
_PROGRAM = Variable("TERM_PROGRAM", str, "The terminal's program. The terminal sets it; `--show` reads it.")
_KITTY = Variable("KITTY_WINDOW_ID", str, "Set by kitty; `--show` reads it.")
_TMUX = Variable("TMUX", str, "Set by tmux, in which `--show` shows no images.")
VARIABLES = (SHOW_VARIABLE, _PROGRAM, _KITTY, _TMUX)


def kitty_sequences(png: bytes, columns: int) -> str:
    """Return the escape sequences that show a PNG in a number of columns, in chunks. kitty does not respond to them."""
    text = base64.standard_b64encode(png).decode()
    starts = range(0, len(text), _CHUNK_CHARACTERS)
    sequences = []
    for start in starts:
        keys = f"a=T,f=100,q=2,c={columns}," if start == 0 else ""
        is_more = int(start != starts[-1])
        sequences.append(f"\x1b_G{keys}m={is_more};{text[start : start + _CHUNK_CHARACTERS]}\x1b\\")
    return "".join(sequences)


def iterm2_sequence(png: bytes, columns: int) -> str:
    """Return the escape sequence that shows a PNG in a number of columns."""
    content = base64.standard_b64encode(png).decode()
    return f"\x1b]1337;File=inline=1;size={len(png)};width={columns};preserveAspectRatio=1:{content}\x07"


def image_protocol(environment: Mapping[str, str]) -> _Encode | None:
    """Return the function that encodes images for the terminal, or None if the terminal is not known to show them."""
    term, program = TERM.read(environment), _PROGRAM.read(environment).lower()
    if _TMUX.read(environment) or term.startswith(("tmux", "screen")):
        return None
    if _KITTY.read(environment) or term in {"xterm-kitty", "xterm-ghostty"} or program == "ghostty":
        return kitty_sequences
    return iterm2_sequence if program in {"iterm.app", "wezterm", "vscode"} else None


def show_images(call: Call, result: GenerationResult) -> None:
    """Show a result's images on stderr if --show or COMFY_CLIENT_SHOW is set, or say why that is not possible."""
    if not (call.options.show or SHOW_VARIABLE.read(call.environment)):
        return
    encode = image_protocol(call.environment)
    if not call.screen.err.isatty() or encode is None:
        if call.options.show:
            call.screen.say(f"comfy-client: warning: --show needs stderr to be a terminal that shows images: {NAMES}")
        return
    for image in result.images:
        call.screen.say(Sequences(encode(image.as_png(), _IMAGE_COLUMNS)))
