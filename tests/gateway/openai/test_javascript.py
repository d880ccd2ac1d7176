"""OpenAI's official SDK for JavaScript, unmodified, as the caller."""

from __future__ import annotations

import json
import os
import subprocess

import pytest

from bench.shim_process import KEY, SECRET, ShimProcess
from tests.npm import installed

pytestmark = pytest.mark.slow
PROGRAM = """
import OpenAI, { toFile } from "openai";
const client = new OpenAI({ maxRetries: 0 });
const small = { prompt: "a knight", size: "64x64", steps: 2, seed: 7 };
const generated = await client.images.generate({ ...small, n: 2 });
const start = await toFile(Buffer.from(generated.data[0].b64_json, "base64"), "start.png", { type: "image/png" });
const edited = await client.images.edit({ prompt: "a lake", image: start, steps: 2 });
const events = [];
for await (const event of await client.images.generate({ ...small, stream: true })) events.push(event.type);
const error = await client.images.generate({ ...small, size: "65x64" }).catch((error) => error);
const models = (await client.models.list()).data.map((model) => model.id);
console.log(JSON.stringify({
  seeds: generated.data.map((image) => image.seed), edited: edited.size, events, models,
  error: [error.constructor.name, error.status, error.code, error.param],
}));
"""


def test_the_sdk_generates_edits_and_streams(server: ShimProcess) -> None:
    """The SDK generates two images, edits one, reads a stream and the models, and raises its class of error."""
    folder = installed("openai")
    environment = {**os.environ, "OPENAI_BASE_URL": server.base_url, "OPENAI_API_KEY": f"{KEY}:{SECRET}"}
    command = ["node", "--input-type=module", "--eval", PROGRAM]
    ended = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout)

    assert found["seeds"] == [7, 8]
    assert found["edited"] == "64x64"
    assert found["events"][-1] == "image_generation.completed"
    assert "flux-dev-txt2img" in found["models"]
    assert found["error"] == ["BadRequestError", 400, "invalid_input", "size"]
