"""The launch flags that are compared, and what is generated with each, as data."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class FlagSet:
    """Launch flags in addition to the worker's own.

    Attributes:
        name: the name in the results and on the command line.
        reason: the question that this set answers.
        flags: the additional flags.
        is_compiled: whether the graph contains TorchCompileModel, so that the model is compiled in the first job.
        is_cold: whether the model files are dropped from the page cache before ComfyUI starts.
    """

    name: str
    reason: str
    flags: tuple[str, ...] = ()
    is_compiled: bool = False
    is_cold: bool = False


FP8_MATMUL = ("--fast", "fp8_matrix_mult")
FLAG_SETS = (
    FlagSet("default", "the worker's flags: fp8 weights, converted to bf16 for each matrix product", is_cold=True),
    FlagSet("fp8-matmul", "matrix products in fp8", FP8_MATMUL),
    FlagSet("compiler", "the worker's flags, with TorchCompileModel in the graph", is_compiled=True),
    FlagSet("fp8-matmul-compiler", "matrix products in fp8, and the compiler", FP8_MATMUL, is_compiled=True),
    FlagSet("no-dynamic-vram", "models loaded whole before sampling", ("--disable-dynamic-vram",), is_cold=True),
    FlagSet("no-async-offload", "no asynchronous copies of weights", ("--disable-async-offload",)),
    FlagSet("ram-pressure-cache", "the cache that watches the host's memory", ("--cache-ram",)),
)
"""In order of importance, because the time may not suffice for the last ones."""


@dataclass(frozen=True)
class Plan:
    """What is generated with each flag set: one first image, then `warm_images` others with other seeds."""

    width: int = 1024
    height: int = 1024
    steps: int = 20
    warm_images: int = 2


TOY = Plan(width=64, height=64, steps=2, warm_images=1)
"""Small enough for a CPU. It tests the benchmark; its times say nothing about a GPU."""
