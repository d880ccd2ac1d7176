"""Generates docs/api.md, errors.md, configure.md, worker-comfyui.md, and tables in other pages, from the code.

To add a table, add a row to TABLES, and two marks to its page: `<!-- name: written by scripts/docs -->` and
`<!-- end -->`. To add a table of variables to docs/configure.md, add a row to SETTINGS.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from bench.endpoint.price import RATE
from comfy_client.deploy.variables import VARIABLES as DEPLOY_VARIABLES
from comfy_client.gateway.scenario.settings import VARIABLES as SHIM_VARIABLES
from comfy_client.providers import VARIABLES as CLIENT_VARIABLES
from tools.docs import tables
from tools.docs.api import NOTE, api, errors
from tools.docs.tables import settings_table, variables_table
from tools.docs.worker_comfyui import page as worker_comfyui
from worker.settings import VARIABLES as WORKER_VARIABLES

DOCS = Path(__file__).resolve().parents[2] / "docs"

SETTINGS: tuple[tuple[str, Callable[[], str]], ...] = (
    ("The worker", lambda: settings_table(WORKER_VARIABLES)),
    ("The client", lambda: variables_table(CLIENT_VARIABLES.values())),
    ("`comfy-client deploy` and `destroy`", lambda: variables_table(DEPLOY_VARIABLES.values())),
    ("The Scenario shim", lambda: settings_table(SHIM_VARIABLES)),
    ("`scripts/benchmark`", lambda: variables_table([RATE])),
)
"""Every table of variables with its title, in the order of docs/configure.md."""

TABLES: Mapping[str, Mapping[str, Callable[[], str]]] = {
    "../README.md": {"licence": tables.licence_box, "providers": tables.providers_table},
    "models.md": {"licence": tables.licence_box},
    "migrate.md": {"licence": tables.licence_box},
    "operate.md": {"faults": tables.faults_table},
    "client.md": {
        "providers": tables.providers_table,
        "variables": lambda: variables_table(CLIENT_VARIABLES.values()),
        "commands": tables.commands_table,
    },
    "scenario.md": {"fields": tables.fields_tables, "variables": lambda: settings_table(SHIM_VARIABLES)},
    "deploy.md": {
        "licence": tables.licence_box,
        "description": tables.description_table,
        "variables": lambda: variables_table(DEPLOY_VARIABLES.values()),
    },
    "cost.md": {"prices": tables.prices_table},
}
"""The generated tables in pages that are written by hand, by page and name."""


def configure() -> Iterator[str]:
    """Yield the parts of docs/configure.md."""
    yield f"# Variables\n\n{NOTE}\n"
    yield (
        "Each is read once at start. An invalid value ends the process with an error that names the variable. "
        "An empty value counts as not set.\n"
    )
    for title, table in SETTINGS:
        yield f"## {title}\n"
        yield table()


def with_tables(name: str, tables: Mapping[str, Callable[[], str]]) -> Iterator[str]:
    """Yield the page `name` with its tables regenerated, each between its two marks."""
    page = (DOCS / name).read_text()
    for each, table in tables.items():
        mark = f"<!-- {each}: written by scripts/docs -->"
        before, found, rest = page.partition(mark)
        if not found:
            sys.exit(f"docs/{name} has no mark {mark}")
        page = f"{before}{mark}\n{table()}<!-- end -->{rest.partition('<!-- end -->')[2]}"
    yield page


def main() -> None:
    """Write the pages. With --check, exit with 1 if a page is not current."""
    pages = {"api.md": api(), "errors.md": errors(), "configure.md": configure(), "worker-comfyui.md": worker_comfyui()}
    pages |= {name: with_tables(name, tables) for name, tables in TABLES.items()}
    for name, parts in pages.items():
        path, text = DOCS / name, "\n".join(parts)
        if "--check" not in sys.argv:
            path.write_text(text)
        elif not path.exists() or path.read_text() != text:
            sys.exit(f"docs/{name} is not current: run scripts/docs")


if __name__ == "__main__":
    main()
