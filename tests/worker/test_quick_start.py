"""The module that makes ComfyUI start faster: no garbage collection during the start, and collections afterwards."""

from __future__ import annotations

import subprocess
import sys

import pytest

from worker.nodes import DIRECTORY

CODE = """\
import gc, importlib.util, sys

def run(path):  # as ComfyUI runs a prestartup script, and imports a custom node
    spec = importlib.util.spec_from_file_location("quick_start", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

run(sys.argv[1] + "/prestartup_script.py")
print(gc.isenabled())
module = run(sys.argv[1] + "/__init__.py")
print(gc.isenabled(), gc.get_freeze_count() > 0, module.NODE_CLASS_MAPPINGS)
"""


@pytest.mark.slow
def test_the_collector_is_off_only_during_the_start() -> None:
    """The prestartup script turns the collector off. The import turns it on, and exempts the objects that exist."""
    arguments = [sys.executable, "-c", CODE, str(DIRECTORY / "quick_start")]
    printed = subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=True).stdout

    assert printed.splitlines() == ["False", "True True {}"]
