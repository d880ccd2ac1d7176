"""A caller of Scenario's API that uses plain HTTP, as many callers do."""

from __future__ import annotations

from typing import Any

import requests

from bench.shim_process import KEY, SECRET
from simulators.waiting import until

FINAL = ("success", "failure", "canceled")


class Caller:
    """A caller of the API at `base_url`."""

    def __init__(self, base_url: str, auth: tuple[str, str] = (KEY, SECRET)) -> None:
        self._base_url = base_url
        self._auth = auth

    def call(self, method: str, path: str, body: object = None, **headers: str) -> requests.Response:
        """Return the response to a request."""
        return requests.request(
            method, f"{self._base_url}{path}", json=body, auth=self._auth, headers=headers, timeout=60
        )

    def json(self, method: str, path: str, body: object = None, **headers: str) -> Any:  # noqa: ANN401 - any JSON value
        """Return the JSON of a response whose status is below 400."""
        response = self.call(method, path, body, **headers)
        assert response.status_code < 400, response.text
        return response.json()

    def generate(self, route: str, **body: object) -> dict[str, Any]:
        """Start a job, wait until it has ended, and return it."""
        job_id = self.json("POST", f"/generate/{route}", body)["job"]["jobId"]
        return self.ended(job_id)

    def ended(self, job_id: str) -> dict[str, Any]:
        """Wait until a job has ended, and return it."""
        jobs: list[dict[str, Any]] = []

        def has_ended() -> bool:
            jobs.append(self.json("GET", f"/jobs/{job_id}")["job"])
            return jobs[-1]["status"] in FINAL

        assert until(has_ended)
        return jobs[-1]

    def image(self, asset_id: str) -> bytes:
        """Return the bytes of an asset's image."""
        url = self.json("GET", f"/assets/{asset_id}")["asset"]["url"]
        response = requests.get(url, timeout=60)
        response.raise_for_status()
        return response.content
