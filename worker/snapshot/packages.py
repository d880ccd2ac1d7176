"""Installs the nodes' requirements, the snapshot's packages and runs install.py, without changing locked packages.

All requirements go to pip in one call: with separate calls, a later node could undo what an earlier one needs. If that
fails, each is tried alone, to find the one at fault.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from comfy_core.errors import ConfigError
from worker.snapshot.commands import CompletedCommand, run
from worker.snapshot.listing import Package, RestoreError
from worker.snapshot.retries import LOG

_REQUIREMENTS = "requirements.txt"
_SCRIPT = "install.py"
_INSTALLED = """
import importlib.metadata, json
print(json.dumps({found.metadata["Name"]: found.version for found in importlib.metadata.distributions()}))
"""
_PINNED = r"(?P<name>[A-Za-z0-9][\w.-]*)\s*(\[[^\]]*\])?\s*==\s*(?P<version>[^\s;]+)(?P<rest>.*)"


@dataclass(frozen=True)
class Lock:
    """Installed packages that must not change.

    Attributes:
        lines: the lines of the --constraints files in the form that pip accepts: without hashes and extras.
        versions: the versions of each name, of which one applies to this machine.
    """

    lines: tuple[str, ...] = ()
    versions: Mapping[str, frozenset[str]] = field(default_factory=dict)

    @staticmethod
    def read(files: Sequence[Path]) -> Lock:
        """Return the combined content of the files. Raises ConfigError."""
        lines: list[str] = []
        versions: dict[str, frozenset[str]] = {}
        for file in files:
            try:
                text = file.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise ConfigError(f"--constraints: {file} cannot be read ({type(error).__name__})") from error
            for line in re.sub(r"\\\n", " ", text).splitlines():
                # If a constraint has a hash, pip requires hashes for the nodes' requirements too.
                plain = re.sub(r"(^|\s)#.*|\s--hash=\S+", "", line).strip()
                if re.match(r"(-r|-c|-e|--requirement|--constraint|--editable)\b", plain):
                    raise ConfigError(
                        f"--constraints: {file} includes another file ({plain}). Pass both with --constraints"
                    )
                if found := re.fullmatch(_PINNED, plain):
                    name = normal(found["name"])
                    versions[name] = versions.get(name, frozenset()) | {found["version"]}
                    plain = f"{found['name']}=={found['version']}{found['rest']}"
                if plain:
                    lines.append(plain)
        return Lock(tuple(lines), versions)


def normal(name: str) -> str:
    """Return the normalized name of a package."""
    return re.sub(r"[-_.]+", "-", name).lower()


@dataclass(frozen=True)
class Node:
    """A node in custom_nodes/."""

    name: str
    folder: Path

    @property
    def requirements(self) -> Path | None:
        """Its requirements file; None if it does not exist or is empty."""
        file = self.folder / _REQUIREMENTS
        text = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
        return file if any(line.strip() and not line.strip().startswith("#") for line in text.splitlines()) else None

    @property
    def script(self) -> Path | None:
        """Its install.py, or None."""
        file = self.folder / _SCRIPT
        return file if file.is_file() else None


@dataclass(frozen=True)
class Python:
    """ComfyUI's Python, with its own pip.

    Attributes:
        executable: of its virtual environment.
        lock: packages that must not change.
        env: the environment of its processes.
        timeout_s: maximum time of one run of pip or of an install.py.
    """

    executable: Path
    lock: Lock
    env: Mapping[str, str]
    timeout_s: float

    def require_pip(self) -> None:
        """Raise ConfigError if it is not a Python with pip."""
        try:
            ended = self._run(Path("/"), "-m", "pip", "--version")
        except OSError as error:
            raise ConfigError(f"--python: {self.executable} cannot be run ({error.strerror})") from error
        if not ended.succeeded:
            raise ConfigError(
                f"--python: {self.executable} has no pip. Create its environment with `python -m venv`, or `uv venv "
                f"--seed`{ended.tail()}"
            )

    def conflicts(self, packages: Sequence[Package]) -> list[RestoreError]:
        """Return an error for each package that the lock has in another version."""
        locked = self.lock.versions
        return [
            RestoreError(
                f"pips[{package.name}]",
                f"the snapshot has {package.version}, the lock {' or '.join(sorted(locked[normal(package.name)]))}. "
                "Remove it from the snapshot, or lock that version with scripts/lock",
            )
            for package in packages
            if package.version and package.version not in locked.get(normal(package.name), {package.version})
        ]

    def install(self, nodes: Sequence[Node], packages: Sequence[Package], scratch: Path) -> list[RestoreError]:
        """Install the requirements of nodes and snapshot; return an error for each that cannot be installed."""
        wanted = [package for package in packages if normal(package.name) not in self.lock.versions or package.url]
        lists = {node.name: ["-r", str(node.requirements)] for node in nodes if node.requirements}
        if wanted:
            lists["pips"] = [package.requirement for package in wanted]
        if not lists:
            return []
        if not self.lock.lines:
            LOG.warning("No --constraints: the nodes' requirements may change ComfyUI's packages")
        constraints = self._write_constraints(scratch)
        LOG.info("installing the requirements of %s", ", ".join(lists))
        ended = self._pip(constraints, *(word for words in lists.values() for word in words))
        if ended.succeeded:
            return []
        if ended.late:
            return [RestoreError("pip", f"it timed out after {self.timeout_s:g} s{ended.tail()}")]
        alone = dict.fromkeys(lists, ended)
        if len(lists) > 1:
            alone = {name: self._pip(constraints, "--dry-run", *words) for name, words in lists.items()}
        errors = [RestoreError(name, _pip_problem(each)) for name, each in alone.items() if not each.succeeded]
        return errors or [
            RestoreError(
                " and ".join(lists),
                f"their requirements conflict, though each alone can be installed{ended.tail()}\n  Pin compatible "
                "commits, or remove one of them",
            )
        ]

    def run_script(self, node: Node, comfyui: Path, scratch: Path) -> None:
        """Run a node's install.py as the Manager does. Raises RestoreError if it fails or changes locked packages."""
        constraints = str(self._write_constraints(scratch))
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
        LOG.info("%s: running its install.py", node.name)
        ended = run([self.executable, _SCRIPT], node.folder, env, self.timeout_s)
        if not ended.succeeded:
            how = f"timed out after {self.timeout_s:g} s" if ended.late else f"exited with status {ended.status}"
            raise RestoreError(node.name, f"its install.py {how}{ended.tail()}\n  Pin another commit, or remove it")
        after = self._locked_packages()
        changed = [
            f"{name} from {version} to {after.get(name, 'nothing')}"
            for name, version in before.items()
            if after.get(name) != version
        ]
        if changed:
            raise RestoreError(node.name, f"its install.py changed locked packages: {', '.join(changed)}. Remove it")

    def _write_constraints(self, scratch: Path) -> Path:
        file = scratch / "constraints.txt"
        file.write_text("".join(f"{line}\n" for line in self.lock.lines), encoding="utf-8")
        return file

    def _pip(self, constraints: Path, *arguments: str) -> CompletedCommand:
        quiet = ("--no-input", "--disable-pip-version-check", "--root-user-action=ignore", "--progress-bar=off")
        return self._run(Path("/"), "-m", "pip", "install", *quiet, "--constraint", str(constraints), *arguments)

    def _run(self, cwd: Path, *arguments: str) -> CompletedCommand:
        return run([self.executable, *arguments], cwd, self.env, self.timeout_s)

    def _locked_packages(self) -> dict[str, str]:
        """Return the installed versions of the locked packages."""
        ended = self._run(Path("/"), "-I", "-c", _INSTALLED)
        if not ended.succeeded:
            raise RestoreError(str(self.executable), f"its packages could not be listed{ended.tail()}")
        installed: dict[str, str] = json.loads(ended.output.splitlines()[-1])
        return {name: version for name, version in installed.items() if normal(name) in self.lock.versions}


def _pip_problem(ended: CompletedCommand) -> str:
    locked = dict.fromkeys(re.findall(r"\(constraint\) ([^\s,]+)", ended.output))
    if locked:
        return (
            f"its requirements conflict with the lock, which has {', '.join(locked)}{ended.tail()}\n  Pin a compatible "
            "commit, or lock another version with scripts/lock"
        )
    return (
        f"its requirements cannot be installed{ended.tail()}\n  Pin another commit, or remove it from the snapshot. "
        "For connection errors, check the network and its proxies"
    )
