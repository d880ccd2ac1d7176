"""The page with the differences, and the places that it names."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.worker_setup import ROOT
from tools.bump_comfyui.changes import ABSENT, Change
from tools.bump_comfyui.readers import MESSAGE_READERS, message_readers, places_of, route_places, sources
from tools.bump_comfyui.table import BODY_LENGTH, Section, page


def test_the_page_has_a_table_for_each_section() -> None:
    """A section with differences has rows and names the readers; the files are counted at the top."""
    change = Change("POST /prompt", "body.error", '"a|b"', ABSENT, ("http",))
    text = page("ComfyUI 1 to 2", [Section("Messages", [(change, ["a.py:1", "b.py:2"])]), Section("Routes", [])])

    assert "- `a.py`: 1\n" in text
    assert '| POST /prompt: `body.error` | "a\\|b" | - | `a.py:1`, `b.py:2` | http |' in text
    assert text.endswith("## Routes\n\nNo difference.\n")


def test_a_change_that_no_code_reads_says_so() -> None:
    """A row without readers has `nothing` in their place."""
    text = page("ComfyUI 1 to 2", [Section("Flags", [(Change("--new", "", ABSENT, "yes"), [])])])

    assert "| --new | - | yes | nothing |" in text


def test_a_long_page_is_cut_for_github() -> None:
    """GitHub limits the text of a pull request, so a longer page is cut at the end of a line, and says so."""
    rows = [(Change(f"--flag-{number}", "", ABSENT, "yes"), ["worker/launch_flags.py:1"]) for number in range(2000)]
    text = page("ComfyUI 1 to 2", [Section("Flags", rows)])

    assert len(text) <= BODY_LENGTH
    assert text.endswith("|\n\n(cut: the complete table is in the work folder)\n")


def test_a_message_is_read_where_its_key_or_its_old_value_is_named() -> None:
    """Of the modules that read a kind of message, those that name the changed key or the old value are listed."""
    code = {
        "comfy_core/comfyui/refusals.py": '\nkind = error["type"]\n',
        "comfy_core/comfyui/server.py": 'if kind == "invalid_prompt":\n',
        "comfy_core/comfyui/events.py": 'kind = frame["type"]\n',
    }
    change = Change("POST /prompt", "body.error.type", '"invalid_prompt"', '"missing_node_type"')

    assert message_readers(change, code) == ["comfy_core/comfyui/refusals.py:2", "comfy_core/comfyui/server.py:1"]


def test_a_status_is_read_by_all_modules_of_its_message() -> None:
    """A status code has no key in the code, so all modules that read the message are listed."""
    change = Change("GET /history/{id}", "status", "200", "404")

    assert message_readers(change, {}) == ["comfy_core/comfyui/responses.py", "comfy_core/comfyui/server.py"]


@pytest.mark.parametrize(
    ("route", "code"),
    [("GET /queue", 'get("/queue")'), ("GET /history/{prompt_id}", 'get(f"/history/{quoted}")')],
)
def test_a_route_is_read_where_its_path_is_named(route: str, code: str) -> None:
    """A path is found with any name of its parameter, and not as the beginning of a longer path."""
    assert route_places(route, {"a.py": code, "b.py": 'get("/queue/x")', "c.py": 'get("/history")'}) == ["a.py:1"]


def test_our_code_is_found() -> None:
    """The modules of MESSAGE_READERS exist, and a node class of the shipped workflows is found in them."""
    ours = sources()

    assert {module for modules in MESSAGE_READERS.values() for module in modules} <= ours.keys()
    assert all((ROOT / path).exists() for path in ours)
    assert any(Path(place).parent == Path("workflows") for place in places_of("FluxGuidance", ours))
