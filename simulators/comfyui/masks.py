"""The mask editor's upload: a picture that is there gets the alpha of the one that is sent.

Facts of ComfyUI 0.3.64 (server.py, upload_mask):

- `original_ref` is the JSON of `{"filename", "subfolder", "type"}`; the type is `output` where none is given.
- Where it leads outside or to no file, nothing is written, and the answer is 200 with the new name all the same.
- The picture keeps its text chunks, and is written as PNG at compression level 4.
"""

from __future__ import annotations

import io
import json
from pathlib import Path

from PIL import Image, PngImagePlugin

from simulators.comfyui.files import Folders, OutsideFolderError, inside

COMPRESSION = 4


def masked(folders: Folders, original_ref: str, mask: bytes) -> bytes | None:
    """Return the picture with the alpha of `mask`, or None where there is no such picture."""
    file = _original(folders, original_ref)
    if file is None:
        return None
    with Image.open(file) as original, Image.open(io.BytesIO(mask)) as drawn:
        metadata = PngImagePlugin.PngInfo()
        for key, text in getattr(original, "text", {}).items():
            metadata.add_text(key, text)
        picture = original.convert("RGBA")
        picture.putalpha(drawn.convert("RGBA").getchannel("A"))
    written = io.BytesIO()
    picture.save(written, "PNG", compress_level=COMPRESSION, pnginfo=metadata)
    return written.getvalue()


def _original(folders: Folders, original_ref: str) -> Path | None:
    reference = json.loads(original_ref)
    name, folder = folders.annotated(reference["filename"])
    folder = folder or folders.of_type(reference.get("type", "output"))
    if not name or name.startswith("/") or ".." in name or folder is None:
        return None
    try:
        file = inside(folder, reference.get("subfolder", ""), name)
    except OutsideFolderError:
        return None
    return file if file.is_file() else None
