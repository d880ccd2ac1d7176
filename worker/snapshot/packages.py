"""Installs the nodes' requirements and runs their install.py, and rejects changes of locked packages.

All requirements are installed by one call of pip, because with separate calls a later node could change packages that
an earlier node needs. If that call fails, a dry run for each node finds the node that causes the failure.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from comfy_core.errors import ConfigError
from worker.snapshot.commands import CompletedCommand, run
from worker.snapshot.listing import RestoreError

_LOG = logging.getLogger(__name__)
_REQUIREMENTS = "requirements.txt"
_SCRIPT = "install.py"


def read_constraints(files: Sequence[Path]) -> tuple[str, ...]:
    """Return the lines of constraints files without comments, extras and hashes.

    pip rejects extras in constraints. If a constraint has a hash, pip requires hashes for the nodes' requirements too.
    Raises ConfigError if a file cannot be read.
    """
    lines: list[str] = []
    for file in files:
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"--constraints: {file} cannot be read ({type(error).__name__})") from error
        lines += re.sub(r"\\\n|\[[^\]]*\]|(^|\s)#.*|\s--hash=\S+", " ", text, flags=re.MULTILINE).splitlines()
    return tuple(line.strip() for line in lines if line.strip())


def needs_python(node: Path) -> bool:
    """Return whether a node has requirements or an install.py."""
    return (node / _REQUIREMENTS).is_file() or has_script(node)


def has_script(node: Path) -> bool:
    """Return whether a node has an install.py."""
    return (node / _SCRIPT).is_file()


@dataclass(frozen=True)
class Python:
    """ComfyUI's Python, with its own pip.

    Attributes:
        executable: the interpreter in its virtual environment.
        lock: lines of pip constraints, with the installed packages that must not change.
        env: the environment of pip and of the scripts.
        timeout_s: maximum time of one run of pip or of an install.py.
    """

    executable: Path
    lock: tuple[str, ...]
    env: Mapping[str, str]
    timeout_s: float

    def require_pip(self) -> None:
        """Raise ConfigError if `executable` is not a Python with pip."""
        try:
            done = self._run("-m", "pip", "--version")
        except OSError as error:
            raise ConfigError(f"--python: {self.executable} cannot be run ({error.strerror})") from error
        if not done.succeeded:
            raise ConfigError(
                f"--python: {self.executable} has no pip. Create its environment with `python -m venv`, or `uv venv "
                f"--seed`{done.tail()}"
            )

    def install(self, nodes: Sequence[Path], scratch: Path) -> list[RestoreError]:
        """Install the requirements of all nodes; return the errors. The list is empty if everything was installed."""
        options_by_node = {node.name: ("-r", str(file)) for node in nodes if (file := node / _REQUIREMENTS).is_file()}
        if not options_by_node:
            return []
        if not self.lock:
            _LOG.warning("No --constraints: the nodes' requirements may change ComfyUI's packages")
        constraints = self._write_constraints(scratch)
        _LOG.info("installing the requirements of %s", ", ".join(options_by_node))
        done = self._pip(constraints, *(word for words in options_by_node.values() for word in words))
        if done.succeeded:
            return []
        if done.is_timed_out:
            return [RestoreError("pip", f"it timed out after {self.timeout_s:g} s{done.tail()}")]
        results = dict.fromkeys(options_by_node, done)
        if len(options_by_node) > 1:
            results = {name: self._pip(constraints, "--dry-run", *words) for name, words in options_by_node.items()}
        errors = [RestoreError(name, _pip_problem(each)) for name, each in results.items() if not each.succeeded]
        return errors or [
            RestoreError(
                " and ".join(options_by_node),
                f"their requirements conflict, though each alone can be installed{done.tail()}\n  Pin compatible "
                "commits, or remove one of them",
            )
        ]

    def run_script(self, node: Path, comfyui: Path, scratch: Path) -> None:
        """Run a node's install.py as the Manager does. Raises RestoreError if it fails or changes locked packages."""
        constraints = self._write_constraints(scratch)
        env = {
            **self.env,
            "COMFYUI_PATH": str(comfyui),
            "COMFYUI_FOLDERS_BASE_PATH": str(comfyui),
            "PATH": f"{self.executable.parent}{os.pathsep}{self.env.get('PATH', os.defpath)}",
            # For pip and uv, if the script calls them.
            "PIP_CONSTRAINT": constraints,
            "UV_CONSTRAINT": constraints,
        }
        before = self._locked_packages()
        _LOG.info("%s: running its install.py", node.name)
        done = run([self.executable, _SCRIPT], node, env, self.timeout_s)
        if not done.succeeded:
            how = f"timed out after {self.timeout_s:g} s" if done.is_timed_out else f"exited with status {done.status}"
            raise RestoreError(node.name, f"its install.py {how}{done.tail()}\n  Pin another commit, or remove it")
        after = self._locked_packages()
        changed = [
            f"{name} from {version} to {after.get(name, 'nothing')}"
            for name, version in before.items()
            if after.get(name) != version
        ]
        if changed:
            raise RestoreError(node.name, f"its install.py changed locked packages: {', '.join(changed)}. Remove it")

    def _write_constraints(self, scratch: Path) -> str:
        file = scratch / "constraints.txt"
        file.write_text("".join(f"{line}\n" for line in self.lock), encoding="utf-8")
        return str(file)

    def _pip(self, constraints: str, *arguments: str) -> CompletedCommand:
        fixed_options = ("--no-input", "--disable-pip-version-check", "--root-user-action=ignore", "--progress-bar=off")
        return self._run("-m", "pip", "install", *fixed_options, "--constraint", constraints, *arguments)

    def _run(self, *arguments: str) -> CompletedCommand:
        return run([self.executable, *arguments], Path("/"), self.env, self.timeout_s)

    def _locked_packages(self) -> dict[str, str]:
        """Return the installed versions of the locked packages, by name. Raises RestoreError if pip fails."""
        done = self._run("-I", "-m", "pip", "--disable-pip-version-check", "list", "--format=freeze")
        if not done.succeeded:
            raise RestoreError(str(self.executable), f"its packages could not be listed{done.tail()}")
        installed = dict(line.split("==", 1) for line in done.output.splitlines() if "==" in line)
        locked = {_normalized_name(re.split(r"[^\w.-]", line)[0]) for line in self.lock}
        return {name: version for name, version in installed.items() if _normalized_name(name) in locked}


def _normalized_name(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _pip_problem(done: CompletedCommand) -> str:
    locked = dict.fromkeys(re.findall(r"\(constraint\) ([^\s,]+)", done.output))
    if locked:
        return (
            f"its requirements conflict with the lock, which has {', '.join(locked)}{done.tail()}\n  Pin a compatible "
            "commit, or lock another version with scripts/lock"
        )
    return (
        f"its requirements cannot be installed{done.tail()}\n  Pin another commit, or remove it from the snapshot. "
        "For connection errors, check the network and its proxies"
    )
