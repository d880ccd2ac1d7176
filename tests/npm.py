"""Programs of npm that tests need, from the locks below requirements/."""

from __future__ import annotations

import subprocess
from pathlib import Path

from bench.worker_setup import ROOT
from tests.needs import require_programs, skip_visibly

INSTALL_TIMEOUT_S = 240


def installed(name: str) -> Path:
    """Install the lock requirements/`name` and return its folder. Without npm or a network, the test is skipped."""
    require_programs("npm", "node")
    folder = ROOT / "requirements" / name
    if not (folder / "node_modules" / ".package-lock.json").is_file():
        command = ["npm", "--prefix", str(folder), "ci", "--prefer-offline", "--silent", "--no-audit", "--no-fund"]
        if subprocess.run(command, check=False, timeout=INSTALL_TIMEOUT_S).returncode:
            skip_visibly(f"NOT TESTED: npm cannot install requirements/{name}; its first installation needs a network")
    return folder
