"""Addresses of a simulated server of models, the hosts that allow it, and LoRA files for it."""

from __future__ import annotations

import hashlib
import json
import random
from ipaddress import ip_network

from comfy_core.models.address_source import ModelHosts
from comfy_core.models.download import DownloadRetryPolicy
from comfy_core.models.source import Hub
from comfy_core.safe_connection import FetchRules

QUICK_RETRIES = DownloadRetryPolicy(max_in_a_row=3, first_s=0.01)
HF_PATH = "/studio/loras/resolve/v1/knight.safetensors"
HF = "hf:studio/loras/knight.safetensors@v1"
"""The address of the file that the server has at HF_PATH."""
CIVITAI_PATH = "/api/download/models/123"


def safetensors(size: int = 100_000, seed: int = 1) -> bytes:
    """Return a valid safetensors file with one tensor of `size` random bytes."""
    header = json.dumps({"w": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    return len(header).to_bytes(8, "little") + header + random.Random(seed).randbytes(size)  # noqa: S311 - not secret


LORA = safetensors()
"""The content of the file that the fixture `lora_server` has at HF_PATH and at CIVITAI_PATH."""


def sha256(content: bytes) -> str:
    """Return the hash of `content` in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def local_hosts(port: int) -> ModelHosts:
    """Return hosts that allow the server at `port` under both of its names, as Hugging Face and as Civitai."""
    rules = FetchRules(
        allow_http=True,
        allowed_networks=(ip_network("127.0.0.0/8"), ip_network("::1/128")),
        extra_ports=frozenset({port}),
    )
    hub = Hub(f"http://127.0.0.1:{port}")
    civitai = f"http://localhost:{port}"
    return ModelHosts(("127.0.0.1", "localhost"), hub, civitai=civitai, rules=rules, silence_s=2)
