"""ComfyUI's folders for types of models. Reads the names of folders only."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

FOLDERS: Mapping[str, tuple[str, ...]] = {
    "checkpoints": ("checkpoints",),
    "configs": ("configs",),
    "loras": ("loras",),
    "vae": ("vae",),
    "text_encoders": ("text_encoders", "clip"),
    "diffusion_models": ("unet", "diffusion_models"),
    "clip_vision": ("clip_vision",),
    "style_models": ("style_models",),
    "embeddings": ("embeddings",),
    "diffusers": ("diffusers",),
    "vae_approx": ("vae_approx",),
    "controlnet": ("controlnet", "t2i_adapter"),
    "gligen": ("gligen",),
    "upscale_models": ("upscale_models",),
    "latent_upscale_models": ("latent_upscale_models",),
    "hypernetworks": ("hypernetworks",),
    "photomaker": ("photomaker",),
    "classifiers": ("classifiers",),
    "model_patches": ("model_patches",),
    "audio_encoders": ("audio_encoders",),
    "background_removal": ("background_removal",),
    "frame_interpolation": ("frame_interpolation",),
    "geometry_estimation": ("geometry_estimation",),
    "optical_flow": ("optical_flow",),
    "detection": ("detection",),
}
"""ComfyUI's model types (folder_paths.py), each with its folders in search order."""

_KNOWN_SUBFOLDERS = frozenset({"custom_nodes", *(folder for folders in FOLDERS.values() for folder in folders)})
"""Subfolders that are not additional model types: known types, and custom_nodes, because a volume must not add code."""


def model_types(root: Path) -> dict[str, tuple[str, ...]]:
    """Return the model types of a root, each with its folders: ComfyUI's, and unknown subfolders of the root."""
    own = sorted(folder.name for folder in subfolders(root) if folder.name not in _KNOWN_SUBFOLDERS)
    return {**FOLDERS, **{name: (name,) for name in own}}


def search_paths(roots: Iterable[Path]) -> dict[str, tuple[Path, ...]]:
    """Return each model type with the folders that ComfyUI searches if its models are in `roots`, in this order."""
    found: dict[str, tuple[Path, ...]] = {}
    for root in dict.fromkeys(roots):
        for kind, folders in model_types(root).items():
            found[kind] = (*found.get(kind, ()), *(root / each for each in folders))
    return found


def subfolders(folder: Path) -> list[Path]:
    """Return the subfolders of `folder`, sorted by name; none if it cannot be read."""
    try:
        return sorted(each for each in folder.iterdir() if each.is_dir() and not each.name.startswith("."))
    except OSError:
        return []
