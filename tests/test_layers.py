"""The order of modules: each may import only what stands before it, and only the packages named beside it."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

ORDER: tuple[tuple[str, frozenset[str]], ...] = (
    ("comfy_client", frozenset()),
    ("comfy_client.contract", frozenset()),
    ("comfy_client.errors", frozenset()),
    ("comfy_client.prices", frozenset()),
    ("comfy_client.validation", frozenset({"jsonschema"})),
    ("comfy_client.decoding", frozenset({"PIL"})),
    ("comfy_client.images", frozenset({"PIL"})),
    ("comfy_client.picture_child", frozenset()),
    ("comfy_client.picture_process", frozenset()),
    ("comfy_client.public_addresses", frozenset()),
    ("comfy_client.fetch", frozenset({"requests"})),
    ("comfy_client.fetch_all", frozenset()),
    ("comfy_client.http", frozenset({"requests", "urllib3"})),
    ("comfy_client.s3_hosts", frozenset()),
    ("comfy_client.buckets", frozenset({"boto3", "botocore"})),
    ("comfy_client.foreign_keys", frozenset()),
    ("comfy_client.spellings", frozenset()),
    ("comfy_client.encoded", frozenset()),
    ("comfy_client.prompt_syntax", frozenset()),
    ("comfy_client.graphs", frozenset()),
    ("comfy_client.places", frozenset()),
    ("comfy_client.wrappers", frozenset()),
    ("comfy_client.workflows", frozenset({"jsonschema"})),
    ("comfy_client.comfyui", frozenset()),
    ("comfy_client.comfyui.file_inputs", frozenset()),
    ("comfy_client.template_overrides", frozenset()),
    ("comfy_client.graph_files", frozenset()),
    ("comfy_client.request", frozenset()),
    ("comfy_client.intake", frozenset()),
    ("comfy_client.comfyui.events", frozenset()),
    ("comfy_client.comfyui.answers", frozenset()),
    ("comfy_client.comfyui.refusals", frozenset()),
    ("comfy_client.comfyui.path_guard", frozenset()),
    ("comfy_client.comfyui.graph_checks", frozenset()),
    ("comfy_client.comfyui.delivery", frozenset()),
    ("comfy_client.comfyui.event_socket", frozenset({"websocket"})),
    ("comfy_client.comfyui.leftovers", frozenset()),
    ("comfy_client.comfyui.server", frozenset({"requests"})),
    ("comfy_client.comfyui.follow", frozenset()),
    ("comfy_client.comfyui.saved", frozenset()),
    ("comfy_client.comfyui.run", frozenset()),
    ("comfy_client.comfyui.outputs", frozenset()),
    ("comfy_client.providers.interface", frozenset({"PIL"})),
    ("comfy_client.providers.runpod_answers", frozenset()),
    ("comfy_client.providers.runpod_endpoint", frozenset({"requests"})),
    ("comfy_client.providers.results", frozenset()),
    ("comfy_client.providers.asked", frozenset()),
    ("comfy_client.providers.runpod", frozenset()),
    ("comfy_client.providers.premade", frozenset()),
    ("comfy_client.providers.comfyui", frozenset()),
    ("comfy_client.providers.scenario_request", frozenset()),
    ("comfy_client.providers.scenario_answers", frozenset()),
    ("comfy_client.providers.scenario_api", frozenset({"scenario_sdk", "httpx"})),
    ("comfy_client.providers.scenario", frozenset()),
    ("comfy_client.providers", frozenset()),
    ("comfy_client.steps", frozenset()),
    ("comfy_client.job", frozenset()),
    ("comfy_client.pictures", frozenset({"PIL"})),
    ("comfy_client.inputs", frozenset()),
    ("comfy_client.client", frozenset()),
    ("comfy_client.aio", frozenset()),
    ("comfy_client.scenario", frozenset()),
    ("comfy_client.scenario.errors", frozenset()),
    ("comfy_client.scenario.bodies", frozenset()),
    ("comfy_client.scenario.fields", frozenset()),
    ("comfy_client.scenario.mapping", frozenset()),
    ("comfy_client.scenario.settings", frozenset()),
    ("comfy_client.scenario.rows", frozenset()),
    ("comfy_client.scenario.store", frozenset()),
    ("comfy_client.scenario.blobs", frozenset()),
    ("comfy_client.scenario.repeats", frozenset()),
    ("comfy_client.scenario.records", frozenset()),
    ("comfy_client.scenario.lists", frozenset()),
    ("comfy_client.scenario.keeper", frozenset()),
    ("comfy_client.scenario.made", frozenset()),
    ("comfy_client.scenario.jobs", frozenset()),
    ("comfy_client.scenario.assets", frozenset()),
    ("comfy_client.scenario.uploads", frozenset()),
    ("comfy_client.scenario.models", frozenset()),
    ("comfy_client.scenario.folder", frozenset({"filelock"})),
    ("comfy_client.scenario.service", frozenset()),
    ("comfy_client.scenario.client", frozenset()),
    ("comfy_client.scenario.auth", frozenset()),
    ("comfy_client.scenario.throttle", frozenset({"limits"})),
    ("comfy_client.scenario.routes", frozenset()),
    ("comfy_client.scenario.openapi", frozenset()),
    ("comfy_client.scenario.page", frozenset()),
    ("comfy_client.scenario.origin", frozenset()),
    ("comfy_client.scenario.receiving", frozenset({"starlette"})),
    ("comfy_client.scenario.connections", frozenset({"uvicorn"})),
    ("comfy_client.scenario.server", frozenset({"starlette"})),
    ("comfy_client.scenario.serve", frozenset()),
    ("comfy_client.batch", frozenset()),
    ("comfy_client.batch.plan", frozenset()),
    ("comfy_client.batch.journal", frozenset()),
    ("comfy_client.batch.destination", frozenset({"botocore"})),
    ("comfy_client.batch.run", frozenset()),
    ("comfy_client.batch.gallery", frozenset()),
    ("comfy_client.batch.manifest", frozenset()),
    ("comfy_client.deploy", frozenset()),
    ("comfy_client.deploy.variables", frozenset()),
    ("comfy_client.deploy.description", frozenset()),
    ("comfy_client.deploy.offers", frozenset()),
    ("comfy_client.deploy.desired", frozenset()),
    ("comfy_client.deploy.diff", frozenset()),
    ("comfy_client.deploy.answers", frozenset()),
    ("comfy_client.deploy.api", frozenset()),
    ("comfy_client.deploy.graphql", frozenset()),
    ("comfy_client.deploy.plan", frozenset()),
    ("comfy_client.deploy.steps", frozenset()),
    ("comfy_client.cli", frozenset()),
    ("comfy_client.cli.flags", frozenset()),
    ("comfy_client.cli.progress", frozenset({"tqdm"})),
    ("comfy_client.cli.screen", frozenset()),
    ("comfy_client.cli.call", frozenset()),
    ("comfy_client.cli.parser", frozenset()),
    ("comfy_client.cli.messages", frozenset()),
    ("comfy_client.cli.output", frozenset()),
    ("comfy_client.cli.results", frozenset()),
    ("comfy_client.cli.requests", frozenset()),
    ("comfy_client.cli.following", frozenset()),
    ("comfy_client.cli.reference", frozenset()),
    ("comfy_client.cli.doctor", frozenset()),
    ("comfy_client.cli.commands", frozenset()),
    ("comfy_client.cli.servers", frozenset()),
    ("comfy_client.cli.batch", frozenset({"tqdm"})),
    ("comfy_client.cli.deploy", frozenset()),
    ("comfy_client.cli.main", frozenset({"shtab"})),
    ("worker", frozenset()),
    ("worker.command_line", frozenset()),
    ("worker.logs", frozenset({"pythonjsonlogger"})),
    ("worker.address", frozenset()),
    ("worker.conceal", frozenset()),
    ("worker.disk", frozenset()),
    ("worker.health", frozenset()),
    ("worker.boot_times", frozenset()),
    ("worker.storage", frozenset()),
    ("worker.settings", frozenset()),
    ("worker.models", frozenset()),
    ("worker.models.listing", frozenset()),
    ("worker.models.own_files", frozenset()),
    ("worker.models.files", frozenset()),
    ("worker.models.source", frozenset({"requests"})),
    ("worker.models.fetch", frozenset()),
    ("worker.models.__main__", frozenset({"tqdm"})),
    ("worker.snapshot", frozenset()),
    ("worker.snapshot.listing", frozenset()),
    ("worker.snapshot.commands", frozenset()),
    ("worker.snapshot.patience", frozenset()),
    ("worker.snapshot.repository", frozenset()),
    ("worker.snapshot.registry", frozenset()),
    ("worker.snapshot.packages", frozenset()),
    ("worker.snapshot.restore", frozenset()),
    ("worker.snapshot.__main__", frozenset()),
    ("worker.turns", frozenset()),
    ("worker.lifecycle", frozenset()),
    ("worker.taken", frozenset()),
    ("worker.platform", frozenset({"aiohttp", "runpod"})),
    ("worker.comfyui_environment", frozenset()),
    ("worker.uses", frozenset()),
    ("worker.comfyui_log", frozenset()),
    ("worker.watchdog", frozenset()),
    ("worker.supervision", frozenset()),
    ("worker.comfyui_process", frozenset()),
    ("worker.launch_flags", frozenset()),
    ("worker.model_folders", frozenset()),
    ("worker.model_fetch", frozenset()),
    ("worker.model_supply", frozenset()),
    ("worker.progress", frozenset()),
    ("worker.job_end", frozenset()),
    ("worker.outputs", frozenset()),
    ("worker.local_results", frozenset()),
    ("worker.boot", frozenset()),
    ("worker.jobs", frozenset()),
    ("worker.attempt", frozenset()),
    ("handler", frozenset({"runpod"})),
)
"""Every module but the simulator's, from the ground up, and the third-party packages that each may use."""

POSITION = {name: number for number, (name, _) in enumerate(ORDER)}
SIMULATOR = frozenset({"aiohttp", "PIL"})


def modules() -> dict[str, Path]:
    """Return the project's modules by name."""
    files = [*ROOT.glob("comfy_client/**/*.py"), *ROOT.glob("worker/**/*.py"), ROOT / "handler.py"]
    names = {".".join(file.relative_to(ROOT).with_suffix("").parts): file for file in files}
    return {name.removesuffix(".__init__"): file for name, file in names.items()}


def imports_of(file: Path, name: str) -> set[str]:
    """Return what a module imports, each as far as it is named: `comfy_client.errors`, `requests`.

    What it imports for a type checker alone is no arrow: nothing of it is there when it runs.
    """
    found = set()
    tree = ast.parse(file.read_text())
    for_types = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in for_types:
            continue
        match node:
            case ast.Import(names=names):
                found |= {alias.name for alias in names}
            case ast.ImportFrom(module=str(module), names=names, level=0):
                found |= {
                    f"{module}.{alias.name}" if f"{module}.{alias.name}" in POSITION else module for alias in names
                }
            case ast.ImportFrom():
                pytest.fail(f"{name} has a relative import")
    return found - {"__future__"}


def test_every_module_has_its_place() -> None:
    """A new module is put into the order, and none stands there that is gone."""
    outside = {name for name in modules() if not name.startswith("comfy_client.simulator")}

    assert outside == set(POSITION)


@pytest.mark.parametrize(("name", "packages"), ORDER, ids=list(POSITION))
def test_arrows_point_down(name: str, packages: frozenset[str]) -> None:
    """A module imports what stands before it, its own packages, and the standard library."""
    for imported in imports_of(modules()[name], name):
        top = imported.partition(".")[0]
        if top in {"comfy_client", "worker", "handler"}:
            assert POSITION[imported] < POSITION[name], f"{name} imports {imported}, which stands after it"
        else:
            assert top in sys.stdlib_module_names or top in packages, f"{name} imports {top}"


def test_the_simulator_knows_nothing_of_ours() -> None:
    """The simulator cannot share a mistake with what it is to test."""
    for name, file in modules().items():
        if not name.startswith("comfy_client.simulator"):
            continue
        for imported in imports_of(file, name):
            top = imported.partition(".")[0]
            ours = imported.startswith("comfy_client.simulator")
            assert ours or top in sys.stdlib_module_names or top in SIMULATOR, f"{name} imports {imported}"
