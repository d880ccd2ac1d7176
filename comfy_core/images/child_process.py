"""Runs the functions of `codec` on untrusted images in a child process, with a timeout and cancellation.

Pillow cannot be interrupted, and a hostile file can keep it busy for minutes or crash it. So images are decoded in a
child process, which is killed at the timeout or as soon as `raise_if_stopped` raises an exception. Children are reused,
because starting one takes 0.1 s.

A child is a plain subprocess, not a member of a `multiprocessing`, `concurrent.futures` or `pebble` pool. Such pools
import the caller's main module again, pass on the environment with its secrets, and exchange pickles.
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

from comfy_core.contract import JsonObject
from comfy_core.error_codes import ErrorCode
from comfy_core.errors import JobError
from comfy_core.images.child import read_frame, read_response, write_frame
from comfy_core.images.codec import EncodedImage, invalid_image, png_size, require_size, unconverted
from comfy_core.images.codec import encode_image as encode_here
from comfy_core.images.forms import ImageForm

IMAGE_TIMEOUT_S = 20.0
"""Timeout for one image."""
PROCESSES = 4
"""Maximum number of child processes. Further images wait."""
_TICK_S = 0.05
"""Interval between calls of `raise_if_stopped`."""
_VARIABLES = ("DYLD_LIBRARY_PATH", "LD_LIBRARY_PATH", "SYSTEMROOT")
"""Environment variables that a child's interpreter may need. No others are passed on: they may be secrets."""
_PROGRAM = "import sys; sys.path[:] = sys.argv[1:]; from comfy_core.images.child import main; main()"

_Frame: TypeAlias = tuple[JsonObject, bytes]
StopCheck: TypeAlias = Callable[[], None]
"""Called 20 times a second while an image is being processed. An exception that it raises ends the processing."""


def never_stop() -> None:
    """Do nothing: a `raise_if_stopped` that never ends the processing."""


class ImageProcessError(Exception):
    """The child failed to process an image. The message is a predicate whose subject is the image."""


class NotStartedError(ImageProcessError):
    """No child could be started. The image is not the cause."""


class ImageProcessPool:
    """A pool of child processes, each of which processes one image at a time."""

    def __init__(self, processes: int = PROCESSES, python: str = sys.executable) -> None:
        self._slots = threading.Semaphore(processes)
        self._python = python
        self._idle: list[_Child] = []

    def run(
        self,
        function: str,
        data: bytes,
        arguments: JsonObject,
        raise_if_stopped: StopCheck,
        timeout_s: float = IMAGE_TIMEOUT_S,
    ) -> EncodedImage | None:
        """Run a function of `codec` on `data` and return its result.

        Raises ImageProcessError, the exceptions of `raise_if_stopped`, and the JobError that the function raises.
        """
        raise_if_stopped()
        while not self._slots.acquire(timeout=_TICK_S):
            raise_if_stopped()
        try:
            child = self._take_child()
            try:
                header = {"function": function, "arguments": arguments, "timeout_s": timeout_s}
                response = child.request(header, data, raise_if_stopped, timeout_s)
            except BaseException:
                child.kill()
                raise
            self._idle.append(child)
        finally:
            self._slots.release()
        try:
            return read_response(*response, data)
        except ValueError as error:
            raise ImageProcessError(f"failed ({error})") from None

    def warm(self) -> None:
        """Start a child if none is idle, so that the next image does not wait for its start."""
        if not self._idle:
            self._idle.append(_Child(self._python))

    def close(self) -> None:
        """Kill the idle children."""
        while self._idle:
            self._idle.pop().kill()

    def _take_child(self) -> _Child:
        while self._idle:
            with contextlib.suppress(IndexError):  # another thread took the last one
                child = self._idle.pop()
                if child.is_alive():
                    return child
                child.kill()
        return _Child(self._python)


class _Child:
    """One child process, and the thread that waits for its responses."""

    def __init__(self, python: str) -> None:
        try:
            self._process = subprocess.Popen(  # noqa: S603 - our own program; the image is sent through a pipe
                [python, "-I", "-c", _PROGRAM, *sys.path],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={name: os.environ[name] for name in _VARIABLES if name in os.environ},
            )
        except OSError as error:
            raise NotStartedError(f"got no child process ({error.strerror})") from None
        assert self._process.stdin is not None  # noqa: S101 - for mypy: both are pipes
        assert self._process.stdout is not None  # noqa: S101 - as above
        self._requests, self._responses = self._process.stdin, self._process.stdout
        self._executor = ThreadPoolExecutor(1, "image")
        self._started = self._executor.submit(read_frame, self._responses)

    def is_alive(self) -> bool:
        return self._process.poll() is None

    def request(self, header: JsonObject, data: bytes, raise_if_stopped: StopCheck, timeout_s: float) -> _Frame:
        """Send a request and return the response frame.

        `timeout_s` limits two waits: for the start of the process, and then for the response.
        """
        try:
            _wait_for(self._started, raise_if_stopped, timeout_s)
        except EOFError:
            status = self._process.wait()
            raise NotStartedError(f"got no child process (exit status {status})") from None
        try:
            return _wait_for(self._executor.submit(self._exchange, header, data), raise_if_stopped, timeout_s)
        except (OSError, EOFError, ValueError, RecursionError):
            raise ImageProcessError("crashed the decoder") from None

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        self._executor.shutdown()
        for pipe in (self._requests, self._responses):
            with contextlib.suppress(OSError):  # the pipe may contain a request that was not read
                pipe.close()

    def _exchange(self, header: JsonObject, data: bytes) -> _Frame:
        write_frame(self._requests, header, data)
        return read_frame(self._responses)


def _wait_for(future: Future[_Frame], raise_if_stopped: StopCheck, timeout_s: float) -> _Frame:
    deadline = time.monotonic() + timeout_s
    while not wait([future], _TICK_S).done:
        raise_if_stopped()
        if time.monotonic() > deadline:
            raise ImageProcessError(f"takes longer than {timeout_s:g} s")
    return future.result()


def check_image(
    data: bytes,
    field_path: str,
    *,
    form: ImageForm,
    raise_if_stopped: StopCheck = never_stop,
    timeout_s: float = IMAGE_TIMEOUT_S,
) -> EncodedImage:
    """Return the image in `data` in a form that LoadImage accepts: see codec.check_image."""
    require_size(data, field_path)
    arguments = {"field_path": field_path, "form": form}
    return _require_image(_run("check_image", data, arguments, field_path, raise_if_stopped, timeout_s))


def with_alpha_of(image: bytes, mask: bytes) -> EncodedImage:
    """Return an image with the alpha channel of a mask: see codec.with_alpha_of."""
    require_size(image, "image")
    require_size(mask, "mask")
    arguments = {"mask_start": len(image)}
    return _require_image(_run("with_alpha_of", image + mask, arguments, "image", never_stop, IMAGE_TIMEOUT_S))


def converted(data: bytes, output_format: str, width: int = 0, quality: int = 90) -> EncodedImage:
    """Return an image as png, webp or jpeg: see codec.converted."""
    arguments = {"output_format": output_format, "width": width, "quality": quality}
    return _require_image(_run("converted", data, arguments, "image", never_stop, IMAGE_TIMEOUT_S))


def identify(data: bytes, raise_if_stopped: StopCheck = never_stop) -> EncodedImage | None:
    """Return the image whose header is at the start of `data`, or None if there is none or the child process fails."""
    try:
        return _shared_pool(os.getpid()).run("identify", data, {}, raise_if_stopped)
    except ImageProcessError:
        return None


def encode_image(
    data: bytes,
    output_format: str,
    quality: int,
    text_chunks: Mapping[str, str],
    raise_if_stopped: StopCheck = never_stop,
    timeout_s: float = IMAGE_TIMEOUT_S,
) -> EncodedImage:
    """Return ComfyUI's image in the format `output_format`: see codec.encode_image.

    A PNG that stays a PNG is not decoded, so no child is needed. If the child fails, or no time is left, the image is
    returned in its own format, with a warning.
    """
    if output_format == "png" and png_size(data) is not None:
        return encode_here(data, output_format, quality, text_chunks)
    if timeout_s <= 0:
        return unconverted(data, text_chunks, f"no time was left to encode it as {output_format}")
    parameters = {key: value for key, value in text_chunks.items() if key == "parameters"}
    arguments = {"output_format": output_format, "quality": quality, "text_chunks": parameters}
    try:
        return _require_image(
            _shared_pool(os.getpid()).run("encode_image", data, arguments, raise_if_stopped, timeout_s)
        )
    except ImageProcessError as error:
        return unconverted(data, text_chunks, f"encoding it as {output_format} failed, since it {error}")


def warm() -> None:
    """Start a child before the first image needs one."""
    _shared_pool(os.getpid()).warm()


@functools.cache
def _shared_pool(_pid: int) -> ImageProcessPool:
    """Return the pool of this process. A forked process gets another pool, because pipes must not be shared."""
    pool = ImageProcessPool()
    atexit.register(pool.close)
    return pool


def _run(
    function: str, data: bytes, arguments: JsonObject, field_path: str, raise_if_stopped: StopCheck, timeout_s: float
) -> EncodedImage | None:
    try:
        return _shared_pool(os.getpid()).run(function, data, arguments, raise_if_stopped, timeout_s)
    except NotStartedError as error:
        raise JobError.because(ErrorCode.INTERNAL, f"{field_path} was not decoded: it {error}") from None
    except ImageProcessError as error:
        raise invalid_image(field_path, f"cannot be decoded: it {error}") from None


def _require_image(image: EncodedImage | None) -> EncodedImage:
    if image is None:
        raise ValueError("no image")
    return image
