"""The command that downloads models: output, exit status, invalid options, and concurrent or killed processes."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import io
import os
import pty
import re
import resource
import select
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from simulators.hugging_face import ModelResponse
from simulators.waiting import until
from tests.core.models.conftest import SIZE, ModelSetup, Served
from tests.needs import small_disk as small_disk_of
from worker.models.__main__ import main

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[3]
HALF = SIZE // 2
TOKEN = "hf_secret"  # noqa: S105 - not a real secret


class FakeTerminal(io.StringIO):
    """An output that claims to be a terminal."""

    def isatty(self) -> bool:
        """Return True."""
        return True


def write_list(folder: Path, *served: Served) -> Path:
    """Write a models.txt with the served models; return its path."""
    file = folder / "models.txt"
    file.write_text(
        "".join(
            f"{model.sha256} {model.size} {model.path} {model.url} {model.licence}\n"
            for model in (each.model for each in served)
        )
    )
    return file


@pytest.fixture
def models_dir(tmp_path: Path) -> Path:
    """The path of ComfyUI's models folder, which does not exist yet."""
    return tmp_path / "comfyui" / "models"


def run_command(
    models: ModelSetup, models_dir: Path, *served: Served, more: tuple[str, ...] = (), **env: str
) -> tuple[int, str]:
    """Run the command in this process; return its exit status and output."""
    err = io.StringIO()
    arguments = ["--list", str(write_list(models_dir.parents[1], *served)), "--to", str(models_dir), *more]
    status = main(arguments, {"HF_ENDPOINT": models.server.url, **env}, err)
    return status, err.getvalue()


def start_command(
    models: ModelSetup,
    models_dir: Path,
    file: Path,
    *more: str,
    before: tuple[str, ...] = (),
    env: Mapping[str, str] | None = None,
) -> subprocess.Popen[str]:
    """Start the command as a process, with `before` instead of `python -m worker.models` if it is not empty."""
    return subprocess.Popen(
        [*(before or (sys.executable, "-m", "worker.models")), "--list", str(file), "--to", str(models_dir), *more],
        env={**os.environ, "HF_ENDPOINT": models.server.url, **(env or {})},
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )


def output_of(process: subprocess.Popen[str]) -> str:
    """Wait for the end of a process; return the rest of its stderr."""
    return process.communicate(timeout=60)[1]


def starts_downloading(models_dir: Path, served: Served) -> bool:
    """Return whether the model's part file gets bytes before `until` times out."""
    part = models_dir / f"{served.model.path}.part"
    return until(lambda: part.exists() and part.stat().st_size > 0)


# Output and exit status


def test_each_model_has_a_log_line(models: ModelSetup, models_dir: Path) -> None:
    """Without a terminal there is a line for each model and a summary; the next run says which models exist."""
    served = [models.put("vae/a.safetensors"), models.put("loras/b.safetensors")]

    status, text = run_command(models, models_dir, *served)

    assert status == 0
    lines = sorted(text.splitlines())
    assert lines[0] == f"2 of 2 models are present and verified in {models_dir}"
    assert re.fullmatch(r"loras/b\.safetensors: downloaded and verified, 1,000,000 bytes in \d+\.\d s", lines[1])
    assert re.fullmatch(r"vae/a\.safetensors: downloaded and verified, 1,000,000 bytes in \d+\.\d s", lines[2])

    status, text = run_command(models, models_dir, *served)
    assert (status, sorted(text.splitlines())[1:]) == (
        0,
        ["loras/b.safetensors: already present", "vae/a.safetensors: already present"],
    )


def test_quiet_prints_only_failures(models: ModelSetup, models_dir: Path) -> None:
    """--quiet prints nothing if all models are present, and otherwise the failures."""
    served = models.put()

    assert run_command(models, models_dir, served, more=("--quiet",)) == (0, "")

    (models_dir / served.model.path).unlink()
    status, text = run_command(models, models_dir, served, more=("--quiet", "--check"))
    assert status == 1
    assert text.startswith("1 of 1 models failed:\n  vae/ae.safetensors: does not exist (")


def test_a_terminal_shows_a_bar_and_warnings(models: ModelSetup, models_dir: Path) -> None:
    """On a terminal there is a progress bar for a model, and a warning for a retry."""
    served = models.put()
    models.server.cut(served.path, HALF)
    err = FakeTerminal()

    status = main(
        ["--list", str(write_list(models_dir.parents[1], served)), "--to", str(models_dir)],
        {"HF_ENDPOINT": models.server.url},
        err,
    )

    assert status == 0
    assert re.search(r"vae/ae\.safetensors .*1\.0/1\.0 MB", err.getvalue())
    assert "refused or lost; retrying in" in err.getvalue()


def test_all_failures_are_listed(models: ModelSetup, models_dir: Path) -> None:
    """A failure stops no other model. The output ends with each failed model and its remedy; the status is 1."""
    missing, valid, gated = (models.put(f"vae/{name}.safetensors") for name in "abc")
    models.server.respond(missing.path, ModelResponse(404))
    models.server.respond(gated.path, ModelResponse(401))

    status, text = run_command(models, models_dir, missing, valid, gated, HF_TOKEN=TOKEN)

    assert status == 1
    failed = text[text.index("2 of 3 models failed:") :].splitlines()
    assert re.match(r"  vae/a\.safetensors: .* 404: .* Correct the URL", failed[1])
    assert re.match(r"  vae/c\.safetensors: .* 401: the token in HF_TOKEN has no access", failed[2])
    assert TOKEN not in text
    assert (models_dir / valid.model.path).read_bytes() == valid.content


def test_only_selects_models(models: ModelSetup, models_dir: Path) -> None:
    """--only selects the models whose paths match, and may be repeated; other models are not downloaded."""
    served = [models.put(f"{folder}/x.safetensors") for folder in ("vae", "loras", "unet")]

    status, text = run_command(
        models, models_dir, *served, more=("--only", "vae/*", "--only", "unet/x.*", "--jobs", "1")
    )

    assert (status, text.splitlines()[-1]) == (0, f"2 of 2 models are present and verified in {models_dir}")
    assert not (models_dir / "loras").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: --to"),
        (["--to", "x", "--jobs", "0"], "must be from 1 to 32, not '0'"),
        (["--to", "x", "--jobs", "many"], "must be from 1 to 32, not 'many'"),
        (["--to", "x", "--wrong"], "unrecognized arguments: --wrong"),
        (["--to", "x", "--only", "nothing"], "--only 'nothing' matches no model"),
        (["--to", "x", "--list", "nothing.txt"], "nothing.txt cannot be read"),
    ],
)
def test_invalid_usage_exits_with_3(arguments: list[str], message: str) -> None:
    """Invalid options, and a list or pattern without a model, end with status 3 and the reason."""
    err = io.StringIO()

    assert main(arguments, {}, err) == 3
    assert message in err.getvalue()


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ({"HF_ENDPOINT": "huggingface.co"}, "HF_ENDPOINT='huggingface.co': must be a URL"),
        ({"HF_ENDPOINT": "https://user:hf_secret@mirror"}, "HF_ENDPOINT=(not shown): must be a URL"),
        ({"HF_ENDPOINT": "https://mirror:99999"}, "HF_ENDPOINT='https://mirror:99999': must be a URL"),
        ({"HF_ENDPOINT": "http://mirror", "HF_TOKEN": TOKEN}, "HF_ENDPOINT is http, and the token in HF_TOKEN"),
        ({"HF_TOKEN": f"{TOKEN}\nX: y"}, "HF_TOKEN: not a valid token"),
        ({"HF_TOKEN_FILE": "/"}, "HF_TOKEN_FILE: / cannot be read (IsADirectoryError)"),
    ],
)
def test_an_invalid_variable_is_named(
    models: ModelSetup, models_dir: Path, tmp_path: Path, env: dict[str, str], message: str
) -> None:
    """An invalid variable ends with status 3 and the reason; nothing is sent, and no secret is shown."""
    err = io.StringIO()

    status = main(["--to", str(models_dir), "--list", str(write_list(tmp_path, models.put()))], env, err)

    assert status == 3
    assert message in err.getvalue()
    assert TOKEN not in err.getvalue()
    assert models.server.received == []


def test_the_token_may_be_in_a_file(models: ModelSetup, models_dir: Path, tmp_path: Path) -> None:
    """The token in HF_TOKEN_FILE is sent, and errors name the file. If the file does not exist, no token is sent."""
    served = models.put()
    secret = tmp_path / "hf_token"
    secret.write_text(f"{TOKEN}\n")
    models.server.respond(served.path, ModelResponse(403))

    status, text = run_command(models, models_dir, served, HF_TOKEN_FILE=str(secret))
    assert status == 1
    assert f"the token in HF_TOKEN_FILE ({secret}) has no access" in text

    assert run_command(models, models_dir, served, HF_TOKEN_FILE=str(tmp_path / "nothing"))[0] == 0
    assert [request.token for request in models.server.received] == [TOKEN, ""]


# Concurrent and killed processes


def test_two_processes_download_each_model_once(models: ModelSetup, models_dir: Path, tmp_path: Path) -> None:
    """Two concurrent processes download each model once, and both succeed; the second one says that it waits."""
    served = [models.put(f"vae/{name}.safetensors") for name in "ab"]
    holds = [models.server.hold(each.path, HALF) for each in served]
    file = write_list(tmp_path, *served)
    first = start_command(models, models_dir, file)
    assert all(starts_downloading(models_dir, each) for each in served)
    second = start_command(models, models_dir, file)
    assert second.stderr is not None
    second_log = [second.stderr.readline(), second.stderr.readline()]
    for hold in holds:
        hold.release()

    output_of(first)
    rest = output_of(second)

    assert all("another process is downloading it; waiting" in line for line in second_log)
    assert rest.count("another process has downloaded it") == 2
    assert (first.returncode, second.returncode) == (0, 0)
    for each in served:
        assert len(models.server.requests(each.path)) == 1
        assert (models_dir / each.model.path).read_bytes() == each.content


def test_a_run_after_a_kill_resumes_the_download(models: ModelSetup, models_dir: Path, tmp_path: Path) -> None:
    """After SIGKILL there is no file at the model's path, and the next run requests only the missing bytes."""
    served = models.put()
    hold = models.server.hold(served.path, HALF)
    file = write_list(tmp_path, served)
    process = start_command(models, models_dir, file)
    assert starts_downloading(models_dir, served)
    process.kill()
    output_of(process)
    assert not (models_dir / served.model.path).exists()
    kept = (models_dir / f"{served.model.path}.part").stat().st_size
    hold.release()

    status, text = run_command(models, models_dir, served)

    assert status == 0
    assert f"resuming at {kept:,} of 1,000,000 bytes" in text
    assert [request.offset for request in models.server.received] == [0, kept]
    assert (models_dir / served.model.path).read_bytes() == served.content


def test_a_waiting_process_resumes_after_the_other_is_killed(
    models: ModelSetup, models_dir: Path, tmp_path: Path
) -> None:
    """If the downloading process is killed, the waiting process resumes the download."""
    served = models.put()
    hold = models.server.hold(served.path, HALF)
    file = write_list(tmp_path, served)
    first = start_command(models, models_dir, file)
    assert starts_downloading(models_dir, served)
    second = start_command(models, models_dir, file)
    assert second.stderr is not None
    assert "another process is downloading it; waiting" in second.stderr.readline()
    first.kill()
    hold.release()

    assert "resuming at" in output_of(second)
    assert second.returncode == 0
    assert (models_dir / served.model.path).read_bytes() == served.content
    output_of(first)


def test_ctrl_c_keeps_the_partial_file(models: ModelSetup, models_dir: Path, tmp_path: Path) -> None:
    """Ctrl-C ends the download with status 130 and keeps the partial file."""
    served = models.put()
    hold = models.server.hold(served.path, HALF)
    process = start_command(models, models_dir, write_list(tmp_path, served))
    assert starts_downloading(models_dir, served)

    process.send_signal(signal.SIGINT)
    assert process.stderr is not None
    assert "stopping" in process.stderr.readline()
    hold.release()

    assert "Interrupted. Partial downloads are kept; run the same command to resume" in output_of(process)
    assert process.returncode == 130
    assert [file.name for file in (models_dir / "vae").iterdir()] == ["ae.safetensors.part"]


def test_a_size_limit_is_a_full_disk_and_the_download_resumes(
    models: ModelSetup, models_dir: Path, tmp_path: Path
) -> None:
    """A size limit for files counts as a full disk: the error has the bytes so far, and the next run resumes."""
    served = models.put()
    file = write_list(tmp_path, served)
    limited = (
        "import resource, runpy, sys;"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({HALF}, {resource.RLIM_INFINITY}));"
        "sys.argv[0] = 'models'; runpy.run_module('worker.models', run_name='__main__')"
    )
    process = start_command(models, models_dir, file, before=(sys.executable, "-c", limited))

    text = output_of(process)

    assert process.returncode == 1
    assert f"vae/ae.safetensors: the disk is full ({os.strerror(errno.EFBIG)}): 500,000 of 1,000,000 bytes are" in text
    assert "it resumes from ae.safetensors.part" in text
    assert run_command(models, models_dir, served)[0] == 0
    assert [request.offset for request in models.server.received] == [0, HALF]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 4 MB."""
    with small_disk_of(tmp_path / "small", "4m") as folder:
        yield folder


def test_a_disk_that_fills_up_is_an_error_and_the_next_run_succeeds(
    models: ModelSetup, small_disk: Path, tmp_path: Path
) -> None:
    """If the disk fills up during the download, the error says so; with space again, the next run succeeds."""
    served = models.put()
    hold = models.server.hold(served.path, HALF)
    process = start_command(models, small_disk, write_list(tmp_path, served))
    assert starts_downloading(small_disk, served)
    filler = small_disk / "filler"
    fill(filler)
    hold.release()

    text = output_of(process)

    assert process.returncode == 1
    assert f"the disk is full ({os.strerror(errno.ENOSPC)}): " in text
    assert " 0 are free. Free some space" in text
    filler.unlink()
    assert run_command(models, small_disk, served)[0] == 0
    assert (small_disk / served.model.path).read_bytes() == served.content


def fill(file: Path) -> None:
    """Write until the disk is full."""
    with file.open("wb", buffering=0) as stream, contextlib.suppress(OSError):
        while stream.write(bytes(4096)):
            pass


def test_the_script_ignores_packages_of_its_folder(models: ModelSetup, tmp_path: Path) -> None:
    """scripts/download_models works in a folder with another package `worker`, with relative paths, on a terminal."""
    served = models.put()
    file = write_list(tmp_path, served)
    (tmp_path / "worker").mkdir()
    (tmp_path / "worker/__init__.py").write_text("raise SystemExit('the wrong one')")
    near_end, far_end = pty.openpty()
    fcntl.ioctl(far_end, termios.TIOCSWINSZ, struct.pack("4H", 24, 120, 0, 0))

    process = subprocess.Popen(
        [ROOT / "scripts/download_models", "--list", file.name, "--to", "models"],
        cwd=tmp_path,
        env={**os.environ, "HF_ENDPOINT": models.server.url},
        stderr=far_end,
    )
    os.close(far_end)
    shown = b""
    with contextlib.suppress(OSError):  # on Linux a closed terminal raises EIO
        while select.select([near_end], [], [], 60)[0]:
            shown += os.read(near_end, 65536)
    os.close(near_end)

    assert process.wait(60) == 0
    assert b"1.0/1.0 MB" in shown
    assert (tmp_path / "models" / served.model.path).read_bytes() == served.content
