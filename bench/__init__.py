"""Benchmarks, the soak test, and helpers that start a worker, a shim or a container on simulators.

Tests import from this package; it does not import from tests.
"""
