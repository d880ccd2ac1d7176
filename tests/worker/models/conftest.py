"""Fixture: the simulated Hugging Face server of tests/core/models."""

from tests.core.models.conftest import models

__all__ = ["models"]
