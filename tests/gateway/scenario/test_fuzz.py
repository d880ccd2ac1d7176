"""5,000 random generate calls, and requests that schemathesis derives from the OpenAPI document: never a 500."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests

from bench.shim_process import KEY, SECRET, ShimProcess
from comfy_client.gateway.scenario.fields import ASPECT_RATIOS, BASE_MODELS, ROUTES, SAMPLERS

pytestmark = pytest.mark.slow
CALLS = 5_000
THREADS = 4
PATHS = (
    "/generate/custom/model_bfl-flux-1-dev",
    "/generate/txt2img",
    "/generate/img2img",
    "/models/flux.1-dev/inferences",
    "/generate/custom/model_none",
)
_ODD: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2, 4, 1.5, 2**63, -(2**70), 1e308, "", "x", "4", "\x00", "\ud800", "é" * 40),
    *([], {}, [[]], [None], ["model_x"], [{"modelId": "model_x", "scale": 2}], {"a": {"b": [1]}}, "asset_none"),
    *("data:image/png;base64,AAAA", "https://192.0.2.1/x.png", "http://127.0.0.1/", *ASPECT_RATIOS, *SAMPLERS),
)
_FIELDS = sorted({name for route in ROUTES.values() for name in route.fields} | {"other", "parameters", "projectId"})


@pytest.fixture
def shim(shared_shim: ShimProcess) -> ShimProcess:
    """The shim that all tests of this module share."""
    return shared_shim


def body_of(rng: random.Random) -> bytes:
    """Return a random body: fields with odd values, mostly with a valid prompt and model, or invalid JSON."""
    if rng.random() < 0.05:
        return rng.choice((b"", b"{", b"[1]", b"null", b"NaN", b'{"prompt": NaN}', b"\xff\xfe", b"[" * 5000, b'"x"'))
    body = {name: rng.choice(_ODD) for name in rng.sample(_FIELDS, rng.choice((0, 1, 1, 2, 4)))}
    if rng.random() < 0.9:
        body["prompt"] = "a knight"
    if rng.random() < 0.7:
        body["modelId"] = rng.choice(BASE_MODELS)
    return json.dumps({"parameters": body} if rng.random() < 0.3 else body).encode()


def test_five_thousand_calls_get_no_server_error(shim: ShimProcess) -> None:
    """Each call gets 2xx, or 4xx with a reason and a trace id; enough calls get 200, 269 and 400."""

    def send(seed: int) -> Counter[int]:
        rng = random.Random(seed)  # noqa: S311 - reproducible, not secret
        statuses: Counter[int] = Counter()
        with requests.Session() as session:
            session.auth = (KEY, SECRET)
            for _ in range(CALLS // THREADS):
                query = {"dryRun": "true"} if rng.random() < 0.7 else {}
                data = body_of(rng)
                response = session.post(shim.base_url + rng.choice(PATHS), data=data, params=query, timeout=60)
                statuses[response.status_code] += 1
                error = response.json()
                assert response.status_code // 100 == 2 or (
                    response.status_code // 100 == 4 and error["reason"] and error["trace_id"]
                ), (response.status_code, data[:300], error)
        return statuses

    with ThreadPoolExecutor(THREADS) as pool:
        statuses = sum(pool.map(send, range(THREADS)), Counter[int]())

    assert statuses.total() == CALLS
    assert statuses[200] > 100
    assert statuses[269] > 200
    assert statuses[400] > 500


def test_schemathesis_finds_no_500(shim: ShimProcess, tmp_path: Path) -> None:
    """Requests generated from /openapi.json get no server error, and responses that match the document."""
    completed = subprocess.run(
        [
            str(Path(sys.executable).with_name("schemathesis")),
            "run",
            f"{shim.url}/openapi.json",
            f"--auth={KEY}:{SECRET}",
            "--checks=not_a_server_error,content_type_conformance,response_schema_conformance",
            "--max-examples=15",
            "--phases=examples,fuzzing",
            "--generation-deterministic",
            "--no-color",
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )

    assert completed.returncode == 0, completed.stdout[-6000:]
