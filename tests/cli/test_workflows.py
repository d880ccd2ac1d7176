"""`comfy-client workflows`: list, show, init and check, and the folder of own workflows that every command uses."""

from __future__ import annotations

import io
import json
import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest

from comfy_core.contract import JsonObject
from comfy_core.workflows import default_directory
from simulators.comfyui import Simulator
from simulators.comfyui.node_table import OBJECT_INFO
from simulators.runpod.queue_api import RunPodPlatform
from tests.authoring.graphs import TXT2IMG, editor_node, editor_workflow, output, socket
from tests.cli.conftest import Shell


@pytest.fixture
def graph_file(tmp_path: Path) -> Path:
    """An export of ComfyUI in a folder of its own."""
    file = tmp_path / "mine" / "portrait.json"
    file.parent.mkdir()
    shutil.copy(default_directory() / "flux-dev-txt2img.json", file)
    return file


def read(file: Path) -> JsonObject:
    """Return the JSON object in a file."""
    value: JsonObject = json.loads(file.read_text(encoding="utf-8"))
    return value


def test_workflows_are_listed_and_shown(shell: Shell) -> None:
    """Without an action the names are listed. A name, or `show` and a name, lists its inputs."""
    assert shell("workflows").out == shell("workflows", "list").out
    assert "flux-dev-txt2img" in shell("workflows").out
    assert shell("workflows", "show", "txt2img").out == shell("workflows", "txt2img").out


def test_init_writes_the_inputs_file(shell: Shell, graph_file: Path) -> None:
    """Without a terminal the usual inputs are taken; the graph stays as it was exported, and both pass the check."""
    before = graph_file.read_bytes()
    ended = shell("workflows", "init", str(graph_file))

    assert ended.status == 0, ended.err
    schema = read(graph_file.with_name("portrait.inputs.json"))
    assert graph_file.read_bytes() == before
    assert {"prompt", "seed", "num_images", "steps"} <= schema["properties"].keys()
    assert schema["title"] == "Portrait"
    assert ended.out.startswith(f"wrote {graph_file.with_name('portrait.inputs.json')}\n")
    assert "from the simulator (" in ended.err
    assert shell("workflows", "check", str(graph_file)).status == 0


def test_init_exposes_what_the_flag_names(shell: Shell, graph_file: Path) -> None:
    """--expose selects inputs without a question, --name and --out say where the template is written."""
    ended = shell(
        "workflows", "init", str(graph_file), "--expose", "prompt,KSampler.seed,cfg=KSampler.cfg",
        "--name", "face", "--out", "other", "--json",
    )  # fmt: skip

    assert ended.json["files"] == ["other/face.json", "other/face.inputs.json"]
    assert list(ended.json["schema"]["properties"]) == ["prompt", "seed", "cfg", "num_images"]
    assert Path("other/face.json").read_bytes() == graph_file.read_bytes()


def test_init_writes_only_valid_templates(shell: Shell, graph_file: Path) -> None:
    """A name that requests cannot have is refused before anything is written."""
    ended = shell("workflows", "init", str(graph_file), "--expose", "metadata=KSampler.cfg")

    assert ended.status == 3
    assert 'input "metadata" has the same name as a key of every request' in ended.err
    assert not graph_file.with_name("portrait.inputs.json").exists()


def test_init_replaces_nothing(shell: Shell, graph_file: Path) -> None:
    """An existing inputs file is kept without --force."""
    inputs = graph_file.with_name("portrait.inputs.json")
    inputs.write_text("mine")

    assert shell("workflows", "init", str(graph_file)).status == 2
    assert inputs.read_text() == "mine"
    assert shell("workflows", "init", str(graph_file), "--force").status == 0
    assert "properties" in read(inputs)


def test_init_converts_the_editor_s_format(shell: Shell, tmp_path: Path) -> None:
    """The converted graph is written beside the inputs file, and the editor's file is not replaced."""
    nodes = [
        editor_node(1, "EmptyImage", [64, 64, 1, 255], outputs=[output("IMAGE")]),
        editor_node(2, "SaveImage", ["mine"], inputs=[socket("images", "IMAGE", 1)]),
    ]
    file = tmp_path / "drawn.json"
    file.write_text(json.dumps(editor_workflow(*nodes, links=[[1, 1, 0, 2, 0, "IMAGE"]])))

    refused = shell("workflows", "init", str(file))
    ended = shell("workflows", "init", str(file), "--out", "converted", "--expose", "EmptyImage.color")

    assert refused.status == 2
    assert "use --name or --out" in refused.err
    assert ended.status == 0, ended.err
    assert read(Path("converted/drawn.json"))["2"]["inputs"] == {"filename_prefix": "mine", "images": ["1", 0]}
    assert shell("workflows", "check", "converted").status == 0


@pytest.mark.parametrize(
    ("content", "status", "message"),
    [
        (
            '{"nodes": [{"id": 1, "type": "Odd", "widgets_values": [1], "inputs": [{"name": "x", "link": 1}]}]}',
            3,
            "Export",
        ),
        ('{"1": {"inputs": {}}}', 3, "must be a node"),
        ("[", 3, "is not JSON"),
    ],
    ids=["an unknown node in the editor's format", "no graph", "no JSON"],
)
def test_init_explains_what_it_cannot_read(
    shell: Shell, tmp_path: Path, content: str, status: int, message: str
) -> None:
    """The error names the file, and how to export the graph."""
    file = tmp_path / "odd.json"
    file.write_text(content)
    ended = shell("workflows", "init", str(file))

    assert ended.status == status
    assert message in ended.err
    assert "odd.json" in ended.err


class _Keyboard(io.StringIO):
    """Typed lines, on a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("typed", "names"),
    [("\n", {"prompt", "seed", "steps"}), ("prompt, 2\n", {"prompt"})],
    ids=["Enter", "a name and a number"],
)
def test_init_asks_on_a_terminal(
    graph_file: Path, monkeypatch: pytest.MonkeyPatch, typed: str, names: set[str]
) -> None:
    """The proposals are numbered, and the selection is read from stdin."""
    from comfy_client.cli.main import main  # noqa: PLC0415 - the shell's stderr is not a terminal

    monkeypatch.setattr(sys, "stdin", _Keyboard(typed))
    err = _Keyboard()
    assert main(["workflows", "init", str(graph_file)], {}, io.StringIO(), err) == 0

    properties = read(graph_file.with_name("portrait.inputs.json"))["properties"]
    assert names <= properties.keys()
    assert ("steps" in properties) == (typed == "\n")
    assert "  1 * prompt" in err.getvalue()


def test_check_uses_the_nodes_and_models_of_a_comfyui(shell: Shell, graph_file: Path) -> None:
    """With --comfyui the models must exist there. The exit status of a fault is 3, and JSON has the faults."""
    assert shell("workflows", "init", str(graph_file)).status == 0
    with Simulator(models={"text_encoders": ("t5xxl_fp8_e4m3fn.safetensors",)}) as simulator:
        ended = shell("workflows", "check", str(graph_file), "--comfyui", simulator.url, "--json")

    assert ended.status == 3
    assert ended.json["node_types"] == f"ComfyUI at {simulator.url}"
    faults = ended.json["workflows"]["portrait"]["faults"]
    assert "its model text_encoders/clip_l.safetensors does not exist" in faults
    assert "its model vae/ae.safetensors does not exist" not in faults
    assert "portrait" in ended.json["error"]["message"]


def test_check_reads_files_instead_of_a_comfyui(shell: Shell, graph_file: Path) -> None:
    """--object-info is a saved response, and --models a list like models.txt."""
    models = Path(__file__).parents[2] / "models.txt"
    assert shell("workflows", "init", str(graph_file), "--object-info", str(OBJECT_INFO)).status == 0
    flags = ("--object-info", str(OBJECT_INFO), "--models", str(models))

    ended = shell("workflows", "check", str(graph_file), *flags)
    assert (ended.status, ended.out) == (0, f"Checked against {OBJECT_INFO}.\nok  portrait\n")
    assert shell("workflows", "check", str(graph_file), "--object-info", str(graph_file)).status == 3
    (graph_file.parent / "list.txt").write_text("0123 7 vae/ae.safetensors\n")
    invalid = shell("workflows", "check", str(graph_file), *flags[:2], "--models", str(graph_file.parent / "list.txt"))
    assert (invalid.status, "list.txt line 1: must be `sha256 bytes path url [licence]`" in invalid.err) == (3, True)


def test_a_broken_template_does_not_hide_the_others(shell: Shell, graph_file: Path) -> None:
    """The check of a folder lists each template; the other commands use the valid ones."""
    assert shell("workflows", "init", str(graph_file)).status == 0
    graph_file.with_name("broken.inputs.json").write_text("{")
    graph_file.with_name("broken.json").write_text(json.dumps(TXT2IMG))
    folder = str(graph_file.parent)

    checked = shell("workflows", "check", folder)
    listed = shell("workflows", "list", "--workflows", folder)
    broken = shell("workflows", "show", "broken", COMFY_WORKFLOWS=folder)
    all_checked = shell("workflows", "check", COMFY_WORKFLOWS=folder)

    assert checked.status == all_checked.status == 3
    assert "!!  broken" in checked.out
    assert "ok  portrait" in checked.out
    assert {"!!  broken", "ok  portrait", "ok  flux-dev-txt2img"} <= set(all_checked.out.splitlines())
    assert "portrait" in listed.out
    assert "flux-dev-txt2img" in listed.out
    assert (broken.status, "broken.inputs.json is not JSON" in broken.err) == (1, True)


def test_an_own_workflow_is_sent_with_the_request(shell: Shell, graph_file: Path, platform: RunPodPlatform) -> None:
    """The worker needs no copy of the template: the request contains its graph and its inputs file."""
    assert shell("workflows", "init", str(graph_file)).status == 0
    own = ("--workflows", str(graph_file.parent))

    ended = shell("run", "portrait", "-i", "prompt=a knight", "-i", "steps=4", "-o", "a.png", *own)
    wrong = shell("run", "portrait", "-i", "prompt=a knight", "-i", "steps=0", *own)

    [job] = platform.jobs.values()
    assert ended.status == 0, ended.err
    assert job.input["workflow"] == TXT2IMG
    assert job.input["inputs_schema"]["x-name"] == "portrait"
    assert (job.input["prompt"], job.input["steps"]) == ("a knight", 4)
    assert (wrong.status, "must be at least 1" in wrong.err) == (1, True)


def test_an_own_workflow_may_have_any_file_name(shell: Shell, graph_file: Path, platform: RunPodPlatform) -> None:
    """The name in the result has no characters that a file name cannot have."""
    folder = str(graph_file.parent)
    assert shell("workflows", "init", str(graph_file), "--name", "my flow (2)").status == 0

    assert shell("run", "my flow (2)", "-i", "prompt=x", "-o", "a.png", "--workflows", folder).status == 0
    [job] = platform.jobs.values()
    assert job.input["inputs_schema"]["x-name"] == "my_flow_2_"


def test_a_folder_that_does_not_exist_is_named(shell: Shell) -> None:
    """A typing error in the folder is not taken for an empty folder."""
    ended = shell("workflows", COMFY_WORKFLOWS="nowhere")

    assert ended.status == 3
    assert "COMFY_WORKFLOWS: the folder nowhere does not exist" in ended.err
    assert shell("workflows", "--workflows").status == 2


@pytest.mark.parametrize("words", [("init",), ("show",), ("chek", "x")])
def test_a_missing_or_unknown_argument_is_a_usage_error(shell: Shell, words: tuple[str, ...]) -> None:
    """Nothing is read or written."""
    assert shell("workflows", *words).status == 2


def test_the_commands_of_the_page_run(shell: Shell, tmp_path: Path) -> None:
    """docs/workflows.md: the commands of "Your own workflow" run in their order, in a folder with portrait.json."""
    page = (Path(__file__).parents[2] / "docs" / "workflows.md").read_text(encoding="utf-8")
    [block] = re.findall(r"tests/cli/test_workflows\.py\. -->\n```sh\n(.*?)```", page, re.DOTALL)
    shutil.copy(default_directory() / "flux-dev-txt2img.json", tmp_path / "portrait.json")
    first, *commands = block.splitlines()
    assert first == "mkdir my-workflows && export COMFY_WORKFLOWS=my-workflows"
    Path("my-workflows").mkdir()

    for command in commands:
        ended = shell(*shlex.split(command, comments=True)[1:], COMFY_WORKFLOWS="my-workflows")
        assert ended.status == 0, (command, ended.err)
    assert Path("my-workflows/portrait.inputs.json").is_file()
    assert Path("knight.png").is_file()
