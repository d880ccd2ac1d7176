"""Measures the provider that the environment selects. `scripts/benchmark` runs it."""
