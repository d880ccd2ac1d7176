"""tools/record_comfyui.py, run on the simulator, records the files of tests/recordings."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest

from simulators.comfyui import Simulator
from tests.simulators.comfyui.recorded import RECORDINGS, recording
from tools.normal_messages import normal
from tools.record_comfyui import (
    WITH_PREVIEWS,
    WITHOUT_PREVIEWS,
    Recording,
    record,
    record_upload,
    run,
    write_recordings,
)
from tools.recorded_graphs import TXT2IMG
from tools.recording_client import ComfyUI

pytestmark = pytest.mark.slow
OTHER_CONTENT = {"http", "object_info", "queue_delete_interrupt", "cancel_jobs"}
"""Recordings with facts of the machine, with nodes that the simulator lacks, and with another order of entries."""


def test_the_recorder_makes_the_files_of_tests_recordings(tmp_path: Path) -> None:
    """Recordings of two simulators, one with previews, have the names of all files in the pinned version's folder.

    The contents are equal too, except those of OTHER_CONTENT.
    """
    with Simulator(step_s=0.3) as simulator, ComfyUI(simulator.url) as comfyui:
        assert write_recordings(comfyui, WITHOUT_PREVIEWS, tmp_path) == []
    with Simulator(step_s=0.3, previews=True) as simulator, ComfyUI(simulator.url) as comfyui:
        assert write_recordings(comfyui, WITH_PREVIEWS, tmp_path) == []

    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in RECORDINGS.iterdir()}
    for path in tmp_path.iterdir():
        if path.stem not in OTHER_CONTENT:
            assert normal(json.loads(path.read_text())) == normal(recording(path.stem)), path.stem


def test_a_recording_that_cannot_be_made_is_reported_and_the_next_one_is_made(tmp_path: Path) -> None:
    """The problem names the recording and the messages that did not arrive. The other recordings are written."""
    with Simulator() as simulator, ComfyUI(simulator.url) as comfyui:
        simulator.faults.drop_socket(at_step=1)
        made: dict[str, Recording] = {"txt2img": partial(run, graph=TXT2IMG), "upload_image": record_upload}
        [problem] = write_recordings(comfyui, made, tmp_path)

    assert problem == (
        "txt2img.json: no `execution_error` or `execution_interrupted` or `executing` with {'node': None} arrived "
        "(ComfyUI closed the websocket); the last message was `progress`"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["upload_image.json"]


def test_a_comfyui_that_has_run_prompts_is_not_recorded(tmp_path: Path) -> None:
    """Nothing is written if the history is not empty, because the recordings depend on ComfyUI's cache."""
    with Simulator() as simulator, ComfyUI(simulator.url) as comfyui:
        run(comfyui, TXT2IMG)

        assert record(simulator.url, tmp_path) == ["this ComfyUI has run prompts. Start it again, with empty folders"]
    assert not list(tmp_path.iterdir())
