"""The child process of `child_process`: runs one function of `codec` for each request, until stdin ends.

A frame consists of the length of its header (4 bytes), the length of its content (8 bytes), the header as JSON, and the
content. No pickles are exchanged: a decoder that is exploited by a hostile file must not run code in the parent.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import struct
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from comfy_core.contract import ErrorReport, JsonObject
from comfy_core.errors import JobError
from comfy_core.images.codec import EncodedImage, check_image, converted, encode_image, identify, with_alpha_of

MEMORY_BYTES = 3 * 1024**3
"""Limit of the process's address space. Flattening and encoding 64 megapixels takes 1.6 GB."""
MAX_CONTENT_BYTES = 3 * 1024**3
"""Maximum size of a frame's content."""
_FRAME_LENGTHS = struct.Struct(">IQ")
_MAX_HEADER_BYTES = 16 * 1024 * 1024
_PARENT_POLL_S = 1.0

_FUNCTIONS = {each.__name__: each for each in (check_image, converted, encode_image, identify, with_alpha_of)}


def write_frame(stream: IO[bytes], header: JsonObject, content: bytes = b"") -> None:
    """Write one frame."""
    head = json.dumps(header).encode()
    stream.write(_FRAME_LENGTHS.pack(len(head), len(content)))
    stream.write(head)
    stream.write(content)
    stream.flush()


def read_frame(stream: IO[bytes], max_content_bytes: int = MAX_CONTENT_BYTES) -> tuple[JsonObject, bytes]:
    """Return the next frame. Raises EOFError if the stream has ended, ValueError if the frame is invalid."""
    head_length, content_length = _FRAME_LENGTHS.unpack(_read_exactly(stream, _FRAME_LENGTHS.size))
    if head_length > _MAX_HEADER_BYTES or content_length > max_content_bytes:
        raise ValueError("a frame is too long")
    header = json.loads(_read_exactly(stream, head_length))
    if not isinstance(header, dict):
        raise ValueError("a frame's header is not an object")  # noqa: TRY004 - an invalid frame, as above
    return header, _read_exactly(stream, content_length)


def _read_exactly(stream: IO[bytes], length: int) -> bytes:
    data = stream.read(length)
    if len(data) != length:
        raise EOFError
    return data


def respond(header: JsonObject, content: bytes) -> tuple[JsonObject, bytes]:
    """Return the response to one request: an image, nothing (if the function returned None), or an error."""
    try:
        image: EncodedImage | None = _FUNCTIONS[header["function"]](content, **header["arguments"])
    except JobError as error:
        return {"report": error.report.to_json()}, b""
    except Exception as error:  # noqa: BLE001 - the parent turns it into an error message
        return {"failed": type(error).__name__}, b""
    if image is None:
        return {}, b""
    is_same = image.data is content
    facts = {name: value for name, value in vars(image).items() if name != "data"}
    return {"image": facts, "is_same": is_same}, b"" if is_same else image.data


def read_response(header: JsonObject, content: bytes, sent: bytes) -> EncodedImage | None:
    """Return the image in a response to a request with the content `sent`, or None if the response has no image.

    Raises the JobError of the function, or ValueError if the function raised another exception or the image's
    description is invalid.
    """
    match header:
        case {"report": str(report)}:
            raise JobError.of(ErrorReport.from_json(report))
        case {"failed": failed}:
            raise ValueError(str(failed)[:80])
        case {"image": dict(facts)}:
            return _parse_image(sent if header.get("is_same") else content, facts)
    return None


def _parse_image(data: bytes, facts: JsonObject) -> EncodedImage:
    match facts:
        case {"width": int(width), "height": int(height), "mime_type": str(mime_type), "warning": str(warning)}:
            is_animated, is_complete = bool(facts.get("is_animated")), bool(facts.get("is_complete"))
            return EncodedImage(data, width, height, mime_type, is_animated, is_complete, warning[:300])
    raise ValueError("invalid description of an image")


def main() -> None:
    """Process requests from stdin and write responses to stdout, until stdin ends."""
    requests, responses = sys.stdin.buffer, sys.stdout.buffer
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    with contextlib.suppress(OSError):  # if memory runs out, Linux should kill this process and not ComfyUI
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
    _limit_resources()
    write_frame(responses, {"ready": True})
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())  # decoders print warnings about damaged files
    with contextlib.suppress(EOFError):
        while True:
            header, content = read_frame(requests)
            with _ends_after(header.pop("timeout_s")):
                response = respond(header, content)
            write_frame(responses, *response)


def _end_with_parent(parent: int) -> None:
    """End this process about a second after its parent has ended, even while an image is being processed."""
    while os.getppid() == parent:
        time.sleep(_PARENT_POLL_S)
    os._exit(1)


@contextlib.contextmanager
def _ends_after(timeout_s: float) -> Iterator[None]:
    """Make the operating system end this process about a second after `timeout_s`.

    It does so only if the parent has not killed this process by then. A thread is not sufficient, because a decoder may
    hold the interpreter lock.
    """
    if not hasattr(signal, "alarm"):  # Windows
        yield
        return
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(math.ceil(timeout_s) + 1)
    try:
        yield
    finally:
        signal.alarm(0)


def _limit_resources() -> None:
    """Limit this process's memory, and forbid core dumps and writing to files."""
    try:
        import resource  # noqa: PLC0415 - does not exist on Windows
    except ImportError:
        return
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
