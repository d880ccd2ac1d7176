"""models.txt: the shipped list, valid and invalid lines, and the selection of models by pattern."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from comfy_core.errors import ConfigError
from comfy_core.models.listing import ModelFile, default_list, filter_models, read_models
from comfy_core.workflows import default_directory

pytestmark = pytest.mark.slow
SHA = "0123456789abcdef" * 4
URL = "https://huggingface.co/org/repo/resolve/abc/ae.safetensors"
VALID = f"{SHA} 12 vae/ae.safetensors {URL} MIT"


def write_list(folder: Path, *lines: str) -> Path:
    """Write a models.txt with these lines; return its path."""
    file = folder / "models.txt"
    file.write_text("".join(f"{line}\n" for line in lines))
    return file


def test_the_shipped_list_has_the_models_of_the_workflows() -> None:
    """The shipped list has exactly the models that the shipped workflows name in x-models."""
    schemas = [json.loads(file.read_text()) for file in default_directory().glob("*.inputs.json")]

    assert {model.path for model in read_models(default_list())} == {
        path for schema in schemas for path in schema["x-models"]
    }


def test_the_shipped_list_is_pinned() -> None:
    """Each URL contains a commit, each model has a licence, and the total size is the one in the docs."""
    models = read_models(default_list())

    assert all(
        re.fullmatch(r"https://huggingface\.co/[\w-]+/[\w.-]+/resolve/[0-9a-f]{40}/[\w./-]+", model.url)
        for model in models
    )
    assert all(model.licence for model in models)
    assert sum(model.size for model in models) == 17_376_909_332


def test_a_line_is_a_model(tmp_path: Path) -> None:
    """Each line is a model. Comments and empty lines are ignored, and the licence is optional."""
    file = write_list(tmp_path, "# a comment", "", f"  {VALID}", f"{SHA} 1 loras/a_B-1.0.safetensors {URL}")

    assert read_models(file) == (
        ModelFile(SHA, 12, "vae/ae.safetensors", URL, "MIT"),
        ModelFile(SHA, 1, "loras/a_B-1.0.safetensors", URL),
    )


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("vae/ae.safetensors", "4 or 5 fields, and has 1"),
        (f"{VALID} and more", "4 or 5 fields, and has 7"),
        (VALID.replace(SHA, SHA[1:]), "sha256 must be 64"),
        (VALID.replace(SHA, SHA.upper()), "sha256 must be 64"),
        (VALID.replace(" 12 ", " 12k "), "bytes must be a whole number, not '12k'"),
        (VALID.replace(" 12 ", " 0 "), "bytes must be 1 or more"),
        (VALID.replace("vae/", "../"), "path must be inside ComfyUI's models folder"),
        (VALID.replace("vae/", "vae/../../"), "path must be inside"),
        (VALID.replace("vae/", "/etc/"), "path must be inside"),
        (VALID.replace("vae/", "C:/"), "path must be inside"),
        (VALID.replace("vae/", "vae\\"), "path must be inside"),
        (VALID.replace("vae/", "vae//"), "path must be inside"),
        (VALID.replace("vae/ae.safetensors", "vae/"), "path must be inside"),
        (VALID.replace("vae/ae.safetensors", "vae/ae.part"), "path must be inside"),
        (VALID.replace("vae/ae.safetensors", "vae/ae.verified"), "path must be inside"),
        (VALID.replace("https://", "ftp://"), "url must begin with https://"),
        (VALID.replace("https://", "http://"), "url must begin with https://"),
        (VALID.replace("https://", "https://user:secret@"), "no password"),
        (VALID.replace("huggingface.co", "huggingface.co:port"), "url must begin with https://"),
        (VALID.replace("https://huggingface.co", "https://"), "url must begin with https://"),
        (VALID.replace("org", "\u00f6rg"), "url must begin with https://"),
    ],
)
def test_an_invalid_line_is_reported(tmp_path: Path, line: str, message: str) -> None:
    """An invalid line is an error with the line's number and the reason; a password in the URL is not shown."""
    file = write_list(tmp_path, "# a comment", line)

    with pytest.raises(ConfigError, match=re.escape(message)) as info:
        read_models(file)

    assert str(info.value).startswith(f"{file} line 2: ")
    assert "secret" not in str(info.value)


def test_all_invalid_lines_are_reported(tmp_path: Path) -> None:
    """One error reports all invalid lines."""
    file = write_list(tmp_path, "one", VALID, "three")

    with pytest.raises(ConfigError, match=r"line 1: .*; .* line 3: "):
        read_models(file)


def test_a_duplicate_path_is_an_error(tmp_path: Path) -> None:
    """A path that another line has too is an error, even if upper and lower case differ."""
    file = write_list(tmp_path, VALID, VALID.replace("vae/ae", "VAE/ae"))

    with pytest.raises(ConfigError, match=r"line 2: path 'VAE/ae.safetensors' is already in line 1"):
        read_models(file)


def test_a_missing_or_unreadable_list_is_reported(tmp_path: Path) -> None:
    """A list that does not exist or is not UTF-8 is an error with its name and the reason."""
    with pytest.raises(ConfigError, match=r"nothing\.txt cannot be read: No such file"):
        read_models(tmp_path / "nothing.txt")

    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"bytes\.txt cannot be read: it is not UTF-8"):
        read_models(tmp_path / "bytes.txt")


def test_patterns_select_models(tmp_path: Path) -> None:
    """Patterns select models by path, no pattern selects all, and a pattern without a match is an error."""
    models = read_models(
        write_list(tmp_path, VALID, VALID.replace("vae/ae", "loras/x"), VALID.replace("vae/ae", "loras/y"))
    )

    assert [model.path for model in filter_models(models, ["loras/*"])] == [
        "loras/x.safetensors",
        "loras/y.safetensors",
    ]
    assert filter_models(models, []) == models
    with pytest.raises(ConfigError, match=r"--only 'vea/\*' matches no model of the list. It has vae/ae.safetensors, "):
        filter_models(models, ["vae/*", "vea/*"])
