"""Records the responses of worker-comfyui or of this worker to the requests of CASES, for docs/worker-comfyui.md.

python -m tools.stock_worker.record ours             writes ours.json
python -m tools.stock_worker.record stock FOLDER     writes stock.json

FOLDER contains handler.py and network_volume.py of worker-comfyui.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable
from datetime import UTC, datetime

from simulators.comfyui import Simulator
from tools.stock_worker.cases import CASES
from tools.stock_worker.outcomes import Handler, our_handler, outcome_of
from tools.stock_worker.recordings import STOCK_WORKER, THIS_WORKER

HandlerFactory = Callable[[Simulator], Handler]


def stock_handler(folder: str) -> HandlerFactory:
    """Import worker-comfyui's handler from `folder`; return a function that connects it to a simulator."""
    sys.modules.pop("handler", None)  # the handler.py of this project, which tools.stock_worker.outcomes imports
    sys.path.insert(0, folder)
    module = importlib.import_module("handler")

    def make_handler_for(simulator: Simulator) -> Handler:
        vars(module)["COMFY_HOST"] = simulator.url.removeprefix("http://")
        handle: Handler = module.handler
        return handle

    return make_handler_for


def main() -> None:
    """Write the recording that the command line names."""
    make_handler_for: HandlerFactory = our_handler
    match sys.argv[1:]:
        case ["ours"]:
            file, about = THIS_WORKER, "this worker"
        case ["stock", folder]:
            version = "worker-comfyui 5.8.5 (runpod-workers/worker-comfyui d2a5572)"
            file, about, make_handler_for = (
                STOCK_WORKER,
                f"{version}, {datetime.now(UTC):%Y-%m-%d}",
                stock_handler(folder),
            )
        case _:
            sys.exit(__doc__)
    outcomes = {case.title: outcome_of(case, make_handler_for) for case in CASES}
    file.write_text(json.dumps({"about": about, "outcomes": outcomes}, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
