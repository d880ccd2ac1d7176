"""Makes a LoRA file for Flux.1 with random weights, in the key layout of ComfyUI's LoRA loader. Needs no torch."""

from __future__ import annotations

import json
import random
import struct

RANK = 4
HIDDEN = 3072
LAYER = "lora_unet_double_blocks_0_img_attn_qkv"
SHAPES = {f"{LAYER}.lora_down.weight": (RANK, HIDDEN), f"{LAYER}.lora_up.weight": (3 * HIDDEN, RANK)}
"""The layer whose weights the LoRA changes: one that the small models of tools/random_models.py also have."""


def random_lora(seed: int = 1) -> bytes:
    """Return a safetensors file of 98 kB."""
    generator = random.Random(seed)  # noqa: S311 - no secret
    header: dict[str, object] = {}
    content = b""
    for name, (rows, columns) in SHAPES.items():
        values = [generator.gauss(0, 0.5) for _ in range(rows * columns)]
        begin, content = len(content), content + struct.pack(f"<{len(values)}e", *values)
        header[name] = {"dtype": "F16", "shape": [rows, columns], "data_offsets": [begin, len(content)]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + content
