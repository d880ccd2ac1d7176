"""A server of git repositories: it runs `git daemon` for each connection, so that tests can break connections."""

from __future__ import annotations

import os
import socket
import socketserver
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from simulators.http_server import InThread

_ENVIRONMENT = {
    "GIT_AUTHOR_NAME": "A. Tester",
    "GIT_AUTHOR_EMAIL": "tester@example.org",
    "GIT_COMMITTER_NAME": "A. Tester",
    "GIT_COMMITTER_EMAIL": "tester@example.org",
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_ALLOW_PROTOCOL": "file:git",
}


class GitServer:
    """Serves the repositories that `put` creates in `folder`. A context manager."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.connections = 0
        """Number of connections so far."""
        self._to_drop = 0
        self._hangs = False
        self._server = _GitServer(self)

    def __enter__(self) -> Self:
        self._server.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.__exit__()

    def url(self, name: str) -> str:
        """Return a repository's URL."""
        return f"git://127.0.0.1:{self._server.server_address[1]}/{name}"

    def put(
        self, name: str, *commits: Mapping[str, str | bytes], submodule: str = "", submodule_url: str = ""
    ) -> list[str]:
        """Create a repository with one commit for each mapping of files; return the commits' hashes.

        `submodule` names another repository, which becomes the folder `part`; `submodule_url` is its URL in
        .gitmodules.
        """
        folder = self.folder / name
        folder.mkdir(parents=True)
        _git(folder, "init", "--quiet", "--initial-branch=main")
        hashes: list[str] = []
        for files in commits:
            for file, content in files.items():
                (folder / file).parent.mkdir(parents=True, exist_ok=True)
                (folder / file).write_bytes(content.encode() if isinstance(content, str) else content)
            if submodule and not hashes:
                _git(folder, "submodule", "--quiet", "add", self.url(submodule), "part")
                if submodule_url:
                    _git(folder, "config", "--file", ".gitmodules", "submodule.part.url", submodule_url)
            _git(folder, "add", "--all", "--force")
            _git(folder, "commit", "--quiet", "--allow-empty", "--message", "change")
            hashes.append(_git(folder, "rev-parse", "HEAD"))
        return hashes

    def tag(self, name: str) -> str:
        """Create the annotated tag v1 of a repository's last commit; return the hash of the tag, not of the commit."""
        _git(self.folder / name, "tag", "--annotate", "v1", "--message", "v1")
        return _git(self.folder / name, "rev-parse", "v1")

    # Faults

    def forget(self, name: str, file: str) -> None:
        """Delete the content of a file of a repository's last commit, which then cannot be fetched any more."""
        folder = self.folder / name
        blob = _git(folder, "rev-parse", f"HEAD:{file}")
        (folder / ".git" / "objects" / blob[:2] / blob[2:]).unlink()

    def drop(self, count: int) -> None:
        """Close the next `count` connections without a response."""
        self._to_drop = count

    def hang(self) -> None:
        """Accept connections from now on, and never respond."""
        self._hangs = True

    # Called by the request handler

    def serve(self, connection: socket.socket) -> None:
        """Serve one connection."""
        self.connections += 1
        if self._hangs:
            connection.recv(1)
            while connection.recv(4096):
                pass
        elif self._to_drop:
            self._to_drop -= 1
        else:
            subprocess.run(
                ["git", "daemon", "--inetd", "--export-all", f"--base-path={self.folder}"],  # noqa: S607 - found on PATH
                stdin=connection.fileno(),
                stdout=connection.fileno(),
                stderr=subprocess.DEVNULL,
                check=False,
            )


class _GitServer(InThread, socketserver.ThreadingTCPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, git: GitServer) -> None:
        super().__init__(("127.0.0.1", 0), _Connection)
        self.git = git


class _Connection(socketserver.BaseRequestHandler):
    server: _GitServer

    def handle(self) -> None:
        self.server.git.serve(self.request)


def _git(folder: Path, *arguments: str) -> str:
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder), **_ENVIRONMENT}
    ended = subprocess.run(
        ["git", *arguments],  # noqa: S607 - found on PATH
        cwd=folder,
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    )
    return ended.stdout.strip()
