"""The command `workflows`: lists and shows templates, writes the inputs file of a graph, and checks templates."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from comfy_client.cli.call import JSON, Call, Command
from comfy_client.cli.flags import Flag, UsageError, range_of
from comfy_client.cli.tables import Column, table_lines
from comfy_client.providers import COMFYUI_ENDPOINT, WORKFLOWS
from comfy_core.contract import JsonObject
from comfy_core.errors import ConfigError
from comfy_core.files import read_json, write_atomically
from comfy_core.graphs import graph_faults
from comfy_core.models.listing import read_models
from comfy_core.workflow_folder import WorkflowFolder
from comfy_core.workflows import Workflow, find_workflow, load_workflow, make_workflow, template_names

if TYPE_CHECKING:
    from comfy_client.authoring.checks import Findings
    from comfy_client.authoring.node_types import NodeTypes
    from comfy_client.authoring.proposal import ProposedInput
    from comfy_core.graphs import Graph

INPUT_COLUMNS = (Column("  INPUT"), Column("TYPE"), Column("MEANING", is_prose=True))
ACTIONS = ("list", "show", "init", "check")
_FLAGS = (
    Flag(
        ("action",),
        "`list` (the default); `show NAME`: a workflow's inputs; `init FILE`: write the inputs file of a graph, "
        "exported from ComfyUI or saved in its editor; `check [FILE|DIR]`: check templates against ComfyUI's nodes "
        "and models. A workflow's name is the same as `show` with it.",
        "list|show|init|check|NAME",
        {"nargs": "?", "default": "list"},
    ),
    Flag(
        ("subject",),
        "For `show`: the workflow. For `init`: the graph. For `check`: a template's file, or a folder. [default: all]",
        "NAME|FILE|DIR",
        {"nargs": "?"},
    ),
    Flag(("--schema",), "With `show`: print the JSON Schema of the inputs.", settings={"action": "store_true"}),
    Flag(
        ("--expose",),
        "With `init`: the inputs of the template, without a question: proposed names (prompt) or inputs of nodes "
        "(KSampler.seed), with another name as NAME=KSampler.seed; or all.",
        "INPUT,…",
    ),
    Flag(("--name",), "With `init`: the template's name. [default: the file's name]", "NAME"),
    Flag(
        ("--out",),
        "With `init`: the folder for the two files. [default COMFY_WORKFLOWS, else the file's folder]",
        "DIR",
        {"type": Path},
    ),
    Flag(("--comfyui",), "A ComfyUI whose nodes and models are used. [default COMFYUI_ENDPOINT]", "URL"),
    Flag(
        ("--object-info",), "A saved response of ComfyUI's /object_info, instead of --comfyui.", "FILE", {"type": Path}
    ),
    Flag(("--models",), "With `check`: a list like models.txt, instead of ComfyUI's models.", "FILE", {"type": Path}),
    Flag(("--force",), "With `init`: replace existing files.", settings={"action": "store_true"}),
)


def commands(_workflows: Mapping[str, Workflow]) -> tuple[Command, ...]:
    """Return the command `workflows`."""
    return (Command("workflows", [*_FLAGS, JSON], _workflows_command),)


def _workflows_command(call: Call) -> int:
    action, subject = call.options.action, call.options.subject
    if action not in ACTIONS:
        if subject is not None:
            raise UsageError(f"{action!r} is not an action of `workflows`. Use {', '.join(ACTIONS)}")
        return _show(call, action)
    if action == "init" and subject is None:
        raise UsageError("give the file of a graph: comfy-client workflows init graph.json")
    if action == "show" and subject is None:
        raise UsageError("give the name of a workflow: comfy-client workflows show txt2img")
    if action == "init":
        return _init(call, Path(subject))
    if action == "check":
        return _check(call, subject)
    return _show(call, subject) if action == "show" else _list(call)


def _list(call: Call) -> int:
    listed = {name: workflow.schema.get("title", "") for name, workflow in call.workflows.items()}
    columns = (Column("WORKFLOW"), Column("TITLE", is_prose=True))
    call.screen.show({"workflows": listed}, *table_lines(call.screen, columns, list(listed.items())))
    return 0


def _show(call: Call, name: str) -> int:
    workflow = find_workflow(name, call.workflows)
    if call.options.schema:
        call.screen.show(workflow.schema, json.dumps(workflow.schema, indent=2, ensure_ascii=False))
        return 0
    value = {"name": workflow.name, "version": workflow.version, "schema": workflow.schema}
    title = workflow.schema.get("title", "")
    inputs = table_lines(call.screen, INPUT_COLUMNS, input_rows(workflow.schema))
    call.screen.show(value, f"{workflow.name}: {title}" if title else workflow.name, *inputs)
    return 0


def input_rows(schema: JsonObject) -> list[tuple[str, str, str]]:
    """Return a row for each input: its name, its type, and its description, range and default."""
    required = schema.get("required", [])
    return [
        (
            f"  {name}",
            _type(rule),
            f"{'required. ' if name in required else ''}{rule.get('description', '')}{range_of(rule)}".strip(),
        )
        for name, rule in schema["properties"].items()
    ]


def _type(rule: JsonObject) -> str:
    match rule:
        case {"contentMediaType": "image/*"}:
            return "image"
        case {"type": str(kind)}:
            return kind
    return "one of"


def _init(call: Call, file: Path) -> int:
    """Write the inputs file of a graph, and the graph itself if the file is in the editor's format."""
    from comfy_client.authoring.proposal import inputs_schema, proposed_inputs  # noqa: PLC0415 - only needed here

    graph, graph_content, node_types = _read_graph(call, file)
    name = call.options.name or file.name.removesuffix(".json")
    chosen = _chosen(call, graph, proposed_inputs(graph, node_types.entries))
    schema = inputs_schema(graph, re.sub(r"[_-]+", " ", name).capitalize(), chosen)
    try:
        make_workflow(name, graph, schema)
    except LookupError as error:
        raise ConfigError(f"--expose: {error.args[0]}") from error
    folder = call.options.out or WORKFLOWS.read(call.environment) or file.parent
    written = _write_template(call, folder / name, graph_content, _indented(schema), file)
    paths = [str(path) for path in written]
    call.screen.say(f"Types, ranges and choices are from {node_types.source}.")
    if unknown := sorted(_classes([graph]) - node_types.entries.keys()):
        call.screen.say(
            f"Without {', '.join(unknown)}: their inputs have no ranges. --comfyui URL reads another ComfyUI."
        )
    result = {"files": paths, "node_types": node_types.source, "schema": schema}
    inputs = table_lines(call.screen, INPUT_COLUMNS, input_rows(schema))
    call.screen.show(result, *(f"wrote {path}" for path in paths), *inputs)
    return 0


def _read_graph(call: Call, file: Path) -> tuple[Graph, bytes, NodeTypes]:
    """Return the graph in a file, its text, and the node classes. A graph in the editor's format is converted."""
    from comfy_client.authoring.editor_format import class_types, convert, is_editor_format  # noqa: PLC0415 - only needed here

    value = read_json(file)
    if is_editor_format(value):
        try:
            node_types = _node_types(call, class_types(value))
            graph = convert(value, node_types.entries)
        except ConfigError as error:
            raise ConfigError(f"{file}: {error}") from error
        return graph, _indented(graph), node_types
    match value:
        case {"input": {"workflow": dict(graph)}} | {"prompt": dict(graph)} | {"workflow": dict(graph)}:
            content = _indented(graph)
        case _:
            graph, content = value, file.read_bytes()
    if faults := graph_faults(graph):
        raise ConfigError(f"{file}: {'; '.join(f'{fault.path} {fault.message}' for fault in faults[:3])}")
    return graph, content, _node_types(call, _classes([graph]))


def _indented(value: JsonObject) -> bytes:
    return json.dumps(value, indent=2, ensure_ascii=False).encode() + b"\n"


def _write_template(call: Call, path: Path, graph: bytes, inputs: bytes, source: Path) -> list[Path]:
    """Write the two files of a template and return their paths. A graph that is already there is kept.

    Raises UsageError if a file exists and --force was not given.
    """
    files = {path.with_name(f"{path.name}.json"): graph, path.with_name(f"{path.name}.inputs.json"): inputs}
    changed = {
        file: content for file, content in files.items() if not (file.is_file() and file.read_bytes() == content)
    }
    for file in changed:
        if file.exists() and file.samefile(source):
            raise UsageError(f"{file} is the file to convert, and is not replaced: use --name or --out")
        if file.exists() and not call.options.force:
            raise UsageError(f"{file} exists: use --force to replace it, or --name")
    for file, content in changed.items():
        write_atomically(file, content)
    return list(changed)


def _chosen(call: Call, graph: Graph, proposed: Sequence[ProposedInput]) -> list[ProposedInput]:
    """Return the inputs that --expose names, or those that the user selects, or without a terminal the usual ones."""
    from comfy_client.authoring.proposal import selected_inputs  # noqa: PLC0415 - only needed by this action

    usual = [each for each in proposed if each.is_usual]
    wanted = call.options.expose
    if wanted is None and not call.screen.is_json and sys.stdin.isatty() and call.screen.err.isatty():
        for number, each in enumerate(proposed, 1):
            mark = "*" if each.is_usual else " "
            call.screen.say(f"{number:3} {mark} {each.name:26}{', '.join(each.places)}{range_of(each.rule)}")
        call.screen.err.write("Inputs of the template: numbers or names, separated by commas; Enter for those with *: ")
        call.screen.err.flush()
        wanted = sys.stdin.readline().strip()
    if not wanted:
        return usual
    if wanted.strip() == "all":
        return list(proposed)
    words = [word.strip() for word in wanted.split(",") if word.strip()]
    return selected_inputs(graph, proposed, [_by_number(word, proposed) for word in words])


def _by_number(word: str, proposed: Sequence[ProposedInput]) -> str:
    return proposed[int(word) - 1].name if word.isdecimal() and 0 < int(word) <= len(proposed) else word


def _check(call: Call, subject: str | None) -> int:
    """Check templates, show what is wrong with each, and return the exit status."""
    workflows, broken = _templates(call, subject)
    classes = _classes(workflow.graph for workflow in workflows.values())
    node_types = _node_types(call, classes)
    models = _models(call, workflows, node_types)
    findings = _findings(workflows, broken, node_types, models)
    lines = [f"Checked against {node_types.source}."]
    for name, found in findings.items():
        lines.append(f"{'!!' if found.faults else 'ok'}  {name}")
        lines += [f"      {text}" for text in (*found.faults, *found.notes)]
    failed = [name for name, found in findings.items() if found.faults]
    error = ConfigError(f"{len(failed)} of {len(findings)} templates have faults: {', '.join(failed)}")
    report = {"error": json.loads(error.report.to_json())} if failed else {}
    shown = {name: {"faults": list(found.faults), "notes": list(found.notes)} for name, found in findings.items()}
    call.screen.show({"workflows": shown, "node_types": node_types.source, **report}, *lines)
    return error.exit_status if failed else 0


def _templates(call: Call, subject: str | None) -> tuple[dict[str, Workflow], dict[str, str]]:
    """Return the templates to check by name, and for each whose files are invalid the reason."""
    if subject is None:
        return dict(call.workflows), call.workflows.problems() if isinstance(call.workflows, WorkflowFolder) else {}
    path = Path(subject)
    if not path.exists() and subject in call.workflows:
        return {subject: call.workflows[subject]}, {}
    name = path.name.removesuffix(".json").removesuffix(".inputs")
    names = template_names(path) if path.is_dir() else [name]
    folder = path if path.is_dir() else path.parent
    if not names:
        raise ConfigError(f"{path} contains no workflow: each consists of <name>.json and <name>.inputs.json")
    workflows, broken = {}, {}
    for each in names:
        try:
            workflows[each] = load_workflow(folder, each)
        except ConfigError as error:
            broken[each] = str(error)
    return workflows, broken


def _findings(
    workflows: Mapping[str, Workflow], broken: Mapping[str, str], node_types: NodeTypes, models: Collection[str] | None
) -> dict[str, Findings]:
    from comfy_client.authoring.checks import Findings, check_workflow  # noqa: PLC0415 - only needed by this action

    found = {name: Findings((reason,)) for name, reason in broken.items()}
    found |= {name: check_workflow(workflow, node_types, models) for name, workflow in workflows.items()}
    return dict(sorted(found.items()))


def _classes(graphs: Iterable[object]) -> set[str]:
    """Return the node classes of graphs in API format, or of values that may be such graphs."""
    nodes = [node for graph in graphs if isinstance(graph, dict) for node in graph.values() if isinstance(node, dict)]
    return {str(node["class_type"]) for node in nodes if "class_type" in node}


def _node_types(call: Call, classes: Collection[str]) -> NodeTypes:
    """Return the node classes that the flags select, else those of the configured ComfyUI, else the recorded ones."""
    from comfy_client.authoring.node_types import from_comfyui, from_file, recorded  # noqa: PLC0415 - only needed here

    if call.options.object_info is not None:
        return from_file(call.options.object_info)
    url = call.options.comfyui or COMFYUI_ENDPOINT.read(call.environment)
    return from_comfyui(url, classes) if url else recorded()


def _models(call: Call, workflows: Mapping[str, Workflow], node_types: NodeTypes) -> list[str] | None:
    """Return the model files that exist, as `folder/file`, or None if they are not known."""
    if call.options.models is not None:
        return [model.path for model in read_models(call.options.models)]
    if node_types.files is None:
        return None
    needed = {model for workflow in workflows.values() for model in workflow.schema.get("x-models", ())}
    files = node_types.files({model.partition("/")[0] for model in needed})
    return [f"{folder}/{file}" for folder, names in files.items() for file in names]
