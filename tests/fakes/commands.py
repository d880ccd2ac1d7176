"""Programs that cannot be had here (docker, gh, sudo): executables that remember their arguments and answer as told."""

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
    answers = json.loads((folder / "answers").read_text())
    text = " ".join([name, *sys.argv[1:]])
    found = max((begin for begin in answers if text.startswith(begin)), key=len, default=None)
    texts = answers.get(found, [""])
    said = texts.pop(0) if len(texts) > 1 else texts[0]
    (folder / "answers").write_text(json.dumps(answers))
status, _, out = said.partition(":") if said[:1].isdigit() and ":" in said[:4] else ("0", "", said)
sys.stdout.write(out)
sys.exit(int(status))
"""


class FakeCommands:
    """Executables in `folder`, to be first on PATH.

    Args:
        names: of the programs.
        answers: what is printed for a call that begins so, the longest beginning first; a list is gone through, its
            last text again and again. "1:text" ends with status 1.
    """

    def __init__(self, folder: Path, names: tuple[str, ...], answers: Mapping[str, str | list[str]]) -> None:
        self.folder = folder
        (folder / "bin").mkdir(parents=True)
        (folder / "calls").touch()
        said = {begin: [text] if isinstance(text, str) else text for begin, text in answers.items()}
        (folder / "answers").write_text(json.dumps(said))
        for name in names:
            self.put(folder / "bin" / name)

    def put(self, program: Path) -> None:
        """Make one more such executable, known by its file's name."""
        program.write_text(PROGRAM.format(python=sys.executable, folder=str(self.folder)))
        program.chmod(0o755)

    @property
    def path(self) -> str:
        """PATH with these first."""
        return f"{self.folder / 'bin'}{os.pathsep}{os.environ['PATH']}"

    @property
    def calls(self) -> list[str]:
        """Every call so far, its words with a space between."""
        return [" ".join(json.loads(line)) for line in (self.folder / "calls").read_text().splitlines()]
