"""help(), signatures, pydoc and reprs of the package do not contain values of the environment."""

from __future__ import annotations

import os
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest

from comfy_client import Client, client_from_env
from comfy_client.cli.call import Call
from comfy_client.cli.screen import Screen
from comfy_client.profiles import Settings
from tools.docs.__main__ import VARIABLE_TABLES

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parent.parent
PLANTED_VALUE = "rpa_this_is_a_secret"
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
    """No module's help, signatures or values show a secret that is in every known variable and in an unknown one."""
    names = {variable.name for table in VARIABLE_TABLES.values() for variable in table} | {"SOMEBODY_S_TOKEN"}
    ended = subprocess.run(
        [sys.executable, "-c", DESCRIBE],
        env={**os.environ, **dict.fromkeys(names, PLANTED_VALUE), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert ended.returncode == 0, ended.stderr
    assert "described" in ended.stdout
    assert PLANTED_VALUE not in ended.stdout + ended.stderr


def test_a_repr_does_not_show_the_environment() -> None:
    """No repr shows the API key: error reporters print the values of variables near an error."""
    environment = {"RUNPOD_API_KEY": PLANTED_VALUE, "RUNPOD_ENDPOINT_ID": "ep"}
    call = Call(Namespace(), Screen(sys.stdout, sys.stderr), Settings(environment), {})
    with client_from_env(environment) as client, Client(api_key=PLANTED_VALUE, endpoint_id="ep") as other:
        objects = (call, client, client.provider, other.provider, client.job("x"))
        assert PLANTED_VALUE not in repr(objects) + str([str(each) for each in objects])
