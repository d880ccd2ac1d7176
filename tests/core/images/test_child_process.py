"""Decoding untrusted images in a child process, which ends on a timeout, on cancellation and with its parent."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from PIL import Image

from comfy_core.error_codes import ErrorCode
from comfy_core.errors import JobError
from comfy_core.images import codec
from comfy_core.images.child import read_frame, read_response, respond, write_frame
from comfy_core.images.child_process import (
    ImageProcessError,
    ImageProcessPool,
    NotStartedError,
    check_image,
    converted,
    encode_image,
    identify,
    never_stop,
    with_alpha_of,
)
from simulators.waiting import until
from tests.hostile_images import gif, slow_jpeg, tiff_chain
from tests.processes import killed_at_end

pytestmark = pytest.mark.slow


def png(mode: str = "RGB") -> bytes:
    """Return a small PNG."""
    file = io.BytesIO()
    Image.new(mode, (32, 16), "red").save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def processes() -> Iterator[ImageProcessPool]:
    """Child processes used only by one test."""
    processes = ImageProcessPool(2)
    yield processes
    processes.close()


def children() -> list[psutil.Process]:
    """Return the child processes of this process that decode images."""

    def decodes(child: psutil.Process) -> bool:
        with contextlib.suppress(psutil.NoSuchProcess):  # it was just killed: also a ZombieProcess
            return "comfy_core.images.child" in " ".join(child.cmdline())
        return False

    return [child for child in psutil.Process().children() if decodes(child)]


def check_in_child(
    processes: ImageProcessPool, data: bytes, check: Callable[[], None] = never_stop, **more: float
) -> None:
    """Check `data` in a child of `processes`."""
    processes.run("check_image", data, {"field_path": "image", "form": "flat"}, check, **more)


# Results


def test_a_child_returns_the_same_as_the_functions() -> None:
    """Checking, flattening, encoding, converting and identifying have the same result as in this process."""
    plain, transparent = png(), png("RGBA")

    assert check_image(plain, "image", form="flat").data is plain
    assert check_image(transparent, "image", form="flat") == codec.check_image(transparent, "image", form="flat")
    for output_format in ("png", "webp", "jpeg"):
        text = {"prompt": "{}", "parameters": "a knight 🗡"}
        expected = codec.encode_image(plain, output_format, 90, text)
        assert encode_image(plain, output_format, 90, text) == expected
    assert converted(plain, "webp", 8) == codec.converted(plain, "webp", 8)
    assert identify(gif(2)) == codec.identify(gif(2))
    assert identify(b"no image") is None


def test_an_error_of_a_child_has_the_path() -> None:
    """The caller gets the child's error with code, message and details."""
    with pytest.raises(JobError, match=r"images\[2\]\.image is not an image of a known format") as info:
        check_image(b"no image", "images[2].image", form="flat")

    assert info.value.code is ErrorCode.INVALID_IMAGE
    assert info.value.report.details == {"path": "images[2].image"}


def test_a_child_is_reused(processes: ImageProcessPool) -> None:
    """Successive images are decoded in one child, because starting a child takes 0.1 s."""
    check_in_child(processes, png())
    before = {child.pid for child in children()}
    for _ in range(5):
        check_in_child(processes, png())

    assert {child.pid for child in children()} == before


# Ends of a child


def cpu_time_s() -> float:
    """Return the processor time that the children have used."""
    return sum(child.cpu_times().user + child.cpu_times().system for child in children())


@pytest.mark.parametrize("data", [tiff_chain(10_000), gif(500_000)], ids=["TIFF", "GIF"])
def test_endless_pages_and_frames_are_rejected_quickly(data: bytes) -> None:
    """The number of pages or frames is not counted: 10,000 TIFF pages took minutes, 500,000 GIF frames seconds."""
    before_s = cpu_time_s()
    image = check_image(data, "image", form="flat")
    with pytest.raises(JobError, match="has more than 1,000 frames"):
        check_image(data, "image", form="as_sent")

    assert (image.width, image.height, image.mime_type) == (1, 1, "image/png")
    assert identify(data) is not None
    assert cpu_time_s() - before_s < 10


def test_the_total_pixels_of_frames_are_limited() -> None:
    """ComfyUI keeps all frames of an image in memory, so at most 16 frames of 16 megapixels are accepted."""
    assert check_image(gif(16, 4096), "image", form="as_sent").is_animated
    with pytest.raises(JobError, match="has more than 16 frames of 4096 x 4096 pixels"):
        check_image(gif(17, 4096), "image", form="as_sent")


def test_an_image_that_takes_too_long_is_rejected() -> None:
    """The child is killed at the time limit, which is in the error."""
    with pytest.raises(JobError, match=r"cannot be decoded: it takes longer than 0\.5 s") as info:
        check_image(slow_jpeg(), "image", form="flat", timeout_s=0.5)

    assert info.value.code is ErrorCode.INVALID_IMAGE
    assert check_image(png(), "image", form="flat").width == 32


def test_a_cancellation_ends_the_work_at_once(processes: ImageProcessPool) -> None:
    """The exception of `check` is raised, and the child is killed in the middle of its work."""
    data = slow_jpeg()
    others = set(children())
    check_in_child(processes, png())
    [busy] = set(children()) - others
    begun = time.monotonic()

    def check() -> None:
        if time.monotonic() - begun > 0.5:
            raise JobError.because(ErrorCode.CANCELLED, "The job was cancelled.")

    with pytest.raises(JobError, match="cancelled"):
        check_in_child(processes, data, check)

    assert not busy.is_running() or busy.status() == psutil.STATUS_ZOMBIE


def test_a_waiting_image_can_be_cancelled(processes: ImageProcessPool) -> None:
    """Two children work on slow images; a third image waits and can be cancelled."""
    ended = threading.Event()

    def end() -> None:
        if ended.is_set():
            raise ImageProcessError("timed out")

    with ThreadPoolExecutor(2) as threads:
        slow = [threads.submit(check_in_child, processes, slow_jpeg(), end) for _ in range(2)]
        assert until(lambda: len(children()) >= 2)
        begun = time.monotonic()

        def cancel() -> None:
            if time.monotonic() - begun > 0.3:
                raise JobError.because(ErrorCode.CANCELLED, "The job was cancelled.")

        with pytest.raises(JobError, match="cancelled"):
            check_in_child(processes, png(), cancel)
        ended.set()
        assert all(isinstance(each.exception(), ImageProcessError) for each in slow)


def test_a_crash_of_the_decoder_rejects_the_image(processes: ImageProcessPool) -> None:
    """If a child crashes, its image is rejected, and the next image gets another child."""
    before = {child.pid for child in children()}

    def crash() -> None:
        for child in children():
            if child.pid not in before and child.cpu_times().user > 0.3:
                child.kill()

    with pytest.raises(ImageProcessError, match="crashed the decoder"):
        check_in_child(processes, slow_jpeg(), crash)
    check_in_child(processes, png())


def test_an_idle_child_that_died_is_replaced(processes: ImageProcessPool) -> None:
    """A crash between two images is not blamed on the second one."""
    before = {child.pid for child in children()}
    check_in_child(processes, png())
    [own_child] = [child for child in children() if child.pid not in before]
    own_child.kill()
    own_child.wait()

    check_in_child(processes, png())


def test_encoding_that_takes_too_long_returns_the_png() -> None:
    """The job has been paid for, so the image is returned as a PNG with its metadata and a warning."""
    file = io.BytesIO()
    Image.effect_noise((2560, 2560), 90).convert("RGB").save(file, "PNG", compress_level=0)

    image = encode_image(file.getvalue(), "webp", 90, {"prompt": "{}"}, timeout_s=0.3)

    assert (image.mime_type, image.width) == ("image/png", 2560)
    assert image.warning == "is a PNG: encoding it as webp failed, since it takes longer than 0.3 s"
    assert Image.open(io.BytesIO(image.data)).info["prompt"] == "{}"
    assert "no time was left" in encode_image(png(), "webp", 90, {}, timeout_s=0).warning


# Environment of a child


def test_a_child_has_no_secrets_and_limited_memory(
    processes: ImageProcessPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The child's environment has only what the interpreter needs; memory and file sizes are limited."""
    monkeypatch.setenv("BUCKET_SECRET_ACCESS_KEY", "a secret")
    before = {child.pid for child in children()}
    check_in_child(processes, png())
    [own_child] = [child for child in children() if child.pid not in before]

    assert set(own_child.environ()) <= {"LD_LIBRARY_PATH", "LC_CTYPE"}
    assert own_child.rlimit(psutil.RLIMIT_AS) == (3 * 1024**3, 3 * 1024**3)
    assert own_child.rlimit(psutil.RLIMIT_FSIZE) == (0, 0)
    assert Path(f"/proc/{own_child.pid}/oom_score_adj").read_text() == "1000\n"


def test_a_script_without_a_main_guard_is_not_run_again(tmp_path: Path) -> None:
    """A child does not import the caller's program, unlike a child of multiprocessing."""
    script = tmp_path / "script.py"
    script.write_text(
        f"print('once')\nfrom comfy_core.images.child_process import identify\nassert identify({png()!r}).width == 32\n"
    )

    assert subprocess.run([sys.executable, script], check=True, capture_output=True, text=True).stdout == "once\n"


def test_a_child_ends_with_its_parent(tmp_path: Path) -> None:
    """If the parent is killed while an image is decoded, no child is left."""
    image = tmp_path / "slow.jpg"
    image.write_bytes(slow_jpeg())
    program = (
        "import sys, threading, psutil\n"
        "from comfy_core.images.child_process import check_image\n"
        f"data = open({str(image)!r}, 'rb').read()\n"
        "threading.Thread(target=check_image, args=(data, 'image'), kwargs={'form': 'flat'}, daemon=True).start()\n"
        "while not psutil.Process().children(): pass\n"
        "print(psutil.Process().children()[0].pid, flush=True)\n"
        "sys.stdin.read()\n"
    )
    with killed_at_end(
        subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    ) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        assert until(lambda: child.cpu_times().user > 0.5)
        parent.kill()
        parent.wait()

    assert until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)


def test_a_fork_has_its_own_children() -> None:
    """Two processes must not share the pipes of one child."""
    check_image(png(), "image", form="flat")
    pid = os.fork()
    if pid == 0:
        os._exit(0 if check_image(png("L"), "image", form="flat").mime_type == "image/png" else 1)

    assert os.waitpid(pid, 0)[1] == 0
    assert check_image(png(), "image", form="flat").width == 32


def test_a_child_that_cannot_start_is_not_the_image_s_fault() -> None:
    """Without an interpreter the error is NotStartedError, which does not blame the image."""
    with pytest.raises(NotStartedError, match="got no child process"):
        check_in_child(ImageProcessPool(python="/no/such/python"), png())


# Messages between parent and child


def test_a_frame_is_read_back() -> None:
    """Consecutive frames are read with header and content; the end of the stream is an EOFError."""
    stream = io.BytesIO()
    write_frame(stream, {"a": 1}, b"content")
    write_frame(stream, {})
    stream.seek(0)

    assert [read_frame(stream), read_frame(stream)] == [({"a": 1}, b"content"), ({}, b"")]
    with pytest.raises(EOFError):
        read_frame(stream)


@pytest.mark.parametrize(
    "sent",
    [b"\xff" * 12, b"\0\0\0\4" + bytes(8) + b"null", b"\0\0\0\4" + bytes(8) + b"{]}!"],
    ids=["long", "null", "text"],
)
def test_an_invalid_frame_is_rejected(sent: bytes) -> None:
    """A compromised child can send anything: a frame that is not valid is a ValueError."""
    with pytest.raises(ValueError, match=r"frame|Expecting|expecting"):
        read_frame(io.BytesIO(sent))


def test_a_bug_in_a_child_is_reported_by_its_type() -> None:
    """An unexpected exception rejects one image and does not end the child.

    The exception's text, which may be long, is not returned.
    """
    header, content = respond({"function": "identify", "arguments": {"unknown": 1}}, b"")

    assert (header, content) == ({"failed": "TypeError"}, b"")
    with pytest.raises(ValueError, match="TypeError"):
        read_response(header, content, b"")


@pytest.mark.parametrize(
    "facts", [{}, {"width": 1, "height": 1}, {"width": "1", "height": 1, "mime_type": "image/png", "warning": ""}]
)
def test_an_invalid_response_of_a_child_is_rejected(facts: dict[str, object]) -> None:
    """A response without valid image data is a ValueError, also from a compromised child."""
    with pytest.raises(ValueError, match="invalid description of an image"):
        read_response({"image": facts, "more": 1}, b"", b"")


def test_a_mask_becomes_the_alpha_channel() -> None:
    """The image keeps its colours, also where the mask is transparent. A mask of another size is stretched."""
    mask = Image.new("LA", (8, 4), (0, 255))
    mask.paste((255, 0), (0, 0, 4, 4))
    file = io.BytesIO()
    mask.save(file, "PNG")

    result = with_alpha_of(png(), file.getvalue())
    image = Image.open(io.BytesIO(result.data))

    assert (result.width, result.height, image.mode) == (32, 16, "RGBA")
    assert image.getpixel((0, 8)) == (255, 0, 0, 0)
    assert image.getpixel((31, 8)) == (255, 0, 0, 255)


@pytest.mark.parametrize(
    ("image", "mask", "path"),
    [
        (png(), png(), "mask"),
        (png(), png("RGBA"), "mask"),
        (png(), b"text", "mask"),
        (b"text", png(), "image"),
        (png()[:60], png(), "image"),
    ],
    ids=["no alpha channel", "opaque", "no image", "no start image", "truncated"],
)
def test_an_unusable_mask_is_refused(image: bytes, mask: bytes, path: str) -> None:
    """An image or a mask that cannot be used is invalid_image with its name."""
    with pytest.raises(JobError) as raised:
        with_alpha_of(image, mask)

    assert raised.value.code is ErrorCode.INVALID_IMAGE
    assert raised.value.report.details["path"] == path
