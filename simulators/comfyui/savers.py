"""What the nodes do that are no part of the recordings: a text, and savers that behave unlike SaveImage.

- PrimitiveString gives its text; it can be linked to a `filename_prefix`.
- VAESave writes a file below the output folder and reports none.
- "Image Save" (of the pack WAS): `filename_prefix` is a name. A slash in it is a folder that is not created, and the
  failure to write is swallowed.
- "Image Saver" (of the pack by alexopus): has `filename` and `path` in place of `filename_prefix`, and overwrites.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path

from simulators.comfyui.files import place_to_save
from simulators.comfyui.image_nodes import SAVED_COMPRESSION, png
from simulators.comfyui.values import Behaviour, Given, NodeContext, Result


def _save_silently(bench: NodeContext, given: Given) -> Result:
    place = place_to_save(bench.folders.output, given["filename_prefix"], (0, 0))
    (place.folder / place.file_name(0)).with_suffix(".safetensors").write_bytes(b"weights")
    return Result()


def _save_under_name(bench: NodeContext, given: Given) -> Result:
    shown = []
    for number, image in enumerate(given["images"].frames, 1):
        path = bench.folders.output / given["output_path"] / f"{given['filename_prefix']}_{number:04}.png"
        with contextlib.suppress(OSError):
            path.write_bytes(png(image, SAVED_COMPRESSION))
            shown.append(_shown(bench, path))
    return Result(shown={"images": shown})


def _save_at_path(bench: NodeContext, given: Given) -> Result:
    path = bench.folders.output / given["path"] / f"{given['filename']}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png(given["images"].frames[0], SAVED_COMPRESSION))
    return Result(shown={"images": [_shown(bench, path)]})


def _shown(bench: NodeContext, path: Path) -> dict[str, str]:
    subfolder = path.parent.relative_to(bench.folders.output)
    return {"filename": path.name, "subfolder": "" if subfolder == Path() else str(subfolder), "type": "output"}


SAVERS: Mapping[str, Behaviour] = {
    "PrimitiveString": lambda _, given: Result((given["value"],)),
    "VAESave": _save_silently,
    "Image Save": _save_under_name,
    "Image Saver": _save_at_path,
}
