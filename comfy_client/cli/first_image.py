"""Generates the test image of `deploy` and `init`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from comfy_client.cli.flags import UsageError
from comfy_client.cli.output import OutputTarget, prepare_output, save_result
from comfy_client.cli.results import cost_line
from comfy_client.cli.screen import Screen
from comfy_client.client import Client

PROMPT = "a pixel art knight"


def prepare_first_image(text: str, screen: Screen) -> OutputTarget:
    """Return where the test image is saved. Raises UsageError for stdout, which has the command's own result."""
    output = prepare_output(text, screen)
    if output.is_stdout:
        raise UsageError("-o - is not possible: stdout is used for the command's own result. Nothing was changed")
    return replace(output, has_force=False)


def generate_first_image(
    client: Client, output: OutputTarget, screen: Screen, report: Callable[[str], None], wait_timeout_s: float
) -> Path:
    """Generate a test image, save it and return its path. `report` gets lines for the user. Ctrl-C cancels the job."""
    report(f"generating a test image: {PROMPT}")
    with screen.progress() as progress:
        result = client.run(
            "txt2img",
            prompt=PROMPT,
            output_format=output.format,
            wait_timeout_s=wait_timeout_s,
            observer=progress.show,
        )
    saved = save_result(output, result, screen)
    client.note_files(result.job_id, saved.paths)
    for line in (*saved.notes, saved.problem):
        if line:
            report(f"warning: {line}")
    path = saved.paths[0]
    took = f", generated in {result.execution_s:.1f} s" if result.execution_s is not None else ""
    cost = f", {line}" if (line := cost_line(result)) else ""
    report(f"{path}  {result.image.width} x {result.image.height}  seed {result.image.seed}{took}{cost}")
    return path
