"""Runs the simulator as a process: python -m simulators.comfyui.

It ignores launch flags that it does not have, as ComfyUI has many more. When it accepts connections, it logs the line
that ComfyUI logs, with the URL, to stderr. On SIGTERM or SIGINT it exits with 0.
"""

from __future__ import annotations

import argparse
import inspect
import logging
import math
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence

from simulators.comfyui import faults

ALL_ADDRESSES = "0.0.0.0"  # noqa: S104  --listen without a value
LAST_PORT = 65535

logger = logging.getLogger("simulators.comfyui")


def parser(prog: str = "python -m simulators.comfyui") -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    listed = "\n".join(f"  {':'.join([name, *map(_usage, faults.parameters_of(name))])}" for name in faults.FAULTS)
    options = argparse.ArgumentParser(
        prog=prog,
        description="Serve a simulated ComfyUI that needs no GPU. Its images are placeholders.",
        epilog=f"faults, as in --fault run_out_of_memory or --fault drop_socket:3:\n{listed}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    options.add_argument("--host", default="127.0.0.1", help="the address to listen on")
    options.add_argument(
        "--listen", dest="host", nargs="?", const=ALL_ADDRESSES, help="the same as --host, under ComfyUI's name"
    )
    options.add_argument("--port", type=_port, default=8188)
    options.add_argument("--step-s", type=_seconds, default=0.02, help="duration of a sampling step in seconds")
    options.add_argument("--base-directory", help="folder of input, output and temp; default: a temporary folder")
    options.add_argument("--preview-method", default="none", help="any value except none sends previews")
    options.add_argument("--fault", action="append", default=[], metavar="FAULT[:ARG...]", help="inject this fault")
    return options


def _usage(parameter: inspect.Parameter) -> str:
    """Return a fault's parameter as `NAME`, or as `[NAME=default]` if it may be omitted."""
    name = parameter.name.upper()
    return name if parameter.default is parameter.empty else f"[{name}={parameter.default}]"


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
    """Serve until a signal; return the exit status. `models` replaces the default model files of the folders it names.

    `on_ready` is called with the URL when the server is ready. With `is_strict`, unknown flags are errors.
    Raises SystemExit with the reason if an argument is invalid or the server cannot start, and ImportError without
    aiohttp.
    """
    options, ignored = parser(prog).parse_known_args(arguments)
    if ignored and is_strict:
        parser(prog).error(f"there is no flag {ignored[0]}")
    from simulators.comfyui.simulator import Simulator  # noqa: PLC0415 - needs aiohttp, and --help does not

    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        injections = [faults.parse_fault(text) for text in options.fault]
    except ValueError as unknown:
        parser(prog).error(str(unknown))
    if ignored:
        logger.info("The simulator ignores these flags: %s", " ".join(ignored))
    stopped = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopped.set())
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
        sys.exit(f"The simulator cannot listen on {options.host}:{options.port} ({error.strerror}). Pass a free --port")
    try:
        for inject in injections:
            inject(simulator.faults)
        on_ready(simulator.url)
        stopped.wait()
    finally:
        simulator.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
