"""A worker that downloads models by address from a simulated server."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from comfy_core.models.address_cache import AddressCache
from comfy_core.models.address_source import ModelHosts
from simulators.hugging_face import ModelServer
from tests.core.models.addresses import QUICK_RETRIES, local_hosts
from worker.job_models import ModelFetcher
from worker.jobs import Worker


@dataclass(frozen=True)
class Addressed:
    """A server of models, and the settings of workers that download from it."""

    server: ModelServer
    cache: Path
    links: Path

    def hosts(self, **changes: object) -> ModelHosts:
        """Return `local_hosts` of the server, with some fields changed."""
        hosts = local_hosts(self.server.server_port)
        return replace(hosts, **changes)  # type: ignore[arg-type] # the fields of ModelHosts

    def fetcher(self, hosts: ModelHosts | None = None, limit_bytes: int = 10**9) -> ModelFetcher:
        """Return what a worker needs to download from the server."""
        return ModelFetcher(hosts or self.hosts(), AddressCache(self.cache, limit_bytes, QUICK_RETRIES), self.links)

    def worker(self, worker: Worker, hosts: ModelHosts | None = None, limit_bytes: int = 10**9) -> Worker:
        """Return `worker`, able to download from the server."""
        return replace(worker, models=self.fetcher(hosts, limit_bytes))
