"""Makes the four model files of Flux.1-dev with random weights, and starts a real ComfyUI on the CPU with them.

    COMFYUI_VENV/bin/python tools/random_models.py COMFYUI_DIR --port 8188 [flags of ComfyUI]
    COMFYUI_VENV/bin/python tools/random_models.py COMFYUI_DIR --full-size --only-models FOLDER

The models have the key layout and the file names of models.txt. By default they are small: two transformer blocks
instead of 57 and one T5 layer instead of 24, 1.5 GB. The images are noise; loaders, validation, progress, cache and
errors are real. A 64 x 64 image of three steps takes about 4 s on two cores. With --full-size the files have all
layers, 17.2 GB, so that a GPU is as fast as with the real weights. --only-models writes the files into a folder and
starts nothing.

ComfyUI gets --cache-classic, as in the worker: the default cache of newer versions depends on the free memory. The
script runs in ComfyUI's environment, so it imports no other module of this repository. The folders for input, output
and the user are new and empty. It sets `num_layers` in the checkout's T5 config to the T5 layers of the files.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

T5_CONFIG = "comfy/text_encoders/t5_config_xxl.json"
FOLDERS = ("input", "output", "temp", "user")
VAE_CONFIG = {
    "double_z": True,
    "z_channels": 16,
    "resolution": 256,
    "in_channels": 3,
    "out_ch": 3,
    "ch": 128,
    "ch_mult": [1, 2, 4, 4],
    "num_res_blocks": 2,
    "attn_resolutions": [],
    "dropout": 0.0,
}
FLUX_CONFIG = {
    "image_model": "flux",
    "in_channels": 16,
    "out_channels": 16,
    "vec_in_dim": 768,
    "context_in_dim": 4096,
    "hidden_size": 3072,
    "mlp_ratio": 4.0,
    "num_heads": 24,
    "axes_dim": [16, 56, 56],
    "theta": 10000,
    "patch_size": 2,
    "qkv_bias": True,
    "guidance_embed": True,
}
FLUX_BLOCKS = {False: (1, 1), True: (19, 38)}
"""The numbers of double and single transformer blocks, by whether the size is full."""
T5_LAYERS = {False: 1, True: 24}
BLOCK_VALUES = 1 << 24
"""Number of random values. A tensor with more values repeats them."""
MODEL_FILES = (
    "diffusion_models/flux1-dev-fp8.safetensors",
    "text_encoders/clip_l.safetensors",
    "text_encoders/t5xxl_fp8_e4m3fn.safetensors",
    "vae/ae.safetensors",
)
T5_XXL_KEY = "encoder.block.23.layer.1.DenseReluDense.wi_1.weight"
"""ComfyUI recognizes T5-XXL by this key of its last layer."""
SCALE, VAE_SCALE = 0.02, 0.05
"""Standard deviation of the weights."""
SAFETENSORS_TYPES = {"float8_e4m3fn": "F8_E4M3", "float16": "F16", "float32": "F32"}


def write_random(file: Path, shapes: Mapping[str, tuple[int, ...]], dtype: Any, scale: float) -> None:  # noqa: ANN401 - torch has no types here
    """Write a safetensors file with random weights of these shapes, as fast as the disk allows.

    Norms are 1, so that values stay in range. Each tensor starts at another place of one block of random values.
    """
    import torch

    def content(values: Any) -> memoryview:  # noqa: ANN401 - torch has no types here
        return memoryview(values.to(dtype).view(torch.uint8).numpy())

    size = dtype.itemsize
    noise, ones = content(torch.randn(BLOCK_VALUES) * scale), content(torch.ones(BLOCK_VALUES >> 8))
    header: dict[str, object] = {}
    end = 0
    for name, shape in shapes.items():
        begin, end = end, end + torch.Size(shape).numel() * size
        kind = SAFETENSORS_TYPES[str(dtype).removeprefix("torch.")]
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(".part")
    with part.open("wb") as output:
        output.write(len(text).to_bytes(8, "little") + text)
        for number, (name, shape) in enumerate(shapes.items()):
            is_norm = "norm" in name and name.endswith(("scale", "weight"))
            block, left = ones if is_norm else noise, torch.Size(shape).numel() * size
            place = 0 if is_norm else number * 4099 * size % len(noise)
            while left:
                written = output.write(block[place : place + left])
                left, place = left - written, (place + written) % len(block)
        output.flush()
        os.fsync(output.fileno())  # so that the page cache can be dropped
    part.rename(file)


def set_t5_layers(comfyui: Path, layers: int) -> None:
    """Set `num_layers` in ComfyUI's T5 config, if it has another value."""
    config = json.loads((comfyui / T5_CONFIG).read_text())
    if config["num_layers"] != layers:
        (comfyui / T5_CONFIG).write_text(json.dumps(config | {"num_layers": layers}, indent=2))


def make_models(comfyui: Path, models: Path, *, is_full_size: bool) -> None:
    """Write those of the four files that the folder `models` lacks. ComfyUI's T5 config must match the size."""
    import comfy.options

    comfy.options.enable_args_parsing()  # before the other modules, which read the arguments
    import torch
    from comfy.clip_model import CLIPTextModel
    from comfy.ldm.flux.model import Flux, FluxParams
    from comfy.ldm.models.autoencoder import AutoencodingEngine
    from comfy.ops import disable_weight_init as operations
    from comfy.text_encoders.t5 import T5

    torch.manual_seed(7)
    meta = torch.device("meta")  # the modules below only provide names and shapes
    t5_config = json.loads((comfyui / T5_CONFIG).read_text())
    clip_config = json.loads((comfyui / "comfy/sd1_clip_config.json").read_text())
    depth, single_depth = FLUX_BLOCKS[is_full_size]
    flux_config = FLUX_CONFIG | {"depth": depth, "depth_single_blocks": single_depth}
    if "txt_ids_dims" in FluxParams.__dataclass_fields__:
        flux_config["txt_ids_dims"] = []
    coder = "comfy.ldm.modules.diffusionmodules.model"
    with meta:
        flux = Flux(**flux_config, dtype=torch.float32, device=meta, operations=operations)
        t5 = T5(t5_config, torch.float32, meta, operations)
        clip = CLIPTextModel(clip_config, torch.float32, meta, operations)
        vae = AutoencodingEngine(
            regularizer_config={"target": "comfy.ldm.models.autoencoder.DiagonalGaussianRegularizer"},
            encoder_config={"target": f"{coder}.Encoder", "params": VAE_CONFIG},
            decoder_config={"target": f"{coder}.Decoder", "params": VAE_CONFIG},
        )
    types = (torch.float8_e4m3fn, torch.float16, torch.float8_e4m3fn, torch.float32)
    for path, model, dtype in zip(MODEL_FILES, (flux, clip, t5, vae), types, strict=True):
        if not (models / path).exists():
            shapes = {name: tuple(each.shape) for name, each in model.state_dict().items()}
            if model is t5:
                shapes[T5_XXL_KEY] = (10240, 4096)
            write_random(models / path, shapes, dtype, VAE_SCALE if model is vae else SCALE)


def main() -> None:
    """Write the models if they are missing, then replace this process with ComfyUI unless only models are wanted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("comfyui", type=Path, help="a checkout of ComfyUI")
    parser.add_argument("--port", type=int, default=8188)
    parser.add_argument("--full-size", action="store_true", help="write all layers, 17.2 GB")
    parser.add_argument("--only-models", type=Path, metavar="FOLDER", help="write the models there and start nothing")
    options, flags = parser.parse_known_args()
    comfyui = options.comfyui.resolve()
    models = options.only_models.resolve() if options.only_models else comfyui / "models"
    os.chdir(comfyui)
    sys.path.insert(0, str(comfyui))
    is_complete = all((models / path).exists() for path in MODEL_FILES)
    if options.only_models or not is_complete:
        set_t5_layers(comfyui, T5_LAYERS[options.full_size])
    if not is_complete:
        sys.argv = ["main.py", "--cpu"]  # ComfyUI's modules read it when they are imported
        make_models(comfyui, models, is_full_size=options.full_size)
    if options.only_models:
        return
    data = Path(tempfile.mkdtemp(prefix="comfyui-"))
    for name in FOLDERS:
        (data / name).mkdir()
    folders = [part for name in FOLDERS for part in (f"--{name}-directory", str(data / name))]
    command = [sys.executable, "main.py", "--cpu", "--port", str(options.port), "--disable-auto-launch"]
    os.execv(sys.executable, [*command, "--cache-classic", *folders, *flags])  # noqa: S606 - no shell


if __name__ == "__main__":
    main()
