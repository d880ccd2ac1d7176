"""What the nodes ask of Python: their requirements, the snapshot's packages, their install.py. The image's lock stays.

All requirements go to pip in one call: one after the other, a later node would undo what an earlier one needs. Where
that fails each is tried alone, to name the one at fault.
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
    """What is installed already and has to stay as it is.

    Attributes:
        lines: the lists of --constraints, as pip takes constraints: without hashes and extras.
        versions: the versions of each name, of which one counts on this machine.
    """

    lines: tuple[str, ...] = ()
    versions: Mapping[str, frozenset[str]] = field(default_factory=dict)

    @staticmethod
    def read(files: Sequence[Path]) -> Lock:
        """Return what the files have in all. Raises ConfigError."""
        lines: list[str] = []
        versions: dict[str, frozenset[str]] = {}
        for file in files:
            try:
                text = file.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise ConfigError(f"--constraints: {file} was not read ({type(error).__name__})") from error
            for line in re.sub(r"\\\n", " ", text).splitlines():
                # With a hash in it pip would ask for hashes of the nodes' requirements too.
                plain = re.sub(r"(^|\s)#.*|\s--hash=\S+", "", line).strip()
                if re.match(r"(-r|-c|-e|--requirement|--constraint|--editable)\b", plain):
                    raise ConfigError(
                        f"--constraints: {file} names another file ({plain}). Name both with --constraints"
                    )
                if found := re.fullmatch(_PINNED, plain):
                    name = normal(found["name"])
                    versions[name] = versions.get(name, frozenset()) | {found["version"]}
                    plain = f"{found['name']}=={found['version']}{found['rest']}"
                if plain:
                    lines.append(plain)
        return Lock(tuple(lines), versions)


def normal(name: str) -> str:
    """Return a package's name in its one normal form."""
    return re.sub(r"[-_.]+", "-", name).lower()


@dataclass(frozen=True)
class Node:
    """A node that lies in custom_nodes/."""

    name: str
    folder: Path

    @property
    def requirements(self) -> Path | None:
        """Its list, or None where it has none or an empty one."""
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
    """The Python that ComfyUI runs on, with its own pip.

    Attributes:
        executable: of its environment.
        lock: what may not change in it.
        env: the environment of what is run.
        timeout_s: the longest that one run of pip, or of an install.py, may take.
    """

    executable: Path
    lock: Lock
    env: Mapping[str, str]
    timeout_s: float

    def require_pip(self) -> None:
        """Raise ConfigError where it is no Python with pip."""
        try:
            ended = self._run(Path("/"), "-m", "pip", "--version")
        except OSError as error:
            raise ConfigError(f"--python: {self.executable} cannot be run ({error.strerror})") from error
        if not ended.succeeded:
            raise ConfigError(
                f"--python: {self.executable} has no pip. Make its environment with `python -m venv`, or `uv venv "
                f"--seed`{ended.tail()}"
            )

    def conflicts(self, packages: Sequence[Package]) -> list[RestoreError]:
        """Return an error for each package that the lock has in another version."""
        locked = self.lock.versions
        return [
            RestoreError(
                f"pips[{package.name}]",
                f"the snapshot has {package.version}, the lock {' or '.join(sorted(locked[normal(package.name)]))}. "
                "Take it out of the snapshot, or lock that version with scripts/lock",
            )
            for package in packages
            if package.version and package.version not in locked.get(normal(package.name), {package.version})
        ]

    def install(self, nodes: Sequence[Node], packages: Sequence[Package], scratch: Path) -> list[RestoreError]:
        """Install what nodes and snapshot ask for; return an error for each that asks for what cannot be had."""
        wanted = [package for package in packages if normal(package.name) not in self.lock.versions or package.url]
        lists = {node.name: ["-r", str(node.requirements)] for node in nodes if node.requirements}
        if wanted:
            lists["pips"] = [package.requirement for package in wanted]
        if not lists:
            return []
        if not self.lock.lines:
            LOG.warning("No --constraints: what the nodes ask for may change the packages that ComfyUI runs on")
        constraints = self._write_constraints(scratch)
        LOG.info("installing the requirements of %s", ", ".join(lists))
        ended = self._pip(constraints, *(word for words in lists.values() for word in words))
        if ended.succeeded:
            return []
        if ended.late:
            return [RestoreError("pip", f"it did not end within {self.timeout_s:g} s{ended.tail()}")]
        alone = dict.fromkeys(lists, ended)
        if len(lists) > 1:
            alone = {name: self._pip(constraints, "--dry-run", *words) for name, words in lists.items()}
        errors = [RestoreError(name, _pip_problem(each)) for name, each in alone.items() if not each.succeeded]
        return errors or [
            RestoreError(
                " and ".join(lists),
                f"their requirements cannot be installed together, though each alone might be{ended.tail()}\n  Pin "
                "nodes that agree, or take one of them out",
            )
        ]

    def run_script(self, node: Node, comfyui: Path, scratch: Path) -> None:
        """Run a node's install.py as the Manager does. Raises RestoreError where it fails or changes what is locked."""
        constraints = str(self._write_constraints(scratch))
        env = {
            **self.env,
            "COMFYUI_PATH": str(comfyui),
            "COMFYUI_FOLDERS_BASE_PATH": str(comfyui),
            "PATH": f"{self.executable.parent}{os.pathsep}{self.env.get('PATH', os.defpath)}",
            # Of the pip that a script may call.
            "PIP_CONSTRAINT": constraints,
            "UV_CONSTRAINT": constraints,
        }
        before = self._locked_packages()
        LOG.info("%s: running its install.py", node.name)
        ended = run([self.executable, _SCRIPT], node.folder, env, self.timeout_s)
        if not ended.succeeded:
            how = f"did not end within {self.timeout_s:g} s" if ended.late else f"ended with status {ended.status}"
            raise RestoreError(node.name, f"its install.py {how}{ended.tail()}\n  Pin another commit, or take it out")
        after = self._locked_packages()
        changed = [
            f"{name} from {version} to {after.get(name, 'nothing')}"
            for name, version in before.items()
            if after.get(name) != version
        ]
        if changed:
            raise RestoreError(node.name, f"its install.py changed what is locked: {', '.join(changed)}. Take it out")

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
        """Return the installed packages that are locked, with their versions."""
        ended = self._run(Path("/"), "-I", "-c", _INSTALLED)
        if not ended.succeeded:
            raise RestoreError(str(self.executable), f"it does not say what is installed{ended.tail()}")
        installed: dict[str, str] = json.loads(ended.output.splitlines()[-1])
        return {name: version for name, version in installed.items() if normal(name) in self.lock.versions}


def _pip_problem(ended: CompletedCommand) -> str:
    locked = dict.fromkeys(re.findall(r"\(constraint\) ([^\s,]+)", ended.output))
    if locked:
        return (
            f"its requirements contradict the lock, which has {', '.join(locked)}{ended.tail()}\n  Pin a commit of it "
            "that agrees, or lock another version with scripts/lock"
        )
    return (
        f"its requirements cannot be installed{ended.tail()}\n  Pin another commit of it, or take it out of the "
        "snapshot; where nothing was reached, check the network and its proxies"
    )
