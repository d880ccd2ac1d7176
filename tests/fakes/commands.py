"""Fake executables in place of programs that tests cannot run (docker, gh, sudo).

The fakes record their arguments, and print the output that the test sets.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path

PROGRAM = """\
#!{python} -I
import fcntl, json, os, sys
from pathlib import Path
folder, name = Path({folder!r}), Path(sys.argv[0]).name
with open(folder / "lock", "w") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    with (folder / "calls").open("a") as calls:
        print(json.dumps([name, *sys.argv[1:]]), file=calls)
    outputs = json.loads((folder / "outputs").read_text())
    text = " ".join([name, *sys.argv[1:]])
    found = max((begin for begin in outputs if text.startswith(begin)), key=len, default=None)
    texts = outputs.get(found, [""])
    output = texts.pop(0) if len(texts) > 1 else texts[0]
    (folder / "outputs").write_text(json.dumps(outputs))
status, _, out = output.partition(":") if output[:1].isdigit() and ":" in output[:4] else ("0", "", output)
sys.stdout.write(out)
sys.exit(int(status))
"""


class FakeCommands:
    """Fake executables in `folder`. `path` is a PATH that finds them first.

    Args:
        folder: the folder for the executables and the record of their calls.
        names: names of the programs.
        outputs: maps the beginning of a command line to its output. The longest match is used. A list has one entry
            for each call, and its last entry is repeated. "1:text" exits with status 1.
    """

    def __init__(self, folder: Path, names: tuple[str, ...], outputs: Mapping[str, str | list[str]]) -> None:
        self.folder = folder
        (folder / "bin").mkdir(parents=True)
        (folder / "calls").touch()
        lists = {begin: [text] if isinstance(text, str) else text for begin, text in outputs.items()}
        (folder / "outputs").write_text(json.dumps(lists))
        for name in names:
            self.put(folder / "bin" / name)

    def put(self, program: Path) -> None:
        """Create another fake executable at this path; it is identified by its file name."""
        program.write_text(PROGRAM.format(python=sys.executable, folder=str(self.folder)))
        program.chmod(0o755)

    @property
    def path(self) -> str:
        """PATH with the fake executables first."""
        return f"{self.folder / 'bin'}{os.pathsep}{os.environ['PATH']}"

    @property
    def calls(self) -> list[str]:
        """The command line of every call so far, with its words joined by spaces."""
        return [" ".join(json.loads(line)) for line in (self.folder / "calls").read_text().splitlines()]
