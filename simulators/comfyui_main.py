"""Simulates ComfyUI's main.py: `--help` lists the launch flags, other flags are errors, and the simulator runs.

Input, output and temp are in --temp-directory. The models are the .safetensors files in the folders of
--extra-model-paths-config, which must be JSON.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from simulators.comfyui.__main__ import main as simulate

PINNED_FLAGS: Mapping[str, str | int | None] = {
    "--listen": "?",
    "--port": 1,
    "--extra-model-paths-config": "+",
    "--output-directory": 1,
    "--temp-directory": 1,
    "--input-directory": 1,
    "--user-directory": 1,
    "--disable-auto-launch": 0,
    "--preview-method": "?",
    "--cpu": 0,
    "--lowvram": 0,
    "--disable-mmap": 0,
    "--disable-metadata": 0,
    "--disable-all-custom-nodes": 0,
    "--whitelist-custom-nodes": "+",
    "--disable-api-nodes": 0,
    "--front-end-root": 1,
    "--database-url": 1,
    "--cache-classic": 0,
    "--cache-lru": 1,
}
"""Flags of the pinned ComfyUI, each with the number of its values (argparse's `nargs`)."""
FLAGS_0_45: Mapping[str, str | int | None] = {
    **PINNED_FLAGS,
    "--offline": 0,
    "--disable-partner-nodes": 0,
    "--disable-assets": 0,
    "--models-directory": 1,
}
"""Flags of ComfyUI 0.45."""
LEGACY_FOLDERS = {"unet": "diffusion_models", "clip": "text_encoders"}
KINDS = ("checkpoints", "loras", "vae", "text_encoders", "diffusion_models")

MAIN = """\
import sys
from simulators import comfyui_main as comfyui
sys.exit(comfyui.main(sys.argv[1:], comfyui.{flags}))
"""
"""A main.py that calls `main`. {flags} is PINNED_FLAGS or FLAGS_0_45."""


def parser(flags: Mapping[str, str | int | None]) -> argparse.ArgumentParser:
    """Return a parser of these flags. The help texts mention a flag that does not exist, which no caller may use."""
    options = argparse.ArgumentParser(prog="main.py", allow_abbrev=False)
    for flag, values in flags.items():
        help_text = f"Overrides --no-such-flag, unlike {flag[2:]}."
        if values == 0:
            options.add_argument(flag, action="store_true", help=help_text)
        else:
            options.add_argument(flag, nargs=values if isinstance(values, str) else None, help=help_text)
    return options


@dataclass(frozen=True)
class ModelFileNames:
    """The .safetensors files of one kind of model. Each iteration lists the folders again."""

    folders: tuple[Path, ...]

    def __iter__(self) -> Iterator[str]:
        found = {
            str(file.relative_to(folder)) for folder in self.folders for file in folder.rglob("*") if not file.is_dir()
        }
        return iter(sorted(name for name in found if name.endswith(".safetensors")))


def model_file_names(config: str) -> dict[str, ModelFileNames]:
    """Return the model files in the folders of an extra_model_paths.yaml, by kind."""
    folders: dict[str, list[Path]] = {kind: [] for kind in KINDS}
    for section in json.loads(config).values():
        for kind, lines in section.items():
            if kind != "is_default":
                folders.setdefault(LEGACY_FOLDERS.get(kind, kind), []).extend(map(Path, lines.split("\n")))
    return {kind: ModelFileNames(tuple(paths)) for kind, paths in folders.items()}


def main(arguments: Sequence[str], flags: Mapping[str, str | int | None]) -> int:
    """Serve until a signal; return the exit status. `flags`, --step-s and --fault are the known flags.

    Raises SystemExit: 0 after --help, 2 for an unknown flag.
    """
    options = parser({**flags, "--step-s": 1, "--fault": 1}).parse_args(arguments)
    if not Path(options.user_directory).is_dir():
        parser(flags).error("--user-directory must name a folder")
    models = model_file_names(Path(options.extra_model_paths_config[0]).read_text())
    return simulate([*arguments, "--base-directory", options.temp_directory], models)
