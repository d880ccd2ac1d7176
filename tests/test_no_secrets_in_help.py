"""Nothing that describes the package repeats the environment: help(), signatures, pydoc."""

from __future__ import annotations

import os
import subprocess
import sys

from comfy_client.deploy.variables import VARIABLES as DEPLOY
from comfy_client.providers import VARIABLES as CLIENT
from comfy_client.scenario.settings import VARIABLES as SHIM
from tests.test_layers import ROOT
from worker.settings import VARIABLES as WORKER

MARK = "rpa_this_is_a_secret"
DESCRIBE = """
import importlib, inspect, pkgutil, pydoc, comfy_client
names = ["comfy_client", *(each.name for each in pkgutil.walk_packages(comfy_client.__path__, "comfy_client."))]
for name in names:
    module = importlib.import_module(name)
    print(pydoc.render_doc(module))
    print(pydoc.HTMLDoc().docmodule(module))
    for each in vars(module).values():
        print(repr(each))
        if callable(each):
            try:
                print(inspect.signature(each))
            except (TypeError, ValueError):
                pass
for name in comfy_client.__all__:
    print(pydoc.render_doc(getattr(comfy_client, name)))
print("described", len(names))
"""


def test_no_help_shows_a_variable() -> None:
    """For every module, with a secret in every variable that the package knows, and in one that it does not."""
    tables = (CLIENT.values(), DEPLOY.values(), SHIM, WORKER)
    names = {variable.name for table in tables for variable in table} | {"SOMEBODY_S_TOKEN"}
    ended = subprocess.run(
        [sys.executable, "-c", DESCRIBE],
        env={**os.environ, **dict.fromkeys(names, MARK), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert ended.returncode == 0, ended.stderr
    assert "described" in ended.stdout
    assert MARK not in ended.stdout + ended.stderr
