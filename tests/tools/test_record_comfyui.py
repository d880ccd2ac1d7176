"""tools/record_comfyui.py, run on the simulator, records the files of tests/recordings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from simulators.comfyui import Simulator
from tests.simulators.comfyui.recorded import RECORDINGS, recording
from tools.normal_messages import normal
from tools.record_comfyui import ComfyUI, one_entry_per_line, with_previews, without_previews

pytestmark = pytest.mark.slow
OTHER_CONTENT = {"http", "object_info", "queue_delete_interrupt"}
"""Recordings with facts of the machine, with nodes that the simulator lacks, and with another order of entries."""


def test_the_recorder_makes_the_files_of_tests_recordings(tmp_path: Path) -> None:
    """Recordings of two simulators, one with previews, have the names of all files in tests/recordings.

    The contents are equal too, except those of OTHER_CONTENT.
    """
    with Simulator(step_s=0.3) as plain, Simulator(step_s=0.3, previews=True) as previewing:
        made = dict(without_previews(ComfyUI(plain.url))) | dict(with_previews(ComfyUI(previewing.url)))

    assert set(made) == {path.stem for path in RECORDINGS.glob("*.json")}
    for name, content in made.items():
        (tmp_path / name).write_text(one_entry_per_line(content))
        assert json.loads((tmp_path / name).read_text()) == content
        if name not in OTHER_CONTENT:
            assert normal(content) == normal(recording(name)), name
