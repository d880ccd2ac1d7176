"""A script that runs handler.py, except that models are downloaded from the server at MODEL_SERVER on this machine."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import handler
from comfy_core.models.address_cache import AddressCache
from tests.core.models.addresses import QUICK_RETRIES, local_hosts
from worker.job_models import ModelFetcher
from worker.jobs import Worker
from worker.settings import Settings


def make_worker(settings: Settings) -> Worker:
    """Return the worker of `settings`, with the local server as its only source of models."""
    worker = handler.worker_from_settings(settings)
    assert worker.models is not None
    cache = AddressCache(worker.models.cache.folder, settings.model_limit_bytes, QUICK_RETRIES)
    port = urlsplit(os.environ["MODEL_SERVER"]).port
    assert port is not None
    return replace(worker, models=ModelFetcher(local_hosts(port), cache, Path(worker.models.links)))


if __name__ == "__main__":
    handler.main(make_worker)
