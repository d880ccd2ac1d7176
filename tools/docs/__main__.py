"""Generates docs/api.md, errors.md, configure.md, worker-comfyui.md, tables in other pages, and the client's methods.

To add a table, add a row to TABLES, and two marks to its page: `<!-- name: written by scripts/docs -->` and
`<!-- end -->`. To add a table of variables to docs/configure.md, add a row to VARIABLE_TABLES.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from comfy_client.cli.models import VARIABLES as MODEL_VARIABLES
from comfy_client.cli.terminal import VARIABLES as TERMINAL_VARIABLES
from comfy_client.cli.terminal_images import VARIABLES as TERMINAL_IMAGE_VARIABLES
from comfy_client.cli.ui import BROWSER
from comfy_client.deploy.variables import VARIABLES as DEPLOY_VARIABLES
from comfy_client.gateway.scenario.settings import CostRules, ShimSettings
from comfy_client.job_log import JOB_LOG
from comfy_client.profiles import PROFILE
from comfy_client.providers import VARIABLES as CLIENT_VARIABLES
from comfy_client.user_folders import VARIABLES as FOLDER_VARIABLES
from comfy_core.environment import Variable, variables_of
from comfy_core.models.source import Hub
from comfy_core.object_store import Bucket
from tools.docs import tables
from tools.docs.api import NOTE, api_page, errors_page
from tools.docs.client_methods import client_methods
from tools.docs.tables import variables_table
from tools.docs.worker_comfyui import worker_comfyui_page
from worker.flag_decisions import NOT_PASSED, PASSED
from worker.settings import RunPodVariables, Settings
from worker.webhook_settings import WebhookSettings

DOCS = Path(__file__).resolve().parents[2] / "docs"

SHIM_VARIABLES = variables_of(ShimSettings, CostRules)
VARIABLE_TABLES: Mapping[str, Iterable[Variable[Any]]] = {
    "The worker": variables_of(Settings),
    "Webhooks of the worker ([webhooks.md](webhooks.md))": variables_of(WebhookSettings),
    "RunPod's variables in a worker's container": variables_of(RunPodVariables),
    "Buckets of the worker, the Scenario shim and `comfy-client batch`": variables_of(Bucket),
    "Model downloads: `WORKER_FETCH_MODELS`, `scripts/download_models` and image builds": variables_of(Hub),
    "The client": [
        *CLIENT_VARIABLES.values(),
        PROFILE,
        JOB_LOG,
        *FOLDER_VARIABLES,
        *MODEL_VARIABLES,
        *TERMINAL_VARIABLES,
        *TERMINAL_IMAGE_VARIABLES,
        BROWSER,
    ],
    "`comfy-client deploy` and `destroy`": DEPLOY_VARIABLES,
    "The Scenario shim": SHIM_VARIABLES,
}
"""Every variable, by the title of its table in docs/configure.md."""

TABLES: Mapping[str, Mapping[str, Callable[[], str]]] = {
    "../README.md": {"licence": tables.licence_box, "providers": tables.providers_table},
    "models.md": {"licence": tables.licence_box, "variables": lambda: variables_table(variables_of(Hub))},
    "migrate.md": {"licence": tables.licence_box},
    "operate.md": {"faults": tables.faults_table, "job-record": tables.job_record_table},
    "client.md": {
        "providers": tables.providers_table,
        "variables": lambda: variables_table(CLIENT_VARIABLES.values()),
    },
    "command.md": {"events": tables.events_table, "commands": tables.commands_table},
    "openai.md": {"parameters": tables.openai_parameters_table, "quality": tables.openai_quality_table},
    "scenario.md": {"fields": tables.fields_tables, "variables": lambda: variables_table(SHIM_VARIABLES)},
    "deploy.md": {
        "licence": tables.licence_box,
        "description": tables.description_table,
        "variables": lambda: variables_table(DEPLOY_VARIABLES),
    },
    "cost.md": {"prices": tables.prices_table},
    "performance.md": {
        "passed": lambda: tables.flags_table(PASSED),
        "not-passed": lambda: tables.flags_table(NOT_PASSED),
    },
}
"""The functions that generate tables, by the page that contains the table and the name in the table's marks."""


def configure_page() -> Iterator[str]:
    """Yield the parts of docs/configure.md."""
    yield f"# Variables\n\n{NOTE}\n"
    yield (
        "All environment variables, by the program that reads them, for operators and developers.\n\n"
        "Each variable is read once, at start. An invalid value ends the process with an error that names the "
        "variable. An empty value counts as not set.\n"
    )
    for title, variables in VARIABLE_TABLES.items():
        yield f"## {title}\n"
        yield variables_table(variables)


def with_tables(page_name: str, generators: Mapping[str, Callable[[], str]]) -> str:
    """Return the text of a page with its tables regenerated, each between its two marks."""
    text = (DOCS / page_name).read_text()
    for table_name, generate in generators.items():
        mark = f"<!-- {table_name}: written by scripts/docs -->"
        before, found, rest = text.partition(mark)
        if not found:
            sys.exit(f"docs/{page_name} has no mark {mark}")
        text = f"{before}{mark}\n{generate()}<!-- end -->{rest.partition('<!-- end -->')[2]}"
    return text


def main() -> None:
    """Write the pages. With --check, exit with 1 if a page is not current."""
    generated = {
        "api.md": api_page(),
        "errors.md": errors_page(),
        "configure.md": configure_page(),
        "worker-comfyui.md": worker_comfyui_page(),
        "../comfy_client/workflow_methods.py": client_methods(is_async=False),
        "../comfy_client/async_workflow_methods.py": client_methods(is_async=True),
    }
    pages = {name: "\n".join(parts) for name, parts in generated.items()}
    pages |= {name: with_tables(name, generators) for name, generators in TABLES.items()}
    for name, text in pages.items():
        path = DOCS / name
        if "--check" not in sys.argv:
            path.write_text(text)
        elif not path.exists() or path.read_text() != text:
            sys.exit(f"docs/{name} is not current: run scripts/docs")


if __name__ == "__main__":
    main()
