"""The environment that ComfyUI gets, and the protection of the worker's own environment."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from worker.comfyui_environment import comfyui_environment

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parent.parent.parent
NOBODY = 65534
PASSED_VARIABLES = (
    "PATH",
    "HOME",
    "LANG",
    "LC_ALL",
    "TZ",
    "TMPDIR",
    "CUDA_VISIBLE_DEVICES",
    "NVIDIA_VISIBLE_DEVICES",
    "LD_LIBRARY_PATH",
    "PYTORCH_CUDA_ALLOC_CONF",
    "TORCH_HOME",
    "TORCHINDUCTOR_CACHE_DIR",
    "HF_HOME",
    "HF_HUB_OFFLINE",
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "SSL_CERT_FILE",
    "XDG_CACHE_HOME",
    "PYTHONPATH",
    "HIP_VISIBLE_DEVICES",
)
WITHHELD_VARIABLES = (
    "RUNPOD_AI_API_KEY",
    "RUNPOD_POD_ID",
    "BUCKET_SECRET_ACCESS_KEY",
    "AWS_SECRET_ACCESS_KEY",
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
    "MY_API_PASSWORD",
    "DATABASE_URL",
    "CIVITAI_API_KEY",
    "OPENAI_API_KEY",
    "NVIDIA_API_KEY",
    "TORCH_HUB_TOKEN",
    "PYTHON_KEYRING_PASSWORD",
    "HF_HUB_TOKEN",
    "CUDA_SECRET",
    "SSH_AUTH_SOCK",
    "PIP_INDEX_URL",
    "GITHUB_TOKEN",
    "http_secret",
    "WORKER_ANYTHING",
    "COMFYUI_DIR",
)


@pytest.mark.parametrize("name", PASSED_VARIABLES)
def test_variables_that_comfyui_needs_are_passed_on(name: str) -> None:
    """Each variable of PASSED_VARIABLES, such as a path or a setting of CUDA, is passed on."""
    assert comfyui_environment({name: "x"}) == {name: "x"}


@pytest.mark.parametrize("name", WITHHELD_VARIABLES)
def test_other_variables_are_not_passed_on(name: str) -> None:
    """Each variable of WITHHELD_VARIABLES is withheld: secrets with any prefix, and the worker's own variables."""
    assert comfyui_environment({name: "x"}) == {}


def test_variables_in_worker_comfyui_env_are_passed_on() -> None:
    """A variable that WORKER_COMFYUI_ENV names is passed on if it is set."""
    assert comfyui_environment({"MY_NODE_KEY": "x", "OTHER": "y"}, ("MY_NODE_KEY", "ABSENT")) == {"MY_NODE_KEY": "x"}


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("http://proxy:3128", "http://proxy:3128"),
        ("http://user:pass@proxy:3128", "http://proxy:3128"),
        ("HTTPS://user:p@ss://word@proxy", "HTTPS://proxy"),
        ("user:pass@proxy:1", "proxy:1"),
        ("socks5h://user@proxy", "socks5h://proxy"),
    ],
)
@pytest.mark.parametrize("name", ["HTTP_PROXY", "https_proxy", "ALL_PROXY"])
def test_a_proxy_loses_its_credentials(name: str, given: str, kept: str) -> None:
    """ComfyUI gets the proxy's address without user name and password."""
    assert comfyui_environment({name: given}) == {name: kept}


READING_SCRIPT = """\
import ctypes, os, subprocess, sys
from worker.process_memory import protect_process_memory
if os.getuid() == 0:
    os.setgroups([]); os.setgid({nobody}); os.setuid({nobody})
    ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)  # PR_SET_DUMPABLE = 1 again: setuid has cleared it
if sys.argv[1] == "protected":
    assert protect_process_memory()
for pid in (os.getpid(), "self"):
    read = subprocess.run(["cat", f"/proc/{{pid}}/environ"], capture_output=True)
    print(read.returncode, b"the-secret" in read.stdout)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
@pytest.mark.parametrize(("mode", "worker_output"), [("unprotected", "0 True"), ("protected", "1 False")])
def test_other_processes_cannot_read_a_protected_environment(mode: str, worker_output: str) -> None:
    """After protect_process_memory no other process of the user can read the worker's /proc/<pid>/environ.

    A child process can still read its own.
    """
    ended = subprocess.run(
        [sys.executable, "-c", READING_SCRIPT.format(nobody=NOBODY), mode],
        env={**os.environ, "PYTHONPATH": str(ROOT), "MY_KEY": "the-secret"},
        cwd="/",
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )

    assert ended.stdout.splitlines() == [worker_output, "0 True"]
