"""What the image is built from here: a ComfyUI and models that are small, ours, and served as the real ones are."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType

from tests.fakes.model_server import ModelServer
from tests.stage import ROOT, free_port
from tests.waiting import until
from worker.models.listing import default_list, read_models

HUGGING_FACE = "https://huggingface.co"
MAIN = '''\
"""A ComfyUI whose engine is the simulator."""
import sys
from comfy_client.simulator.__main__ import main
sys.exit(main())
'''


def git(folder: Path, *arguments: str) -> str:
    """Return what git prints in `folder`."""
    identity = ("-c", "user.name=Test", "-c", "user.email=test@example.org")
    command = ["git", "-C", str(folder), *identity, *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def make_repository(folder: Path, files: Mapping[str, str | Path]) -> str:
    """Make a git repository of texts and copies of files and folders; return its commit, to be fetched by hash."""
    for name, content in files.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, str):
            target.write_text(content)
        else:
            shutil.copytree(content, target, ignore=shutil.ignore_patterns("__pycache__"))
    git(folder, "init", "--quiet")
    git(folder, "config", "uploadpack.allowAnySHA1InWant", "true")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "all of it")
    return git(folder, "rev-parse", "HEAD")


def make_comfyui(folder: Path) -> str:
    """Make a repository of a ComfyUI that is the simulator; return its commit."""
    files: dict[str, str | Path] = {
        "main.py": MAIN,
        "comfy_client/__init__.py": "",
        "comfy_client/simulator": ROOT / "comfy_client" / "simulator",
        "custom_nodes/websocket_image_save.py": "",
    }
    return make_repository(folder, files)


class GitServer:
    """Serves the repositories of a folder at git://127.0.0.1."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._port = free_port()
        self._daemon: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> GitServer:  # noqa: PYI034 - Self is newer than Python 3.10
        options = ["--listen=127.0.0.1", f"--port={self._port}", f"--base-path={self._folder}", "--export-all"]
        self._daemon = subprocess.Popen(["git", "daemon", "--reuseaddr", *options], stderr=subprocess.DEVNULL)  # noqa: S607
        assert until(self._answers, 10)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._daemon is not None
        self._daemon.terminate()
        self._daemon.wait(10)

    def address(self, name: str) -> str:
        """Return the address of a repository."""
        return f"git://127.0.0.1:{self._port}/{name}"

    def _answers(self) -> bool:
        asked = subprocess.run(["git", "ls-remote", self.address("comfyui")], check=False, capture_output=True)  # noqa: S607
        return asked.returncode == 0


def make_models(folder: Path, server: ModelServer) -> None:
    """Serve a small file for each model of models.txt, and write a models.txt of the same paths and addresses."""
    lines = []
    for model in read_models(default_list()):
        content = f"stands for {model.path}\n".encode() * 1000
        server.put(model.url.removeprefix(HUGGING_FACE), content)
        lines.append(f"{hashlib.sha256(content).hexdigest()} {len(content)} {model.path} {model.url}")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "models.txt").write_text("\n".join(lines) + "\n")


def fill(folder: Path, models: Path, server: ModelServer, paths: Iterable[str] = ()) -> None:
    """Lay the models of a list into a folder as a volume has them: all, or those of `paths`."""
    for model in read_models(models / "models.txt"):
        if not paths or model.path in paths:
            content = server.content(model.url.removeprefix(HUGGING_FACE))
            assert isinstance(content, bytes)
            target = folder / model.path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
