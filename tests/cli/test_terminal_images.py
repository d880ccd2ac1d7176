"""`--show`: the escape sequences that show images in a terminal, decoded as a terminal would."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path

import pytest
from PIL import Image, ImageChops

from comfy_client.cli.terminal_images import NAMES, image_protocol, iterm2_sequence, kitty_sequences
from simulators.runpod.queue_api import RunPodPlatform
from tests.cli.conftest import Shell
from tests.cli.terminals import Terminal

KITTY, ITERM2 = {"KITTY_WINDOW_ID": "1"}, {"TERM_PROGRAM": "iTerm.app"}


def shown_by_kitty(output: str) -> bytes:
    """Return the PNG that kitty's sequences contain. The last chunk, and only that, says that no more follows."""
    chunks = re.findall("\x1b_G([^;]*);([^\x1b]*)\x1b\\\\", output)
    keys = [dict(key.split("=") for key in text.split(",")) for text, _ in chunks]
    assert keys[0].keys() == {"a", "f", "q", "c", "m"}
    assert (keys[0]["a"], keys[0]["f"]) == ("T", "100")
    assert [each["m"] for each in keys] == ["1"] * (len(chunks) - 1) + ["0"]
    assert all(len(chunk) <= 4096 and len(chunk) % 4 == 0 for _, chunk in chunks)
    return base64.standard_b64decode("".join(chunk for _, chunk in chunks))


def shown_by_iterm2(output: str) -> bytes:
    """Return the file that iTerm2's sequence contains."""
    [(size, content)] = re.findall("\x1b\\]1337;File=inline=1;size=(\\d+);[^:]*:([^\x07]*)\x07", output)
    data = base64.standard_b64decode(content)
    assert len(data) == int(size)
    return data


def noise(side: int) -> bytes:
    """Return a PNG that cannot be compressed much."""
    stream = io.BytesIO()
    Image.effect_noise((side, side), 100).save(stream, "png")
    return stream.getvalue()


@pytest.mark.parametrize("side", [1, 8, 55, 56, 300])
def test_the_sequences_contain_the_image(side: int) -> None:
    """The terminal gets the file unchanged, whatever its size."""
    png = noise(side)

    assert shown_by_kitty(kitty_sequences(png, 40)) == png
    assert shown_by_iterm2(iterm2_sequence(png, 40)) == png


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        (KITTY, kitty_sequences),
        ({"TERM": "xterm-kitty"}, kitty_sequences),
        ({"TERM": "xterm-ghostty", "TERM_PROGRAM": "ghostty"}, kitty_sequences),
        (ITERM2, iterm2_sequence),
        ({"TERM_PROGRAM": "WezTerm"}, iterm2_sequence),
        ({"TERM_PROGRAM": "vscode"}, iterm2_sequence),
        ({"TERM_PROGRAM": "Apple_Terminal"}, None),
        ({"TERM": "xterm-256color"}, None),
        ({}, None),
        ({**KITTY, "TMUX": "/tmp/tmux-0/default,1,0"}, None),  # noqa: S108 - no file is written
        ({**ITERM2, "TERM": "screen-256color"}, None),
    ],
)
def test_the_terminal_is_recognized_by_its_variables(environment: dict[str, str], expected: object) -> None:
    """Tmux and screen inherit the variables of the terminal that they run in, but do not show its images."""
    assert image_protocol(environment) is expected


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variables", "decode"),
    [(KITTY, shown_by_kitty), (ITERM2, shown_by_iterm2)],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_the_saved_image_is_shown(
    platform: RunPodPlatform, tmp_path: Path, variables: dict[str, str], decode: object
) -> None:
    """The pixels on the terminal are those of the file, and stdout only has the usual line."""
    environment = {**platform.client_env(), **variables}
    terminal = Terminal(["txt2img", "a knight", "-o", "x.png", "--show"], environment, tmp_path)
    status, out = terminal.wait()
    assert callable(decode)

    assert status == 0
    assert out.startswith("x.png")
    with Image.open(io.BytesIO(decode(terminal.screen))) as shown, Image.open(tmp_path / "x.png") as saved:
        assert shown.format == "PNG"
        assert ImageChops.difference(shown.convert("RGB"), saved.convert("RGB")).getbbox() is None


@pytest.mark.slow
def test_another_terminal_gets_a_sentence(platform: RunPodPlatform, tmp_path: Path) -> None:
    """The image is saved, and the warning names the terminals that show images."""
    terminal = Terminal(["txt2img", "a knight", "-o", "x.png", "--show"], platform.client_env(), tmp_path)

    assert terminal.wait()[0] == 0
    assert NAMES in terminal.text
    assert (tmp_path / "x.png").is_file()


def test_without_a_terminal_there_is_a_sentence(shell: Shell) -> None:
    """--show in a pipe is a warning; COMFY_CLIENT_SHOW, which may be set for every command, is not."""
    assert "--show needs stderr to be a terminal" in shell("txt2img", "x", "--show", **KITTY).err
    assert "--show" not in shell("txt2img", "x", COMFY_CLIENT_SHOW="1", **KITTY).err
