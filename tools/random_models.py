"""Starts a real ComfyUI on the CPU whose Flux.1-dev has random weights.

    COMFYUI_VENV/bin/python tools/random_models.py COMFYUI_DIR --port 8188 [flags of ComfyUI]

The models have the key layout and the file names of models.txt, but two transformer blocks instead of 57 and one T5
layer instead of 24: 1.5 GB. The images are noise; loaders, validation, progress, cache and errors are real. A
64 x 64 image of three steps takes about 4 s on two cores. ComfyUI gets --cache-classic, as in the worker: the default
cache of newer versions depends on the free memory. The script runs in ComfyUI's environment, so it imports no
other module of this repository. The folders for input, output and the user are new and empty. It changes `num_layers`
in the checkout's T5 config.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
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
    "depth": 1,
    "depth_single_blocks": 1,
    "axes_dim": [16, 56, 56],
    "theta": 10000,
    "patch_size": 2,
    "qkv_bias": True,
    "guidance_embed": True,
}


def random_weights(model: Any, dtype: Any, scale: float = 0.02) -> dict[str, Any]:  # noqa: ANN401 - torch has no types here
    """Return random weights with a model's keys and shapes. Norms are 1, so that values stay in range."""
    import torch

    def weight(name: str, shape: Any) -> Any:  # noqa: ANN401 - torch has no types here
        is_norm = "norm" in name and name.endswith(("scale", "weight"))
        return torch.ones(shape) if is_norm else torch.randn(shape) * scale

    return {name: weight(name, each.shape).to(dtype).contiguous() for name, each in model.state_dict().items()}


def make_models(comfyui: Path) -> None:
    """Write the four model files into ComfyUI's models folder, and set `num_layers` in ComfyUI's T5 config to 1."""
    import comfy.options

    comfy.options.enable_args_parsing()  # before the other modules, which read the arguments
    import torch
    from comfy.clip_model import CLIPTextModel
    from comfy.ldm.flux.model import Flux, FluxParams
    from comfy.ldm.models.autoencoder import AutoencodingEngine
    from comfy.ops import disable_weight_init as operations
    from comfy.text_encoders.t5 import T5
    from safetensors.torch import save_file

    torch.manual_seed(7)
    fp8, models = torch.float8_e4m3fn, comfyui / "models"
    newer_parameters: dict[str, Any] = {"txt_ids_dims": []} if "txt_ids_dims" in FluxParams.__dataclass_fields__ else {}
    flux = Flux(**FLUX_CONFIG, **newer_parameters, dtype=torch.float32, device="cpu", operations=operations)
    save_file(random_weights(flux, fp8), models / "diffusion_models/flux1-dev-fp8.safetensors")
    t5_config = json.loads((comfyui / T5_CONFIG).read_text()) | {"num_layers": 1}
    (comfyui / T5_CONFIG).write_text(json.dumps(t5_config, indent=2))
    t5 = random_weights(T5(t5_config, torch.float32, "cpu", operations), fp8)
    # ComfyUI recognizes T5-XXL by this key of its last layer.
    t5["encoder.block.23.layer.1.DenseReluDense.wi_1.weight"] = torch.zeros(10240, 4096).to(fp8)
    save_file(t5, models / "text_encoders/t5xxl_fp8_e4m3fn.safetensors")
    clip_config = json.loads((comfyui / "comfy/sd1_clip_config.json").read_text())
    clip = CLIPTextModel(clip_config, torch.float32, "cpu", operations)
    save_file(random_weights(clip, torch.float16), models / "text_encoders/clip_l.safetensors")
    modules = "comfy.ldm.modules.diffusionmodules.model"
    vae = AutoencodingEngine(
        regularizer_config={"target": "comfy.ldm.models.autoencoder.DiagonalGaussianRegularizer"},
        encoder_config={"target": f"{modules}.Encoder", "params": VAE_CONFIG},
        decoder_config={"target": f"{modules}.Decoder", "params": VAE_CONFIG},
    )
    save_file(random_weights(vae, torch.float32, 0.05), models / "vae/ae.safetensors")


def main() -> None:
    """Write the models if they are missing, then replace this process with ComfyUI."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("comfyui", type=Path, help="a checkout of ComfyUI")
    parser.add_argument("--port", type=int, default=8188)
    options, flags = parser.parse_known_args()
    comfyui = options.comfyui.resolve()
    os.chdir(comfyui)
    sys.path.insert(0, str(comfyui))
    if not (comfyui / "models/vae/ae.safetensors").exists():
        sys.argv = ["main.py", "--cpu"]  # ComfyUI's modules read it when they are imported
        make_models(comfyui)
    data = Path(tempfile.mkdtemp(prefix="comfyui-"))
    for name in FOLDERS:
        (data / name).mkdir()
    folders = [part for name in FOLDERS for part in (f"--{name}-directory", str(data / name))]
    command = [sys.executable, "main.py", "--cpu", "--port", str(options.port), "--disable-auto-launch"]
    os.execv(sys.executable, [*command, "--cache-classic", *folders, *flags])  # noqa: S606 - no shell


if __name__ == "__main__":
    main()
