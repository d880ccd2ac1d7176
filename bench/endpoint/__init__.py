"""Measures the endpoint that the environment names: `scripts/benchmark`."""
