"""Benchmarks, the soak, and what they start: a worker, a shim or a container on simulators.

Tests import from here; nothing here imports from tests.
"""
