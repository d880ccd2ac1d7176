"""Which launch flags of ComfyUI the worker passes or leaves out, and why. docs/performance.md prints both tables.

The reasons were read in the source of ComfyUI 0.33.0: comfy/cli_args.py, main.py, execution.py,
comfy_execution/caching.py, comfy/model_management.py, comfy/model_prefetch.py and comfy/quant_ops.py.
"""

from __future__ import annotations

from collections.abc import Mapping

PASSED: Mapping[str, str] = {
    "--listen": "127.0.0.1: only the worker, in the same container, sends requests to ComfyUI.",
    "--port": "`COMFYUI_PORT`.",
    "--disable-auto-launch": "There is no browser to open.",
    "--disable-metadata": (
        "The worker itself writes the prompt and the graph into an image, unless the request sets `metadata` to false."
    ),
    "--disable-api-nodes": "Nodes that call paid APIs are not loaded. The start would import 39 modules more.",
    "--disable-partner-nodes": "The same in newer versions, in which `--disable-api-nodes` means `--offline`.",
    "--disable-assets": (
        "Newer versions scan all model folders at the start, for an asset database that the worker does not use."
        " The pinned version scans only with `--enable-assets`, and does not have this flag."
    ),
    "--disable-all-custom-nodes": "With `--whitelist-custom-nodes`: only the image's nodes are loaded.",
    "--whitelist-custom-nodes": (
        "The nodes in `COMFYUI_DIR/custom_nodes`, and the worker's own node."
        " Nothing from a network volume is run as code."
    ),
    "--input-directory": "In `COMFYUI_DATA_DIR`, so that ComfyUI's own folder can be read-only.",
    "--output-directory": "In `COMFYUI_DATA_DIR`.",
    "--temp-directory": "In `COMFYUI_DATA_DIR`.",
    "--user-directory": "In `COMFYUI_DATA_DIR`.",
    "--database-url": "A file in `COMFYUI_DATA_DIR`. With a database in memory, ComfyUI logs a traceback.",
    "--front-end-root": "An empty folder. The packages with the web page have 583 MB and are not installed.",
    "--extra-model-paths-config": "The model folders that the worker has found.",
    "--preview-method": "`none`, because a preview costs time in every step; `latent2rgb` with `WORKER_PREVIEWS`.",
    "--disable-mmap": (
        "Only if models are on the network volume, where memory-mapping takes 30 to 50 times as long as reading."
    ),
    "--cache-classic": (
        "Keeps the results of the last prompt and frees those of earlier prompts. The engine's default is "
        "`--cache-ram`, see below. Not passed if `COMFYUI_ARGS` selects a cache."
    ),
}
"""The reason for each flag that the worker passes if ComfyUI has it."""

NEWER = frozenset({"--disable-partner-nodes", "--disable-assets"})
"""Flags of PASSED that the pinned ComfyUI does not have."""

NOT_PASSED: Mapping[str, str] = {
    "--cache-ram": (
        "The engine's default: it keeps results and models of earlier graphs until memory is short. It measures "
        "the free memory of the host, not of the container, see below."
    ),
    "--cache-lru": "Keeps the results and models of several graphs, whatever their size.",
    "--cache-none": "Would load the models again for every prompt.",
    "--high-ram": "The classic cache, with pinned buffers of unlimited size. Not for a container with a memory limit.",
    "--enable-assets": "See `--disable-assets`.",
    "--disable-dynamic-vram": (
        "With an NVIDIA GPU, dynamic VRAM is on by default: a model is loaded as far as it fits. ComfyUI "
        "announces that this flag will be removed."
    ),
    "--highvram": "Disables dynamic VRAM. So does `--gpu-only`.",
    "--async-offload": (
        "With an NVIDIA GPU, on by default with two streams. It has an effect only if the weights do not fit "
        "into the VRAM."
    ),
    "--disable-pinned-memory": (
        "Pinned memory is on by default and makes loading faster. Its limit is computed from the host's memory, "
        "but it holds each weight at most once. Pass this flag if the container has less memory than the models "
        "plus 8 GB."
    ),
    "--fast-disk": (
        "Reads weights from the disk again instead of keeping them in memory: for models that are larger than "
        "the memory."
    ),
    "--fast": (
        'Changes the images, so it is a choice for the owner. `COMFYUI_ARGS="--fast fp8_matrix_mult"` multiplies'
        " fp8 weights without converting them to bf16, on a GPU with fp8 (RTX 40, L40S, H100 and newer). Without"
        " a value, `--fast` also enables `fp16_accumulation`, `cublas_ops` and `autotune`."
    ),
    "--disable-cuda-graphs": "CUDA graphs are used only for text generation and music. Flux does not use them.",
    "--disable-comfy-compiler": (
        "Only newer versions have a model compiler. In the pinned version, only a graph with the node "
        "TorchCompileModel compiles a model."
    ),
    "--enable-triton-backend": (
        "With an NVIDIA GPU, comfy-kitchen's compiled CUDA kernels are used. Triton would compile kernels at "
        "their first use, in every new container."
    ),
    "--disabled-nodes-config": (
        "Only newer versions have it (no commit until 2026-08-22 does). It lists node classes to remove, not "
        "those to allow. The worker itself refuses graphs before it queues them ([security.md](security.md))."
    ),
    "--deterministic": "Selects slower algorithms.",
}
"""The reason for each flag that the worker leaves out. COMFYUI_ARGS can pass it."""
