"""The functions of images.py for files that strangers sent: in a child process, with a time limit and a cancel.

Pillow cannot be interrupted, and a hostile file can keep it busy for minutes or crash it. So a file is decoded in a
child process that is killed at its time limit, or as soon as `check` raises. Children are kept for the next picture,
since starting one takes 0.1 s.

A child is a plain subprocess and no member of a pool of `multiprocessing`, `concurrent.futures` or `pebble`: those
import the caller's main module again, hand it the environment with its secrets, and exchange pickles.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TypeAlias

from comfy_core.contract import ErrorCode, JsonObject
from comfy_core.errors import JobError
from comfy_core.images.child import picture_of, read_frame, write_frame
from comfy_core.images.codec import Picture, invalid_image, kept_as_it_is, png_size, require_size
from comfy_core.images.codec import encode_picture as encode_here

TIMEOUT_S = 20.0
"""For one picture."""
PROCESSES = 4
"""Children at once, in this process. Further pictures wait for their turn."""
_TICK_S = 0.05
"""How long one wait lasts before `check` is called again."""
_VARIABLES = ("DYLD_LIBRARY_PATH", "LD_LIBRARY_PATH", "SYSTEMROOT")
"""What a child's interpreter may need to start. It gets nothing else of the environment, so no secret."""
_PROGRAM = "import sys; sys.path[:] = sys.argv[1:]; from comfy_core.images.child import main; main()"

_Frame: TypeAlias = tuple[JsonObject, bytes]
Check: TypeAlias = Callable[[], None]
"""Called 20 times a second while a picture is worked on; what it raises ends the work."""


def go_on() -> None:
    """End nothing."""


class PictureError(Exception):
    """The child did not finish with a picture. The message says why; its subject is the picture."""


class NotStartedError(PictureError):
    """No child could be started; the picture is not to blame."""


class PictureProcesses:
    """Child processes that work on pictures, each on one at a time."""

    def __init__(self, processes: int = PROCESSES) -> None:
        self._turns = threading.Semaphore(processes)
        self._idle: list[_Child] = []

    def run(
        self, function: str, data: bytes, arguments: JsonObject, check: Check, timeout_s: float = TIMEOUT_S
    ) -> Picture | None:
        """Return what the function of images.py returns for `data`.

        Raises PictureError, what `check` raises, and the function's own JobError.
        """
        check()
        while not self._turns.acquire(timeout=_TICK_S):
            check()
        try:
            child = self._taken()
            try:
                header = {"function": function, "arguments": arguments, "timeout_s": timeout_s}
                answer = child.ask(header, data, check, timeout_s)
            except BaseException:
                child.kill()
                raise
            self._idle.append(child)
        finally:
            self._turns.release()
        try:
            return picture_of(*answer, data)
        except ValueError as error:
            raise PictureError(f"failed ({error})") from None

    def warm(self) -> None:
        """Start a child if there is none, so that the next picture need not wait for its start."""
        if not self._idle:
            self._idle.append(_Child())

    def close(self) -> None:
        """End the children that wait for a picture."""
        while self._idle:
            self._idle.pop().kill()

    def _taken(self) -> _Child:
        while self._idle:
            with contextlib.suppress(IndexError):  # another thread took the last one
                child = self._idle.pop()
                if child.is_alive():
                    return child
                child.kill()
        return _Child()


class _Child:
    """One child process, and the thread that waits for its answers."""

    def __init__(self) -> None:
        try:
            self._process = subprocess.Popen(  # noqa: S603 - our own program; the picture goes through a pipe
                [sys.executable, "-I", "-c", _PROGRAM, *sys.path],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={name: os.environ[name] for name in _VARIABLES if name in os.environ},
            )
        except OSError as error:
            raise NotStartedError(f"had no process ({error.strerror})") from None
        assert self._process.stdin is not None  # noqa: S101 - for mypy: both are pipes
        assert self._process.stdout is not None  # noqa: S101 - as above
        self._requests, self._answers = self._process.stdin, self._process.stdout
        self._thread = ThreadPoolExecutor(1, "picture")
        self._started = self._thread.submit(read_frame, self._answers)

    def is_alive(self) -> bool:
        return self._process.poll() is None

    def ask(self, header: JsonObject, data: bytes, check: Check, timeout_s: float) -> _Frame:
        """Return the frame that answers a request. The time that the process takes to start does not count."""
        try:
            _awaited(self._started, check, timeout_s)
        except EOFError:
            status = self._process.wait()
            raise NotStartedError(f"had no process (status {status})") from None
        try:
            return _awaited(self._thread.submit(self._exchange, header, data), check, timeout_s)
        except (OSError, EOFError, ValueError, RecursionError):
            raise PictureError("crashed the decoder") from None

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        self._thread.shutdown()
        for pipe in (self._requests, self._answers):
            with contextlib.suppress(OSError):  # a request that was not read
                pipe.close()

    def _exchange(self, header: JsonObject, data: bytes) -> _Frame:
        write_frame(self._requests, header, data)
        return read_frame(self._answers)


def _awaited(future: Future[_Frame], check: Check, timeout_s: float) -> _Frame:
    deadline = time.monotonic() + timeout_s
    while not wait([future], _TICK_S).done:
        check()
        if time.monotonic() > deadline:
            raise PictureError(f"takes longer than {timeout_s:g} s")
    return future.result()


def check_picture(
    data: bytes, path: str, *, flatten: bool, check: Check = go_on, timeout_s: float = TIMEOUT_S
) -> Picture:
    """Return the picture in `data`, fit for a LoadImage node: see images.check_picture."""
    require_size(data, path)
    arguments = {"path": path, "flatten": flatten}
    return _some(_run("check_picture", data, arguments, path, check, timeout_s))


def converted(data: bytes, output_format: str, width: int = 0, quality: int = 90) -> Picture:
    """Return a picture as png, webp or jpeg: see images.converted."""
    arguments = {"output_format": output_format, "width": width, "quality": quality}
    return _some(_run("converted", data, arguments, "image", go_on, TIMEOUT_S))


def identify(data: bytes, check: Check = go_on) -> Picture | None:
    """Return the picture that `data` begins, or None if it is none or cannot be read in time."""
    try:
        return _processes(os.getpid()).run("identify", data, {}, check)
    except PictureError:
        return None


def encode_picture(
    data: bytes,
    output_format: str,
    quality: int,
    text: Mapping[str, str],
    check: Check = go_on,
    timeout_s: float = TIMEOUT_S,
) -> Picture:
    """Return ComfyUI's picture in another format: see images.encode_picture.

    A PNG that stays PNG is not decoded, so no child is needed.
    """
    if output_format == "png" and png_size(data) is not None:
        return encode_here(data, output_format, quality, text)
    if timeout_s <= 0:
        return kept_as_it_is(data, text, f"no time was left to encode it as {output_format}")
    used = {key: value for key, value in text.items() if key == "parameters"}
    arguments = {"output_format": output_format, "quality": quality, "text": used}
    try:
        return _some(_processes(os.getpid()).run("encode_picture", data, arguments, check, timeout_s))
    except PictureError as error:
        return kept_as_it_is(data, text, f"encoding it as {output_format} failed, since it {error}")


def warm() -> None:
    """Start a child before the first picture needs one."""
    _processes(os.getpid()).warm()


@functools.cache
def _processes(_pid: int) -> PictureProcesses:
    """Return the children of this process. A fork of it must not share their pipes, and has its own."""
    processes = PictureProcesses()
    atexit.register(processes.close)
    return processes


def _run(
    function: str, data: bytes, arguments: JsonObject, path: str, check: Check, timeout_s: float
) -> Picture | None:
    try:
        return _processes(os.getpid()).run(function, data, arguments, check, timeout_s)
    except NotStartedError as error:
        raise JobError.because(ErrorCode.INTERNAL, f"{path} was not decoded: it {error}.") from None
    except PictureError as error:
        raise invalid_image(path, f"cannot be decoded: it {error}. Save it again as PNG or JPEG") from None


def _some(picture: Picture | None) -> Picture:
    if picture is None:
        raise ValueError("no picture")
    return picture
