"""Runs the benchmark with the project's base packages only: python -m bench.gpu."""

from __future__ import annotations

import argparse

from bench.gpu import command

parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=command.DESCRIPTION)
command.add_arguments(parser)
command.gpu(parser.parse_args())
