"""Moves this repository to another commit of ComfyUI: `python -m tools.bump_comfyui COMMIT`."""
