"""The version of ComfyUI that the simulator reports."""

from __future__ import annotations

import json
from pathlib import Path

SIMULATORS = Path(__file__).resolve().parents[1]


def pinned_version() -> str:
    """Return the version in snapshot.json.

    The file is in `simulators/` in a wheel or an image, and at the root in a checkout.
    """
    packaged, of_checkout = SIMULATORS / "snapshot.json", SIMULATORS.parent / "snapshot.json"
    content = json.loads((packaged if packaged.exists() else of_checkout).read_text())
    return str(content["comfyui_version"])
