"""The simulator as a process of its own: python -m simulators.comfyui.

It takes ComfyUI's own launch flags without complaint, tells on stderr when it can be called, in ComfyUI's words, and
ends with 0 at SIGTERM or SIGINT.
"""

from __future__ import annotations

import argparse
import logging
import math
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence

from simulators.comfyui import faults

EVERYWHERE = "0.0.0.0"  # noqa: S104  what --listen means where it names nothing
LAST_PORT = 65535

logger = logging.getLogger("simulators.comfyui")


def parser(prog: str = "python -m simulators.comfyui") -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    verbs = "\n".join(f"  {':'.join([name, *map(str, faults.arguments(name))])}" for name in faults.VERBS)
    options = argparse.ArgumentParser(
        prog=prog,
        description="Serve a simulated ComfyUI that needs no GPU. Its pictures are placeholders.",
        epilog=f"faults, as in --fault run_out_of_memory or --fault drop_socket:3:\n{verbs}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    options.add_argument("--host", default="127.0.0.1", help="the address to listen on")
    options.add_argument("--listen", dest="host", nargs="?", const=EVERYWHERE, help="the same, in ComfyUI's words")
    options.add_argument("--port", type=_port, default=8188)
    options.add_argument("--step-s", type=_seconds, default=0.02, help="how long a sampling step takes")
    options.add_argument("--base-directory", help="where input, output and temp live; a temporary folder if not given")
    options.add_argument("--preview-method", default="none", help="anything but none sends previews")
    options.add_argument("--fault", action="append", default=[], metavar="VERB[:ARG...]", help="make this go wrong")
    return options


def _port(text: str) -> int:
    value = int(text)
    if not 0 <= value <= LAST_PORT:
        raise argparse.ArgumentTypeError(f"must be from 0 to {LAST_PORT}, not {text!r}")
    return value


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number of seconds from 0, not {text!r}")
    return value


def main(
    arguments: Sequence[str] | None = None,
    models: Mapping[str, Iterable[str]] | None = None,
    on_ready: Callable[[str], None] = lambda url: logger.info("To see the GUI go to: %s", url),
    prog: str = "python -m simulators.comfyui",
    *,
    is_strict: bool = False,
) -> int:
    """Serve until a signal, with these `models` in place of its own; return the exit status.

    `on_ready` gets the address once the server answers. With `is_strict`, flags that only ComfyUI has are refused.
    Raises SystemExit, with what is wrong, if it cannot be served, and ImportError without aiohttp.
    """
    options, ignored = parser(prog).parse_known_args(arguments)
    if ignored and is_strict:
        parser(prog).error(f"there is no flag {ignored[0]}")
    from simulators.comfyui.simulator import Simulator  # noqa: PLC0415 - needs aiohttp, and --help does not

    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        verbs = [faults.parsed(words) for words in options.fault]
    except ValueError as unknown:
        parser(prog).error(str(unknown))
    if ignored:
        logger.info("These mean nothing to the simulator: %s", " ".join(ignored))
    told_to_end = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: told_to_end.set())
    simulator = Simulator(
        step_s=options.step_s,
        base_directory=options.base_directory,
        host=options.host.split(",")[0],
        port=options.port,
        models=models,
        previews=options.preview_method != "none",
        is_own_process=True,
    )
    logger.info("Starting server\n")
    try:
        simulator.start()
    except OSError as error:
        sys.exit(
            f"The simulator cannot listen on {options.host}:{options.port} ({error.strerror}). Give it a free --port"
        )
    try:
        for verb in verbs:
            verb(simulator.faults)
        on_ready(simulator.url)
        told_to_end.wait()
    finally:
        simulator.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
