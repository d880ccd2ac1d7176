"""Substitutes for ComfyUI and the models, small enough for tests that build images from them."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Iterable
from pathlib import Path

from bench.worker_setup import ROOT
from comfy_core.models.listing import default_list, read_models
from simulators.hugging_face import ModelServer

HUGGING_FACE = "https://huggingface.co"
MAIN = '''\
"""Starts the simulator in place of ComfyUI."""
import sys
from simulators.comfyui.__main__ import main
sys.exit(main())
'''


def comfyui_files() -> dict[str, str]:
    """Return the files of a repository of ComfyUI whose main.py starts the simulator."""
    simulator = ROOT / "simulators" / "comfyui"
    sources = {f"simulators/comfyui/{file.name}": file.read_text() for file in simulator.glob("*.*")}
    snapshot = (ROOT / "snapshot.json").read_text()
    shipped = {"simulators/__init__.py": "", "snapshot.json": snapshot, "custom_nodes/websocket_image_save.py": ""}
    # As with a real ComfyUI, the image lacks some required packages on purpose.
    requirements = "aiohttp>=3.11\ncomfyui-frontend-package==1.48.7\n"
    return {"main.py": MAIN, "requirements.txt": requirements, **shipped, **sources}


def checkout_files(checkout: Path) -> dict[str, bytes]:
    """Return the files of a git checkout that git tracks and that exist, as they are in the working tree."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=checkout, check=True, capture_output=True, text=True)  # noqa: S607 - found on PATH
    names = listed.stdout.rstrip("\0").split("\0")
    return {name: (checkout / name).read_bytes() for name in names if (checkout / name).is_file()}


def serve_models(folder: Path, server: ModelServer) -> None:
    """Serve a small file for each model of models.txt; write a models.txt with these files' hashes into `folder`.

    The URLs are those of the original models.txt.
    """
    lines = []
    for model in read_models(default_list()):
        content = f"instead of {model.path}\n".encode() * 1000
        server.put(model.url.removeprefix(HUGGING_FACE), content)
        lines.append(f"{hashlib.sha256(content).hexdigest()} {len(content)} {model.path} {model.url}")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "models.txt").write_text("\n".join(lines) + "\n")


def write_models(folder: Path, models: Path, server: ModelServer, paths: Iterable[str] = ()) -> None:
    """Write the substitutes for the models into `folder`, all or those in `paths`, with the layout of a volume."""
    for model in read_models(models / "models.txt"):
        if not paths or model.path in paths:
            content = server.files[model.url.removeprefix(HUGGING_FACE)]
            assert isinstance(content, bytes)
            target = folder / model.path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
    folder.parent.chmod(0o755)  # pytest's folders are private to their owner
